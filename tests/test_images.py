import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile
from skimage.data import chelsea
from transformers.image_utils import SizeDict

from focusvit_hf import FocusViTImageProcessor, images
from focusvit_hf.cli.images import read_image
from focusvit_hf.image_sizes import channels_first, check_area, fixed_size, resize, resized_size
from focusvit_hf.images import (
    decode_image,
    flat_images,
    from_array,
    from_pil,
    naming_image,
    over_white,
    to_8_bit,
)
from focusvit_hf.training.data_collator import FocusViTDataCollator


COLOURS = np.array([[[200, 30, 60], [10, 220, 90]], [[128, 128, 128], [0, 0, 255]]], dtype=np.uint8)


def in_mode(mode):
    """The four colours as a PIL image of a mode, as its own conversion from RGB makes it."""
    image = Image.fromarray(COLOURS)
    if mode == "LAB":
        from PIL import ImageCms

        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    if mode in ("PA", "LA", "La"):
        return image.convert("L").convert("LA").convert(mode)
    if mode == "RGBa":
        return image.convert("RGBA").convert(mode)
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "P"])
def test_colour_modes_become_the_same_rgb(mode):
    converted = from_pil(in_mode(mode), do_convert_rgb=True)
    assert converted.mode == "RGB"
    # The ways to and from these colour spaces round to 8 bits, where saturated colours lie at the edge of LAB's gamut;
    # a palette has fixed colours.
    tolerance = {"P": 60, "LAB": 25}.get(mode, 6)
    assert np.abs(np.asarray(converted).astype(int) - COLOURS.astype(int)).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "LA", "La", "PA", "I", "F"])
def test_grey_modes_become_grey_rgb(mode):
    grey = np.asarray(Image.fromarray(COLOURS).convert("L"))
    converted = np.asarray(from_pil(in_mode(mode), do_convert_rgb=True))
    assert converted.shape == (2, 2, 3)
    assert np.abs(converted.astype(int) - grey[..., None]).max() <= 1


def test_bilevel_images_become_black_and_white():
    image = Image.fromarray(np.array([[True, False], [False, True]]))
    assert image.mode == "1"
    for do_convert_rgb in (True, False):
        array = channels_first(from_pil(image, do_convert_rgb))
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array[0], [[255, 0], [0, 255]])


@pytest.mark.parametrize("order", ["I;16", "I;16B"])
def test_16_bit_images_are_scaled_not_clipped(order):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    image = Image.fromarray(levels * 257)
    if order == "I;16B":
        image = Image.frombytes("I;16B", (16, 16), (levels * 257).astype(">u2").tobytes())
    assert image.mode == order
    np.testing.assert_array_equal(np.asarray(from_pil(image, do_convert_rgb=True))[..., 0], levels)
    np.testing.assert_array_equal(np.asarray(from_pil(image, do_convert_rgb=False)), levels)


def test_a_16_bit_png_keeps_its_gradient():
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)).save(buffer, "PNG")
    levels = np.asarray(from_pil(Image.open(buffer), do_convert_rgb=True))[..., 0].ravel()
    assert levels[0] == 0 and levels[-1] == 255
    assert (np.diff(levels.astype(int)) >= 3).all()


@pytest.mark.parametrize(
    ("mode", "dtype", "values", "expected"),
    [
        ("I", np.int32, [0, 255], [0, 255]),
        ("I", np.int32, [0, 65535], [0, 255]),
        ("I", np.int32, [257, 25700], [1, 100]),
        ("F", np.float32, [0.0, 1.0], [0, 255]),
        ("F", np.float32, [0.2, 0.4], [51, 102]),
        ("F", np.float32, [2.0, 254.6], [2, 255]),
    ],
)
def test_white_of_wide_modes_follows_from_the_values(mode, dtype, values, expected):
    image = Image.fromarray(np.array([values], dtype=dtype))
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(from_pil(image, do_convert_rgb=False)), [expected])


def test_transparency_is_laid_over_white():
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255]]], dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(from_pil(Image.fromarray(pixels), True)), [[[255] * 3, [200, 0, 0]]])
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.info["transparency"] = 0
    np.testing.assert_array_equal(np.asarray(from_pil(palette, True)), [[[255] * 3, [1] * 3]])


def test_an_rgb_image_is_not_copied():
    image = Image.fromarray(COLOURS)
    assert from_pil(image, do_convert_rgb=True) is image


