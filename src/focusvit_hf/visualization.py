"""What a FocusViT sees and what its answer rests on: superpixel overlays, relevance of regions, heat maps."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers.image_utils import SizeDict

from .image_processing_focusvit import FocusViTImageProcessor
from .modeling_focusvit import FocusViTForImageClassification
from .pictures import resized_size
from .superpixels import geometry


# Colours of relevance from none to most, lightness rising throughout, and how much of the photograph they cover there.
_HEAT_COLOURS = ((0, 0, 0), (90, 0, 10), (190, 20, 10), (240, 90, 10), (255, 170, 30), (255, 240, 140))
_HEAT_OPACITY = (0.4, 0.75)
_LINE, _HALO = (255, 214, 0), (0, 0, 0)
_SMALLEST_AREA = 1e-6
_MODES = ("nearest", "bilinear")


class Box(NamedTuple):
    """A rectangle in pixels, fractions allowed, that may reach beyond the picture it lies in."""

    top: float
    left: float
    bottom: float
    right: float


def covered_box(image_processor: FocusViTImageProcessor, height: int, width: int) -> Box:
    """
    The part of a photograph that the processor's output shows: all of it after a plain resize, a crop after a crop.

    Args:
        image_processor ([`FocusViTImageProcessor`]): Its options for resize and crop count.
        height (`int`), width (`int`): Size of the photograph in pixels.

    Returns:
        [`Box`]: In the photograph's pixels. Larger than the photograph where the crop pads.
    """
    if not image_processor.do_center_crop:
        return Box(0.0, 0.0, float(height), float(width))
    resized = (height, width)
    if image_processor.do_resize:
        resized = resized_size(height, width, cast(SizeDict, image_processor.size))
    crop = cast(dict[str, int], getattr(image_processor, "crop_size", None))
    edges = []
    for whole, length, part in ((height, resized[0], crop["height"]), (width, resized[1], crop["width"])):
        # The library rounds the border down for a crop and up for a padding.
        start = (length - part) // 2
        edges.append((start * whole / length, (start + part) * whole / length))
    return Box(edges[0][0], edges[1][0], edges[0][1], edges[1][1])


def cells_to_pixels(
    cells: torch.Tensor, size: tuple[int, int], box: Box | None = None, fill: int = 0, mode: str = "nearest"
) -> torch.Tensor:
    """
    A map of cells at the resolution of a picture. Gradients pass through both modes.

    Args:
        cells (`torch.Tensor` of shape `(..., rows, columns)`): Any type; floating point for `"bilinear"`.
        size (pair of `int`): Height and width of the picture.
        box ([`Box`], *optional*): The part of the picture that the cells cover, by default all of it.
        fill (`int`, *optional*, defaults to 0): Value of pixels outside the box.
        mode (`str`, *optional*, defaults to `"nearest"`):
            `"nearest"`: a pixel has the value of the cell it lies in; `"bilinear"`: it lies between the centres of
            cells, as `torch.nn.functional.interpolate` has it with `align_corners=False`.

    Returns:
        `torch.Tensor` of shape `(..., height, width)`.

    Raises:
        ValueError: on another `mode`, and on integers with `"bilinear"`.
    """
    if mode not in _MODES:
        raise ValueError(f"Expected mode to be one of {_MODES}, got {mode!r}.")
    box = Box(0.0, 0.0, float(size[0]), float(size[1])) if box is None else box
    rows, columns = cells.shape[-2:]
    y = _cells_of_pixels(size[0], box.top, box.bottom, rows, cells.device)
    x = _cells_of_pixels(size[1], box.left, box.right, columns, cells.device)
    if mode == "nearest":
        row, column = (places.floor().long() for places in (y, x))
        pixels = cells[..., row.clamp(0, rows - 1), :][..., column.clamp(0, columns - 1)]
    elif cells.is_floating_point():
        pixels = _triangles(y, rows).to(cells.dtype) @ cells @ _triangles(x, columns).to(cells.dtype).T
    else:
        raise ValueError(f"Expected floating-point cells for mode 'bilinear', got {cells.dtype}.")
    inside = ((y >= 0) & (y < rows))[:, None] & ((x >= 0) & (x < columns))
    return pixels.masked_fill(~inside, fill)


def _cells_of_pixels(length: int, start: float, end: float, count: int, device: torch.device) -> torch.Tensor:
    """(length,) float64: the place of each pixel's centre, counted in cells from the first one's edge."""
    centres = torch.arange(length, device=device, dtype=torch.float64) + 0.5
    return (centres - start) * (count / (end - start))


def _triangles(places: torch.Tensor, count: int) -> torch.Tensor:
    """(len(places), count): the weight of each cell at each place, 1 at its centre, 0 from the next centre on."""
    centres = torch.arange(count, device=places.device) + 0.5
    return (1 - (places.clamp(0.5, count - 0.5)[:, None] - centres).abs()).clamp(min=0)


def lay_back(
    values: torch.Tensor,
    superpixel_ids: torch.Tensor,
    size: tuple[int, int],
    box: Box | None = None,
    mode: str = "nearest",
) -> torch.Tensor:
    """
    Lays one value, or one vector, of each region back onto the pixels of the region. Gradients pass to the values.

    Args:
        values (`torch.Tensor` of shape `(batch_size, K)` or `(batch_size, K, channels)`): Values of the regions.
        superpixel_ids (`torch.LongTensor` of shape `(batch_size or 1, rows, columns)`):
            Region of each cell, in [0, K). A cell with another id gets 0.
        size (pair of `int`): Height and width of the result in pixels.
        box ([`Box`], *optional*): The part of the result that the map covers, by default all of it; 0 outside.
        mode (`str`, *optional*, defaults to `"nearest"`):
            How the map's cells become pixels, see [`cells_to_pixels`]. `"bilinear"` smooths between neighbouring cells
            of the map; a map with one cell for each tile of a grid interpolates between the tiles.

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width)` or `(batch_size, channels, height, width)`.

    Raises:
        ValueError: when the shapes do not fit, on another `mode`, and on integers with `"bilinear"`.
    """
    if values.ndim not in (2, 3) or superpixel_ids.ndim != 3 or superpixel_ids.shape[0] not in (1, values.shape[0]):
        raise ValueError(
            "Expected values of shape (batch, K) or (batch, K, channels) and a map of shape (batch, rows, columns), "
            f"got {tuple(values.shape)} and {tuple(superpixel_ids.shape)}."
        )
    batch, count = values.shape[:2]
    ids = superpixel_ids.expand(batch, -1, -1)
    index = ids.clamp(0, count - 1).flatten(1)
    vectors = values.reshape(batch, count, -1).transpose(1, 2)
    cells = vectors.gather(2, index[:, None].expand(-1, vectors.shape[1], -1)).unflatten(2, ids.shape[1:])
    cells = cells.masked_fill(((ids < 0) | (ids >= count))[:, None], 0)
    pixels = cells_to_pixels(cells, size, box, mode=mode)
    return pixels[:, 0] if values.ndim == 2 else pixels


def superpixel_boundaries(
    image: Image.Image, superpixel_ids: torch.Tensor, box: Box | None = None, thickness: int | None = None
) -> Image.Image:
    """
    A photograph with the borders between superpixels drawn on it, at its own resolution.

    Args:
        image (`PIL.Image.Image`): The photograph, of any size.
        superpixel_ids (`torch.LongTensor` of shape `(rows, columns)`): Superpixel of each cell.
        box ([`Box`], *optional*): What the map covers, see [`covered_box`]; by default all of the photograph.
        thickness (`int`, *optional*):
            Width of the lines in pixels, by default 1 for each 150 pixels of the shorter side. A dark line half as
            wide runs along both sides, so that the borders show on any ground.

    Returns:
        `PIL.Image.Image` in mode RGB, of the photograph's size.
    """
    result = image.convert("RGB")
    box = Box(0.0, 0.0, float(image.height), float(image.width)) if box is None else box
    ids = superpixel_ids.cpu().numpy()
    thickness = max(1, round(min(image.size) / 150)) if thickness is None else thickness
    height, width = (box.bottom - box.top) / ids.shape[0], (box.right - box.left) / ids.shape[1]
    # The side between two cells of different superpixels, (top, left, bottom, right) in cells.
    upright = [(row, column + 1, row + 1, column + 1) for row, column in np.argwhere(ids[:, 1:] != ids[:, :-1])]
    level = [(row + 1, column, row + 1, column + 1) for row, column in np.argwhere(ids[1:] != ids[:-1])]
    draw = ImageDraw.Draw(result)
    for colour, total in ((_HALO, thickness + 2 * math.ceil(thickness / 2)), (_LINE, thickness)):
        for top, left, bottom, right in upright + level:
            y, x = round(box.top + top * height) - total // 2, round(box.left + left * width) - total // 2
            tall, wide = round((bottom - top) * height), round((right - left) * width)
            draw.rectangle((x, y, x + wide + total - 1, y + tall + total - 1), fill=colour)
    return result


def regions(
    model: FocusViTForImageClassification, pixel_values: torch.Tensor, superpixel_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """
    The map of the regions that a model's tokens stand for: superpixels, tiles of the grid, or patches.

    Args:
        model ([`FocusViTForImageClassification`]): Its `patch_pooling` decides.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): Normalised pictures.
        superpixel_ids (`torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`, *optional*):
            The superpixels, where they are known already.

    Returns:
        `torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`, values in [0, K).
    """
    config = model.config
    if superpixel_ids is not None:
        return superpixel_ids
    if config.patch_pooling == "superpixel":
        return model.focusvit.compute_superpixel_ids(pixel_values)
    batch, _, height, width = pixel_values.shape
    cells = (height // config.cell_size, width // config.cell_size)
    patches = (height // config.patch_size, width // config.patch_size)
    # A copy: the model keeps the table.
    return model.focusvit.embeddings.region_ids(cells, patches, pixel_values.device).repeat(batch, 1, 1)


@torch.no_grad()
def region_relevance(
    model: FocusViTForImageClassification,
    pixel_values: torch.Tensor,
    superpixel_ids: torch.Tensor | None = None,
    target: torch.Tensor | int | None = None,
    batch_size: int = 64,
) -> torch.Tensor:
    r"""
    How much of an answer rests on each region: occlusion sensitivity (Zeiler and Fergus, "Visualizing and
    Understanding Convolutional Networks", 2014) with the model's own regions in the place of a sliding square.

    Region by region, the pixels are replaced by the picture's mean colour while the map stays as it is. The relevance
    is the drop in the target's log-probability.

    Args:
        model ([`FocusViTForImageClassification`]): Any `patch_pooling`; runs in evaluation mode without dropout.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): Normalised pictures.
        superpixel_ids (`torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`, *optional*):
            The superpixels; by default the model computes them.
        target (`int` or `torch.LongTensor` of shape `(batch_size,)`, *optional*):
            The class in question, by default the model's answer for each picture.
        batch_size (`int`, *optional*, defaults to 64): How many occluded pictures go through the model at a time.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, K)`, in nats. Negative where a region speaks against the target.

    Raises:
        ValueError: on a `target` outside the classes, a `batch_size` below 1, and what `forward` refuses.
    """
    if batch_size < 1:
        raise ValueError(f"Expected batch_size >= 1, got {batch_size}.")
    given = _given_map(model, pixel_values, superpixel_ids)
    ids = regions(model, pixel_values, given)
    count = _num_regions(model, pixel_values)
    fill = pixel_values.mean(dim=(2, 3), keepdim=True)
    pixel_ids = cells_to_pixels(ids, (pixel_values.shape[2], pixel_values.shape[3]))
    with evaluating(model):
        before = _log_probabilities(model, pixel_values, given, batch_size)
        target = _targets(before, target)
        after = []
        for numbers in torch.arange(len(pixel_values) * count, device=pixel_values.device).split(batch_size):
            picture, region = numbers // count, numbers % count
            hidden = (pixel_ids[picture] == region[:, None, None])[:, None]
            occluded = torch.where(hidden, fill[picture], pixel_values[picture])
            kept = None if given is None else given[picture]
            scores = _log_probabilities(model, occluded, kept, batch_size)
            after.append(scores.gather(1, target[picture, None])[:, 0])
    return before.gather(1, target[:, None]) - torch.cat(after).view(-1, count)


def relevance_per_area(relevance: torch.Tensor, superpixel_ids: torch.Tensor) -> torch.Tensor:
    """
    Relevance divided by the share of the picture that a region covers: what a heat map shows, and what ranks area.

    Args:
        relevance (`torch.FloatTensor` of shape `(batch_size, K)`): As [`region_relevance`] returns it.
        superpixel_ids (`torch.LongTensor` of shape `(batch_size or 1, rows, columns)`): The map of the regions.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, K)`; 0 for a region without cells.
    """
    area = geometry(superpixel_ids, relevance.shape[1])[..., 2]
    return torch.where(area > 0, relevance / area.clamp(min=_SMALLEST_AREA), 0.0)


class DeletionDrop(NamedTuple):
    """What deleting a part of each picture takes from the probability of its answer; two `(batch_size,)` tensors."""

    ranked: torch.Tensor
    random: torch.Tensor


@torch.no_grad()
def deletion_drop(
    model: FocusViTForImageClassification,
    pixel_values: torch.Tensor,
    superpixel_ids: torch.Tensor | None,
    relevance: torch.Tensor,
    area: float = 0.2,
    target: torch.Tensor | int | None = None,
    draws: int = 10,
    seed: int = 0,
    batch_size: int = 64,
) -> DeletionDrop:
    """
    Whether relevance is faithful: deletes the area ranked highest, and random regions of the same area beside it (the
    deletion test of Petsiuk et al., "RISE", 2018, at one area).

    Regions are deleted in order until ⌊area · cells + 1/2⌋ cells are gone; of the last region only so many cells, in
    reading order, as are wanted. Both arms follow this rule, so both delete the same number of pixels; the random one
    takes the regions in a random order. Deleted pixels get the picture's mean colour; the map stays as it is.

    Args:
        model, pixel_values, superpixel_ids, target, batch_size: As in [`region_relevance`].
        relevance (`torch.FloatTensor` of shape `(batch_size, K)`):
            What regions are ranked by, such as [`relevance_per_area`].
        area (`float`, *optional*, defaults to 0.2): Share of the picture to delete, in 0..1.
        draws (`int`, *optional*, defaults to 10): Random orders a picture, over which its drop is averaged.
        seed (`int`, *optional*, defaults to 0): Of the random orders.

    Returns:
        [`DeletionDrop`]: Drops of the target's probability, in -1..1, on the device of `pixel_values`.

    Raises:
        ValueError: when `area` is outside 0..1, `draws` is below 1 or `relevance` does not fit the regions.
    """
    expected = (len(pixel_values), _num_regions(model, pixel_values))
    if not 0 <= area <= 1 or draws < 1:
        raise ValueError(f"Expected area in 0..1 and draws >= 1, got {area} and {draws}.")
    if tuple(relevance.shape) != expected:
        raise ValueError(f"Expected relevance of shape {expected}, got {tuple(relevance.shape)}.")
    given = _given_map(model, pixel_values, superpixel_ids)
    ids = regions(model, pixel_values, given)
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model):
        before = _log_probabilities(model, pixel_values, given, batch_size)
        answer = _targets(before, target)[:, None]

        def drop(order_by: torch.Tensor) -> torch.Tensor:
            deleted = _without_regions(pixel_values, ids, order_by, area)
            after = _log_probabilities(model, deleted, given, batch_size)
            return (before.gather(1, answer).exp() - after.gather(1, answer).exp())[:, 0]

        ranked = drop(relevance)
        random = [drop(torch.rand(expected, generator=generator).to(relevance)) for _ in range(draws)]
    return DeletionDrop(ranked, torch.stack(random).mean(dim=0))


def _without_regions(
    pixel_values: torch.Tensor, ids: torch.Tensor, relevance: torch.Tensor, area: float
) -> torch.Tensor:
    """The pictures without the first `area` of their cells, by falling relevance of their regions."""
    rank = relevance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    # A stable sort keeps the reading order within a region.
    order = rank.gather(1, ids.flatten(1)).argsort(dim=1, stable=True)
    deleted = torch.zeros_like(order, dtype=torch.bool)
    deleted.scatter_(1, order[:, : int(area * order.shape[1] + 0.5)], True)
    hidden = cells_to_pixels(deleted.view_as(ids), (pixel_values.shape[2], pixel_values.shape[3]))
    return torch.where(hidden[:, None], pixel_values.mean(dim=(2, 3), keepdim=True), pixel_values)


def _given_map(
    model: FocusViTForImageClassification, pixel_values: torch.Tensor, superpixel_ids: torch.Tensor | None
) -> torch.Tensor | None:
    """The map to pass to `forward` with changed pixels; None for the controls, which take none."""
    if superpixel_ids is None and model.config.patch_pooling == "superpixel":
        return model.focusvit.compute_superpixel_ids(pixel_values)
    return superpixel_ids


def _num_regions(model: FocusViTForImageClassification, pixel_values: torch.Tensor) -> int:
    config = model.config
    if config.patch_pooling != "none":
        return config.superpixel_count
    return (pixel_values.shape[2] // config.patch_size) * (pixel_values.shape[3] // config.patch_size)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards each of its modules as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


def _log_probabilities(
    model: FocusViTForImageClassification, pixel_values: torch.Tensor, given: torch.Tensor | None, batch_size: int
) -> torch.Tensor:
    """Log-probabilities in float32, `(batch_size, num_labels)`."""
    logits = []
    for start in range(0, len(pixel_values), batch_size):
        part = slice(start, start + batch_size)
        ids = None if given is None else given[part]
        logits.append(model(pixel_values[part], superpixel_ids=ids).logits)
    return torch.cat(logits).float().log_softmax(dim=1)


def _targets(scores: torch.Tensor, target: torch.Tensor | int | None) -> torch.Tensor:
    """(batch_size,) class numbers; the best of `scores` (batch_size, num_labels) when none are given."""
    if target is None:
        return scores.argmax(dim=1)
    targets = torch.as_tensor(target, device=scores.device).expand(len(scores))
    if targets.min() < 0 or targets.max() >= scores.shape[1]:
        raise ValueError(f"Expected a target in [0, {scores.shape[1]}), got {targets.unique().tolist()}.")
    return targets


def heat_map(
    image: Image.Image, relevance: torch.Tensor, superpixel_ids: torch.Tensor, box: Box | None = None
) -> Image.Image:
    """
    The relevance of regions as colours over the grey photograph: from nothing, dark, over red to pale yellow.

    Args:
        image (`PIL.Image.Image`): The photograph, of any size.
        relevance (`torch.FloatTensor` of shape `(K,)`):
            Relevance of the regions, such as [`relevance_per_area`]. Colours run from 0, negative values included, to
            the largest value.
        superpixel_ids (`torch.LongTensor` of shape `(rows, columns)`): The map of the regions.
        box ([`Box`], *optional*): What the map covers, see [`covered_box`]; by default all of the photograph.

    Returns:
        `PIL.Image.Image` in mode RGB, of the photograph's size.
    """
    positive = relevance.detach().float().cpu().clamp(min=0)
    levels = (positive / positive.max().clamp(min=_SMALLEST_AREA) * 255).round().to(torch.uint8)
    level = lay_back(levels[None], superpixel_ids.cpu()[None], (image.height, image.width), box)[0]
    return colour_levels(Image.fromarray(level.numpy()), image.convert("L"))


def colour_levels(levels: Image.Image, ground: Image.Image) -> Image.Image:
    """The colours of a heat map for `levels` of 0..255 over a grey `ground`, both in mode L: RGB. 0 leaves it grey."""
    stops = np.linspace(0, 255, len(_HEAT_COLOURS))
    channels = [np.interp(np.arange(256), stops, channel) for channel in zip(*_HEAT_COLOURS, strict=True)]
    colours = levels.convert("P")
    colours.putpalette(np.stack(channels, axis=1).round().astype(np.uint8).tobytes())
    weakest, strongest = _HEAT_OPACITY
    opacity = levels.point([round(255 * weakest + level * (strongest - weakest)) for level in range(256)])
    return Image.composite(colours.convert("RGB"), ground.convert("RGB"), opacity)
