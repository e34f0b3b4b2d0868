import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.data import chelsea
from transformers import ViTImageProcessorPil
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import focusvit_hf.image_processing_focusvit as module
from focusvit_hf import FocusViTConfig, FocusViTImageProcessor, FocusViTModel
from focusvit_hf.superpixels import slic


HALF = [0.5, 0.5, 0.5]
TINY = {"size": {"height": 32, "width": 32}, "num_superpixels": 16, "superpixel_cell_size": 2}


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def cat():
    return Image.fromarray(chelsea())


@pytest.fixture
def processor():
    return FocusViTImageProcessor(**TINY)


def tiny_model(**options):
    config = FocusViTConfig(
        **{
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 12,
            "num_attention_heads": 3,
            "num_hidden_layers": 1,
            "intermediate_size": 12,
            "num_latents": 2,
            "num_superpixels": 16,
            "stem_channels": 8,
            **options,
        }
    )
    return FocusViTModel(config).eval()


def assert_owned(ids, number):
    for map_ in ids:
        np.testing.assert_array_equal(np.unique(np.asarray(map_)), np.arange(number))


def test_defaults(cat):
    processor = FocusViTImageProcessor()
    assert dict(processor.size) == {"height": 224, "width": 224}
    assert processor.resample == Image.Resampling.BILINEAR
    assert list(processor.image_mean) == HALF and list(processor.image_std) == HALF
    assert processor.do_superpixels and processor.do_convert_rgb and not processor.do_center_crop
    output = processor(cat, return_tensors="pt")
    assert set(output) == {"pixel_values", "superpixel_ids"}
    assert output.pixel_values.shape == (1, 3, 224, 224) and output.pixel_values.dtype == torch.float32
    assert output.superpixel_ids.shape == (1, 56, 56) and output.superpixel_ids.dtype == torch.int64
    assert_owned(output.superpixel_ids, 49)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD},
        {"do_center_crop": True, "crop_size": 192},
        {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
        {"size": {"shortest_edge": 64, "longest_edge": 96}, "do_center_crop": True, "crop_size": 112},
        {"resample": Image.Resampling.BICUBIC, "do_normalize": False},
        {"do_resize": False, "do_center_crop": True, "crop_size": 224},
        {"do_rescale": False},
    ],
)
def test_pixel_values_equal_vits(cat, options):
    options = {"return_tensors": "pt", **options}
    expected = ViTImageProcessorPil()([cat, noise(60, 80)], **options).pixel_values
    got = FocusViTImageProcessor()([cat, noise(60, 80)], **options).pixel_values
    assert got.shape == expected.shape
    if options.get("do_resize") is False:
        assert torch.equal(got, expected)
        return
    # Resized values are within a grey level of PIL's, bicubic ones on noise within two.
    std = torch.tensor(options.get("image_std", HALF)) if options.get("do_normalize", True) else torch.ones(3)
    level = (1 if options.get("do_rescale") is False else 1 / 255) / std.view(3, 1, 1)
    difference = (got - expected).abs() / level
    assert difference.max() < (2.001 if "resample" in options else 1.001)
    assert (difference < 1.001).float().mean() > 0.999 and (difference < 0.001).float().mean() > 0.97


def test_ids_are_slic_on_the_resized_image(cat):
    processor = FocusViTImageProcessor(
        num_superpixels=(6, 8), superpixel_compactness=20.0, superpixel_iterations=3, superpixel_cell_size=8
    )
    images = [cat, cat.rotate(90, expand=True), Image.fromarray(noise(40, 30))]
    levels = processor(images, return_tensors="pt", do_rescale=False, do_normalize=False).pixel_values
    expected = slic(levels.to(torch.uint8), (6, 8), 20.0, 3, 8)
    assert torch.equal(processor(images, return_tensors="pt").superpixel_ids, expected)


@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray, list])
def test_return_tensors(processor, kind):
    return_tensors = {torch.Tensor: "pt", np.ndarray: "np", list: None}[kind]
    output = processor([noise(40, 30), noise(20, 25)], return_tensors=return_tensors)
    reference = processor([noise(40, 30), noise(20, 25)], return_tensors="pt")
    for name in ("pixel_values", "superpixel_ids"):
        assert isinstance(output[name], kind)
        assert np.asarray(output[name][0]).dtype == (np.float32 if name == "pixel_values" else np.int64)
        np.testing.assert_array_equal(np.stack([np.asarray(row) for row in output[name]]), reference[name].numpy())


