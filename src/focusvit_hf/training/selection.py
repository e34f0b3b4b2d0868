"""Boxes and masks of objects, as data sets have them, made into the `selection_masks` that teach a gate."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch import nn

from ..images import naming_image, open_image
from ..segmentation_maps import decode_mask, prepared_mask


SELECTION_FORMATS = ("mask", "coco", "corners", "voc")
# Where data sets that describe objects by a dict keep their boxes.
_BOX_KEYS = ("bbox", "boxes")
# By so much a box may lie beyond its image, in pixels: annotations are rounded, and some count from 1.
_TOLERANCE = 1.0


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
        ValueError: on a file that cannot be read, on what is no XML, and on an object without a box.
    """
    try:
        text = annotation.read_text() if isinstance(annotation, Path) else annotation
    except OSError as error:
        raise ValueError(f"expected the file of an annotation, got: {error}") from error
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


@dataclass(frozen=True)
class SelectionColumn:
    """
    Where the masks of what matters come from.

    Args:
        name (`str`): The column.
        kind (`str`, *optional*, defaults to `"mask"`):
            What is in it. `"mask"`: an image of one channel or an array of the image's size, with the numbers 0 and 1,
            grey levels in 0..255, or floating point in 0..1. `"coco"`: boxes (left, top, width, height), `"corners"`:
            boxes (left, top, right, bottom), in pixels, as a list or under `"bbox"` or `"boxes"` of a dict. `"voc"`:
            an annotation of Pascal VOC, its text or the path of its file.

    Raises:
        ValueError: on another `kind`.
    """

    name: str
    kind: str = "mask"

    def __post_init__(self) -> None:
        if self.kind not in SELECTION_FORMATS:
            raise ValueError(f"Expected a format of selection masks from {SELECTION_FORMATS}, got {self.kind!r}.")

    def levels(self, index: int, example: Mapping[str, Any], height: int, width: int) -> np.ndarray:
        """
        The mask of an example in 8-bit levels, 255 for what matters: uint8 of shape `(height, width)`.

        Args:
            index (`int`): The example's number in its batch, for messages.
            example (mapping): With the column.
            height, width (`int`): The image's size in pixels.

        Raises:
            ValueError: where there is no mask, on one of another size or kind, and on a box beyond the image.
        """
        value = example.get(self.name)
        with naming_image(index):
            if value is None:
                raise ValueError(f"expected a mask or boxes in the column {self.name!r}, got none")
            if self.kind == "mask":
                return mask_levels(value, height, width)
            boxes = voc_boxes(_annotation(value)) if self.kind == "voc" else _boxes(value, self.name, self.kind)
            require_inside(boxes, height, width)
            return np.asarray(boxes_mask(boxes, height, width) * 255).astype(np.uint8)

    def levels_of_batch(
        self, examples: Iterable[Mapping[str, Any]], sizes: Iterable[Sequence[int]]
    ) -> list[np.ndarray]:
        """[`levels`] of each example of a batch, whose images have these sizes (height, width)."""
        rows = enumerate(zip(examples, sizes, strict=True))
        return [self.levels(index, example, *size) for index, (example, size) in rows]


