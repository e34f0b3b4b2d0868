"""
The teacher's answers for augmented views of Imagenette's training images, made once and shared by its pupils.

    python -m experiments.teacher.bank --bank runs/teacher-bank --views 16

A view is a random box of the image, mirrored, with other colours; it hangs on the seed, the image and its number
alone, and not on the resolution it is drawn at. An answer is 1,000 logits and, for each of 7 × 7 places, the teacher's
1,280 channels on their 64 main axes (float16, 8 kB a view). Tokens of 32 × 32 pixels at 224 px, and of 16 × 16 at
112 px, stand at these very places.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save

from experiments.micro.data import DATA, load_examples
from experiments.micro.processes import keep_heap
from experiments.teacher.efficientnet import MAP_SHAPE, NAME, SIZE, EfficientNetLite0
from focusvit_hf.training.augmentation import color_jitter, crop_and_resize, random_crop_boxes, random_horizontal_flip
from focusvit_hf.training.teacher_bank import TeacherBank
from focusvit_hf.utils.files import write_whole


AXES_FILE = "axes.safetensors"
NUM_AXES = 64
NUM_LOGITS = 1000
PLACES = MAP_SHAPE[1] * MAP_SHAPE[2]
WIDTH = NUM_LOGITS + PLACES * NUM_AXES
CROP = {"scale": (0.25, 1.0), "ratio": (3 / 4, 4 / 3)}
JITTER = (0.3, 0.3, 0.3)
SEED = 0
# The label of an image that has none.
UNLABELLED = -1


def draw_views(images: torch.Tensor, indices: Sequence[int], views: Sequence[int], size: int) -> torch.Tensor:
    """
    Augmented views of images.

    Args:
        images (`torch.ByteTensor` of shape `(batch_size, 3, height, width)`): 8-bit levels.
        indices (sequence of `int`), views (sequence of `int`): The number of each image and of the view of it.
        size (`int`): Side of the views in pixels.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, 3, size, size)`: The same view at every size, in -1..1.
    """
    result = torch.empty(len(images), 3, size, size)
    for place, (index, view) in enumerate(zip(indices, views, strict=True)):
        seed = np.random.SeedSequence([SEED, index, view]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed >> 1))
        image = images[place : place + 1]
        box = random_crop_boxes(1, (image.shape[2], image.shape[3]), generator=generator, **CROP)
        crop = crop_and_resize(image, box, (size, size)).float() / 255
        crop = random_horizontal_flip(crop, 0.5, generator)
        result[place] = color_jitter(crop, *JITTER, generator=generator)[0]
    return result.mul_(2).sub_(1)


class Lesson(NamedTuple):
    """
    A batch of views and what a pupil learns of them.

    Args:
        pixels (`torch.FloatTensor` of shape `(batch_size, 3, size, size)`): In -1..1.
        logits (`torch.FloatTensor` of shape `(batch_size, 1000)`): The teacher's.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): None where images are mixed; `UNLABELLED` for
            an image that has none.
        places (`torch.FloatTensor` of shape `(batch_size, 49, 64)`, *optional*):
            The teacher's map on its main axes, where it is kept.
    """

    pixels: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor | None
    places: torch.Tensor | None = None


class Teaching:
    """
    The teacher with its bank.

    Args:
        folder (`Path`): The bank's.
        images (`torch.ByteTensor` of shape `(num_images, 3, 224, 224)`): All training images.
        num_views (`int`): Views of each.
    """

    def __init__(self, folder: Path, images: torch.Tensor, num_views: int):
        header = {"teacher": NAME, "axes": NUM_AXES, "crop": CROP["scale"], "jitter": JITTER, "seed": SEED}
        header = {name: list(value) if isinstance(value, tuple) else value for name, value in header.items()}
        self.images, self.num_views = images, num_views
        self.bank = TeacherBank(folder / "answers", header, len(images), num_views, WIDTH)
        self._teacher: EfficientNetLite0 | None = None
        axes = folder / AXES_FILE
        if not axes.is_file():
            write_whole(axes, save(self._find_axes()))
        self.axes = load_file(axes)

    @property
    def teacher(self) -> EfficientNetLite0:
        """Loaded when it is asked for the first time: a bank that is full needs none."""
        if self._teacher is None:
            self._teacher = EfficientNetLite0()
        return self._teacher

    @torch.no_grad()
    def _maps(self, indices: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        drawn = draw_views(self.images[indices], indices.tolist(), views.tolist(), SIZE)
        with torch.autocast("cpu", torch.bfloat16):
            return self.teacher.feature_map(drawn).float()

    def _find_axes(self) -> dict[str, torch.Tensor]:
        """Mean, main axes and overall scale of the channels, from the first view of 256 images over all places."""
        indices = torch.linspace(0, len(self.images) - 1, 256).long()
        parts = [
            self._maps(part, torch.zeros_like(part)).permute(0, 2, 3, 1).flatten(0, 2) for part in indices.split(64)
        ]
        values = torch.cat(parts)
        mean = values.mean(dim=0)
        variances, axes = torch.linalg.eigh((values - mean).T @ (values - mean) / len(values))
        kept = variances[-NUM_AXES:].sum()
        print(f"{NUM_AXES} axes hold {kept / variances.sum():.3f} of the variance", flush=True)
        # Divided so that a component varies by 1 on average: the main axes more, the others less.
        return {"mean": mean, "axes": (axes[:, -NUM_AXES:] / (kept / NUM_AXES).sqrt()).contiguous()}

    def answers(self, indices: torch.Tensor, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(batch_size, 1000)` and the map on its main axes `(batch_size, 49, 64)` for a batch of views."""

        @torch.no_grad()
        def told(absent: torch.Tensor) -> torch.Tensor:
            maps = self._maps(indices[absent], views[absent])
            places = (maps.flatten(2).transpose(1, 2) - self.axes["mean"]) @ self.axes["axes"]
            return torch.cat((self.teacher.classify(maps), places.flatten(1)), dim=1)

        answers = self.bank.answers(indices, views, told)
        return answers[:, :NUM_LOGITS], answers[:, NUM_LOGITS:].unflatten(1, (PLACES, NUM_AXES))

    def lesson(self, indices: torch.Tensor, labels: torch.Tensor, epoch: int, size: int) -> Lesson:
        """The view of an epoch, counted from 0, of the images numbered `indices`, and what is told of it."""
        views = torch.full_like(indices, epoch % self.num_views)
        logits, places = self.answers(indices, views)
        return Lesson(draw_views(self.images[indices], indices.tolist(), views.tolist(), size), logits, labels, places)

    def keep(self) -> None:
        """Brings the answers of an epoch to the disk."""
        self.bank.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Fills the bank, view by view; what is there is not asked again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, required=True, help="folder of the bank")
    parser.add_argument("--views", type=int, default=16, help="views of each image")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data set")
    args = parser.parse_args(argv)
    examples = load_examples(args.data, "train", SIZE)
    teaching = Teaching(args.bank, examples.images, args.views)
    begin = time.time()
    for view in range(args.views):
        for indices in torch.arange(len(examples)).split(100):
            teaching.answers(indices, torch.full_like(indices, view))
        teaching.bank.flush()
        print(f"{view + 1} of {args.views} views, {time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    keep_heap()
    torch.set_num_threads(1)
    main()
