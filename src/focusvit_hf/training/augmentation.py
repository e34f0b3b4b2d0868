"""Augmentation of training images, batched on tensors.

The augmentations take and return a batch of images, uint8 or floating point in 0..1. Each draws from `generator`, or
from torch's global generator when that is None, and from nothing else.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


Range = tuple[float, float]

# As torchvision: boxes drawn until one fits; the weights of ITU-R BT.601 for grey.
_ATTEMPTS = 10
_GREY = (0.299, 0.587, 0.114)
# Images of more than so many times the area wanted are resized one by one: products would be mostly with zeros.
# torch's own antialiasing fills outputs one pixel wide with wrong values, as of 2.13.
_LARGE = 4


def as_floats(images: Tensor) -> Tensor:
    """
    Images `(batch, 3, height, width)`, uint8 or floating point, as float32 in 0..1; ValueError for others. A fourth
    channel is a mask of what matters.
    """
    channels = images.ndim == 4 and images.shape[1] in (3, 4)
    if not channels or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            "Expected uint8 or floating point images of shape (batch, 3, height, width), got "
            f"{images.dtype} {tuple(images.shape)}."
        )
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def as_dtype(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images in 0..1 as `dtype`: 8-bit levels for uint8."""
    return (images * 255).round_().to(torch.uint8) if dtype == torch.uint8 else images.to(dtype)


def _grey(images: Tensor) -> Tensor:
    return (images * torch.tensor(_GREY)[:, None, None]).sum(dim=1, keepdim=True)


