"""What is measured and drawn of segmenters: guided borders beside interpolation, and the README's sheet."""

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.dense import edges, sheet
from focusvit_hf.explanation import Segmentation


@pytest.fixture
def halves():
    """A dark left part of 21 of 40 columns, and logits whose border lies at column 20."""
    levels = np.full((40, 40, 3), 200, dtype=np.uint8)
    levels[:, :21] = (20, 60, 30)
    logits = torch.zeros(2, 8, 8)
    logits[1] = torch.where(torch.arange(8) < 4, 6.0, -6.0)
    return Image.fromarray(levels), logits


def test_the_package_s_own_setting_is_one_of_those_that_are_compared(halves):
    image, logits = halves
    assert edges.REACH in edges.REACHES and edges.COLOUR_SCALE in edges.SCALES
    tried = edges.guided(logits[None], image, edges.REACH, edges.COLOUR_SCALE)
    assert torch.equal(tried, edges.plain(logits[None], image, "guided"))


def test_rows_hold_means_and_what_they_gain(halves):
    better, worse = [0.8, 0.9, 0.7], [0.6, 0.6, 0.6]
    found = {
        "guided": {"iou": better, "boundary_f": better},
        "bilinear": {"iou": worse, "boundary_f": worse},
    }
    guided, control = edges.summed_up("test", found)
    assert guided["iou"] == pytest.approx(0.8) and "iou_difference" not in control
    assert guided["iou_difference"]["mean"] == pytest.approx(0.2) and guided["iou_difference"]["low"] > 0
    assert "| test | guided | 80.0 | +20.0 [" in edges.markdown([guided, control])


def test_a_sheet_shows_image_classes_and_cut_out_side_by_side(halves):
    image, logits = halves
    drawn = sheet.sheet_of(Segmentation(image, logits, ("ground", "figure")))
    assert drawn.size == (3 * 40 + 2 * sheet.GAP, 40)
    parts = [np.asarray(drawn)[:, start : start + 40] for start in (0, 40 + sheet.GAP, 2 * (40 + sheet.GAP))]
    assert np.array_equal(parts[0], np.asarray(image))
    assert not np.array_equal(parts[1], parts[0])
    cut = np.where(np.arange(40)[None, :, None] < 21, np.asarray(image), np.asarray(sheet.chequered((40, 40))))
    assert np.array_equal(parts[2], cut)
