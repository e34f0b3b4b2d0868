"""The training script and what it is made of, on a small set of pictures made up on the spot."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as PILImage
from safetensors.torch import load_file

import focusvit_hf
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification
from focusvit_hf.metrics import TopKAccuracy
from focusvit_hf.training import (
    ExponentialMovingAverage,
    FocusViTTrainer,
    SeededCollator,
    no_decay,
    soft_cross_entropy,
    write_json,
)


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import run_classification  # noqa: E402
import run_classification_no_trainer  # noqa: E402
import training_arguments  # noqa: E402
import training_data  # noqa: E402
import training_setup  # noqa: E402


NAMES = ["red", "green", "blue"]
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "stem_channels": 8,
}


def blob(number: int) -> PILImage.Image:
    """A dark noisy picture with a square of one colour; the class is the number modulo three."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
    top, left = rng.integers(4, 20, 2)
    pixels[top : top + 8, left : left + 8, number % 3] += 150
    return PILImage.fromarray(pixels)


def blobs(count: int, first: int = 0) -> datasets.Dataset:
    numbers = range(first, first + count)
    columns = {"image": [blob(n) for n in numbers], "label": [n % 3 for n in numbers]}
    return datasets.Dataset.from_dict(columns, features=Features(image=Image(), label=ClassLabel(names=NAMES)))


@pytest.fixture(scope="session")
def blob_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("blobs")
    blobs(132).to_parquet(folder / "train-00000-of-00001.parquet")
    blobs(24, first=1000).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def logging_as_before():
    levels = transformers.utils.logging.get_verbosity(), datasets.utils.logging.get_verbosity()
    yield
    transformers.utils.logging.set_verbosity(levels[0])
    datasets.utils.logging.set_verbosity(levels[1])


def flags(blob_dir: Path, output_dir: Path, **changes) -> list[str]:
    """The command line of a short run; `changes` override or, when None, remove a flag."""
    values = {
        "preset": "focusvit-nano",
        "config_overrides": json.dumps({**TINY, **changes.pop("config", {})}),
        "data_dir": blob_dir,
        "output_dir": output_dir,
        "cache_dir": output_dir.parent / "cache",
        "do_train": True,
        "do_eval": True,
        "use_cpu": True,
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "log_level": "error",
        "disable_tqdm": True,
        **changes,
    }
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]


def environment() -> dict[str, str]:
    """One thread a process, and the package found where it is not installed."""
    package = Path(focusvit_hf.__file__).resolve().parents[1]
    paths = [str(package), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def losses(output_dir: Path) -> list[float]:
    log = json.loads((output_dir / "training_log.json").read_text())
    return [entry["loss"] for entry in log["log_history"] if "loss" in entry]


def test_soft_cross_entropy_against_its_definition():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    soft = torch.softmax(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), -1)
    hard = torch.tensor([0, 3, 1, 1, 2])
    log_probabilities = logits - logits.exp().sum(-1, keepdim=True).log()
    expected = -(soft * log_probabilities).sum(-1)
    torch.testing.assert_close(soft_cross_entropy(logits, soft, reduction="none"), expected)
    smooth = 0.9 * torch.nn.functional.one_hot(hard, 4) + 0.1 / 4
    expected = -(smooth * log_probabilities).sum(-1).mean()
    torch.testing.assert_close(soft_cross_entropy(logits, hard, 0.1), expected)
    torch.testing.assert_close(soft_cross_entropy(logits, torch.nn.functional.one_hot(hard, 4).float(), 0.1), expected)


@pytest.mark.parametrize("labels", [torch.zeros(4), torch.zeros(5, 4), torch.zeros(4, 3, dtype=torch.long)])
def test_soft_cross_entropy_refuses_other_labels(labels):
    with pytest.raises(ValueError, match=r"expected integer labels of shape \(4,\)"):
        soft_cross_entropy(torch.zeros(4, 3), labels)


def test_top_k_accuracy():
    ranked = [[0, 1, 2, 3, 4], [5, 1, 2, 3, 4], [5, 4, 3, 2, 1], [1, 2, 3, 4, 5]]
    result = TopKAccuracy(keep_in_memory=True).compute(predictions=ranked, references=[0, 1, 0, 1])
    assert result == {"accuracy": 0.5, "top_5_accuracy": 0.75}
    few = TopKAccuracy(keep_in_memory=True).compute(predictions=[[0, 1], [1, 0]], references=[0, 0])
    assert few == {"accuracy": 0.5}


