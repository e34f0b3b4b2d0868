"""Borders at an image's own resolution: a pixel between cells that differ goes with those that have its colour."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from .cielab import cell_lab
from .images import decode_image
from .lay_back import CellsAround, combined, weighted_sums


# Cells on each side of a pixel that it is compared with, and the difference in Lab at which a cell's part in it falls
# to e^(-1/2). Both were chosen on training images of ECSSD that were held out; more cells bring little for their time.
REACH = 2
COLOUR_SCALE = 10.0
# Pixels whose cells are looked at together: what they take then stays in the caches of a CPU.
_CHUNK_PIXELS = 2**15


class Guide:
    r"""
    What lies between cells, where the image itself says which of them a pixel belongs to: joint bilateral upsampling
    (Kopf et al. 2007, "Joint Bilateral Upsampling"). The value of pixel p is a mean of the cells q around it, weighted
    by how near they are and by exp(−|Lab_p − Lab_q|² / 2·`colour_scale`²), where Lab_q is the mean colour of the
    cell at the image's own resolution.

    Args:
        image: The image at its own size, as of [`~images.decode_image`].
        around ([`~lay_back.CellsAround`]): The cells, which cover the image.
        colour_scale (`float`, *optional*, defaults to [`COLOUR_SCALE`]): In units of Lab.

    Raises:
        ValueError: on an image of another size than the cells were made for.
    """

    def __init__(self, image: Any, around: CellsAround, colour_scale: float = COLOUR_SCALE):
        size = (len(around.first[0]), len(around.first[1]))
        levels = image_levels(image)
        height, width = levels.shape[:2]
        if (height, width) != size:
            raise ValueError(f"expected an image of its target size {size[0]} x {size[1]}, got {height} x {width}")
        self.around = around
        device = around.first[0].device
        self.levels = torch.from_numpy(levels).to(device)
        rows, columns = around.grid
        means = np.asarray(Image.fromarray(levels).resize((columns, rows), Image.Resampling.BOX))
        cells = lab_of(torch.from_numpy(means.reshape(-1, 3).copy()).to(device))
        # -|p - q|² is 2 p·q - |q|² but for what all cells around p share, and a softmax does not see that.
        self.cells = torch.cat((2 * cells, -cells.square().sum(dim=0, keepdim=True))) / (2 * colour_scale**2)
        self.log_nearness = [table.log() for table in around.nearness]

    def interpolate(self, values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """
        What lies at single pixels.

        Args:
            values (`torch.FloatTensor` of shape `(rows * columns, channels)`): Of the cells, row by row.
            rows, columns (`torch.LongTensor` of shape `(pixels,)`): Where the pixels are.

        Returns:
            `torch.FloatTensor` of shape `(pixels, channels)`.
        """
        found = values.new_empty(len(rows), values.shape[1])
        for start in range(0, len(rows), _CHUNK_PIXELS):
            chunk = slice(start, start + _CHUNK_PIXELS)
            found[chunk] = self._chunk(values, rows[chunk], columns[chunk])
        return found

    def _chunk(self, values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        cells = combined(self.around.cells, rows, columns, torch.add)
        likeness = combined(self.log_nearness, rows, columns, torch.add)
        flat, own = cells.flatten(), lab_of(self.levels[rows, columns])
        for channel in range(3):
            likeness.addcmul_(self.cells[channel].index_select(0, flat).view_as(likeness), own[channel])
        likeness.add_(self.cells[3].index_select(0, flat).view_as(likeness))
        # As a softmax, so that a pixel with a colour of its own still has weights that sum to one.
        return weighted_sums(values, cells, likeness.softmax(dim=0))


def image_levels(image: Any) -> np.ndarray:
    """The 8-bit levels of an RGB image, `(height, width, 3)`; ValueError on floats, whose range is not known."""
    decoded = decode_image(image)
    # A copy of what Pillow holds, since a tensor has to be one that may be written to.
    levels = np.array(decoded) if isinstance(decoded, Image.Image) else np.moveaxis(decoded, 0, -1)
    if levels.dtype != np.uint8:
        raise ValueError(f"expected an image of 8-bit levels, got {levels.dtype}")
    return np.require(levels, requirements=["C", "W"])


def lab_of(levels: torch.Tensor) -> torch.Tensor:
    """CIELAB of 8-bit colours `(pixels, 3)`: `(3, pixels)`, float32, with L - 50 in the place of L."""
    return cell_lab(levels.float().T[None, :, :, None], 1, 1.0)[0, :, :, 0]
