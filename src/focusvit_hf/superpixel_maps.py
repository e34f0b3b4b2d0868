"""From images to superpixel maps: the one way that the model, the image processor and every measurement take."""

from collections.abc import Sequence

import numpy as np
import torch

from .cielab import cell_sums, cell_sums_of_pixels, levels_of_pixels
from .superpixel_options import SuperpixelOptions, superpixel_count
from .superpixels import slic_of_cells
from .superpixels_skimage import skimage_slic_ids


@torch.no_grad()
def superpixel_map(
    images: torch.Tensor,
    options: SuperpixelOptions,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> torch.Tensor:
    """
    The superpixels of a batch of images. Levels, and the float32 pixels that come from them, give the same map bit for
    bit.

    Args:
        images (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
            8-bit levels, uint8 or whole numbers in floating point; or, with `mean` and `std`, normalised pixels.
            Superpixels see three channels: of more the first three, a single one thrice.
        options ([`SuperpixelOptions`]): How the images are cut.
        mean, std (sequences of `float`, *optional*):
            Of the normalisation of images in 0..1, for each channel; undone in float32 and rounded to levels.

    Returns:
        `torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`, values in [0, K), all of them present
        in every image.

    Raises:
        ValueError: when K cannot be laid out over the image, see [`superpixel_layout`].
    """
    channels = 3 if images.shape[1] >= 3 else 1
    images = images[:, :channels]
    number, compactness, iterations, cell, method = options
    if method == "skimage":
        if mean is not None and std is not None:
            images = levels_of_pixels(images, mean[:channels], std[:channels])
        pixels = images.to(torch.uint8).expand(-1, 3, -1, -1).cpu().numpy()
        maps = [skimage_slic_ids(image, superpixel_count(number), compactness, iterations, cell) for image in pixels]
        return torch.from_numpy(np.stack(maps)).to(images.device)
    if mean is not None and std is not None:
        sums = cell_sums_of_pixels(images, mean[:channels], std[:channels], cell)
    else:
        sums = cell_sums(images, cell)
    return slic_of_cells(sums.expand(-1, 3, -1, -1), number, compactness, iterations, cell)
