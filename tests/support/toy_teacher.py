"""A teacher that knows more classes than its pupil: what `--teacher toy_teacher:colours` names."""

import torch
from torch import nn


class Colours(nn.Module):
    """Five logits of an image: how blue, how green, how bright, how red and how dark it is."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[-1.0, -1, 2], [-1, 2, -1], [1, 1, 1], [2, -1, -1], [-1, -1, -1]]))

    def forward(self, images):
        return 5 * images.mean(dim=(2, 3)) @ self.weight.T


def colours():
    """The module with its mean, standard deviation and size."""
    return Colours(), 0.5, 0.25, 24


def nothing():
    """No teacher."""
    return "a teacher"
