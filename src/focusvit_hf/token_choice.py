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


def straight_through_choice(
    scores: torch.Tensor, kept: torch.Tensor | None = None, threshold: float = 0.5, count: int | None = None
) -> torch.Tensor:
    """
    A hard choice with the gradient of a soft one: Gumbel-softmax over "keep" and "drop" at temperature 1, of which
    only the difference of the two Gumbel variables, a logistic one, is needed. What was dropped stays dropped.

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size, T)`): Logits of keeping each token.
        kept (`torch.FloatTensor` of shape `(batch_size, T)`, *optional*): The mask so far; by default all are there.
        threshold (`float`, *optional*, defaults to 0.5): The soft choice from which on the hard one is to keep.
        count (`int`, *optional*): How many tokens of each image are kept, instead of those above the threshold.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, T)`: 0 exactly, or 1 up to rounding.
    """
    uniform = torch.rand_like(scores, dtype=torch.float32).clamp(1e-7, 1 - 1e-7)
    soft = (scores.float() + uniform.log() - (-uniform).log1p()).sigmoid()
    if kept is None:
        return straight_through(soft, threshold, count)
    # Where a number is wanted, those that are there come first, whatever their scores.
    ranked = None if count is None else soft.detach() + kept.detach().round()
    return straight_through(soft, threshold, count, ranked) * kept


def descending_places(values: torch.Tensor) -> torch.Tensor:
    """
    The places of `values` `(batch_size, T)` from the largest on, of equal ones the first place first: `topk` orders
    those as it likes, and each runtime otherwise, so that an exported model would choose other tokens.
    """
    if not torch.compiler.is_compiling():
        return values.sort(dim=1, descending=True, stable=True).indices
    # ONNX has no stable sort, but no two ranks are equal.
    rows, columns = values[:, :, None], values[:, None, :]
    earlier = torch.ones(values.shape[1], values.shape[1], dtype=torch.bool, device=values.device).tril(-1)
    ranks = ((columns > rows) | ((columns == rows) & earlier)).sum(dim=2)
    return ranks.topk(values.shape[1], dim=1, largest=False).indices


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """1 for the first `count` of [`descending_places`] of `values` `(batch_size, T)`, 0 for the others, float32."""
    return torch.zeros_like(values, dtype=torch.float32).scatter(1, descending_places(values)[:, :count], 1.0)


def straight_through(
    soft: torch.Tensor, threshold: float = 0.5, count: int | None = None, ranked: torch.Tensor | None = None
) -> torch.Tensor:
    """
    `soft` in 0..1, `(batch_size, T)`, made hard, with the gradient that it had: 1 from `threshold` on, or for the
    `count` tokens of each image that are the largest of `ranked`, by default of `soft` itself; 0 elsewhere.
    """
    if count is None:
        hard = (soft >= threshold).to(soft.dtype)
    else:
        hard = largest((soft if ranked is None else ranked).detach(), count).to(soft.dtype)
    return hard - soft.detach() + soft


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
    The places of the `count` highest scores and those of the others, each in ascending order. Of equal scores the
    first ones are the higher.

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size, T)`): Relevance.
        count (`int`): k, in 1..T.

    Returns:
        `torch.LongTensor` of shapes `(batch_size, k)` and `(batch_size, T - k)`.
    """
    order = descending_places(scores)
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
