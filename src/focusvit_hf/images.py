"""Images as users hand them in (files, PIL of any mode, arrays, tensors, nested lists) to upright 8-bit images."""

import base64
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from huggingface_hub import get_session
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin, UnidentifiedImageError
from transformers.utils import logging

from .image_sizes import Needed, at_a_fraction, channels_first, check_area


logger = logging.get_logger(__name__)

_WHITE_8_BIT, _WHITE_16_BIT = 255, 65535
_CHANNELS = (1, 3, 4)
# Orientations of EXIF that are not upright: mirrored, turned or both.
_TURNED = range(2, 9)


def flat_images(images: Any) -> Iterator[Any]:
    """The single images of nested lists and four-dimensional arrays, in order."""
    if isinstance(images, (list, tuple)):
        for image in images:
            yield from flat_images(image)
    elif getattr(images, "ndim", None) == 4:
        yield from images
    else:
        yield images


@contextmanager
def naming_image(index: int, problem: str = "cannot be used") -> Iterator[None]:
    """Errors about an image become ValueErrors that say which one, counted from 0, and what was the matter."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"Image {index} of the batch {problem}: {error}") from error


def decode_image(
    source: Any,
    do_convert_rgb: bool | None = True,
    input_data_format: str | None = None,
    needed: Needed | None = None,
) -> Image.Image | np.ndarray:
    """
    One image with 8 bits a channel, upright and, unless told otherwise, in RGB. Every way into the package comes
    through here, so that a file is the same image wherever it is given.

    An orientation in the EXIF data is applied. Transparency is laid over white. Values of 16 bits are scaled to 8:
    white is 65535 in mode I;16, and follows from the largest value in modes I and F and in arrays of integers, see
    [`to_8_bit`]. Of an animation the first frame counts.

    Args:
        source:
            The path of a file, a URL, an image in base64, the `bytes` of a file, an open binary file, a mapping with
            `"bytes"` or `"path"` (undecoded images of `datasets`), a PIL image, or an array or tensor of shape
            `(height, width)`, `(channels, height, width)` or `(height, width, channels)`.
        do_convert_rgb (`bool`, *optional*, defaults to `True`):
            Whether to convert to three channels; otherwise an image keeps its own.
        input_data_format (`str`, *optional*):
            `"channels_first"` or `"channels_last"` of an array; by default it follows from the shape.
        needed ([`~image_sizes.Needed`], *optional*):
            What the image is needed for. A JPEG file of at least four times that size is decoded at a fraction, in a
            half of the time, and resized at once; by default, and of all other files, every pixel is decoded.

    Returns:
        `PIL.Image.Image`; of an array or tensor an `np.ndarray` of shape `(channels, height, width)`: uint8, or
        float32 from floating point, whose range is for the caller to know.

    Raises:
        ValueError:
            When there is no such file or it cannot be decoded; for an image without pixels or with more than
            `PIL.Image.MAX_IMAGE_PIXELS`; for values that are out of range or not finite; for an array whose channels
            cannot be told from its height and width. A file is named.
    """
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _decode_array(source, do_convert_rgb, input_data_format)
    return open_image(source, lambda image: from_pil(image, do_convert_rgb), needed)


def open_image(
    source: Any, convert: Callable[[Image.Image], Image.Image] | None = None, needed: Needed | None = None
) -> Image.Image:
    """
    One image as it is stored, decoded and upright: of a palette, its indices; of a mask, its numbers.

    Args:
        source: As of [`decode_image`], but for arrays and tensors.
        convert (`Callable`, *optional*): What is made of it; a ValueError of it names the file, too.
        needed ([`~image_sizes.Needed`], *optional*): As of [`decode_image`]; only with `convert`.

    Raises:
        ValueError: as [`decode_image`].
    """
    name, file = (getattr(source, "filename", ""), None) if isinstance(source, Image.Image) else _opened(source)
    try:
        if file is None:
            image = _loaded(source)
        else:
            with _decoding(), _open_file(file) as opened:
                if needed is not None and convert is not None:
                    fraction = _fraction(opened, needed, convert)
                    if fraction is not None:
                        return fraction
                image = _loaded(opened)
        return image if convert is None else convert(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from error


def _opened(source: Any) -> tuple[str, Any]:
    """What to call an encoded image in messages (nothing, where it has no name), and what PIL opens."""
    if isinstance(source, Mapping) and source.get("bytes") is not None:
        return str(source.get("path") or ""), io.BytesIO(source["bytes"])
    if isinstance(source, Mapping) and source.get("path") is not None:
        return str(source["path"]), source["path"]
    if isinstance(source, (bytes, bytearray)):
        return "", io.BytesIO(source)
    if isinstance(source, os.PathLike):
        return os.fspath(source), source
    if isinstance(source, str):
        return _opened_text(source)
    if callable(getattr(source, "read", None)):
        if source.seekable():
            source.seek(0)
        return str(getattr(source, "name", "")), source
    raise ValueError(
        "expected the path of a file, a URL, bytes, an open file, a PIL image, an array or a tensor, "
        f"got {type(source).__name__}"
    )


def _opened_text(source: str) -> tuple[str, Any]:
    if source.startswith(("http://", "https://")):
        with _decoding("could not be fetched"):
            response = get_session().get(source, follow_redirects=True)
            response.raise_for_status()
            return source, io.BytesIO(response.content)
    if os.path.isfile(source):
        return source, source
    try:
        encoded = source.split(",", 1)[1] if source.startswith("data:image/") else source
        return "", io.BytesIO(base64.b64decode("".join(encoded.split()), validate=True))
    except (IndexError, ValueError) as error:
        raise ValueError(f"expected the path of a file, a URL or an image in base64, got {source!r:.100}") from error


@contextmanager
def _open_file(file: Any) -> Iterator[Image.Image]:
    # Of a path PIL maps uncompressed files into memory, and then turns some TIFF files wrongly.
    with open(file, "rb") if isinstance(file, (str, os.PathLike)) else nullcontext(file) as stream:
        with warnings.catch_warnings():
            # PIL warns of sizes that [`check_area`] refuses with an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(stream)
        yield image


@contextmanager
def _decoding(problem: str = "could not be decoded") -> Iterator[None]:
    """What goes wrong with a file becomes a ValueError."""
    try:
        yield
    except ValueError:
        raise
    except UnidentifiedImageError as error:
        # The message of PIL names the object in memory that it read from.
        raise ValueError("could not be decoded: it is in no format that PIL knows") from error
    except Exception as error:
        # PIL's decoders raise what they like for damaged files, RuntimeError and KeyError among others.
        raise ValueError(f"{problem}: {str(error) or type(error).__name__}") from error


def _loaded(image: Image.Image) -> Image.Image:
    """The image decoded now, instead of when its pixels are first needed, and upright."""
    if 0 in image.size:
        raise ValueError(f"expected an image with pixels, got {image.width} x {image.height} (width x height)")
    check_area(*image.size)
    with _decoding():
        image.load()
    return _upright(image)


def _fraction(image: Image.Image, needed: Needed, convert: Callable[[Image.Image], Image.Image]) -> Image.Image | None:
    """The image from a part of its data, converted and upright, see [`at_a_fraction`]; None where all are needed."""
    # Of a PNG file the EXIF data alone would have every pixel decoded.
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or 0 in image.size:
        return None
    check_area(*image.size)
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        # [`_upright`] tells of it.
        orientation = None
    found = at_a_fraction(image, needed, orientation, convert)
    return None if found is None else _upright(found)


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF data turn it."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
        return ImageOps.exif_transpose(image) if turned else image
    except Exception as error:
        # Like the decoders, the readers of EXIF raise what they like; the pixels are there all the same.
        logger.warning_once(f"The EXIF data of an image cannot be read, so it is used as it is stored: {error!r}")
        return image


def from_pil(image: Image.Image, do_convert_rgb: bool | None) -> Image.Image:
    """
    A PIL image with 8 bits a channel: modes I, I;16 and F are scaled to mode L.

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


