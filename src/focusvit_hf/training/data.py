"""Images of the two training scripts: loaded, checked before training begins, and given out row by row."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from datasets import Image, IterableDataset
from PIL import Image as PILImage
from transformers.utils import logging

from ..image_sizes import Needed
from ..images import decode_image
from .arguments import DataTrainingArguments, ModelArguments, TrainingArguments
from .folders import image_patterns, require_files
from .labels import encoded, require_trained_classes


logger = logging.get_logger(__name__)

IMAGE_BYTES = "decoded_image_bytes"
IMAGE_SHAPE = "decoded_image_shape"


def load_images(
    data_args: DataTrainingArguments, model_args: ModelArguments, seed: int, training: bool = False
) -> dict[str, Any]:
    """
    Loads and checks the data.

    Args:
        training (`bool`, *optional*, defaults to `False`): Whether a model is trained on it, so that every class that
            occurs has to occur among the images to train on.

    Returns:
        `dict`: `"train"` and, as far as there are any, `"validation"` and `"test"`, each a `datasets.Dataset` or, when
        streaming, a `datasets.IterableDataset`, with the classes as `datasets.ClassLabel`.

    Raises:
        ValueError: If there are no images, a column is missing, or a label is outside the classes.
    """
    if data_args.skip_broken_images and data_args.streaming:
        raise ValueError("expected no --skip_broken_images with --streaming, got both")
    source = source_of(data_args)
    try:
        splits = load_splits(data_args, model_args)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"expected images and labels that `datasets` can load in {source}, got: {error}") from error
    checked_splits = {name: checked(split, name, data_args) for name, split in named_splits(splits).items()}
    labelled = encoded(checked_splits, data_args.label_column_name)
    if training:
        require_trained_classes(labelled, data_args.label_column_name)
    return divided(labelled, data_args, seed)


def source_of(data_args: DataTrainingArguments) -> str:
    """The data set or folder that the data are in; ValueError unless exactly one is given."""
    sources = [data_args.dataset_name, data_args.data_dir, data_args.train_dir or data_args.validation_dir]
    given = [source for source in sources if source is not None]
    if len(given) != 1:
        raise ValueError("expected one of --dataset_name, --data_dir, --train_dir with --validation_dir")
    return given[0]


def named_splits(splits: Mapping[str, Any]) -> dict[str, Any]:
    """The splits, that for validation under this name whatever the data set calls it."""
    return {("validation" if name in ("val", "valid", "dev") else name): split for name, split in splits.items()}


def divided(splits: Mapping[str, Any], data_args: DataTrainingArguments, seed: int) -> dict[str, Any]:
    """
    The splits, each limited to the number of images asked for, after `--train_val_split` of those to train on became a
    validation split where there is none.

    Raises:
        ValueError: where a stream would have to be split.
    """
    splits, share = dict(splits), data_args.train_val_split
    if "validation" not in splits and share and "train" in splits:
        if data_args.streaming:
            raise ValueError("expected a validation split or --train_val_split 0 with --streaming")
        parts = splits["train"].train_test_split(share, seed=seed)
        splits["train"], splits["validation"] = parts["train"], parts["test"]
    return {name: limited(split, name, data_args, seed) for name, split in splits.items()}


def load_splits(data_args: DataTrainingArguments, model_args: ModelArguments) -> Mapping[str, Any]:
    """The splits of the data set that was asked for, as `datasets` loads them; ValueError where there are no files."""
    options: dict[str, Any] = {"cache_dir": model_args.cache_dir, "streaming": data_args.streaming}
    if data_args.data_dir is not None:
        require_files(data_args.data_dir, "*.parquet")
        return datasets.load_dataset("parquet", data_dir=glob.escape(data_args.data_dir), **options)
    if data_args.dataset_name is not None:
        return datasets.load_dataset(
            data_args.dataset_name, data_args.dataset_config_name, token=model_args.token, **options
        )
    files, named = {}, True
    for name, folder in (("train", data_args.train_dir), ("validation", data_args.validation_dir)):
        if folder is not None:
            files[name], by_folder = image_patterns(folder)
            named = named and by_folder
    if named:
        classes = sorted({Path(pattern).parent.name for patterns in files.values() for pattern in patterns})
        if len(classes) < 2:
            raise ValueError(f"expected a folder for each of two classes or more, got one of {classes[0]!r} alone")
        options["drop_labels"] = False
    return datasets.load_dataset("imagefolder", data_files=files, **options)


def require_a_batch(rows: Any, batch_size: int, args: TrainingArguments) -> None:
    """ValueError where an epoch has no batch of `batch_size` images over all processes; a stream's are not known."""
    least = batch_size if args.dataloader_drop_last else 1
    if not isinstance(rows, IterableDataset) and len(rows) < least:
        flag = " with --dataloader_drop_last" if args.dataloader_drop_last else ""
        raise ValueError(f"expected {least} images or more to train on{flag}, got {len(rows)}")


