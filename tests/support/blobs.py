"""Small images made up on the spot, and command lines of the training scripts that train on them."""

import json
import os
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Features, Image
from PIL import Image as PILImage

import focusvit_hf


ROOT = Path(__file__).resolve().parents[2]
# A shipped checkpoint that is quick to run.
NANO_CHECKPOINT = ROOT / "model_cards" / "focusvit-nano-cifar10"

NAMES = ["red", "green", "blue"]
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "stem_channels": 8,
}
# The least that the experiments' models can be.
SMALLEST = {
    "image_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "stem_channels": 8,
}


def blob(number: int) -> PILImage.Image:
    """A dark noisy image with a square of one colour; the class is the number modulo three."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
    top, left = rng.integers(4, 20, 2)
    pixels[top : top + 8, left : left + 8, number % 3] += 150
    return PILImage.fromarray(pixels)


def blobs(count: int, first: int = 0) -> datasets.Dataset:
    """So many blobs as a data set, numbered from `first`."""
    numbers = range(first, first + count)
    columns = {"image": [blob(n) for n in numbers], "label": [n % 3 for n in numbers]}
    return datasets.Dataset.from_dict(columns, features=Features(image=Image(), label=ClassLabel(names=NAMES)))


def blob_tensors(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """So many blobs, (count, 3, 32, 32) uint8, and their classes, (count,)."""
    rows = blobs(count)
    images = np.stack([np.asarray(image).transpose(2, 0, 1) for image in rows["image"]])
    return torch.from_numpy(images).contiguous(), torch.tensor(rows["label"])


def write_parquet(folder: Path, training: int) -> Path:
    """So many blobs to train on and ten to test as parquet files; gives the folder back."""
    for split, first, count in (("train", 0, training), ("test", 100, 10)):
        blobs(count, first).to_parquet(folder / f"{split}-00000.parquet")
    return folder


def flags(blob_dir: Path | None, output_dir: Path, **changes) -> list[str]:
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


def write_blobs(folder: Path) -> Path:
    """Writes 132 blobs to train on and 24 to test on as parquet; returns the folder."""
    blobs(132).to_parquet(folder / "train-00000-of-00001.parquet")
    blobs(24, first=1000).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def losses(output_dir: Path) -> list[float]:
    """The training losses that a run logged."""
    log = json.loads((output_dir / "training_log.json").read_text())
    return [entry["loss"] for entry in log["log_history"] if "loss" in entry]
