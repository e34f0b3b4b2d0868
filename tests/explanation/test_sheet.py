import numpy as np
import pytest
from PIL import Image
from skimage.data import chelsea

from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.explanation.sheet import Panel, draw_sheet, explain


@pytest.fixture
def photograph():
    return Image.fromarray(chelsea())


@pytest.mark.parametrize("pooling", ["superpixel", "grid", "none"])
def test_explain_shows_photograph_regions_and_heat(pooling, photograph, tiny_model):
    model = tiny_model(patch_pooling=pooling)
    processor = FocusViTImageProcessor.from_model_config(model.config)
    panels = explain(model, processor, photograph, "a cat")
    assert [panel.image.size for panel in panels] == [photograph.size] * 3
    assert panels[0].title == "a cat, 451 x 300"
    assert panels[1].title.startswith("16 ")
    np.testing.assert_array_equal(np.asarray(panels[0].image), np.asarray(photograph))
    inputs = processor(photograph, return_tensors="pt")
    probabilities = model(**inputs).logits.softmax(dim=1)[0]
    answer = int(probabilities.argmax())
    assert panels[2].title == f"what carried “LABEL_{answer}” ({probabilities[answer]:.0%})"
    yellow = (np.asarray(panels[1].image) == (255, 214, 0)).all(axis=-1)
    assert 0.005 < yellow.mean() < 0.2
    assert np.ptp(np.asarray(panels[2].image), axis=-1).max() > 50


def test_explain_shows_the_photograph_that_the_model_sees(photograph, tiny_model):
    model = tiny_model()
    processor = FocusViTImageProcessor.from_model_config(model.config)
    transparent = photograph.copy()
    transparent.putalpha(0)
    panel, *_ = explain(model, processor, transparent, "nothing")
    assert np.asarray(panel.image).min() == 255


def test_explain_draws_over_the_crop_only(photograph, tiny_model):
    model = tiny_model()
    options = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    panels = explain(model, FocusViTImageProcessor.from_model_config(model.config, **options), photograph, "a cat")
    changed = (np.asarray(panels[1].image) != np.asarray(photograph)).any(axis=-1)
    # 32 of 48 columns are seen, so 300 of 451 pixels: from 75 on.
    assert not changed[:, :70].any() and not changed[:, 380:].any() and changed[:, 75:375].any()
    heat = np.ptp(np.asarray(panels[2].image), axis=-1)
    assert heat[:, :70].max() == heat[:, 380:].max() == 0 and heat.max() > 50


@pytest.mark.parametrize(
    ("size", "panel"), [((32, 32), (288, 288)), ((100, 300), (100, 300)), ((4000, 3000), (1440, 1080))], ids=str
)
def test_small_pictures_are_enlarged_and_large_ones_shrunk(size, panel, tiny_model):
    model = tiny_model()
    processor = FocusViTImageProcessor.from_model_config(model.config)
    panels = explain(model, processor, Image.new("L", size, 80), "grey")
    assert [part.image.size for part in panels] == [panel] * 3
    assert panels[0].title == f"grey, {size[0]} x {size[1]}"


def test_sheet_holds_every_panel_whole_with_a_frame_and_a_title():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    row = [Panel("title", Image.new("RGB", (200, 120), colour)) for colour in colours]
    sheet = np.asarray(draw_sheet([row, row]))
    tops = set()
    for colour in colours:
        rows, columns = np.nonzero((sheet == colour).all(axis=-1))
        assert len(rows) == 2 * 200 * 120 and np.ptp(columns) == 199
        tops.add(rows.min())
        # The frame, one pixel wide, and the title above it.
        assert (sheet[rows.min() - 1, columns.min() - 1 : columns.max() + 2] == 160).all()
        assert (sheet[: rows.min() - 1, columns.min() : columns.max()] < 100).any()
    assert len(tops) == 1


def test_long_titles_stay_within_their_panel():
    panels = [Panel("a very long file name " * 20, Image.new("RGB", (150, 100))) for _ in range(2)]
    sheet = np.asarray(draw_sheet([panels])).min(axis=-1)
    # Columns of 234 pixels, wider than the pictures, and white margins of 16 beside them.
    assert (sheet[:, :15] == 255).all() and (sheet[:, 251:265] == 255).all() and (sheet[:, -15:] == 255).all()
    assert (sheet[:44, 200:250] < 128).any() and (sheet[60:, 170:250] == 255).all()


def test_scale_of_colours_is_drawn_below_and_left_out_where_there_is_no_room():
    plain = np.asarray(draw_sheet([[Panel("heat", Image.new("RGB", (300, 100)))]]))
    scaled = np.asarray(draw_sheet([[Panel("heat", Image.new("RGB", (300, 100)), ("less", "more"))]]))
    assert plain.shape == scaled.shape
    changed = np.flatnonzero((plain != scaled).any(axis=(1, 2)))
    assert changed.min() > 130
    middle = scaled[(changed.min() + changed.max()) // 2].astype(int)
    redness = (middle[:, 0] - middle[:, 2])[70:250]
    assert redness[-40:].mean() > redness[:40].mean() + 30
    narrow = Image.new("RGB", (30, 100))
    np.testing.assert_array_equal(
        np.asarray(draw_sheet([[Panel("heat", narrow, ("less", "more"))]])),
        np.asarray(draw_sheet([[Panel("heat", narrow)]])),
    )
