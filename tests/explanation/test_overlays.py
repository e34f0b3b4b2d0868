"""Overlays and heat maps show what they say, where it lies in the photograph."""

import numpy as np
import pytest
import torch
from PIL import Image

from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.explanation.overlays import covered_box, heat_map, superpixel_boundaries
from focusvit_hf.lay_back import Box, cells_to_pixels
from focusvit_hf.superpixels import tile_ids


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 48}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        {"size": {"height": 40, "width": 51}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 64, "width": 80}},
        {"size": {"height": 25, "width": 50}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
    ],
    ids=["resize", "crop", "odd crop", "crop without resize", "crop that pads"],
)
def test_covered_box_lays_the_processed_picture_on_the_photograph(options):
    rows, columns = np.mgrid[0:90, 0:130]
    photograph = np.stack((rows, columns, np.full_like(rows, 255)), axis=-1).astype(np.uint8)
    processor = FocusViTImageProcessor(do_superpixels=False, do_normalize=False, **options)
    processed = processor(photograph, return_tensors="pt").pixel_values[0] * 255
    laid = cells_to_pixels(processed, (90, 130), covered_box(processor, 90, 130), fill=-1).numpy()
    # Blue is 255 in the photograph, 0 in padding.
    inside = laid[2] >= 254
    assert inside.mean() > 0.2
    # The picture is a slope: a pixel's value tells where it came from. A shift of one pixel of the processed picture,
    # 1 to 3.6 of the photograph's, would show in the mean.
    for channel, coordinate in zip(laid[:2], (rows, columns), strict=True):
        assert np.abs(channel - coordinate)[inside].max() <= 4
        assert np.abs((channel - coordinate)[inside].mean()) < 0.4


def test_boundaries_run_where_the_superpixel_changes_and_nowhere_else():
    photograph = Image.new("L", (300, 200), 90)
    ids = torch.tensor([[0, 0, 1], [0, 0, 1]])
    drawn = np.asarray(superpixel_boundaries(photograph, ids, thickness=3))
    assert drawn.shape == (200, 300, 3)
    changed = (drawn != 90).any(axis=-1)
    # The line of 3 pixels and the dark ones of 2 beside it, along the whole border.
    assert np.flatnonzero(changed.any(axis=0)).tolist() == list(range(197, 204))
    assert changed[:, 197:204].all()
    assert (drawn[:, 199:202] == (255, 214, 0)).all() and (drawn[:, [197, 198, 202, 203]] == 0).all()
    assert set(np.asarray(photograph).ravel()) == {90}


def test_boundaries_grow_with_the_photograph_and_stay_in_the_box():
    ids = torch.tensor([[0], [1]])
    widths = []
    for side in (100, 900):
        photograph = Image.new("RGB", (side, side))
        drawn = np.asarray(superpixel_boundaries(photograph, ids, Box(0, 0, side / 2, side)))
        lines = np.flatnonzero((drawn == (255, 214, 0)).all(axis=-1).all(axis=1))
        assert abs(lines.mean() - side / 4) <= 1
        widths.append(len(lines))
    assert widths == [1, 6]


def test_boundaries_of_one_superpixel_leave_the_photograph_alone():
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    drawn = superpixel_boundaries(photograph, torch.zeros(4, 4, dtype=torch.int64))
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(photograph))


def test_heat_map_is_hot_where_relevance_is_and_grey_where_it_is_not():
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    ids = torch.tensor([[0, 1], [2, 3]])
    drawn = np.asarray(heat_map(photograph, torch.tensor([0.0, 2.0, -1.0, 1.0]), ids)).astype(int)
    assert drawn.shape == (60, 80, 3)
    quarters = {0: drawn[:30, :40], 1: drawn[:30, 40:], 2: drawn[30:, :40], 3: drawn[30:, 40:]}
    for cold in (0, 2):
        assert np.ptp(quarters[cold], axis=-1).max() <= 1
    redness = {k: (quarter[..., 0] - quarter[..., 2]).mean() for k, quarter in quarters.items()}
    assert min(redness[1], redness[3]) > 50
    assert quarters[1].mean() > quarters[3].mean() > quarters[0].mean()


def test_heat_map_of_no_relevance_and_outside_the_box_is_grey():
    photograph = Image.new("RGB", (40, 40), (200, 30, 90))
    grey = np.asarray(heat_map(photograph, torch.full((4,), -1.0), tile_ids((2, 2), 4, 4)))
    assert np.ptp(grey, axis=-1).max() == 0
    boxed = np.asarray(heat_map(photograph, torch.ones(4), tile_ids((2, 2), 4, 4), Box(10, 10, 30, 30)))
    assert np.ptp(boxed[10:30, 10:30], axis=-1).min() > 50
    assert np.ptp(boxed[:10], axis=-1).max() == np.ptp(boxed[:, 30:], axis=-1).max() == 0
