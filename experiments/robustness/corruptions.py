"""What happens to images outside the laboratory: compression, blur, light, rotation, another aspect, more pixels."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def _restored(levels: torch.Tensor) -> torch.Tensor:
    return levels.round().clamp(0, 255).to(torch.uint8)


def jpeg(images: torch.Tensor, quality: int = 30) -> torch.Tensor:
    """Compressed as JPEG and decoded, one by one."""
    decoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
        decoded.append(torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1))
    return torch.stack(decoded)


def blur(images: torch.Tensor, sigma: float = 1.0) -> torch.Tensor:
    """Gaussian blur with a standard deviation of `sigma` pixels; the border is mirrored."""
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(images.float(), (radius,) * 4, mode="reflect")
    return _restored(F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3))


def brightness(images: torch.Tensor, factor: float) -> torch.Tensor:
    """Levels times `factor`."""
    return _restored(images.float() * factor)


def rotated(images: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """
    Images `(count, 3, height, width)` in floating point, each turned about its middle by its angle `(count,)` in
    radians: bilinear, and what comes in at a corner is the mirror image, since a black one would get superpixels of
    its own.
    """
    cosine, sine = angles.cos(), angles.sin()
    rows = torch.stack((cosine, -sine)), torch.stack((sine, cosine))
    turns = F.pad(torch.stack(rows).permute(2, 0, 1), (0, 1)).to(images.dtype)
    places = F.affine_grid(turns, list(images.shape), align_corners=False)
    return F.grid_sample(images, places, padding_mode="reflection", align_corners=False)


def rotate(images: torch.Tensor, degrees: float = 10.0) -> torch.Tensor:
    """See [`rotated`]; all by the same angle."""
    angles = torch.full((len(images),), math.radians(degrees), dtype=torch.float64)
    return _restored(rotated(images.float(), angles))


def stretch(images: torch.Tensor, vertical: float = 1.0, horizontal: float = 1.0) -> torch.Tensor:
    """Resized by a factor an axis, bilinear: the image is larger then, all of it is there, and objects are long."""
    size = [round(images.shape[2] * vertical), round(images.shape[3] * horizontal)]
    return _restored(F.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False))


# Each takes and returns `(count, 3, height, width)` uint8.
CORRUPTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "jpeg_30": jpeg,
    "blur_1px": blur,
    "darker_0.6": lambda images: brightness(images, 0.6),
    "brighter_1.5": lambda images: brightness(images, 1.5),
    "rotated_10": rotate,
    "taller_1.5": lambda images: stretch(images, vertical=1.5),
    "wider_1.5": lambda images: stretch(images, horizontal=1.5),
}
