"""Large images: JPEG files decoded at a fraction and boxes before the filter, against every pixel and the filter."""

import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, JpegImagePlugin
from skimage.data import astronaut, chelsea
from transformers.image_utils import SizeDict

from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.image_sizes import Needed, channels_first, needed_by, resize
from focusvit_hf.images import decode_image
from focusvit_hf.training.augmentation import AugmentationConfig
from focusvit_hf.training.data_collator import FocusViTDataCollator, needed_for_training


SIDE = 128
PROCESSOR = FocusViTImageProcessor(size={"height": SIDE, "width": SIDE})


@pytest.fixture(scope="module")
def photograph():
    """Two megapixels: two photographs side by side and below each other, detail to the last pixel."""
    block = np.concatenate((astronaut()[:300, :451], chelsea()), axis=1)
    # Neither side is a whole number of blocks; where the last block were stretched, edges would move.
    return Image.fromarray(np.tile(block, (5, 2, 1))[:1205, :1801])


def written(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


def by_the_filter_alone(image, size):
    """What the resize was before: every pixel decoded, one antialiased filter."""
    pixels = torch.from_numpy(np.array(channels_first(image)))[None]
    return torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)[0].numpy()


def within(found, expected, levels):
    return float((np.abs(found.astype(int) - expected.astype(int)) <= levels).mean())


@pytest.mark.parametrize("how", ["baseline", "progressive", "CMYK", "grey"])
def test_a_fraction_is_within_two_grey_levels_of_the_whole(photograph, how):
    image = photograph.convert({"CMYK": "CMYK", "grey": "L"}.get(how, "RGB"))
    data = written(image, progressive=how == "progressive")
    found = PROCESSOR.to_levels(data)[0]
    expected = by_the_filter_alone(decode_image(data), (SIDE, SIDE))
    assert found.shape == expected.shape == (3, SIDE, SIDE)
    assert within(found, expected, 2) >= 0.95


def test_a_small_photograph_is_decoded_whole():
    data = written(Image.fromarray(chelsea()).resize((500, 375)))
    np.testing.assert_array_equal(PROCESSOR.to_levels(data)[0], by_the_filter_alone(decode_image(data), (SIDE, SIDE)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_fraction_is_upright_and_keeps_its_place(photograph, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = written(photograph, exif=exif.tobytes())
    size = {"height": 64, "width": 96}
    found = FocusViTImageProcessor(size=size).to_levels(data)[0]
    assert within(found, by_the_filter_alone(decode_image(data), (64, 96)), 3) >= 0.95


def test_only_a_fraction_is_decoded(photograph, monkeypatch):
    data, decoded = written(photograph), []
    load = JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", lambda file: decoded.append(file.size) or load(file))
    PROCESSOR.to_levels(data)
    # A quarter of 1801 x 1205, which is more than twice what is needed.
    assert max(decoded) == (451, 302)


def test_the_size_follows_from_the_whole_image(photograph):
    # A side of 1/8 of the file would give another length of the longer edge than the file's own sides.
    data = written(photograph)
    processor = FocusViTImageProcessor(size={"shortest_edge": 64}, do_superpixels=False)
    assert processor.to_levels(data)[0].shape == processor.to_levels(decode_image(data))[0].shape == (3, 64, 95)


@pytest.mark.parametrize(
    "options", [{"do_resize": False}, {"resample": Image.Resampling.NEAREST}, {"size": {"height": 256, "width": 256}}]
)
def test_where_every_pixel_counts_every_pixel_is_decoded(options):
    data = written(Image.fromarray(chelsea()).resize((1000, 750)))
    processor = FocusViTImageProcessor(do_superpixels=False, **options)
    np.testing.assert_array_equal(processor.to_levels(data)[0], processor.to_levels(decode_image(data))[0])


def test_every_door_gives_the_same_image_of_a_large_file(photograph, tmp_path):
    path = tmp_path / "photograph.jpg"
    path.write_bytes(written(photograph))
    expected = PROCESSOR(str(path), return_tensors="pt")
    collator = FocusViTDataCollator(PROCESSOR)
    for found in (
        PROCESSOR(path.read_bytes(), return_tensors="pt"),
        PROCESSOR([{"bytes": None, "path": str(path)}], return_tensors="pt"),
        PROCESSOR(decode_image(path, needed=needed_by(PROCESSOR)), return_tensors="pt"),
        collator([{"image": {"bytes": path.read_bytes(), "path": None}}]),
    ):
        assert torch.equal(found["pixel_values"], expected["pixel_values"])
        assert torch.equal(found["superpixel_ids"], expected["superpixel_ids"])


def test_masks_are_of_the_size_of_the_file(photograph):
    mask = np.zeros((photograph.height, photograph.width), dtype=np.uint8)
    batch = PROCESSOR(written(photograph), segmentation_maps=mask, return_tensors="pt")
    assert batch["labels"].shape == (1, SIDE, SIDE)


def test_a_damaged_large_file_is_a_value_error(photograph):
    with pytest.raises(ValueError, match=r"Image 0 of the batch cannot be used: .*truncated"):
        PROCESSOR(written(photograph)[:100_000])


def test_training_crops_keep_the_pixels_of_the_processor_s_size():
    augmentation = AugmentationConfig(crop="random_resized", crop_scale=(0.25, 1.0), crop_ratio=(0.75, 4 / 3))
    needed = needed_for_training(PROCESSOR, augmentation)
    assert needed.resample is None
    # A quarter of the area, one side a third longer than the other: 128 pixels of at least 2 * 128 * sqrt(4 / 3).
    assert needed.of(3000, 4000) == (296, 296)
    assert needed_for_training(FocusViTImageProcessor(size={"shortest_edge": 224}), augmentation) is None


def test_an_image_for_crops_stays_larger(photograph):
    image = decode_image(written(photograph), needed=Needed(SizeDict(height=296, width=296)))
    assert image.size == (901, 603)


def test_boxes_before_the_filter_are_within_a_grey_level(photograph):
    found = resize(photograph, SizeDict(height=SIDE, width=SIDE), Image.Resampling.BILINEAR)
    expected = by_the_filter_alone(photograph, (SIDE, SIDE))
    assert within(found, expected, 1) >= 0.9
    assert within(found, expected, 2) >= 0.99
    array = channels_first(photograph)
    np.testing.assert_array_equal(resize(array, SizeDict(height=SIDE, width=SIDE), Image.Resampling.BILINEAR), found)
