"""Masks as labels, which no filter may touch, and logits of cells as the class of each pixel of the image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.modeling_outputs import SemanticSegmenterOutput

from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.segmentation_maps import decode_mask, first_largest, segmentation_maps_of


@pytest.fixture
def processor():
    """A function from options to a small image processor."""
    options = {"size": {"height": 32, "width": 48}, "num_superpixels": (2, 3), "superpixel_cell_size": 4}
    return lambda **overrides: FocusViTImageProcessor(**{**options, **overrides})


def image_of(height, width):
    return Image.fromarray(np.random.randint(0, 256, (height, width, 3), dtype=np.uint8))


def mask_of(height, width, values=(0, 1, 7, 255)):
    return np.random.choice(values, (height, width)).astype(np.uint8)


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def with_palette(mask):
    image = Image.fromarray(mask).convert("P")
    image.putdata(mask.flatten().tolist())
    image.putpalette([value for index in range(256) for value in (255 - index, index, 99)])
    return image


@pytest.mark.parametrize(
    "options", [{}, {"do_resize": False}, {"do_center_crop": True}], ids=["resize", "none", "crop"]
)
@pytest.mark.parametrize("size", [(32, 48), (64, 96), (37, 91)])
def test_a_mask_goes_the_way_of_its_image_and_no_value_appears(processor, size, options):
    if not options.get("do_resize", True) and size == (37, 91):
        size = (36, 92)
    mask = mask_of(*size)
    crop = {"crop_size": {"height": 40, "width": 32}} if options.get("do_center_crop") else {}
    inputs = processor(**options, **crop)(image_of(*size), segmentation_maps=mask, return_tensors="pt")
    assert inputs.labels.dtype == torch.int64
    assert inputs.labels.shape == (1, *inputs.pixel_values.shape[-2:])
    assert set(inputs.labels.unique().tolist()) <= {0, 1, 7, 255}
    if not options:
        # Each label is that of the pixel under the centre.
        rows = ((np.arange(32) + 0.5) * size[0] / 32).astype(int)
        columns = ((np.arange(48) + 0.5) * size[1] / 48).astype(int)
        assert np.array_equal(inputs.labels[0].numpy(), mask[rows][:, columns])


@pytest.mark.parametrize("crop", [(20, 20), (41, 52), (40, 31), (21, 60)])
def test_a_crop_takes_the_same_pixels_of_image_and_mask(processor, crop):
    mask = np.random.randint(1, 200, (32, 48)).astype(np.uint8)
    image = Image.fromarray(np.repeat(mask[..., None], 3, axis=2))
    size = {"height": crop[0], "width": crop[1]}
    options = {"do_resize": False, "do_center_crop": True, "crop_size": size, "do_superpixels": False}
    inputs = processor(**options, do_normalize=False, do_rescale=False)(
        image, segmentation_maps=mask, return_tensors="pt"
    )
    # Where the crop reaches beyond the image it is black, and the mask does not count.
    seen = inputs.pixel_values[0, 0].long()
    assert torch.equal(inputs.labels[0], seen.where(seen > 0, 255))


def test_a_mask_is_the_same_in_every_form(processor):
    mask = mask_of(40, 60, values=(0, 1, 2))
    image, process = image_of(40, 60), processor()
    expected = process(image, segmentation_maps=mask, return_tensors="pt").labels
    forms = [
        Image.fromarray(mask),
        with_palette(mask),
        encoded(with_palette(mask)),
        {"bytes": encoded(Image.fromarray(mask)), "path": None},
        Image.fromarray(mask.astype(np.int32)),
        mask.astype(np.int64),
        torch.from_numpy(mask),
        mask[None],
        mask[..., None],
        [mask],
    ]
    for form in forms:
        assert torch.equal(process(image, segmentation_maps=form, return_tensors="pt").labels, expected)
    assert decode_mask(Image.fromarray(mask > 0)).tolist() == (mask > 0).astype(int).tolist()
    assert decode_mask(Image.fromarray(np.array([[300, 70000]], dtype=np.int32))).tolist() == [[300, 70000]]


@pytest.mark.parametrize("make", [list, np.stack, lambda masks: torch.from_numpy(np.stack(masks))])
def test_masks_of_a_batch(processor, make):
    masks = [mask_of(40, 60), mask_of(40, 60)]
    images = [image_of(40, 60), image_of(40, 60)]
    labels = processor()(images, segmentation_maps=make(masks), return_tensors="pt").labels
    for one, mask, image in zip(labels, masks, images, strict=True):
        assert torch.equal(one[None], processor()(image, segmentation_maps=mask, return_tensors="pt").labels)
    listed = processor()(images, segmentation_maps=masks)["labels"]
    assert [one.tolist() for one in listed] == labels.tolist()


def test_reduced_labels_lose_the_background(processor):
    mask = np.tile(np.array([0, 1, 150, 255], dtype=np.uint8), (8, 2))
    options = {"do_resize": False, "do_superpixels": False}
    labels = processor(**options, do_reduce_labels=True)(
        image_of(8, 8), segmentation_maps=mask, return_tensors="pt"
    ).labels
    assert labels[0, 0, :4].tolist() == [255, 0, 149, 255]
    wide = np.tile(np.array([0, 256, 300, 255], dtype=np.int32), (8, 2))
    labels = processor(**options)(image_of(8, 8), segmentation_maps=wide, do_reduce_labels=True).labels
    assert labels[0][0, :4].tolist() == [255, 255, 299, 255]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((40, 61), np.uint8), "Image 0 .*expected a mask of the image's size 40 x 60, got 40 x 61"),
        (np.zeros((40, 60, 3), np.uint8), r"expected a mask of shape \(height, width\), got \(40, 60, 3\)"),
        (np.zeros((40, 60), np.float32), "expected a mask of integers, the numbers of classes, got float32"),
        (np.full((40, 60), -1), "expected numbers of classes >= 0"),
        (Image.new("RGB", (60, 40)), "expected a mask of one channel with numbers of classes, got an image in RGB"),
        (Image.new("F", (60, 40)), "got an image in F"),
        (b"no image", "could not be decoded"),
        ([None], "expected a mask, got none"),
        ([], "Expected a mask of each of the 1 images, got 0"),
        ([np.zeros((40, 60), np.uint8)] * 2, "Expected a mask of each of the 1 images, got 2"),
    ],
)
def test_masks_that_do_not_fit_are_refused(processor, mask, message):
    with pytest.raises(ValueError, match=message):
        processor()(image_of(40, 60), segmentation_maps=mask)


# From logits to the class of each pixel.


def test_without_sizes_the_cells_are_the_pixels():
    logits = torch.randn(2, 5, 6, 7)
    maps = segmentation_maps_of(logits)
    assert torch.equal(torch.stack(maps), logits.argmax(dim=1))


@pytest.mark.parametrize("labels", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(6, 7), (60, 77), (3, 2), (13, 50)])
def test_pixels_have_the_largest_interpolated_logit_of_the_classes_that_are_there(labels, size):
    logits = torch.randn(2, labels, 6, 7, dtype=torch.float64).float()
    present = [set(one.argmax(dim=0).unique().tolist()) for one in logits]
    wide = torch.nn.functional.interpolate(logits.double(), size, mode="bilinear")
    for one, found, there in zip(wide, segmentation_maps_of(logits, [size] * 2), present, strict=True):
        absent = torch.tensor([label not in there for label in range(labels)])
        scores = one.masked_fill(absent[:, None, None], -torch.inf)
        best = scores.amax(dim=0)
        chosen = scores.gather(0, found[None])[0]
        # Ties are broken either way.
        assert ((best - chosen) < 1e-5).all()
        assert set(found.unique().tolist()) <= there


def test_strips_of_a_large_image_join_without_a_seam(monkeypatch):
    logits = torch.randn(1, 4, 6, 7)
    whole = segmentation_maps_of(logits, [(101, 64)])[0]
    monkeypatch.setattr("focusvit_hf.segmentation_maps._STRIP_VALUES", 64 * 4 * 7)
    assert torch.equal(segmentation_maps_of(logits, [(101, 64)])[0], whole)


def test_nearest_keeps_the_borders_of_the_cells():
    logits = torch.randn(1, 3, 4, 5)
    (found,) = segmentation_maps_of(logits, [(8, 15)], upsampling="nearest")
    assert torch.equal(found, logits[0].argmax(dim=0).repeat_interleave(2, 0).repeat_interleave(3, 1))


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
def test_post_processing_gives_maps_and_scores(upsampling):
    logits = torch.randn(2, 3, 4, 5)
    outputs = SemanticSegmenterOutput(logits=logits)
    process = FocusViTImageProcessor().post_process_semantic_segmentation
    maps = process(outputs, [(9, 8), (20, 30)], upsampling=upsampling)
    scored = process(outputs, torch.tensor([[9, 8], [20, 30]]), True, upsampling=upsampling)
    for one, map, size in zip(scored, maps, [(9, 8), (20, 30)], strict=True):
        assert torch.equal(one.segmentation, map)
        assert one.segmentation_scores.shape == (3, *size)
    assert torch.equal(process(outputs, return_segmentation_scores=True)[1].segmentation_scores, logits[1])


def test_a_mirrored_image_has_a_mirrored_map():
    logits = torch.randn(1, 3, 4, 6)
    (found,) = segmentation_maps_of(logits, [(17, 25)])
    (mirrored,) = segmentation_maps_of(logits.flip(-1), [(17, 25)])
    assert (found != mirrored.flip(-1)).sum() <= 1


def test_sizes_and_modes_that_do_not_fit_are_refused():
    outputs = SemanticSegmenterOutput(logits=torch.randn(2, 3, 4, 5))
    process = FocusViTImageProcessor().post_process_semantic_segmentation
    with pytest.raises(ValueError, match="Expected target_sizes of the 2 images of the logits, got 1"):
        process(outputs, [(8, 8)])
    with pytest.raises(ValueError, match="Expected upsampling to be one of"):
        process(outputs, upsampling="cubic")


def test_the_first_largest_is_argmax():
    values = torch.randint(0, 4, (200, 6)).float()
    assert torch.equal(first_largest(values), values.argmax(dim=1))
    assert torch.equal(first_largest(values[:0]), values[:0].argmax(dim=1))
