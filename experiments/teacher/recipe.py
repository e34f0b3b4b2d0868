"""How a pupil of the teacher is trained: the fields of a recipe, and its learning rate."""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, dataclass, field, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

from experiments.teacher.efficientnet import SIZE
from focusvit_hf.utils.files import read_json


# Fields that mean something only where every view is drawn anew.
_OF_NEW_VIEWS = {"mix", "crop_scale", "jitter", "rotation", "teacher_size", "unlabelled"}


def _plain(recipe: Recipe, item: Field[Any]) -> bool:
    """Whether a field has its default."""
    factory = item.default_factory
    return bool(getattr(recipe, item.name) == (item.default if factory is MISSING else factory()))


@dataclass(frozen=True)
class Recipe:
    """
    How a pupil is trained.

    Args:
        config (`dict`): Fields of `FocusViTConfig`; none for a peer.
        stages (list of pairs of `int`): (side of the images in pixels, epochs), one after the other.
        batch_size, learning_rate, weight_decay, warmup_epochs, ema_decay, seed: Of AdamW, its cosine and the average.
        views (`int`): Views of each image in the bank; epoch e sees view e mod views. 0: every view is a new one.
        mix (`float`): Share of the batches that are mixed where every view is new, one half by mixup, one by cutmix.
        crop_scale, jitter, rotation: Of new views, see `mixed.mixed_views`.
        teacher_size (`int`): Side in pixels of what the teacher sees of new views.
        num_superpixels (list of `int`): What K is drawn from for each batch; empty: the configuration's own.
        label, logits, thousand, guidance (`float`): Shares of the four losses, see the module.
        temperature (`float`): Of the ten logits; `thousand_temperature` of the 1,000.
        guided_layer (`int`): Whose tokens the map guides, counted from 1.
        unlabelled (list of `str`): More images without labels, where every view is new: folders beside the data set's,
            each with its split, such as "ecssd/train". An epoch has as many views as without them.
        peer (`str`): A subject of `focusvit benchmark`, such as ResNet-18, that learns in the place of a FocusViT.
    """

    config: dict[str, Any]
    stages: list[list[int]]
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 3.0
    ema_decay: float = 0.998
    seed: int = 42
    views: int = 16
    mix: float = 0.0
    crop_scale: list[float] = field(default_factory=lambda: [0.2, 1.0])
    jitter: list[float] = field(default_factory=lambda: [0.3, 0.3, 0.3])
    rotation: float = 0.0
    teacher_size: int = SIZE
    num_superpixels: list[int] = field(default_factory=list)
    label: float = 0.2
    logits: float = 0.3
    thousand: float = 0.5
    guidance: float = 2.0
    temperature: float = 3.0
    thousand_temperature: float = 2.0
    guided_layer: int = 9
    unlabelled: list[str] = field(default_factory=list)
    peer: str = ""

    @classmethod
    def read(cls, path: Path, **changes: Any) -> Recipe:
        """From JSON; ValueError for a key that is none."""
        options = {**read_json(path), **changes}
        unknown = sorted(options.keys() - {item.name for item in fields(cls)})
        if unknown:
            raise ValueError(f"expected fields of a recipe in {path}, got {unknown}")
        return cls(**options)

    def __post_init__(self) -> None:
        changed = [item.name for item in fields(self) if item.name in _OF_NEW_VIEWS and not _plain(self, item)]
        if self.views and changed:
            raise ValueError(f"expected views = 0 with {', '.join(changed)}, got a bank of {self.views} views")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"expected crop_scale as two shares 0 < least <= largest <= 1, got {self.crop_scale}")
        if len(self.jitter) != 3:
            raise ValueError(f"expected jitter for brightness, contrast and saturation, got {self.jitter}")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"expected rotation of 0 to 180 degrees, got {self.rotation}")
        odd = [name for name in self.unlabelled if name.count("/") != 1]
        if odd:
            raise ValueError(f"expected unlabelled images as folder/split, such as ecssd/train, got {odd}")
        if not self.views and self.guidance:
            raise ValueError(f"expected guidance = 0 with views = 0, whose maps are not kept, got {self.guidance}")
        if self.peer and (self.config or self.guidance or self.num_superpixels):
            raise ValueError(
                f"expected no config, guidance = 0 and no num_superpixels for the peer {self.peer}, got "
                f"{self.config}, {self.guidance} and {self.num_superpixels}"
            )

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(epochs for _, epochs in self.stages)

    def size(self, epoch: int) -> int:
        """Side of the images of an epoch, counted from 0."""
        ends = accumulate(epochs for _, epochs in self.stages)
        return next(size for (size, _), end in zip(self.stages, ends, strict=True) if epoch < end)


def warmed_cosine(progress: float, warmup: float, length: float) -> float:
    """A linear warm-up from 0 to 1, then half a cosine to 0, after `progress` of `length` epochs."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (length - warmup)))


def rate(recipe: Recipe, progress: float) -> float:
    """The learning rate after `progress` epochs."""
    return recipe.learning_rate * warmed_cosine(progress, recipe.warmup_epochs, recipe.epochs)
