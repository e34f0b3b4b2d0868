"""Options of superpixels and normalisation: what values they take, and which of them processor and model share."""

import math
from typing import Any

from .superpixels import default_cell_size


# Beyond it colours count for nothing, and squares of distances leave the range of floats.
LARGEST_COMPACTNESS = 1e6
SUPERPIXEL_METHODS = ("torch", "skimage")
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


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_options(options: dict[str, Any]) -> None:
    """Raises ValueError for options out of range; `options` holds all of them."""
    for name in ("superpixel_iterations", "patch_size"):
        if not _is_count(options[name]):
            raise ValueError(f"Expected {name} as a whole number >= 1, got {options[name]!r}.")
    number = options["num_superpixels"]
    pair = number if isinstance(number, tuple) else (number, 1)
    if len(pair) != 2 or not all(map(_is_count, pair)):
        raise ValueError(f"Expected num_superpixels as K >= 1 or (rows, columns), each >= 1, got {number!r}.")
    compactness = options["superpixel_compactness"]
    if not isinstance(compactness, (int, float)) or not 0 < compactness <= LARGEST_COMPACTNESS:
        raise ValueError(f"Expected superpixel_compactness > 0 and <= {LARGEST_COMPACTNESS:g}, got {compactness!r}.")
    if options["superpixel_method"] not in SUPERPIXEL_METHODS:
        raise ValueError(
            f"Expected superpixel_method to be one of {SUPERPIXEL_METHODS}, got {options['superpixel_method']!r}."
        )
    cell = options["superpixel_cell_size"]
    if cell is not None and (not _is_count(cell) or options["patch_size"] % cell):
        raise ValueError(
            f"Expected a superpixel_cell_size that divides patch_size={options['patch_size']}, got {cell!r}."
        )
    for name in ("image_mean", "image_std"):
        values = options[name]
        values = values if isinstance(values, tuple) else () if values is None else (values,)
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            raise ValueError(f"Expected finite numbers in {name}, got {options[name]!r}.")
        if name == "image_std" and not all(value > 0 for value in values):
            raise ValueError(f"Expected image_std > 0, got {options[name]!r}.")


def superpixel_count(num_superpixels: int | tuple[int, int]) -> int:
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
    if values["superpixel_cell_size"] is None:
        values["superpixel_cell_size"] = default_cell_size(owner.patch_size)
    return values
