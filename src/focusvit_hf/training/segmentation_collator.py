"""Batches of images with masks, augmented together: what moves moves both, and no filter touches a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..image_processing_focusvit import FocusViTImageProcessor
from ..image_sizes import channels_first, fixed_size
from ..images import decode_image, naming_image
from ..segmentation_maps import IGNORED, decode_mask, reduced_labels
from .augmentation import AugmentationConfig, color_jitter, crop_and_resize, random_crop_boxes


# Boxes drawn for one image, of which the first that holds a pixel that counts is taken.
_ATTEMPTS = 10


def crop_mask(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """The box (top, left, height, width) of a mask `(height, width)`, resized to the nearest pixel."""
    places = []
    for axis in (0, 1):
        step = float(box[axis + 2]) / size[axis]
        places.append(int(box[axis]) + ((torch.arange(size[axis]) + 0.5) * step).long())
    return mask[places[0]][:, places[1]]


class SegmentationDataCollator:
    """
    Makes batches of images with masks.

    Without `augmentation` it is the image processor's work. With it each image and its mask go through the same crop
    and flip; colours change in the image alone.

    Args:
        image_processor ([`FocusViTImageProcessor`]): With a fixed size where there is augmentation.
        augmentation ([`AugmentationConfig`], *optional*):
            With `crop` `"random_resized"` or None, and neither mixup nor cutmix, which mix labels.
        num_labels (`int`): Number of classes.
        image_column, label_column (`str`, *optional*, default to `"image"` and `"mask"`): Keys of an example.

    Raises:
        ValueError: on an augmentation that is none for masks, and an image processor without a fixed size.
    """

    def __init__(
        self,
        image_processor: FocusViTImageProcessor,
        augmentation: AugmentationConfig | None,
        num_labels: int,
        image_column: str = "image",
        label_column: str = "mask",
    ):
        if augmentation is not None:
            if augmentation.makes_soft_targets:
                raise ValueError("Expected no mixup and no cutmix for masks, got mixup_alpha or cutmix_alpha above 0.")
            if augmentation.crop == "pad":
                raise ValueError("Expected crop 'random_resized' or None for masks, got 'pad'.")
            if fixed_size(image_processor) is None or image_processor.do_center_crop:
                raise ValueError("Expected an image processor whose size alone fixes height and width, got another.")
        self.image_processor: Any = image_processor
        self.augmentation = augmentation
        self.num_labels = num_labels
        self.image_column = image_column
        self.label_column = label_column

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """
        Args:
            examples (`list[dict]`): One or more, each with an image and a mask.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values`, `superpixel_ids` and `labels` `(batch_size, height, width)`.

        Raises:
            ValueError: for no examples, a missing column, masks that do not fit their image or the classes, and where
                no pixel of the batch counts; the example's number in the batch, from 0, is named.
        """
        if not examples:
            raise ValueError("Expected at least one example, got none.")
        images, masks = zip(*(self._pair(index, example) for index, example in enumerate(examples)), strict=True)
        if self.augmentation is None:
            batch = self.image_processor(list(images), segmentation_maps=list(masks), return_tensors="pt")
        else:
            levels, labels = self._augmented(images, masks, self.augmentation)
            batch = {**self.image_processor.process_levels(levels), "labels": labels}
        if not (batch["labels"] != IGNORED).any():
            raise ValueError(f"Expected pixels that count in the masks of the batch, got {IGNORED} everywhere.")
        return dict(batch)

    def _pair(self, index: int, example: Mapping[str, Any]) -> tuple[Any, np.ndarray]:
        for column in (self.image_column, self.label_column):
            if example.get(column) is None:
                raise ValueError(
                    f"Expected an image and a mask in the columns {self.image_column!r} and {self.label_column!r} of "
                    f"example {index} of the batch, got {sorted(key for key in example if example[key] is not None)}."
                )
        with naming_image(index):
            image = decode_image(example[self.image_column])
            mask = decode_mask(example[self.label_column])
            height, width = image.size[::-1] if isinstance(image, Image.Image) else image.shape[1:]
            if mask.shape != (height, width):
                raise ValueError(
                    f"expected a mask of the image's size {height} x {width}, got {mask.shape[0]} x {mask.shape[1]}"
                )
            require_classes(self._reduced(mask), self.num_labels)
        return image, mask

    def _reduced(self, mask: np.ndarray) -> np.ndarray:
        return reduced_labels(mask) if self.image_processor.do_reduce_labels else mask

    def _augmented(
        self, images: Sequence[Any], masks: Sequence[np.ndarray], config: AugmentationConfig
    ) -> tuple[Tensor, Tensor]:
        """Levels `(batch_size, 3, height, width)` in 0..255, float32, and labels."""
        size = fixed_size(self.image_processor)
        assert size is not None
        levels, labels = torch.empty(len(images), 3, *size), torch.empty(len(images), *size, dtype=torch.int64)
        for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
            pixels = torch.from_numpy(np.array(channels_first(image) if isinstance(image, Image.Image) else image))
            numbers = torch.from_numpy(self._reduced(mask).astype(np.int64))
            levels[index], labels[index] = self._cropped(pixels, numbers, size, config)
        flipped = torch.rand(len(images), 1, 1) < config.horizontal_flip
        labels = torch.where(flipped, labels.flip(-1), labels)
        levels = torch.where(flipped[:, None], levels.flip(-1), levels)
        levels = color_jitter(levels, config.brightness, config.contrast, config.saturation)
        return levels.mul_(255).round_(), labels

    def _cropped(
        self, pixels: Tensor, labels: Tensor, size: tuple[int, int], config: AugmentationConfig
    ) -> tuple[Tensor, Tensor]:
        """An image in 0..1 and its labels, of the size wanted."""
        height, width = labels.shape
        whole = torch.tensor([[0, 0, height, width]])
        box, cropped = whole, labels
        for _ in range(_ATTEMPTS if config.crop is not None else 0):
            box = random_crop_boxes(1, (height, width), config.crop_scale, config.crop_ratio)
            cropped = crop_mask(labels, box[0], size)
            if (cropped != IGNORED).any():
                break
        else:
            box, cropped = whole, crop_mask(labels, whole[0], size)
        return crop_and_resize(pixels[None], box, size, dtype=torch.float32)[0], cropped


def require_classes(labels: np.ndarray, num_labels: int) -> None:
    """ValueError for labels beyond the classes, but for those that are ignored."""
    counted = labels[labels != IGNORED]
    if counted.size and int(counted.max()) >= num_labels:
        raise ValueError(
            f"expected labels in 0..{num_labels - 1}, or {IGNORED} where they do not count, got {int(counted.max())}"
        )
