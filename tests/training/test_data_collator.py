"""The collator: pictures augmented, then cut into superpixels, in one batch."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.superpixels import slic
from focusvit_hf.training.augmentation import AugmentationConfig
from focusvit_hf.training.data_collator import FocusViTDataCollator, SeededCollator


# Draws all that can be drawn.
EVERYTHING = AugmentationConfig(
    crop_scale=(0.3, 1.0),
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    mixup_alpha=0.4,
    cutmix_alpha=1.0,
    mix_probability=0.7,
)
NEUTRAL = AugmentationConfig(crop=None, horizontal_flip=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), generator=seeded(seed), dtype=torch.uint8)


def processor(**options) -> FocusViTImageProcessor:
    size = {"height": 32, "width": 32}
    return FocusViTImageProcessor(
        **{"size": size, "num_superpixels": 16, "superpixel_cell_size": 2, "patch_size": 4, **options}
    )


def arrays(images: torch.Tensor) -> list[np.ndarray]:
    """(height, width, 3) uint8."""
    return list(images.permute(0, 2, 3, 1).numpy())


def examples(pictures, labels=None) -> list[dict]:
    return [{"image": p, "label": (labels or range(100))[i] % 10} for i, p in enumerate(pictures)]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_without_augmentation_the_collator_is_the_processor():
    pictures = [*arrays(noise(2, 40, 50)), Image.fromarray(arrays(noise(1, 20, 20))[0])]
    expected = processor()(pictures, return_tensors="pt")
    batch = FocusViTDataCollator(processor())(examples(pictures))
    assert batch.keys() == {"pixel_values", "superpixel_ids", "labels"}
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["superpixel_ids"], expected["superpixel_ids"])
    assert batch["labels"].tolist() == [0, 1, 2] and batch["labels"].dtype == torch.int64
    unlabelled = FocusViTDataCollator(processor())([{"image": picture} for picture in pictures])
    assert unlabelled.keys() == {"pixel_values", "superpixel_ids"}


CROPPED = {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        CROPPED,
        {"do_superpixels": False},
        {"image_mean": [0.4, 0.5, 0.3], "image_std": [0.2, 0.25, 0.3], "superpixel_method": "skimage"},
        {"do_normalize": False, "do_rescale": False},
    ],
    ids=["resize", "crop", "no superpixels", "skimage", "levels"],
)
@pytest.mark.parametrize("sizes", [[(32, 32)] * 3, [(45, 40)] * 3, [(32, 32), (20, 44), (45, 40)]], ids=str)
def test_an_augmentation_that_does_nothing_equals_the_processor(options, sizes):
    pictures = [Image.fromarray(arrays(noise(1, *size, seed))[0]) for seed, size in enumerate(sizes)]
    expected = FocusViTDataCollator(processor(**options))(examples(pictures))
    assert same(FocusViTDataCollator(processor(**options), NEUTRAL)(examples(pictures)), expected)


def test_images_keep_their_own_size_where_the_processor_does_not_resize():
    images = noise(3, 24, 36)
    collator = FocusViTDataCollator(processor(do_resize=False), AugmentationConfig())
    assert collator(examples(arrays(images)))["pixel_values"].shape == (3, 3, 24, 36)
    with pytest.raises(ValueError, match=r"Expected images of one size, .* got"):
        collator(examples([*arrays(images), *arrays(noise(1, 24, 24))]))


@pytest.mark.parametrize("crop", ["random_resized", "pad", None])
@pytest.mark.parametrize("sizes", [[(32, 32)] * 4, [(64, 48)] * 4, [(64, 48), (32, 32), (33, 70), (64, 48)]], ids=str)
def test_superpixels_are_those_of_the_augmented_image(crop, sizes):
    config = AugmentationConfig.from_dict({**EVERYTHING.to_dict(), "crop": crop})
    pictures = [arrays(noise(1, *size, seed))[0] for seed, size in enumerate(sizes)]
    collator = FocusViTDataCollator(processor(), config, num_labels=10, generator=seeded())
    batch = collator(examples(pictures))
    assert batch["pixel_values"].shape == (4, 3, 32, 32) and batch["pixel_values"].dtype == torch.float32
    levels = (batch["pixel_values"] * 0.5 + 0.5) * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    levels = levels.round().to(torch.uint8)
    assert torch.equal(batch["superpixel_ids"], slic(levels, 16, cell_size=2))
    whole = processor()(list(levels), return_tensors="pt")
    assert torch.equal(whole["pixel_values"], batch["pixel_values"])
    assert batch["labels"].shape == (4, 10) and batch["labels"].dtype == torch.float32
    torch.testing.assert_close(batch["labels"].sum(1), torch.ones(4))


def test_random_crops_come_from_the_image_as_it_is():
    # The left half of a wide picture is red, the right blue: a small crop of the original has mostly one of them.
    picture = np.zeros((64, 256, 3), np.uint8)
    picture[:, :128, 0], picture[:, 128:, 2] = 255, 255
    config = AugmentationConfig(crop_scale=(0.05, 0.05), crop_ratio=(1.0, 1.0), horizontal_flip=0.0)
    collator = FocusViTDataCollator(processor(do_normalize=False), config, generator=seeded())
    red, green, blue = collator(examples([picture] * 64))["pixel_values"].unbind(1)
    torch.testing.assert_close(red + blue, torch.ones_like(red), atol=0.01, rtol=0)
    assert not green.any()
    one_colour = (red.flatten(1).amin(1) == 1) | (blue.flatten(1).amin(1) == 1)
    assert one_colour.float().mean() > 0.6


@pytest.mark.parametrize("augmentation", [None, EVERYTHING], ids=["plain", "augmented"])
def test_every_form_of_an_image_gives_the_same_batch(augmentation):
    images = noise(3, 32, 32)
    pil = [Image.fromarray(array) for array in arrays(images)]
    files = []
    for picture in pil:
        stream = io.BytesIO()
        picture.save(stream, "WEBP", lossless=True)
        files.append(stream.getvalue())
    forms = {
        "channels last": arrays(images),
        "read-only": [np.frombuffer(p.tobytes(), np.uint8).reshape(32, 32, 3) for p in pil],
        "channels first": list(images.numpy()),
        "tensors": list(images),
        "lazy": [Image.open(io.BytesIO(data)) for data in files],
        "bytes": [{"bytes": data, "path": None} for data in files],
        "mixed": [pil[0], images[1], arrays(images)[2]],
    }
    batches = {
        name: FocusViTDataCollator(processor(), augmentation, 10, generator=seeded(1))(examples(pictures))
        for name, pictures in {"pil": pil, **forms}.items()
    }
    assert [name for name, batch in batches.items() if not same(batch, batches["pil"])] == []


def test_grey_and_transparent_images_can_be_augmented(tmp_path):
    grey = Image.fromarray(noise(1, 32, 32)[0, 0].numpy())
    grey.save(tmp_path / "grey.png")
    pictures = [grey, grey.convert("LA"), grey.convert("RGBA"), {"bytes": None, "path": str(tmp_path / "grey.png")}]
    values = FocusViTDataCollator(processor(), NEUTRAL)(examples(pictures))["pixel_values"]
    assert all(torch.equal(value, values[0]) for value in values)


def test_labels_of_each_kind():
    pictures = arrays(noise(3, 32, 32))
    labels = [np.int64(3), torch.tensor(0), 9]
    batch = [{"image": picture, "label": label} for picture, label in zip(pictures, labels, strict=True)]
    hard = FocusViTDataCollator(processor(), AugmentationConfig(), 10)(batch)["labels"]
    assert hard.tolist() == [3, 0, 9] and hard.dtype == torch.int64
    # The form does not depend on whether a batch happens to be mixed.
    rarely = AugmentationConfig(cutmix_alpha=1.0, mix_probability=1e-9)
    torch.testing.assert_close(FocusViTDataCollator(processor(), rarely, 10)(batch)["labels"], torch.eye(10)[hard])


def test_both_ways_of_mixing_are_used():
    black, white = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    config = AugmentationConfig(crop=None, mixup_alpha=8.0, cutmix_alpha=8.0, mix_probability=0.6)
    collator = FocusViTDataCollator(
        processor(do_normalize=False, do_superpixels=False), config, 10, generator=seeded()
    )
    kinds = {"unmixed": 0, "mixup": 0, "cutmix": 0}
    for _ in range(100):
        values = collator(examples([black, white]))["pixel_values"][0]
        if not values.any():
            kinds["unmixed"] += 1
        else:
            kinds["mixup" if values.min() > 0 else "cutmix"] += 1
    assert 25 < kinds["unmixed"] < 55 and kinds["mixup"] > 15 and kinds["cutmix"] > 15


def test_a_restored_random_state_gives_the_same_batches():
    collator = FocusViTDataCollator(processor(), EVERYTHING, 10)
    pictures = examples(arrays(noise(8, 32, 32)))
    state = torch.get_rng_state()
    first = [collator(pictures) for _ in range(2)]
    assert not torch.equal(first[0]["pixel_values"], first[1]["pixel_values"])
    torch.set_rng_state(state)
    assert all(same(batch, collator(pictures)) for batch in first)


def test_collator_can_be_sent_to_workers():
    collator = pickle.loads(pickle.dumps(FocusViTDataCollator(processor(), EVERYTHING, 10)))
    loader = torch.utils.data.DataLoader(
        examples(arrays(noise(8, 32, 32))), batch_size=2, collate_fn=collator, num_workers=2, generator=seeded()
    )
    first, again = list(loader), list(loader)
    assert len(first) == 4 and not same(first[0], again[0])


@pytest.mark.parametrize("augmentation", [None, NEUTRAL], ids=["plain", "augmented"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"label": 10}, "Expected a label >= 0 and < 10 for example 1 of the batch, got 10"),
        ({"label": -1}, "Expected a label >= 0 and < 10 for example 1 of the batch, got -1"),
        ({"label": 1.0}, "Expected an integer as label of example 1 of the batch, got 1.0"),
        ({"label": None}, "Expected an integer as label of example 1 of the batch, got None"),
        ({"label": True}, "Expected an integer as label of example 1 of the batch, got True"),
        ({"label": np.array([1, 2])}, "Expected an integer as label of example 1"),
        ({"label": ...}, r"Expected a class in column 'label' of example 1 of the batch, got the columns \['image'\]"),
        (
            {"image": ...},
            r"an image in column 'image' of .* \['label'\]\. Trainer removes it unless .*_unused_columns=False",
        ),
        ({"image": None}, r"Image 1 of the batch cannot be used: expected the path of a file, .* got NoneType"),
        ({"image": np.full((32, 32, 3), np.nan, np.float32)}, "Image 1 of the batch .*NaN"),
        ({"image": np.zeros((0, 32, 3), np.uint8)}, "Image 1 of the batch .*none of them 0"),
        ({"image": {"bytes": b"no picture", "path": None}}, "Image 1 of the batch cannot be used"),
        (
            {"image": {"bytes": None, "path": None}},
            r"Image 1 of the batch cannot be used: expected the path of a file, .* got dict",
        ),
        ({"image": "truncated"}, "Image 1 of the batch cannot be used"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_collator_names_the_example_it_refuses(augmentation, change, message):
    batch = examples(arrays(noise(3, 32, 32)))
    if isinstance(change.get("image"), str):
        stream = io.BytesIO()
        Image.fromarray(batch[1]["image"]).save(stream, "JPEG")
        change = {"image": Image.open(io.BytesIO(stream.getvalue()[:-200]))}
    batch[1] = {name: value for name, value in {**batch[1], **change}.items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        FocusViTDataCollator(processor(), augmentation, 10)(batch)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    batch = examples([Image.fromarray(array) for array in arrays(noise(2, 64, 64))])
    for augmentation in (None, NEUTRAL):
        with pytest.raises(ValueError, match=r"Image 0 of the batch cannot be used: .*decompression bombs"):
            FocusViTDataCollator(processor(), augmentation)(batch)


def test_augmentation_takes_8_bit_images_only():
    with pytest.raises(ValueError, match=r"Image 0 of the batch cannot be used: expected .*uint8.* got float32"):
        FocusViTDataCollator(processor(), NEUTRAL)(examples([np.zeros((32, 32, 3), np.float32)]))


def test_augmentation_needs_labels_and_their_number():
    with pytest.raises(ValueError, match="Expected a class in column 'label' of example 0"):
        FocusViTDataCollator(processor(), NEUTRAL)([{"image": arrays(noise(1, 32, 32))[0]}])
    with pytest.raises(ValueError, match="Expected num_labels for mixup and cutmix, got None"):
        FocusViTDataCollator(processor(), AugmentationConfig(mixup_alpha=0.2))
    with pytest.raises(ValueError, match="Expected num_labels >= 1, got 0"):
        FocusViTDataCollator(processor(), num_labels=0)


def test_collator_wants_examples():
    with pytest.raises(ValueError, match="Expected at least one example, got none"):
        FocusViTDataCollator(processor())([])


def test_seeded_collator_depends_on_epoch_and_images_alone():
    collator = SeededCollator(lambda rows: {"noise": torch.rand(len(rows))}, seed=3)

    def noise(indices: list[int]) -> torch.Tensor:
        return collator([{"index": index, "image": None} for index in indices])["noise"]

    torch.manual_seed(0)
    first = noise([1, 2])
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(noise([1, 2]), first)
    assert not torch.equal(noise([2, 1]), first)
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator must not move"
    collator.epoch.fill_(1)
    assert not torch.equal(noise([1, 2]), first)
