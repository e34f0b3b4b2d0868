import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from transformers import AutoImageProcessor
from transformers.dynamic_module_utils import check_imports, get_relative_import_files
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import focusvit_hf.image_processing_focusvit as module
from focusvit_hf import FocusViTConfig, FocusViTImageProcessor
from focusvit_hf.image_processing_focusvit import FocusViTImageProcessorKwargs


TINY = {"size": {"height": 32, "width": 32}, "num_superpixels": 16, "superpixel_cell_size": 2}


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture
def processor():
    return FocusViTImageProcessor(**TINY)


def assert_owned(ids, number):
    for map_ in ids:
        np.testing.assert_array_equal(np.unique(np.asarray(map_)), np.arange(number))


def jpeg(size=None):
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, "JPEG")
    return buffer.getvalue()[:size]


def test_a_truncated_jpeg_is_named(processor, tmp_path):
    images = [noise(20, 20)] * 3 + [Image.open(io.BytesIO(jpeg(1500)))]
    with pytest.raises(ValueError, match=r"Image 3 of the batch cannot be used: could not be decoded: .*truncated"):
        processor(images)
    path = tmp_path / "truncated.jpg"
    path.write_bytes(jpeg(1500))
    with pytest.raises(
        ValueError, match=r"Image 0 of the batch cannot be used: .*truncated.jpg: could not be decoded"
    ):
        processor(str(path))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [64 * 64 - 1, 64 * 32 - 1])
def test_a_decompression_bomb_is_not_decoded(processor, tmp_path, monkeypatch, limit):
    path = tmp_path / "bomb.jpg"
    path.write_bytes(jpeg())
    image = Image.open(path)
    # PIL itself refuses more than twice its limit, and only warns below.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded a bomb"))
    for form in (image, str(path)):
        with pytest.raises(ValueError, match=r"Image 0 of the batch cannot be used: .*pixels"):
            processor(form)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 0, 3), np.uint8), "none of them 0, got shape"),
        (Image.new("RGB", (0, 0)), "expected an image with pixels, got 0 x 0"),
        (torch.full((3, 8, 8), float("nan")), "got NaN or infinity"),
        (np.full((8, 8, 3), -np.inf), "got NaN or infinity"),
        (np.full((8, 8, 3), -1.5), "expected floating-point values in 0..255, got -1.5"),
        (np.full((8, 8, 3), 300.5), "expected floating-point values in 0..255, got 300.5"),
        (np.zeros((8, 8, 7), np.uint8), "plainly that of 1, 3 or 4 channels"),
    ],
)
def test_bad_images_are_named(processor, image, message):
    with pytest.raises(ValueError, match=message) as caught:
        processor([noise(8, 8), image])
    assert "Image 1 of the batch" in str(caught.value)


@pytest.mark.parametrize("nothing", [[], [[]], np.zeros((0, 3, 8, 8), np.uint8)])
def test_no_image_at_all(processor, nothing):
    with pytest.raises(ValueError, match="Expected at least one image"):
        processor(nothing)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        # Without names of their own: some would hold an address, another in each worker.
        (None, "an array or a tensor, got NoneType"),
        (3, "an array or a tensor, got int"),
        ({}, "an array or a tensor, got dict"),
        (b"bytes", "could not be decoded: it is in no format that PIL knows"),
        (io.BytesIO(b""), "could not be decoded: it is in no format that PIL knows"),
        ("no/such/file.png", "expected the path of a file, a URL or an image in base64, got 'no/such/file.png'"),
        (Path("no/such/file.png"), "no/such/file.png: could not be decoded: .*No such file"),
        ("data:image/png;base64", "an image in base64, got 'data:image/png;base64'"),
        (torch.zeros(3, 8, 8, device="meta"), "expected a dense tensor that holds values, got .*meta"),
        (torch.zeros(3, 8, 8).to_sparse(), "expected a dense tensor that holds values, got torch.sparse_coo on cpu"),
    ],
)
def test_what_is_no_image_is_named(processor, thing, message):
    with pytest.raises(ValueError, match=f"^Image 1 of the batch cannot be used: .*{message}"):
        processor([noise(8, 8), thing])


