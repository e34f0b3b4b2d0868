"""Label maps, shares, overlays and cut-outs at the resolution of the image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from focusvit_hf import FocusViTForSemanticSegmentation, FocusViTImageProcessor
from focusvit_hf.explanation import Segmentation, segment
from focusvit_hf.explanation.segmentation import palette


NAMES = ("ground", "figure", "rest")


@pytest.fixture
def found(photographs):
    image = Image.fromarray(photographs[0].permute(1, 2, 0).numpy()).resize((90, 61))
    return Segmentation(image, 3 * torch.randn(3, 8, 8), NAMES)


@pytest.mark.parametrize("upsampling", ["guided", "bilinear", "nearest"])
def test_a_label_map_has_the_image_s_size_and_its_numbers_are_the_classes(found, upsampling):
    drawn = replace(found, upsampling=upsampling).label_map()
    assert (drawn.mode, drawn.size) == ("P", (90, 61))
    process = FocusViTImageProcessor().post_process_semantic_segmentation
    images = {"images": [found.image]} if upsampling == "guided" else {}
    (expected,) = process(found_outputs(found), [(61, 90)], upsampling=upsampling, **images)
    assert np.array_equal(np.asarray(drawn), expected.numpy())
    colours = np.asarray(drawn.convert("RGB"))
    assert np.array_equal(colours[expected.numpy() == 2].reshape(-1, 3)[0], palette(3)[2])


def found_outputs(found):
    class Outputs:
        logits = found.logits[None]

    return Outputs


def test_shares_are_those_of_the_label_map_and_sum_to_one(found):
    numbers = np.asarray(found.label_map())
    shares = found.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    for name, share in shares.items():
        assert share == pytest.approx((numbers == NAMES.index(name)).mean())
    found.logits[2] -= 100
    assert "rest" not in found.shares()


def test_colours_differ():
    colours = palette(256)
    assert colours[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert len(set(colours)) == 256


def test_an_overlay_has_its_legend_below_the_image(found):
    sheet = found.overlay()
    assert sheet.width == 90 and sheet.height > 61
    blended = np.asarray(sheet)[:61].astype(float)
    colours = np.asarray(found.label_map().convert("RGB"))
    expected = 0.45 * np.asarray(found.image) + 0.55 * colours
    assert np.abs(blended - expected).max() <= 1
    legend = {tuple(pixel) for pixel in np.asarray(sheet)[61:].reshape(-1, 3)}
    assert {palette(3)[NAMES.index(name)] for name in found.shares()} <= legend


@pytest.mark.parametrize("label", [None, "figure", 1])
def test_a_cut_out_is_the_image_with_the_probability_as_opacity(found, label, monkeypatch):
    monkeypatch.setattr("focusvit_hf.explanation.segmentation._STRIP_PIXELS", 90 * 7)
    found = replace(found, upsampling="bilinear")
    cut = found.cutout(label, threshold=0.4)
    assert cut.mode == "RGBA" and cut.size == found.image.size
    seen = np.asarray(cut)[..., 3:] > 0
    assert np.array_equal(np.asarray(cut)[..., :3], np.asarray(found.image) * seen)
    assert seen.any() and not seen.all()
    score = found.logits[1] - found.logits[[0, 2]].logsumexp(dim=0)
    wide = torch.nn.functional.interpolate(score[None, None], (61, 90), mode="bilinear")[0, 0].sigmoid()
    expected = ((wide - 0.4) / 0.3 + 0.5).clamp(0, 1) * 255
    assert (torch.from_numpy(np.asarray(cut)[..., 3].copy()) - expected).abs().max() <= 1
    assert len(np.unique(np.asarray(cut)[..., 3])) > 10


def test_a_guided_cut_out_ends_where_the_colours_change():
    levels = np.full((40, 40, 3), 200, dtype=np.uint8)
    levels[:, :21] = (20, 60, 30)
    logits = torch.zeros(2, 8, 8)
    # The rim of the cells is at column 20.
    logits[1] = torch.where(torch.arange(8) < 4, 6.0, -6.0)
    alpha = np.asarray(Segmentation(Image.fromarray(levels), logits, NAMES[:2]).cutout())[..., 3]
    assert (alpha[:, :21] == 255).all() and not alpha[:, 21:].any()


def test_what_cannot_be_cut_out_is_refused(found):
    for label in ("sky", 3, -1):
        with pytest.raises(ValueError, match="expected one of the classes"):
            found.cutout(label)
    for threshold in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="expected a threshold above 0 and below 1"):
            found.opacity(threshold=threshold)
    with pytest.raises(ValueError, match="expected a model of two classes or more"):
        Segmentation(found.image, found.logits[:1], ("all",)).cutout()


@pytest.mark.parametrize("form", [Image.Image, np.ndarray, torch.Tensor])
def test_an_image_is_segmented_in_every_form(tiny_config, photographs, form):
    model = FocusViTForSemanticSegmentation(tiny_config(num_labels=3, initializer_range=0.5)).eval()
    processor = FocusViTImageProcessor.from_model_config(model.config)
    tensor = photographs[1][:, :150, :100].contiguous()
    array = tensor.permute(1, 2, 0).numpy()
    image = {Image.Image: Image.fromarray(array), np.ndarray: array, torch.Tensor: tensor}[form]
    found = segment(model, processor, image)
    assert found.image.size == (100, 150) and found.names == ("LABEL_0", "LABEL_1", "LABEL_2")
    with torch.no_grad():
        expected = model(**processor(Image.fromarray(array), return_tensors="pt")).logits[0]
    torch.testing.assert_close(found.logits, expected)
    with pytest.raises(ValueError, match=r"expected upsampling to be one of .* got 'cubic'"):
        segment(model, processor, image, upsampling="cubic")
    processor.do_center_crop, processor.crop_size = True, {"height": 32, "width": 32}
    with pytest.raises(ValueError, match="expected an image processor that shows all of an image"):
        segment(model, processor, image)
