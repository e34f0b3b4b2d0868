"""Pictures as users hand them in (PIL of any mode, arrays, tensors, nested lists) to 8-bit pictures of one size."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import SizeDict, get_image_size_for_max_height_width


_WHITE_8_BIT, _WHITE_16_BIT = 255, 65535
_TORCH_FILTERS: dict[int, str] = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
# What PIL's decoders raise on damaged files.
_UNREADABLE = (OSError, SyntaxError, EOFError, ValueError, struct.error, Image.DecompressionBombError)


def flat_pictures(images: Any) -> Iterator[Any]:
    """The single pictures of nested lists and four-dimensional arrays, in order."""
    if isinstance(images, (list, tuple)):
        for image in images:
            yield from flat_pictures(image)
    elif getattr(images, "ndim", None) == 4:
        yield from images
    else:
        yield images


@contextmanager
def naming_picture(index: int, problem: str) -> Iterator[None]:
    """Errors about a picture become ValueErrors that say which one, counted from 0, and what was the matter."""
    try:
        yield
    except _UNREADABLE as error:
        raise ValueError(f"Image {index} of the batch {problem}: {error}") from error


def check_area(width: int, height: int) -> None:
    """Raises ValueError for more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, PIL's guard against decompression bombs."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(
            f"expected at most PIL.Image.MAX_IMAGE_PIXELS = {limit} pixels, a guard against decompression bombs "
            f"(raise it for pictures you trust), got {width} x {height}"
        )


def decode(image: Image.Image) -> None:
    """
    Makes PIL decode a picture now instead of when its pixels are first needed.

    Raises:
        ValueError: for a picture without pixels, and for one too large to be decoded safely.
        OSError: when the file is damaged, as PIL raises it.
    """
    if 0 in image.size:
        raise ValueError(f"expected a picture with pixels, got {image.width} x {image.height} (width x height)")
    check_area(*image.size)
    image.load()


def from_pil(image: Image.Image, do_convert_rgb: bool | None) -> Image.Image:
    """
    A PIL picture with 8 bits a channel: modes I, I;16 and F are scaled to mode L.

    Args:
        image (`PIL.Image.Image`):
            Of any mode. White is 65535 in mode I;16; in I and F it follows from the largest value, see [`to_8_bit`].
        do_convert_rgb (`bool`): Whether to convert to RGB, transparency laid over white.

    Raises:
        ValueError: on NaN or infinity, and on values of modes I and F outside 0..65535.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        _check_finite(values)
        image = Image.fromarray(to_8_bit(values, _WHITE_16_BIT if image.mode.startswith("I;16") else None))
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode == "1" and not do_convert_rgb:
        return image.convert("L")
    if not do_convert_rgb or (image.mode == "RGB" and not image.has_transparency_data):
        return image
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def from_array(image: Any) -> np.ndarray:
    """
    An array or tensor of two or three dimensions as uint8 (from booleans and integers, see [`to_8_bit`]) or float32.

    Raises:
        ValueError: on other types and shapes, dimensions of 0, NaN or infinity, values that are no numbers.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        array = (image.float() if image.is_floating_point() else image).numpy()
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise ValueError(f"expected a PIL picture, an array or a tensor, got {type(image)}")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            "expected (height, width), (channels, height, width) or (height, width, channels), none of them 0, got "
            f"shape {tuple(array.shape)}"
        )
    if min(array.strides) < 0:
        # A mirrored view: torch takes none, and its DLPack ends the process over one.
        array = np.ascontiguousarray(array)
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array * np.uint8(_WHITE_8_BIT)
    if array.dtype.kind in "iu":
        return to_8_bit(array)
    if array.dtype.kind != "f":
        raise ValueError(f"expected integer or floating point values, got {array.dtype}")
    # Values beyond float32 become infinite, and are refused as such.
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    _check_finite(array)
    return array


