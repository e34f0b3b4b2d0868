"""Superpixels in pure torch: SLIC, and the overlap and geometry of regions. Batched, deterministic, on any device.

The arithmetic of `slic` is exact: colours, positions and centres are integers in units of 1/q Lab, small enough that
every product and sum stays below 2^24, the last integer float32 holds. So the map of an image depends neither on the
batch it is in, nor on threads, matrix kernels or fused multiply-adds.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from .caching import cached_table
from .cielab import LAB_RADIUS_SQUARED, cell_lab, cell_sums
from .regions import geometry, overlap, rounds_products, without_autocast
from .superpixel_options import _borders, default_cell_size, superpixel_layout


# Offsets (rows, columns) of the nine candidates from a cell's own tile, which stands first, since it wins ties.
_OFFSETS = ((0, 0), (-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
# Nearness is multiplied by nine and carries the number of its candidate, so one maximum finds both.
_PACK = len(_OFFSETS)
_LARGEST_EXACT = 2**24
# Beyond any distance of a real candidate, whatever is added to it.
_OUT_OF_REACH = 2.0**27
_FINEST_UNIT = 4


class _Tiling(NamedTuple):
    """
    Index tables of an image of h x w cells that is cut into K tiles.

    The loop of [`slic`] works tile by tile, so that every tile has T places, as many as the largest tile has cells;
    the places that a smaller tile has no cell for are padding.
    """

    rows: torch.Tensor | None  # (rows * tile_height,) row of cells behind each row of places; None: no padding
    columns: torch.Tensor | None  # (columns * tile_width,) likewise
    tile_height: int
    tile_width: int
    valid: torch.Tensor  # (K, 1, T) 1 for a cell, 0 for padding
    positions: (
        torch.Tensor
    )  # (K, 3, T) one, row and column from the middle of the image in units of `slic`; 0: padding
    first_candidate: torch.Tensor  # (K, 1) where the nine candidates of each tile begin among all candidates
    neighbours: torch.Tensor  # (K * 9,) the superpixel behind each candidate; any one outside of the image
    handicap: torch.Tensor  # (K * 9, 6) column 0: minus the candidate's number, out of reach outside the image; else 0
    packing: torch.Tensor  # (6,) what |c|² and c are multiplied by: -9 and 18
    sources: torch.Tensor  # (K * 9,) the candidates that stand for a superpixel, one in each tile around it
    place_of_cell: torch.Tensor  # (h * w,) tile * T + place
    tile_of_cell: torch.Tensor  # (h * w,)
    tile_centre: torch.Tensor  # (K,) the cell in the middle of each tile
    is_tile_centre: torch.Tensor  # (h * w,) bool


class _Axis(NamedTuple):
    """One axis of a tiling: tables of (tiles, T) or (tiles,) along it."""

    cells: torch.Tensor  # (tiles, T) the cell behind each place, the last one for padding at the end
    is_cell: torch.Tensor  # (tiles, T) False for padding
    positions: torch.Tensor  # (tiles, T) of the cells, whole numbers from the middle of the image
    starts: torch.Tensor  # (tiles,) the first cell
    centres: torch.Tensor  # (tiles,) the middle cell


def tile_ids(layout: tuple[int, int], height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """
    The regular grid: tile number of each cell, borders at ⌊i·height/rows⌋ and ⌊i·width/columns⌋.

    Returns:
        `torch.LongTensor` of shape `(height, width)`, values in [0, rows · columns).
    """
    rows, columns = layout
    row = _axis_tiles(rows, height, device)
    column = _axis_tiles(columns, width, device)
    return row[:, None] * columns + column[None, :]


def _axis_tiles(count: int, length: int, device: torch.device | None) -> torch.Tensor:
    borders = torch.tensor(_borders(count, length)[1:], device=device)
    return (torch.arange(length, device=device)[:, None] >= borders).sum(dim=1)


@cached_table
def _tiling(rows: int, columns: int, height: int, width: int, step: float, device: torch.device) -> _Tiling:
    """`step`: what the position of a cell grows by from one cell to the next, in the units of `slic`."""
    layout = (rows, columns)
    vertical = _axis(rows, height, step, device)
    horizontal = _axis(columns, width, step, device)
    num_tiles, (tile_height, tile_width) = rows * columns, (vertical.cells.shape[1], horizontal.cells.shape[1])
    places = (rows, columns, tile_height, tile_width)
    valid = vertical.is_cell[:, None, :, None] & horizontal.is_cell[None, :, None, :]
    valid = valid.reshape(num_tiles, 1, -1).float()
    row_position = vertical.positions[:, None, :, None].expand(places)
    column_position = horizontal.positions[None, :, None, :].expand(places)
    positions = torch.stack((torch.ones_like(row_position), row_position, column_position), dim=2)

    candidate = torch.arange(_PACK, device=device)
    nearby, inside = _tiles_at(torch.tensor(_OFFSETS, device=device), layout)
    handicap = torch.zeros(num_tiles * _PACK, 6, device=device)
    handicap[:, 0] = -torch.where(inside, candidate, _OUT_OF_REACH).flatten()
    # A superpixel is candidate j of the tile that lies at the opposite of offset j from its own.
    opposite, has_opposite = _tiles_at(-torch.tensor(_OFFSETS, device=device), layout)
    # Where there is no such tile, candidate 1 of tile 0 stands in. It lies outside of the image, so that no cell ever
    # chooses it and its sum is zero.
    sources = torch.where(has_opposite, opposite * _PACK + candidate, 1)

    tile_of_cell = tile_ids(layout, height, width, device)
    row_in_tile = torch.arange(height, device=device) - vertical.starts[tile_of_cell[:, 0] // columns]
    column_in_tile = torch.arange(width, device=device) - horizontal.starts[tile_of_cell[0] % columns]
    place_of_cell = (tile_of_cell * tile_height + row_in_tile[:, None]) * tile_width + column_in_tile
    tile_centre = (vertical.centres[:, None] * width + horizontal.centres).flatten()
    padded = height % rows != 0 or width % columns != 0
    return _Tiling(
        rows=vertical.cells.flatten() if padded else None,
        columns=horizontal.cells.flatten() if padded else None,
        tile_height=tile_height,
        tile_width=tile_width,
        valid=valid,
        positions=positions.view(num_tiles, 3, -1) * valid,
        first_candidate=torch.arange(num_tiles, device=device)[:, None] * _PACK,
        neighbours=torch.where(inside, nearby, 0).flatten(),
        handicap=handicap,
        packing=torch.tensor([-_PACK] + [2 * _PACK] * 5, dtype=torch.float32, device=device),
        sources=sources.flatten(),
        place_of_cell=place_of_cell.flatten(),
        tile_of_cell=tile_of_cell.flatten(),
        tile_centre=tile_centre,
        is_tile_centre=(torch.arange(height * width, device=device)[:, None] == tile_centre).any(dim=1),
    )


def _axis(count: int, length: int, step: float, device: torch.device) -> _Axis:
    """The tables of one axis: `length` cells in `count` tiles."""
    borders = _borders(count, length)
    longest = max(end - start for start, end in pairwise(borders))
    starts = torch.tensor(borders[:-1], device=device)
    ends = torch.tensor(borders[1:], device=device)
    places = starts[:, None] + torch.arange(longest, device=device)
    cells = places.clamp(max=length - 1)
    return _Axis(
        cells=cells,
        is_cell=places < ends[:, None],
        positions=((cells + (0.5 - length / 2)) * step).round(),
        starts=starts,
        centres=(starts + ends) // 2,
    )


def _tiles_at(offsets: torch.Tensor, layout: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """For each tile the tile at each of n `offsets` (rows, columns), `(K, n)`, and whether it is inside the image."""
    rows, columns = layout
    tile = torch.arange(rows * columns, device=offsets.device)
    row = (tile // columns)[:, None] + offsets[:, 0]
    column = (tile % columns)[:, None] + offsets[:, 1]
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return row * columns + column, inside


def _to_tiles(maps: torch.Tensor, layout: tuple[int, int], tiling: _Tiling) -> torch.Tensor:
    """(B, C, h, w) to (B, K, C, T)."""
    if tiling.rows is not None and tiling.columns is not None:
        maps = maps.index_select(-2, tiling.rows).index_select(-1, tiling.columns)
    batch, channels = maps.shape[:2]
    maps = maps.view(batch, channels, layout[0], tiling.tile_height, layout[1], tiling.tile_width)
    return maps.permute(0, 2, 4, 1, 3, 5).reshape(
        batch, layout[0] * layout[1], channels, tiling.tile_height * tiling.tile_width
    )


def _exact_product(device_type: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The product of batches of float32 matrices of integers, whatever precision the user grants to products."""
    if rounds_products(device_type):
        return lambda left, right: torch.bmm(left.double(), right.double()).float()
    return torch.bmm


