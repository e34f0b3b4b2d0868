"""Images with masks: loaded from parquet files, the Hub or folders, and checked before training begins."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Image
from PIL import Image as PILImage

from ..segmentation_maps import IGNORED, decode_mask, reduced_labels
from .arguments import DataTrainingArguments, ModelArguments
from .data import checked, divided, load_splits, named_splits, source_of
from .segmentation_collator import require_classes


IMAGE_FOLDER, MASK_FOLDER = "images", "masks"
LABELS_FILE = "labels.json"


@dataclass
class SegmentationDataArguments(DataTrainingArguments):
    """Which images and masks to train and measure on."""

    train_dir: str | None = field(
        default=None, metadata={"help": "A folder with the folders images and masks, whose files have the same names."}
    )
    label_column_name: str = field(default="mask", metadata={"help": "The column with the masks."})
    labels_file: str | None = field(
        default=None,
        metadata={"help": "JSON with the names of the classes; by default labels.json beside the data, else numbers."},
    )
    do_reduce_labels: bool = field(
        default=False, metadata={"help": "Class 0 of the masks is a background that does not count; k becomes k - 1."}
    )
    class_weights: str | None = field(
        default=None,
        metadata={"help": "A weight for each class in the loss, as a JSON list, or 'balanced': 1/ln(1.02 + share)."},
    )
    overlap_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of 1 - IoU of each image's classes beside the cross entropy."}
    )

    selection_from_labels: bool = field(
        default=False,
        metadata={
            "help": "The gates of select-and-pack attention learn from the masks themselves: every labelled pixel but "
            "those of class 0 matters, and with --do_reduce_labels every labelled one."
        },
    )

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_loss_weight < math.inf:
            raise ValueError(f"expected --overlap_loss_weight >= 0, got {self.overlap_loss_weight}")


@dataclass
class Masks:
    """
    Splits of images with masks, and what was found out about them.

    Args:
        splits (`dict`): `"train"`, `"validation"`, `"test"`, as far as there are any.
        names (`list[str]`): The classes.
        shares (`list[float]`, *optional*): Share of each class among the labelled pixels to train on.
    """

    splits: dict[str, Any]
    names: list[str]
    shares: list[float] | None = None


def load_masks(
    data_args: SegmentationDataArguments, model_args: ModelArguments, seed: int, training: bool = False
) -> Masks:
    """
    Loads and checks images and masks.

    Args:
        training (`bool`, *optional*, defaults to `False`):
            Whether a model is trained on them: then every class has to occur among the masks to train on.

    Raises:
        ValueError: If there are none, if a column or a name is missing, if a mask does not fit, or if a class has no
            pixel to train on.
    """
    source = source_of(data_args)
    if data_args.decode_once or data_args.skip_broken_images:
        raise ValueError("expected neither --decode_once nor --skip_broken_images with masks, got one of them")
    if data_args.train_dir is not None or data_args.validation_dir is not None:
        folders = {"train": data_args.train_dir, "validation": data_args.validation_dir}
        loaded: Mapping[str, Any] = {name: from_folder(folder) for name, folder in folders.items() if folder}
    else:
        try:
            loaded = load_splits(data_args, model_args)
        except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
            raise ValueError(
                f"expected images and masks that `datasets` can load in {source}, got: {error}"
            ) from error
    mask = data_args.label_column_name
    splits = {
        name: checked(split, name, data_args).cast_column(mask, Image(decode=False))
        for name, split in named_splits(loaded).items()
    }
    names = class_names(data_args)
    shares = None
    if training and "train" in splits and not data_args.streaming:
        counts = pixels_of_classes(splits["train"], mask, data_args.do_reduce_labels, names)
        names = names or [str(number) for number in range(len(counts))]
        empty = [label for label, count in zip(names, counts, strict=True) if not count]
        if empty:
            raise ValueError(f"expected pixels of every class in the masks to train on, got none of {empty[:10]}")
        shares = (counts / counts.sum()).tolist()
    if names is None:
        raise ValueError(f"expected --labels_file or a {LABELS_FILE} with the names of the classes, got none")
    return Masks(divided(splits, data_args, seed), names, shares)


def from_folder(folder: str) -> datasets.Dataset:
    """The images and masks of a folder, by their names; ValueError where one of a pair is missing."""
    files = {}
    known = {*PILImage.registered_extensions()}
    for part in (IMAGE_FOLDER, MASK_FOLDER):
        place = Path(folder) / part
        if not place.is_dir():
            raise ValueError(f"expected a folder {place}, got none")
        files[part] = {
            path.relative_to(place).with_suffix("").as_posix(): str(path)
            for path in sorted(place.rglob("*"))
            if path.suffix.lower() in known and path.is_file()
        }
    images, masks = files[IMAGE_FOLDER], files[MASK_FOLDER]
    if not images:
        raise ValueError(f"expected images in {Path(folder) / IMAGE_FOLDER}, got none")
    alone = sorted(images.keys() ^ masks.keys())
    if alone:
        raise ValueError(
            f"expected a mask for each image and an image for each mask in {folder}, got {len(alone)} alone, such as "
            f"{alone[0]!r}"
        )
    columns = {"image": [images[key] for key in images], "mask": [masks[key] for key in images]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({"image": Image(), "mask": Image()}))


def class_names(data_args: SegmentationDataArguments) -> list[str] | None:
    """The names in `--labels_file` or in the `labels.json` beside the data; None where there is no such file."""
    place = data_args.data_dir or data_args.train_dir or data_args.validation_dir
    path = Path(data_args.labels_file) if data_args.labels_file else Path(place or "") / LABELS_FILE
    if data_args.labels_file is None and (place is None or not path.is_file()):
        return None
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"expected JSON with the names of the classes in {path}, got: {error}") from error
    names = content.get("labels", content) if isinstance(content, dict) else content
    if isinstance(names, dict) and sorted(names) == sorted(map(str, range(len(names)))):
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"expected a list of names, alone or under 'labels', in {path}, got {names!r:.100}")
    if len(set(names)) < len(names):
        raise ValueError(f"expected names that differ in {path}, got {names}")
    return names


def pixels_of_classes(
    split: datasets.Dataset, mask_column: str, do_reduce_labels: bool, names: list[str] | None
) -> np.ndarray:
    """How many pixels of the masks of a split each class has; ValueError names the row of a mask that does not fit."""
    counts = np.zeros(len(names) if names else 0, dtype=np.int64)
    for index, source in enumerate(split.select_columns([mask_column])):
        try:
            if source[mask_column] is None:
                raise ValueError("got none")
            mask = decode_mask(source[mask_column])
            labels = reduced_labels(mask) if do_reduce_labels else mask
            if names:
                require_classes(labels, len(names))
        except ValueError as error:
            raise ValueError(
                f"expected a mask of the classes in row {index} of the images to train on: {error}"
            ) from error
        found = np.bincount(labels[labels != IGNORED].ravel(), minlength=len(counts))
        counts = np.pad(counts, (0, len(found) - len(counts))) + found
    return counts


def class_weights(data_args: SegmentationDataArguments, masks: Masks) -> torch.Tensor | None:
    """
    The weight of each class in the loss, `(num_labels,)`: those given, or 1 / ln(1.02 + share) as in ENet (Paszke et
    al. 2016, arXiv 1606.02147, section 5), with a mean of 1; None for none.
    """
    given = data_args.class_weights
    if given is None:
        return None
    if given == "balanced":
        if masks.shares is None:
            raise ValueError("expected --class_weights as a list with --streaming, got 'balanced'")
        weights = 1 / (1.02 + torch.tensor(masks.shares)).log()
        return weights / weights.mean()
    try:
        values = json.loads(given)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected --class_weights 'balanced' or a JSON list, got {given!r}") from error
    numbers = isinstance(values, list) and all(isinstance(value, (int, float)) and value >= 0 for value in values)
    if not numbers or len(values) != len(masks.names) or not any(values):
        raise ValueError(f"expected a weight >= 0 for each of the {len(masks.names)} classes, got {given}")
    return torch.tensor(values, dtype=torch.float32)