def random_crop_boxes(
    batch_size: int, image_size: tuple[int, int], scale: Range, ratio: Range, generator: Generator | None = None
) -> Tensor:
    """
    Boxes of torchvision's `RandomResizedCrop`: share of the area uniform in `scale`, width / height log-uniform in
    `ratio`, the first of ten draws that fits; else the largest box in the middle with an aspect in `ratio`. Returns
    `torch.LongTensor` of shape `(batch_size, 4)`: top, left, height, width in pixels, within the image.
    """
    height, width = image_size
    draws = torch.rand(4, batch_size, _ATTEMPTS, generator=generator)
    area = height * width * torch.lerp(torch.tensor(scale[0]), torch.tensor(scale[1]), draws[0])
    aspect = torch.lerp(torch.tensor(ratio[0]).log(), torch.tensor(ratio[1]).log(), draws[1]).exp()
    sizes = torch.stack(((area / aspect).sqrt(), (area * aspect).sqrt()), dim=-1).round().long()
    limit = torch.tensor([height, width])
    fits = ((sizes >= 1) & (sizes <= limit)).all(dim=-1)
    first = fits.int().argmax(dim=1)
    size = sizes[torch.arange(batch_size), first]
    corner = (draws[2:, :, 0].T * (limit - size + 1)).long().minimum(limit - size)
    whole = torch.tensor([min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))]).clamp(min=1)
    drawn = fits.any(dim=1, keepdim=True)
    return torch.cat((torch.where(drawn, corner, (limit - whole) // 2), torch.where(drawn, size, whole)), dim=1)


def crop_and_resize(images: Tensor, boxes: Tensor, size: tuple[int, int], dtype: torch.dtype | None = None) -> Tensor:
    """
    Cuts box `(batch_size, 4)` (top, left, height, width) out of each image and resizes it to `size`: bilinear with
    antialiasing (PIL's filter), each axis as one product with a matrix of triangle weights. The result has the type of
    `images`, or `dtype`.
    """
    dtype = dtype or images.dtype
    if math.prod(images.shape[2:]) > _LARGE * math.prod(size) and size[1] > 1:
        boxed = zip(images, boxes.tolist(), strict=True)
        crops = (as_floats(image[None, :, y : y + height, x : x + width]) for image, (y, x, height, width) in boxed)
        resized = [F.interpolate(crop, size, mode="bilinear", antialias=True) for crop in crops]
        return as_dtype(torch.cat(resized), dtype)
    weights = []
    for axis in (0, 1):
        start, length = boxes[:, axis, None, None].float(), boxes[:, axis + 2, None, None].float()
        step = length / size[axis]
        centre = start + (torch.arange(size[axis])[:, None] + 0.5) * step
        pixel = torch.arange(images.shape[2 + axis]) + 0.5
        weight = (1 - (pixel - centre).abs() / step.clamp(min=1)).clamp(min=0)
        weight = weight * ((pixel > start) & (pixel < start + length))
        weights.append((weight / weight.sum(dim=-1, keepdim=True))[:, None])
    return as_dtype(weights[0] @ (as_floats(images) @ weights[1].transpose(-1, -2)), dtype)


def crop_mask(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """The box (top, left, height, width) of a mask `(..., height, width)`, resized to the nearest pixel."""
    places = []
    for axis in (0, 1):
        step = float(box[axis + 2]) / size[axis]
        places.append(int(box[axis]) + ((torch.arange(size[axis]) + 0.5) * step).long())
    return mask[..., places[0], :][..., places[1]]


def crop_with_masks(images: Tensor, masks: Tensor | None, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """
    [`crop_and_resize`] of images, and of their masks to the nearest pixel, so that no filter makes up a value.

    Args:
        images (`torch.Tensor` of shape `(batch_size, 3, height, width)`): uint8, or floating point in 0..1.
        masks (`torch.Tensor` of shape `(batch_size, channels, height, width)`, *optional*): Of any type.
        boxes (`torch.LongTensor` of shape `(batch_size, 4)`): Top, left, height, width of what is cut out.
        size ((height, width)): Of the result.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, 3 + channels, *size)`: the images in 0..1, and the masks' numbers.
    """
    cropped = crop_and_resize(images, boxes, size, dtype=torch.float32)
    if masks is None:
        return cropped
    nearest = [crop_mask(mask, box, size).float() for mask, box in zip(masks, boxes, strict=True)]
    return torch.cat((cropped, torch.stack(nearest)), dim=1)


def random_resized_crop(
    images: Tensor,
    size: tuple[int, int],
    scale: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
    generator: Generator | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """[`crop_and_resize`] to `size` with [`random_crop_boxes`]: (B, 3, H, W) to (B, 3, *size)."""
    boxes = random_crop_boxes(len(images), (images.shape[2], images.shape[3]), scale, ratio, generator)
    return crop_and_resize(images, boxes, size, dtype)


def random_crop_with_padding(images: Tensor, padding: int, generator: Generator | None = None) -> Tensor:
    """
    Shifts each image by up to `padding` pixels an axis; what comes in is the mirror image (a black border would get
    superpixels of its own). ValueError for a padding that is not below height and width.
    """
    if not 0 <= padding < min(images.shape[2:]):
        raise ValueError(f"Expected a padding below height and width {tuple(images.shape[2:])}, got {padding}.")
    shifts = torch.randint(-padding, padding + 1, (2, len(images), 1), generator=generator)
    rows, columns = ((torch.arange(n) + s).abs() for n, s in zip(images.shape[2:], shifts, strict=True))
    rows, columns = (n - 1 - (n - 1 - i).abs() for n, i in zip(images.shape[2:], (rows, columns), strict=True))
    item, channel = torch.arange(len(images))[:, None, None, None], torch.arange(images.shape[1])[:, None, None]
    return images[item, channel, rows[:, None, :, None], columns[:, None, None]]


def random_horizontal_flip(images: Tensor, probability: float = 0.5, generator: Generator | None = None) -> Tensor:
    """Mirrors each image left to right with `probability`."""
    flipped = torch.rand(len(images), 1, 1, 1, generator=generator) < probability
    return torch.where(flipped, images.flip(-1), images)


def color_jitter(
    images: Tensor, brightness: float, contrast: float, saturation: float, generator: Generator | None = None
) -> Tensor:
    """
    torchvision's `ColorJitter` without hue, in this order: each image is blended with black, its mean grey, its grey
    image, by a factor uniform in [max(0, 1 - strength), 1 + strength] for each, and clipped to 0..1.
    """
    result = as_floats(images)
    others: tuple[Callable[[Tensor], Tensor], ...] = (torch.zeros_like, lambda x: _grey(x).mean((2, 3), True), _grey)
    for strength, other in zip((brightness, contrast, saturation), others, strict=True):
        if strength > 0:
            low = max(0.0, 1 - strength)
            factor = low + (1 + strength - low) * torch.rand(len(images), 1, 1, 1, generator=generator)
            result = torch.lerp(other(result), result, factor).clamp_(0, 1)
    return as_dtype(result, images.dtype)


def soft_targets(labels: Tensor, num_labels: int) -> Tensor:
    """Classes (B,) as probabilities (B, num_labels), which can be mixed. The loss smooths them, not this."""
    return F.one_hot(labels, num_labels).float()


def _beta(alpha: float, generator: Generator | None) -> float:
    if generator is None:
        return float(torch.distributions.Beta(alpha, alpha).sample())
    # torch's distributions know the global generator only.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return _beta(alpha, None)


def mixup(images: Tensor, targets: Tensor, alpha: float, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """
    Blends each image and its target (B, num_labels) with the one before it in the batch, one share λ ~ Beta(α, α)
    for the batch (Zhang et al. 2018, arXiv 1710.09412).
    """
    share, floats = _beta(alpha, generator), as_floats(images)
    mixed = as_dtype(torch.lerp(floats.roll(1, 0), floats, share), images.dtype)
    return mixed, torch.lerp(targets.roll(1, 0), targets, share)


def cutmix(images: Tensor, targets: Tensor, alpha: float, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """
    Pastes a box of the image before it into each; targets (B, num_labels) are mixed by the share that was in fact
    pasted: 1 - λ, λ ~ Beta(α, α), less what lies outside (Yun et al. 2019, arXiv 1905.04899).
    """
    height, width = images.shape[2:]
    side = math.sqrt(1 - _beta(alpha, generator))
    middle = torch.rand(2, generator=generator).tolist()
    (top, bottom), (left, right) = (
        (max(0, int(m * n) - int(side * n) // 2), min(n, int(m * n) + int(side * n) - int(side * n) // 2))
        for m, n in zip(middle, (height, width), strict=True)
    )
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.roll(1, 0)[:, :, top:bottom, left:right]
    return mixed, torch.lerp(targets, targets.roll(1, 0), (bottom - top) * (right - left) / (height * width))


def _check_number(name: str, value: Any, high: float = math.inf) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not 0 <= value <= high:
        raise ValueError(f"Expected {name} as a number in 0..{high:g}, got {value!r}.")


@dataclass
class AugmentationConfig:
    """
    What [`FocusViTDataCollator`] does to training images. Written as JSON in recipes, see [`to_dict`].

    Args:
        crop (`str`, *optional*, defaults to `"random_resized"`):
            `"random_resized"`: a random box of the image as it is, resized to the processor's size; `"pad"`: the
            processor's resize, then a random shift, as for CIFAR; `None`: the processor's resize only.
        crop_scale (pair of `float`, *optional*, defaults to (0.08, 1.0)): Share of the area a random box covers.
        crop_ratio (pair of `float`, *optional*, defaults to (3/4, 4/3)): Width over height of a random box.
        crop_padding (`int`, *optional*): Largest shift in pixels with `"pad"`; 4 when that is chosen.
        horizontal_flip (`float`, *optional*, defaults to 0.5): Probability to mirror an image left to right.
        brightness, contrast, saturation (`float`, *optional*, default to 0): Strengths of [`color_jitter`].
        mixup_alpha, cutmix_alpha (`float`, *optional*, default to 0):
            α of [`mixup`] and [`cutmix`]; 0: never. With both, a mixed batch gets one of them by the toss of a coin.
        mix_probability (`float`, *optional*, defaults to 1.0): Probability that a batch is mixed at all.

    Raises:
        ValueError: on values out of range, and on a `crop_padding` without `crop="pad"`.
    """

    crop: str | None = "random_resized"
    crop_scale: Range = (0.08, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    crop_padding: int | None = None
    horizontal_flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_probability: float = 1.0

    def __post_init__(self) -> None:
        if self.crop not in ("random_resized", "pad", None):
            raise ValueError(f"Expected crop to be 'random_resized', 'pad' or None, got {self.crop!r}.")
        for name in ("crop_scale", "crop_ratio"):
            pair = getattr(self, name)
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ValueError(f"Expected {name} as (least, largest), got {pair!r}.")
            for value in pair:
                _check_number(name, value, 1.0 if name == "crop_scale" else math.inf)
            if not 0 < pair[0] <= pair[1]:
                raise ValueError(f"Expected {name} with 0 < least <= largest, got {pair!r}.")
            # JSON may have 1 for 1.0, and the draws are between numbers of one type.
            setattr(self, name, tuple(float(value) for value in pair))
        if self.crop == "pad" and self.crop_padding is None:
            self.crop_padding = 4
        padding = self.crop_padding
        if padding is not None and (not isinstance(padding, int) or isinstance(padding, bool) or padding < 1):
            raise ValueError(f"Expected crop_padding as a whole number >= 1, got {padding!r}.")
        if padding is not None and self.crop != "pad":
            raise ValueError(f"Expected crop='pad' with crop_padding={padding}, got crop={self.crop!r}.")
        for name in ("brightness", "contrast", "saturation", "mixup_alpha", "cutmix_alpha"):
            _check_number(name, getattr(self, name))
        for name in ("horizontal_flip", "mix_probability"):
            _check_number(name, getattr(self, name), 1.0)

    @property
    def makes_soft_targets(self) -> bool:
        """Whether labels become probabilities: with mixup or cutmix."""
        return self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    def to_dict(self) -> dict[str, Any]:
        """All options, pairs as lists: what JSON makes of them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> "AugmentationConfig":
        """The inverse of [`to_dict`]; ValueError for an option that does not exist."""
        known = [item.name for item in fields(cls)]
        unknown = sorted(options.keys() - set(known))
        if unknown:
            raise ValueError(f"Expected augmentation options from {known}, got {unknown}.")
        return cls(**options)


def random_mix(
    images: Tensor, targets: Tensor, config: AugmentationConfig, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """[`mixup`] or [`cutmix`], whichever the configuration has and as often as it says, or neither."""
    coins = torch.rand(2, generator=generator).tolist()
    mixes = [(mix, a) for mix, a in ((mixup, config.mixup_alpha), (cutmix, config.cutmix_alpha)) if a > 0]
    if mixes and coins[0] < config.mix_probability:
        mix, alpha = mixes[int(coins[1] * len(mixes))]
        return mix(images, targets, alpha, generator)
    return images, targets
