"""Borders at the image's own resolution against a plain loop, and what the image may and may not change."""

import numpy as np
import pytest
import torch
from PIL import Image

from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.cielab import cell_lab
from focusvit_hf.guided_upsampling import COLOUR_SCALE, REACH, Guide, lab_of
from focusvit_hf.lay_back import CellsAround
from focusvit_hf.segmentation_maps import segmentation_maps_of


def guide_of(levels, grid):
    return Guide(levels, CellsAround(grid, levels.shape[:2], torch.device("cpu"), REACH))


def everywhere(guide, values):
    """What lies at each pixel, `(height, width)`, of values `(rows, columns)`."""
    size = guide.levels.shape[:2]
    rows, columns = torch.ones(size).nonzero(as_tuple=True)
    return guide.interpolate(values.reshape(-1, 1), rows, columns).view(size)


def by_a_plain_loop(levels, values):
    height, width, _ = levels.shape
    rows, columns = values.shape
    means = np.asarray(Image.fromarray(levels).resize((columns, rows), Image.Resampling.BOX)).astype("float32")

    def lab(colour):
        return cell_lab(torch.tensor(colour, dtype=torch.float32)[None, :, None, None], 1, 1.0).flatten().double()

    result = torch.zeros(height, width)
    for y in range(height):
        for x in range(width):
            total, weights = 0.0, 0.0
            v, h = (y + 0.5) * rows / height - 0.5, (x + 0.5) * columns / width - 0.5
            for i in range(int(np.floor(v)) + 1 - REACH, int(np.floor(v)) + 1 + REACH):
                for j in range(int(np.floor(h)) + 1 - REACH, int(np.floor(h)) + 1 + REACH):
                    row, column = min(max(i, 0), rows - 1), min(max(j, 0), columns - 1)
                    near = (1 - abs(v - i) / REACH) * (1 - abs(h - j) / REACH)
                    apart = (lab(levels[y, x]) - lab(means[row, column])).square().sum()
                    weight = near * torch.exp(-apart / (2 * COLOUR_SCALE**2))
                    total, weights = total + weight * values[row, column], weights + weight
            result[y, x] = total / weights
    return result


def test_a_guide_is_a_plain_loop_over_pixels_and_cells(monkeypatch):
    monkeypatch.setattr("focusvit_hf.guided_upsampling._CHUNK_PIXELS", 50)
    levels = np.random.randint(90, 140, (13, 9, 3), dtype=np.uint8)
    values = torch.randn(4, 3)
    torch.testing.assert_close(everywhere(guide_of(levels, (4, 3)), values), by_a_plain_loop(levels, values))


def test_a_border_goes_where_the_colours_change_and_not_along_the_cells():
    # The figure's rim is at column 21, that of the cells at 20 and 25; the cell between is half wrong.
    levels = np.full((40, 40, 3), 200, dtype=np.uint8)
    levels[:, :21] = (20, 60, 30)
    logits = torch.zeros(1, 2, 8, 8)
    logits[:, 1] = torch.where(torch.arange(8) < 4, 3.0, -3.0)
    (guided,) = segmentation_maps_of(logits, [(40, 40)], "guided", [levels])
    assert torch.equal(guided, (torch.arange(40) < 21).long().expand(40, 40))
    (smooth,) = segmentation_maps_of(logits, [(40, 40)])
    assert not torch.equal(smooth, guided)


def test_an_image_of_one_colour_says_nothing_and_left_is_like_right():
    values = torch.randn(5, 6)
    flat = everywhere(guide_of(np.full((25, 30, 3), 77, dtype=np.uint8), (5, 6)), values)
    # Without colours the mean is a smooth one, of values around the pixel.
    assert flat.min() >= values.min() and flat.max() <= values.max() and (flat[1:] - flat[:-1]).abs().max() < 1.5
    levels = np.random.randint(0, 256, (25, 30, 3), dtype=np.uint8)
    mirrored = everywhere(guide_of(levels[:, ::-1].copy(), (5, 6)), values.flip(1))
    torch.testing.assert_close(mirrored.flip(1), everywhere(guide_of(levels, (5, 6)), values), rtol=0, atol=1e-4)


def test_a_pixel_with_a_colour_of_its_own_has_a_value_all_the_same():
    levels = np.zeros((16, 16, 3), dtype=np.uint8)
    levels[8, 8] = (0, 0, 255)
    found = everywhere(guide_of(levels, (4, 4)), torch.ones(4, 4))
    torch.testing.assert_close(found, torch.ones(16, 16))


@pytest.mark.parametrize("classes", [2, 5])
def test_no_class_appears_that_no_cell_has_and_a_batch_is_its_singles(classes):
    logits = torch.randn(2, classes, 6, 5)
    logits[:, 0] -= 9
    images = [np.random.randint(0, 256, (33, 41, 3), dtype=np.uint8), Image.new("L", (20, 50))]
    process = FocusViTImageProcessor().post_process_semantic_segmentation
    outputs = type("Outputs", (), {"logits": logits})
    maps = process(outputs, upsampling="guided", images=images)
    assert [tuple(one.shape) for one in maps] == [(33, 41), (50, 20)]
    for index, found in enumerate(maps):
        assert set(found.unique().tolist()) <= set(logits[index].argmax(dim=0).unique().tolist())
        single = type("Outputs", (), {"logits": logits[index : index + 1]})
        assert torch.equal(process(single, upsampling="guided", images=images[index : index + 1])[0], found)
    scored = process(outputs, [(33, 41), (50, 20)], True, upsampling="guided", images=images)
    for one, found in zip(scored, maps, strict=True):
        assert one.segmentation_scores.shape == (classes, *found.shape)
        chosen = one.segmentation_scores.gather(0, found[None])[0]
        rivals = one.segmentation_scores[logits.argmax(dim=1).unique()].amax(dim=0)
        torch.testing.assert_close(chosen, rivals, rtol=0, atol=1e-4)


def test_colours_are_those_of_scikit_image():
    from skimage.color import rgb2lab

    colours = np.random.randint(0, 256, (500, 3), dtype=np.uint8)
    expected = rgb2lab(colours[None])[0] - [50, 0, 0]
    assert np.abs(lab_of(torch.from_numpy(colours)).T.numpy() - expected).max() < 1.8


def test_images_that_do_not_fit_are_refused():
    logits, image = torch.randn(1, 2, 4, 4), Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match=r"Expected the images at their own size .*got none"):
        segmentation_maps_of(logits, [(8, 8)], "guided")
    with pytest.raises(ValueError, match="only there, got them with upsampling='bilinear'"):
        segmentation_maps_of(logits, [(8, 8)], images=[image])
    with pytest.raises(ValueError, match="Expected the 1 images of the logits, got 2"):
        segmentation_maps_of(logits, None, "guided", [image, image])
    with pytest.raises(ValueError, match="expected an image of its target size 9 x 8, got 8 x 8"):
        segmentation_maps_of(logits, [(9, 8)], "guided", [image])
    with pytest.raises(ValueError, match="expected an image of 8-bit levels, got float32"):
        segmentation_maps_of(logits, [(8, 8)], "guided", [np.random.rand(3, 8, 8).astype("float32")])
