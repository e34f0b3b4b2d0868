"""Both training scripts from the command line to the result, on pictures made up on the spot."""

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

import focusvit_hf
from blobs import NAMES, ROOT, blob, environment, flags, losses, run_on_two_processes
from focusvit_hf import FocusViTConfig


import run_classification  # isort: skip
import run_classification_no_trainer  # isort: skip


SCRIPTS = pytest.mark.parametrize(
    "script", [run_classification, run_classification_no_trainer], ids=["trainer", "no_trainer"]
)


@SCRIPTS
@pytest.mark.parametrize(
    "extra",
    [{}, {"decode_once": True, "bf16": True, "gradient_accumulation_steps": 2}, {"streaming": True}],
    ids=["plain", "decoded_bf16", "streaming"],
)
def test_a_run_from_pictures_to_a_pipeline(blob_dir, tmp_path, script, extra):
    output_dir = tmp_path / "run"
    figures = script.main(flags(blob_dir, output_dir, ema_decay=0.9, **extra))
    assert 0 <= figures["eval_accuracy"] <= 1
    log = json.loads((output_dir / "training_log.json").read_text())
    assert log["arguments"]["max_steps"] == 6
    assert "token" not in log["arguments"]
    assert len([entry for entry in log["log_history"] if "loss" in entry]) == 6
    assert {"torch", "transformers", "focusvit_hf"} <= log["versions"].keys()
    # Pictures whose scores are nearly equal fall differently in bf16.
    if not extra:
        assert figures["test_accuracy"] == pytest.approx(figures["eval_accuracy"], abs=1 / 24 + 1e-6)
    config = FocusViTConfig.from_pretrained(output_dir)
    assert config.id2label == dict(enumerate(NAMES))
    classifier = transformers.pipeline("image-classification", model=str(output_dir))
    assert {entry["label"] for entry in classifier(blob(5))} == set(NAMES)


def test_training_learns(blob_dir, tmp_path):
    wide = {"hidden_size": 96, "intermediate_size": 192, "stem_channels": 32}
    schedule = {"max_steps": 90, "warmup_steps": 9, "lr_scheduler_type": "constant_with_warmup"}
    schedule["per_device_train_batch_size"] = 22
    figures = run_classification.main(flags(blob_dir, tmp_path / "run", config=wide, **schedule))
    assert figures["test_accuracy"] >= 0.8


def test_the_saved_weights_are_the_averaged_ones(blob_dir, tmp_path):
    output_dir = tmp_path / "run"
    run_classification.main(
        flags(blob_dir, output_dir, ema_decay=0.9, save_strategy="steps", save_steps=6, final_evaluation=False)
    )
    saved = load_file(output_dir / "model.safetensors")
    averaged = load_file(output_dir / "checkpoint-6" / "ema.safetensors")
    raw = load_file(output_dir / "checkpoint-6" / "model.safetensors")
    assert all(torch.equal(saved[name], averaged[name]) for name in saved)
    assert not torch.equal(raw["classifier.weight"], saved["classifier.weight"])


@SCRIPTS
def test_two_processes_equal_one_with_the_same_global_batch(blob_dir, tmp_path, script):
    shared = {"max_steps": 20, "do_eval": None, "final_evaluation": False, "dataloader_drop_last": True}
    # Each process normalises the cells of a stem by its own part of the batch; patches are not normalised.
    patches = {"embedding_type": "patch"}
    two = flags(blob_dir, tmp_path / "two", config=patches, per_device_train_batch_size=8, **shared)
    run_on_two_processes(script.__file__, two)
    script.main(flags(blob_dir, tmp_path / "one", config=patches, per_device_train_batch_size=16, **shared))
    assert len(losses(tmp_path / "one")) == 20
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


# Patches are not normalised; the cells of a stem are, by each process by its own part of the batch.
@pytest.mark.parametrize(
    ("embedding", "loss_tolerance", "tolerance"), [("patch", 1e-4, 2e-3), ("conv", 1e-3, 5e-3)], ids=["patch", "conv"]
)
def test_fsdp_on_two_processes_equals_one(blob_dir, tmp_path, embedding, loss_tolerance, tolerance):
    """The committed FSDP configuration, as far as a CPU allows: sharding, checkpoints, weights put together again."""
    options = yaml.safe_load((ROOT / "configuration" / "accelerate" / "fsdp.yaml").read_text())["fsdp_config"]
    options["fsdp_transformer_cls_to_wrap"] = options.pop("fsdp_transformer_layer_cls_to_wrap")
    variables = {name.upper(): str(value) for name, value in options.items()}
    shared = {"final_evaluation": False, "dataloader_drop_last": True, "save_strategy": "steps", "save_steps": 3}
    code = tmp_path / "fsdp.py"
    code.write_text(FSDP_ON_CPU)
    config = {"embedding_type": embedding}
    for steps in (3, 6):
        changes = {**shared, "max_steps": steps, "lr_scheduler_type": "constant"}
        command = flags(blob_dir, tmp_path / "two", config=config, per_device_train_batch_size=8, **changes)
        run_on_two_processes(code, command, **variables, ACCELERATE_USE_FSDP="true")
    one = flags(blob_dir, tmp_path / "one", config=config, per_device_train_batch_size=16, **changes)
    run_classification_no_trainer.main(one)
    assert len(losses(tmp_path / "one")) == 6
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=loss_tolerance)
    sharded, whole = (load_file(tmp_path / run / "model.safetensors") for run in ("two", "one"))
    assert sharded.keys() == whole.keys()
    for name in whole:
        limit = 2e-2 if "running_" in name else tolerance
        torch.testing.assert_close(sharded[name], whole[name], atol=limit, rtol=0)