def test_modes_stay_without_conversion():
    assert from_pil(in_mode("RGBA"), do_convert_rgb=False).mode == "RGBA"
    assert channels_first(in_mode("RGBA")).shape == (4, 2, 2)
    assert channels_first(in_mode("L")).shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 255]], dtype=np.uint16), [[0, 255]]),
        (np.array([[0, 65535]], dtype=np.uint16), [[0, 255]]),
        (np.array([[257, 514]], dtype=np.int64), [[1, 2]]),
        (np.array([[3, 7]], dtype=np.int8), [[3, 7]]),
        (np.array([[True, False]]), [[255, 0]]),
        (torch.tensor([[0, 65535]], dtype=torch.int32), [[0, 255]]),
        (torch.tensor([[9, 11]], dtype=torch.uint8), [[9, 11]]),
    ],
)
def test_integer_arrays_become_8_bit(array, expected):
    converted = from_array(array)
    assert converted.dtype == np.uint8
    np.testing.assert_array_equal(converted, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_tensors_become_float32(dtype):
    converted = from_array(torch.tensor([[0.0, 0.5]], dtype=dtype, requires_grad=True))
    assert converted.dtype == np.float32
    np.testing.assert_array_equal(converted, [[0.0, 0.5]])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((0, 4, 3), np.uint8), "none of them 0, got shape"),
        (np.zeros((4,), np.uint8), "got shape"),
        (np.zeros((1, 1, 4, 4, 3), np.uint8), "got shape"),
        (np.full((4, 4), np.nan), "got NaN or infinity"),
        (np.full((4, 4), np.inf, np.float16), "got NaN or infinity"),
        (np.full((4, 4), 1e300), "got NaN or infinity"),
        (torch.full((3, 4, 4), float("nan")), "got NaN or infinity"),
        (np.full((4, 4), -1, np.int16), "expected values in 0..255, got -1"),
        (np.full((4, 4), 70000, np.int32), "expected values in 0..65535, got 70000"),
        (np.zeros((4, 4), complex), "expected integer or floating point"),
        (np.full((4, 4), "a"), "expected integer or floating point"),
        ("an image", "expected an array or a tensor"),
    ],
)
def test_bad_arrays_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        from_array(bad)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 70000.0])
def test_bad_values_of_pil_images_are_refused(value):
    with pytest.raises(ValueError, match="expected"):
        from_pil(Image.fromarray(np.full((2, 2), value, np.float32)), do_convert_rgb=True)


@pytest.mark.parametrize("white", [1, 255])
def test_transparent_floats_are_laid_over_white(white):
    colours = np.array([[0, 10, 255], [40, 0, 255], [0, 0, 255], [255, 102, 0]], np.uint8)[:, None]
    levels = colours.astype(np.float32) * (white / 255)
    found = over_white(levels)
    image = from_pil(Image.fromarray(np.moveaxis(colours, 0, -1)), True)
    assert found.dtype == np.float32 and found.shape == (3, 1, 3)
    assert np.abs(found * (255 / white) - channels_first(image)).max() <= 1
    assert np.array_equal(found[:, 0, 0], levels[:3, 0, 0]) and np.array_equal(found[:, 0, 2], [white] * 3)
    with pytest.raises(ValueError, match=r"expected RGBA values in 0..1 or 0..255, got"):
        over_white(levels * -1 if white == 1 else levels * 2)


def test_to_8_bit_with_a_given_white_does_not_look_at_the_values():
    np.testing.assert_array_equal(to_8_bit(np.array([0, 100, 200], np.uint16), white=65535), [0, 0, 1])


def truncated_jpeg():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return Image.open(io.BytesIO(buffer.getvalue()[:1500]))


def test_decode_finds_damage_early():
    with (
        pytest.raises(ValueError, match=r"^Image 3 of the batch cannot be used: could not be decoded: .*truncated"),
        naming_image(3),
    ):
        decode_image(truncated_jpeg())


