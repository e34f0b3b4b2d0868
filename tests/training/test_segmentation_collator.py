"""Images and masks that are augmented together: they stay one on the other, and no new label appears."""

import numpy as np
import pytest
import torch

from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.training.augmentation import AugmentationConfig
from focusvit_hf.training.segmentation_collator import SegmentationDataCollator, crop_mask


@pytest.fixture
def processor():
    return FocusViTImageProcessor(size={"height": 32, "width": 48}, num_superpixels=(2, 3), superpixel_cell_size=4)


def example(height, width, values=(0, 3, 4, 255)):
    mask = np.random.choice(values, (height, width)).astype(np.uint8)
    image = np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)
    return {"image": image, "mask": mask}


def blocks(height, width):
    """An image that shows its mask: grey 50 in blocks of class 0, 200 in those of class 1."""
    coarse = np.random.randint(0, 2, (4, 4))
    mask = coarse.repeat(height // 4, 0).repeat(width // 4, 1).astype(np.uint8)
    return {"image": np.repeat((50 + 150 * mask)[..., None], 3, axis=2).astype(np.uint8), "mask": mask}


STRONG = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "horizontal_flip": 0.5}


@pytest.mark.parametrize("crop", ["random_resized", None])
def test_no_label_appears_that_no_mask_held(processor, crop):
    collate = SegmentationDataCollator(processor, AugmentationConfig(crop=crop, **STRONG), num_labels=5)
    for _ in range(5):
        batch = collate([example(40, 60), example(64, 36), example(31, 97)])
        assert batch["labels"].shape == (3, 32, 48) and batch["labels"].dtype == torch.int64
        assert set(batch["labels"].unique().tolist()) <= {0, 3, 4, 255}
        assert batch["pixel_values"].shape == (3, 3, 32, 48)
        assert batch["superpixel_ids"].shape == (3, 8, 12)


@pytest.mark.parametrize("crop", ["random_resized", None])
def test_the_mask_stays_on_its_image(processor, crop):
    config = AugmentationConfig(crop=crop, crop_scale=(0.3, 1.0), horizontal_flip=0.5)
    batch = SegmentationDataCollator(processor, config, num_labels=2)([blocks(64, 64) for _ in range(8)])
    grey = (batch["pixel_values"].mean(dim=1) * 0.5 + 0.5) * 255
    # Between the blocks the filter of the image mixes levels.
    assert ((grey > 125) == (batch["labels"] == 1)).float().mean() > 0.97


def test_a_crop_of_a_mask_takes_the_pixel_under_each_centre():
    mask = torch.arange(12 * 10).view(12, 10)
    box = torch.tensor([2, 1, 7, 8])
    cropped = crop_mask(mask, box, (5, 4))
    for row in range(5):
        for column in range(4):
            expected = mask[2 + int((row + 0.5) * 7 / 5), 1 + int((column + 0.5) * 8 / 4)]
            assert cropped[row, column] == expected


def test_without_augmentation_it_is_the_processor(processor):
    rows = [example(40, 60), example(33, 47)]
    batch = SegmentationDataCollator(processor, None, num_labels=5)(rows)
    expected = processor(
        [row["image"] for row in rows], segmentation_maps=[row["mask"] for row in rows], return_tensors="pt"
    )
    assert all(torch.equal(batch[name], expected[name]) for name in ("pixel_values", "superpixel_ids", "labels"))


def test_a_crop_holds_a_pixel_that_counts(processor):
    row = example(64, 64, values=(255,))
    row["mask"][5:8, 60:63] = 1
    config = AugmentationConfig(crop_scale=(0.05, 0.1))
    for _ in range(10):
        labels = SegmentationDataCollator(processor, config, num_labels=2)([row])["labels"]
        assert set(labels.unique().tolist()) == {1, 255}


def test_reduced_labels_are_those_of_the_processor(processor):
    processor.do_reduce_labels = True
    row = example(64, 64, values=(0, 1, 5))
    collate = SegmentationDataCollator(processor, AugmentationConfig(), num_labels=5)
    assert set(collate([row])["labels"].unique().tolist()) <= {255, 0, 4}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": np.zeros((8, 8, 3), np.uint8)}, "Expected an image and a mask .* of example 0"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "mask": None}, r"got \['image'\]"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "mask": np.zeros((8, 9), np.uint8)}, "size 8 x 8, got 8 x 9"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "mask": np.full((8, 8), 5)}, r"labels in 0\.\.4, or 255 .*got 5"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "mask": np.zeros((8, 8))}, "a mask of integers"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "mask": np.full((8, 8), 255)}, "Expected pixels that count"),
    ],
)
@pytest.mark.parametrize("augmentation", [None, AugmentationConfig()], ids=["plain", "augmented"])
def test_masks_that_do_not_fit_are_refused(processor, row, message, augmentation):
    with pytest.raises(ValueError, match=message):
        SegmentationDataCollator(processor, augmentation, num_labels=5)([row])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mixup_alpha": 0.2}, "no mixup and no cutmix"), ({"crop": "pad"}, "Expected crop 'random_resized' or None")],
)
def test_augmentations_that_mix_labels_are_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationDataCollator(processor, AugmentationConfig(**options), num_labels=5)