def over_white(array: np.ndarray) -> np.ndarray:
    """
    A transparent picture in floats laid over white.

    Args:
        array (`np.ndarray` of shape `(4, height, width)`):
            RGBA, finite floats in 0..1, or in 0..255 where one is above 1.

    Returns:
        `np.ndarray` of shape `(3, height, width)`, in the same range.

    Raises:
        ValueError: on values below 0 or above 255.
    """
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > _WHITE_8_BIT:
        raise ValueError(f"expected RGBA values in 0..1 or 0..{_WHITE_8_BIT}, got {low:g}..{high:g}")
    white = _WHITE_8_BIT if high > 1 else 1
    opacity = array[3:] / white
    return array[:3] * opacity + white * (1 - opacity)


def to_8_bit(array: np.ndarray, white: float | None = None) -> np.ndarray:
    """
    Scales values wider than 8 bits to uint8.

    Args:
        array (`np.ndarray`): Integers or finite floats of any shape.
        white (`float`, *optional*):
            The value of white. By default it follows from the largest value: 255 up to 255, 65535 above; 1 for floats
            up to 1.

    Raises:
        ValueError: on values below 0 or above white.
    """
    low, high = float(array.min()), float(array.max())
    if white is None:
        white = _WHITE_8_BIT if high <= _WHITE_8_BIT else _WHITE_16_BIT
        if array.dtype.kind == "f" and high <= 1:
            white = 1
    if low < 0 or high > white:
        raise ValueError(f"expected values in 0..{white:g}, got {low:g}..{high:g}")
    return np.rint(array * (_WHITE_8_BIT / white)).astype(np.uint8)


def channels_first(image: Image.Image) -> np.ndarray:
    """(channels, height, width) uint8 of an 8-bit PIL picture."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def resized_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """(height, width) that `size` asks for, by the rules of ViT's processor."""
    if size.shortest_edge and size.longest_edge:
        new_height, new_width = get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge)
    elif size.shortest_edge:
        long = int(size.shortest_edge * max(height, width) / min(height, width))
        new_height, new_width = (long, size.shortest_edge) if width <= height else (size.shortest_edge, long)
    elif size.max_height and size.max_width:
        new_height, new_width = get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
    elif size.height and size.width:
        new_height, new_width = size.height, size.width
    else:
        raise ValueError(
            "expected size with 'height' and 'width', 'shortest_edge', 'shortest_edge' and 'longest_edge', or "
            f"'max_height' and 'max_width', got {dict(size)}"
        )
    if min(new_height, new_width) < 1:
        raise ValueError(f"expected a size of at least 1 x 1, got {new_height} x {new_width} from {dict(size)}")
    check_area(new_width, new_height)
    return new_height, new_width


def resize(image: Image.Image | np.ndarray, size: SizeDict, resample: int) -> np.ndarray:
    """
    Resizes 8-bit pictures; returns (channels, height, width) uint8.

    Bilinear and bicubic interpolation is PyTorch's, antialiased like PIL's, from which it differs by one grey level on
    about one value in a thousand (bicubic on noise by up to two; where one side grows and the other shrinks, one value
    in eight by a level, bicubic by up to six, since PIL rounds between the two), in a third of PIL's time. Other
    filters are PIL's.
    """
    array = channels_first(image) if isinstance(image, Image.Image) else image
    channels = array.shape[0]
    if channels > 4:
        raise ValueError(f"expected at most 4 channels to resize, got {channels}")
    height, width = resized_size(array.shape[1], array.shape[2], size)
    mode = _TORCH_FILTERS.get(resample)
    # PIL weighs colours by their transparency, and does not mix the numbers of a palette.
    plain = image.mode in ("L", "RGB") if isinstance(image, Image.Image) else channels in (1, 3)
    if mode is None or not plain:
        if isinstance(image, np.ndarray):
            channels_last = np.ascontiguousarray(np.moveaxis(image, 0, -1))
            image = Image.fromarray(channels_last[..., 0] if channels == 1 else channels_last)
        return channels_first(image.resize((width, height), resample=resample))
    # Unlike `from_numpy` this takes the read-only memory of a picture without a warning.
    pixels = torch.from_dlpack(array)[None]
    return torch.nn.functional.interpolate(pixels, size=(height, width), mode=mode, antialias=True)[0].numpy()


def _check_finite(array: np.ndarray) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("expected finite values, got NaN or infinity")
