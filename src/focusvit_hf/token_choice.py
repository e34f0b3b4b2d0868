"""Choosing tokens: the mask of training, the gather of inference, and what those that leave become."""

from collections.abc import Sequence

import torch


# Weight of the ratio loss beside the classification loss, as in DynamicViT.
RATIO_WEIGHT = 2.0
_SMALLEST_AREA = 1e-6


def masked_softmax(scores: torch.Tensor, kept: torch.Tensor, self_loop: bool) -> torch.Tensor:
    """
    Softmax over the columns that are kept. A query sees itself even where it was dropped (the self-loop of
    DynamicViT), so that every row sums to one. Gradients reach the mask.

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size, heads, queries, keys)`): Before the softmax, in float32.
        kept (`torch.FloatTensor` of shape `(batch_size, keys)`): 1 for a column that is kept, 0 for a dropped one.
        self_loop (`bool`): Whether queries and keys are the same tokens.
    """
    policy = kept[:, None, None].to(scores.dtype)
    if self_loop:
        policy = policy + (1 - policy) * torch.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device)
    largest = scores.detach().masked_fill(policy <= 0, -torch.inf).amax(dim=-1, keepdim=True)
    # A dropped column may lie above the largest kept one: its rate only scales a gradient, which stays finite so.
    rates = (scores - largest).clamp(max=0).exp() * policy
    return rates / rates.sum(dim=-1, keepdim=True)


def straight_through_choice(scores: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """
    A hard choice with the gradient of a soft one: Gumbel-softmax over "keep" and "drop" at temperature 1, of which
    only the difference of the two Gumbel variables, a logistic one, is needed. What was dropped stays dropped.

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size, T)`): Logits of keeping each token.
        kept (`torch.FloatTensor` of shape `(batch_size, T)`): The mask so far.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, T)`: 0 exactly, or 1 up to rounding.
    """
    uniform = torch.rand_like(scores, dtype=torch.float32).clamp(1e-7, 1 - 1e-7)
    soft = (scores.float() + uniform.log() - (-uniform).log1p()).sigmoid()
    hard = (soft > 0.5).to(soft.dtype)
    return (hard - soft.detach() + soft) * kept


def ratio_loss(masks: Sequence[torch.Tensor], shares: Sequence[float]) -> torch.Tensor:
    """
    How far the shares of tokens that are kept are from the wanted ones: the mean over images and stages of
    (kept share − ρˢ)² (DynamicViT).

    Args:
        masks (sequence of `torch.FloatTensor` of shape `(batch_size, N)`): The mask after each stage.
        shares (sequence of `float`): The wanted shares.
    """
    losses = [(mask.mean(dim=1) - share).square().mean() for mask, share in zip(masks, shares, strict=True)]
    return torch.stack(losses).mean()


def most_relevant(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The places of the `count` highest scores and those of the others, each in ascending order.

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size, T)`): Relevance.
        count (`int`): k, in 1..T.

    Returns:
        `torch.LongTensor` of shapes `(batch_size, k)` and `(batch_size, T - k)`.
    """
    order = scores.topk(scores.shape[1], dim=1).indices
    return order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values


def gather_tokens(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`values` `(batch_size or 1, T, ...)` at `places` `(batch_size, k)`: `(batch_size, k, ...)`."""
    trailing = values.shape[2:]
    index = places.reshape(*places.shape, *(1 for _ in trailing)).expand(*places.shape, *trailing)
    return values.expand(places.shape[0], *values.shape[1:]).gather(1, index)


def weighted_mean(tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The mean of `(batch_size, n, hidden_size)` by `(batch_size or 1, n)` weights: `(batch_size, 1, hidden_size)`."""
    shares = weights / weights.sum(dim=1, keepdim=True).clamp(min=_SMALLEST_AREA)
    return shares.to(tokens.dtype).expand(tokens.shape[0], -1)[:, None] @ tokens
