"""Fixed-point CIELAB against scikit-image and against the plain twin."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

import reference
from focusvit_hf.benchmark.floor import OperationCounter
from focusvit_hf.cielab import LAB_RADIUS_SQUARED, cell_lab, cell_sums, cell_sums_of_pixels, levels_of_pixels


def colours(steps):
    """(1, 3, steps, steps²) all combinations of evenly spaced levels, the ends included."""
    levels = torch.linspace(0, 255, steps).round()
    return torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).reshape(1, 3, steps, -1)


def test_colours_agree_with_scikit_image():
    levels = colours(35)
    expected = rgb2lab(levels[0].permute(1, 2, 0).numpy().astype(np.float64) / 255)
    difference = cell_lab(levels, 1, 4.0)[0].permute(1, 2, 0).numpy() / 4 + np.array([50, 0, 0]) - expected
    assert np.abs(difference).max() < 1.25
    assert np.abs(difference).mean() < 0.1


def test_grey_has_no_colour():
    grey = torch.arange(256.0).expand(1, 3, 1, 256)
    lab = cell_lab(grey, 1, 4.0)
    assert (lab[:, 1:] == 0).all()
    assert lab[0, 0, 0, 0] == -200
    assert lab[0, 0, 0, 255] == 200
    assert (lab[0, 0, 0].diff() >= 0).all()


def test_no_colour_is_farther_from_the_middle_than_the_bound_says():
    distance = (cell_lab(colours(52), 1, 4.0) / 4).square().sum(dim=1)
    assert 0.99 * LAB_RADIUS_SQUARED < distance.max() <= LAB_RADIUS_SQUARED


@pytest.mark.parametrize("unit", [4.0, 1.0, 0.25])
@pytest.mark.parametrize("cell", [1, 2, 3, 4, 7])
def test_a_cell_has_the_mean_colour_of_its_pixels(cell, unit):
    image = np.random.default_rng(0).integers(0, 256, (3, 3 * cell, 5 * cell), dtype=np.uint8)
    lab = cell_lab(cell_sums(torch.from_numpy(image)[None].float(), cell), cell, unit)[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(lab, reference.fixed_point_lab(image, cell, unit).astype(np.float32))


def test_nan_counts_as_black():
    sums = torch.full((1, 3, 2, 2), torch.nan)
    assert torch.equal(cell_lab(sums, 2, 4.0), cell_lab(torch.zeros(1, 3, 2, 2), 2, 4.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", [1, 2, 3, 4, 8, 32])
def test_sums_of_normalised_pixels_are_those_of_the_levels(photographs, cell, dtype):
    levels = photographs[:, :, : 192 // cell * cell, : 192 // cell * cell].float()
    # bfloat16 keeps 8 bits of -1..1, so that halves are all that a normalisation may be.
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if dtype == torch.float32 else ([0.5] * 3, [0.5] * 3)
    columns = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
    pixel_values = ((levels / 255 - columns[0]) / columns[1]).to(dtype)
    assert torch.equal(levels_of_pixels(pixel_values, mean, std), levels)
    assert torch.equal(cell_sums_of_pixels(pixel_values, mean, std, cell), cell_sums(levels, cell))


@pytest.mark.parametrize("cell", [1, 2, 3, 4, 7, 16])
def test_sums_are_the_means_of_windows_times_their_area(cell):
    levels = torch.randint(0, 256, (5, 3, 6 * cell, 9 * cell), dtype=torch.uint8)
    expected = torch.nn.functional.avg_pool2d(levels.double(), cell).mul(cell**2).round()
    assert torch.equal(cell_sums(levels, cell).double(), expected)


def test_narrow_pixels_cost_three_operations_more_than_float32():
    # Each of them a pass over the pixels: a cast, a product and a sum with one value a channel, a rounding.
    pixel_values = torch.rand(1, 3, 32, 32) * 2 - 1

    def operations(dtype):
        narrow = pixel_values.to(dtype)
        with OperationCounter() as counter:
            cell_sums_of_pixels(narrow, [0.5] * 3, [0.5] * 3, 4)
        return counter.total

    assert operations(torch.bfloat16) <= operations(torch.float32) + 3


def test_sums_of_pixels_beyond_black_and_white_stay_in_range():
    pixel_values = torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2).expand(1, 3, 4, 2).repeat_interleave(4, dim=3)
    sums = cell_sums_of_pixels(pixel_values, [0.5] * 3, [0.5] * 3, 4)
    assert torch.equal(sums, torch.tensor([0.0, 255 * 16]).view(1, 1, 1, 2).expand(1, 3, 1, 2))
