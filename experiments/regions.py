"""Regions a token can stand for: superpixels, and the controls that know nothing of the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from focusvit_hf.superpixels import slic, superpixel_layout, tile_ids


REGIONS = ("superpixel", "random", "other_picture")


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
            `"superpixel"`; `"random"`: see [`random_regions`]; `"other_picture"`: superpixels of the picture before it
            in the batch, with the shapes of superpixels and nothing to do with this picture.
        generator (`torch.Generator`, *optional*): What random regions are drawn from.

    Returns:
        `torch.LongTensor` of shape `(batch_size, height / cell_size, width / cell_size)`.

    Raises:
        ValueError: on another `kind`.
    """
    if kind == "random":
        cells = (images.shape[2] // cell_size, images.shape[3] // cell_size)
        return random_regions(len(images), num_superpixels, cells, generator)
    if kind not in REGIONS:
        raise ValueError(f"Expected regions to be one of {REGIONS}, got {kind!r}.")
    ids = slic(images, num_superpixels, compactness, iterations, cell_size)
    return ids.roll(1, 0) if kind == "other_picture" else ids
