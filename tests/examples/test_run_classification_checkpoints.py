"""Where both training scripts begin and go on: the output folder, its checkpoints, and what becomes of them."""

import errno
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import focusvit_hf
import run_classification
import run_classification_no_trainer
from blobs import environment, flags, losses


SCRIPTS = pytest.mark.parametrize(
    "script", [run_classification, run_classification_no_trainer], ids=["trainer", "no_trainer"]
)


KILLED = """
import importlib, os, signal, sys
from focusvit_hf import FocusViTForImageClassification

steps, forward = 0, FocusViTForImageClassification.forward

def counted(self, *args, **kwargs):
    global steps
    steps += 1
    if steps == KILLED_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, *args, **kwargs)

FocusViTForImageClassification.forward = counted
importlib.import_module(sys.argv[1]).main(sys.argv[2:])
"""


@SCRIPTS
def test_killed_and_resumed_ends_as_uninterrupted(blob_dir, tmp_path, script):
    shared = {
        "max_steps": 12,
        "full_determinism": True,
        "ema_decay": 0.9,
        "config": {"hidden_dropout_prob": 0.1, "drop_path_rate": 0.1},
        "augmentation": json.dumps({"crop": "pad", "mixup_alpha": 0.4, "cutmix_alpha": 1.0}),
        "lr_scheduler_type": "cosine",
        "save_strategy": "steps",
        "save_steps": 5,
        "do_eval": None,
        "final_evaluation": False,
    }

    def start(output_dir: str, killed_at: int = 0) -> subprocess.Popen:
        code = KILLED.replace("KILLED_AT", str(killed_at))
        command = [sys.executable, "-c", code, script.__name__, *flags(blob_dir, tmp_path / output_dir, **shared)]
        return subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    uninterrupted, killed = start("whole"), start("killed", killed_at=8)
    output = uninterrupted.communicate(timeout=300)[0]
    assert uninterrupted.returncode == 0, output
    output = killed.communicate(timeout=300)[0]
    assert killed.returncode == -signal.SIGKILL, output
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-5"]
    resumed = start("killed")
    output = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 0, output

    log = json.loads((tmp_path / "killed" / "training_log.json").read_text())
    assert Path(log["resumed_from"]).name == "checkpoint-5"
    assert len(losses(tmp_path / "whole")) == 12
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    for name in ("model.safetensors", "checkpoint-10/model.safetensors", "checkpoint-10/ema.safetensors"):
        whole, again = (load_file(tmp_path / run / name) for run in ("whole", "killed"))
        assert whole.keys() == again.keys()
        assert all(torch.equal(whole[key], again[key]) for key in whole), name


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("script", "writer"),
    [
        (run_classification, "transformers.PreTrainedModel.save_pretrained"),
        (run_classification, "torch.save"),
        (run_classification, "focusvit_hf.training.averaging.save_file"),
        (run_classification, "transformers.TrainerState.save_to_json"),
        (run_classification_no_trainer, "accelerate.Accelerator.save_state"),
        (run_classification_no_trainer, "focusvit_hf.training.averaging.save_file"),
        (run_classification_no_trainer, "focusvit_hf.training.accelerate_checkpoints.write_json"),
    ],
)
def test_a_full_disk_leaves_the_old_checkpoint(blob_dir, tmp_path, monkeypatch, script, writer):
    output_dir = tmp_path / "run"
    command = flags(
        blob_dir, output_dir, max_steps=4, ema_decay=0.9, save_strategy="steps", save_steps=2, save_total_limit=1
    )
    script.main([*command, "--final_evaluation", "False"])
    longer = [*command, "--max_steps", "6"]
    before = {path.name: path.read_bytes() for path in (output_dir / "checkpoint-4").iterdir()}
    with monkeypatch.context() as full:
        full.setattr(writer, disk_full)
        with pytest.raises(OSError, match="No space left") as caught:
            script.main(longer)
    assert any("older ones are untouched" in note for note in caught.value.__notes__)
    assert [path.name for path in output_dir.glob("checkpoint-*")] == ["checkpoint-4"]
    assert {path.name: path.read_bytes() for path in (output_dir / "checkpoint-4").iterdir()} == before
    assert not (output_dir / ".incomplete").exists()
    script.main(longer)
    assert [path.name for path in output_dir.glob("checkpoint-*")] == ["checkpoint-6"]