def test_decode_refuses_empty_images_and_bombs_before_decoding(monkeypatch):
    with pytest.raises(ValueError, match="expected an image with pixels, got 0 x 3"):
        decode_image(Image.new("RGB", (0, 3)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    bomb = Image.new("RGB", (7, 3))
    monkeypatch.setattr(bomb, "load", lambda: pytest.fail("decoded a bomb"))
    with pytest.raises(ValueError, match=r"MAX_IMAGE_PIXELS = 20 pixels.* got 7 x 3"):
        decode_image(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    check_area(10**6, 10**6)


def test_flat_images_opens_lists_and_batches():
    batch = np.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    single = np.zeros((4, 4))
    flat = list(flat_images([[batch, single], (in_mode("L"),), torch.zeros(1, 3, 2, 2)]))
    assert len(flat) == 5
    np.testing.assert_array_equal(flat[1], batch[1])
    assert flat[2] is single
    assert list(flat_images([[], []])) == []


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"height": 5, "width": 7}, (5, 7)),
        ({"shortest_edge": 50}, (50, 100)),
        ({"shortest_edge": 50, "longest_edge": 60}, (30, 60)),
        ({"max_height": 40, "max_width": 40}, (20, 40)),
    ],
)
def test_sizes_follow_vit(size, expected):
    assert resized_size(100, 200, SizeDict(**size)) == expected
    assert resized_size(200, 100, SizeDict(**size))[::-1] == (expected if "height" not in size else (7, 5))


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match=r"expected size with 'height' and 'width'.* got \{'longest_edge': 5\}"):
        resized_size(10, 10, SizeDict(longest_edge=5))
    with pytest.raises(ValueError, match="at least 1 x 1"):
        resized_size(1, 1000, SizeDict(max_height=5, max_width=5))
    with pytest.raises(ValueError, match="MAX_IMAGE_PIXELS"):
        resized_size(1, 60000, SizeDict(shortest_edge=224))
    with pytest.raises(ValueError, match="at most 4 channels"):
        resize(np.zeros((5, 4, 4), np.uint8), SizeDict(height=2, width=2), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def cat():
    return Image.fromarray(chelsea())


@pytest.mark.parametrize("filter_name", ["BILINEAR", "BICUBIC", "LANCZOS"])
@pytest.mark.parametrize("size", [(224, 224), (96, 130), (500, 300)])
def test_resizing_a_photograph_is_within_a_grey_level_of_pil(cat, size, filter_name):
    resample = Image.Resampling[filter_name]
    for image in (cat, cat.convert("L")):
        expected = np.asarray(image.resize(size[::-1], resample), np.int64)
        resized = resize(image, SizeDict(height=size[0], width=size[1]), resample).astype(np.int64)
        difference = np.abs((resized[0] if image.mode == "L" else resized.transpose(1, 2, 0)) - expected)
        assert difference.max() <= 1 and (difference == 0).mean() > 0.97


def test_resizing_reads_the_memory_of_an_image_without_a_warning(cat, recwarn):
    before = np.array(cat)
    resize(cat, SizeDict(height=20, width=30), Image.Resampling.BILINEAR)
    assert not recwarn.list
    np.testing.assert_array_equal(np.asarray(cat), before)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), channels=st.sampled_from([1, 3, 4]), seed=st.integers(0, 99)
)
def test_resizing_an_array_equals_resizing_the_image(height, width, channels, seed):
    array = np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)
    image = Image.fromarray(array[0] if channels == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    size = SizeDict(height=13, width=9)
    resized = resize(array, size, Image.Resampling.BILINEAR)
    assert resized.shape == (channels, 13, 9) and resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, resize(image, size, Image.Resampling.BILINEAR))


# One file, one image: doors x modes x orientations.


def written(mode, orientation=None):
    """The bytes of a file in a mode of PIL, of 8 x 6 colours and greys, in a format that keeps the mode."""
    rng = np.random.default_rng(5)
    colours = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (6, 8), dtype=np.uint16))
    elif mode in ("I", "F"):
        image = Image.fromarray(rng.integers(0, 256, (6, 8)).astype(np.int32 if mode == "I" else np.float32))
    else:
        image = colours.convert(mode) if mode != "LA" else colours.convert("L").convert("LA")
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(rng.integers(0, 256, (6, 8), dtype=np.uint8)))
    options = {}
    if mode == "P transparent":
        options["transparency"] = 3
    if orientation is not None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    form = "TIFF" if mode in ("I", "F") else "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    image.save(buffer, form, **options)
    return buffer.getvalue()


