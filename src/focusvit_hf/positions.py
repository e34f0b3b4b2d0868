"""Position encodings: from the geometry of each region, or a learned table that is pooled like the patches."""

import math

import torch
from torch import nn

from .caching import cached_table
from .configuration_focusvit import FocusViTConfig
from .superpixel_pooling import _SMALLEST_AREA, pool_units
from .transformer_blocks import keep_variance


_POSITION_BANDS = 6


def fourier_features(coordinates: torch.Tensor, num_bands: int = _POSITION_BANDS) -> torch.Tensor:
    """
    Sine and cosine of π·2^b·coordinate for b = 0 … num_bands - 1.

    Args:
        coordinates (`torch.FloatTensor` of shape `(..., n)`): Values in 0..1.

    Returns:
        `torch.FloatTensor` of shape `(..., 2 * n * num_bands)`, values in -1..1.
    """
    angles = (coordinates[..., None] * _frequencies(num_bands, coordinates.device)).flatten(-2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


@cached_table
def _frequencies(num_bands: int, device: torch.device) -> torch.Tensor:
    return math.pi * 2.0 ** torch.arange(num_bands, dtype=torch.float32, device=device)


class FocusViTDynamicPosition(nn.Module):
    """
    Position of a token from the geometry of its region: Fourier features of the centroid, and the logarithms of area
    and extent, through a small MLP. `(batch_size, K, 5)` to `(batch_size, K, hidden_size)`. The features are taken in
    float32 and go through the MLP in the type of the tokens that the position is added to: the type of a weight would
    say nothing of that where the MLP is quantised.
    """

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(4 * _POSITION_BANDS + 3, config.hidden_size)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size)
        # Not the second layer: like the table of a ViT, the position starts small beside the token it is added to.
        keep_variance(self.fc1)

    def forward(self, shapes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        extent = shapes[..., 2:].clamp(min=_SMALLEST_AREA).log()
        features = torch.cat((fourier_features(shapes[..., :2]), extent), dim=-1)
        return self.fc2(self.activation(self.fc1(features.to(dtype))))


class FocusViTLearnedPosition(nn.Module):
    """
    Position from ViT's table, one entry a patch (before them one for the class token, and one for the distillation
    token where there is one), pooled over a token's region with the same weights as the patches, and interpolated
    (bicubic, in float32) at other resolutions.

    Class and distillation token `(1, num_prefix, hidden_size)`, `grid` = (rows, columns) of patches, and the tokens'
    shares in them `(batch_size or 1, K, rows * columns)`, to class and distillation token with their position, and the
    position of the tokens `(batch_size or 1, K, hidden_size)`.
    """

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        height, width = config.image_height_and_width
        self.grid = (height // config.patch_size, width // config.patch_size)
        self.antialias = config.position_antialias
        # Registers have no position.
        self.num_prefix = config.num_prefix_tokens - config.num_register_tokens
        patches = self.grid[0] * self.grid[1]
        self.table = nn.Parameter(torch.zeros(1, self.num_prefix + patches, config.hidden_size))

    def forward(
        self, special: torch.Tensor, grid: tuple[int, int], patch_weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return special + self.table[:, : self.num_prefix], pool_units(self.patch_positions(grid), patch_weights)

    def patch_positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """The table at `grid` = (rows, columns) of patches: `(1, rows * columns, hidden_size)`."""
        patches = self.table[:, self.num_prefix :]
        if grid == self.grid:
            return patches
        resized = nn.functional.interpolate(
            patches.transpose(1, 2).unflatten(2, self.grid).float(),
            size=grid,
            mode="bicubic",
            align_corners=False,
            antialias=self.antialias,
        )
        return resized.flatten(2).transpose(1, 2).to(patches.dtype)
