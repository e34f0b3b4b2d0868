"""Options of superpixels and normalisation: what values they take, and which of them processor and model share."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


_LARGEST_ASPECT = 2.0


def default_cell_size(patch_size: int) -> int:
    """The largest divisor of `patch_size` that is at most a quarter of it: 16 -> 4, 14 -> 2, 8 -> 2, 4 -> 1."""
    # A plain loop: dynamo traces it.
    for divisor in range(patch_size // 4, 0, -1):
        if patch_size % divisor == 0:
            return divisor
    return 1


def _squarest_layout(num_superpixels: int, height: int, width: int) -> tuple[int, int] | None:
    """The (rows, columns) whose tiles are nearest to squares, None where no tiles have an aspect of at most 2."""
    best, smallest = None, math.inf
    # A plain loop: dynamo traces it for any size.
    for rows in range(1, min(num_superpixels, height) + 1):
        columns = num_superpixels // rows
        if rows * columns != num_superpixels or columns > width:
            continue
        aspect = (height * columns) / (rows * width)
        aspect = max(aspect, 1 / aspect)
        if aspect <= _LARGEST_ASPECT and aspect < smallest:
            best, smallest = (rows, columns), aspect
    return best


def superpixel_layout(num_superpixels: int | Sequence[int], height: int, width: int) -> tuple[int, int]:
    """
    How `num_superpixels` tiles are laid out over an image of `height` x `width` cells.

    Args:
        num_superpixels (`int` or pair of `int`):
            Number of superpixels, or their (rows, columns). A number must factor into tiles of an aspect of at most 2.
        height (`int`), width (`int`): Size of the image in cells.

    Returns:
        `tuple[int, int]`: (rows, columns), the factors whose tiles are nearest to squares.

    Raises:
        ValueError: when the number cannot be laid out (the nearest one that can is named) or a pair does not fit.
    """
    if not isinstance(num_superpixels, int):
        if len(num_superpixels) != 2:
            raise ValueError(f"Expected num_superpixels as K or (rows, columns), got {num_superpixels}.")
        rows, columns = num_superpixels
        if not (1 <= rows <= height and 1 <= columns <= width):
            raise ValueError(
                f"Expected (rows, columns) of superpixels between (1, 1) and the image's ({height}, {width}) cells, "
                f"got ({rows}, {columns})."
            )
        return rows, columns
    if num_superpixels < 1:
        raise ValueError(f"Expected at least one superpixel, got num_superpixels={num_superpixels}.")
    layout = _squarest_layout(num_superpixels, height, width)
    if layout is not None:
        return layout
    start = min(num_superpixels, height * width)
    candidates = (k for distance in range(height * width) for k in (start - distance, start + distance))
    nearest = next((k for k in candidates if k > 0 and _squarest_layout(k, height, width)), None)
    hint = "none can" if nearest is None else f"the nearest that can is {nearest}"
    raise ValueError(
        f"Expected num_superpixels to factor into tiles of an aspect of at most 2 on {height} x {width} cells, "
        f"got {num_superpixels}; {hint}. Or give a (rows, columns) pair."
    )


def _borders(count: int, length: int) -> list[int]:
    return [i * length // count for i in range(count + 1)]


# What no model comes near: a thousand times the size of any part of the largest ViT.
LARGEST_SIZE = 2**20
SUPERPIXEL_METHODS = ("torch", "skimage")
# Smallest and largest value of each number that processor and configuration share.
_RANGES: dict[str, tuple[float, float]] = {
    "patch_size": (1, LARGEST_SIZE),
    # SLIC settles within ten rounds; a configuration from anywhere must not keep a machine busy for hours.
    "superpixel_iterations": (1, 1000),
    # Below, scikit-image's SLIC divides by a square that is zero and ends the process. Above, colours count for
    # nothing, and squares of distances leave the range of floats.
    "superpixel_compactness": (1e-6, 1e6),
    # Within these float32 holds the normalised pixels.
    "image_mean": (-1e6, 1e6),
    "image_std": (1e-6, 1e6),
    "rescale_factor": (1e-6, 1e6),
}
# What processor and configuration share; a cell size of None counts as the one it stands for.
SHARED_FIELDS = (
    "num_superpixels",
    "superpixel_compactness",
    "superpixel_iterations",
    "superpixel_cell_size",
    "superpixel_method",
    "image_mean",
    "image_std",
)


class SuperpixelOptions(NamedTuple):
    """How images are cut into superpixels, see [`~superpixels.slic`]; a cell has a size of its own here."""

    num_superpixels: int | Sequence[int]
    compactness: float
    num_iterations: int
    cell_size: int
    method: str

    @classmethod
    def of(cls, owner: Any) -> "SuperpixelOptions":
        """Those of a configuration, of an image processor or of anything else with attributes of these names."""
        cell = owner.superpixel_cell_size
        return cls(
            owner.num_superpixels,
            owner.superpixel_compactness,
            owner.superpixel_iterations,
            default_cell_size(owner.patch_size) if cell is None else cell,
            owner.superpixel_method,
        )


def check_range(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    """Raises ValueError unless `value` is a number, or a whole number, from `low` to `high`."""
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"Expected {name} as {kind} from {low} to {high}, got {value!r}.")


def check_options(options: Mapping[str, Any]) -> None:
    """
    Raises ValueError for options out of range.

    Args:
        options (mapping): `patch_size`, all of [`SHARED_FIELDS`] and, of a processor, `rescale_factor`.
    """
    for name in ("superpixel_iterations", "patch_size"):
        check_range(name, options[name], *_RANGES[name], whole=True)
    number = options["num_superpixels"]
    pair = number if isinstance(number, (list, tuple)) else (number, 1)
    if len(pair) != 2 or not all(isinstance(value, int) and value >= 1 and value is not True for value in pair):
        raise ValueError(f"Expected num_superpixels as K or (rows, columns), each >= 1, got {number!r}.")
    check_range("superpixel_compactness", options["superpixel_compactness"], *_RANGES["superpixel_compactness"])
    if options["superpixel_method"] not in SUPERPIXEL_METHODS:
        raise ValueError(
            f"Expected superpixel_method to be one of {SUPERPIXEL_METHODS}, got {options['superpixel_method']!r}."
        )
    cell = options["superpixel_cell_size"]
    if cell is not None:
        check_range("superpixel_cell_size", cell, 1, LARGEST_SIZE, whole=True)
        if options["patch_size"] % cell:
            raise ValueError(
                f"Expected a superpixel_cell_size that divides patch_size={options['patch_size']}, got {cell!r}."
            )
    for name in ("image_mean", "image_std", "rescale_factor"):
        values = options.get(name)
        for value in values if isinstance(values, (list, tuple)) else () if values is None else (values,):
            check_range(name, value, *_RANGES[name])


def superpixel_count(num_superpixels: int | Sequence[int]) -> int:
    """K as one number."""
    return num_superpixels if isinstance(num_superpixels, int) else math.prod(num_superpixels)


def shared_values(owner: Any, num_channels: int) -> dict[str, Any]:
    """The shared fields of a processor or configuration, in one form; one mean stands for that of every channel."""
    values = {name: getattr(owner, name) for name in SHARED_FIELDS}
    for name, value in values.items():
        if isinstance(value, (list, tuple)):
            values[name] = tuple(value)
    for name in ("image_mean", "image_std"):
        if isinstance(values[name], (int, float)):
            values[name] = (values[name],) * num_channels
    values["superpixel_cell_size"] = SuperpixelOptions.of(owner).cell_size
    return values