def test_without_superpixels_there_are_only_pixels(processor):
    # 30 px do not divide into cells of 4, which no longer matters.
    output = processor(noise(40, 40), do_superpixels=False, size=30, superpixel_cell_size=4, return_tensors="pt")
    assert set(output) == {"pixel_values"}
    assert output.pixel_values.shape == (1, 3, 30, 30)


def test_a_batch_equals_its_singles(processor):
    images = [noise(40, 30), Image.fromarray(noise(33, 61)), torch.from_numpy(noise(20, 20)).permute(2, 0, 1)]
    batch = processor(images, return_tensors="pt")
    for index, image in enumerate(images):
        single = processor(image, return_tensors="pt")
        assert torch.equal(single.pixel_values[0], batch.pixel_values[index])
        assert torch.equal(single.superpixel_ids[0], batch.superpixel_ids[index])


def test_images_of_several_sizes_keep_their_order(processor):
    images = [noise(32, 48, seed=0), noise(16, 16, seed=1), noise(32, 48, seed=2)]
    output = processor(images, do_resize=False, num_superpixels=(2, 2))
    assert [ids.shape for ids in output.superpixel_ids] == [(16, 24), (8, 8), (16, 24)]
    for image, pixels, ids in zip(images, output.pixel_values, output.superpixel_ids, strict=True):
        np.testing.assert_array_equal(np.rint((pixels * 0.5 + 0.5) * 255), image.transpose(2, 0, 1))
        single = processor(image, do_resize=False, num_superpixels=(2, 2))
        np.testing.assert_array_equal(ids, single.superpixel_ids[0])
    with pytest.raises(ValueError, match="Unable to convert output 'pixel_values'"):
        processor(images, do_resize=False, num_superpixels=(2, 2), return_tensors="pt")


@pytest.mark.parametrize(
    ("mean", "std"), [(HALF, HALF), (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), ([0, 0, 0], [1, 1, 1])]
)
def test_the_normalisation_can_be_undone_exactly(mean, std):
    assert_undone_exactly(mean, std)


@settings(max_examples=40, deadline=None)
@given(
    mean=st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3),
    std=st.lists(st.floats(0.0625, 10, width=32), min_size=3, max_size=3),
)
def test_the_normalisation_can_be_undone_exactly_for_user_statistics(mean, std):
    assert_undone_exactly(mean, std)


def assert_undone_exactly(mean, std):
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=-1)
    processor = FocusViTImageProcessor(do_resize=False, do_superpixels=False, image_mean=mean, image_std=std)
    values = processor(levels, return_tensors="pt").pixel_values
    undone = (values * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]) * 255
    np.testing.assert_array_equal(undone.round()[0].permute(1, 2, 0).numpy(), levels)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(2, 8),
    columns=st.integers(2, 8),
    seed=st.integers(0, 10**6),
    as_float=st.booleans(),
    mean=st.sampled_from([HALF, IMAGENET_DEFAULT_MEAN]),
)
def test_ids_equal_the_models_bit_for_bit(rows, columns, seed, as_float, mean):
    model = tiny_model(num_superpixels=(2, 2), image_size=(rows * 8, columns * 8), image_mean=mean)
    processor = FocusViTImageProcessor.from_model_config(model.config)
    image = noise(rows * 8, columns * 8, seed=seed)
    if as_float:
        # Values off the 8-bit grid, so that rounding decides.
        image = np.random.default_rng(seed).random(image.shape, dtype=np.float32)
    output = processor(image, do_resize=False, do_rescale=not as_float, return_tensors="pt")
    assert torch.equal(model.compute_superpixel_ids(output.pixel_values), output.superpixel_ids)


def test_ids_equal_the_models_on_a_photograph(cat):
    model = tiny_model(image_size=224, patch_size=16, num_superpixels=49)
    output = FocusViTImageProcessor.from_model_config(model.config)([cat, cat.rotate(45)], return_tensors="pt")
    assert torch.equal(model.compute_superpixel_ids(output.pixel_values), output.superpixel_ids)