def test_an_unknown_option_fails_as_in_the_library(processor):
    with pytest.raises(TypeError, match="unexpected keyword"):
        processor(noise(8, 8), num_superpixel=4)


@pytest.mark.parametrize("size", [{"height": 1, "width": 1}, {"height": 1, "width": 2}])
def test_an_image_of_one_pixel_is_enlarged(processor, size):
    image = Image.new("RGB", (size["width"], size["height"]), (255, 0, 0))
    output = processor(image, return_tensors="pt")
    assert (output.pixel_values[0, 0] == 1).all() and (output.pixel_values[0, 1:] == -1).all()
    assert_owned(output.superpixel_ids, 16)


def test_a_misfit_of_cells_shows_before_images_are_decoded(processor):
    damaged = Image.open(io.BytesIO(jpeg(1500)))
    with pytest.raises(ValueError, match=r"cell of 2 pixels divides, got 33 x 33 .*do_superpixels=False"):
        processor(damaged, size=33)
    with pytest.raises(ValueError, match=r"got 17; the nearest that can is"):
        processor(damaged, num_superpixels=17)
    with pytest.raises(ValueError, match=r"cell of 2 pixels divides, got 31 x 31"):
        processor(damaged, do_center_crop=True, crop_size=31)
    with pytest.raises(ValueError, match=r"Image 1 of the batch.* cell of 2 pixels divides, got 32 x 35"):
        processor([noise(32, 32), noise(32, 35)], size={"shortest_edge": 32})


def test_padding_is_refused(processor):
    with pytest.raises(ValueError, match="Expected do_pad=False"):
        processor(noise(8, 8), do_pad=True, pad_size=64)


