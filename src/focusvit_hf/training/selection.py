"""Boxes and masks of objects, as data sets have them, made into the `selection_masks` that teach a gate."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch


def boxes_mask(boxes: Iterable[Sequence[float]], height: int, width: int) -> torch.Tensor:
    """
    The mask of some boxes: 1 for each pixel whose centre lies in one of them, and 0 elsewhere.

    Args:
        boxes (iterable of four `float`): (left, top, right, bottom) in pixels from the image's upper left corner.
        height, width (`int`): The image's size in pixels.

    Returns:
        `torch.FloatTensor` of shape `(height, width)`.

    Raises:
        ValueError: on a box that has no four finite numbers, or ends before it begins.
    """
    mask = torch.zeros(height, width)
    rows, columns = (torch.arange(length, dtype=torch.float64) + 0.5 for length in (height, width))
    for box in boxes:
        values = torch.tensor([float(value) for value in box], dtype=torch.float64)
        if len(values) != 4 or not values.isfinite().all():
            raise ValueError(f"expected a box of four finite numbers, got {list(box)}")
        left, top, right, bottom = values.tolist()
        if right < left or bottom < top:
            raise ValueError(f"expected a box (left, top, right, bottom) that ends behind its begin, got {list(box)}")
        mask[((rows >= top) & (rows < bottom))[:, None] & (columns >= left) & (columns < right)] = 1.0
    return mask


def coco_boxes(boxes: Iterable[Sequence[float]]) -> list[tuple[float, float, float, float]]:
    """Boxes of COCO, (left, top, width, height) in pixels, as (left, top, right, bottom)."""
    corners = []
    for box in boxes:
        if len(box) != 4:
            raise ValueError(f"expected a box of COCO with four numbers, got {list(box)}")
        left, top, width, height = box
        corners.append((left, top, left + width, top + height))
    return corners


def voc_boxes(annotation: str | Path) -> list[tuple[float, float, float, float]]:
    """
    The boxes of a Pascal VOC annotation as (left, top, right, bottom). VOC counts pixels from 1 and includes the last
    one, so that left and top lose one.

    Args:
        annotation (`str` or `Path`): The file, or its text.

    Raises:
        ValueError: on what is no XML, and on an object without a box.
    """
    text = annotation.read_text() if isinstance(annotation, Path) else annotation
    if "<!ENTITY" in text:
        raise ValueError("expected an annotation without entities, got one that declares some")
    try:
        root: Any = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"expected an annotation in XML, got what cannot be read: {error}") from error
    boxes = []
    for thing in root.iter("object"):
        corners = [thing.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
        if None in corners:
            raise ValueError(f"expected a bndbox of each object, got none of {thing.findtext('name')!r}")
        left, top, right, bottom = (float(corner) for corner in corners)
        boxes.append((left - 1, top - 1, right, bottom))
    return boxes