def _integer_unit(weight: float, layout: tuple[int, int], height: int, width: int) -> float:
    """The finest unit (1/q Lab, q a power of two ≤ 4) in which no product or sum of `slic` exceeds 2^24."""
    # Of a cell and of a centroid alike; positions are counted from the middle of the image.
    squared_norm = LAB_RADIUS_SQUARED + weight**2 * 0.25 * (height**2 + width**2)
    # |c|² + 2 |c| |f| bounds every partial sum of a distance, in whatever order it is taken.
    distance = _PACK * (3 * squared_norm + 1)
    tile_cells = math.ceil(height / layout[0]) * math.ceil(width / layout[1])
    cells = min(height * width, len(_OFFSETS) * tile_cells)
    largest_sum = cells * max(128.0, weight * 0.5 * max(height, width))
    unit = float(_FINEST_UNIT)
    while unit**2 * distance > _LARGEST_EXACT or unit * largest_sum > _LARGEST_EXACT:
        unit /= 2
    return unit


def _check_slic_input(images: torch.Tensor, compactness: float, num_iterations: int, cell_size: int) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"Expected images of shape (batch, 3, height, width), got {tuple(images.shape)}.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"Expected images in uint8 or floating point (0..1), got {images.dtype}.")
    if cell_size < 1 or images.shape[2] % cell_size or images.shape[3] % cell_size or 0 in images.shape[2:]:
        raise ValueError(
            f"Expected a height and a width that cell_size={cell_size} divides, got {tuple(images.shape[2:])}."
        )
    if not 0 < compactness < math.inf:
        raise ValueError(f"Expected compactness > 0, got {compactness}.")
    if num_iterations < 1:
        raise ValueError(f"Expected num_iterations >= 1, got {num_iterations}.")