def class_names(split: Any, data_args: DataTrainingArguments) -> list[str]:
    """Names of the classes of a split that went through `checked`."""
    return split.features[data_args.label_column_name].names


def checked(split: Any, name: str, data_args: DataTrainingArguments) -> Any:
    """The image and label columns of a split; ValueError where one is missing, and where a row has no image."""
    image, label = data_args.image_column_name, data_args.label_column_name
    features = split.features
    if features is None:
        raise ValueError(f"expected a split {name!r} with known columns, got a stream without")
    for column in (image, label):
        if column not in features:
            raise ValueError(
                f"expected a column {column!r} in the split {name!r}, got {sorted(features)}; "
                "--image_column_name and --label_column_name name others"
            )
    selection = data_args.selection_column_name if name == "train" else None
    if selection is not None and selection not in features:
        raise ValueError(
            f"expected a column {selection!r} of masks or boxes in the split {name!r} for --selection_column_name, "
            f"got {sorted(features)}"
        )
    split = split.select_columns(list(dict.fromkeys((image, label, *([] if selection is None else [selection])))))
    if selection is not None and isinstance(features[selection], Image):
        # The numbers of a mask are no colours, and are decoded by nobody but the collator.
        split = split.cast_column(selection, Image(decode=False))
    if isinstance(split, IterableDataset):
        return split.cast_column(image, Image())
    if len(split) == 0:
        raise ValueError(f"expected images in the split {name!r}, got none")
    # Not decoded before a row is read, so that what cannot be decoded is known by its row and file.
    split = split.cast_column(image, Image(decode=False))
    require_images(split, name, image)
    if selection is not None:
        require_selection(split, name, selection)
    return skip_broken(split, name, image) if data_args.skip_broken_images else split


def require_images(split: datasets.Dataset, name: str, column: str) -> None:
    """ValueError where a row has no image, neither as bytes nor as a path."""
    first = 0
    for table in split.select_columns([column]).with_format("arrow").iter(1000):
        images = table[column].combine_chunks()
        # A null has null fields too.
        empty = [images.field(part).is_null().to_numpy(zero_copy_only=False) for part in ("bytes", "path")]
        missing = np.flatnonzero((empty[0] & empty[1]) | images.is_null().to_numpy(zero_copy_only=False))
        if len(missing):
            raise ValueError(
                f"expected an image in every row of the split {name!r}, got none in row {first + int(missing[0])}"
            )
        first += len(images)


def require_selection(split: datasets.Dataset, name: str, column: str) -> None:
    """ValueError where a row has no mask and no list of boxes; an empty list says that nothing matters."""
    first = 0
    for table in split.select_columns([column]).with_format("arrow").iter(1000):
        missing = np.flatnonzero(table[column].is_null().to_numpy())
        if len(missing):
            raise ValueError(
                f"expected a mask or boxes in every row of the column {column!r} in the split {name!r}, got none in "
                f"row {first + int(missing[0])}"
            )
        first += len(table)


def skip_broken(split: datasets.Dataset, name: str, column: str) -> datasets.Dataset:
    """The rows of a split whose image can be decoded; how many are left out is logged."""
    kept = split.filter(can_be_decoded, input_columns=[column], desc="Decoding images")
    if len(kept) < len(split):
        logger.warning(f"{len(split) - len(kept)} of {len(split)} images of the split {name!r} are skipped.")
    if len(kept) == 0:
        raise ValueError(f"expected images that can be decoded in the split {name!r}, got none")
    return kept