def test_every_kind_of_input_gives_the_same(processor):
    image = noise(21, 34)
    kinds = [
        Image.fromarray(image),
        image,
        image.transpose(2, 0, 1),
        torch.from_numpy(image),
        torch.from_numpy(image).permute(2, 0, 1),
        image.astype(np.int64),
        image.astype(np.uint16) * 257,
        image.astype(np.float32),
    ]
    reference = processor(image, return_tensors="pt")
    mixed = processor(kinds, return_tensors="pt")
    for index in range(len(kinds)):
        assert torch.equal(mixed.pixel_values[index], reference.pixel_values[0])
        assert torch.equal(mixed.superpixel_ids[index], reference.superpixel_ids[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("do_resize", [True, False])
def test_floats_in_0_to_1_equal_their_8_bit_image(processor, dtype, do_resize):
    image = noise(32, 32)
    reference = processor(image, do_resize=do_resize, return_tensors="pt")
    scaled = (image / 255).astype(dtype)
    output = processor(scaled, do_resize=do_resize, do_rescale=False, return_tensors="pt")
    assert torch.equal(output.superpixel_ids, reference.superpixel_ids)
    torch.testing.assert_close(output.pixel_values, reference.pixel_values, atol=1e-3, rtol=0)


def test_batches_and_nested_lists_are_opened(processor):
    batch = np.stack([noise(20, 20, seed=seed) for seed in range(4)])
    reference = processor(list(batch), return_tensors="pt")
    for form in (batch, torch.from_numpy(batch), [batch[:2], batch[2:]], [[batch[0], batch[1]], list(batch[2:])]):
        output = processor(form, return_tensors="pt")
        assert torch.equal(output.pixel_values, reference.pixel_values)
        assert torch.equal(output.superpixel_ids, reference.superpixel_ids)


def test_grey_images_have_three_equal_channels(processor):
    grey = noise(20, 30, channels=1)[..., 0]
    forms = [grey, grey[None], grey[..., None], torch.from_numpy(grey), Image.fromarray(grey)]
    output = processor(forms, return_tensors="pt")
    assert output.pixel_values.shape == (5, 3, 32, 32)
    reference = processor(np.repeat(grey[..., None], 3, axis=-1), return_tensors="pt")
    for index in range(len(forms)):
        assert torch.equal(output.pixel_values[index], reference.pixel_values[0])
        assert torch.equal(output.superpixel_ids[index], reference.superpixel_ids[0])


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_without_conversion_channels_stay_and_three_make_superpixels(processor, channels):
    mode = {1: "L", 2: "LA", 4: "RGBA"}[channels]
    array = noise(32, 32, channels)
    image = Image.fromarray(array[..., 0] if channels == 1 else array)
    assert image.mode == mode
    options = {"image_mean": [0.0] * channels, "image_std": [1.0] * channels, "do_resize": False}
    output = processor(image, do_convert_rgb=False, return_tensors="pt", **options)
    assert output.pixel_values.shape == (1, channels, 32, 32)
    seen = array[..., :3] if channels == 4 else np.repeat(array[..., :1], 3, axis=-1)
    reference = processor(seen, do_resize=False, return_tensors="pt")
    assert torch.equal(output.superpixel_ids, reference.superpixel_ids)


def test_channels_last_arrays_of_four_channels(processor):
    output = processor(
        noise(20, 30, 4),
        do_convert_rgb=False,
        input_data_format="channels_last",
        image_mean=[0.0] * 4,
        image_std=[1.0] * 4,
        return_tensors="pt",
    )
    assert output.pixel_values.shape == (1, 4, 32, 32)
    with pytest.raises(ValueError, match="image_mean with one value for each of the 4 channels"):
        processor(noise(20, 30, 4), do_convert_rgb=False)


def test_input_data_format_settles_doubt(processor):
    ambiguous = noise(3, 20, 3)
    last = processor(ambiguous, input_data_format="channels_last", return_tensors="pt")
    first = processor(ambiguous.transpose(2, 0, 1), input_data_format="channels_first", return_tensors="pt")
    assert torch.equal(last.pixel_values, first.pixel_values)
    with pytest.raises(ValueError, match="channels_middle"):
        processor(ambiguous, input_data_format="channels_middle")


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"]),
    seed=st.integers(0, 99),
)
def test_pil_images_of_any_mode_and_size(height, width, mode, seed):
    processor = FocusViTImageProcessor(**TINY)
    image = Image.fromarray(noise(height, width, seed=seed))
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    output = processor(image, return_tensors="pt")
    assert output.pixel_values.shape == (1, 3, 32, 32)
    assert output.pixel_values.isfinite().all() and output.pixel_values.abs().max() <= 1
    assert_owned(output.superpixel_ids, 16)


def test_a_path_is_read(processor, tmp_path):
    path = str(tmp_path / "noise.png")
    Image.fromarray(noise(20, 30)).save(path)
    output = processor(path, return_tensors="pt")
    assert torch.equal(output.pixel_values, processor(noise(20, 30), return_tensors="pt").pixel_values)


def test_rescaling_twice_is_warned_of(processor, monkeypatch):
    warnings = []
    monkeypatch.setattr(module.logger, "warning_once", warnings.append)
    processor(noise(20, 20).astype(np.float32))
    assert not warnings
    processor((noise(20, 20) / 255).astype(np.float32))
    assert len(warnings) == 1 and "do_rescale=False" in warnings[0]


@pytest.mark.parametrize("number", [16, 49, (3, 5)])
def test_skimage_owns_every_id(cat, number):
    processor = FocusViTImageProcessor(num_superpixels=number, superpixel_method="skimage", size=96)
    output = processor([cat, noise(50, 50)], return_tensors="pt")
    assert output.superpixel_ids.shape == (2, 24, 24) and output.superpixel_ids.dtype == torch.int64
    assert_owned(output.superpixel_ids, np.prod(number))
    fast = processor(cat, superpixel_method="torch", return_tensors="pt")
    assert not torch.equal(output.superpixel_ids[0], fast.superpixel_ids[0])


def test_skimage_takes_up_to_a_superpixel_a_cell(processor):
    output = processor(noise(8, 8), superpixel_method="skimage", num_superpixels=256, return_tensors="pt")
    assert_owned(output.superpixel_ids, 256)
    with pytest.raises(ValueError, match="up to the 256 cells of the image, got 257"):
        processor(noise(8, 8), superpixel_method="skimage", num_superpixels=257)


# The two halves of a call.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"superpixel_method": "skimage"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_halves_of_a_call_are_the_call(small_photographs, options, dtype):
    processor = FocusViTImageProcessor(**TINY, **options)
    images = [image.numpy() for image in torch.nn.functional.pad(small_photographs, (3, 0))]
    expected = processor(images, return_tensors="pt")
    levels = torch.from_numpy(np.stack(processor.to_levels(images)))
    assert levels.dtype == torch.uint8 and levels.shape == (len(images), 3, 32, 32)
    given = levels.to(dtype)
    found = processor.process_levels(given)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name])
    # What was given is left alone.
    assert torch.equal(given, levels.to(dtype))