@torch.no_grad()
def slic(
    images: torch.Tensor,
    num_superpixels: int | Sequence[int] = 49,
    compactness: float = 10.0,
    num_iterations: int = 5,
    cell_size: int = 4,
) -> torch.Tensor:
    r"""
    Exactly K superpixels for every image of a batch, by SLIC on the mean colours of small cells.

    SLIC (Achanta et al., "SLIC Superpixels Compared to State-of-the-art Superpixel Methods", 2012): k-means on CIELAB
    colour and position with D² = d_c² + (d_s/S)²·m², S = √(HW/K). Here the K centres start as the means of the tiles
    of a regular grid (the one seeding rule that gives every image the same K), each cell is compared with the 3 x 3
    centres around its own tile, and nothing is relabelled for connectivity. A superpixel that lost all its cells gets
    the cell at its tile's centre; so does one that owns nothing but cells at tile centres, since it could lose them.
    Each superpixel then owns a cell that nobody takes: the others own one that is no tile centre.

    Args:
        images (`torch.Tensor` of shape `(batch_size, 3, height, width)`):
            sRGB images, uint8, or floating point in 0..1 (rounded to 8 bits).
        num_superpixels (`int` or pair of `int`, *optional*, defaults to 49):
            K, or (rows, columns) of the tiles.
        compactness (`float`, *optional*, defaults to 10.0):
            m: how many units of Lab the distance S weighs. Larger: squarer.
        num_iterations (`int`, *optional*, defaults to 5): Rounds of means and assignment.
        cell_size (`int`, *optional*, defaults to 4): Side of a cell in pixels; divides height and width.

    Returns:
        `torch.LongTensor` of shape `(batch_size, height / cell_size, width / cell_size)` with values in [0, K), each
        present in every image.

    Raises:
        ValueError: on a wrong shape, dtype, cell size, compactness or number of iterations, and when K cannot be laid
            out (see [`superpixel_layout`]).
    """
    _check_slic_input(images, compactness, num_iterations, cell_size)
    levels = images if images.dtype == torch.uint8 else images.float().mul(255).round_().clamp_(0, 255)
    return slic_of_cells(cell_sums(levels, cell_size), num_superpixels, compactness, num_iterations, cell_size)


