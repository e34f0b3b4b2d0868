"""Checkpoints that are damaged, incomplete or hostile: every part is named, and no code in them is run."""

import json
import os
import pickle
import shutil

import pytest
import torch

import run_classification
import run_classification_no_trainer
from blobs import flags


SCRIPTS = pytest.mark.parametrize(
    "script", [run_classification, run_classification_no_trainer], ids=["trainer", "no_trainer"]
)
# What the scripts, Trainer and Accelerate write to or look for in a checkpoint, beside safetensors and JSON.
PICKLES = (
    *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin"),
    *("optimizer.bin", "scheduler.bin", "sampler.bin", "random_states_0.pkl", "dl_state_dict.bin"),
    *("custom_checkpoint_0.pkl", "pytorch_model.bin", "adapter_model.bin"),
)


@pytest.fixture(scope="module")
def runs(blob_dir, tmp_path_factory):
    """A function from a script to the folder of a run of two steps, to be copied."""
    folders = {}

    def make(script):
        if script not in folders:
            folders[script] = tmp_path_factory.mktemp("runs") / "run"
            script.main(command(blob_dir, folders[script], 2))
        return folders[script]

    return make


def command(blob_dir, output_dir, steps):
    saving = {"save_strategy": "steps", "save_steps": 2, "do_eval": None, "final_evaluation": False}
    return flags(blob_dir, output_dir, max_steps=steps, log_level="warning", **saving)


@pytest.fixture
def resumed(blob_dir, tmp_path, runs):
    """A function from a script to its checkpoint in a folder of this test, and a function that resumes from there."""

    def make(script):
        shutil.copytree(runs(script), tmp_path / "run")
        return tmp_path / "run" / "checkpoint-2", lambda: script.main(command(blob_dir, tmp_path / "run", 3))

    return make


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@SCRIPTS
def test_no_pickle_in_a_checkpoint_is_run(resumed, tmp_path, script):
    checkpoint, resume = resumed(script)
    executed = tmp_path / "executed"
    torch.save({"state": Payload(executed)}, tmp_path / "payload")
    with pytest.raises(FileNotFoundError):
        os.rmdir(executed)
    torch.load(tmp_path / "payload", weights_only=False)
    executed.rmdir()  # The payload works.
    planted = {}
    for number, name in enumerate(PICKLES):
        path = checkpoint / name
        planted[name] = path.read_bytes() if path.is_file() else None
        legacy = pickle.dumps({"state": Payload(executed)})
        path.write_bytes(legacy if number % 2 else (tmp_path / "payload").read_bytes())
    refused = []
    for _ in planted:
        try:
            resume()
        except ValueError as error:
            name = next(name for name in planted if name in str(error))
            refused.append(name)
            (checkpoint / name).unlink()
            if planted[name] is not None:
                (checkpoint / name).write_bytes(planted[name])
        else:
            break
        assert not executed.exists(), refused
    else:
        pytest.fail(f"it was never resumed: {refused}")
    assert not executed.exists()
    assert len(refused) >= 3, "what the script reads"
    assert json.loads((checkpoint.parent / "training_log.json").read_text())["steps"] == 3


@SCRIPTS
def test_a_part_that_is_missing_or_damaged_is_named(resumed, script):
    checkpoint, resume = resumed(script)
    needed = [path for path in sorted(checkpoint.iterdir()) if path.stem in ("optimizer", "scheduler", "model")]
    assert len(needed) == (3 if script is run_classification else 2)
    for path in needed:
        content = path.read_bytes()
        path.write_bytes(content[:-100])
        with pytest.raises(
            ValueError, match=f"expected .* in .*{'checkpoint-2' if path.stem == 'model' else path.name}"
        ):
            resume()
        path.unlink()
        with pytest.raises(
            ValueError, match=f"expected .*checkpoint-2.*{'got others in' if path.stem == 'model' else ''}"
        ):
            resume()
        path.write_bytes(content)


@SCRIPTS
def test_random_states_that_are_missing_are_warned_of(resumed, caplog, script):
    checkpoint, resume = resumed(script)
    path = next(path for path in checkpoint.iterdir() if path.name in ("rng_state.pth", "random_states_0.pkl"))
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=f"expected tensors and plain values in .*{path.name}"):
        resume()
    path.unlink()
    caplog.clear()
    resume()
    assert f"{path.name} is missing in {checkpoint}" in caplog.text


def test_a_checkpoint_without_the_state_of_its_schedule_is_refused(resumed):
    checkpoint, resume = resumed(run_classification_no_trainer)
    progress = json.loads((checkpoint / "progress.json").read_text())
    assert progress.pop("scheduler")["last_epoch"] == 2
    (checkpoint / "progress.json").write_text(json.dumps(progress))
    with pytest.raises(ValueError, match=r"expected the state of the learning rate in .*progress\.json, got none"):
        resume()
