"""From images to superpixel maps: levels, normalised pixels, processor and model agree bit for bit."""

import numpy as np
import pytest
import torch

from focusvit_hf import FocusViTConfig, FocusViTImageProcessor, FocusViTModel
from focusvit_hf.superpixel_maps import superpixel_map
from focusvit_hf.superpixel_options import SuperpixelOptions
from focusvit_hf.superpixels import slic
from focusvit_hf.superpixels_skimage import skimage_slic_ids


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
OPTIONS = SuperpixelOptions(16, 10.0, 5, 2, "torch")


def normalised(levels, mean=MEAN, std=STD):
    columns = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (levels.float() / 255 - next(columns)) / next(columns)


def test_levels_and_pixels_give_the_map_of_slic(small_photographs):
    expected = slic(small_photographs, 16, 10.0, 5, 2)
    for levels in (small_photographs, small_photographs.float()):
        assert torch.equal(superpixel_map(levels, OPTIONS), expected)
    assert torch.equal(superpixel_map(normalised(small_photographs), OPTIONS, MEAN, STD), expected)


def test_processor_and_model_give_that_map(small_photographs):
    config = FocusViTConfig(
        image_size=32, patch_size=8, num_superpixels=16, image_mean=MEAN, image_std=STD, num_hidden_layers=1
    )
    expected = superpixel_map(small_photographs, SuperpixelOptions.of(config))
    processor = FocusViTImageProcessor.from_model_config(config)
    assert SuperpixelOptions.of(processor) == SuperpixelOptions.of(config) == OPTIONS
    inputs = processor(small_photographs, return_tensors="pt")
    assert torch.equal(inputs.superpixel_ids, expected)
    assert torch.equal(FocusViTModel(config).compute_superpixel_ids(inputs.pixel_values), expected)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_numbers_of_channels(small_photographs, channels):
    levels = small_photographs[:, [0, 1, 2, 0]][:, :channels]
    seen = levels[:, :3] if channels == 4 else levels[:, :1].expand(-1, 3, -1, -1)
    mean, std = [0.4, 0.5, 0.6, 0.5][:channels], [0.2, 0.3, 0.4, 0.5][:channels]
    expected = slic(seen, 16, 10.0, 5, 2)
    assert torch.equal(superpixel_map(levels, OPTIONS), expected)
    assert torch.equal(superpixel_map(normalised(levels, mean, std), OPTIONS, mean, std), expected)


def test_the_slow_reference_is_scikit_image(small_photographs):
    options = OPTIONS._replace(num_superpixels=(4, 3), method="skimage")
    maps = [skimage_slic_ids(image, 12, 10.0, 5, 2) for image in small_photographs.numpy()]
    assert torch.equal(superpixel_map(small_photographs, options), torch.from_numpy(np.stack(maps)))
    assert torch.equal(
        superpixel_map(normalised(small_photographs), options, MEAN, STD), torch.from_numpy(np.stack(maps))
    )
