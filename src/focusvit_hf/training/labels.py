"""Labels of a data set as class numbers: the same in all splits, those of the user, and those of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import ClassLabel, Dataset, IterableDataset
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Plain numbers up to here are taken for classes: more would make a head larger than the rest of most models.
LARGEST_CLASS_NUMBER = 100_000


def encoded(splits: Mapping[str, Any], column: str) -> dict[str, Any]:
    """
    The splits with their labels as `datasets.ClassLabel`, alike in all of them.

    Whole numbers keep their values and are named by them; text becomes classes in the order of the alphabet; the
    classes of `ClassLabel` columns keep the order of the first split.

    Raises:
        ValueError: If labels are missing, negative, out of range or of another kind, naming split and row, or if the
            splits do not have the same classes.
    """
    for name, split in splits.items():
        _check(split, name, column)
    classes = _classes(splits, column)
    return {name: renumbered(split, column, classes) for name, split in splits.items()}


def renumbered(split: Any, column: str, names: Sequence[str]) -> Any:
    """
    A split whose labels are numbers of the classes `names`: by their own names where they have some, and whole numbers
    as they are.
    """
    feature = split.features[column]
    if isinstance(feature, ClassLabel) and feature.names == list(names):
        return split
    numbers = {name: number for number, name in enumerate(names)}
    own = feature.names if isinstance(feature, ClassLabel) else None
    new = ClassLabel(names=list(names))
    if isinstance(split, IterableDataset):
        features = split.features.copy()
        features[column] = new
        return split.map(_renumbered_row, fn_kwargs={"column": column, "own": own, "numbers": numbers}).cast(features)
    labels = _values(split, column)
    values = labels.to_pylist()
    if own is not None:
        values = [numbers[own[value]] for value in values]
    elif not pyarrow.types.is_integer(labels.type):
        values = [numbers[str(value)] for value in values]
    return split.remove_columns(column).add_column(column, np.asarray(values, np.int64), feature=new)


def fitted_to_checkpoint(
    splits: Mapping[str, Any], column: str, checkpoint: Sequence[str] | None, training: bool
) -> dict[str, Any]:
    """
    The splits with the class numbers of the checkpoint that a run begins with, where both name the same classes.

    Args:
        checkpoint (sequence of `str`, *optional*): The checkpoint's classes in their order; None where it names none.
        training (`bool`): Whether the model is trained: then other classes take the place of the checkpoint's.

    Raises:
        ValueError: If a model that is only evaluated has other classes than the images.
    """
    own = next(iter(splits.values())).features[column].names
    if checkpoint is None or own == list(checkpoint):
        return dict(splits)
    if set(own) <= set(checkpoint) and (not training or len(own) == len(checkpoint)):
        return {name: renumbered(split, column, checkpoint) for name, split in splits.items()}
    if training:
        logger.warning(
            f"The checkpoint's classes {_shortened(checkpoint)} give way to those of the images, {_shortened(own)}."
        )
        return dict(splits)
    if own == [str(number) for number in range(len(own))] and len(own) <= len(checkpoint):
        # Plain numbers are taken for the checkpoint's own.
        return {name: _renamed(split, column, checkpoint) for name, split in splits.items()}
    raise ValueError(
        f"expected images of the checkpoint's classes to evaluate it on, {_shortened(checkpoint)}, got "
        f"{_shortened(own)}; --do_train replaces its classes"
    )


def require_trained_classes(splits: Mapping[str, Any], column: str) -> None:
    """
    Compares the labels that occur in the splits, before training; a stream's are not known.

    Raises:
        ValueError: If a class occurs in another split, but never among the images that are trained on.
    """
    known = {name: split for name, split in splits.items() if isinstance(split, Dataset)}
    if "train" not in known:
        return
    names = known["train"].features[column].names
    occurring = {name: set(np.unique(_values(split, column))) for name, split in known.items()}
    for name, numbers in occurring.items():
        unseen = [names[number] for number in sorted(numbers - occurring["train"])]
        if unseen:
            raise ValueError(
                f"expected the classes of the split {name!r} among those that occur in 'train', got also "
                f"{_shortened(unseen)}; give images to train on for them, or take them out"
            )
    absent = [names[number] for number in sorted(set(range(len(names))) - occurring["train"])]
    if absent:
        logger.warning(f"Of {len(names)} classes {len(absent)} have no image to train on: {_shortened(absent)}.")


def _shortened(names: Sequence[str]) -> str:
    """Names as Python writes them, so that no control character reaches a terminal; the first of many."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{list(names[:8])}{more}"


