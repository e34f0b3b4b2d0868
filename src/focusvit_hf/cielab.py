"""From normalised pixels to 8-bit levels, and to CIELAB colours in whole numbers, so that arithmetic is exact."""

import torch
from torch import nn


# Largest squared distance of an sRGB colour from (L, a, b) = (50, 0, 0), reached by pure blue.
LAB_RADIUS_SQUARED = 18300.0

# Levels of a cell's mean grey value: sixteenths of an 8-bit level, exact for cells of 1, 2 and 4 pixels.
_GREY_STEPS = 16
_LINEAR_MAX = 4095
# sRGB to XYZ over the D65 white point, in 1/1024. Rows sum to 1024, so that grey has exactly a = b = 0.
_XYZ_FROM_RGB = torch.tensor([[444.0, 385.0, 195.0], [218.0, 732.0, 74.0], [18.0, 112.0, 894.0]])


def _linear_light_table() -> torch.Tensor:
    """sRGB decoding (IEC 61966-2-1) of a grey level in sixteenths, rounded to 0..4095."""
    level = torch.arange(255 * _GREY_STEPS + 1, dtype=torch.float64) / (255 * _GREY_STEPS)
    linear = torch.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return (linear * _LINEAR_MAX).round().float()


def _lab_curve_table() -> torch.Tensor:
    """CIELAB's f(t) (CIE 15) for t = 0..4095 over 4095."""
    t = torch.arange(_LINEAR_MAX + 1, dtype=torch.float64) / _LINEAR_MAX
    return torch.where(t > (6 / 29) ** 3, t ** (1 / 3), t * (29 / 6) ** 2 / 3 + 4 / 29).float()


_LINEAR_LIGHT = _linear_light_table()
_LAB_CURVE = _lab_curve_table()


def grey_levels(pixel_values: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, white: float = 1.0) -> torch.Tensor:
    """
    Undoes a normalisation. Model and processor share it, so that both round the same numbers to the same levels.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): (rescaled - mean) / std.
        mean, std (`torch.FloatTensor` that broadcast to `pixel_values`): Of the normalisation, in float32.
        white (`float`, *optional*, defaults to 1.0): Value of white in the rescaled picture.

    Returns:
        `torch.FloatTensor` like `pixel_values`: float32, in whole levels 0..255.
    """
    levels = (pixel_values.float() * (std * 255)).add_(mean * 255)
    if white != 1.0:
        levels.div_(white)
    return levels.round_().clamp_(0, 255)


def cell_lab(levels: torch.Tensor, cell_size: int, unit: float) -> torch.Tensor:
    """
    Mean colour of each cell in CIELAB (CIE 15, D65) as whole numbers.

    The mean is taken in sRGB, in sixteenths of a level; tables and integer weights take it from there, so that the
    result is the same on every device. It is within 1.25 of `skimage.color.rgb2lab` in each coordinate, on average
    within 0.1.

    Args:
        levels (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): sRGB in whole levels 0..255.
        cell_size (`int`): Side of a cell in pixels; divides height and width.
        unit (`float`): How many units make 1 in Lab.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, 3, height / cell_size, width / cell_size)`: (L - 50, a, b) · unit.
    """
    cells = nn.functional.avg_pool2d(levels, cell_size) if cell_size > 1 else levels
    # NaN must not index the table; the logits of such a picture are NaN anyway.
    grey = (cells * _GREY_STEPS).round().nan_to_num_().long()
    device = levels.device
    linear = _LINEAR_LIGHT.to(device)[grey]
    # No matrix product: those may be rounded, to TF32 for instance.
    xyz = (linear[:, None] * _XYZ_FROM_RGB.to(device)[:, :, None, None]).sum(dim=2)
    x, y, z = _LAB_CURVE.to(device)[(xyz / 1024).round().long()].unbind(1)
    lightness = (y - 66 / 116) * (116 * unit)
    return torch.stack((lightness, (x - y) * (500 * unit), (y - z) * (200 * unit)), dim=1).round()
