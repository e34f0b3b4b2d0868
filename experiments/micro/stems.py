"""Stems and poolings that were tried in the place of the model's own: what a token knows of its cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from focusvit_hf import FocusViTConfig, FocusViTForImageClassification


_BANDS = 6


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the variance of its input; patches where `kernel` is `stride`."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - stride + 1) // 2)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (inputs * kernel**2)))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class Position(nn.Module):
    """Adds Fourier features of each place, through a linear layer, to a map `(batch, channels, rows, columns)`."""

    def __init__(self, channels: int):
        super().__init__()
        self.linear = nn.Linear(4 * _BANDS, channels)
        nn.init.normal_(self.linear.weight, std=(4 * _BANDS) ** -0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        axes = [(torch.arange(length) + 0.5) / length for length in cells.shape[2:]]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        angles = (places[..., None] * math.pi * 2.0 ** torch.arange(_BANDS)).flatten(2)
        features = torch.cat((angles.sin(), angles.cos()), dim=-1).to(cells.dtype)
        return cells + self.linear(features).permute(2, 0, 1)


class Stem(nn.Module):
    """
    Convolutions to cells, and behind them, if there are any, to a coarser map that is laid back onto the cells.

    Args:
        fine (`nn.Module`): Pixels to `(batch, channels, rows, columns)` of cells.
        coarse (`nn.Module`, *optional*): From there to half or a quarter of the rows and columns.
    """

    def __init__(self, fine: nn.Module, coarse: nn.Module | None = None):
        super().__init__()
        self.fine, self.coarse = fine, coarse

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        cells = self.fine(pixel_values.contiguous(memory_format=torch.channels_last))
        if self.coarse is not None:
            coarse = functional.interpolate(self.coarse(cells), size=cells.shape[2:], mode="nearest")
            cells = torch.cat((cells, coarse), dim=1)
        return cells.flatten(2).transpose(1, 2)


def _normalised(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution and batch normalisation, which a trained model can fold into it."""
    return nn.Sequential(_convolution(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs))


def _cells(size: int, channels: int, depth: int = 1, block: Callable[..., nn.Module] = _normalised) -> nn.Sequential:
    layers = [block(3, channels, size, size)]
    for _ in range(depth):
        layers += [nn.GELU(), block(channels, channels)]
    return nn.Sequential(*layers, Position(channels), nn.GELU())