@SCRIPTS
def test_a_full_disk_at_the_end_leaves_the_old_model(blob_dir, tmp_path, monkeypatch, script):
    output_dir = tmp_path / "run"
    command = flags(blob_dir, output_dir, max_steps=2, final_evaluation=False)
    script.main(command)
    before = {path.name: path.read_bytes() for path in output_dir.iterdir() if path.is_file()}
    monkeypatch.setattr("focusvit_hf.FocusViTImageProcessor.save_pretrained", disk_full)
    with pytest.raises(OSError, match="No space left"):
        script.main([*command, "--overwrite_output_dir", "--seed", "1"])
    model = "model.safetensors"
    assert (output_dir / model).read_bytes() == before[model]
    assert not (output_dir / ".incomplete").exists()


@SCRIPTS
def test_a_diverged_run_stops_and_keeps_its_checkpoint(blob_dir, tmp_path, monkeypatch, script):
    output_dir = tmp_path / "run"
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8}
    forward = focusvit_hf.FocusViTForImageClassification.forward

    def diverging(self, *args, **kwargs):
        diverging.calls += 1
        outputs = forward(self, *args, **kwargs)
        return outputs if diverging.calls < 4 else {"logits": outputs.logits * float("nan")}

    diverging.calls = 0
    monkeypatch.setattr("focusvit_hf.FocusViTForImageClassification.forward", diverging)
    with pytest.raises(ValueError, match="expected a finite loss, got nan at step 4"):
        script.main(flags(blob_dir, output_dir, **saving))
    assert [path.name for path in output_dir.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("saves", [2, 100])
def test_a_diverged_run_that_logs_nothing_stops_too(blob_dir, tmp_path, monkeypatch, saves):
    output_dir = tmp_path / "run"
    saving = {"save_strategy": "steps", "save_steps": saves, "max_steps": 4, "logging_strategy": "no"}
    loss = run_classification_no_trainer.soft_cross_entropy

    def diverging(*args, **kwargs):
        diverging.calls += 1
        return loss(*args, **kwargs) * (float("nan") if diverging.calls == 3 else 1)

    diverging.calls = 0
    monkeypatch.setattr(run_classification_no_trainer, "soft_cross_entropy", diverging)
    with pytest.raises(ValueError, match="expected a finite loss, got nan at step 4"):
        run_classification_no_trainer.main(flags(blob_dir, output_dir, **saving))
    assert [path.name for path in output_dir.glob("*")] == (["checkpoint-2"] if saves == 2 else [])


def test_a_folder_with_other_files_is_refused(blob_dir, tmp_path):
    output_dir = tmp_path / "run"
    output_dir.mkdir()
    (output_dir / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="expected an empty output_dir"):
        run_classification.main(flags(blob_dir, output_dir))
    with pytest.raises(ValueError, match="expected a checkpoint"):
        run_classification.main(flags(blob_dir, output_dir, resume_from_checkpoint="True"))
    with pytest.raises(ValueError, match="expected a checkpoint"):
        run_classification.main(flags(blob_dir, output_dir, resume_from_checkpoint=str(tmp_path / "nowhere")))
    assert [path.name for path in output_dir.iterdir()] == ["thesis.txt"]


@SCRIPTS
def test_old_checkpoints_go_when_training_begins_and_not_before(blob_dir, tmp_path, script):
    output_dir = tmp_path / "run"
    saving = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "final_evaluation": False}
    command = flags(blob_dir, output_dir, do_eval=None, **saving)
    script.main(command)
    old = {path: path.read_bytes() for path in output_dir.glob("checkpoint-2/*")}
    anew = [*command, "--overwrite_output_dir", "--seed", "1"]
    large = ["--dataloader_drop_last", "--per_device_train_batch_size", "133"]
    for mistake in (["--data_dir", str(tmp_path / "nowhere")], ["--augmentation", '{"mixupp": 1}'], large):
        with pytest.raises(ValueError, match=r"expected|mixupp"):
            script.main([*anew, *mistake])
    script.main([*flags(blob_dir, output_dir, do_train=None), "--overwrite_output_dir"])
    assert {path: path.read_bytes() for path in output_dir.glob("checkpoint-*/*")} == old
    script.main([*anew, "--max_steps", "1", "--save_steps", "1"])
    assert [path.name for path in output_dir.glob("checkpoint-*")] == ["checkpoint-1"]
    assert json.loads((output_dir / "training_log.json").read_text())["resumed_from"] is None


@SCRIPTS
def test_an_evaluation_alone_resumes_nothing(blob_dir, tmp_path, script):
    output_dir = tmp_path / "run"
    (output_dir / "checkpoint-7").mkdir(parents=True)
    evaluating = flags(blob_dir, output_dir, do_train=None)
    assert "eval_accuracy" in script.main(evaluating)
    assert json.loads((output_dir / "evaluation_log.json").read_text())["resumed_from"] is None
    for checkpoint in ("last", str(output_dir / "checkpoint-7")):
        with pytest.raises(ValueError, match=f"expected --do_train with --resume_from_checkpoint, got {checkpoint!r}"):
            script.main([*evaluating, "--resume_from_checkpoint", checkpoint])


