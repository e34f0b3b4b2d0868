"""From normalised pixels to 8-bit levels, and to CIELAB colours in whole numbers, so that arithmetic is exact."""

from collections.abc import Callable, Sequence

import torch

from .caching import cached_table


# Largest squared distance of an sRGB colour from (L, a, b) = (50, 0, 0), reached by pure blue.
LAB_RADIUS_SQUARED = 18300.0

# Levels of a cell's mean grey value: sixteenths of an 8-bit level, exact for cells of 1, 2 and 4 pixels.
_GREY_STEPS = 16
_LINEAR_MAX = 4095
# Side of the largest cell whose sum of levels float32 arithmetic on normalised pixels gives within 0.1.
_LARGEST_MEAN_CELL = 8
# What a few images may take between two operations: about what the cache of one core holds.
_CHUNK_BYTES = 2**21
# sRGB to XYZ over the D65 white point, in 1/1024, so that products and sums are exact. Rows sum to 1, so that grey has
# exactly a = b = 0.
_XYZ_FROM_RGB = torch.tensor([[444.0, 385.0, 195.0], [218.0, 732.0, 74.0], [18.0, 112.0, 894.0]]) / 1024


def _linear_light_table() -> torch.Tensor:
    """sRGB decoding (IEC 61966-2-1) of a grey level in sixteenths, rounded to 0..4095."""
    level = torch.arange(255 * _GREY_STEPS + 1, dtype=torch.float64) / (255 * _GREY_STEPS)
    linear = torch.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return (linear * _LINEAR_MAX).round().float()


def _lab_curve_table() -> torch.Tensor:
    """CIELAB's f(t) (CIE 15) for t = 0..4095 over 4095."""
    t = torch.arange(_LINEAR_MAX + 1, dtype=torch.float64) / _LINEAR_MAX
    return torch.where(t > (6 / 29) ** 3, t ** (1 / 3), t * (29 / 6) ** 2 / 3 + 4 / 29).float()


_TABLES = _linear_light_table(), _lab_curve_table(), _XYZ_FROM_RGB[:, :, None, None]


@cached_table
def _tables(device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(table.to(device) for table in _TABLES)


def levels_of_pixels(pixel_values: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """
    Undoes a normalisation.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): (rescaled - mean) / std.
        mean, std (sequences of `float`): Of the normalisation, for each channel.

    Returns:
        `torch.FloatTensor` like `pixel_values`: float32, in whole levels 0..255.
    """
    black, factor = _normalisation(tuple(mean), tuple(std), 255, pixel_values.device)
    return torch.addcmul(black, pixel_values.float(), factor).round_().clamp_(0, 255)


def cell_sums(levels: torch.Tensor, cell_size: int) -> torch.Tensor:
    """
    Sum of the levels in each cell.

    Args:
        levels (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
            Whole levels 0..255, uint8 or floating point.
        cell_size (`int`): Side of a cell in pixels; divides height and width.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, channels, height / cell_size, width / cell_size)`, whole numbers.
    """
    return _in_chunks(lambda images: _sums(images.float(), cell_size), levels)


def _sums(values: torch.Tensor, cell_size: int) -> torch.Tensor:
    """
    Sum of the values in each cell, float32. Rows go first, as whole vectors, and then a quarter of the values is left
    for columns: on a CPU that takes two fifths of the time of `avg_pool2d`, which does not vectorise windows.
    """
    if cell_size == 1:
        return values
    batch, channels, height, width = values.shape
    rows = values.reshape(batch, channels, height // cell_size, cell_size, width).sum(dim=3)
    if cell_size > _LARGEST_MEAN_CELL:
        return rows.view(batch, channels, height // cell_size, width // cell_size, cell_size).sum(dim=-1)
    columns = rows.view(batch, channels, height // cell_size, width // cell_size, cell_size).unbind(-1)
    sums = columns[0] + columns[1]
    for column in columns[2:]:
        sums += column
    return sums


def _in_chunks(sums: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """`sums` of a few images at a time: on a CPU what lies between two operations then stays in its caches."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if traced or images.device.type != "cpu" or images.shape[0] < 2:
        return sums(images)
    count = max(1, _CHUNK_BYTES // (4 * images[0].numel()))
    return torch.cat([sums(chunk) for chunk in images.split(count)])


def cell_sums_of_pixels(
    pixel_values: torch.Tensor, mean: Sequence[float], std: Sequence[float], cell_size: int
) -> torch.Tensor:
    """
    [`cell_sums`] of a normalised image.

    Of float32 pixels only the cells' sums are rescaled, to whole sums of levels, which is what rounding each pixel
    gives wherever the pixels come from 8 bits. Of narrower types, which may be off by nearly half a level, and of
    cells so large that errors could add up to as much, each pixel is rounded. Pixels beyond black and white count as
    they are, until the sum of their cell is cut to those of black and white.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): (rescaled - mean) / std.
        mean, std (sequences of `float`): Of the normalisation, for each channel.
        cell_size (`int`): Side of a cell in pixels; divides height and width.
    """
    white = 255 * cell_size**2
    if pixel_values.dtype != torch.float32 or cell_size > _LARGEST_MEAN_CELL:
        black, factor = _normalisation(tuple(mean), tuple(std), 255, pixel_values.device)

        def sums(images: torch.Tensor) -> torch.Tensor:
            # Unlike `addcmul` a product and a sum with one value for a whole channel are vectorised.
            levels = images.to(torch.float32, copy=True).mul_(factor).add_(black).round_()
            return _sums(levels, cell_size)

        return _in_chunks(sums, pixel_values).clamp_(0, white)
    found = _in_chunks(lambda images: _sums(images, cell_size), pixel_values)
    black, factor = _normalisation(tuple(mean), tuple(std), white, pixel_values.device)
    return torch.addcmul(black, found, factor).round_().clamp_(0, white)


@cached_table
def _normalisation(
    mean: tuple[float, ...], std: tuple[float, ...], white: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """What undoes a normalisation: the level (or sum of levels) of a pixel value 0, and how many each 1 of it adds."""
    values = torch.tensor((mean, std), dtype=torch.float32, device=device)[:, :, None, None]
    return values[0] * white, values[1] * 255


def cell_lab(sums: torch.Tensor, cell_size: int, unit: float) -> torch.Tensor:
    """
    Mean colour of each cell in CIELAB (CIE 15, D65) as whole numbers.

    The mean is taken in sRGB, in sixteenths of a level; tables and integer weights take it from there, so that the
    result is the same on every device. It is within 1.25 of `skimage.color.rgb2lab` in each coordinate, on average
    within 0.1.

    Args:
        sums (`torch.FloatTensor` of shape `(batch_size, 3, rows, columns)`): Of sRGB, see [`cell_sums`].
        cell_size (`int`): Side of a cell in pixels.
        unit (`float`): How many units make 1 in Lab.

    Returns:
        `torch.FloatTensor` like `sums`: (L - 50, a, b) · unit.
    """
    linear_light, lab_curve, xyz_from_rgb = _tables(sums.device)
    # NaN must not index the table; the logits of such an image are NaN anyway.
    grey = (sums * (_GREY_STEPS / cell_size**2)).round_().nan_to_num_().long()
    linear = linear_light[grey]
    # No matrix product: those may be rounded, to TF32 for instance.
    xyz = (linear[:, None] * xyz_from_rgb).sum(dim=2)
    x, y, z = lab_curve[xyz.round_().long()].unbind(1)
    lightness = (y - 66 / 116) * (116 * unit)
    return torch.stack((lightness, (x - y) * (500 * unit), (y - z) * (200 * unit)), dim=1).round()
