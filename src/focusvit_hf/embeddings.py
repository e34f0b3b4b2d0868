"""From pixels to tokens: the convolutional stem, linear patches, and what makes the encoder's tokens of either."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .caching import cached_table
from .configuration_focusvit import FocusViTConfig
from .positions import _POSITION_BANDS, FocusViTDynamicPosition, FocusViTLearnedPosition, fourier_features
from .regions import Regions
from .superpixel_pooling import harden, pool_cells, pool_units
from .superpixels import tile_ids
from .transformer_blocks import begin_at_zero, keep_variance


# What the units of a chunk of images may take in memory: about what the caches of a CPU hold.
_CHUNK_BYTES = 2**23


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
        # A part that somebody replaced, hooked or moved to another device is called, since folding would leave out
        # what they want of it.
        if _is_plain(convolution, nn.Conv2d) and _is_plain(norm, nn.BatchNorm2d, nn.SyncBatchNorm):
            kernel, factor = convolution.weight, norm.weight
            if kernel.device == factor.device == pixels.device:
                mean, variance = cast(torch.Tensor, norm.running_mean), cast(torch.Tensor, norm.running_var)
                scale = factor * (variance + norm.eps).rsqrt()
                weight = kernel * scale.view(-1, 1, 1, 1)
                bias = torch.addcmul(norm.bias, mean, scale, value=-1)
                return nn.functional.conv2d(pixels, weight, bias, convolution.stride, convolution.padding)
        cells = convolution(pixels)
        if not norm.training:
            return norm(cells)
        return nn.functional.batch_norm(
            cells, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )


class FocusViTStemBlock(nn.Module):
    """
    A residual block (He et al. 2016, arXiv 1512.03385) without its last activation: the cells plus two normalised
    3 x 3 convolutions of them with ReLU between. It begins as the identity (Goyal et al. 2017, arXiv 1706.02677).

    `(batch_size, channels, rows, columns)` to the same.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.first = FocusViTConvNorm(channels, channels, kernel_size=3)
        self.second = FocusViTConvNorm(channels, channels, kernel_size=3)
        begin_at_zero(self.second.norm)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        return cells + self.second(self.first(cells).relu_())


