"""
Which tokens a layer of select-and-pack attention (SPA, arXiv 2410.23608) selects, and what its gate is taught: masks
of what matters in an image, a saliency, or a share of FLOPs.
"""

import math

import torch
from torch import nn

from .regions import Regions
from .sparsification_options import kept_counts
from .token_choice import largest


# A new gate lets nearly everything through, sigmoid(4) = 0.98, so that a trained ViT is nearly what it was.
GATE_BIAS = 4.0
# Share of a batch in the running mean of the level, as in PyTorch's batch normalisation.
LEVEL_MOMENTUM = 0.1
# Spread of what counts as the surroundings of a region, in units of the image (Cheng et al. 2011 use √0.4 of it, for
# objects that fill the image).
_SURROUNDINGS = 0.25


class FocusViTSelectionGate(nn.Linear):
    """
    Scores of tokens, s = max(f(r), s_up): f is linear from the normalised tokens r to one number, s_up the score of
    the same token in the layer before. Its initial bias is [`GATE_BIAS`].

    `level` is what a score is measured from where tokens are selected. It is 0, unless a budget teaches the gate: then
    it is such that the threshold parts the tokens that are affordable from the others, as a running mean over the
    batches of training. A loss would do the same by gradients, and those drown what the task says of the tokens (as
    Wang et al. 2024, arXiv 2408.15664, found where experts are balanced).

    Args of `forward`:
        tokens (`torch.FloatTensor` of shape `(batch_size, T, hidden_size)`): r.
        inherited (`torch.FloatTensor` of shape `(batch_size, T)`, *optional*): s_up.

    Returns `(batch_size, T)` float32, logits.
    """

    level: torch.Tensor

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 1)
        self.register_buffer("level", torch.zeros(()))

    def forward(self, tokens: torch.Tensor, inherited: torch.Tensor | None = None) -> torch.Tensor:
        scores = super().forward(tokens).squeeze(-1).float()
        return scores if inherited is None else torch.maximum(scores, inherited.to(scores.device))

    @torch.no_grad()
    def follow(self, level: torch.Tensor) -> None:
        """Moves `level` a step towards that of a batch, see [`budget_level`]; NaN moves nothing."""
        self.level.lerp_(torch.where(level.isnan(), self.level, level.to(self.level)), LEVEL_MOMENTUM)


def region_means(cells: torch.Tensor, ids: torch.Tensor, num_regions: int) -> torch.Tensor:
    """
    The mean of each region's cells; of a region without cells it is 0.

    Args:
        cells (`torch.FloatTensor` of shape `(batch_size, channels, rows, columns)`): Values of the cells.
        ids (`torch.LongTensor` of shape `(batch_size or 1, rows, columns)`): Region of each cell.
        num_regions (`int`): N.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, N, channels)`.
    """
    regions = Regions(ids, num_regions)
    sums = regions.sums(cells.float().flatten(2).transpose(1, 2))
    return sums / regions.moments[..., :1].clamp(min=1)


def region_saliency(colours: torch.Tensor, geometry: torch.Tensor) -> torch.Tensor:
    """
    How much each region stands out from its surroundings: the mean of the distances of its colour from those of the
    others, weighted by their areas and their nearness (the spatially weighted region contrast of Cheng et al. 2011).

    Args:
        colours (`torch.FloatTensor` of shape `(batch_size, N, channels)`): The mean colour of each region.
        geometry (`torch.FloatTensor` of shape `(batch_size or 1, N, 5)`): See [`~regions.geometry`].

    Returns:
        `torch.FloatTensor` of shape `(batch_size, N)`, at least 0, in the unit of the colours.
    """
    places, areas = geometry[..., :2], geometry[..., 2]
    nearness = (-torch.cdist(places, places).square() / (2 * _SURROUNDINGS**2)).exp() * areas[..., None, :]
    distances = torch.cdist(colours, colours)
    return (nearness * distances).sum(dim=2) / nearness.sum(dim=2).clamp(min=1e-12)


def largest_share(values: torch.Tensor, share: float) -> torch.Tensor:
    """1 for the ⌊N·share + 1e-6⌋ largest of each row, at least one, 0 for the others: `(batch_size, N)` float32."""
    return largest(values, kept_counts(values.shape[1], (share,))[0])


def selection_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean binary cross entropy of scores `(batch_size, T)`, logits, with targets in [0, 1]."""
    return nn.functional.binary_cross_entropy_with_logits(scores.float(), targets.to(scores.device))


def cost_share(
    counts: torch.Tensor, num_tokens: int, others: int, hidden_size: int, intermediate_size: int
) -> torch.Tensor:
    """
    What a layer costs in which `counts` of `num_tokens` tokens are selected, beside a dense one, in 0..1. A token
    costs 4·D² multiplications in the projections of attention, 2·D·I in the MLP, and 2·D for each one it attends to.

    Args:
        counts (`torch.FloatTensor` of shape `(batch_size,)`): Tokens selected.
        num_tokens, others (`int`): N, and the tokens that are always selected.
        hidden_size, intermediate_size (`int`): D, I.
    """
    by_token = 4 * hidden_size**2 + 2 * hidden_size * intermediate_size

    then, now = num_tokens + others, counts + others
    return now * (by_token + 2 * hidden_size * now) / (then * (by_token + 2 * hidden_size * then))


def affordable_tokens(budget: float, num_tokens: int, others: int, hidden_size: int, intermediate_size: int) -> float:
    """How many of N tokens an image may select so that [`cost_share`] is the `budget`: its inverse, in 0..N."""
    by_token, by_pair = 4 * hidden_size**2 + 2 * hidden_size * intermediate_size, 2 * hidden_size
    then = num_tokens + others
    cost = budget * then * (by_token + by_pair * then)
    now = (math.sqrt(by_token**2 + 4 * by_pair * cost) - by_token) / (2 * by_pair)
    return min(max(now - others, 0.0), float(num_tokens))


@torch.no_grad()
def budget_level(scores: torch.Tensor, count: int, there: torch.Tensor | None = None) -> torch.Tensor:
    """
    The score that parts the highest of a batch from the others, half way between the two nearest: as many as `count`
    of each image make, though an image may have more of them than another.

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size, T)`): Logits.
        count (`int`): How many tokens of an image are to be selected, on the average.
        there (`torch.FloatTensor` of shape `(batch_size, T)`, *optional*):
            1 for tokens that can be selected, 0 for others; by default all can be.

    Returns:
        `torch.FloatTensor` of shape `()`; NaN where no token can be selected.
    """
    can = torch.ones_like(scores, dtype=torch.bool) if there is None else there.to(scores.device) > 0.5
    ordered = scores.float().masked_fill(~can, -torch.inf).flatten().sort(descending=True).values
    # Numbers stay tensors: a GPU would have to wait for them at every layer.
    wanted = can.sum(dim=1).clamp(max=count).sum()
    last, following = ordered[torch.stack((wanted - 1, wanted)).clamp(0, len(ordered) - 1)]
    # Where all are to be selected, the level lies as far below the lowest as a new gate's scores lie above 0.
    following = torch.where(wanted == can.sum(), last - 2 * GATE_BIAS, following)
    return torch.where(wanted == 0, torch.nan, (last + following) / 2)
