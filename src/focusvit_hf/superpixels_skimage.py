"""The slow reference of `superpixels.slic`: scikit-image's SLIC, brought to cells and to exactly K superpixels."""

import numpy as np


def skimage_slic_ids(
    image: np.ndarray, num_superpixels: int, compactness: float, num_iterations: int, cell_size: int
) -> np.ndarray:
    """
    Superpixels of one image by `skimage.segmentation.slic` (Achanta et al. 2012, with its connectivity enforced).

    Args:
        image (`np.ndarray` of shape `(3, height, width)`): sRGB, uint8.
        num_superpixels (`int`): K, at most the number of cells.
        compactness (`float`): Larger is squarer.
        num_iterations (`int`): Rounds of k-means.
        cell_size (`int`): Side of a cell in pixels; divides height and width.

    Returns:
        `np.ndarray` of shape `(height / cell_size, width / cell_size)`, int64 in [0, K), each id present.

    Raises:
        ImportError: when scikit-image is not installed.
    """
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise ImportError("superpixel_method='skimage' needs scikit-image: pip install scikit-image") from error

    labels = slic(
        np.moveaxis(image, 0, -1),
        n_segments=num_superpixels,
        compactness=compactness,
        max_num_iter=num_iterations,
        start_label=0,
        channel_axis=-1,
    )
    return repair(majority(labels, cell_size), num_superpixels)


def majority(labels: np.ndarray, cell_size: int) -> np.ndarray:
    """The most frequent label of each cell, of equals the lowest: (H, W) to (H / cell_size, W / cell_size)."""
    height, width = labels.shape
    rows, columns = height // cell_size, width // cell_size
    number = int(labels.max()) + 1
    cell = np.arange(height)[:, None] // cell_size * columns + np.arange(width) // cell_size
    counts = np.bincount((cell * number + labels).ravel(), minlength=rows * columns * number)
    return counts.reshape(rows, columns, number).argmax(axis=-1)


def repair(labels: np.ndarray, num_superpixels: int) -> np.ndarray:
    """
    Makes a map own exactly the ids 0..K-1. While there are too many segments, the smallest joins the neighbour with
    which it shares the longest border; while there are too few, the largest is halved across its longer axis.

    Args:
        labels (`np.ndarray` of shape `(rows, columns)`): Non-negative integers, at least K cells.
        num_superpixels (`int`): K >= 1.

    Returns:
        `np.ndarray` of shape `(rows, columns)`, int64 in [0, K), each id present.
    """
    _, flat = np.unique(labels, return_inverse=True)
    ids = flat.reshape(labels.shape).astype(np.int64)
    for _ in range(int(ids.max()) + 1 - num_superpixels):
        smallest = int(np.bincount(ids.ravel()).argmin())
        ids[ids == smallest] = _nearest_neighbour(ids, smallest)
        ids[ids > smallest] -= 1
    for new in range(int(ids.max()) + 1, num_superpixels):
        rows, columns = np.nonzero(ids == np.bincount(ids.ravel()).argmax())
        order = np.lexsort((columns, rows) if np.ptp(rows) >= np.ptp(columns) else (rows, columns))
        second_half = order[len(order) // 2 :]
        ids[rows[second_half], columns[second_half]] = new
    return ids


def _nearest_neighbour(ids: np.ndarray, segment: int) -> int:
    """The id that shares the longest border with a segment, of equals the lowest."""
    pairs = [(ids[1:], ids[:-1]), (ids[:, 1:], ids[:, :-1])]
    touching = [b[(a == segment) & (b != segment)] for one, two in pairs for a, b in ((one, two), (two, one))]
    return int(np.bincount(np.concatenate(touching)).argmax())
