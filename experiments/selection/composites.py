"""Small images on large grounds, of which it is known what matters: made for each batch, or once to measure on."""

from __future__ import annotations

import torch
from torch import nn

from experiments.micro.data import Examples
from focusvit_hf.training.augmentation import random_resized_crop


# How long the pasted image's side is, as a share of the whole, and how large a part of another image its ground is.
SIDES = (0.2, 0.55)
_GROUND = (1 / 256, 1 / 16)


def composites(
    examples: Examples, which: torch.Tensor, size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Images pasted at a random place on a ground: of one colour, or a small part of another image, enlarged.

    Args:
        examples ([`Examples`]): Where images and grounds come from.
        which (`torch.LongTensor` of shape `(count,)`): The images that are pasted.
        size (`int`): Side of the whole in pixels.
        generator (`torch.Generator`): What everything is drawn from.

    Returns:
        8-bit levels `(count, 3, size, size)`, and masks `(count, size, size)` float32, 1 where the image is.
    """
    count = len(which)
    others = examples.images[(which + torch.randint(1, len(examples), (count,), generator=generator)) % len(examples)]
    images = random_resized_crop(others, (size, size), _GROUND, (1.0, 1.0), generator)
    plain = torch.rand(count, generator=generator) < 0.5
    colours = torch.randint(0, 256, (count, 3, 1, 1), generator=generator).to(images.dtype)
    images = torch.where(plain[:, None, None, None], colours, images).contiguous()
    masks = torch.zeros(count, size, size)
    shares = SIDES[0] + (SIDES[1] - SIDES[0]) * torch.rand(count, generator=generator)
    sides = (size * shares).long()
    corners = (torch.rand(count, 2, generator=generator) * (size - sides + 1)[:, None]).long()
    for row, (number, side) in enumerate(zip(which.tolist(), sides.tolist(), strict=True)):
        top, left = corners[row].tolist()
        pasted = examples.images[number : number + 1].float()
        small = nn.functional.interpolate(pasted, (side, side), mode="bilinear", antialias=True)
        images[row, :, top : top + side, left : left + side] = small[0].round().to(images.dtype)
        masks[row, top : top + side, left : left + side] = 1.0
    return images, masks
