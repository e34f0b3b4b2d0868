"""
New views at every step, most of them two images mixed, and what the teacher answers for them: no bank is kept.

The pupils of the bank learned its 16 views of 5,000 images by heart. Here no view comes twice, and mixed images lie
between the classes, where the teacher still has an answer (Beyer et al. 2022, arXiv 2106.05237).
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from experiments.teacher.bank import JITTER, Lesson
from experiments.teacher.efficientnet import SIZE, EfficientNetLite0, fold_batch_norms
from focusvit_hf.training.augmentation import (
    AugmentationConfig,
    color_jitter,
    random_horizontal_flip,
    random_mix,
    random_resized_crop,
)


CROP_SCALE = (0.2, 1.0)


def mixed_views(
    images: torch.Tensor,
    scale: tuple[float, float],
    jitter: tuple[float, float, float],
    mix: AugmentationConfig,
    side: int = SIZE,
) -> tuple[torch.Tensor, bool]:
    """New views `(batch_size, 3, side, side)` in 0..1 of 8-bit images, and whether the batch was mixed."""
    views = random_resized_crop(images, (side, side), scale, dtype=torch.float32)
    views = color_jitter(random_horizontal_flip(views), *jitter)
    # A place in the batch stands for a class, so that the mix tells whether it took place.
    places = torch.eye(len(images))
    views, shares = random_mix(views, places, mix)
    return views, not torch.equal(shares, places)


class MixedTeaching:
    """
    The teacher, asked for every view as it is drawn.

    Args:
        images (`torch.ByteTensor` of shape `(num_images, 3, 224, 224)`): All training images.
        mix (`float`): Share of the batches that are mixed, one half by mixup, one by cutmix, each with α = 1.
        teacher_size (`int`): Side in pixels of what the teacher sees. Of 500 training images it tells 99.0 % at 224
            px, 98.4 at 192, 97.4 at 160, 93.8 at 128.
    """

    def __init__(self, images: torch.Tensor, mix: float, teacher_size: int = SIZE):
        self.images = images
        self.teacher = EfficientNetLite0()
        self.teacher_size = teacher_size
        self._asked = deepcopy(self.teacher)
        fold_batch_norms(self._asked)
        self._asked.to(torch.bfloat16)
        self._mix = AugmentationConfig(mixup_alpha=1.0, cutmix_alpha=1.0, mix_probability=mix)

    @torch.no_grad()
    def lesson(self, indices: torch.Tensor, labels: torch.Tensor, epoch: int, size: int) -> Lesson:
        """New views of the images numbered `indices`, drawn by torch's generator, whatever the epoch."""
        largest = max(size, self.teacher_size)
        views, mixed = mixed_views(self.images[indices], CROP_SCALE, JITTER, self._mix, largest)
        pixels = views * 2 - 1
        seen, own = (
            pixels
            if side == largest
            else nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
            for side in (self.teacher_size, size)
        )
        logits = self._asked(seen.to(torch.bfloat16)).float()
        return Lesson(own, logits, None if mixed else labels)

    def keep(self) -> None:
        """Nothing is kept of an epoch: no view comes again."""
