"""Borders and heat are drawn where they lie in the image, and nowhere else."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.explanation.overlays import HALO_COLOUR, LINE_COLOUR, covered_box, draw_borders, draw_heat
from focusvit_hf.lay_back import cells_to_pixels


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
def test_covered_box_lays_the_processed_image_on_the_photograph(options):
    rows, columns = np.mgrid[0:90, 0:130]
    photograph = np.stack((rows, columns, np.full_like(rows, 255)), axis=-1).astype(np.uint8)
    processor = FocusViTImageProcessor(do_superpixels=False, do_normalize=False, **options)
    processed = processor(photograph, return_tensors="pt").pixel_values[0] * 255
    laid = cells_to_pixels(processed, (90, 130), covered_box(processor, 90, 130), fill=-1).numpy()
    # Blue is 255 in the photograph, 0 in padding.
    inside = laid[2] >= 254
    assert inside.mean() > 0.2
    # The image is a slope: a pixel's value tells where it came from. A shift of one pixel of the processed image,
    # 1 to 3.6 of the photograph's, would show in the mean.
    for channel, coordinate in zip(laid[:2], (rows, columns), strict=True):
        assert np.abs(channel - coordinate)[inside].max() <= 4
        assert np.abs((channel - coordinate)[inside].mean()) < 0.4


def test_borders_run_where_the_region_changes_and_nowhere_else():
    image = Image.new("L", (300, 200), 90)
    regions = torch.zeros(200, 300, dtype=torch.int64)
    regions[:, 200:] = 1
    drawn = np.asarray(draw_borders(image, regions, thickness=4))
    assert drawn.shape == (200, 300, 3)
    changed = (drawn != 90).any(axis=-1)
    # Four pixels around the border, and two dark ones on either side.
    assert np.flatnonzero(changed.any(axis=0)).tolist() == list(range(196, 204))
    assert (drawn[:, 198:202] == LINE_COLOUR).all() and (drawn[:, [196, 197, 202, 203]] == HALO_COLOUR).all()
    assert set(np.asarray(image).ravel()) == {90}


def test_borders_grow_with_the_image():
    widths = []
    for side in (100, 900):
        regions = (torch.arange(side) >= side // 2).long()[:, None].expand(side, side)
        drawn = np.asarray(draw_borders(Image.new("RGB", (side, side), (9, 9, 9)), regions))
        lines = np.flatnonzero((drawn == LINE_COLOUR).all(axis=-1).all(axis=1))
        assert lines.mean() + 0.5 == side // 2
        widths.append(len(lines))
    assert widths == [2, 4]


def test_one_region_has_no_borders():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    drawn = draw_borders(image, torch.zeros(20, 30, dtype=torch.int64))
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(image))


def test_heat_is_bright_where_it_is_strong_and_dark_where_it_is_not():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    heat = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(30).expand(60, 90)
    drawn = np.asarray(draw_heat(image, heat)).astype(int)
    assert drawn.shape == (60, 90, 3)
    cold, warm, hot = drawn[:, :30], drawn[:, 30:60], drawn[:, 60:]
    # Three quarters of the grey are left where there is nothing.
    np.testing.assert_allclose(cold[..., 0], np.asarray(image.convert("L"))[:, :30] * 0.75, atol=1)
    assert np.ptp(cold, axis=-1).max() <= 2
    assert hot.mean() > warm.mean() > cold.mean()
    assert min((part[..., 0] - part[..., 2]).mean() for part in (warm, hot)) > 40


def test_what_is_missing_for_a_drawing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install matplotlib, or focusvit-hf\[plots\]"):
        draw_heat(Image.new("RGB", (4, 4)), torch.zeros(4, 4))
