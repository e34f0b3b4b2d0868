"""Training pictures: augmentation, batched on tensors, then superpixels, in one collator.

The augmentations take and return a batch of pictures, uint8 or floating point in 0..1. Each draws from `generator`, or
from torch's global generator when that is None, and from nothing else.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from .image_processing_focusvit import FocusViTImageProcessor
from .pictures import decode, naming_picture


Range = tuple[float, float]

# As torchvision: boxes drawn until one fits; the weights of ITU-R BT.601 for grey.
_ATTEMPTS = 10
_GREY = (0.299, 0.587, 0.114)
# Pictures of more than so many times the area wanted are resized one by one: products would be mostly with zeros.
# torch's own antialiasing fills outputs one pixel wide with wrong values, as of 2.13.
_LARGE = 4


def _floats(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            "Expected uint8 or floating point images of shape (batch, 3, height, width), got "
            f"{images.dtype} {tuple(images.shape)}."
        )
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _restored(images: Tensor, dtype: torch.dtype) -> Tensor:
    return (images * 255).round_().to(torch.uint8) if dtype == torch.uint8 else images.to(dtype)


def _grey(images: Tensor) -> Tensor:
    return (images * torch.tensor(_GREY)[:, None, None]).sum(dim=1, keepdim=True)


def random_crop_boxes(
    batch_size: int, image_size: tuple[int, int], scale: Range, ratio: Range, generator: Generator | None = None
) -> Tensor:
    """
    Boxes of torchvision's `RandomResizedCrop`: share of the area uniform in `scale`, width / height log-uniform in
    `ratio`, the first of ten draws that fits; else the largest box in the middle with an aspect in `ratio`. Returns
    `torch.LongTensor` of shape `(batch_size, 4)`: top, left, height, width in pixels, within the picture.
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


