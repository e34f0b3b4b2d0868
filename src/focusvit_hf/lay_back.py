"""Values of regions laid back onto the pixels they stand for."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn


_MODES = ("nearest", "bilinear")


class Box(NamedTuple):
    """A rectangle in pixels, fractions allowed, that may reach beyond the image it lies in."""

    top: float
    left: float
    bottom: float
    right: float


def cells_to_pixels(
    cells: torch.Tensor, size: tuple[int, int], box: Box | None = None, fill: int = 0, mode: str = "nearest"
) -> torch.Tensor:
    """
    A map of cells at the resolution of an image. Gradients pass through both modes.

    Args:
        cells (`torch.Tensor` of shape `(..., rows, columns)`): Any type; floating point for `"bilinear"`.
        size (pair of `int`): Height and width of the image.
        box ([`Box`], *optional*): The part of the image that the cells cover, by default all of it.
        fill (`int`, *optional*, defaults to 0): Value of pixels outside the box.
        mode (`str`, *optional*, defaults to `"nearest"`):
            `"nearest"`: a pixel has the value of the cell it lies in; `"bilinear"`: it lies between the centres of
            cells, as `torch.nn.functional.interpolate` has it with `align_corners=False`.

    Returns:
        `torch.Tensor` of shape `(..., height, width)`.

    Raises:
        ValueError: on another `mode`, and on integers with `"bilinear"`.
    """
    if mode not in _MODES:
        raise ValueError(f"Expected mode to be one of {_MODES}, got {mode!r}.")
    box = Box(0.0, 0.0, float(size[0]), float(size[1])) if box is None else box
    rows, columns = cells.shape[-2:]
    y = _cells_of_pixels(size[0], box.top, box.bottom, rows, cells.device)
    x = _cells_of_pixels(size[1], box.left, box.right, columns, cells.device)
    if mode == "nearest":
        row, column = (places.floor().long() for places in (y, x))
        pixels = cells[..., row.clamp(0, rows - 1), :][..., column.clamp(0, columns - 1)]
    elif cells.is_floating_point():
        pixels = _triangles(y, rows).to(cells.dtype) @ cells @ _triangles(x, columns).to(cells.dtype).T
    else:
        raise ValueError(f"Expected floating-point cells for mode 'bilinear', got {cells.dtype}.")
    inside = ((y >= 0) & (y < rows))[:, None] & ((x >= 0) & (x < columns))
    return pixels.masked_fill(~inside, fill)


def _cells_of_pixels(length: int, start: float, end: float, count: int, device: torch.device) -> torch.Tensor:
    """(length,) float64: the place of each pixel's centre, counted in cells from the first one's edge."""
    centres = torch.arange(length, device=device, dtype=torch.float64) + 0.5
    return (centres - start) * (count / (end - start))


def _triangles(places: torch.Tensor, count: int) -> torch.Tensor:
    """(len(places), count): the weight of each cell at each place, 1 at its centre, 0 from the next centre on."""
    centres = torch.arange(count, device=places.device) + 0.5
    return (1 - (places.clamp(0.5, count - 0.5)[:, None] - centres).abs()).clamp(min=0)


class CellsAround:
    """
    The cells around each pixel: with a `reach` of 1 the four between whose centres `"bilinear"` interpolates, else
    `(2 · reach)²`; at the rim of an image some are one. What they all agree on needs no interpolation, and that is
    most of an image.

    Args:
        grid (pair of `int`): Rows and columns of the cells, which cover the image.
        size (pair of `int`): Height and width of the image.
        device (`torch.device`): Where the cells are.
        reach (`int`, *optional*, defaults to 1): How many cells on each side of a pixel count, up, down and sideways.
    """

    def __init__(self, grid: tuple[int, int], size: tuple[int, int], device: torch.device, reach: int = 1):
        self.grid, self.reach = grid, reach
        places = [_cells_of_pixels(n, 0.0, float(n), cells, device) - 0.5 for n, cells in zip(size, grid, strict=True)]
        # From -1, where a pixel lies above or left of the first centre.
        self.first = [place.floor().long() for place in places]
        steps = torch.arange(1 - reach, reach + 1, device=device)[:, None]
        # For each row and column of pixels the cells around it, as parts of their number, and how near they are: 1 at
        # the pixel, 0 from `reach` cells on. Sums of the one and products of the other belong to the cells.
        self.cells = [(first + steps).clamp(0, n - 1) for first, n in zip(self.first, grid, strict=True)]
        self.cells[0] = self.cells[0] * grid[1]
        apart = [place - first for place, first in zip(places, self.first, strict=True)]
        self.nearness = [(1 - (one - steps).abs() / reach).float() for one in apart]

    def agree(self, states: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        """
        Whether the cells around each pixel have the same state.

        Args:
            states (`torch.LongTensor` of shape `(rows, columns)`): Of the cells.
            top, bottom (`int`): The first row of pixels, and the one behind the last.

        Returns:
            `torch.BoolTensor` of shape `(bottom - top, width)`.
        """
        reach = self.reach
        rows, columns = (torch.arange(-reach, n + reach, device=states.device).clamp(0, n - 1) for n in self.grid)
        framed = states[rows][:, columns]
        along = _runs(framed[:, 1:] == framed[:, :-1], 2 * reach - 1, dim=1)
        same = (
            _runs(along, 2 * reach, dim=0)
            & _runs(framed[1:] == framed[:-1], 2 * reach - 1, dim=0)[:, : along.shape[1]]
        )
        return same[self.first[0][top:bottom] + 1].index_select(1, self.first[1] + 1)

    def disagreeing(self, states: torch.Tensor, strip_pixels: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """
        The pixels around which cells differ in their states, a strip of rows at a time.

        Args:
            states (`torch.LongTensor` of shape `(rows, columns)`): Of the cells.
            strip_pixels (`int`): About how many pixels a strip may have, so that memory is bounded.

        Returns:
            Iterator of rows and columns of pixels, `(pixels,)` each.
        """
        height, width = len(self.first[0]), len(self.first[1])
        step = max(1, strip_pixels // width)
        for top in range(0, height, step):
            rows, columns = (~self.agree(states, top, min(top + step, height))).nonzero(as_tuple=True)
            yield rows + top, columns

    def interpolate(self, values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """
        What lies between the centres of the four nearest cells, at single pixels; with a `reach` of 1 alone.

        Args:
            values (`torch.FloatTensor` of shape `(rows * columns, channels)`): Of the cells, row by row.
            rows, columns (`torch.LongTensor` of shape `(pixels,)`): Where the pixels are.

        Returns:
            `torch.FloatTensor` of shape `(pixels, channels)`.
        """
        cells = combined(self.cells, rows, columns, torch.add)
        return weighted_sums(values, cells, combined(self.nearness, rows, columns, torch.mul))


def combined(
    tables: Sequence[torch.Tensor],
    rows: torch.Tensor,
    columns: torch.Tensor,
    operation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """
    What two tables of [`CellsAround`] say of single pixels, for each pair of a row and a column of cells around them.

    Args:
        tables (pair of `torch.Tensor` of shape `(2 * reach, length)`): Of the rows and columns of pixels.
        rows, columns (`torch.LongTensor` of shape `(pixels,)`): Where the pixels are.
        operation (callable): What makes one of two, `torch.add` or `torch.mul`.

    Returns:
        `torch.Tensor` of shape `((2 * reach)², pixels)`. Pixels come last, since what is done to long rows is
        vectorised.
    """
    down, along = (table.index_select(1, pixels) for table, pixels in zip(tables, (rows, columns), strict=True))
    return operation(down[:, None], along).flatten(0, 1)


def weighted_sums(values: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """
    Sums of some rows of a table, with weights. Of several channels the operation for bags of words reads each row once
    and keeps none of them, in a sixth of the time of picking the rows and adding them up.

    Args:
        values (`torch.FloatTensor` of shape `(count, channels)`): The table.
        rows (`torch.LongTensor` of shape `(n, sums)`): Rows of each sum, in [0, count).
        weights (`torch.FloatTensor` of shape `(n, sums)`): Their weights.

    Returns:
        `torch.FloatTensor` of shape `(sums, channels)`.
    """
    weights = weights.to(values.dtype)
    if values.shape[1] == 1:
        return (values[:, 0].index_select(0, rows.flatten()).view_as(weights) * weights).sum(dim=0)[:, None]
    rows, weights = rows.T.contiguous(), weights.T.contiguous()
    return nn.functional.embedding_bag(rows, values, per_sample_weights=weights, mode="sum")


def _runs(flags: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    """Whether all of `length` flags in a row are true, from each place at which there are as many."""
    count = flags.shape[dim] - length + 1
    found = flags.narrow(dim, 0, count)
    for step in range(1, length):
        found = found & flags.narrow(dim, step, count)
    return found


def values_of_cells(values: torch.Tensor, region_ids: torch.Tensor) -> torch.Tensor:
    """
    The value of each cell's region. Gradients pass to the values.

    Args:
        values (`torch.Tensor` of shape `(batch_size, K, channels)`): Values of the regions.
        region_ids (`torch.LongTensor` of shape `(batch_size or 1, rows, columns)`): Region of each cell, in [0, K).

    Returns:
        `torch.Tensor` of shape `(batch_size, rows, columns, channels)`.
    """
    batch, count = values.shape[:2]
    # Whole rows are copied, which is several times faster than an index for every number.
    first = torch.arange(batch, device=values.device)[:, None, None] * count
    rows = (region_ids.to(values.device) + first).flatten()
    return values.flatten(0, 1).index_select(0, rows).unflatten(0, (batch, *region_ids.shape[1:]))


def lay_back(
    values: torch.Tensor,
    superpixel_ids: torch.Tensor,
    size: tuple[int, int],
    box: Box | None = None,
    mode: str = "nearest",
) -> torch.Tensor:
    """
    Lays one value, or one vector, of each region back onto the pixels of the region. Gradients pass to the values.

    Args:
        values (`torch.Tensor` of shape `(batch_size, K)` or `(batch_size, K, channels)`): Values of the regions.
        superpixel_ids (`torch.LongTensor` of shape `(batch_size or 1, rows, columns)`):
            Region of each cell, in [0, K). A cell with another id gets 0.
        size (pair of `int`): Height and width of the result in pixels.
        box ([`Box`], *optional*): The part of the result that the map covers, by default all of it; 0 outside.
        mode (`str`, *optional*, defaults to `"nearest"`):
            How the map's cells become pixels, see [`cells_to_pixels`]. `"bilinear"` smooths between neighbouring cells
            of the map; a map with one cell for each tile of a grid interpolates between the tiles.

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width)` or `(batch_size, channels, height, width)`.

    Raises:
        ValueError: when the shapes do not fit, on another `mode`, and on integers with `"bilinear"`.
    """
    if values.ndim not in (2, 3) or superpixel_ids.ndim != 3 or superpixel_ids.shape[0] not in (1, values.shape[0]):
        raise ValueError(
            "Expected values of shape (batch, K) or (batch, K, channels) and a map of shape (batch, rows, columns), "
            f"got {tuple(values.shape)} and {tuple(superpixel_ids.shape)}."
        )
    batch, count = values.shape[:2]
    vectors = values.reshape(batch, count, -1)
    cells = values_of_cells(vectors, superpixel_ids.clamp(0, count - 1)).permute(0, 3, 1, 2)
    cells = cells.masked_fill(((superpixel_ids < 0) | (superpixel_ids >= count))[:, None], 0)
    pixels = cells_to_pixels(cells, size, box, mode=mode)
    return pixels[:, 0] if values.ndim == 2 else pixels