@torch.no_grad()
def slic_of_cells(
    sums: torch.Tensor,
    num_superpixels: int | Sequence[int],
    compactness: float,
    num_iterations: int,
    cell_size: int,
) -> torch.Tensor:
    """[`slic`] of the sums (B, 3, h, w) of 8-bit levels in each cell, see [`~cielab.cell_sums`]."""
    batch, _, height, width = sums.shape
    layout = superpixel_layout(num_superpixels, height, width)
    num_tiles = layout[0] * layout[1]
    weight = compactness / math.sqrt(height * width / num_tiles)
    unit = _integer_unit(weight, layout, height, width)
    tiling = _tiling(*layout, height, width, weight * unit, sums.device)
    colours = _to_tiles(cell_lab(sums, cell_size, unit), layout, tiling)
    if tiling.rows is not None:
        colours = colours * tiling.valid
    features = torch.cat((tiling.positions.expand(batch, -1, -1, -1), colours), dim=2).flatten(0, 1)

    with without_autocast(sums.device.type):
        best, counts = _iterate(features, tiling, num_tiles, num_iterations)
    # Nine times a whole number, less the number of the candidate.
    candidate = best.neg().to(torch.int32).remainder(_PACK)
    ids = tiling.neighbours[tiling.first_candidate + candidate].flatten(1).index_select(1, tiling.place_of_cell)
    return _give_each_a_cell(ids, counts, tiling).view(batch, height, width)


def _iterate(
    features: torch.Tensor, tiling: _Tiling, num_tiles: int, num_iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Means and assignment in turn. `features` (B · K, 6, T): one, row, column, L, a, b of each cell of each tile.

    Returns for each cell how near the nearest candidate is, packed with its number, (B, K, T), and each superpixel's
    number of cells, (B, K).
    """
    product = _exact_product(features.device.type)
    by_place = features.transpose(1, 2)
    # The tiles themselves are the first assignment, and none is empty.
    counts, totals = features.sum(dim=2).view(-1, num_tiles, 6).split((1, 5), dim=2)
    centres = (totals / counts).round_()
    for iteration in range(num_iterations):
        if iteration > 0:
            # A superpixel without cells stays where it was.
            centres = torch.where(counts > 0, (totals / counts.clamp(min=1)).round_(), centres)
        # 2 c·f - |c|², the cell's own |f|² less the distance, of every cell to its nine candidates.
        nearness = torch.cat((centres.square().sum(dim=2, keepdim=True), centres), dim=2)
        nearness = torch.addcmul(tiling.handicap, nearness.index_select(1, tiling.neighbours), tiling.packing)
        nearness = product(nearness.view(-1, _PACK, 6), features)
        best = nearness.amax(dim=1, keepdim=True)
        # These are whole numbers and all different, so this is 1 for the nearest candidate and 0 for the others.
        members = nearness.sub_(best - 1).relu_()
        sums = product(members, by_place).view(-1, num_tiles * _PACK, 6)
        sums = sums.index_select(1, tiling.sources).view(-1, num_tiles, _PACK, 6).sum(dim=2)
        counts, totals = sums.split((1, 5), dim=2)
    return best.view(-1, num_tiles, features.shape[2]), counts.squeeze(2)


def _give_each_a_cell(ids: torch.Tensor, counts: torch.Tensor, tiling: _Tiling) -> torch.Tensor:
    """The rule for superpixels that lost all their cells, see `slic`: ids (B, h · w), counts (B, K)."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    # On a GPU to ask would be to wait.
    if not traced and counts.device.type == "cpu" and bool((counts > 0).all()):
        return ids
    centre_owners = ids[:, tiling.tile_centre]
    numbers = torch.arange(counts.shape[1], device=ids.device)
    owned_centres = (centre_owners[:, :, None] == numbers).sum(dim=1)
    needy = (counts == owned_centres) & (counts == 0).any(dim=1, keepdim=True)
    taken = tiling.is_tile_centre & needy[:, tiling.tile_of_cell]
    return torch.where(taken, tiling.tile_of_cell, ids)


__all__ = ["default_cell_size", "geometry", "overlap", "slic", "slic_of_cells", "superpixel_layout", "tile_ids"]
