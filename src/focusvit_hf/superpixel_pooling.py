"""SPPP, superpixel patch pooling: units of an image, pooled over regions to tokens, and the tokens' positions."""

from collections.abc import Callable

import torch

from .regions import Regions, without_autocast


# Sharpness of the smooth maximum: it lies at most log(n) / 8 below the maximum of n units.
_MAXIMUM_SHARPNESS = 8.0
_SMALLEST_AREA = 1e-6
# Below this the maximum is floored: smaller means of exponentials would have gradients beyond bfloat16.
_SMALLEST_RATE = 1e-30


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
        without units gives zeros. The maximum is floored 8.6 below the largest unit of its image and channel.
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
    area = total.clamp(min=_SMALLEST_AREA)
    with without_autocast(units.device.type):
        pooled = (sums(units.to(dtype)) / area).to(dtype)
        if with_maximum:
            # The shift cancels, and so do its gradients; compiled in bfloat16, those of amax can be 0 / 0.
            largest = _largest(units.detach())
            shift = largest.to(dtype) * -_MAXIMUM_SHARPNESS
            rates = torch.add(shift, units.to(dtype), alpha=_MAXIMUM_SHARPNESS).exp_()
            rates = sums(rates).float() / area
            maximum = rates.clamp(min=_SMALLEST_RATE).log() / _MAXIMUM_SHARPNESS + largest.float()
            pooled = torch.cat((pooled, torch.where(total > 0, maximum, 0.0).to(dtype)), dim=-1)
    return pooled.to(units.dtype)


def _largest(units: torch.Tensor) -> torch.Tensor:
    """The largest unit of each image and channel, `(batch_size, 1, C)`, of the units' own type."""
    if units.device.type != "cpu" or torch.compiler.is_compiling():
        return units.amax(dim=1, keepdim=True)
    # Of narrow types a CPU has no vectorised maximum: a cast and float32's take a twentieth of the time.
    return units.float().amax(dim=1, keepdim=True).to(units.dtype)


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
