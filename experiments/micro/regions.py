"""Regions a token can stand for: superpixels, and the controls that know nothing of the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from focusvit_hf.superpixel_options import superpixel_layout
from focusvit_hf.superpixels import slic, tile_ids


REGIONS = ("superpixel", "random", "other_image", "detail_tiles")


def random_regions(
    batch_size: int, num_regions: int | Sequence[int], cells: tuple[int, int], generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Random connected regions: a seed at random in each tile of the grid, each cell to the nearest seed in city-block
    distance, ties to the lower number.

    They are connected: one step from a cell towards its seed brings no other seed nearer than that step does.

    Args:
        batch_size (`int`): Number of maps.
        num_regions (`int` or pair of `int`): K, or (rows, columns) of the tiles.
        cells (pair of `int`): Rows and columns of the map.
        generator (`torch.Generator`, *optional*): What the seeds are drawn from.

    Returns:
        `torch.LongTensor` of shape `(batch_size, rows, columns)`, values in [0, K), each present in every map.
    """
    height, width = cells
    layout = superpixel_layout(num_regions, height, width)
    tiles = tile_ids(layout, height, width)
    scores = torch.rand(batch_size, height * width, generator=generator)
    owned = tiles.flatten() == torch.arange(layout[0] * layout[1])[:, None]
    seeds = torch.where(owned, scores[:, None], -1.0).argmax(dim=2)
    row, column = torch.arange(height * width) // width, torch.arange(height * width) % width
    distance = (seeds[..., None] // width - row).abs() + (seeds[..., None] % width - column).abs()
    return distance.argmin(dim=1).view(batch_size, height, width)


def detail_tiles(images: torch.Tensor, num_regions: int, cell_size: int) -> torch.Tensor:
    """
    Tiles that are small where the image has detail: rectangles cut in two across their longer side, again and again,
    so that each part has its share of the detail (as the median cut of Heckbert 1982 has of the colours). Detail is
    the mean gradient of a cell, to which the image's mean is added, so that a tile is at most about twice as dense
    where there is none as a tile of the grid.

    Args:
        images (`torch.ByteTensor` of shape `(batch_size, 3, height, width)`): 8-bit levels.
        num_regions (`int`): K, at most a quarter of the number of cells.
        cell_size (`int`): Side of a cell in pixels.

    Returns:
        `torch.LongTensor` of shape `(batch_size, height / cell_size, width / cell_size)`, values in [0, K), each
        present in every map.

    Raises:
        ValueError: for more regions than that.
    """
    most = images[0, 0].numel() // (4 * cell_size**2)
    if num_regions > most:
        raise ValueError(f"Expected at most {most} tiles by detail, a quarter of the cells, got {num_regions}.")
    grey = functional.pad(images.float().mean(dim=1, keepdim=True), (0, 1, 0, 1), mode="replicate")
    steps = (grey[..., 1:, :-1] - grey[..., :-1, :-1]).abs() + (grey[..., :-1, 1:] - grey[..., :-1, :-1]).abs()
    detail = functional.avg_pool2d(steps, cell_size)[:, 0]
    # An image of one colour is cut evenly.
    detail = detail + detail.mean(dim=(1, 2), keepdim=True).clamp(min=1e-3)
    return torch.from_numpy(np.stack([_cut(one, num_regions) for one in detail.double().numpy()]))


def _cut(detail: np.ndarray, num_regions: int) -> np.ndarray:
    ids = np.zeros(detail.shape, np.int64)
    parts = [(slice(0, detail.shape[0]), slice(0, detail.shape[1]), 0, num_regions)]
    while parts:
        rows, columns, first, count = parts.pop()
        if count == 1:
            ids[rows, columns] = first
            continue
        height, width = rows.stop - rows.start, columns.stop - columns.start
        lines = detail[rows, columns].sum(axis=1 if height >= width else 0)
        across = min(height, width)
        half = count // 2
        place = int(np.abs(np.cumsum(lines) / lines.sum() - half / count).argmin()) + 1
        # Each part keeps a cell for each of its regions.
        place = min(max(place, -(-half // across)), len(lines) - -(-(count - half) // across))
        line = rows if height >= width else columns
        before, after = slice(line.start, line.start + place), slice(line.start + place, line.stop)
        for part, start, share in ((before, first, half), (after, first + half, count - half)):
            parts.append((part, columns, start, share) if height >= width else (rows, part, start, share))
    return ids


def region_ids(
    images: torch.Tensor,
    kind: str,
    num_superpixels: int | Sequence[int],
    compactness: float,
    iterations: int,
    cell_size: int,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    The maps of a batch.

    Args:
        images (`torch.ByteTensor` of shape `(batch_size, 3, height, width)`): 8-bit levels.
        kind (`str`):
            `"superpixel"`; `"random"`: see [`random_regions`]; `"other_image"`: superpixels of the image before it
            in the batch, with the shapes of superpixels and nothing to do with this image; `"detail_tiles"`: see
            [`detail_tiles`], for which K is one number.
        generator (`torch.Generator`, *optional*): What random regions are drawn from.

    Returns:
        `torch.LongTensor` of shape `(batch_size, height / cell_size, width / cell_size)`.

    Raises:
        ValueError: on another `kind`.
    """
    if kind == "random":
        cells = (images.shape[2] // cell_size, images.shape[3] // cell_size)
        return random_regions(len(images), num_superpixels, cells, generator)
    if kind == "detail_tiles" and isinstance(num_superpixels, int):
        return detail_tiles(images, num_superpixels, cell_size)
    if kind not in REGIONS:
        raise ValueError(f"Expected regions to be one of {REGIONS}, got {kind!r}.")
    ids = slic(images, num_superpixels, compactness, iterations, cell_size)
    return ids.roll(1, 0) if kind == "other_image" else ids