class FocusViTConvEmbedding(nn.Module):
    """
    Cells of a convolutional stem: patches twice as large as a cell, so that they overlap, ReLU, 3 x 3 convolution,
    residual blocks of such convolutions where `stem_blocks` asks for them, position of the cell, ReLU. All
    convolutions are normalised.

    `pixel_values` `(batch_size, num_channels, height, width)` to `(batch_size, cells, stem_channels)`.
    """

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        channels, cell = config.stem_channels, config.cell_size
        # Of cells of an odd size the kernel is a pixel larger, so that it overlaps both neighbours alike.
        self.cells = FocusViTConvNorm(config.num_channels, channels, kernel_size=2 * cell + cell % 2, stride=cell)
        self.mixing = FocusViTConvNorm(channels, channels, kernel_size=3)
        self.blocks = nn.ModuleList([FocusViTStemBlock(channels) for _ in range(config.stem_blocks)])
        self.position = nn.Linear(4 * _POSITION_BANDS, channels)
        keep_variance(self.position)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            # With the channels last convolutions are faster, and pooling needs no copy to bring them there.
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        cells = self.mixing(self.cells(pixel_values).relu_())
        for block in self.blocks:
            cells = block(cells.relu_())
        features = _cell_features(cells.shape[2], cells.shape[3], cells.device)
        position = self.position(features.to(cells.dtype))
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

    def tile_map(self, height: int, width: int, device: torch.device, of_patches: bool = False) -> torch.Tensor:
        """
        The regions of an image of `height` x `width` pixels in the controls, the tiles of a grid or the patches:
        `(1, rows, columns)` of cells. `of_patches`: the patches in either. The table is kept for later calls, so it
        must not be written to.
        """
        cells = (height // self.config.cell_size, width // self.config.cell_size)
        patches = (height // self.config.patch_size, width // self.config.patch_size)
        layout = patches if of_patches else self.config.region_layout(height, width)
        return _map_of_tiles(layout, cells, device)

    def forward(
        self, pixel_values: torch.Tensor, superpixel_ids: torch.Tensor | None, with_units: bool = False
    ) -> tuple[torch.Tensor, ...]:
        """
        Returns the prefix `(batch_size, num_prefix_tokens, hidden_size)`, the tokens `(batch_size, K, hidden_size)`
        and the share of the image's area each token covers, `(batch_size or 1, K)`; `with_units` also what was pooled,
        `(batch_size, N, channels)`.
        """
        config = self.config
        height, width = pixel_values.shape[-2:]
        patches = (height // config.patch_size, width // config.patch_size)
        # Where pooling waits for a later layer, each patch is a token until then.
        at_depth, ids = config.pooling_layer > 0, superpixel_ids
        if ids is None:
            ids = self.tile_map(height, width, pixel_values.device, of_patches=at_depth)
        num_regions = patches[0] * patches[1] if at_depth else config.num_regions(height, width)

        if self.training and torch.is_grad_enabled():
            # What stem and pooling keep for their gradients is a third of the memory of a step, and quick to compute
            # again in the backward pass. A compiled graph keeps the statistics of normalisation out of that itself.
            options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
            if not torch.compiler.is_compiling():
                options["context_fn"] = self._contexts_of_passes
            inputs = (pixel_values, ids, num_regions, with_units)
            pooled, shapes, patch_weights, *units = checkpoint(self.pool, *inputs, **options)
        else:
            pooled, shapes, patch_weights, *units = self._pool_in_chunks(pixel_values, ids, num_regions, with_units)
        # Under autocast the projection gives a narrow type. The sums from here on, through all layers, stay in that of
        # the weights, as in ViT, or their rounding errors would add up.
        tokens = self.projection(pooled).to(self.cls_token.dtype)

        special: torch.Tensor = self.cls_token
        if config.use_distillation_token:
            special = torch.cat((special, self.distillation_token), dim=1)
        if isinstance(self.position, FocusViTLearnedPosition):
            special, positions = self.position(special, patches, patch_weights)
        else:
            positions = self.position(shapes, tokens.dtype)
        tokens = tokens + positions
        prefix = torch.cat((special, self.register_tokens), dim=1) if config.num_register_tokens else special
        prefix = prefix.expand(tokens.shape[0], -1, -1)
        return self.dropout(prefix), self.dropout(tokens), shapes[..., 2], *units

    def pool(
        self, pixel_values: torch.Tensor, ids: torch.Tensor, num_regions: int, with_units: bool = False
    ) -> tuple[Any, ...]:
        """
        Units pooled over the regions of `ids`, `(batch_size, num_regions, channels)`; the regions' geometry
        `(batch_size or 1, num_regions, 5)`; where somebody needs it, their overlap with the patches, else None; and
        `with_units` the units.
        """
        regions = Regions(ids, num_regions)
        shapes = regions.geometry()
        patch_weights = None
        if not self.uses_cells or isinstance(self.position, FocusViTLearnedPosition):
            patch = self.config.patch_size
            patches = (pixel_values.shape[2] // patch, pixel_values.shape[3] // patch)
            patch_weights = self.patch_weights(regions, shapes, patches)
        units = self.units(pixel_values)
        if patch_weights is None or self.uses_cells:
            pooled = pool_cells(units, regions)
        else:
            pooled = pool_units(units, patch_weights)
        return (pooled, shapes, patch_weights, units) if with_units else (pooled, shapes, patch_weights)

    def _contexts_of_passes(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """For `checkpoint`: what the forward pass runs in, and what it runs in when the backward pass repeats it."""
        return nullcontext(), self._buffers_kept()

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """
        Afterwards the stem's running statistics are what they were, so that a step moves them once. A checkpoint that
        somebody puts around the whole model moves them again, as those of any batch normalisation.
        """
        kept = [(buffer, buffer.clone()) for buffer in self.units.buffers()]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, values in kept:
                    buffer.copy_(values)

    def _pool_in_chunks(
        self, pixel_values: torch.Tensor, ids: torch.Tensor, num_regions: int, with_units: bool
    ) -> tuple[Any, ...]:
        """[`pool`] a few images at a time: a CPU is faster where its caches hold the units of a chunk."""
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        # Training normalises over the batch; a chunk with gradients would keep its pages anyway.
        if traced or self.training or torch.is_grad_enabled() or pixel_values.device.type != "cpu":
            return self.pool(pixel_values, ids, num_regions, with_units)
        bytes_of_image = 4 * ids.shape[1] * ids.shape[2] * self.config.stem_channels
        count = max(1, _CHUNK_BYTES // bytes_of_image)
        batch = pixel_values.shape[0]
        if batch <= count or ids.shape[0] != batch:
            return self.pool(pixel_values, ids, num_regions, with_units)
        chunks = [
            self.pool(*chunk, num_regions, with_units)
            for chunk in zip(pixel_values.split(count), ids.split(count), strict=True)
        ]
        return tuple(None if parts[0] is None else torch.cat(parts) for parts in zip(*chunks, strict=True))

    def patch_weights(self, regions: Regions, shapes: torch.Tensor, patches: tuple[int, int]) -> torch.Tensor:
        """Overlap of regions with patches, `(batch_size or 1, K, patches)`, soft or hard."""
        weights = regions.overlap(patches)
        hard = self.config.superpixel_assignment == "hard"
        return harden(weights, shapes, patches) if hard else weights