DOORS = {
    "path": lambda path: str(path),
    "Path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "open file": lambda path: io.BytesIO(path.read_bytes()),
    "base64": lambda path: base64.b64encode(path.read_bytes()).decode(),
    "data URL": lambda path: "data:image/png;base64," + base64.encodebytes(path.read_bytes()).decode(),
    "datasets, bytes": lambda path: {"bytes": path.read_bytes(), "path": None},
    "datasets, path": lambda path: {"bytes": None, "path": str(path)},
    "PIL": Image.open,
    "decoded": lambda path: decode_image(path),
    "array": lambda path: np.asarray(decode_image(path)),
    "tensor": lambda path: torch.from_numpy(np.array(decode_image(path))),
}
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr"]


def doors(path):
    """What each way into the package makes of a file: (8, 6) or (6, 8) levels of the processor's pixels."""
    options = {"do_resize": False, "do_superpixels": False, "do_rescale": False, "do_normalize": False}
    processor = FocusViTImageProcessor(**options)
    found = {name: processor(door(path))["pixel_values"][0] for name, door in DOORS.items()}
    for name in ("bytes", "path"):
        example = {"image": DOORS[f"datasets, {name}"](path), "label": 0}
        found[f"collator, {name}"] = FocusViTDataCollator(processor)([example])["pixel_values"][0].numpy()
    found["collator, PIL"] = FocusViTDataCollator(processor)([{"image": Image.open(path)}])["pixel_values"][0].numpy()
    found["command"] = channels_first(read_image(path))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_a_file_is_one_image_at_every_door(tmp_path, mode):
    path = tmp_path / "image"
    path.write_bytes(written(mode))
    expected = channels_first(from_pil(Image.open(path), do_convert_rgb=True))
    assert expected.shape == (3, 6, 8) and expected.std() > 10
    for name, levels in doors(path).items():
        np.testing.assert_array_equal(levels, expected, err_msg=name)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "I;16", "I", "CMYK", "YCbCr"])
def test_a_turned_file_is_upright_at_every_door(tmp_path, mode, orientation):
    path = tmp_path / "image"
    path.write_bytes(written(mode, orientation))
    stored = channels_first(from_pil(Image.open(io.BytesIO(written(mode))), do_convert_rgb=True))
    # Where row 0 and column 0 of what is stored lie in the upright image (EXIF 2.32, table 6).
    upright = {
        1: stored,
        2: stored[:, :, ::-1],
        3: stored[:, ::-1, ::-1],
        4: stored[:, ::-1],
        5: stored.transpose(0, 2, 1),
        6: stored[:, ::-1].transpose(0, 2, 1),
        7: stored[:, ::-1, ::-1].transpose(0, 2, 1),
        8: stored[:, :, ::-1].transpose(0, 2, 1),
    }[orientation]
    for name, levels in doors(path).items():
        np.testing.assert_array_equal(levels, upright, err_msg=name)


def test_an_uncompressed_turned_tiff_is_upright_through_a_path(tmp_path):
    path = tmp_path / "turned.tiff"
    levels = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    stored = Image.frombytes("CMYK", (8, 6), levels.tobytes())
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored.save(path, exif=exif)
    expected = np.asarray(stored.convert("RGB").transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(np.asarray(decode_image(path)), expected)


def test_16_bit_greys_are_scaled_and_transparency_is_white_through_a_path(tmp_path):
    path = tmp_path / "grey.png"
    Image.fromarray(np.array([[0, 25700, 65535]], np.uint16)).save(path)
    assert np.asarray(decode_image(str(path)))[0, :, 0].tolist() == [0, 100, 255]
    Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8)).save(path)
    assert np.asarray(decode_image(path))[0, :, 0].tolist() == [255, 9]
    assert decode_image(path, do_convert_rgb=False).mode == "RGBA"


def test_a_url_is_fetched_and_decoded_like_a_file(monkeypatch):
    answer = SimpleNamespace(content=written("I;16", 6), raise_for_status=lambda: None)
    session = SimpleNamespace(get=lambda url, follow_redirects: answer)
    monkeypatch.setattr(images, "get_session", lambda: session)
    fetched = decode_image("https://example.org/grey.png")
    np.testing.assert_array_equal(np.asarray(fetched), np.asarray(decode_image(written("I;16", 6))))

    def refuse(url, follow_redirects):
        raise ConnectionError("no way there")

    session.get = refuse
    with pytest.raises(ValueError, match="could not be fetched: no way there"):
        decode_image("https://example.org/grey.png")


