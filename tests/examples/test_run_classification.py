"""Both training scripts from the command line to the result, on images made up on the spot."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import focusvit_hf
import run_classification
import run_classification_no_trainer
from blobs import NAMES, ROOT, blob, environment, flags, losses
from focusvit_hf import FocusViTConfig
from focusvit_hf.training.arguments import TrainingArguments
from processes import run_on_two_processes


BOTH = (run_classification, run_classification_no_trainer)
SCRIPTS = pytest.mark.parametrize("script", BOTH, ids=["trainer", "no_trainer"])


@SCRIPTS
@pytest.mark.parametrize(
    "extra",
    [{}, {"decode_once": True, "bf16": True, "gradient_accumulation_steps": 2}, {"streaming": True}],
    ids=["plain", "decoded_bf16", "streaming"],
)
def test_a_run_from_images_to_a_pipeline(blob_dir, tmp_path, script, extra):
    output_dir = tmp_path / "run"
    figures = script.main(flags(blob_dir, output_dir, ema_decay=0.9, **extra))
    assert 0 <= figures["eval_accuracy"] <= 1
    log = json.loads((output_dir / "training_log.json").read_text())
    assert log["arguments"]["max_steps"] == 6
    assert "token" not in log["arguments"]
    assert len([entry for entry in log["log_history"] if "loss" in entry]) == 6
    assert {"torch", "transformers", "focusvit_hf"} <= log["versions"].keys()
    # Images whose scores are nearly equal fall differently in bf16.
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


# A wrapped model that outlives its group of processes can wait for ever (pytorch/pytorch issue 56297).
GROUP_GOES_LAST = """
import gc, sys
import torch.distributed
from torch.nn.parallel import DistributedDataParallel
import {script}

destroy = torch.distributed.destroy_process_group

def destroy_last(group=None):
    if any(isinstance(living, DistributedDataParallel) for living in gc.get_objects()):
        raise RuntimeError("expected the wrapped model to be gone before its group of processes")
    destroy(group)

