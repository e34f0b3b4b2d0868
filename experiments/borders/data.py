"""Figures on grounds: composites of images with exact masks, of Imagenette's and of the segments people drew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from experiments.micro.data import Examples, shrunk
from focusvit_hf.training.augmentation import random_horizontal_flip, random_resized_crop


BSDS500 = Path("../shared/data/bsds500")
# Share of the image that a figure covers.
SHARES = (0.1, 0.5)
# Share of the area of an image that is enlarged to a ground: sides of a quarter to a half.
GROUNDS = (1 / 16, 1 / 4)
# The same of a ground without detail: sides of a sixteenth to an eighth.
SMOOTH_GROUNDS = (1 / 256, 1 / 64)
# Waves around the outline of a blob, and how strong the first would be; the others fall with their number.
_WAVES = torch.arange(2, 7)
_UNEVENNESS = 0.4
# Directions in which the outline of a blob is computed; all pixels that lie in one have the same radius.
_DIRECTIONS = 720
# Where the middle of a blob may lie, in shares of the side.
_MIDDLE = (0.3, 0.7)
_CHUNK = 200


@dataclass(frozen=True)
class Composites:
    """
    Images of a figure on a ground.

    Args:
        images (`torch.ByteTensor` of shape `(count, 3, height, width)`): 8-bit levels.
        masks (`torch.BoolTensor` of shape `(count, height, width)`): The figure.
        figures (`torch.LongTensor` of shape `(count,)`): Number of the image that each figure was cut from.
    """

    images: torch.Tensor
    masks: torch.Tensor
    figures: torch.Tensor

    def __len__(self) -> int:
        return len(self.figures)


def blobs(
    count: int, size: int, generator: torch.Generator, shares: tuple[float, float] = SHARES
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Blobs at random: star-shaped about a middle, the logarithm of the radius a random Fourier series of the angle.

    Args:
        count (`int`), size (`int`): How many, and the side of their images in pixels.
        generator (`torch.Generator`): What they are drawn from.
        shares (pair of `float`): Their share of the image is uniform between these, and exact to half a pixel.

    Returns:
        `torch.BoolTensor` of shape `(count, size, size)`, and the middles `(count, 2)`, y and x in pixels.
    """
    share = shares[0] + (shares[1] - shares[0]) * torch.rand(count, generator=generator)
    middles = size * (_MIDDLE[0] + (_MIDDLE[1] - _MIDDLE[0]) * torch.rand(count, 2, generator=generator))
    waves = torch.randn(2, count, len(_WAVES), generator=generator) * (_UNEVENNESS / _WAVES)
    angles = _WAVES[:, None] * torch.linspace(-torch.pi, torch.pi, _DIRECTIONS)
    radii = (waves[0] @ angles.cos() + waves[1] @ angles.sin()).exp()
    y, x = (torch.arange(size) + 0.5 - middles[..., None]).unbind(dim=1)
    y, x = y[:, :, None], x[:, None, :]
    directions = ((torch.atan2(y, x) / torch.pi + 1) * ((_DIRECTIONS - 1) / 2)).round().long()
    distances = torch.hypot(y, x).flatten(1) / radii.gather(1, directions.flatten(1))
    pixels = (share * size**2).round().long().tolist()
    limits = torch.stack([row.kthvalue(number).values for row, number in zip(distances, pixels, strict=True)])
    return (distances <= limits[:, None]).view(count, size, size), middles


def compose(
    figures: torch.Tensor,
    masks: torch.Tensor,
    others: torch.Tensor,
    generator: torch.Generator,
    grounds: tuple[float, float] = GROUNDS,
) -> torch.Tensor:
    """
    Figures on the enlarged patches of other images.

    Args:
        figures (`torch.ByteTensor` of shape `(count, 3, size, size)`), masks (`torch.BoolTensor`): What is cut out.
        others (`torch.ByteTensor` like `figures`): A random square of each is the ground.
        generator (`torch.Generator`): What the squares are drawn from.
        grounds (pair of `float`): Share of their image is uniform between these.

    Returns:
        `torch.ByteTensor` of shape `(count, 3, size, size)`.
    """
    size = (figures.shape[2], figures.shape[3])
    return torch.where(masks[:, None], figures, random_resized_crop(others, size, grounds, (1.0, 1.0), generator))


