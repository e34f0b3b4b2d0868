"""Pictures of what a FocusViT sees and what its answer rests on: superpixel overlays, heat maps."""

import math
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers.image_utils import SizeDict

from ..image_processing_focusvit import FocusViTImageProcessor
from ..images import resized_size
from ..lay_back import Box, lay_back


# Colours of relevance from none to most, lightness rising throughout, and how much of the photograph they cover there.
_HEAT_COLOURS = ((0, 0, 0), (90, 0, 10), (190, 20, 10), (240, 90, 10), (255, 170, 30), (255, 240, 140))
_HEAT_OPACITY = (0.4, 0.75)
_LINE, _HALO = (255, 214, 0), (0, 0, 0)
_SMALLEST_RELEVANCE = 1e-6


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
    levels = (positive / positive.max().clamp(min=_SMALLEST_RELEVANCE) * 255).round().to(torch.uint8)
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
