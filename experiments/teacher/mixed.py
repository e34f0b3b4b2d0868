"""
New views at every step, most of them two images mixed, and what the teacher answers for them: no bank is kept.

The pupils of the bank learned its 16 views of 5,000 images by heart. Here no view comes twice, and mixed images lie
between the classes, where the teacher still has an answer (Beyer et al. 2022, arXiv 2106.05237).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn

from experiments.robustness.corruptions import rotated
from experiments.teacher.bank import Lesson
from experiments.teacher.efficientnet import SIZE, EfficientNetLite0, fold_batch_norms
from experiments.teacher.recipe import Recipe
from focusvit_hf.training.augmentation import (
    AugmentationConfig,
    color_jitter,
    random_horizontal_flip,
    random_mix,
    random_resized_crop,
)


def mixed_views(
    images: torch.Tensor,
    scale: Sequence[float],
    jitter: Sequence[float],
    mix: AugmentationConfig,
    side: int = SIZE,
    rotation: float = 0.0,
) -> tuple[torch.Tensor, bool]:
    """
    New views `(batch_size, 3, side, side)` in 0..1 of 8-bit images, and whether the batch was mixed.

    Args:
        images (`torch.ByteTensor` of shape `(batch_size, 3, height, width)`): Whole images.
        scale (`float`, `float`): Least and largest share of an image that a view shows.
        jitter (three of `float`): Strength of brightness, contrast and saturation, see `color_jitter`.
        mix (`AugmentationConfig`): How images are mixed.
        side (`int`): Of the views, in pixels.
        rotation (`float`): Degrees by which a view is turned at most, either way.
    """
    least, largest = scale
    brightness, contrast, saturation = jitter
    views = random_resized_crop(images, (side, side), (least, largest), dtype=torch.float32)
    if rotation:
        views = rotated(views, (torch.rand(len(views)) * 2 - 1) * math.radians(rotation))
    views = color_jitter(random_horizontal_flip(views), brightness, contrast, saturation)
    # A place in the batch stands for a class, so that the mix tells whether it took place.
    places = torch.eye(len(images))
    views, shares = random_mix(views, places, mix)
    return views, not torch.equal(shares, places)


class MixedTeaching:
    """
    The teacher, asked for every view as it is drawn.

    Args:
        images (`torch.ByteTensor` of shape `(num_images, 3, 224, 224)`): All training images.
        recipe (`Recipe`): Its `mix`, `crop_scale`, `jitter`, `rotation` and `teacher_size` are used. Of 500 training
            images the teacher tells 99.0 % at 224 px, 98.4 at 192, 97.4 at 160, 93.8 at 128.
    """

    def __init__(self, images: torch.Tensor, recipe: Recipe):
        self.images = images
        self.recipe = recipe
        self.teacher = EfficientNetLite0()
        self._asked = deepcopy(self.teacher)
        fold_batch_norms(self._asked)
        self._asked.to(torch.bfloat16)
        self._mix = AugmentationConfig(mixup_alpha=1.0, cutmix_alpha=1.0, mix_probability=recipe.mix)

    @torch.no_grad()
    def lesson(self, indices: torch.Tensor, labels: torch.Tensor, epoch: int, size: int) -> Lesson:
        """New views of the images numbered `indices`, drawn by torch's generator, whatever the epoch."""
        recipe = self.recipe
        largest = max(size, recipe.teacher_size)
        views, mixed = mixed_views(
            self.images[indices], recipe.crop_scale, recipe.jitter, self._mix, largest, recipe.rotation
        )
        pixels = views * 2 - 1
        seen, own = (
            pixels
            if side == largest
            else nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
            for side in (recipe.teacher_size, size)
        )
        logits = self._asked(seen.to(torch.bfloat16)).float()
        return Lesson(own, logits, None if mixed else labels)

    def keep(self) -> None:
        """Nothing is kept of an epoch: no view comes again."""