def test_an_open_file_can_be_given_twice(tmp_path):
    with io.BytesIO(written("RGB")) as file:
        first, second = (np.asarray(decode_image(file)) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert not file.closed


def test_broken_exif_leaves_the_image_as_it_is_stored(tmp_path, caplog):
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "PNG", exif=b"Exif\0\0not a TIFF header")
    np.testing.assert_array_equal(np.asarray(decode_image(buffer.getvalue())), COLOURS)


@pytest.mark.parametrize(
    "error", [RuntimeError("no decoder"), NotImplementedError("DXT9"), KeyError("x"), IndexError()]
)
def test_whatever_a_decoder_raises_is_a_value_error(tmp_path, monkeypatch, error):
    path = tmp_path / "image.avif"
    Image.fromarray(COLOURS).save(path, "PNG")

    def fail(*args):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ValueError, match=r"image.avif: could not be decoded: \S"):
        decode_image(path)


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((3, 8, 9), True),
        ((8, 9, 3), False),
        ((1, 8, 9), True),
        ((8, 9, 1), False),
        ((4, 8, 9), True),
        ((8, 9, 4), False),
        # Images of height or width 1, 3 and 4.
        ((1, 9, 3), False),
        ((4, 9, 3), False),
        ((3, 9, 1), True),
        ((3, 9, 4), True),
        ((3, 1, 9), True),
        ((9, 4, 3), False),
    ],
)
def test_channels_are_told_from_height_and_width(shape, first):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    expected = array if first else np.moveaxis(array, -1, 0)
    found = decode_image(array, do_convert_rgb=False)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(decode_image(torch.from_numpy(array), do_convert_rgb=False), expected)


@pytest.mark.parametrize("shape", [(3, 9, 3), (1, 9, 1), (1, 9, 4), (4, 9, 1), (4, 9, 4), (2, 9, 5), (9, 3, 9)])
def test_channels_that_cannot_be_told_are_asked_for(shape):
    array = np.zeros(shape, np.uint8)
    with pytest.raises(ValueError, match="pass input_data_format='channels_first' or 'channels_last'"):
        decode_image(array)
    for name, channels in (("channels_first", shape[0]), ("channels_last", shape[-1])):
        assert len(decode_image(array, do_convert_rgb=False, input_data_format=name)) == channels


def test_arrays_of_another_number_of_channels_are_no_rgb():
    with pytest.raises(ValueError, match="expected 1, 3 or 4 channels to convert to RGB, got 2"):
        decode_image(np.zeros((2, 5, 5), np.uint8), input_data_format="channels_first")
    with pytest.raises(ValueError, match="expected input_data_format 'channels_first' or 'channels_last', got 'x'"):
        decode_image(np.zeros((3, 5, 5), np.uint8), input_data_format="x")


def test_a_transparent_array_is_the_transparent_image():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 4), dtype=np.uint8)
    expected = channels_first(decode_image(Image.fromarray(pixels)))
    np.testing.assert_array_equal(decode_image(pixels), expected)
    np.testing.assert_array_equal(decode_image(np.moveaxis(pixels, -1, 0)), expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"size": {"height": 5, "width": 7}}, None),
        ({"do_resize": True, "size": {"height": 5, "width": 7}}, (5, 7)),
        ({"do_resize": True, "size": {"shortest_edge": 5}}, None),
        (
            {
                "do_resize": True,
                "size": {"shortest_edge": 5},
                "do_center_crop": True,
                "crop_size": {"height": 3, "width": 4},
            },
            (3, 4),
        ),
        ({"do_center_crop": True, "crop_size": SizeDict(height=3, width=4)}, (3, 4)),
        ({"do_resize": True, "size": 6}, (6, 6)),
        ({"do_center_crop": False, "crop_size": {"height": 3, "width": 4}}, None),
    ],
)
def test_the_size_that_options_fix(options, expected):
    assert fixed_size(options) == fixed_size(SimpleNamespace(**options)) == expected


def test_the_size_that_a_processor_gives():
    assert fixed_size(FocusViTImageProcessor()) == (224, 224)
    assert fixed_size(FocusViTImageProcessor(do_center_crop=True, crop_size=16)) == (16, 16)
    assert fixed_size(FocusViTImageProcessor(do_resize=False)) is None
