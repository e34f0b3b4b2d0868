"""Stems and poolings that were tried in the place of the model's own: what a token knows of its cells."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from focusvit_hf import FocusViTConfig, FocusViTForImageClassification


_BANDS = 6


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the variance of its input; patches where `kernel` is `stride`."""
    padding = 0 if kernel == stride else (kernel - stride + 1) // 2
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
    nn.init.normal_(layer.weight, std=math.sqrt(2 * groups / (inputs * kernel**2)))
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


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Stem(nn.Module):
    """
    Convolutions to cells, and behind them, if there are any, to a coarser map that is laid back onto the cells.

    Args:
        fine (`nn.Module`): Pixels to `(batch, channels, rows, columns)` of cells.
        coarse (`nn.Module`, *optional*): From there to half or a quarter of the rows and columns.
        keep_fine (`bool`): Whether the cells stand beside the coarser map, or give way to it.
    """

    def __init__(self, fine: nn.Module, coarse: nn.Module | None = None, keep_fine: bool = True):
        super().__init__()
        self.fine, self.coarse, self.keep_fine = fine, coarse, keep_fine

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        cells = self.fine(pixel_values.contiguous(memory_format=torch.channels_last))
        if self.coarse is not None:
            coarse = functional.interpolate(self.coarse(cells), size=cells.shape[2:], mode="nearest")
            cells = torch.cat((cells, coarse), dim=1) if self.keep_fine else coarse
        return cells.flatten(2).transpose(1, 2)


def _cells(size: int, channels: int, depth: int = 1, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [_convolution(3, channels, size, size)]
    for _ in range(depth):
        layers += [nn.GELU(), _convolution(channels, channels)]
    if norm:
        layers.append(nn.BatchNorm2d(channels))
    return nn.Sequential(*layers, Position(channels), nn.GELU())


def _early(size: int, channels: int) -> nn.Sequential:
    """Steps of stride two (Xiao et al., "Early convolutions help transformers see better", 2021)."""
    layers: list[nn.Module] = []
    width, inputs = channels * 2 // size, 3
    while size > 1:
        width *= 2
        size //= 2
        layers += [_convolution(inputs, width, 3, 2), nn.GELU()]
        inputs = width
    return nn.Sequential(*layers, _convolution(inputs, channels), Position(channels), nn.GELU())


def _overlapping(size: int, channels: int) -> nn.Sequential:
    first = _convolution(3, channels, 2 * size, size)
    return nn.Sequential(first, nn.GELU(), _convolution(channels, channels), Position(channels), nn.GELU())


def _convnext(channels: int) -> Residual:
    """Depthwise 5 x 5, then an MLP four times as wide (Liu et al., "A ConvNet for the 2020s", 2022)."""
    wide = 4 * channels
    layers = _convolution(channels, channels, 5, groups=channels), nn.GroupNorm(1, channels)
    return Residual(*layers, _convolution(channels, wide, 1), nn.GELU(), _convolution(wide, channels, 1))


def _halved(channels: int, width: int, depth: int = 1, residual: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [_convolution(channels, width, 3, 2), nn.GELU()]
    for _ in range(depth):
        block = [_convolution(width, width), nn.GELU()]
        layers += [Residual(*block)] if residual else block
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


def _expanded(size: int, channels: int) -> nn.Sequential:
    return nn.Sequential(_cells(size, channels), _convolution(channels, 3 * channels, 1, 1), nn.GELU())


STEMS: dict[str, Tried] = {
    "model": Tried(lambda size, c: Stem(_cells(size, c))),
    "depth_2": Tried(lambda size, c: Stem(_cells(size, c, depth=2))),
    "depth_3": Tried(lambda size, c: Stem(_cells(size, c, depth=3))),
    "norm": Tried(lambda size, c: Stem(_cells(size, c, norm=True))),
    "early": Tried(lambda size, c: Stem(_early(size, c))),
    "overlapping": Tried(lambda size, c: Stem(_overlapping(size, c))),
    "convnext": Tried(lambda size, c: Stem(nn.Sequential(_cells(size, c), _convnext(c)))),
    "expanded": Tried(lambda size, c: Stem(_expanded(size, c)), lambda c: 6 * c),
    "coarse": Tried(lambda size, c: Stem(_cells(size, c), _halved(c, 2 * c)), lambda c: 6 * c),
    "coarse_alone": Tried(lambda size, c: Stem(_cells(size, c), _halved(c, 2 * c), keep_fine=False), lambda c: 4 * c),
    "coarse_2": Tried(lambda size, c: Stem(_cells(size, c), _halved(c, 2 * c, 2, True)), lambda c: 6 * c),
    # The convolution that the coarse map costs is saved on the cells.
    "coarse_lean": Tried(lambda size, c: Stem(_cells(size, c, depth=0), _halved(c, 2 * c)), lambda c: 6 * c),
    "coarse_lean_2": Tried(
        lambda size, c: Stem(_cells(size, c, depth=0), _halved(c, 2 * c, 2, True)), lambda c: 6 * c
    ),
    "coarser": Tried(
        lambda size, c: Stem(_cells(size, c), nn.Sequential(_halved(c, 2 * c), _halved(2 * c, 4 * c))),
        lambda c: 10 * c,
    ),
    "mean": Tried(lambda size, c: Stem(_cells(size, c)), lambda c: c, lambda mean, maximum: mean),
    "maximum": Tried(lambda size, c: Stem(_cells(size, c)), lambda c: c, lambda mean, maximum: maximum),
    "attention": Tried(lambda size, c: Gated(Stem(_cells(size, c)), c), lambda c: 2 * c, _attended),
    "deviation": Tried(
        lambda size, c: Widened(Stem(_cells(size, c)), size, lambda cells, _: cells.square()), lambda c: 3 * c, _spread
    ),
    "colour": Tried(
        lambda size, c: Widened(
            Stem(_cells(size, c)), size, lambda _, colours: torch.cat((colours, colours.square()), dim=2)
        ),
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