def test_seeded_collator_depends_on_epoch_and_pictures_alone():
    collator = SeededCollator(lambda rows: {"noise": torch.rand(len(rows))}, seed=3)

    def noise(indices: list[int]) -> torch.Tensor:
        return collator([{"index": index, "image": None} for index in indices])["noise"]

    torch.manual_seed(0)
    first = noise([1, 2])
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(noise([1, 2]), first)
    assert not torch.equal(noise([2, 1]), first)
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator must not move"
    collator.epoch.fill_(1)
    assert not torch.equal(noise([1, 2]), first)


def test_moving_average_against_a_plain_loop(tmp_path):
    model = torch.nn.Linear(3, 2)
    ema = ExponentialMovingAverage(0.9)
    ema.update(model)
    expected = model.weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        ema.update(model)
    own = model.weight.detach().clone()
    with ema.applied(model):
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, own)

    ema.save(tmp_path)
    other = ExponentialMovingAverage(0.9)
    other.load(tmp_path, model)
    assert int(other.average.n_averaged) == 30
    with other.applied(model):
        torch.testing.assert_close(model.weight.detach(), expected)
    with pytest.raises(ValueError, match="expected the weights"):
        other.load(tmp_path, torch.nn.Conv2d(1, 1, 1, bias=False))
    with pytest.raises(ValueError, match="expected a moving average"):
        other.load(tmp_path / "nowhere", model)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_moving_average_refuses_a_bad_decay(decay):
    with pytest.raises(ValueError, match="0 < ema_decay < 1"):
        ExponentialMovingAverage(decay)


@pytest.mark.parametrize("position", ["dynamic", "learned"])
def test_weight_decay_spares_vectors_tokens_and_tables(tmp_path, position):
    config = FocusViTConfig(
        image_size=32, patch_size=4, num_superpixels=16, position_embedding_type=position, **TINY, num_labels=3
    )
    model = FocusViTForImageClassification(config)
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    decayed = set(FocusViTTrainer(model=model, args=args).get_decay_parameter_names(model))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    matrices = {name for name, shape in shapes.items() if name.endswith("weight") and len(shape) > 1}
    assert decayed == matrices
    spared = {name for name, parameter in model.named_parameters() if no_decay(name, parameter)}
    assert spared == shapes.keys() - decayed
    assert {"focusvit.latents", "focusvit.embeddings.cls_token"} <= spared


def test_a_failed_write_keeps_the_old_json(tmp_path):
    path = tmp_path / "log.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Circular"):
        content: dict = {}
        content["self"] = content
        write_json(path, content)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_presets_are_valid_and_their_controls_differ_in_one_thing():
    presets = {path.stem: json.loads(path.read_text()) for path in training_setup.PRESETS.glob("*.json")}
    assert len(presets) == 12
    for name in ("nano", "tiny", "small", "base"):
        config, grid, dense = (presets[f"focusvit-{name}{control}"] for control in ("", "-grid", "-dense"))
        assert {**config, "patch_pooling": "grid"} == grid
        layers = ["full_attention"] * config["num_hidden_layers"]
        assert {**config, "patch_pooling": "none", "layer_types": layers} == dense
        for content in (config, grid, dense):
            assert not set(content) - set(FocusViTConfig().to_dict())
            FocusViTConfig(**content)
    nano = FocusViTConfig(**presets["focusvit-nano"])
    assert (nano.image_size, nano.patch_size, nano.cell_size, nano.superpixel_count) == (32, 4, 2, 16)
    assert (nano.hidden_size, nano.num_hidden_layers, nano.num_attention_heads) == (160, 6, 5)


@pytest.mark.parametrize("recipe", sorted((ROOT / "configuration" / "recipes").glob("*.json")), ids=lambda p: p.stem)
def test_recipes_are_accepted_and_flags_override_them(recipe, tmp_path):
    model_args, data_args, args = training_arguments.parse_arguments(
        [str(recipe), "--output_dir", str(tmp_path), "--learning_rate", "0.5", "--max_train_samples", "7"]
    )
    assert training_setup.find_preset(model_args.preset).is_file()
    training_setup.augmentation_config(data_args, args)
    assert args.do_train
    assert (args.learning_rate, data_args.max_train_samples) == (0.5, 7)


def test_a_misspelt_recipe_is_refused(tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"learning_rat": 1}')
    with pytest.raises(ValueError, match="learning_rat"):
        training_arguments.parse_arguments([str(recipe)])
    recipe.write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        training_arguments.parse_arguments([str(recipe)])
    _, data_args, args = training_arguments.parse_arguments(["--augmentation", '{"mixupp": 1}', "--use_cpu"])
    with pytest.raises(ValueError, match="mixupp"):
        training_setup.augmentation_config(data_args, args)
    smooth = ["--augmentation", '{"label_smoothing": 0.1}', "--label_smoothing_factor", "0.1", "--use_cpu"]
    _, data_args, args = training_arguments.parse_arguments(smooth)
    with pytest.raises(ValueError, match="either --label_smoothing_factor or"):
        training_setup.augmentation_config(data_args, args)


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
    two = flags(blob_dir, tmp_path / "two", per_device_train_batch_size=8, **shared)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        script.__file__,
    ]
    subprocess.run([*torchrun, script.__file__, *two], env=environment(), check=True, capture_output=True, timeout=300)
    script.main(flags(blob_dir, tmp_path / "one", per_device_train_batch_size=16, **shared))
    assert len(losses(tmp_path / "one")) == 20
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


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