class Killed(BaseException):
    """Ends a script as a signal does: nothing that handles errors sees it."""


@SCRIPTS
@pytest.mark.parametrize("killed_at", ["checkpoint-2", "checkpoint-4"])
def test_a_run_killed_while_it_writes_a_checkpoint_goes_on(blob_dir, tmp_path, monkeypatch, script, killed_at):
    output_dir = tmp_path / "run"
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "final_evaluation": False}
    command = flags(blob_dir, output_dir, do_eval=None, ema_decay=0.9, max_steps=4, **saving)
    save = torch.save

    def save_until_killed(content, path, *args, **kwargs):
        # The optimiser's state, which comes after the model's weights.
        if f"{killed_at}/optimizer" in str(path):
            raise Killed
        return save(content, path, *args, **kwargs)

    with monkeypatch.context() as until_killed:
        until_killed.setattr("torch.save", save_until_killed)
        with pytest.raises(Killed):
            script.main(command)
    assert (output_dir / killed_at / "model.safetensors").is_file()
    first = killed_at == "checkpoint-2"
    # Another number of steps does not write over what is half-written.
    script.main([*command, "--max_steps", "3", "--save_strategy", "no"])
    log = json.loads((output_dir / "training_log.json").read_text())
    assert log["resumed_from"] == (None if first else str(output_dir / "checkpoint-2"))
    assert [path.name for path in output_dir.glob("*/")] == ([] if first else ["checkpoint-2"])
    assert not (output_dir / "_unfinished_checkpoint").exists()


@SCRIPTS
def test_what_nobody_noted_as_half_written_is_kept(blob_dir, tmp_path, script):
    """A checkpoint whose state was deleted by its owner is none to go on from, and none of ours to delete."""
    output_dir = tmp_path / "run"
    saving = {"save_strategy": "steps", "save_steps": 2, "do_eval": None, "final_evaluation": False}
    script.main(flags(blob_dir, output_dir, max_steps=4, **saving))
    stripped = output_dir / "checkpoint-4"
    for state in (*stripped.glob("progress.json"), *stripped.glob("trainer_state.json")):
        state.write_text(state.read_text()[:-20])
    script.main(flags(blob_dir, output_dir, max_steps=3, **saving))
    assert Path(json.loads((output_dir / "training_log.json").read_text())["resumed_from"]).name == "checkpoint-2"
    assert (stripped / "model.safetensors").is_file()
    shutil.rmtree(output_dir / "checkpoint-2")
    shutil.rmtree(output_dir / "checkpoint-3")
    with pytest.raises(ValueError, match=r"expected an empty output_dir, got .* with other files in it"):
        script.main(flags(blob_dir, output_dir, max_steps=3, ema_decay=0.5, **saving))


@SCRIPTS
@pytest.mark.parametrize("strategy", ["steps", "epoch", "no"])
def test_a_finished_run_that_is_started_again_changes_nothing(blob_dir, tmp_path, caplog, script, strategy):
    output_dir = tmp_path / "run"
    saving = {"save_strategy": strategy, "save_steps": 4, "final_evaluation": False, "log_level": "warning"}
    # 17 batches are an epoch; the steps are no multiple of those between checkpoints.
    command = flags(blob_dir, output_dir, max_steps=18, ema_decay=0.9, **saving)
    figures = script.main(command)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in output_dir.rglob("*") if path.is_file()}
    caplog.clear()
    assert script.main(command) == figures
    assert "is finished: nothing was trained and nothing was written" in caplog.text
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in output_dir.rglob("*") if path.is_file()}
    assert after == before
    if strategy == "no":
        return
    # Killed before its log was written, it has nothing left to train either, but all the rest to do.
    (output_dir / "training_log.json").unlink()
    (output_dir / "model.safetensors").unlink()
    assert script.main(command)["eval_loss"] == pytest.approx(figures["eval_loss"], rel=1e-6)
    again = load_file(output_dir / "model.safetensors")
    averaged = load_file(output_dir / "checkpoint-18" / "ema.safetensors")
    assert all(torch.equal(again[name], averaged[name]) for name in again)
    assert max(int(path.name[11:]) for path in output_dir.glob("checkpoint-*")) == 18
    assert json.loads((output_dir / "training_log.json").read_text())["steps"] == 18


def test_resuming_another_model_is_refused(blob_dir, tmp_path):
    output_dir = tmp_path / "run"
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "final_evaluation": False}
    run_classification.main(flags(blob_dir, output_dir, **saving))
    with pytest.raises(ValueError, match="num_latents"):
        run_classification.main(flags(blob_dir, output_dir, config={"num_latents": 3}, **saving))