@pytest.mark.parametrize(
    "options",
    [
        {"superpixel_method": "opencv"},
        {"num_superpixels": 0},
        {"num_superpixels": "49"},
        {"num_superpixels": 49.0},
        {"num_superpixels": (7, 7, 7)},
        {"num_superpixels": [0, 7]},
        {"superpixel_compactness": 0},
        {"superpixel_compactness": float("nan")},
        {"superpixel_compactness": "10"},
        {"superpixel_compactness": 1e200},
        {"superpixel_compactness": 1e-160},
        {"superpixel_iterations": 2**20},
        {"image_std": 1e-320},
        {"rescale_factor": 1e300},
        {"rescale_factor": 0.0},
        {"size": {"height": 65536, "width": 65536}},
        {"crop_size": 65536},
        {"superpixel_iterations": 0},
        {"superpixel_iterations": True},
        {"superpixel_cell_size": 3},
        {"superpixel_cell_size": 0},
        {"superpixel_cell_size": 2.0},
        {"patch_size": 0},
        {"patch_size": (16, 16)},
        {"do_superpixels": "yes"},
        {"image_mean": ["a", "b", "c"]},
        {"image_std": [0.5, 0.5, 0.0]},
        {"image_std": float("inf")},
    ],
    ids=str,
)
def test_bad_options_are_refused_at_construction(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        FocusViTImageProcessor(**options)


def test_a_misspelt_option_is_refused(tmp_path):
    message = "'num_superpixel': expected 'num_superpixels'"
    with pytest.raises(ValueError, match=message):
        FocusViTImageProcessor(num_superpixel=36)
    FocusViTImageProcessor(num_superpixels=36).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        FocusViTImageProcessor.from_pretrained(tmp_path, num_superpixel=16)
    assert FocusViTImageProcessor.from_pretrained(tmp_path, num_superpixels=16).num_superpixels == 16


@pytest.mark.parametrize("mirrored", ["bgr", "upside_down", "left_right", "turned"])
@pytest.mark.parametrize("do_resize", [True, False])
def test_mirrored_views_are_images(processor, mirrored, do_resize):
    image = np.asarray(noise(16, 16))
    view = {
        "bgr": image[..., ::-1],
        "upside_down": image[::-1],
        "left_right": image[:, ::-1],
        "turned": np.rot90(image),
    }[mirrored]
    found, expected = (processor(array, return_tensors="pt", do_resize=do_resize) for array in (view, view.copy()))
    assert torch.equal(found.pixel_values, expected.pixel_values)
    assert torch.equal(found.superpixel_ids, expected.superpixel_ids)


@pytest.mark.parametrize("white", [1, 255])
def test_transparent_floats_are_what_transparent_integers_are(processor, white):
    levels = np.dstack([np.asarray(noise(16, 16)), np.full((16, 16), 255, np.uint8)])
    levels[:8, :, 3] = 0
    options = {"return_tensors": "pt", "do_resize": False}
    expected = processor(levels, **options).pixel_values
    found = processor(levels.astype(np.float32) * (white / 255), do_rescale=white == 255, **options).pixel_values
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_bad_rescale_factor_is_refused(processor):
    with pytest.raises(ValueError, match=r"Expected rescale_factor as a number from .*, got 0\.0"):
        processor(noise(8, 8), rescale_factor=0.0)


OPTIONS = {
    "size": {"height": 48, "width": 64},
    "do_center_crop": True,
    "crop_size": {"height": 48, "width": 48},
    "resample": 3,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "do_convert_rgb": False,
    "do_superpixels": False,
    "num_superpixels": [3, 4],
    "superpixel_compactness": 7,
    "superpixel_iterations": 2,
    "superpixel_cell_size": 2,
    "superpixel_method": "skimage",
    "patch_size": 8,
}


def test_options_survive_saving(tmp_path):
    processor = FocusViTImageProcessor(**OPTIONS)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {name: saved[name] for name in OPTIONS} == OPTIONS
    for load in (FocusViTImageProcessor, AutoImageProcessor):
        loaded = load.from_pretrained(tmp_path)
        assert type(loaded) is FocusViTImageProcessor
        assert loaded.to_dict() == processor.to_dict()
    overridden = FocusViTImageProcessor.from_pretrained(tmp_path, num_superpixels=25, superpixel_compactness=3.0)
    assert overridden.num_superpixels == 25 and overridden.superpixel_compactness == 3.0
    assert FocusViTImageProcessor.from_dict(json.loads(processor.to_json_string())).to_dict() == processor.to_dict()
    path = tmp_path / "other.json"
    processor.to_json_file(path)
    assert FocusViTImageProcessor.from_json_file(path).to_dict() == processor.to_dict()


def test_defaults_survive_saving(tmp_path):
    processor = FocusViTImageProcessor()
    processor.save_pretrained(tmp_path)
    assert FocusViTImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_a_call_overrides_options_for_itself_only(processor):
    before = processor.to_dict()
    output = processor(noise(20, 20), num_superpixels=(2, 3), superpixel_cell_size=4, return_tensors="pt")
    assert output.superpixel_ids.shape == (1, 8, 8)
    assert_owned(output.superpixel_ids, 6)
    assert processor.to_dict() == before


def test_a_pickled_processor_does_the_same(processor):
    copy = pickle.loads(pickle.dumps(processor))
    assert torch.equal(
        copy(noise(20, 20), return_tensors="pt").superpixel_ids,
        processor(noise(20, 20), return_tensors="pt").superpixel_ids,
    )


@pytest.mark.parametrize(("patch_size", "cell"), [(16, 4), (14, 2), (8, 2), (4, 1)])
def test_the_cell_follows_from_the_patch(patch_size, cell):
    processor = FocusViTImageProcessor(patch_size=patch_size, size=112)
    ids = processor(noise(20, 20), return_tensors="pt").superpixel_ids
    assert ids.shape == (1, 112 // cell, 112 // cell)


def test_from_model_config_matches():
    config = FocusViTConfig(
        image_size=[64, 96],
        patch_size=8,
        num_superpixels=[4, 6],
        superpixel_compactness=5.0,
        superpixel_iterations=3,
        superpixel_cell_size=4,
        superpixel_method="skimage",
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.4, 0.5, 0.6],
    )
    processor = FocusViTImageProcessor.from_model_config(config)
    processor.validate_against_config(config)
    output = processor(noise(20, 20), return_tensors="pt")
    assert output.pixel_values.shape == (1, 3, 64, 96)
    assert output.superpixel_ids.shape == (1, 16, 24)
    assert_owned(output.superpixel_ids, 24)


@pytest.mark.parametrize("pooling", ["grid", "none"])
def test_models_without_superpixels_get_none(pooling):
    config = FocusViTConfig(patch_pooling=pooling)
    processor = FocusViTImageProcessor.from_model_config(config)
    assert not processor.do_superpixels
    processor.validate_against_config(config)
    with pytest.raises(ValueError, match=f"do_superpixels: expected False for patch_pooling='{pooling}', got True"):
        FocusViTImageProcessor().validate_against_config(config)


def test_grey_models_get_grey_images():
    config = FocusViTConfig(num_channels=1, image_mean=[0.5], image_std=[0.5])
    processor = FocusViTImageProcessor.from_model_config(config)
    processor.validate_against_config(config)
    assert processor(noise(20, 20, 1), return_tensors="pt").pixel_values.shape == (1, 1, 224, 224)


@pytest.mark.parametrize(
    ("overrides", "disagreeing"),
    [
        ({"num_superpixels": 36}, ["num_superpixels: expected 49, got 36"]),
        ({"superpixel_cell_size": 2}, ["superpixel_cell_size: expected 4, got 2"]),
        ({"patch_size": 8}, ["superpixel_cell_size: expected 4, got 2"]),
        (
            {"superpixel_compactness": 1.0, "superpixel_iterations": 1, "superpixel_method": "skimage"},
            ["superpixel_compactness: expected 10.0, got 1.0", "superpixel_iterations", "superpixel_method"],
        ),
        ({"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}, ["image_mean", "image_std"]),
        ({"do_normalize": False}, ["do_normalize: expected True, got False"]),
        ({"do_rescale": False}, ["do_rescale: expected True, got False"]),
        ({"rescale_factor": 1 / 127.5}, ["rescale_factor: expected 1/255 = 0.00392157, got 0.00784314"]),
    ],
)
def test_each_disagreeing_field_is_named(overrides, disagreeing):
    config = FocusViTConfig()
    processor = FocusViTImageProcessor.from_model_config(config, **overrides)
    with pytest.raises(ValueError, match="does not match the model's configuration") as caught:
        processor.validate_against_config(config)
    for text in disagreeing:
        assert text in str(caught.value)
    assert str(caught.value).count("expected") == len(disagreeing)


def test_equal_options_in_other_forms_match():
    config = FocusViTConfig(superpixel_cell_size=4, num_superpixels=(7, 7))
    FocusViTImageProcessor(num_superpixels=[7, 7], image_mean=0.5, image_std=0.5).validate_against_config(config)


def test_one_mean_stands_for_that_of_every_channel():
    config = FocusViTConfig(num_channels=1)
    FocusViTImageProcessor.from_model_config(config, image_mean=0.5, image_std=0.5).validate_against_config(config)


def test_half_precision_leaves_ids_whole(processor):
    output = processor(noise(20, 20), return_tensors="pt").to("cpu", torch.bfloat16)
    assert output.pixel_values.dtype == torch.bfloat16 and output.superpixel_ids.dtype == torch.int64


def test_the_kwargs_class_is_the_one_the_library_expects():
    assert FocusViTImageProcessor.valid_kwargs is FocusViTImageProcessorKwargs
    assert FocusViTImageProcessor().backend == "pil"


def test_the_code_can_be_shipped_with_a_checkpoint():
    file = Path(module.__file__)
    siblings = {Path(name).name for name in get_relative_import_files(file)}
    assert siblings == {
        "cielab.py",
        "configuration_focusvit.py",
        "errors.py",
        "guided_upsampling.py",
        "image_sizes.py",
        "images.py",
        "lay_back.py",
        "pipeline_maps.py",
        "regions.py",
        "segmentation_maps.py",
        "segmentation_options.py",
        "selection_options.py",
        "sparsification_options.py",
        "superpixel_maps.py",
        "superpixel_options.py",
        "superpixels.py",
        "superpixels_skimage.py",
        "caching.py",
    }
    for name in {file.name, *siblings}:
        check_imports(file.parent / name)
