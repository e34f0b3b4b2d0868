"""Maps of classes: masks as users hand them in, for training, and logits of cells to the class of each pixel."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import SizeDict

from .guided_upsampling import REACH, Guide, image_levels
from .image_sizes import resized_size
from .images import flat_images, naming_image, open_image
from .lay_back import CellsAround, cells_to_pixels


# What a mask has where the class does not count, in the data sets of the field and in the library's processors.
IGNORED = 255
UPSAMPLINGS = ("bilinear", "nearest", "guided")
_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
# Interpolated values that are held at a time.
_STRIP_VALUES = 2**22


def decode_mask(source: Any) -> np.ndarray:
    """
    A mask as numbers of classes. The numbers are never scaled, and a palette is left alone: its indices are the
    classes.

    Args:
        source: As of [`~images.decode_image`]; an image of one channel, or an array or tensor of integers or booleans
            of shape `(height, width)`, or with one channel first or last.

    Returns:
        `np.ndarray` of shape `(height, width)`: uint8 where all numbers fit, else int32.

    Raises:
        ValueError: on colours, on floats, on other shapes, on numbers below 0 or beyond int32, and on what cannot be
            decoded.
    """
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().numpy()
    if not isinstance(source, np.ndarray):
        image = open_image(source)
        if image.mode not in _MODES:
            raise ValueError(f"expected a mask of one channel with numbers of classes, got an image in {image.mode}")
        source = np.asarray(image)
    if source.ndim == 3 and 1 in (source.shape[0], source.shape[-1]):
        source = source[0] if source.shape[0] == 1 else source[..., 0]
    if source.ndim != 2 or 0 in source.shape:
        raise ValueError(f"expected a mask of shape (height, width), got {tuple(source.shape)}")
    if source.dtype.kind not in "iub":
        raise ValueError(f"expected a mask of integers, the numbers of classes, got {source.dtype}")
    low, high = int(source.min()), int(source.max())
    if low < 0 or high > np.iinfo(np.int32).max:
        raise ValueError(f"expected numbers of classes >= 0 in a mask, got {low}..{high}")
    return source.astype(np.uint8 if high <= 255 else np.int32)


def reduced_labels(mask: np.ndarray) -> np.ndarray:
    """Numbers of classes without the first, the background, as `do_reduce_labels` has it: 0 → 255, k → k - 1."""
    ignored = (mask == 0) | (mask == IGNORED)
    return np.where(ignored, IGNORED, mask.astype(np.int64) - 1)


def resized_mask(mask: np.ndarray, size: SizeDict) -> np.ndarray:
    """
    A mask `(height, width)`, uint8 or int32, resized like its image, but to the nearest pixel: no value appears that
    was not there.
    """
    height, width = resized_size(mask.shape[0], mask.shape[1], size)
    if (height, width) == mask.shape:
        return mask
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def center_cropped_mask(mask: np.ndarray, height: int, width: int, fill: int = IGNORED) -> np.ndarray:
    """The middle `(height, width)` of a mask, as int64, with `fill` where the crop reaches beyond it."""
    result = np.full((height, width), fill, dtype=np.int64)
    # As the library crops: the odd pixel is cut off below and right, and padded above and left.
    spans = []
    for wanted, there in ((height, mask.shape[0]), (width, mask.shape[1])):
        start = (there - wanted) // 2
        first, last = max(start, 0), min(start + wanted, there)
        spans.append((slice(first, last), slice(first - start, last - start)))
    (rows, to_rows), (columns, to_columns) = spans
    result[to_rows, to_columns] = mask[rows, columns]
    return result


def prepared_mask(
    mask: np.ndarray,
    *,
    do_resize: bool,
    size: SizeDict,
    do_center_crop: bool,
    crop_size: SizeDict,
    fill: int = IGNORED,
    **options: Any,
) -> np.ndarray:
    """A mask `(height, width)`, uint8 or int32, resized and cropped as a processor does it with its image."""
    if do_resize:
        mask = resized_mask(mask, size)
    if do_center_crop and crop_size.height and crop_size.width:
        mask = center_cropped_mask(mask, crop_size.height, crop_size.width, fill)
    return mask


def labels_of(
    masks: Any,
    sizes: Sequence[tuple[int, int]],
    *,
    do_reduce_labels: bool,
    **options: Any,
) -> list[np.ndarray]:
    """
    Masks as labels of what a processor makes of their images.

    Args:
        masks: One of each image, see [`decode_mask`].
        sizes (list of (height, width)): Of the images, before resize and crop.
        do_reduce_labels, options: Options of the processor, see [`prepared_mask`].

    Returns:
        A list of int64 arrays of shape `(height, width)`.

    Raises:
        ValueError: on masks of another number or size than the images, and as [`decode_mask`].
    """
    if getattr(masks, "ndim", None) == 3 and len(masks) == len(sizes):
        masks = list(masks)
    listed = list(flat_images(masks))
    if len(listed) != len(sizes):
        raise ValueError(f"Expected a mask of each of the {len(sizes)} images, got {len(listed)}.")
    labels = []
    for index, (source, expected) in enumerate(zip(listed, sizes, strict=True)):
        with naming_image(index):
            if source is None:
                raise ValueError("expected a mask, got none")
            mask = decode_mask(source)
            if mask.shape != tuple(expected):
                raise ValueError(
                    f"expected a mask of the image's size {expected[0]} x {expected[1]}, got "
                    f"{mask.shape[0]} x {mask.shape[1]}"
                )
        # What lies beyond the border of a crop is ignored, and stays so.
        mask = prepared_mask(mask, **options)
        labels.append(reduced_labels(mask) if do_reduce_labels else mask.astype(np.int64))
    return labels


def segmentation_maps_of(
    logits: torch.Tensor,
    sizes: Sequence[tuple[int, int]] | None = None,
    upsampling: str = "bilinear",
    images: Sequence[Any] | None = None,
) -> list[torch.Tensor]:
    """
    The class of each pixel. Classes that win in no cell of an image have no part in its interpolation, so that no
    class appears that no cell has; and only pixels between cells of different classes are interpolated.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels, rows, columns)`): Of the cells.
        sizes (list of (height, width), *optional*): Size of each map; by default the cells are the pixels.
        upsampling (`str`, *optional*, defaults to `"bilinear"`):
            `"bilinear"`: the class with the largest logit between the centres of cells; `"nearest"`: that of the cell;
            `"guided"`: the largest logit where the image itself says which cells a pixel belongs to, see
            [`~guided_upsampling.Guide`].
        images (list, *optional*): The images at the sizes of the maps, for `"guided"` alone.

    Returns:
        A list of `torch.LongTensor` of shape `(height, width)`.

    Raises:
        ValueError: on another `upsampling`, on as many sizes or images as there are no maps, and on an image that is
            missing or of another size.
    """
    pairs, guides = _checked(logits, sizes, upsampling, images)
    classes = logits.argmax(dim=1)
    if pairs is None:
        return list(classes)
    if upsampling == "nearest":
        return [cells_to_pixels(cells, size) for cells, size in zip(classes, pairs, strict=True)]
    return [_interpolated(*one) for one in zip(logits.float(), classes, pairs, guides, strict=True)]


def _checked(
    logits: torch.Tensor, sizes: Sequence[tuple[int, int]] | None, upsampling: str, images: Sequence[Any] | None
) -> tuple[list[tuple[int, int]] | None, Sequence[Any]]:
    """The sizes of maps as numbers, and for each the image that guides it, or None."""
    if upsampling not in UPSAMPLINGS:
        raise ValueError(f"Expected upsampling to be one of {UPSAMPLINGS}, got {upsampling!r}.")
    if (images is not None) != (upsampling == "guided"):
        got = "none" if images is None else f"them with upsampling={upsampling!r}"
        raise ValueError(f"Expected the images at their own size with upsampling='guided' and only there, got {got}.")
    if images is not None:
        images = [image_levels(image) for image in flat_images(images)]
        if sizes is None:
            sizes = [(image.shape[0], image.shape[1]) for image in images]
        if len(images) != len(logits):
            raise ValueError(f"Expected the {len(logits)} images of the logits, got {len(images)}.")
    if sizes is None:
        return None, []
    if len(sizes) != len(logits):
        raise ValueError(f"Expected target_sizes of the {len(logits)} images of the logits, got {len(sizes)}.")
    return [(int(size[0]), int(size[1])) for size in sizes], images or [None] * len(sizes)


def between_cells(
    grid: tuple[int, int], size: tuple[int, int], device: torch.device, image: Any = None
) -> tuple[CellsAround, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]]:
    """The cells around each pixel, and how what lies between them is found: guided by an image, or bilinear."""
    around = CellsAround(grid, size, device, 1 if image is None else REACH)
    return around, around.interpolate if image is None else Guide(image, around).interpolate


def _interpolated(logits: torch.Tensor, cells: torch.Tensor, size: tuple[int, int], image: Any) -> torch.Tensor:
    """The class of each pixel of one image, from its logits `(num_labels, rows, columns)` and the cells' classes."""
    if size == tuple(cells.shape):
        return cells
    pixels = cells_to_pixels(cells, size)
    present = cells.unique()
    if len(present) == 1:
        return pixels
    scores = logits[present].flatten(1).T
    # What is linear can be subtracted before it is interpolated.
    scores = (scores[:, 1:] - scores[:, :1] if len(present) == 2 else scores).contiguous()
    around, interpolate = between_cells((cells.shape[0], cells.shape[1]), size, cells.device, image)
    # Of a class that wins in all cells around a pixel, every mean of theirs is the largest, too.
    for rows, columns in around.disagreeing(cells, _STRIP_VALUES // scores.shape[1]):
        between = interpolate(scores, rows, columns)
        pixels[rows, columns] = present[(between[:, 0] > 0).long() if scores.shape[1] == 1 else first_largest(between)]
    return pixels


def first_largest(values: torch.Tensor) -> torch.Tensor:
    """
    `values.argmax(dim=1)` of `(rows, columns)`, the first of equals, in half of its time on a CPU where there are many
    rows and few columns: maximum and comparison are vectorised along the rows.
    """
    columns = values.T.contiguous()
    largest = columns.amax(dim=0)
    found = torch.zeros(len(values), dtype=torch.int64, device=values.device)
    for number in range(len(columns) - 1, 0, -1):
        found.masked_fill_(columns[number] == largest, number)
    return found.masked_fill_(columns[0] == largest, 0)


class SegmentationPostProcessing:
    """What an image processor makes of the outputs of a model for semantic segmentation."""

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
        upsampling: str = "bilinear",
        images: Any = None,
    ) -> list[Any]:
        """
        The class of each pixel, from the outputs of [`FocusViTForSemanticSegmentation`].

        Args:
            outputs ([`SemanticSegmenterOutput`]): With `logits` of shape `(batch_size, num_labels, rows, columns)`.
            target_sizes (list of (height, width), *optional*):
                Size of each map, that of the image; by default that of `images`, and without them of the logits.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`): Whether the scores are returned, too.
            upsampling (`str`, *optional*, defaults to `"bilinear"`):
                `"bilinear"` compares logits interpolated between cells, of classes that win in some cell of the image;
                `"nearest"` keeps the borders of cells and superpixels as they are; `"guided"` draws the borders at the
                images' own resolution, where their colours change, see [`~guided_upsampling.Guide`].
            images (list, *optional*):
                The images that the logits were found in, at their target sizes, as the processor takes them; for
                `"guided"` alone.

        Returns:
            A list of `torch.LongTensor` of shape `(height, width)`; with scores of
            `SemanticSegmentationPostProcessorOutput`, whose `segmentation_scores` are the logits of all classes,
            `(num_labels, height, width)`.

        Raises:
            ValueError: on sizes or images of another number, on images of another size or none for `"guided"`, and on
                another `upsampling`.
        """
        sizes = None if target_sizes is None else [(int(height), int(width)) for height, width in target_sizes]
        maps = segmentation_maps_of(outputs.logits, sizes, upsampling, images)
        if not return_segmentation_scores:
            return maps
        sizes, guides = _checked(outputs.logits, sizes, upsampling, images)
        scores = outputs.logits
        if sizes is not None:
            scores = [_wide(*one, upsampling) for one in zip(outputs.logits, sizes, guides, strict=True)]
        return [
            SemanticSegmentationPostProcessorOutput(data={"segmentation": one, "segmentation_scores": score})
            for one, score in zip(maps, scores, strict=True)
        ]


def _wide(logits: torch.Tensor, size: tuple[int, int], image: Any, upsampling: str) -> torch.Tensor:
    """The logits `(num_labels, rows, columns)` of one image on its pixels: `(num_labels, height, width)`."""
    if image is None:
        return cells_to_pixels(logits, size, mode=upsampling)
    _, interpolate = between_cells((logits.shape[1], logits.shape[2]), size, logits.device, image)
    rows, columns = torch.ones(size, device=logits.device).nonzero(as_tuple=True)
    return interpolate(logits.float().flatten(1).T.contiguous(), rows, columns).T.unflatten(1, size)