def crop_and_resize(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """
    Cuts box `(batch_size, 4)` (top, left, height, width) out of each picture and resizes it to `size`: bilinear with
    antialiasing (PIL's filter), each axis as one product with a matrix of triangle weights.
    """
    if math.prod(images.shape[2:]) > _LARGE * math.prod(size) and size[1] > 1:
        boxed = zip(images, boxes.tolist(), strict=True)
        crops = (_floats(image[None, :, y : y + height, x : x + width]) for image, (y, x, height, width) in boxed)
        resized = [F.interpolate(crop, size, mode="bilinear", antialias=True) for crop in crops]
        return _restored(torch.cat(resized), images.dtype)
    weights = []
    for axis in (0, 1):
        start, length = boxes[:, axis, None, None].float(), boxes[:, axis + 2, None, None].float()
        step = length / size[axis]
        centre = start + (torch.arange(size[axis])[:, None] + 0.5) * step
        pixel = torch.arange(images.shape[2 + axis]) + 0.5
        weight = (1 - (pixel - centre).abs() / step.clamp(min=1)).clamp(min=0)
        weight = weight * ((pixel > start) & (pixel < start + length))
        weights.append((weight / weight.sum(dim=-1, keepdim=True))[:, None])
    return _restored(weights[0] @ (_floats(images) @ weights[1].transpose(-1, -2)), images.dtype)


def random_resized_crop(
    images: Tensor,
    size: tuple[int, int],
    scale: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
    generator: Generator | None = None,
) -> Tensor:
    """[`crop_and_resize`] to `size` with [`random_crop_boxes`]: (B, 3, H, W) to (B, 3, *size)."""
    boxes = random_crop_boxes(len(images), (images.shape[2], images.shape[3]), scale, ratio, generator)
    return crop_and_resize(images, boxes, size)


def random_crop_with_padding(images: Tensor, padding: int, generator: Generator | None = None) -> Tensor:
    """
    Shifts each picture by up to `padding` pixels an axis; what comes in is the mirror image (a black border would get
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
    """Mirrors each picture left to right with `probability`."""
    flipped = torch.rand(len(images), 1, 1, 1, generator=generator) < probability
    return torch.where(flipped, images.flip(-1), images)


def color_jitter(
    images: Tensor, brightness: float, contrast: float, saturation: float, generator: Generator | None = None
) -> Tensor:
    """
    torchvision's `ColorJitter` without hue, in this order: each picture is blended with black, its mean grey, its grey
    picture, by a factor uniform in [max(0, 1 - strength), 1 + strength] for each, and clipped to 0..1.
    """
    result = _floats(images)
    others: tuple[Callable[[Tensor], Tensor], ...] = (torch.zeros_like, lambda x: _grey(x).mean((2, 3), True), _grey)
    for strength, other in zip((brightness, contrast, saturation), others, strict=True):
        if strength > 0:
            low = max(0.0, 1 - strength)
            factor = low + (1 + strength - low) * torch.rand(len(images), 1, 1, 1, generator=generator)
            result = torch.lerp(other(result), result, factor).clamp_(0, 1)
    return _restored(result, images.dtype)


def soft_targets(labels: Tensor, num_labels: int, label_smoothing: float = 0.0) -> Tensor:
    """Classes (B,) as probabilities (B, num_labels), `label_smoothing` spread over all (Szegedy et al. 2016, §7)."""
    return F.one_hot(labels, num_labels).float() * (1 - label_smoothing) + label_smoothing / num_labels


def _beta(alpha: float, generator: Generator | None) -> float:
    if generator is None:
        return float(torch.distributions.Beta(alpha, alpha).sample())
    # torch's distributions know the global generator only.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return _beta(alpha, None)


def mixup(images: Tensor, targets: Tensor, alpha: float, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """
    Blends each picture and its target (B, num_labels) with the one before it in the batch, one share λ ~ Beta(α, α)
    for the batch (Zhang et al. 2018, arXiv 1710.09412).
    """
    share, floats = _beta(alpha, generator), _floats(images)
    mixed = _restored(torch.lerp(floats.roll(1, 0), floats, share), images.dtype)
    return mixed, torch.lerp(targets.roll(1, 0), targets, share)


def cutmix(images: Tensor, targets: Tensor, alpha: float, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """
    Pastes a box of the picture before it into each; targets (B, num_labels) are mixed by the share that was in fact
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
    What [`FocusViTDataCollator`] does to training pictures. Written as JSON in recipes, see [`to_dict`].

    Args:
        crop (`str`, *optional*, defaults to `"random_resized"`):
            `"random_resized"`: a random box of the picture as it is, resized to the processor's size; `"pad"`: the
            processor's resize, then a random shift, as for CIFAR; `None`: the processor's resize only.
        crop_scale (pair of `float`, *optional*, defaults to (0.08, 1.0)): Share of the area a random box covers.
        crop_ratio (pair of `float`, *optional*, defaults to (3/4, 4/3)): Width over height of a random box.
        crop_padding (`int`, *optional*): Largest shift in pixels with `"pad"`; 4 when that is chosen.
        horizontal_flip (`float`, *optional*, defaults to 0.5): Probability to mirror a picture left to right.
        brightness, contrast, saturation (`float`, *optional*, default to 0): Strengths of [`color_jitter`].
        mixup_alpha, cutmix_alpha (`float`, *optional*, default to 0):
            α of [`mixup`] and [`cutmix`]; 0: never. With both, a mixed batch gets one of them by the toss of a coin.
        mix_probability (`float`, *optional*, defaults to 1.0): Probability that a batch is mixed at all.
        label_smoothing (`float`, *optional*, defaults to 0.0): Share of a target spread evenly over all labels.

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
    label_smoothing: float = 0.0

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
            setattr(self, name, tuple(pair))
        if self.crop == "pad" and self.crop_padding is None:
            self.crop_padding = 4
        padding = self.crop_padding
        if padding is not None and (not isinstance(padding, int) or isinstance(padding, bool) or padding < 1):
            raise ValueError(f"Expected crop_padding as a whole number >= 1, got {padding!r}.")
        if padding is not None and self.crop != "pad":
            raise ValueError(f"Expected crop='pad' with crop_padding={padding}, got crop={self.crop!r}.")
        for name in ("brightness", "contrast", "saturation", "mixup_alpha", "cutmix_alpha"):
            _check_number(name, getattr(self, name))
        for name in ("horizontal_flip", "mix_probability", "label_smoothing"):
            _check_number(name, getattr(self, name), 1.0)

    @property
    def makes_soft_targets(self) -> bool:
        """Whether labels become probabilities: with mixup, cutmix or label smoothing."""
        mixes = self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)
        return mixes or self.label_smoothing > 0

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