def mask_levels(value: Any, height: int, width: int) -> np.ndarray:
    """
    A mask as 8-bit levels, uint8 of shape `(height, width)`.

    Raises:
        ValueError: on a palette, whose numbers are classes, on numbers that are no levels, and on another size.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    elif isinstance(value, (list, tuple)):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        value = open_image(value)
        if value.mode == "P":
            raise ValueError("expected a mask of grey levels or of the numbers 0 and 1, got a palette of classes")
    shares = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    if shares:
        if not (value.size and value.min() >= 0 and value.max() <= 1):
            raise ValueError("expected a mask in [0, 1] in floating point, got other numbers")
        value = np.rint(value * 255).astype(np.uint8)
    mask = decode_mask(value)
    if mask.shape != (height, width):
        raise ValueError(
            f"expected a mask of the image's size {height} x {width}, got {mask.shape[0]} x {mask.shape[1]}"
        )
    largest = int(mask.max())
    if largest > 255:
        raise ValueError(f"expected a mask of grey levels in 0..255 or of the numbers 0 and 1, got {largest}")
    return (mask * 255 if largest == 1 and not shares else mask).astype(np.uint8)


def require_inside(boxes: Iterable[Sequence[float]], height: int, width: int) -> None:
    """ValueError for boxes (left, top, right, bottom) beyond an image, as those of another size of it are."""
    for box in boxes:
        left, top, right, bottom = box
        if min(left, top) < -_TOLERANCE or right > width + _TOLERANCE or bottom > height + _TOLERANCE:
            raise ValueError(f"expected boxes inside the image of {height} x {width} pixels, got {list(box)}")


def prepared_levels(levels: Iterable[np.ndarray], image_processor: Any) -> list[np.ndarray]:
    """Masks of images that go through a processor: cropped as they are, and resized to the nearest pixel."""
    options = {name: getattr(image_processor, name) for name in ("do_resize", "size", "do_center_crop", "crop_size")}
    return [prepared_mask(mask, **options, fill=0).astype(np.uint8) for mask in levels]


def masks_of(levels: Sequence[np.ndarray]) -> torch.Tensor:
    """`selection_masks` of masks of one size in 8-bit levels: `(batch_size, height, width)` float32 in [0, 1]."""
    return torch.from_numpy(np.stack(levels)).float() / 255


def _annotation(value: Any) -> str | Path:
    """The text of an annotation, or the path of its file."""
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str):
        raise ValueError(f"expected the text or the path of an annotation, got {type(value).__name__}")
    return value if value.lstrip().startswith("<") else Path(value)


def _boxes(value: Any, column: str, kind: str) -> list[tuple[float, ...]]:
    """Boxes (left, top, right, bottom) of a column's value."""
    if isinstance(value, Mapping):
        key = next((key for key in _BOX_KEYS if key in value), None)
        if key is None:
            raise ValueError(f"expected boxes under one of {_BOX_KEYS} in column {column!r}, got {sorted(value)}")
        value = value[key]
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray, torch.Tensor)):
        raise ValueError(f"expected a list of boxes in the column {column!r}, got {type(value).__name__}")
    boxes: list[tuple[float, ...]] = []
    for box in value:
        try:
            numbers = tuple(float(number) for number in box)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != 4:
            raise ValueError(f"expected boxes of four numbers in the column {column!r}, got {box!r:.80}")
        boxes.append(numbers)
    return list(coco_boxes(boxes)) if kind == "coco" else boxes


class SelectedShare:
    """The mean share of their tokens that the layers of select-and-pack attention select, batch by batch."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None
        self._batches = 0

    def add(self, outputs: Any) -> None:
        """Counts a batch, of whose model these are the outputs; a model that selects nothing counts for nothing."""
        selected = getattr(outputs, "selected_tokens", None)
        if not selected:
            return
        # It stays on its device, so that no step waits for it.
        share = torch.stack([tokens.float().mean().to(selected[0].device) for tokens in selected]).mean()
        self._sum = share if self._sum is None else self._sum + share
        self._batches += 1

    @contextmanager
    def counted(self, model: nn.Module) -> Iterator[None]:
        """
        Counts the batches that pass through the model within this context, for evaluation: there the tokens are an
        attribute of the outputs, which does not pass through the wrapper that casts outputs of mixed precision.
        """
        handle = getattr(model, "base_model", model).register_forward_hook(lambda _, __, outputs: self.add(outputs))
        try:
            yield
        finally:
            handle.remove()

    def taken(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """
        `selected_share` of the batches since this was asked last, in 0..1; nothing where there were none.

        Args:
            reduce (callable): From a tensor to its mean over all processes.
        """
        if self._sum is None:
            return {}
        share, self._sum, self._batches = self._sum / self._batches, None, 0
        return {"selected_share": float(reduce(share))}
