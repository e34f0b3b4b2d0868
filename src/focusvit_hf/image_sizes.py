"""Sizes of images: what a processor makes of them, the resize itself, and JPEG files decoded at a fraction for it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, JpegImagePlugin
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import SizeDict, get_image_size_for_max_height_width


_TORCH_FILTERS: dict[int, str] = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
# So many times what the filter is to give is left to it where boxes shrink an image first: beyond 3 nobody sees a
# difference, as PIL says of its `reducing_gap`.
_BOXES_LEAVE = 3.0
# And where a JPEG decoder does, whose means are those of whole blocks, before they are rounded.
_DECODER_LEAVES = 2
# Orientations of EXIF by which height and width change places.
_ON_THEIR_SIDE = range(5, 9)


class Needed(NamedTuple):
    """
    What a decoded image is needed for, so that a decoder may spare what nobody will see.

    Args:
        size (`SizeDict`): What it is needed in, by the rules of a processor's `size`.
        resample (`int`, *optional*):
            The filter by which an image that is decoded at a fraction is then brought to exactly that size. Without it
            the image stays larger.
    """

    size: SizeDict
    resample: int | None = None

    def of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an upright image of height x width pixels is needed in."""
        found = resized_size(height, width, self.size)
        # Where sizes are rounded, the resize of an image that is resized already may want another one.
        return found if resized_size(*found, self.size) == found else (height, width)


def check_area(width: int, height: int) -> None:
    """Raises ValueError for more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, PIL's guard against decompression bombs."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(
            f"expected at most PIL.Image.MAX_IMAGE_PIXELS = {limit} pixels, a guard against decompression bombs "
            f"(raise it for images you trust), got {width} x {height}"
        )


def channels_first(image: Image.Image) -> np.ndarray:
    """(channels, height, width) uint8 of an 8-bit PIL image."""
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


def _option(processor: Any, name: str) -> Any:
    return processor.get(name) if isinstance(processor, Mapping) else getattr(processor, name, None)


def fixed_size(processor: Any) -> tuple[int, int] | None:
    """
    (height, width) of every image that an image processor gives, or `None` where they depend on the image.

    Args:
        processor ([`BaseImageProcessor`] or mapping):
            The processor, of whatever model, or its options; what it does not have is switched off.
    """
    size = _option(processor, "size") if _option(processor, "do_resize") else None
    if _option(processor, "do_center_crop"):
        size = _option(processor, "crop_size")
    if isinstance(size, int):
        return size, size
    height, width = (size.get("height"), size.get("width")) if size else (None, None)
    return (height, width) if height and width else None


def resize(image: Image.Image | np.ndarray, size: SizeDict, resample: int) -> np.ndarray:
    """
    Resizes 8-bit images; returns (channels, height, width) uint8.

    Bilinear and bicubic interpolation is PyTorch's, antialiased like PIL's, from which it differs by one grey level on
    about one value in a thousand (bicubic on noise by up to two; where one side grows and the other shrinks, one value
    in eight by a level, bicubic by up to six, since PIL rounds between the two), in a third of PIL's time. Other
    filters are PIL's, and so is whatever shrinks an image six times or more along a side: the means of boxes go first,
    and leave the filter three times what it is to give. On photographs that is within two grey levels of the filter
    alone on 99 % of the values.
    """
    array = channels_first(image) if isinstance(image, Image.Image) else image
    channels = array.shape[0]
    if channels > 4:
        raise ValueError(f"expected at most 4 channels to resize, got {channels}")
    height, width = resized_size(array.shape[1], array.shape[2], size)
    if resample is not None:
        # A filter that does not exist is refused also where the image has its size already.
        Image.Resampling(resample)
    if (height, width) == array.shape[1:]:
        return array
    mode = _TORCH_FILTERS.get(resample)
    # PIL weighs colours by their transparency, and does not mix the numbers of a palette.
    plain = image.mode in ("L", "RGB") if isinstance(image, Image.Image) else channels in (1, 3)
    shrinks_far = max(array.shape[1] / height, array.shape[2] / width) >= 2 * _BOXES_LEAVE
    if mode is None or not plain or shrinks_far:
        if isinstance(image, np.ndarray):
            channels_last = np.ascontiguousarray(np.moveaxis(image, 0, -1))
            image = Image.fromarray(channels_last[..., 0] if channels == 1 else channels_last)
        return channels_first(image.resize((width, height), resample=resample, reducing_gap=_BOXES_LEAVE))
    # Unlike `from_numpy` this takes the read-only memory of an image without a warning.
    pixels = torch.from_dlpack(array)[None]
    return torch.nn.functional.interpolate(pixels, size=(height, width), mode=mode, antialias=True)[0].numpy()


def needed_by(processor: Any) -> Needed | None:
    """
    What an image processor needs of the images that it resizes, for [`~images.decode_image`]; None where it needs all.

    Args:
        processor ([`FocusViTImageProcessor`] or mapping): The processor, or the options of a call.
    """
    size, resample = _option(processor, "size"), _option(processor, "resample")
    # A filter that takes single pixels would take others.
    if not _option(processor, "do_resize") or not size or resample in (None, Image.Resampling.NEAREST):
        return None
    return Needed(size if isinstance(size, SizeDict) else SizeDict(**size), resample)


def at_a_fraction(
    image: JpegImagePlugin.JpegImageFile,
    needed: Needed,
    orientation: int | None,
    convert: Callable[[Image.Image], Image.Image],
) -> Image.Image | None:
    """
    A JPEG file that is not decoded yet at an eighth, a quarter or half of its size, where that leaves twice of what is
    needed: the decoder takes the means of blocks instead of their pixels. On photographs of twelve megapixels the
    resized image is within two grey levels of the one from all pixels on 99 % of the values.

    Args:
        image (`PIL.JpegImagePlugin.JpegImageFile`): As it was opened.
        needed ([`Needed`]): What it is needed for.
        orientation (`int`, *optional*): That of its EXIF data, which is not applied here.
        convert (`Callable`): Converts the colours before they are resized.

    Returns:
        `PIL.Image.Image`, decoded but not turned; None where it has to be decoded whole.
    """
    turned = orientation in _ON_THEIR_SIDE
    width, height = image.size
    wanted = needed.of(*((width, height) if turned else (height, width)))
    target = wanted if turned else (wanted[1], wanted[0])
    drafted = image.draft(None, (_DECODER_LEAVES * target[0], _DECODER_LEAVES * target[1]))
    if drafted is None or image.size == (width, height):
        return None
    image.load()
    converted = convert(image)
    if needed.resample is None:
        return converted
    # The last column and row may stand for less than a whole block, which the box tells the filter.
    return converted.resize(target, needed.resample, box=drafted[1], reducing_gap=_BOXES_LEAVE)