def _decode_array(
    source: np.ndarray | torch.Tensor, do_convert_rgb: bool | None, input_data_format: str | None
) -> np.ndarray:
    if input_data_format not in (None, "channels_first", "channels_last"):
        raise ValueError(f"expected input_data_format 'channels_first' or 'channels_last', got {input_data_format!r}")
    array = from_array(source)
    if array.ndim == 2:
        array = array[None]
    elif (input_data_format or _data_format(array.shape)) == "channels_last":
        array = np.moveaxis(array, -1, 0)
    if not do_convert_rgb or len(array) == 3:
        return array
    if len(array) not in _CHANNELS:
        raise ValueError(f"expected 1, 3 or 4 channels to convert to RGB, got {len(array)}")
    if len(array) == 1:
        return np.repeat(array, 3, axis=0)
    if array.dtype == np.float32:
        return over_white(array)
    return channels_first(from_pil(Image.fromarray(np.ascontiguousarray(np.moveaxis(array, 0, -1))), True))


def _data_format(shape: tuple[int, ...]) -> str:
    """Whether three dimensions begin or end with the channels. Where both could be, an axis of 3 decides."""
    first, last = shape[0] in _CHANNELS, shape[-1] in _CHANNELS
    if first and last:
        first, last = shape[0] == 3, shape[-1] == 3
    if first != last:
        return "channels_first" if first else "channels_last"
    raise ValueError(
        "expected an array whose first or last dimension is plainly that of 1, 3 or 4 channels, got shape "
        f"{tuple(shape)}: pass input_data_format='channels_first' or 'channels_last'"
    )


def from_array(image: Any) -> np.ndarray:
    """
    An array or tensor of two or three dimensions as uint8 (from booleans and integers, see [`to_8_bit`]) or float32.

    Raises:
        ValueError: on other types and shapes, dimensions of 0, NaN or infinity, values that are no numbers.
    """
    if isinstance(image, torch.Tensor):
        if image.layout != torch.strided or image.is_meta or image.is_nested or image.is_quantized:
            raise ValueError(f"expected a dense tensor that holds values, got {image.layout} on {image.device}")
        image = image.detach().cpu()
        array = (image.float() if image.is_floating_point() else image).numpy()
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise ValueError(f"expected an array or a tensor, got {type(image)}")
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
    A transparent image in floats laid over white.

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


def levels_of_floats(array: np.ndarray, white: float) -> np.ndarray:
    """
    Floating-point values rounded to 8-bit levels, uint8.

    Args:
        array (`np.ndarray`): Finite values in 0..`white`, of any shape.
        white (`float`): The value of white.

    Raises:
        ValueError: on values out of range by more than half a level, which values scaled in float16 may overshoot by.
    """
    low, high, slack = float(array.min()), float(array.max()), white / (2 * _WHITE_8_BIT)
    if not -slack <= low <= high <= white + slack:
        raise ValueError(
            f"expected floating-point values in 0..{white:g}, got {low:g}..{high:g}; do_rescale=True takes 0..255 and "
            "do_rescale=False 0..1, and only do_resize=False with do_superpixels=False others"
        )
    return np.rint(array * (_WHITE_8_BIT / white)).clip(0, _WHITE_8_BIT).astype(np.uint8)


def _check_finite(array: np.ndarray) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("expected finite values, got NaN or infinity")