# Accelerate shards on accelerators only; that code runs on a CPU when it takes its two processes for GPUs.
FSDP_ON_CPU = """
import sys
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
import run_classification_no_trainer
from run_classification_no_trainer import Loop

init, train = PartialState.__init__, Loop.train

def init_as_gpu(self, *args, **kwargs):
    init(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU

def train_sharded(self, checkpoint):
    if not all(isinstance(parameter, DTensor) for parameter in self.model.parameters()):
        raise RuntimeError("expected sharded parameters")
    train(self, checkpoint)

PartialState.__init__, Loop.train = init_as_gpu, train_sharded
run_classification_no_trainer.main(sys.argv[1:])
"""


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


def test_both_scripts_train_alike(blob_dir, tmp_path):
    """The same pictures in the same order, the same losses: what one writes the other would have written."""
    shared = {"max_steps": 10, "do_eval": None, "final_evaluation": False, "gradient_accumulation_steps": 2}
    augmentation = json.dumps({"crop": "pad", "mixup_alpha": 0.4})
    for script in (run_classification, run_classification_no_trainer):
        script.main(flags(blob_dir, tmp_path / script.__name__, augmentation=augmentation, **shared))
    first, second = (losses(tmp_path / name) for name in ("run_classification", "run_classification_no_trainer"))
    assert first == pytest.approx(second, abs=1e-4)


def test_workers_draw_what_the_main_process_draws(blob_dir, tmp_path):
    """Over the border of an epoch, where workers that live on have to learn of it."""
    shared = {"max_steps": 12, "do_eval": None, "final_evaluation": False, "per_device_train_batch_size": 22}
    shared["augmentation"] = json.dumps({"crop": "pad", "mixup_alpha": 0.4, "cutmix_alpha": 1.0})
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    run_classification.main(flags(blob_dir, tmp_path / "none", **shared))
    run_classification.main(flags(blob_dir, tmp_path / "one", **shared, **workers))
    assert losses(tmp_path / "one") == losses(tmp_path / "none")


def test_folders_of_pictures(tmp_path):
    for split, count in (("train", 18), ("val", 6)):
        for number in range(count):
            path = tmp_path / split / NAMES[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            blob(number).save(path)
    folders = {"train_dir": tmp_path / "train", "validation_dir": tmp_path / "val", "data_dir": None, "max_steps": 2}
    figures = run_classification.main(flags(tmp_path, tmp_path / "run", **folders))
    assert figures.keys() >= {"eval_accuracy", "eval_loss"}
    assert sorted(FocusViTConfig.from_pretrained(tmp_path / "run").label2id) == sorted(NAMES)


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("script", "writer"),
    [
        (run_classification, "transformers.PreTrainedModel.save_pretrained"),
        (run_classification, "torch.save"),
        (run_classification, "focusvit_hf.training.save_file"),
        (run_classification, "transformers.TrainerState.save_to_json"),
        (run_classification_no_trainer, "accelerate.Accelerator.save_state"),
        (run_classification_no_trainer, "focusvit_hf.training.save_file"),
        (run_classification_no_trainer, "run_classification_no_trainer.write_json"),
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


def test_resuming_another_model_is_refused(blob_dir, tmp_path):
    output_dir = tmp_path / "run"
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "final_evaluation": False}
    run_classification.main(flags(blob_dir, output_dir, **saving))
    with pytest.raises(ValueError, match="num_latents"):
        run_classification.main(flags(blob_dir, output_dir, config={"num_latents": 3}, **saving))


def test_the_test_split_is_not_chosen_on(blob_dir, tmp_path):
    best = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True, "max_steps": 4}
    best |= {"eval_steps": 2, "save_steps": 2, "ema_decay": 0.9, "save_total_limit": 1}
    with pytest.raises(ValueError, match="not to be chosen on"):
        run_classification.main(flags(blob_dir, tmp_path / "run", **best))
    output_dir = tmp_path / "held_out"
    figures = run_classification.main(flags(blob_dir, output_dir, train_val_split=0.3, **best))
    assert "test_accuracy" in figures
    state = json.loads((output_dir / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).is_dir()
    assert Path(state["best_model_checkpoint"]).parent == output_dir
    averaged = load_file(Path(state["best_model_checkpoint"]) / "ema.safetensors")
    saved = load_file(output_dir / "model.safetensors")
    assert all(torch.equal(saved[name], averaged[name]) for name in saved)


def test_a_processor_that_disagrees_with_the_model_is_refused(blob_dir, tmp_path):
    other = FocusViTConfig(image_size=32, patch_size=4, num_superpixels=4, superpixel_cell_size=2)
    focusvit_hf.FocusViTImageProcessor.from_model_config(other).save_pretrained(tmp_path / "processor")
    other.save_pretrained(tmp_path / "processor")
    with pytest.raises(ValueError, match="num_superpixels"):
        run_classification.main(flags(blob_dir, tmp_path / "run", image_processor_name=str(tmp_path / "processor")))