def parquet(folder: Path, columns: dict, features: Features, split: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_bad_data_is_refused_before_training(tmp_path):
    classes = ClassLabel(names=NAMES)
    features = Features(image=Image(), label=classes)
    run = tmp_path / "run"

    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"expected files \*\.parquet in .*empty, got none"):
        run_classification.main(flags(empty, run))
    with pytest.raises(ValueError, match="expected a folder"):
        run_classification.main(flags(tmp_path / "nowhere", run))
    with pytest.raises(ValueError, match="expected files"):
        run_classification.main(flags(empty, run, data_dir=None, train_dir=empty))

    data = parquet(
        tmp_path / "columns", {"picture": [blob(0)], "label": [0]}, Features(picture=Image(), label=classes)
    )
    with pytest.raises(
        ValueError, match=r"expected a column 'image' in the split 'train', got \['label', 'picture'\]"
    ):
        run_classification.main(flags(data, run))

    data = parquet(tmp_path / "none", {"image": [], "label": []}, features)
    with pytest.raises(ValueError, match=r"expected pictures and labels .* in .*none, got"):
        run_classification.main(flags(data, run))

    data = parquet(tmp_path / "labels", {"image": [blob(0), blob(1)], "label": [0, 1]}, features)
    wider = datasets.Dataset.from_parquet(str(data / "train-00000-of-00001.parquet"))
    table = wider.data.table.set_column(1, "label", [[0, 3]])
    pyarrow_parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow_parquet.write_table(table, data / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"expected labels in 0\.\.2 in the split 'train', got 3 in row 1"):
        run_classification.main(flags(data, run))

    assert not run.exists()


def test_a_truncated_picture_is_named(blob_dir, tmp_path):
    good = PILImage.fromarray(np.zeros((64, 64, 3), np.uint8))
    path = tmp_path / "broken.jpg"
    good.save(path)
    broken = {"bytes": path.read_bytes()[:300], "path": None}
    features = Features(image=Image(), label=ClassLabel(names=NAMES))
    rows = datasets.Dataset.from_dict({"image": [broken], "label": [0]}, features=features)
    with pytest.raises(ValueError, match=r"can be decoded in rows \[0\]"):
        training_data.PictureDataset(rows, "image")[0]


def test_integer_and_text_labels_become_classes(tmp_path):
    text = Features(image=Image(), label=Value("string"))
    data = parquet(tmp_path / "text", {"image": [blob(n) for n in range(4)], "label": ["b", "a", "b", "c"]}, text)
    model_args, data_args, _ = training_arguments.parse_arguments(
        ["--data_dir", str(data), "--cache_dir", str(tmp_path)]
    )
    split = training_data.load_pictures(data_args, model_args, seed=0)["train"]
    assert training_data.class_names(split, data_args) == ["a", "b", "c"]
    assert list(split["label"]) == [1, 0, 1, 2]


def test_decoded_once_equals_decoded_each_time(blob_dir, tmp_path):
    model_args, data_args, _ = training_arguments.parse_arguments(
        ["--data_dir", str(blob_dir), "--cache_dir", str(tmp_path)]
    )
    split = training_data.load_pictures(data_args, model_args, seed=0)["train"]
    plain = training_data.as_rows(split, data_args)
    data_args.decode_once = True
    decoded = training_data.as_rows(split, data_args)
    assert len(plain) == len(decoded) == 132
    for expected, row in zip(plain.__getitems__([3, 131, 0]), decoded.__getitems__([3, 131, 0]), strict=True):
        assert np.array_equal(np.asarray(expected["image"]), row["image"])
        assert (expected["label"], expected["index"]) == (row["label"], row["index"])


def test_a_processor_that_disagrees_with_the_model_is_refused(blob_dir, tmp_path):
    other = FocusViTConfig(image_size=32, patch_size=4, num_superpixels=4, superpixel_cell_size=2)
    focusvit_hf.FocusViTImageProcessor.from_model_config(other).save_pretrained(tmp_path / "processor")
    other.save_pretrained(tmp_path / "processor")
    with pytest.raises(ValueError, match="num_superpixels"):
        run_classification.main(flags(blob_dir, tmp_path / "run", image_processor_name=str(tmp_path / "processor")))
