"""Pictures of the two training scripts: loaded, checked before training begins, and given out row by row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Image, IterableDataset
from PIL import Image as PILImage

from ..images import from_pil
from .arguments import DataTrainingArguments, ModelArguments, TrainingArguments


PICTURE_BYTES = "picture_bytes"
PICTURE_SHAPE = "picture_shape"


def load_pictures(data_args: DataTrainingArguments, model_args: ModelArguments, seed: int) -> dict[str, Any]:
    """
    Loads and checks the data.

    Returns:
        `dict`: `"train"` and, as far as there are any, `"validation"` and `"test"`, each a `datasets.Dataset` or, when
        streaming, a `datasets.IterableDataset`, with the classes as `datasets.ClassLabel`.

    Raises:
        ValueError: If there are no pictures, a column is missing, or a label is outside the classes.
    """
    sources = [data_args.dataset_name, data_args.data_dir, data_args.train_dir or data_args.validation_dir]
    if sum(source is not None for source in sources) != 1:
        raise ValueError("expected one of --dataset_name, --data_dir, --train_dir with --validation_dir")
    try:
        splits = load_splits(data_args, model_args)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        source = next(source for source in sources if source is not None)
        raise ValueError(f"expected pictures and labels that `datasets` can load in {source}, got: {error}") from error
    splits = {("validation" if name in ("val", "valid", "dev") else name): split for name, split in splits.items()}
    pictures = {name: checked(split, name, data_args) for name, split in splits.items()}
    names = {tuple(class_names(split, data_args)) for split in pictures.values()}
    if len(names) > 1:
        raise ValueError(f"expected the same classes in all splits, got {sorted(names)}")
    share = data_args.train_val_split
    if "validation" not in pictures and share and "train" in pictures:
        if data_args.streaming:
            raise ValueError("expected a validation split or --train_val_split 0 with --streaming")
        parts = pictures["train"].train_test_split(share, seed=seed)
        pictures["train"], pictures["validation"] = parts["train"], parts["test"]
    return {name: limited(split, name, data_args, seed) for name, split in pictures.items()}


def load_splits(data_args: DataTrainingArguments, model_args: ModelArguments) -> Mapping[str, Any]:
    """The splits of the data set that was asked for, as `datasets` loads them; ValueError where there are no files."""
    options: dict[str, Any] = {"cache_dir": model_args.cache_dir, "streaming": data_args.streaming}
    if data_args.data_dir is not None:
        require_files(data_args.data_dir, "*.parquet")
        return datasets.load_dataset("parquet", data_dir=data_args.data_dir, **options)
    if data_args.dataset_name is not None:
        return datasets.load_dataset(
            data_args.dataset_name, data_args.dataset_config_name, token=model_args.token, **options
        )
    files = {}
    for name, folder in (("train", data_args.train_dir), ("validation", data_args.validation_dir)):
        if folder is not None:
            require_files(folder, "*")
            files[name] = str(Path(folder) / "**")
    return datasets.load_dataset("imagefolder", data_files=files, **options)


def require_files(folder: str, pattern: str) -> None:
    """ValueError unless there is a file like `pattern` below `folder`."""
    if not Path(folder).is_dir():
        raise ValueError(f"expected a folder, got {folder}")
    if not any(path.is_file() for path in Path(folder).rglob(pattern)):
        raise ValueError(f"expected files {pattern} in {folder}, got none")


def require_a_batch(rows: Any, batch_size: int, args: TrainingArguments) -> None:
    """ValueError where an epoch has no batch of `batch_size` pictures over all processes; a stream's are not known."""
    least = batch_size if args.dataloader_drop_last else 1
    if not isinstance(rows, IterableDataset) and len(rows) < least:
        flag = " with --dataloader_drop_last" if args.dataloader_drop_last else ""
        raise ValueError(f"expected {least} pictures or more to train on{flag}, got {len(rows)}")


def class_names(split: Any, data_args: DataTrainingArguments) -> list[str]:
    """Names of the classes of a split that went through `checked`."""
    return split.features[data_args.label_column_name].names