class FocusViTDataCollator:
    """
    Makes a batch of examples: pictures augmented, then cut into superpixels, rescaled and normalised by the processor.

    Without `augmentation` the pictures go through the processor and nothing else. With it they are brought to the
    processor's size by the augmentation's crop, and superpixels come from the augmented picture in 8 bits.

    Args:
        image_processor ([`FocusViTImageProcessor`]): Its options say what comes out.
        augmentation ([`AugmentationConfig`], *optional*): What is done to training pictures; leave out to evaluate.
        num_labels (`int`, *optional*): Number of classes; needed where labels become probabilities.
        image_column (`str`, *optional*, defaults to `"image"`):
            Key of the picture: PIL, array, tensor (with augmentation: of 8 bits), or undecoded
            `{"bytes": ..., "path": ...}`.
        label_column (`str`, *optional*, defaults to `"label"`):
            Key of the class, an integer. Without augmentation it may be absent from all examples.
        generator (`torch.Generator`, *optional*):
            What augmentation draws from. By default torch's global generator, which `Trainer` saves and data loaders
            seed anew for each worker; a generator given here would be copied, and so repeat itself, in each of them.

    Raises:
        ValueError: when labels shall become probabilities but `num_labels` is not given.

    Example:

    ```python
    >>> from focusvit_hf import FocusViTImageProcessor
    >>> from focusvit_hf.augmentation import AugmentationConfig, FocusViTDataCollator
    >>> from skimage.data import chelsea

    >>> collator = FocusViTDataCollator(FocusViTImageProcessor(), AugmentationConfig(cutmix_alpha=1.0), num_labels=10)
    >>> batch = collator([{"image": chelsea(), "label": 3}, {"image": chelsea(), "label": 5}])
    >>> {name: tuple(values.shape) for name, values in batch.items()}
    {'pixel_values': (2, 3, 224, 224), 'superpixel_ids': (2, 56, 56), 'labels': (2, 10)}
    ```"""

    def __init__(
        self,
        image_processor: FocusViTImageProcessor,
        augmentation: AugmentationConfig | None = None,
        num_labels: int | None = None,
        image_column: str = "image",
        label_column: str = "label",
        generator: Generator | None = None,
    ):
        if num_labels is not None and num_labels < 1:
            raise ValueError(f"Expected num_labels >= 1, got {num_labels}.")
        if augmentation is not None and augmentation.makes_soft_targets and num_labels is None:
            raise ValueError("Expected num_labels for mixup, cutmix and label smoothing, got None.")
        # A processor's call takes more options than the base class declares.
        self.image_processor: Any = image_processor
        self.augmentation = augmentation
        self.num_labels = num_labels
        self.image_column = image_column
        self.label_column = label_column
        self.generator = generator

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """
        Args:
            examples (`list[dict]`): One or more, each with a picture and a class.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values` (B, 3, H, W) float32, `superpixel_ids` (B, H / cell, W / cell)
            int64 where the processor makes them, and `labels`: (B,) int64, or (B, num_labels) float32 where they are
            probabilities.

        Raises:
            ValueError: for no examples, a missing column, a label that is no class, and pictures that cannot be used;
                the example's number in the batch, from 0, is named.
        """
        if not examples:
            raise ValueError("Expected at least one example, got none.")
        images = [self._image(index, example) for index, example in enumerate(examples)]
        config, processor = self.augmentation, self.image_processor
        if config is None and not any(self.label_column in example for example in examples):
            return dict(processor(images, return_tensors="pt"))
        labels = torch.tensor([self._label(index, example) for index, example in enumerate(examples)])
        if config is None:
            batch = processor(images, return_tensors="pt")
        else:
            pictures, labels = self._augmented(self._cropped(images, config), labels, config)
            levels = _restored(pictures, torch.uint8)
            fixed = {"do_resize": False, "do_center_crop": False, "input_data_format": "channels_first"}
            batch = processor(levels, return_tensors="pt", **fixed)
        return {**batch, "labels": labels}

    def _image(self, index: int, example: Mapping[str, Any]) -> Any:
        if self.image_column not in example:
            raise ValueError(
                f"Expected a picture in column {self.image_column!r} of example {index} of the batch, got the columns "
                f"{sorted(example)}."
            )
        image = example[self.image_column]
        if isinstance(image, (Image.Image, np.ndarray, Tensor)):
            return image
        with naming_picture(index, "could not be decoded"):
            source = image if isinstance(image, Mapping) else {}
            if source.get("bytes") is not None:
                return Image.open(io.BytesIO(source["bytes"]))
            if source.get("path") is not None:
                return Image.open(source["path"])
            raise ValueError(f"expected PIL, an array, a tensor or a dict with bytes or path, got {image!r:.80}")

    def _label(self, index: int, example: Mapping[str, Any]) -> int:
        if self.label_column not in example:
            raise ValueError(
                f"Expected a class in column {self.label_column!r} of example {index} of the batch, got the columns "
                f"{sorted(example)}."
            )
        label = example[self.label_column]
        if isinstance(label, (Tensor, np.ndarray)) and label.ndim == 0:
            label = label.item()
        if not isinstance(label, (int, np.integer)) or isinstance(label, bool):
            raise ValueError(f"Expected an integer as label of example {index} of the batch, got {label!r}.")
        if label < 0 or (self.num_labels is not None and label >= self.num_labels):
            limit = "" if self.num_labels is None else f" and < {self.num_labels}"
            raise ValueError(f"Expected a label >= 0{limit} for example {index} of the batch, got {label}.")
        return int(label)

    def _cropped(self, images: Sequence[Any], config: AugmentationConfig) -> Tensor:
        """The pictures as one batch of the processor's size, float32 in 0..1."""
        arrays = [self._array(index, image) for index, image in enumerate(images)]
        size, processor = self._target_size(), self.image_processor
        # A picture of the size wanted is left as it is, unless it would be resized and then cropped.
        twice = processor.do_resize and processor.do_center_crop
        if config.crop != "random_resized" and (twice or any(array.shape[1:] != size for array in arrays)):
            resized = processor(
                arrays, do_rescale=False, do_normalize=False, do_superpixels=False, input_data_format="channels_first"
            )
            # It gives the 8-bit levels as floats.
            arrays = [np.asarray(array).astype(np.uint8) for array in resized["pixel_values"]]
        if size is None:
            size = arrays[0].shape[1:]
            if any(array.shape[1:] != size for array in arrays):
                raise ValueError(
                    "Expected pictures of one size, or an image processor whose size or crop_size fixes height and "
                    f"width, got {sorted({array.shape[1:] for array in arrays})}."
                )
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, array in enumerate(arrays):
            groups.setdefault(array.shape, []).append(index)
        pictures = torch.empty(len(arrays), 3, *size)
        for members in groups.values():
            group = torch.from_numpy(np.stack([arrays[index] for index in members]))
            if config.crop == "random_resized":
                group = random_resized_crop(group, size, config.crop_scale, config.crop_ratio, self.generator)
            else:
                group = random_crop_with_padding(group, config.crop_padding or 0, self.generator)
            pictures[members] = _floats(group)
        return pictures

    def _array(self, index: int, image: Any) -> np.ndarray:
        """(3, height, width) uint8."""
        if isinstance(image, Image.Image):
            with naming_picture(index, "could not be decoded"):
                decode(image)
        with naming_picture(index, "cannot be used"):
            array = self.image_processor.process_image(image, do_convert_rgb=True)
            if array.dtype != np.uint8 or len(array) != 3:
                raise ValueError(
                    "expected a PIL picture or a uint8 array with 1, 3 or 4 channels to augment, got "
                    f"{array.dtype} {array.shape}"
                )
        return array

    def _target_size(self) -> tuple[int, int] | None:
        processor = self.image_processor
        size = processor.crop_size if processor.do_center_crop else processor.size if processor.do_resize else None
        height, width = (size.get("height"), size.get("width")) if size else (None, None)
        return (height, width) if height and width else None

    def _augmented(self, pictures: Tensor, labels: Tensor, config: AugmentationConfig) -> tuple[Tensor, Tensor]:
        pictures = random_horizontal_flip(pictures, config.horizontal_flip, self.generator)
        strengths = config.brightness, config.contrast, config.saturation
        pictures = color_jitter(pictures, *strengths, generator=self.generator)
        if not config.makes_soft_targets or self.num_labels is None:
            return pictures, labels
        targets = soft_targets(labels, self.num_labels, config.label_smoothing)
        coins = torch.rand(2, generator=self.generator).tolist()
        mixes = [(mix, a) for mix, a in ((mixup, config.mixup_alpha), (cutmix, config.cutmix_alpha)) if a > 0]
        if mixes and coins[0] < config.mix_probability:
            mix, alpha = mixes[int(coins[1] * len(mixes))]
            pictures, targets = mix(pictures, targets, alpha, self.generator)
        return pictures, targets