def _values(split: Dataset, column: str) -> Any:
    """The labels as an array of pyarrow; missing ones are null."""
    values = split.select_columns([column]).with_format("arrow")[:][column]
    return values.combine_chunks() if isinstance(values, pyarrow.ChunkedArray) else values


def _check(split: Any, name: str, column: str) -> None:
    feature = split.features[column]
    if isinstance(split, IterableDataset):
        if not isinstance(feature, ClassLabel):
            raise ValueError(f"expected ClassLabel labels with --streaming, got {feature}")
        return
    values = _values(split, column)
    missing = pyarrow.compute.is_null(values, nan_is_null=True).to_numpy(zero_copy_only=False)
    if missing.any():
        raise ValueError(
            f"expected a label in every row of the split {name!r}, got {values[int(missing.argmax())].as_py()} in row "
            f"{missing.argmax()} ({missing.sum()} such rows); a folder of images needs a folder for each class"
        )
    kind = values.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_boolean(kind):
        return
    if not pyarrow.types.is_integer(kind):
        raise ValueError(f"expected whole numbers or text as labels in the split {name!r}, got {kind}")
    limit = feature.num_classes if isinstance(feature, ClassLabel) else LARGEST_CLASS_NUMBER + 1
    numbers = values.to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= limit))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"expected labels in 0..{limit - 1} in the split {name!r}, got {numbers[row]} in row {row}"
            f" ({len(wrong)} such rows)"
        )


def _classes(splits: Mapping[str, Any], column: str) -> list[str]:
    """The names of the classes of all splits, in their order."""
    named = {name: split.features[column].names for name, split in splits.items() if _is_named(split, column)}
    others = {name: _values(split, column) for name, split in splits.items() if name not in named}
    if named:
        first = next(iter(named.values()))
        strange = {name: names for name, names in named.items() if set(names) != set(first)}
        for name, values in others.items():
            if pyarrow.types.is_integer(values.type):
                largest = pyarrow.compute.max(values).as_py()
                strange |= {name: [str(largest)]} if largest >= len(first) else {}
            elif not {str(value) for value in values.unique().to_pylist()} <= set(first):
                strange[name] = sorted(map(str, values.unique().to_pylist()))
        if strange:
            got = {name: _shortened(names) for name, names in strange.items()}
            raise ValueError(f"expected the same classes in all splits, {_shortened(first)}, got {got}")
        return list(first)
    whole = [pyarrow.types.is_integer(values.type) for values in others.values()]
    if any(whole) and not all(whole):
        kinds = {name: str(values.type) for name, values in others.items()}
        raise ValueError(f"expected labels of one kind in all splits, got {kinds}")
    if all(whole):
        largest = max(pyarrow.compute.max(values).as_py() for values in others.values())
        return [str(number) for number in range(largest + 1)]
    return sorted({str(value) for values in others.values() for value in values.unique().to_pylist()})


def _is_named(split: Any, column: str) -> bool:
    return isinstance(split.features[column], ClassLabel)


def _renamed(split: Any, column: str, names: Sequence[str]) -> Any:
    """A split whose class numbers stay, with other names."""
    features = split.features.copy()
    features[column] = ClassLabel(names=list(names))
    return split.cast(features)


def _renumbered_row(
    row: Mapping[str, Any], column: str, own: Sequence[str], numbers: Mapping[str, int]
) -> dict[str, Any]:
    return {**row, column: numbers[own[row[column]]]}
