"""Images of the micro scale: decoded and shrunk once, kept in memory as 8-bit levels."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save

from focusvit_hf.utils.files import write_whole


DATA = Path("../shared/data/imagenette224")
CACHE = Path(tempfile.gettempdir()) / "focusvit-experiments"
# Every fifth training image is held out where something is to be chosen: the test split is not to be chosen on.
_HELD_OUT = 5
SPLITS = ("test", "validation")


@dataclass(frozen=True)
class Examples:
    """
    Images and their classes.

    Args:
        images (`torch.ByteTensor` of shape `(count, 3, size, size)`): 8-bit levels.
        labels (`torch.LongTensor` of shape `(count,)`): Classes.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: torch.Tensor | slice) -> Examples:
        return Examples(self.images[index], self.labels[index])


def load_examples(folder: Path, split: str, size: int, cache: Path = CACHE) -> Examples:
    """
    One split of a data set in parquet files, shrunk to `size` x `size` pixels with the image processor's filter.

    Args:
        folder (`Path`): The data set; columns `image` and `label`.
        split (`str`): `"train"` or `"test"`, as in the files.
        size (`int`): Side in pixels.
        cache (`Path`, *optional*): Where the shrunk images are kept for the next time.

    Returns:
        [`Examples`].
    """
    path = cache / f"{folder.name}-{split}-{size}.safetensors"
    if not path.is_file():
        rows = datasets.load_dataset("parquet", data_dir=str(folder), split=split)
        write_whole(path, save({"images": _shrunk_rows(rows, size), "labels": torch.tensor(rows["label"])}))
    tensors = load_file(path)
    return Examples(tensors["images"], tensors["labels"])


def load_images(folder: Path, split: str, size: int, cache: Path = CACHE) -> torch.Tensor:
    """
    The images alone of one split of a data set in parquet files, as [`load_examples`] shrinks them.

    Args:
        folder (`Path`): The data set; column `image`, whatever the others are.
        split (`str`): As `datasets` names it, such as `"train"` or `"validation"`.

    Returns:
        `torch.ByteTensor` of shape `(count, 3, size, size)`, 8-bit levels.

    Raises:
        ValueError: If there is no such folder or split.
    """
    path = cache / f"{folder.name}-{split}-{size}-images.safetensors"
    if not path.is_file():
        if not folder.is_dir():
            raise ValueError(f"expected a folder of parquet files, got {folder}")
        rows = datasets.load_dataset("parquet", data_dir=str(folder), split=split).select_columns("image")
        write_whole(path, save({"images": _shrunk_rows(rows, size)}))
    return load_file(path)["images"]


def _shrunk_rows(rows: datasets.Dataset, size: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([shrunk(image, size) for image in rows["image"]])).contiguous()


def shrunk(image: Image.Image, size: int) -> np.ndarray:
    """An image as `(3, size, size)` 8-bit levels, resized as the image processor does."""
    small = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)


def training_and_evaluation(
    folder: Path, size: int, split: str = "test", cache: Path = CACHE
) -> tuple[Examples, Examples]:
    """
    What a run trains on and what it is measured on.

    Args:
        split (`str`, *optional*, defaults to `"test"`):
            `"test"`: all training images, and the official test split; `"validation"`: four fifths of the training
            images, and the fifth that is held out, for everything that is chosen.

    Returns:
        Two [`Examples`].

    Raises:
        ValueError: on another `split`.
    """
    if split not in SPLITS:
        raise ValueError(f"Expected split to be one of {SPLITS}, got {split!r}.")
    training = load_examples(folder, "train", size, cache)
    if split == "test":
        return training, load_examples(folder, "test", size, cache)
    held_out = torch.arange(len(training)) % _HELD_OUT == 0
    return training[~held_out], training[held_out]


def evaluation_examples(folder: Path, size: int, split: str = "test", cache: Path = CACHE) -> Examples:
    """The second of [`training_and_evaluation`], for which the test split needs no training images."""
    if split == "test":
        return load_examples(folder, "test", size, cache)
    return training_and_evaluation(folder, size, split, cache)[1]
