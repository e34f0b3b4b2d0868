"""
Token merging: a dense ViT gets by with fewer tokens, without training.

Bipartite soft matching as Bolya et al. describe it ("Token Merging: Your ViT But Faster", 2023, section 3): between
attention and MLP of each layer, r of its tokens are averaged with others of similar keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from focusvit_hf import FocusViTForImageClassification


def merged_places(keys: torch.Tensor, num_merged: int, num_prefix: int = 1) -> torch.Tensor:
    """
    Which tokens become one. The tokens are dealt out to two sets by turns; each of the first set finds the one of the
    second whose key has the largest cosine with its own; the `num_merged` most similar pairs are merged.

    Args:
        keys (`torch.FloatTensor` of shape `(batch_size, num_tokens, head_dim)`): Keys, averaged over the heads.
        num_merged (`int`): r, at most half of the tokens behind the prefix.
        num_prefix (`int`, *optional*, defaults to 1): Tokens at the beginning that are never merged: the class token.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_tokens)`: For each token its place among the
        `num_tokens - num_merged` new ones: those left of the first set come first, then the second set, in order.

    Raises:
        ValueError: when there are not so many to merge.
    """
    num_tokens = keys.shape[1]
    mergeable = (num_tokens + 1) // 2 - (num_prefix + 1) // 2
    if not 0 <= num_merged <= mergeable:
        raise ValueError(f"Expected to merge 0 to {mergeable} of {num_tokens} tokens, got {num_merged}.")
    keys = F.normalize(keys, dim=-1)
    cosines = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
    cosines[:, : (num_prefix + 1) // 2] = -torch.inf
    cosines[:, :, : num_prefix // 2] = -torch.inf
    best, partner = cosines.max(dim=-1)
    merged = torch.zeros_like(best, dtype=torch.bool).scatter(1, best.topk(num_merged).indices, True)
    left = merged.shape[1] - num_merged
    places = keys.new_empty(keys.shape[:2], dtype=torch.int64)
    places[:, ::2] = torch.where(merged, left + partner, (~merged).cumsum(dim=1) - 1)
    places[:, 1::2] = torch.arange(left, num_tokens - num_merged, device=keys.device)
    return places


def merge(tokens: torch.Tensor, sizes: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Averages the tokens of one place, weighted by their sizes.

    Args:
        tokens (`torch.FloatTensor` of shape `(batch_size, num_tokens, hidden_size)`): Tokens.
        sizes (`torch.FloatTensor` of shape `(batch_size, num_tokens)`): How many patches each stands for.
        places (`torch.LongTensor` of shape `(batch_size, num_tokens)`): See [`merged_places`]; every place is taken.

    Returns:
        New tokens `(batch_size, count, hidden_size)` and their sizes `(batch_size, count)`.
    """
    count = int(places.max()) + 1
    batch_size, _, width = tokens.shape
    new_sizes = sizes.new_zeros(batch_size, count).scatter_add(1, places, sizes)
    index = places[..., None].expand(-1, -1, width)
    sums = tokens.new_zeros(batch_size, count, width).scatter_add(1, index, tokens * sizes[..., None])
    return sums / new_sizes[..., None], new_sizes


def merging_schedule(num_tokens: int, num_layers: int, final: int) -> list[int]:
    """
    How many tokens each layer merges so that `final` are left: the same number r in each as far as that can be, at
    most half of what is there, and no more than to `final`; r is the smallest that gets there.

    Raises:
        ValueError: when so few cannot be reached.
    """
    for r in range(num_tokens):
        left, schedule = num_tokens, []
        for _ in range(num_layers):
            schedule.append(min(r, left // 2, left - final))
            left -= schedule[-1]
        if left == final:
            return schedule
    raise ValueError(f"Expected a number of tokens that {num_layers} halvings of {num_tokens} reach, got {final}.")


class TokenMerging(nn.Module):
    """
    A dense model whose layers merge tokens between attention and MLP.

    Attention is proportional: log(size) is added to a token's column, as if each patch it stands for were there.

    Args:
        model ([`FocusViTForImageClassification`]): Dense, with full attention, read at the class token.
        schedule (sequence of `int`): How many tokens each layer merges.

    Raises:
        ValueError: on another kind of model, or a schedule of another length.
    """

    def __init__(self, model: FocusViTForImageClassification, schedule: Sequence[int]):
        super().__init__()
        config = model.config
        kinds = (config.patch_pooling, *set(config.layer_types or ()), config.classifier_pooling)
        if kinds != ("none", "full_attention", "cls"):
            raise ValueError(f"Expected a dense model with full attention and its class token, got {kinds}.")
        if len(schedule) != config.num_hidden_layers:
            raise ValueError(f"Expected a number for each of {config.num_hidden_layers} layers, got {schedule}.")
        self.model, self.config, self.schedule = model, config, tuple(schedule)

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        """Logits of normalised images, as the model itself gives them."""
        backbone, config = self.model.focusvit, self.config
        prefix, patches, _ = backbone.embeddings(pixel_values, None)
        stream = torch.cat((prefix, patches), dim=1)
        sizes = stream.new_ones(stream.shape[:2])
        layer: Any
        for layer, num_merged in zip(backbone.layers, self.schedule, strict=True):
            length = stream.shape[1]
            normed = layer.layernorm_before(stream)
            bias = sizes.log()[:, None, None].expand(-1, 1, length, -1)
            stream = stream + layer._residual(layer.attention(normed, None, bias)[0], layer.attention_scale)
            if num_merged:
                keys = layer.attention.k_proj(normed).unflatten(2, (config.num_attention_heads, -1)).mean(dim=2)
                stream, sizes = merge(stream, sizes, merged_places(keys, num_merged, config.num_prefix_tokens))
            stream = stream + layer._residual(layer.mlp(layer.layernorm_after(stream)), layer.mlp_scale)
        return ImageClassifierOutput(logits=self.model.classifier(backbone.layernorm(stream)[:, 0]))
