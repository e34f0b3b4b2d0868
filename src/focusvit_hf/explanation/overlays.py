"""Drawings on an image at its own resolution: the borders of regions, and the heat of relevance."""

from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from skimage.morphology import isotropic_dilation
from skimage.segmentation import find_boundaries
from transformers.image_utils import SizeDict

from ..image_processing_focusvit import FocusViTImageProcessor
from ..image_sizes import resized_size
from ..lay_back import Box


LINE_COLOUR, HALO_COLOUR = (255, 214, 0), (0, 0, 0)
# How much of the grey image the colours of heat cover, from no relevance to the most.
_OPACITY = (0.25, 0.8)
# What is left of the light where a token left first.
_DARKEST = 0.15


def covered_box(image_processor: FocusViTImageProcessor, height: int, width: int) -> Box:
    """
    The part of an image that the processor's output shows: all of it after a plain resize, a crop after a crop.

    Args:
        image_processor ([`FocusViTImageProcessor`]): Its options for resize and crop count.
        height (`int`), width (`int`): Size of the image in pixels.

    Returns:
        [`Box`]: In the image's pixels. Larger than the image where the crop pads.
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


def draw_borders(image: Image.Image, region_map: torch.Tensor, thickness: int | None = None) -> Image.Image:
    """
    An image with the borders between regions drawn on it, at its own resolution.

    Args:
        image (`PIL.Image.Image`): Of any size.
        region_map (`torch.LongTensor` of shape `(height, width)`): The region of each pixel.
        thickness (`int`, *optional*):
            Width of the lines in pixels, by default 1 for each 250 pixels of the shorter side, at least 2. A dark line
            runs along both sides, so that the borders show on any ground.

    Returns:
        `PIL.Image.Image` in mode RGB, of the image's size.
    """
    thickness = max(2, round(min(image.size) / 250)) if thickness is None else thickness
    pixels = np.array(image.convert("RGB"))
    # Two pixels wide: one on either side of the border.
    borders = find_boundaries(region_map.numpy(), mode="thick")
    if borders.any():
        lines = isotropic_dilation(borders, (thickness - 2) / 2)
        pixels[isotropic_dilation(lines, max(1, thickness / 2))] = HALO_COLOUR
        pixels[lines] = LINE_COLOUR
    return Image.fromarray(pixels)


def draw_heat(image: Image.Image, heat: torch.Tensor) -> Image.Image:
    """
    Relevance as colours over the grey image: dark where there is none, over violet and orange to pale yellow.

    Args:
        image (`PIL.Image.Image`): Of any size.
        heat (`torch.FloatTensor` of shape `(height, width)`): In 0..1, such as [`Explanation.heat`] gives.

    Returns:
        `PIL.Image.Image` in mode RGB, of the image's size.

    Raises:
        ValueError: where matplotlib, whose colours these are, is not installed.
    """
    levels = heat.numpy()
    weakest, strongest = _OPACITY
    opacity = (weakest + (strongest - weakest) * levels)[..., None]
    colours = require_matplotlib().colormaps["inferno"](levels)[..., :3] * 255
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    return Image.fromarray(np.rint(opacity * colours + (1 - opacity) * grey).astype(np.uint8))


def draw_kept(image: Image.Image, passed: torch.Tensor, num_stages: int) -> Image.Image:
    """
    An image in which the parts whose tokens left are darker, the earlier the darker, and what stayed is as it was.

    Args:
        image (`PIL.Image.Image`): Of any size.
        passed (`torch.LongTensor` of shape `(height, width)`):
            How many stages each pixel's token passed, such as [`Prediction.stages_passed`] gives.
        num_stages (`int`): How many there are.

    Returns:
        `PIL.Image.Image` in mode RGB, of the image's size.
    """
    brightness = _DARKEST + (1 - _DARKEST) * passed.numpy()[..., None] / max(1, num_stages)
    return Image.fromarray(np.rint(np.asarray(image.convert("RGB")) * brightness).astype(np.uint8))


def require_matplotlib() -> Any:
    """matplotlib, or a ValueError that says what to install."""
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError(
            f"drawing needs matplotlib: pip install matplotlib, or focusvit-hf[plots] ({error})"
        ) from error
    return matplotlib