torch.distributed.destroy_process_group = destroy_last
{script}.main(sys.argv[1:])
"""


@SCRIPTS
def test_two_processes_equal_one_with_the_same_global_batch(blob_dir, tmp_path, script):
    shared = {"max_steps": 20, "do_eval": None, "final_evaluation": False, "dataloader_drop_last": True}
    # Each process normalises the cells of a stem by its own part of the batch; patches are not normalised.
    patches = {"embedding_type": "patch"}
    two = flags(blob_dir, tmp_path / "two", config=patches, per_device_train_batch_size=8, **shared)
    code = tmp_path / "two.py"
    code.write_text(GROUP_GOES_LAST.format(script=script.__name__))
    run_on_two_processes([str(code), *two], environment())
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
        sharding = {**variables, "ACCELERATE_USE_FSDP": "true"}
        run_on_two_processes([str(code), *command], {**environment(), **sharding})
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


def test_both_scripts_train_alike(blob_dir, tmp_path):
    """The same images in the same order, the same losses: what one writes the other would have written."""
    shared = {"max_steps": 10, "do_eval": None, "final_evaluation": False, "gradient_accumulation_steps": 2}
    augmentation = json.dumps({"crop": "pad", "mixup_alpha": 0.4})
    for script in (run_classification, run_classification_no_trainer):
        script.main(flags(blob_dir, tmp_path / script.__name__, augmentation=augmentation, **shared))
    first, second = (losses(tmp_path / name) for name in ("run_classification", "run_classification_no_trainer"))
    assert first == pytest.approx(second, abs=1e-4)


def test_both_scripts_weigh_a_last_step_of_fewer_batches_alike(blob_dir, tmp_path):
    """132 images are three batches of 50: steps of two and of one; plain descent keeps what a step is scaled by."""
    shared = {"max_steps": 8, "do_eval": None, "final_evaluation": False, "gradient_accumulation_steps": 2}
    shared |= {"per_device_train_batch_size": 50, "optim": "sgd", "learning_rate": 0.3, "max_grad_norm": 0}
    for script, interval in ((script, interval) for script in BOTH for interval in (1, 4)):
        output_dir = tmp_path / f"{script.__name__}-{interval}"
        script.main(flags(blob_dir, output_dir, logging_steps=interval, **shared))
    for interval in (1, 4):
        first, second = (losses(tmp_path / f"{script.__name__}-{interval}") for script in BOTH)
        assert len(first) == 8 / interval
        assert second == pytest.approx(first, abs=1e-5)


def logged(output_dir: Path, name: str) -> list[int]:
    """The steps at which a run logged a figure of that name."""
    log = json.loads((output_dir / "training_log.json").read_text())
    return [entry["step"] for entry in log["log_history"] if name in entry]


def test_intervals_as_shares_of_all_steps(blob_dir, tmp_path):
    shares = {"logging_steps": 0.3, "eval_steps": 0.5, "save_steps": 0.5, "eval_strategy": "steps"}
    shares |= {"save_strategy": "steps", "max_steps": 6, "final_evaluation": False}
    for script in BOTH:
        output_dir = tmp_path / script.__name__
        script.main(flags(blob_dir, output_dir, **shares))
        assert logged(output_dir, "loss") == [2, 4, 6]
        assert logged(output_dir, "eval_loss")[:2] == [3, 6]
        assert sorted(path.name for path in output_dir.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]


@pytest.mark.parametrize(("strategy", "steps"), [("no", []), ("epoch", [3, 6, 7])])
def test_both_scripts_log_when_they_are_asked_to(blob_dir, tmp_path, strategy, steps):
    shared = {"max_steps": 7, "per_device_train_batch_size": 50, "do_eval": None, "final_evaluation": False}
    for script in BOTH:
        script.main(flags(blob_dir, tmp_path / script.__name__, logging_strategy=strategy, **shared))
        assert logged(tmp_path / script.__name__, "loss") == steps
    first, second = (losses(tmp_path / script.__name__) for script in BOTH)
    assert second == pytest.approx(first, abs=1e-4)


def test_a_skipped_step_moves_neither_schedule_nor_average(blob_dir, tmp_path, monkeypatch):
    """As mixed precision skips steps whose gradients overflow."""
    monkeypatch.setattr("accelerate.Accelerator.optimizer_step_was_skipped", property(lambda self: True))
    output_dir = tmp_path / "run"
    shared = {"max_steps": 3, "do_eval": None, "final_evaluation": False, "save_strategy": "steps", "save_steps": 3}
    run_classification_no_trainer.main(flags(blob_dir, output_dir, ema_decay=0.9, **shared))
    log = json.loads((output_dir / "training_log.json").read_text())
    assert [entry["learning_rate"] for entry in log["log_history"]] == [1e-3] * 3
    assert (output_dir / "checkpoint-3").is_dir() and not (output_dir / "checkpoint-3" / "ema.safetensors").exists()


@SCRIPTS
@pytest.mark.parametrize("steps", [{"max_steps": 6}, {"max_steps": None, "num_train_epochs": 1}])
def test_a_batch_larger_than_the_data_is_refused(blob_dir, tmp_path, script, steps):
    large = {"per_device_train_batch_size": 133, "dataloader_drop_last": True, **steps}
    message = "expected 133 images or more to train on with --dataloader_drop_last, got 132"
    with pytest.raises(ValueError, match=message):
        script.main(flags(blob_dir, tmp_path / "run", **large))
    assert not list((tmp_path / "run").glob("*"))


def test_workers_draw_what_the_main_process_draws(blob_dir, tmp_path):
    """Over the border of an epoch, where workers that live on have to learn of it."""
    shared = {"max_steps": 12, "do_eval": None, "final_evaluation": False, "per_device_train_batch_size": 22}
    shared["augmentation"] = json.dumps({"crop": "pad", "mixup_alpha": 0.4, "cutmix_alpha": 1.0})
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    run_classification.main(flags(blob_dir, tmp_path / "none", **shared))
    run_classification.main(flags(blob_dir, tmp_path / "one", **shared, **workers))
    assert losses(tmp_path / "one") == losses(tmp_path / "none")


def test_folders_of_images(tmp_path):
    for split, count in (("train", 18), ("val", 6)):
        for number in range(count):
            path = tmp_path / split / NAMES[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            blob(number).save(path)
    folders = {"train_dir": tmp_path / "train", "validation_dir": tmp_path / "val", "data_dir": None, "max_steps": 2}
    figures = run_classification.main(flags(tmp_path, tmp_path / "run", **folders))
    assert figures.keys() >= {"eval_accuracy", "eval_loss"}
    assert sorted(FocusViTConfig.from_pretrained(tmp_path / "run").label2id) == sorted(NAMES)


def test_the_final_evaluation_keeps_to_the_images_asked_for(blob_dir, tmp_path):
    output_dir = tmp_path / "run"
    figures = run_classification.main(flags(blob_dir, output_dir, max_steps=1, max_eval_samples=7))
    assert figures["test_accuracy"] * 7 == pytest.approx(round(figures["test_accuracy"] * 7))
    assert json.loads((output_dir / "training_log.json").read_text())["images"]["test"] == 7
    told = next(item for item in fields(TrainingArguments) if item.name == "final_evaluation").metadata["help"]
    assert "--max_eval_samples" in told and "whole" not in told


def test_the_card_of_the_base_is_looked_at_before_training(blob_dir, tmp_path, caplog):
    base = tmp_path / "base"
    short = {"max_steps": 1, "do_eval": None, "final_evaluation": False, "log_level": "warning"}
    run_classification.main(flags(blob_dir, base, **short))
    (base / "README.md").write_text("---\nlicense: [MIT]\nbase_model: [me/first, me/second]\n---\n")
    fine_tuning = {**short, "preset": None, "config_overrides": None, "model_name_or_path": base}
    for script in BOTH:
        caplog.clear()
        script.main(flags(blob_dir, tmp_path / script.__name__, **fine_tuning))
        card = ModelCard.load(tmp_path / script.__name__ / "README.md")
        assert card.data.license == "mit" and card.data.base_model is None
        assert "| began from | base |" in card.text
        assert "got ['me/first', 'me/second']" in caplog.text
        with pytest.raises(ValueError, match="expected a license_name in the card beside license: other, got none"):
            script.main(flags(blob_dir, tmp_path / "refused", **fine_tuning, license="other"))
        assert not (tmp_path / "refused").exists()


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