def test_options_of_a_call_reach_its_halves(small_photographs):
    processor = FocusViTImageProcessor(**TINY)
    assert "superpixel_ids" not in processor.process_levels(small_photographs, do_superpixels=False)
    ids = processor.process_levels(small_photographs, num_superpixels=(2, 3))["superpixel_ids"]
    assert ids.unique().tolist() == list(range(6))
    assert processor.to_levels(small_photographs, size={"height": 7, "width": 9})[0].shape == (3, 7, 9)
    with pytest.raises(ValueError, match="got 17; the nearest"):
        processor.process_levels(small_photographs, num_superpixels=17)
    with pytest.raises((TypeError, ValueError), match="num_superpixel"):
        processor.process_levels(small_photographs, num_superpixel=16)


def test_levels_of_floats_are_their_nearest(small_photographs):
    processor = FocusViTImageProcessor(**TINY, do_rescale=False, do_resize=False)
    floats = small_photographs.float() / 255
    assert np.array_equal(processor.to_levels(floats), small_photographs.numpy())
    found = processor(floats, return_tensors="pt")
    expected = FocusViTImageProcessor(**TINY)(small_photographs, return_tensors="pt")
    for name in expected:
        assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize(
    "levels", [torch.zeros(3, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.int64)], ids=["3d", "int"]
)
def test_what_is_no_batch_of_levels_is_refused(levels):
    with pytest.raises(ValueError, match=r"Expected levels of shape \(batch, channels, height, width\)"):
        FocusViTImageProcessor(**TINY).process_levels(levels)


def test_data_format_of_a_call_is_honoured(small_photographs):
    processor = FocusViTImageProcessor(**TINY)
    first = processor(small_photographs, return_tensors="pt")
    last = processor(small_photographs, return_tensors="pt", data_format="channels_last")
    assert torch.equal(last.pixel_values, first.pixel_values.movedim(1, -1))
    assert torch.equal(last.superpixel_ids, first.superpixel_ids)
    with pytest.raises(ValueError, match="Expected data_format 'channels_first' or 'channels_last', got 'sideways'"):
        processor(small_photographs, data_format="sideways")


def test_device_of_a_call_is_honoured(small_photographs, monkeypatch):
    processor = FocusViTImageProcessor(**TINY)
    with pytest.raises(ValueError, match="Expected return_tensors='pt' with device='cpu', got None"):
        processor(small_photographs, device="cpu")
    assert processor(small_photographs, device="cpu", return_tensors="pt").pixel_values.device.type == "cpu"
    # A device that this machine is sure to have beside the CPU holds no values, so superpixels are left out.
    found = processor(small_photographs, device="meta", return_tensors="pt", do_superpixels=False)
    assert found.pixel_values.device.type == "meta"