def composites(
    examples: Examples,
    figures: torch.Tensor,
    generator: torch.Generator,
    shares: tuple[float, float] = SHARES,
    grounds: tuple[float, float] = GROUNDS,
    middle: bool = False,
) -> Composites:
    """
    A blob cut out of each of some images, on the enlarged patch of any other image.

    Args:
        examples ([`Examples`]): Square ones, two at least.
        figures (`torch.LongTensor` of shape `(count,)`): Numbers of the images to cut from; half are mirrored.
        generator (`torch.Generator`): What all is drawn from.
        shares (pair of `float`), grounds (pair of `float`): See [`blobs`] and [`compose`].
        middle (`bool`, *optional*, defaults to `False`):
            Whether the middle of the image is moved to the middle of the blob, so that its object is in there.

    Returns:
        [`Composites`].

    Raises:
        ValueError: when the images are fewer than two, or no squares.
    """
    size = examples.images.shape[-1]
    if len(examples) < 2 or examples.images.shape[-2] != size:
        raise ValueError(f"Expected two or more square images, got {tuple(examples.images.shape)}.")
    masks, middles = blobs(len(figures), size, generator, shares)
    others = (figures + torch.randint(1, len(examples), (len(figures),), generator=generator)) % len(examples)
    cut = random_horizontal_flip(examples.images[figures], 0.5, generator)
    if middle:
        shifts = (middles - size / 2).round().long().tolist()
        cut = torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(cut, shifts, strict=True)])
    return Composites(compose(cut, masks, examples.images[others], generator, grounds), masks, figures)


def training_batches(examples: Examples, batch_size: int, generator: torch.Generator) -> Iterator[Composites]:
    """One epoch: a figure from each image, but for the last ones that fill no batch."""
    for figures in torch.randperm(len(examples), generator=generator).split(batch_size):
        if len(figures) == batch_size:
            yield composites(examples, figures, generator)


def fixed_composites(examples: Examples, seed: int = 0, **options: Any) -> Composites:
    """One composite for each image, always the same ones; `options` as for [`composites`]."""
    generator = torch.Generator().manual_seed(seed)
    chunks = torch.arange(len(examples)).split(_CHUNK)
    parts = [composites(examples, chunk, generator, **options) for chunk in chunks]
    fields = ([getattr(part, name) for part in parts] for name in ("images", "masks", "figures"))
    return Composites(*(torch.cat(field) for field in fields))


def human_segments(folder: Path, size: int, split: str = "test") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    What people take for one thing in the photographs of BSDS500 (Arbelaez et al. 2011), all squashed to squares.

    Args:
        folder (`Path`): The data set; columns `image` and `segmentations`, of which the first is taken.
        size (`int`): Side in pixels.
        split (`str`, *optional*, defaults to `"test"`): As in the files.

    Returns:
        The photographs `(count, 3, size, size)` uint8; the segments that cover [`SHARES`] of theirs,
        `(segments, size, size)` bool; and the number of the photograph of each, `(segments,)`.
    """
    rows = datasets.load_dataset("parquet", data_dir=str(folder), split=split)
    images, masks, owners = [], [], []
    for number, row in enumerate(rows):
        images.append(shrunk(row["image"], size))
        numbers = row["segmentations"][0].resize((size, size), Image.Resampling.NEAREST)
        labels = np.asarray(numbers)
        for label, pixels in zip(*np.unique(labels, return_counts=True), strict=True):
            if SHARES[0] <= pixels / size**2 <= SHARES[1]:
                masks.append(labels == label)
                owners.append(number)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks)), torch.tensor(owners)


def segment_composites(folder: Path, size: int, seed: int = 0) -> Composites:
    """Each of [`human_segments`] on the enlarged patch of another photograph: outlines of things, never trained on."""
    images, masks, owners = human_segments(folder, size)
    generator = torch.Generator().manual_seed(seed)
    others = (owners + torch.randint(1, len(images), (len(owners),), generator=generator)) % len(images)
    return Composites(compose(images[owners], masks, images[others], generator), masks, owners)


def shares_of_cells(masks: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
    """Share of each cell that lies in the figure: `(count, height, width)` bool to `(count, rows, columns)`."""
    height, width = masks.shape[1:]
    if height % cells[0] or width % cells[1]:
        raise ValueError(f"Expected cells that divide {height} x {width} pixels, got {cells}.")
    return F.avg_pool2d(masks[:, None].float(), (height // cells[0], width // cells[1]))[:, 0]