def _strides(size: int, last: int, growth: int, activation: Callable[[], nn.Module]) -> list[nn.Module]:
    """Steps of stride two to cells of `size` pixels, each `growth` times as wide as the one before, to `last`."""
    widths = [last // growth**step for step in reversed(range(size.bit_length() - 1))]
    layers: list[nn.Module] = []
    for inputs, width in itertools.pairwise((3, *widths)):
        layers += [_normalised(inputs, width, 3, 2), activation()]
    return layers


def _strided(
    size: int, channels: int, last: int, growth: int = 2, activation: Callable[[], nn.Module] = nn.GELU
) -> nn.Sequential:
    """Strides and a convolution (Xiao et al., "Early convolutions help transformers see better", 2021)."""
    strides = _strides(size, last, growth, activation)
    return nn.Sequential(*strides, _normalised(last, channels), Position(channels), activation())


def _steps(size: int, channels: int) -> nn.Sequential:
    """Strides alone; the last activation follows the position."""
    return nn.Sequential(*_strides(size, channels, 2, nn.GELU)[:-1], Position(channels), nn.GELU())


def _overlapping(
    size: int, channels: int, activation: Callable[[], nn.Module], kernel: int = 2, inner: int = 1
) -> nn.Sequential:
    """Patches `kernel` times as large as a cell, `inner` times as many channels of them as of the cells."""
    first = _normalised(3, inner * channels, kernel * size, size)
    second = _normalised(inner * channels, channels)
    return nn.Sequential(first, activation(), second, Position(channels), activation())


def _halved(channels: int, width: int, depth: int) -> nn.Sequential:
    layers = [_normalised(channels, width, 3, 2), nn.GELU()]
    for _ in range(depth):
        layers += [_normalised(width, width), nn.GELU()]
    return nn.Sequential(*layers)


class Widened(nn.Module):
    """Adds to the cells `(batch, N, C)` what a function makes of them and of their mean colours `(batch, N, 3)`."""

    def __init__(self, stem: nn.Module, size: int, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        super().__init__()
        self.stem, self.size, self.function = stem, size, function

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        cells = self.stem(pixel_values)
        colours = functional.avg_pool2d(pixel_values, self.size).flatten(2).transpose(1, 2)
        return torch.cat((cells, self.function(cells, colours)), dim=2)


class Gated(nn.Module):
    """Cells, the cells times a gate in 0..1, and the gate: mean of the second over mean of the third is attention."""

    def __init__(self, stem: nn.Module, channels: int):
        super().__init__()
        self.stem, self.gate = stem, nn.Linear(channels, 1)
        nn.init.normal_(self.gate.weight, std=channels**-0.5)
        nn.init.zeros_(self.gate.bias)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        cells = self.stem(pixel_values)
        gate = self.gate(cells).sigmoid() + 1e-3
        return torch.cat((cells, cells * gate, gate), dim=2)


class Reader(nn.Module):
    """What the projection is given of the pooled channels, mean and maximum apart."""

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        super().__init__()
        self.function = function

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.function(*pooled.chunk(2, dim=-1))


def _attended(mean: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
    channels = mean.shape[-1] // 2
    return torch.cat((mean[..., channels:-1] / mean[..., -1:], maximum[..., :channels]), dim=-1)


def _spread(mean: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
    channels = mean.shape[-1] // 2
    variance = mean[..., channels:] - mean[..., :channels].square()
    deviation = (variance.clamp(min=0) + 1e-4).sqrt()
    return torch.cat((mean[..., :channels], maximum[..., :channels], deviation), dim=-1)


def _coloured(mean: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
    colours, squares = mean[..., -6:-3], mean[..., -3:]
    spread = ((squares - colours.square()).clamp(min=0) + 1e-4).sqrt()
    return torch.cat((mean[..., :-6], maximum[..., :-6], colours, spread), dim=-1)


@dataclass(frozen=True)
class Tried:
    """
    Args:
        build: Cell size and channels to the stem, pixels to `(batch, N, channels)`.
        features: Channels to the number of features that the projection reads.
        read: From pooled mean and maximum to these features; both beside each other where there is none.
    """

    build: Callable[[int, int], nn.Module]
    features: Callable[[int], int] = lambda c: 2 * c
    read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None


def _own(size: int, channels: int) -> Stem:
    return Stem(_overlapping(size, channels, nn.ReLU))


def _coarse(*depths: int) -> Tried:
    """Beside the cells maps of half the rows and columns, twice the channels; so many convolutions in each."""

    def build(size: int, channels: int) -> Stem:
        maps = (_halved(channels * 2**i, channels * 2 ** (i + 1), depth) for i, depth in enumerate(depths))
        return Stem(_cells(size, channels), nn.Sequential(*maps))

    return Tried(build, lambda c: 2 * (c + c * 2 ** len(depths)))


STEMS: dict[str, Tried] = {
    # What the model had at first, and what it has.
    "first": Tried(lambda size, c: Stem(_cells(size, c, block=_convolution))),
    "model": Tried(_own),
    "norm": Tried(lambda size, c: Stem(_cells(size, c))),
    "norm_depth_2": Tried(lambda size, c: Stem(_cells(size, c, depth=2))),
    "norm_early": Tried(lambda size, c: Stem(_strided(size, c, 2 * c))),
    "norm_steps": Tried(lambda size, c: Stem(_steps(size, c))),
    "norm_steps_1": Tried(lambda size, c: Stem(_strided(size, c, c))),
    "norm_overlapping": Tried(lambda size, c: Stem(_overlapping(size, c, nn.GELU))),
    "norm_relu_wide": Tried(lambda size, c: Stem(_overlapping(size, c, nn.ReLU, inner=2))),
    "norm_relu_3": Tried(lambda size, c: Stem(_overlapping(size, c, nn.ReLU, kernel=3))),
    # Named after their channels at cells of 4 px.
    "strided_32_64": Tried(lambda size, c: Stem(_strided(size, c, 64, activation=nn.ReLU))),
    "strided_16_64": Tried(lambda size, c: Stem(_strided(size, c, 64, 4, nn.ReLU))),
    "norm_coarse": _coarse(1),
    "norm_coarser": _coarse(0, 1),
    "mean": Tried(_own, lambda c: c, lambda mean, maximum: mean),
    "maximum": Tried(_own, lambda c: c, lambda mean, maximum: maximum),
    "attention": Tried(lambda size, c: Gated(_own(size, c), c), lambda c: 2 * c, _attended),
    "deviation": Tried(
        lambda size, c: Widened(_own(size, c), size, lambda cells, _: cells.square()), lambda c: 3 * c, _spread
    ),
    "colour": Tried(
        lambda size, c: Widened(_own(size, c), size, lambda _, colours: torch.cat((colours, colours.square()), dim=2)),
        lambda c: 2 * c + 6,
        _coloured,
    ),
}


def with_stem(model: FocusViTForImageClassification, name: str) -> FocusViTForImageClassification:
    """The model with another of [`STEMS`] in the place of its own, and a projection that fits."""
    config: FocusViTConfig = model.config
    tried = STEMS[name]
    embeddings: Any = model.focusvit.embeddings
    embeddings.units = tried.build(config.cell_size, config.stem_channels)
    features = tried.features(config.stem_channels)
    projection = nn.Linear(features, config.hidden_size)
    nn.init.normal_(projection.weight, std=features**-0.5)
    nn.init.zeros_(projection.bias)
    embeddings.projection = nn.Sequential(Reader(tried.read), projection) if tried.read else projection
    return model
