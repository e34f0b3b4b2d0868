"""SPPP, superpixel patch pooling: units of an image, pooled over regions to tokens, and the tokens' positions."""

import math
from typing import Any

import torch
from torch import nn

from .configuration_focusvit import FocusViTConfig
from .superpixels import (
    geometry_from_membership,
    membership,
    overlap_from_membership,
    superpixel_layout,
    tile_ids,
)


_POSITION_BANDS = 6
# Sharpness of the smooth maximum: it lies at most log(n) / 8 below the maximum of n units.
_MAXIMUM_SHARPNESS = 8.0
_SMALLEST_AREA = 1e-6
# Below this the maximum is floored: smaller means of exponentials would have gradients beyond bfloat16.
_SMALLEST_RATE = 1e-30


def fourier_features(coordinates: torch.Tensor, num_bands: int = _POSITION_BANDS) -> torch.Tensor:
    """
    Sine and cosine of π·2^b·coordinate for b = 0 … num_bands - 1.

    Args:
        coordinates (`torch.FloatTensor` of shape `(..., n)`): Values in 0..1.

    Returns:
        `torch.FloatTensor` of shape `(..., 2 * n * num_bands)`, values in -1..1.
    """
    frequencies = math.pi * 2.0 ** torch.arange(num_bands, dtype=torch.float32, device=coordinates.device)
    angles = (coordinates[..., None] * frequencies).flatten(-2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def pool_units(units: torch.Tensor, weights: torch.Tensor, with_maximum: bool = False) -> torch.Tensor:
    r"""
    Weighted mean of units over regions, z_i = Σ_j O[j, i]·u_j / Σ_j O[j, i] (FocusViT, SPPP), and a smooth maximum
    beside it, log(Σ_j O[j, i]·exp(β·u_j) / Σ_j O[j, i]) / β with β = 8. Both are matrix products, so they export, run
    on any device and have deterministic gradients.

    Args:
        units (`torch.FloatTensor` of shape `(batch_size, N, C)`): What is pooled.
        weights (`torch.FloatTensor` of shape `(batch_size, K, N)`): Share of each unit in each region, in 0..1.
        with_maximum (`bool`, *optional*, defaults to `False`): Whether the smooth maximum stands beside the mean.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, K, C)`, or `(batch_size, K, 2 * C)` with the maximum. A region
        without units gives zeros. The maximum is floored 8.6 below the largest unit of its picture and channel.
    """
    # float16 is too narrow for the exponentials.
    dtype = torch.float32 if units.dtype == torch.float16 else units.dtype
    total = weights.sum(dim=2, keepdim=True)
    share = weights.to(dtype)
    with torch.autocast(units.device.type, enabled=False):
        pooled = torch.matmul(share, units.to(dtype)) / total.clamp(min=_SMALLEST_AREA).to(dtype)
        if with_maximum:
            # The shift cancels, and so do its gradients; compiled in bfloat16, those of amax can be 0 / 0.
            largest = units.detach().amax(dim=1, keepdim=True)
            rates = (units - largest).to(dtype).mul_(_MAXIMUM_SHARPNESS).exp_()
            rates = torch.matmul(share, rates).float() / total.clamp(min=_SMALLEST_AREA)
            maximum = rates.clamp(min=_SMALLEST_RATE).log() / _MAXIMUM_SHARPNESS + largest.float()
            pooled = torch.cat((pooled, torch.where(total > 0, maximum, 0.0).to(dtype)), dim=-1)
    return pooled.to(units.dtype)


def harden(weights: torch.Tensor, shapes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """
    Hard assignment: each unit counts only for the region with the largest share of it.

    Ties go to the larger region, then to the nearer centroid, and are shared between regions that tie in both, so
    that the numbering of the regions never matters. A region that wins no unit keeps its soft weights.

    Args:
        weights (`torch.FloatTensor` of shape `(batch_size, K, N)`): The overlap O.
        shapes (`torch.FloatTensor` of shape `(batch_size, K, 5)`): The regions' geometry.
        grid (pair of `int`): Rows and columns of the units, N = rows · columns.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, K, N)`.
    """
    y = (torch.arange(grid[0], dtype=torch.float32, device=weights.device) + 0.5) / grid[0]
    x = (torch.arange(grid[1], dtype=torch.float32, device=weights.device) + 0.5) / grid[1]
    distance_y = (y - shapes[..., 0, None]).square()
    distance_x = (x - shapes[..., 1, None]).square()
    distance = (distance_y[..., :, None] + distance_x[..., None, :]).flatten(2)
    best = weights == weights.amax(dim=1, keepdim=True)
    area = torch.where(best, shapes[..., 2, None], -1.0)
    best = area == area.amax(dim=1, keepdim=True)
    distance = torch.where(best, distance, torch.inf)
    best = (distance == distance.amin(dim=1, keepdim=True)) & (weights > 0)
    hard = best / best.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(hard.sum(dim=2, keepdim=True) > 0, hard, weights)


def keep_variance(*layers: Any) -> None:
    """
    Marks layers that are no residual branches: their initial weights have to keep the variance of their input.

    The mark is on the layers since a model initialises none of its modules that own no parameter themselves.
    """
    for layer in layers:
        layer.keeps_variance = True


class FocusViTConvEmbedding(nn.Module):
    """
    Cells of a convolutional stem: strided convolution to cells, GELU, 3 x 3 convolution, position of the cell, GELU.

    `pixel_values` `(batch_size, num_channels, height, width)` to `(batch_size, cells, stem_channels)`.
    """

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        channels = config.stem_channels
        self.cells = nn.Conv2d(config.num_channels, channels, kernel_size=config.cell_size, stride=config.cell_size)
        self.mixing = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.position = nn.Linear(4 * _POSITION_BANDS, channels)
        self.activation = nn.GELU()
        keep_variance(self.cells, self.mixing, self.position)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        cells = self.mixing(self.activation(self.cells(pixel_values)))
        height, width = cells.shape[-2:]
        y = (torch.arange(height, dtype=torch.float32, device=cells.device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=cells.device) + 0.5) / width
        centres = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
        position = self.position(fourier_features(centres).to(self.position.weight.dtype))
        return self.activation(cells.flatten(2).transpose(1, 2) + position)


class FocusViTPatchEmbedding(nn.Module):
    """
    Linear patches as in ViT: `(batch_size, num_channels, height, width)` to `(batch_size, patches, hidden_size)`.
    """

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class FocusViTDynamicPosition(nn.Module):
    """
    Position of a token from the geometry of its region: Fourier features of the centroid, and the logarithms of area
    and extent, through a small MLP. `(batch_size, K, 5)` to `(batch_size, K, hidden_size)`.
    """

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(4 * _POSITION_BANDS + 3, config.hidden_size)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size)
        # Not the second layer: like the table of a ViT, the position starts small beside the token it is added to.
        keep_variance(self.fc1)

    def forward(self, shapes: torch.Tensor) -> torch.Tensor:
        extent = shapes[..., 2:].clamp(min=_SMALLEST_AREA).log()
        features = torch.cat((fourier_features(shapes[..., :2]), extent), dim=-1)
        return self.fc2(self.activation(self.fc1(features.to(self.fc1.weight.dtype))))


class FocusViTLearnedPosition(nn.Module):
    """
    Position from ViT's table, one entry a patch (and one for the class token), pooled over a token's region with the
    same weights as the patches, interpolated (bicubic) at other resolutions.
    """

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        height, width = config.image_height_and_width
        self.grid = (height // config.patch_size, width // config.patch_size)
        self.table = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], config.hidden_size))

    def patch_positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """The table at `grid` = (rows, columns) of patches: `(1, rows * columns, hidden_size)`."""
        patches = self.table[:, 1:]
        if grid == self.grid:
            return patches
        patches = patches.transpose(1, 2).unflatten(2, self.grid)
        patches = nn.functional.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
        return patches.flatten(2).transpose(1, 2)