def checked(split: Any, name: str, data_args: DataTrainingArguments) -> Any:
    """The picture and label columns of a split, the labels as `ClassLabel`; ValueError where they are not fit."""
    image, label = data_args.image_column_name, data_args.label_column_name
    features = split.features
    if features is None:
        raise ValueError(f"expected a split {name!r} with known columns, got a stream without")
    for column in (image, label):
        if column not in features:
            raise ValueError(f"expected a column {column!r} in the split {name!r}, got {sorted(features)}")
    split = split.select_columns([image, label])
    if not isinstance(features[image], Image):
        split = split.cast_column(image, Image())
    if isinstance(split, IterableDataset):
        if not isinstance(features[label], ClassLabel):
            raise ValueError(f"expected ClassLabel labels with --streaming, got {features[label]}")
        return split
    if len(split) == 0:
        raise ValueError(f"expected pictures in the split {name!r}, got none")
    if not isinstance(features[label], ClassLabel):
        split = split.class_encode_column(label)
    labels = split.select_columns([label]).with_format("numpy")[:][label]
    classes = split.features[label].num_classes
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"expected labels in 0..{classes - 1} in the split {name!r}, got {labels[row]} in row {row}"
            f" ({len(wrong)} such rows)"
        )
    return split


def limited(split: Any, name: str, data_args: DataTrainingArguments, seed: int) -> Any:
    """As many pictures of a split as --max_train_samples or --max_eval_samples allow, drawn at random by the seed."""
    limit = data_args.max_train_samples if name == "train" else data_args.max_eval_samples
    if limit is None:
        return split
    if isinstance(split, IterableDataset):
        return split.take(limit)
    # Drawn, not the first ones: many data sets are sorted by class.
    return split.shuffle(seed=seed).select(range(min(limit, len(split))))


def decode(split: datasets.Dataset, data_args: DataTrainingArguments) -> datasets.Dataset:
    """The pictures of a split as raw RGB bytes with their shapes, in the cache of `datasets`."""
    image, label = data_args.image_column_name, data_args.label_column_name
    features = datasets.Features(
        {
            PICTURE_BYTES: datasets.Value("binary"),
            PICTURE_SHAPE: datasets.Sequence(datasets.Value("int64"), length=2),
            label: split.features[label],
        }
    )
    return split.map(
        decoded_row,
        fn_kwargs={"image": image, "label": label},
        features=features,
        remove_columns=[image],
        desc="Decoding pictures",
    )


def decoded_row(row: Mapping[str, Any], image: str, label: str) -> dict[str, Any]:
    """One row with the picture as bytes of (height, width, 3) uint8."""
    picture = decoded(row[image])
    return {PICTURE_BYTES: picture.tobytes(), PICTURE_SHAPE: [picture.height, picture.width], label: row[label]}


def decoded(image: PILImage.Image) -> PILImage.Image:
    """An image as the training scripts see it: 8-bit RGB, transparency laid over white, 16-bit levels scaled."""
    return from_pil(image, do_convert_rgb=True)


class PictureDataset(torch.utils.data.Dataset):
    """
    The rows of a split as the collator takes them, each with its number as `"index"`.

    Args:
        split (`datasets.Dataset`): With a picture column, or the columns [`decode`] makes.
        image_column (`str`): Name of the picture's key in the rows.
    """

    def __init__(self, split: datasets.Dataset, image_column: str):
        self.split = split
        self.image_column = image_column

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        try:
            columns = self.split[indices]
        except (OSError, SyntaxError, PILImage.DecompressionBombError) as error:
            raise ValueError(f"expected pictures that can be decoded in rows {indices}, got: {error}") from error
        if PICTURE_BYTES in columns:
            columns[self.image_column] = [
                np.frombuffer(data, np.uint8).reshape(*shape, 3)
                for data, shape in zip(columns.pop(PICTURE_BYTES), columns.pop(PICTURE_SHAPE), strict=True)
            ]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [{**row, "index": index} for row, index in zip(rows, indices, strict=True)]


def as_rows(split: Any, data_args: DataTrainingArguments, shuffle_seed: int | None = None) -> Any:
    """A split as the trainer takes it: [`PictureDataset`], or a stream (shuffled if asked) with numbered rows."""
    if isinstance(split, IterableDataset):
        if shuffle_seed is not None:
            split = split.shuffle(seed=shuffle_seed, buffer_size=data_args.shuffle_buffer_size)
        return split.map(numbered, with_indices=True)
    if data_args.decode_once:
        split = decode(split, data_args)
    return PictureDataset(split, data_args.image_column_name)


def numbered(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A row of a stream with its number."""
    return {**row, "index": index}
