"""How well a map finds a figure: overlap, pixels, border; and the best that any answer for whole regions can do."""

from __future__ import annotations

import base64

import numpy as np
import torch
import torch.nn.functional as F

from focusvit_hf.lay_back import lay_back
from focusvit_hf.regions import Regions


# Pixels by which a border may be off, up, down, sideways and diagonally.
TOLERANCE = 2
# What a score of 1 is in 16 bits: four digits are kept.
_STEPS = 10_000


def packed_scores(scores: torch.Tensor) -> str:
    """Scores in 0..1 as text: four digits each, 16 bits, in base 64."""
    steps = (scores * _STEPS).round().to(torch.int64).numpy().astype("<u2")
    return base64.b64encode(steps.tobytes()).decode()


def unpacked_scores(text: str) -> np.ndarray:
    """The inverse of [`packed_scores`]: `(count,)` float64."""
    return np.frombuffer(base64.b64decode(text), "<u2") / _STEPS


def _shares(parts: torch.Tensor, wholes: torch.Tensor) -> torch.Tensor:
    """Part by whole; 1 where there is nothing to find."""
    return torch.where(wholes > 0, parts / wholes.clamp(min=1), 1.0)


def intersection_over_union(found: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Of each image, `(count, height, width)` bool both: `(count,)` in 0..1, 1 where both are empty."""
    return _shares((found & masks).sum(dim=(1, 2)), (found | masks).sum(dim=(1, 2)))


def pixel_accuracy(found: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Share of the pixels that are right, of each image: `(count,)`."""
    return (found == masks).float().mean(dim=(1, 2))


def borders(masks: torch.Tensor) -> torch.Tensor:
    """The pixels of a figure that touch, by a side, a pixel of the ground: `(count, height, width)` bool."""
    edge = torch.zeros_like(masks)
    for axis, length in ((1, masks.shape[1]), (2, masks.shape[2])):
        first, second = masks.narrow(axis, 0, length - 1), masks.narrow(axis, 1, length - 1)
        edge.narrow(axis, 0, length - 1).logical_or_(first & ~second)
        edge.narrow(axis, 1, length - 1).logical_or_(second & ~first)
    return edge


def boundary_f(found: torch.Tensor, masks: torch.Tensor, tolerance: int = TOLERANCE) -> torch.Tensor:
    """
    F-measure of the figure's border: the harmonic mean of the share of the border found that lies within `tolerance`
    pixels of the true one, and of the share of the true one that lies so near to what was found (Martin et al.,
    "Learning to detect natural image boundaries", 2004, without their matching of one to one).

    Args:
        found, masks (`torch.BoolTensor` of shape `(count, height, width)`): Figures.
        tolerance (`int`, *optional*): In pixels, diagonals count as one.

    Returns:
        `torch.FloatTensor` of shape `(count,)`, in 0..1. 1 where neither has a border, 0 where only one has.
    """
    ours, theirs = borders(found), borders(masks)
    near = [F.max_pool2d(edge.float(), 2 * tolerance + 1, 1, tolerance) > 0 for edge in (ours, theirs)]
    precision = _shares((ours & near[1]).sum(dim=(1, 2)), ours.sum(dim=(1, 2)))
    recall = _shares((theirs & near[0]).sum(dim=(1, 2)), theirs.sum(dim=(1, 2)))
    return 2 * precision * recall / (precision + recall).clamp(min=1e-9)


def region_shares(shares: torch.Tensor, ids: torch.Tensor, num_regions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    How much of each region is figure.

    Args:
        shares (`torch.FloatTensor` of shape `(count, rows, columns)`): Share of each cell that lies in the figure.
        ids (`torch.LongTensor` of shape `(count or 1, rows, columns)`): Region of each cell.
        num_regions (`int`): K.

    Returns:
        Two `torch.FloatTensor` of shape `(count, K)`, in cells: the figure's part, and the whole.
    """
    regions = Regions(ids, num_regions)
    figure = regions.sums(shares.flatten(1)[..., None])[..., 0]
    return figure, regions.sums(torch.ones(len(shares), ids[0].numel(), 1))[..., 0]


def region_ceilings(shares: torch.Tensor, ids: torch.Tensor, num_regions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The best that figure or ground for each whole region can do.

    The best overlap takes the regions whose share of figure is above some level: of a ratio of sums the best choice
    is a level of the ratios of its terms.

    Args:
        shares, ids, num_regions: See [`region_shares`].

    Returns:
        Two `torch.FloatTensor` of shape `(count,)`: intersection over union, and share of the pixels that are right.
    """
    figure, area = region_shares(shares, ids, num_regions)
    order = (figure / area.clamp(min=1)).argsort(dim=1, descending=True)
    inside = figure.gather(1, order).cumsum(dim=1)
    union = figure.sum(dim=1, keepdim=True) + area.gather(1, order).cumsum(dim=1) - inside
    right = torch.maximum(figure, area - figure).sum(dim=1) / area.sum(dim=1)
    return (inside / union).amax(dim=1), right


def majority(masks: torch.Tensor, shares: torch.Tensor, ids: torch.Tensor, num_regions: int) -> torch.Tensor:
    """
    The answer with the most pixels right: the regions that are figure by more than half, laid back onto the pixels.

    Args:
        masks (`torch.BoolTensor` of shape `(count, height, width)`): The figures, for their size.
        shares, ids, num_regions: See [`region_shares`].

    Returns:
        `torch.BoolTensor` of shape `(count, height, width)`.
    """
    figure, area = region_shares(shares, ids, num_regions)
    return lay_back(2 * figure > area, ids, (masks.shape[1], masks.shape[2]))
