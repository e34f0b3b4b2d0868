"""
Token merging, training-free: bipartite soft matching as Bolya et al. describe it ("Token Merging: Your ViT But
Faster", 2023, section 3). Tokens of similar keys are averaged; the class token and what else is no token stays as it
is. No scatter-reduce, no shape that depends on data: it compiles and exports.
"""

import torch
from torch import nn

from .sparsification_options import require_mergeable
from .token_choice import descending_places


_SMALLEST_WEIGHT = 1e-6


def match_tokens(keys: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Which tokens go and whom they join. The tokens are dealt out to two sets by turns; each of the first set finds the
    one of the second whose key has the largest cosine with its own; the most similar pairs are merged.

    Args:
        keys (`torch.FloatTensor` of shape `(batch_size, T, head_dim)`): Keys, averaged over the heads.
        count (`int`): How many tokens are left, at least half of them, rounded down.

    Returns:
        `torch.LongTensor` of shapes `(batch_size, count)`, `(batch_size, T - count)` and `(batch_size, T - count)`:
        The places of the tokens that stay, in ascending order; of those that are merged; and of whom each of them
        joins.

    Raises:
        ValueError: when so few cannot be left.
    """
    num_tokens = keys.shape[1]
    num_merged = num_tokens - count
    require_mergeable(num_tokens, count)
    keys = nn.functional.normalize(keys.float(), dim=-1)
    best, partner = (keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)).max(dim=-1)
    order = descending_places(best)
    merged, left = order[:, :num_merged], order[:, num_merged:]
    second = torch.arange(1, num_tokens, 2, device=keys.device).expand(keys.shape[0], -1)
    stay = torch.cat((2 * left, second), dim=1).sort(dim=1).values
    return stay, 2 * merged, 2 * partner.gather(1, merged) + 1


def merged_sums(weights: torch.Tensor, stay: torch.Tensor, merged: torch.Tensor, joined: torch.Tensor) -> torch.Tensor:
    """Sums of what became one, of `(batch_size, T)` or `(batch_size, T, C)`, at the places of [`match_tokens`]."""
    if weights.ndim == 2:
        return merged_sums(weights[..., None], stay, merged, joined).squeeze(-1)
    joins = (stay[:, :, None] == joined[:, None, :]).to(weights.dtype)
    here, gone = (weights.gather(1, places[..., None].expand(-1, -1, weights.shape[2])) for places in (stay, merged))
    return here + joins @ gone


def merge_tokens(
    tokens: torch.Tensor, weights: torch.Tensor, stay: torch.Tensor, merged: torch.Tensor, joined: torch.Tensor
) -> torch.Tensor:
    """
    Means of the tokens that were matched.

    Args:
        tokens (`torch.FloatTensor` of shape `(batch_size, T, hidden_size)`): Tokens.
        weights (`torch.FloatTensor` of shape `(batch_size, T)`): Their areas. Of no area in all the mean is zero.
        stay, merged, joined (`torch.LongTensor`): See [`match_tokens`].

    Returns:
        `torch.FloatTensor` of shape `(batch_size, count, hidden_size)`.
    """
    total = merged_sums(weights, stay, merged, joined).clamp(min=_SMALLEST_WEIGHT)
    sums = merged_sums(tokens * weights[..., None].to(tokens.dtype), stay, merged, joined)
    return sums / total[..., None].to(tokens.dtype)