def can_be_decoded(image: Any) -> bool:
    """Whether an image is one; what is wrong with it is logged."""
    try:
        decode_image(image)
    except ValueError as error:
        logger.warning(f"An image cannot be decoded: {error}")
        return False
    return True


def limited(split: Any, name: str, data_args: DataTrainingArguments, seed: int) -> Any:
    """As many images of a split as --max_train_samples or --max_eval_samples allow, drawn at random by the seed."""
    limit = data_args.max_train_samples if name == "train" else data_args.max_eval_samples
    if limit is None:
        return split
    if isinstance(split, IterableDataset):
        return split.take(limit)
    # Drawn, not the first ones: many data sets are sorted by class.
    return split.shuffle(seed=seed).select(range(min(limit, len(split))))


def decode(split: datasets.Dataset, data_args: DataTrainingArguments) -> datasets.Dataset:
    """The images of a split as raw RGB bytes with their shapes, in the cache of `datasets`."""
    image = data_args.image_column_name
    features = datasets.Features(
        {
            IMAGE_BYTES: datasets.Value("binary"),
            IMAGE_SHAPE: datasets.Sequence(datasets.Value("int64"), length=2),
            **{name: feature for name, feature in split.features.items() if name != image},
        }
    )
    return split.map(
        decoded_row,
        with_indices=True,
        fn_kwargs={"image": image},
        features=features,
        remove_columns=[image],
        desc="Decoding images",
    )


def decoded_row(row: Mapping[str, Any], index: int, image: str) -> dict[str, Any]:
    """One row with the image as bytes of (height, width, 3) uint8."""
    found = decoded(row[image], index)
    return {IMAGE_BYTES: found.tobytes(), IMAGE_SHAPE: [found.height, found.width]}


def decoded(image: Any, index: int, needed: Needed | None = None) -> PILImage.Image:
    """An image of row `index` as every part of the package decodes it; ValueError names row and file."""
    try:
        return cast(PILImage.Image, decode_image(image, needed=needed))
    except ValueError as error:
        raise ValueError(
            f"expected an image that can be decoded in row {index}, got {error}; --skip_broken_images leaves such "
            "images out"
        ) from error


class ImageDataset(torch.utils.data.Dataset):
    """
    The rows of a split as the collator takes them, each with its number as `"index"`.

    Args:
        split (`datasets.Dataset`): With a column of images, or the columns [`decode`] makes.
        image_column (`str`): Name of the image's key in the rows.
        needed ([`~image_sizes.Needed`], *optional*): What is needed of the images; by default all.
    """

    def __init__(self, split: datasets.Dataset, image_column: str, needed: Needed | None = None):
        self.split = split
        if image_column in split.features:
            self.split = split.cast_column(image_column, Image(decode=False))
        self.image_column = image_column
        self.needed = needed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        columns = self.split[indices]
        if IMAGE_BYTES in columns:
            images: list[Any] = [
                np.frombuffer(data, np.uint8).reshape(*shape, 3)
                for data, shape in zip(columns.pop(IMAGE_BYTES), columns.pop(IMAGE_SHAPE), strict=True)
            ]
        else:
            rows_of = zip(columns[self.image_column], indices, strict=True)
            images = [decoded(image, index, self.needed) for image, index in rows_of]
        columns[self.image_column] = images
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [{**row, "index": index} for row, index in zip(rows, indices, strict=True)]


def as_rows(
    split: Any, data_args: DataTrainingArguments, shuffle_seed: int | None = None, needed: Needed | None = None
) -> Any:
    """A split as the trainer takes it: [`ImageDataset`], or a stream (shuffled if asked) with numbered rows."""
    if isinstance(split, IterableDataset):
        if shuffle_seed is not None:
            split = split.shuffle(seed=shuffle_seed, buffer_size=data_args.shuffle_buffer_size)
        return split.map(numbered, with_indices=True)
    if data_args.decode_once:
        split = decode(split, data_args)
    return ImageDataset(split, data_args.image_column_name, needed)


def numbered(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A row of a stream with its number."""
    return {**row, "index": index}
