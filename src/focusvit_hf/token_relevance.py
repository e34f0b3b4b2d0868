"""How relevant each token is: descriptors of attention, relevance with and without parameters, and a control."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .configuration_focusvit import FocusViTConfig


# Added to descriptors, which are relative to uniform attention, before their logarithm is taken.
_DESCRIPTOR_FLOOR = 1e-2
# A prime whose square fits into 63 bits, so that the hash runs in whole numbers.
_HASH_PRIME = 2**31 - 1
# Whether an entry of the descriptors is a variance, which grows with the square of what attention is measured in.
_IS_VARIANCE = (False, False, True, False, False, True)


def attention_descriptors(
    weights: torch.Tensor, columns: slice, rows: slice, kept: torch.Tensor | None = None
) -> torch.Tensor:
    """
    What a map of attention says of each token and head, after SPOT: class→token; mean and variance of the token's
    column; and, where the tokens are queries too, token→class, mean and variance of the token's row. Means and
    (population) variances run over the tokens that are still there, or over the latents of a latent layer.

    Args:
        weights (`torch.FloatTensor` of shape `(batch_size, heads, queries, keys)`):
            Attention; its first row and column are the class token's.
        columns (`slice`): The tokens among the keys.
        rows (`slice`): The queries that columns are summarised over: equal to `columns` in full attention, else the
            latents.
        kept (`torch.FloatTensor` of shape `(batch_size, T)`, *optional*): 1 for tokens that are still there, else 0.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, T, 3 or 6, heads)`, in float32: a latent layer has no rows of
        tokens.
    """
    weights = weights.float()
    block, full = weights[:, :, rows, columns], rows == columns
    over_rows = kept if full else None
    described = [weights[:, :, 0, columns], *_moments(block, -2, over_rows)]
    if full:
        described += [weights[:, :, columns, 0], *_moments(block, -1, kept)]
    return torch.stack(described, dim=-1).permute(0, 2, 3, 1)


def _moments(block: torch.Tensor, dim: int, kept: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population variance of `(batch_size, heads, rows, columns)` along `dim`."""
    if kept is None:
        mean, square = block.mean(dim=dim), block.square().mean(dim=dim)
    else:
        mask = kept[:, None].to(block.dtype)
        mask = mask[..., None] if dim == -2 else mask[..., None, :]
        count = mask.sum(dim=dim).clamp(min=1)
        mean, square = (block * mask).sum(dim=dim) / count, (block.square() * mask).sum(dim=dim) / count
    return mean, (square - mean.square()).clamp(min=0)


def attention_relevance(
    weights: torch.Tensor, columns: slice, rows: slice, kept: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Relevance without parameters: class→token attention plus the mean of the token's column, averaged over the heads.

    Args as of [`attention_descriptors`], whose first two entries these are. Returns `(batch_size, T)` in float32.
    """
    block = weights[:, :, rows, columns].float()
    if kept is None or rows != columns:
        column = block.mean(dim=(1, 2))
    else:
        mask = kept.to(block.dtype)
        column = torch.einsum("bhij,bi->bj", block, mask) / (
            block.shape[1] * mask.sum(dim=1, keepdim=True).clamp(min=1)
        )
    return weights[:, :, 0, columns].float().mean(dim=1) + column


def random_relevance(seeds: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """
    The control: pseudo-random values, the same whenever the same image is seen, in a batch or alone, by a hash in
    whole numbers.

    Args:
        seeds (`torch.LongTensor` of shape `(batch_size,)`): Of the images, see [`image_seeds`].
        num_tokens (`int`): N.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, N)`, in 0..2^24.
    """
    place = torch.arange(num_tokens, device=seeds.device, dtype=torch.int64)
    state = (seeds[:, None] % _HASH_PRIME + place * 1_327_217_885 + 1) % _HASH_PRIME
    for step in range(3):
        state = (state * state + place * 48_271 + seeds[:, None] % _HASH_PRIME + step) % _HASH_PRIME
    # The upper 24 bits: float32 holds them exactly.
    return torch.div(state, 128, rounding_mode="floor").float()


def image_seeds(pixel_values: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """
    A number for each image: the sum of its 8-bit levels, which does not depend on the batch.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised.
        mean, std (sequences of `float`): What the channels were normalised with, in units in which a pixel is in 0..1.

    Returns:
        `torch.LongTensor` of shape `(batch_size,)`.
    """
    shift, scale = (
        pixel_values.new_tensor(list(values), dtype=torch.float32)[:, None, None] for values in (mean, std)
    )
    levels = ((pixel_values.float() * scale + shift) * 255).round().long()
    return levels.flatten(1).sum(dim=1)


class FocusViTRelevancePredictor(nn.Module):
    """
    Relevance of tokens from their embedding and the descriptors of attention: the embedding, remapped to half its
    width, is split into a local half and a global half, which is averaged over the tokens still there; both stand
    beside the logarithms of the descriptors and go through a small MLP (SPOT; widths after DynamicViT).

    Args of `forward`:
        tokens (`torch.FloatTensor` of shape `(batch_size, T, hidden_size)`): Embeddings before the layer.
        descriptors (`torch.FloatTensor` of shape `(batch_size, T, n, heads)`): Relative to uniform attention.
        kept (`torch.FloatTensor` of shape `(batch_size, T)`, *optional*): 1 for tokens still there, else 0.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, T)`: The logit of keeping each token.
    """

    def __init__(self, config: FocusViTConfig, num_descriptors: int):
        super().__init__()
        self.width = max(1, config.hidden_size // 4)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.remap = nn.Linear(config.hidden_size, 2 * self.width)
        self.activation = nn.GELU()
        self.fc1 = nn.Linear(2 * self.width + num_descriptors * config.num_attention_heads, self.width)
        self.fc2 = nn.Linear(self.width, 1)

    def forward(
        self, tokens: torch.Tensor, descriptors: torch.Tensor, kept: torch.Tensor | None = None
    ) -> torch.Tensor:
        local, shared = self.activation(self.remap(self.norm(tokens))).split(self.width, dim=-1)
        if kept is None:
            shared = shared.mean(dim=1, keepdim=True)
        else:
            mask = kept[..., None].to(shared.dtype)
            shared = (shared * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        moments = (descriptors + _DESCRIPTOR_FLOOR).log().flatten(2).to(local.dtype)
        features = torch.cat((local, shared.expand_as(local), moments), dim=-1)
        return self.fc2(self.activation(self.fc1(features))).squeeze(-1)


@dataclass(frozen=True)
class TokenObserver:
    """
    What a layer tells of its attention, called within the layer with the map and the keys.

    Args:
        relevance (`str`): `"learned"`: [`attention_descriptors`]; `"attention"`: [`attention_relevance`], both
            relative to uniform attention; `"keys"`: the keys of the tokens, averaged over the heads.
        num_tokens (`int`): T, the tokens that may be dropped.
        num_fused (`int`): Fused tokens behind them, 0 or 1.
        num_prefix (`int`): Tokens before the latents of a latent layer.
    """

    relevance: str
    num_tokens: int
    num_fused: int = 0
    num_prefix: int = 1

    @property
    def needs_map(self) -> bool:
        """Whether the map of attention has to be there, which fast kernels do not return."""
        return self.relevance != "keys"

    def __call__(
        self, weights: torch.Tensor | None, keys: torch.Tensor, column_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            weights (`torch.FloatTensor` of shape `(batch_size, heads, queries, keys)`, *optional*): The map.
            keys (`torch.FloatTensor` of shape `(batch_size, heads, keys, head_dim)`): The keys.
            column_mask (`torch.FloatTensor` of shape `(batch_size, keys)`, *optional*): 0 for keys that were dropped.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, T, ...)`.
        """
        end = keys.shape[2] - self.num_fused
        columns = slice(end - self.num_tokens, end)
        if self.relevance == "keys":
            return keys[:, :, columns].mean(dim=1)
        if weights is None:
            raise ValueError(f"Expected a map of attention for relevance {self.relevance!r}, got None.")
        full = weights.shape[2] == weights.shape[3]
        rows = columns if full else slice(self.num_prefix, weights.shape[2])
        kept = None if column_mask is None else column_mask[:, columns].to(weights)
        # Relative to uniform attention, so that maps of different numbers of tokens can be averaged.
        count = weights.new_tensor([self.num_tokens]) if kept is None else kept.sum(dim=1).clamp(min=1)
        if self.relevance == "attention":
            return attention_relevance(weights, columns, rows, kept) * count[:, None]
        described = attention_descriptors(weights, columns, rows, kept)
        powers = [count.square() if squared else count for squared in _IS_VARIANCE[: described.shape[2]]]
        return described * torch.stack(powers, dim=-1)[:, None, :, None]
