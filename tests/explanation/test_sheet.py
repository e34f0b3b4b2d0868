"""A sheet holds every panel whole, with a title that fits above it and a scale below the heat map."""

import numpy as np
import pytest
import torch
from PIL import Image

from focusvit_hf.explanation import Explanation, draw_sheet
from focusvit_hf.explanation.overlays import LINE_COLOUR
from focusvit_hf.explanation.sheet import named
from focusvit_hf.lay_back import Box


def explanation(size=(400, 330), label="cat", colour=(250, 0, 0)):
    image = Image.new("RGB", size, colour)
    return Explanation(
        image=image,
        labels=["dog", label],
        probabilities=torch.tensor([0.25, 0.75]),
        region_ids=torch.tensor([[0, 0, 1, 1]]),
        num_regions=2,
        region_name="superpixels",
        box=Box(0.0, 0.0, float(size[1]), float(size[0])),
        target=1,
        relevance=torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
    )


def test_a_row_shows_the_image_its_regions_and_the_heat_pixel_by_pixel():
    colours = [(250, 0, 0), (0, 250, 0)]
    sheet = np.asarray(draw_sheet([explanation(colour=colour) for colour in colours], ["first", "second"]))
    tops = []
    for colour in colours:
        rows, columns = np.nonzero((sheet == colour).all(axis=-1))
        # The frame hides the outermost pixels.
        top, left = rows.min(), columns.min()
        assert rows.max() - top + 1 in range(324, 331)
        plain = (sheet[top : rows.max(), left : left + 390] == colour).all()
        lines = (sheet == LINE_COLOUR).all(axis=-1)[top : rows.max()]
        assert plain and lines.any(axis=0).sum() == 2 and lines.sum() >= 2 * 324
        tops.append(top)
        # The title stands above, on white.
        assert (sheet[top - 30 : top - 2, left : left + 200].min(axis=-1) < 100).any()
    assert tops[1] - tops[0] > 330 and (sheet[0] == 255).all()
    heat = sheet[tops[0] : tops[0] + 320, -(18 + 398) : -20].astype(int)
    assert heat[:, -100:].mean() > heat[:, :100].mean() + 60


@pytest.mark.parametrize("label", ["$\\frac{$", "cat\x1b[2J", "very " * 300], ids=["formula", "escape", "long"])
def test_titles_are_text_and_stay_within_their_column(label):
    row = np.asarray(draw_sheet([explanation((330, 330), label)], ["name " * 200]))
    assert row.shape[1] == 18 + 3 * (330 + 18)
    above = row[:30].min(axis=-1)
    for gap in (slice(0, 17), slice(349, 365), slice(697, 713), slice(-17, None)):
        assert (above[:, gap] > 200).all()
    assert all((above[:, start : start + 300] < 128).any() for start in (18, 366, 714))


@pytest.mark.parametrize(
    ("size", "drawn"), [((32, 32), (320, 320)), ((500, 340), (500, 340)), ((1000, 2160), (500, 1080))], ids=str
)
def test_small_images_are_enlarged_and_large_ones_shrunk(size, drawn):
    row = np.asarray(draw_sheet([explanation(size)], ["image"]))
    rows, columns = np.nonzero((row[:, : row.shape[1] // 3] == (250, 0, 0)).all(axis=-1))
    assert (np.ptp(columns), np.ptp(rows)) == pytest.approx(drawn, abs=5)


def test_a_narrow_image_has_a_column_that_a_title_fits_into():
    row = np.asarray(draw_sheet([explanation((40, 330))], ["narrow"]))
    assert row.shape[1] == 18 + 3 * (220 + 18)
    assert (row[-30:] == 255).all()


@pytest.mark.parametrize(
    ("layers", "name"),
    [([4], "layer 4"), ([8, 9], "layers 8, 9"), ([8, 9, 10, 11], "layers 8 to 11"), ([3, 6, 9], "layers 3, 6, 9")],
)
def test_layers_have_short_names(layers, name):
    assert named(layers) == name