class FocusViTEmbeddings(nn.Module):
    """
    From pixels and a superpixel map to the class token, the tokens with their position, and each token's area.

    `patch_pooling` decides the regions: superpixels, the tiles of a grid, or patches. The path is the same.
    """

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        self.config = config
        self.uses_cells = config.embedding_type == "conv"
        if self.uses_cells:
            self.units: nn.Module = FocusViTConvEmbedding(config)
            self.projection: nn.Module = nn.Linear(2 * config.stem_channels, config.hidden_size)
            keep_variance(self.projection)
        else:
            self.units = FocusViTPatchEmbedding(config)
            self.projection = nn.Identity()
        learned = config.position_embedding_type == "learned"
        self.position = FocusViTLearnedPosition(config) if learned else FocusViTDynamicPosition(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def region_ids(self, cells: tuple[int, int], patches: tuple[int, int], device: torch.device) -> torch.Tensor:
        """The map of the controls, `(1, rows, columns)` of cells: tiles of the grid, or patches."""
        layout = patches
        if self.config.patch_pooling == "grid":
            layout = superpixel_layout(self.config.num_superpixels, *cells)
        return tile_ids(layout, *cells, device=device)[None]

    def forward(
        self, pixel_values: torch.Tensor, superpixel_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Returns the class token `(batch_size, 1, hidden_size)`, the tokens `(batch_size, K, hidden_size)` and the share
        of the picture's area each token covers, `(batch_size or 1, K)`.
        """
        config = self.config
        height, width = pixel_values.shape[-2:]
        cells = (height // config.cell_size, width // config.cell_size)
        patches = (height // config.patch_size, width // config.patch_size)
        ids = self.region_ids(cells, patches, pixel_values.device) if superpixel_ids is None else superpixel_ids
        num_regions = patches[0] * patches[1] if config.patch_pooling == "none" else config.superpixel_count

        members = membership(ids, num_regions)
        shapes = geometry_from_membership(members, *cells)
        needs_patches = not self.uses_cells or isinstance(self.position, FocusViTLearnedPosition)
        patch_weights = self.patch_weights(members, shapes, cells, patches) if needs_patches else members
        weights = members if self.uses_cells else patch_weights
        units = self.units(pixel_values)
        tokens = self.projection(pool_units(units, weights, with_maximum=self.uses_cells))

        class_token: torch.Tensor = self.cls_token
        if isinstance(self.position, FocusViTLearnedPosition):
            positions = self.position.patch_positions(patches)
            tokens = tokens + pool_units(positions.to(tokens.dtype), patch_weights)
            class_token = class_token + self.position.table[:, :1]
        else:
            tokens = tokens + self.position(shapes)
        class_token = class_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        return self.dropout(class_token), self.dropout(tokens), shapes[..., 2]

    def patch_weights(
        self, members: torch.Tensor, shapes: torch.Tensor, cells: tuple[int, int], patches: tuple[int, int]
    ) -> torch.Tensor:
        """Overlap of regions with patches, `(batch_size or 1, K, patches)`, soft or hard."""
        weights = overlap_from_membership(members, cells, patches)
        return harden(weights, shapes, patches) if self.config.superpixel_assignment == "hard" else weights
