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
from .augmentation import (
    AugmentationConfig,
    color_jitter,
    crop_mask,
    crop_with_masks,
    random_crop_boxes,
    random_horizontal_flip,
)
from .selection import SelectionColumn, masks_of, prepared_levels


# Boxes drawn for one image, of which the first that holds a pixel that counts is taken.
_ATTEMPTS = 10


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
        selection ([`~selection.SelectionColumn`], *optional*): Where `selection_masks` come from.
        selection_from_labels (`bool`, *optional*, defaults to `False`):
            Whether `selection_masks` are the labelled pixels of other classes than 0, or of all classes where the
            image processor reduces labels.

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
        selection: SelectionColumn | None = None,
        selection_from_labels: bool = False,
    ):
        if selection is not None and selection_from_labels:
            raise ValueError("Expected a column of selection masks or selection_from_labels, got both.")
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
        self.selection = selection
        self.selection_from_labels = selection_from_labels

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """
        Args:
            examples (`list[dict]`): One or more, each with an image and a mask.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values`, `superpixel_ids`, `labels` `(batch_size, height, width)`, and
            `selection_masks` of that shape where there are any.

        Raises:
            ValueError: for no examples, a missing column, masks that do not fit their image or the classes, and where
                no pixel of the batch counts; the example's number in the batch, from 0, is named.
        """
        if not examples:
            raise ValueError("Expected at least one example, got none.")
        pairs = [self._pair(index, example) for index, example in enumerate(examples)]
        images, masks = zip(*pairs, strict=True)
        selected = None
        if self.selection is not None:
            selected = self.selection.levels_of_batch(examples, [mask.shape for mask in masks])
        if self.augmentation is None:
            batch = dict(self.image_processor(list(images), segmentation_maps=list(masks), return_tensors="pt"))
            if selected is not None:
                batch["selection_masks"] = masks_of(prepared_levels(selected, self.image_processor))
        else:
            levels, *others = self._augmented(images, masks, selected, self.augmentation)
            names = ("labels", "selection_masks")[: len(others)]
            batch = {**self.image_processor.process_levels(levels), **dict(zip(names, others, strict=True))}
        if self.selection_from_labels:
            background = 0 if not self.image_processor.do_reduce_labels else IGNORED
            batch["selection_masks"] = ((batch["labels"] != IGNORED) & (batch["labels"] != background)).float()
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
        self,
        images: Sequence[Any],
        masks: Sequence[np.ndarray],
        selected: Sequence[np.ndarray] | None,
        config: AugmentationConfig,
    ) -> list[Tensor]:
        """Levels `(batch_size, 3, height, width)` in 0..255, labels, and where something is selected its masks."""
        size = fixed_size(self.image_processor)
        assert size is not None
        whole = torch.empty(len(images), 4 if selected is None else 5, *size)
        for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
            pixels = torch.from_numpy(np.array(channels_first(image) if isinstance(image, Image.Image) else image))
            maps = [self._reduced(mask), *([] if selected is None else [selected[index]])]
            numbers = torch.from_numpy(np.stack(maps).astype(np.int64))
            whole[index] = crop_with_masks(pixels[None], numbers[None], self._box(numbers[0], size, config), size)[0]
        whole = random_horizontal_flip(whole, config.horizontal_flip)
        levels = color_jitter(whole[:, :3], config.brightness, config.contrast, config.saturation)
        # Numbers of classes are whole and far below 2^24, so that float32 has them exactly.
        return [levels.mul_(255).round_(), whole[:, 3].long(), *(whole[:, 4:] / 255).unbind(1)]

    def _box(self, labels: Tensor, size: tuple[int, int], config: AugmentationConfig) -> Tensor:
        """What is cut out, `(1, 4)`: the first box drawn in which a pixel counts, else the whole image."""
        height, width = labels.shape
        for _ in range(_ATTEMPTS if config.crop is not None else 0):
            box = random_crop_boxes(1, (height, width), config.crop_scale, config.crop_ratio)
            if (crop_mask(labels, box[0], size) != IGNORED).any():
                return box
        return torch.tensor([[0, 0, height, width]])


def require_classes(labels: np.ndarray, num_labels: int) -> None:
    """ValueError for labels beyond the classes, but for those that are ignored."""
    counted = labels[labels != IGNORED]
    if counted.size and int(counted.max()) >= num_labels:
        raise ValueError(
            f"expected labels in 0..{num_labels - 1}, or {IGNORED} where they do not count, got {int(counted.max())}"
        )
