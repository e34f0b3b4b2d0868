"""Augmentation against plain loops over single images."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from focusvit_hf.training.augmentation import (
    AugmentationConfig,
    color_jitter,
    crop_and_resize,
    cutmix,
    mixup,
    random_crop_boxes,
    random_crop_with_padding,
    random_horizontal_flip,
    random_resized_crop,
    soft_targets,
)


SIZES = st.integers(1, 33)
SEEDS = st.integers(0, 2**31)
GREY = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
# Draws all that can be drawn.


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), generator=seeded(seed), dtype=torch.uint8)


@settings(deadline=None)
@given(height=SIZES, width=SIZES, seed=SEEDS)
def test_crop_boxes_lie_within_the_image(height, width, seed):
    boxes = random_crop_boxes(16, (height, width), (0.05, 1.0), (0.5, 2.0), seeded(seed))
    top, left, box_height, box_width = boxes.unbind(1)
    assert boxes.shape == (16, 4) and boxes.dtype == torch.int64
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
    assert (top + box_height <= height).all() and (left + box_width <= width).all()


def test_crop_boxes_have_the_documented_distribution():
    boxes = random_crop_boxes(20_000, (300, 400), (0.1, 0.4), (3 / 4, 4 / 3), seeded())
    top, left, height, width = boxes.double().unbind(1)
    share, aspect = height * width / (300 * 400), width / height
    assert share.min() > 0.098 and share.max() < 0.402
    assert aspect.min() > 0.74 and aspect.max() < 1.35
    # The moments of uniform variables: area, logarithm of the aspect, corner.
    spread = math.log(4 / 3)
    for values, low, high in (
        (share, 0.1, 0.4),
        (aspect.log(), -spread, spread),
        (top / (300 - height), 0, 1),
        (left / (400 - width), 0, 1),
    ):
        assert abs(values.mean() - (low + high) / 2) < 0.015 * (high - low)
        assert abs(values.std() - (high - low) / math.sqrt(12)) < 0.015 * (high - low)


@pytest.mark.parametrize(
    "size, box", [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10)), ((1, 99), (0, 49, 1, 1))]
)
def test_crop_boxes_fall_back_to_the_middle(size, box):
    boxes = random_crop_boxes(3, size, (1.0, 1.0), (3 / 4, 4 / 3), seeded())
    assert boxes.tolist() == [list(box)] * 3


@settings(deadline=None)
@given(height=SIZES, width=SIZES, out_height=SIZES, out_width=SIZES, seed=SEEDS)
def test_crop_and_resize_against_pil(height, width, out_height, out_width, seed):
    images = noise(3, height, width, seed).float() / 255
    boxes = random_crop_boxes(3, (height, width), (0.1, 1.0), (0.5, 2.0), seeded(seed))
    result = crop_and_resize(images, boxes, (out_height, out_width))
    for image, (top, left, h, w), cropped in zip(images, boxes.tolist(), result, strict=True):
        for channel, values in zip(image, cropped, strict=True):
            part = Image.fromarray(channel[top : top + h, left : left + w].numpy())
            expected = np.array(part.resize((out_width, out_height), Image.Resampling.BILINEAR))
            torch.testing.assert_close(values, torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("height, width", [(32, 32), (7, 13), (1, 1)])
def test_the_whole_image_as_a_box_changes_nothing(height, width):
    images = noise(4, height, width)
    boxes = torch.tensor([[0, 0, height, width]]).expand(4, 4)
    assert torch.equal(crop_and_resize(images, boxes, (height, width)), images)
    floats = images.double() / 255
    assert torch.equal(crop_and_resize(floats.float(), boxes, (height, width)), floats.float())


def test_random_resized_crop_gives_the_size_asked_for_and_rounds_once():
    images = noise(5, 40, 31)
    result = random_resized_crop(images, (16, 24), generator=seeded(3))
    floats = random_resized_crop(images.float() / 255, (16, 24), generator=seeded(3))
    assert result.shape == (5, 3, 16, 24) and result.dtype == torch.uint8 and floats.dtype == torch.float32
    assert torch.equal(result, (floats * 255).round().to(torch.uint8))
    assert len(random_resized_crop(images[:1].expand(5, -1, -1, -1), (4, 4), generator=seeded()).unique(dim=0)) > 1


@settings(deadline=None, max_examples=30)
@given(height=st.integers(2, 9), width=st.integers(2, 9), seed=SEEDS, data=st.data())
def test_padded_crop_is_a_window_of_the_mirrored_image(height, width, seed, data):
    padding = data.draw(st.integers(0, min(height, width) - 1))
    images = noise(6, height, width, seed)
    for image, shifted in zip(images, random_crop_with_padding(images, padding, seeded(seed)), strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
        windows = [
            padded[:, i : i + height, j : j + width] for i in range(2 * padding + 1) for j in range(2 * padding + 1)
        ]
        assert any(np.array_equal(shifted, window) for window in windows)


def test_padded_crop_reaches_every_shift():
    image = noise(1, 8, 8)
    shifted = random_crop_with_padding(image.expand(400, -1, -1, -1), 2, seeded())
    assert len(shifted.unique(dim=0)) == 25


def test_flip_mirrors_about_as_many_as_asked():
    images = noise(400, 3, 5)
    assert torch.equal(random_horizontal_flip(images, 0.0, seeded()), images)
    assert torch.equal(random_horizontal_flip(images, 1.0, seeded()), images.flip(3))
    result = random_horizontal_flip(images, 0.25, seeded())
    flipped = (result == images.flip(3)).flatten(1).all(1)
    assert torch.equal(result[~flipped], images[~flipped])
    assert 70 < flipped.sum() < 130


@given(height=SIZES, width=SIZES, seed=SEEDS)
@settings(deadline=None, max_examples=30)
def test_jitter_of_no_strength_changes_nothing(height, width, seed):
    images = noise(2, height, width, seed)
    assert torch.equal(color_jitter(images, 0.0, 0.0, 0.0), images)
    assert torch.equal(color_jitter(images / 255, 0.0, 0.0, 0.0), images / 255)


@pytest.mark.parametrize("strengths", [(0.4, 0.0, 0.0), (0.0, 0.4, 0.0), (0.0, 0.0, 0.4)], ids="bcs")
def test_jitter_blends_each_image_by_one_factor(strengths):
    images = torch.rand(64, 3, 6, 5, generator=seeded()) * 0.2 + 0.4
    result = color_jitter(images, *strengths, generator=seeded(1))
    factors = []
    for image, jittered in zip(images, result, strict=True):
        grey = (image * GREY).sum(0, keepdim=True)
        other = (torch.zeros(1, 1, 1), grey.mean(), grey)[[s > 0 for s in strengths].index(True)]
        spread = image - other
        factor = ((jittered - other) * spread).sum() / spread.square().sum()
        torch.testing.assert_close(jittered, other + factor * spread, atol=1e-5, rtol=0)
        factors.append(float(factor))
    assert 0.599 < min(factors) < 0.65 and 1.35 < max(factors) < 1.401


def test_jitter_stays_within_the_range():
    images = noise(16, 5, 5)
    strong = color_jitter(images / 255, 3.0, 3.0, 3.0, seeded())
    assert strong.min() >= 0 and strong.max() <= 1
    assert torch.equal(color_jitter(images, 3.0, 3.0, 3.0, seeded()), (strong * 255).round().to(torch.uint8))


def test_soft_targets_give_the_loss_of_classes():
    labels, logits = torch.tensor([0, 4, 2]), torch.randn(3, 5, generator=seeded())
    targets = soft_targets(labels, 5)
    torch.testing.assert_close(F.cross_entropy(logits, targets), F.cross_entropy(logits, labels))
    assert torch.equal(soft_targets(labels, 5), torch.eye(5)[labels])


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 8.0])
def test_mixup_blends_images_as_it_blends_targets(alpha):
    images, targets = torch.rand(4, 3, 5, 7, generator=seeded()), torch.eye(4)
    for seed in range(20):
        mixed, soft = mixup(images, targets, alpha, seeded(seed))
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
        for i in range(4):
            share = soft[i, i]
            expected = share * images[i] + (1 - share) * images[i - 1]
            torch.testing.assert_close(mixed[i], expected, atol=1e-6, rtol=0)
            torch.testing.assert_close(soft[i, i - 1], 1 - share)


@settings(deadline=None)
@given(height=SIZES, width=SIZES, seed=SEEDS, alpha=st.sampled_from([0.2, 1.0, 4.0]))
def test_cutmix_weighs_targets_by_the_area_it_pasted(height, width, seed, alpha):
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, height, width)
    mixed, soft = cutmix(images, torch.eye(4), alpha, seeded(seed))
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
    assert torch.equal(images[:, 0, 0, 0], torch.arange(4, dtype=torch.uint8))
    for i in range(4):
        pasted = mixed[i, 0] == (i - 1) % 4
        assert ((mixed[i] == i) | pasted).all()
        torch.testing.assert_close(soft[i, i - 1], pasted.float().mean())
        # One box: the pasted rows and columns say which pixels.
        assert torch.equal(pasted, pasted.any(1)[:, None] & pasted.any(0))


def test_cutmix_boxes_cover_about_what_they_should():
    images, targets = torch.zeros(2, 3, 64, 64), torch.eye(2)
    pasted = torch.stack([cutmix(images, targets, 1.0, seeded(seed))[1][0, 1] for seed in range(300)])
    # A side s around a uniform place covers s - s²/4 of the image's on the average; s² is uniform.
    assert abs(pasted.mean() - (1 / 2 - 1 / 5 + 1 / 48)) < 0.04
    assert pasted.min() < 0.05 and pasted.max() > 0.75


@pytest.mark.parametrize(
    "draw",
    [
        lambda x, g: random_resized_crop(x, (8, 8), generator=g),
        lambda x, g: random_crop_with_padding(x, 3, g),
        lambda x, g: random_horizontal_flip(x, 0.5, g),
        lambda x, g: color_jitter(x, 0.3, 0.3, 0.3, g),
        lambda x, g: mixup(x, torch.eye(16), 0.5, g)[0],
        lambda x, g: cutmix(x, torch.eye(16), 0.5, g)[0],
    ],
    ids=["resized crop", "padded crop", "flip", "jitter", "mixup", "cutmix"],
)
def test_draws_follow_the_generator_alone(draw):
    images = noise(16, 9, 11)
    before = images.clone()
    state = torch.get_rng_state()
    first, again, other = (draw(images, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(7)
    by_default = draw(images, None)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(draw(images, None), by_default)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    "shape, dtype", [((3, 8, 8), torch.uint8), ((2, 1, 8, 8), torch.uint8), ((2, 3, 8, 8), torch.int64)]
)
def test_augmentations_refuse_other_shapes_and_types(shape, dtype):
    with pytest.raises(ValueError, match="Expected uint8 or floating point images of shape"):
        color_jitter(torch.zeros(shape, dtype=dtype), 0.1, 0.1, 0.1)


@pytest.mark.parametrize("padding", [-1, 8])
def test_padding_has_to_be_smaller_than_the_image(padding):
    with pytest.raises(ValueError, match=f"Expected a padding below height and width .* got {padding}"):
        random_crop_with_padding(noise(1, 8, 9), padding)


def test_config_goes_through_json():
    config = AugmentationConfig(crop="pad", crop_scale=[0.2, 0.9], cutmix_alpha=1)
    again = AugmentationConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.crop_scale == (0.2, 0.9) and again.crop_padding == 4
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert AugmentationConfig.from_dict(AugmentationConfig().to_dict()) == AugmentationConfig()
    # Whole numbers, as JSON may have them, give the same boxes as fractions do.
    whole = AugmentationConfig.from_dict({"crop_scale": [1, 1], "crop_ratio": [1, 2]})
    assert random_crop_boxes(3, (8, 8), whole.crop_scale, whole.crop_ratio)[:, 2:].shape == (3, 2)
    with pytest.raises(ValueError, match=r"Expected augmentation options from \['crop', .* got \['crop_scales'\]"):
        AugmentationConfig.from_dict({"crop_scales": [0.1, 1.0]})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"crop": "center"}, "Expected crop to be"),
        ({"crop_scale": (0.5,)}, "Expected crop_scale as"),
        ({"crop_scale": 0.5}, "Expected crop_scale as"),
        ({"crop_scale": (0.0, 1.0)}, "Expected crop_scale with 0 < least"),
        ({"crop_scale": (0.9, 0.5)}, "Expected crop_scale with 0 < least"),
        ({"crop_scale": (0.5, 1.5)}, r"Expected crop_scale as a number in 0..1, got 1.5"),
        ({"crop_ratio": (2.0, 0.5)}, "Expected crop_ratio with 0 < least"),
        ({"crop_ratio": (0.5, "2")}, "Expected crop_ratio as a number"),
        ({"crop": "pad", "crop_padding": 0}, "Expected crop_padding as a whole number >= 1, got 0"),
        ({"crop": "pad", "crop_padding": 1.5}, "Expected crop_padding as a whole number"),
        ({"crop_padding": 4}, "Expected crop='pad' with crop_padding=4, got crop='random_resized'"),
        ({"horizontal_flip": True}, "Expected horizontal_flip as a number in 0..1, got True"),
        ({"horizontal_flip": 1.1}, "Expected horizontal_flip as a number in 0..1"),
        ({"brightness": -0.1}, "Expected brightness as a number"),
        ({"contrast": math.inf}, "Expected contrast as a number"),
        ({"saturation": None}, "Expected saturation as a number"),
        ({"mixup_alpha": -1}, "Expected mixup_alpha as a number"),
        ({"cutmix_alpha": math.nan}, "Expected cutmix_alpha as a number"),
        ({"mix_probability": 2}, "Expected mix_probability as a number in 0..1, got 2"),
        ({"mix_probability": "0.1"}, "Expected mix_probability as a number"),
    ],
)
def test_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        AugmentationConfig(**options)
