"""SPPP, superpixel patch pooling: units of an image, pooled over regions to tokens, and the tokens' positions."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from .configuration_focusvit import FocusViTConfig
from .regions import Regions, without_autocast
from .superpixels import superpixel_layout, tile_ids
from .tables import cached_table


_POSITION_BANDS = 6
# Sharpness of the smooth maximum: it lies at most log(n) / 8 below the maximum of n units.
_MAXIMUM_SHARPNESS = 8.0
_SMALLEST_AREA = 1e-6
# What the units of a chunk of pictures may take.
_CHUNK_BYTES = 2**23
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


@cached_table
def _cell_features(height: int, width: int, device: torch.device) -> torch.Tensor:
    """[`fourier_features`] of the centres of height x width cells: `(height * width, 4 * bands)`."""
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    return fourier_features(torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1))


@cached_table
def _map_of_tiles(layout: tuple[int, int], cells: tuple[int, int], device: torch.device) -> torch.Tensor:
    """[`tile_ids`] for a batch of one."""
    return tile_ids(layout, *cells, device=device)[None]


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
    total = weights.sum(dim=2, keepdim=True)
    return _pool(units, total, lambda values: torch.matmul(weights.to(values.dtype), values), with_maximum)


def pool_cells(units: torch.Tensor, regions: Regions) -> torch.Tensor:
    """[`pool_units`], with the maximum, of units that are the cells of a map: `(batch_size, K, 2 * C)`."""
    return _pool(units, regions.moments[..., :1], regions.sums, with_maximum=True)


def _pool(
    units: torch.Tensor,
    total: torch.Tensor,
    sums: Callable[[torch.Tensor], torch.Tensor],
    with_maximum: bool,
) -> torch.Tensor:
    # float16 is too narrow for the exponentials.
    dtype = torch.float32 if units.dtype == torch.float16 else units.dtype
    with without_autocast(units.device.type):
        pooled = (sums(units.to(dtype)) / total.clamp(min=_SMALLEST_AREA)).to(dtype)
        if with_maximum:
            # The shift cancels, and so do its gradients; compiled in bfloat16, those of amax can be 0 / 0.
            largest = units.detach().amax(dim=1, keepdim=True)
            shift = largest.to(dtype) * -_MAXIMUM_SHARPNESS
            rates = torch.add(shift, units.to(dtype), alpha=_MAXIMUM_SHARPNESS).exp_()
            rates = sums(rates).float() / total.clamp(min=_SMALLEST_AREA)
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


def _is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a call of `module` does what one of these classes does, and no more."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) in kinds and not hooks


class FocusViTConvNorm(nn.Module):
    """
    A convolution and batch normalisation (Ioffe and Szegedy, 2015), which is folded into it in evaluation and where
    its weights are frozen: then the statistics are, too. Where several processes train, each normalises by its own
    part of the batch, unless `torch.nn.SyncBatchNorm` took over.

    `(batch_size, inputs, height, width)` to `(batch_size, outputs, height / stride, width / stride)`.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1):
        super().__init__()
        padding = (kernel_size - stride + 1) // 2
        self.convolution = nn.Conv2d(inputs, outputs, kernel_size, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        keep_variance(self.convolution)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        norm, convolution = self.norm, self.convolution
        if norm.training and norm.weight.requires_grad:
            return norm(convolution(pixels))
        # What was replaced, hooked or put elsewhere has to be called.
        if _is_plain(convolution, nn.Conv2d) and _is_plain(norm, nn.BatchNorm2d, nn.SyncBatchNorm):
            kernel, factor = convolution.weight, norm.weight
            if kernel.device == factor.device == pixels.device:
                mean, variance = cast(torch.Tensor, norm.running_mean), cast(torch.Tensor, norm.running_var)
                scale = factor * (variance + norm.eps).rsqrt()
                weight = kernel * scale[:, None, None, None]
                bias = torch.addcmul(norm.bias, mean, scale, value=-1)
                return nn.functional.conv2d(pixels, weight, bias, convolution.stride, convolution.padding)
        cells = convolution(pixels)
        if not norm.training:
            return norm(cells)
        return nn.functional.batch_norm(
            cells, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )


class FocusViTConvEmbedding(nn.Module):
    """
    Cells of a convolutional stem: patches twice as large as a cell, so that they overlap, ReLU, 3 x 3 convolution,
    position of the cell, ReLU. Both convolutions are normalised.

    `pixel_values` `(batch_size, num_channels, height, width)` to `(batch_size, cells, stem_channels)`.
    """

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        channels, cell = config.stem_channels, config.cell_size
        # One more pixel where there would be no middle.
        self.cells = FocusViTConvNorm(config.num_channels, channels, kernel_size=2 * cell + cell % 2, stride=cell)
        self.mixing = FocusViTConvNorm(channels, channels, kernel_size=3)
        self.position = nn.Linear(4 * _POSITION_BANDS, channels)
        keep_variance(self.position)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            # Convolutions are faster on it, and pooling wants the channels last anyway.
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        cells = self.mixing(self.cells(pixel_values).relu_())
        features = _cell_features(cells.shape[2], cells.shape[3], cells.device)
        position = self.position(features.to(self.position.weight.dtype))
        return (cells.flatten(2).transpose(1, 2) + position).relu_()


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


class FocusViTEmbeddings(nn.Module):
    """
    From pixels and a superpixel map to the prefix (class token, distillation token, registers), the tokens with their
    position, and each token's area.

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
        if config.use_distillation_token:
            self.distillation_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def region_ids(self, cells: tuple[int, int], patches: tuple[int, int], device: torch.device) -> torch.Tensor:
        """The map of the controls, `(1, rows, columns)` of cells: tiles of the grid, or patches."""
        layout = patches
        if self.config.patch_pooling == "grid":
            layout = superpixel_layout(self.config.num_superpixels, *cells)
        return _map_of_tiles(layout, cells, device)

    def forward(
        self, pixel_values: torch.Tensor, superpixel_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Returns the prefix `(batch_size, num_prefix_tokens, hidden_size)`, the tokens `(batch_size, K, hidden_size)`
        and the share of the picture's area each token covers, `(batch_size or 1, K)`.
        """
        config = self.config
        height, width = pixel_values.shape[-2:]
        cells = (height // config.cell_size, width // config.cell_size)
        patches = (height // config.patch_size, width // config.patch_size)
        ids = self.region_ids(cells, patches, pixel_values.device) if superpixel_ids is None else superpixel_ids
        num_regions = patches[0] * patches[1] if config.patch_pooling == "none" else config.superpixel_count

        if self.training and torch.is_grad_enabled():
            # What stem and pooling keep for their gradients is a third of all, and quickly computed again.
            pooled, shapes, patch_weights = checkpoint(
                self.pool, pixel_values, ids, num_regions, use_reentrant=False, preserve_rng_state=False
            )
        else:
            pooled, shapes, patch_weights = self._pool_in_chunks(pixel_values, ids, num_regions)
        # Autocast narrows what a product gives. As in ViT, what is added up from here on is not narrowed.
        tokens = self.projection(pooled).to(self.cls_token.dtype)

        special: torch.Tensor = self.cls_token
        if config.use_distillation_token:
            special = torch.cat((special, self.distillation_token), dim=1)
        if isinstance(self.position, FocusViTLearnedPosition):
            special, positions = self.position(special, patches, patch_weights)
        else:
            positions = self.position(shapes)
        tokens = tokens + positions
        prefix = torch.cat((special, self.register_tokens), dim=1) if config.num_register_tokens else special
        prefix = prefix.expand(tokens.shape[0], -1, -1)
        return self.dropout(prefix), self.dropout(tokens), shapes[..., 2]

    def pool(
        self, pixel_values: torch.Tensor, ids: torch.Tensor, num_regions: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """
        Units pooled over the regions of `ids`, `(batch_size, num_regions, channels)`; the regions' geometry
        `(batch_size or 1, num_regions, 5)`; and, where somebody needs it, their overlap with the patches.
        """
        regions = Regions(ids, num_regions)
        shapes = regions.geometry()
        patch_weights = None
        if not self.uses_cells or isinstance(self.position, FocusViTLearnedPosition):
            patch = self.config.patch_size
            patches = (pixel_values.shape[2] // patch, pixel_values.shape[3] // patch)
            patch_weights = self.patch_weights(regions, shapes, patches)
        units = self._embed(pixel_values)
        if patch_weights is None or self.uses_cells:
            return pool_cells(units, regions), shapes, patch_weights
        return pool_units(units, patch_weights), shapes, patch_weights

    def _embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The units. Their statistics move in the forward pass, and not where the backward pass computes it again."""
        # A compiled graph has its mutations once, and takes what is computed again apart itself.
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            return self.units(pixel_values)
        copies = {name: buffer.clone() for name, buffer in self.units.named_buffers()}
        return functional_call(self.units, copies, pixel_values)

    def _pool_in_chunks(
        self, pixel_values: torch.Tensor, ids: torch.Tensor, num_regions: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """[`pool`] a few pictures at a time: a CPU's caches hold what that takes, and so need fewer new pages."""
        picture = 4 * ids.shape[1] * ids.shape[2] * self.config.stem_channels
        count = max(1, _CHUNK_BYTES // picture)
        batch = pixel_values.shape[0]
        whole = torch.compiler.is_compiling() or torch.is_grad_enabled() or pixel_values.device.type != "cpu"
        # Training normalises over the batch.
        whole = whole or self.training
        if whole or batch <= count or ids.shape[0] != batch:
            return self.pool(pixel_values, ids, num_regions)
        chunks = [
            self.pool(*chunk, num_regions) for chunk in zip(pixel_values.split(count), ids.split(count), strict=True)
        ]
        pooled, shapes, weights = zip(*chunks, strict=True)
        return torch.cat(pooled), torch.cat(shapes), None if weights[0] is None else torch.cat(weights)

    def patch_weights(self, regions: Regions, shapes: torch.Tensor, patches: tuple[int, int]) -> torch.Tensor:
        """Overlap of regions with patches, `(batch_size or 1, K, patches)`, soft or hard."""
        weights = regions.overlap(patches)
        hard = self.config.superpixel_assignment == "hard"
        return harden(weights, shapes, patches) if hard else weights
