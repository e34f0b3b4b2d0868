import errno
import io
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage.data import chelsea
from transformers import ViTConfig, pipeline
from transformers.utils import logging

from focusvit_hf import FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.cli import demo as cli_demo
from focusvit_hf.cli import images as cli_images
from focusvit_hf.cli.__main__ import main
from focusvit_hf.cli.images import read_image
from focusvit_hf.hub import checkpoints
from focusvit_hf.hub.checkpoints import load_checkpoint
from focusvit_hf.image_sizes import needed_by
from saved import save_with_processor


NAMES = {0: "cat", 1: "dog", 2: "frog", 3: "ship", 4: "truck"}


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model(id2label=NAMES, label2id={name: number for number, name in NAMES.items()})
    return save_with_processor(model, folder)


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


@pytest.fixture
def images(tmp_path):
    """A JPEG of a cat, a transparent PNG, and a grey one of 16 bits."""
    paths = [tmp_path / name for name in ("cat.jpg", "round.png", "deep.png")]
    Image.fromarray(chelsea()).save(paths[0])
    transparent = Image.new("RGBA", (60, 40), (250, 10, 10, 0))
    transparent.paste((10, 10, 250, 255), (10, 10, 40, 30))
    transparent.save(paths[1])
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(paths[2])
    return paths


def run(*arguments):
    return main([str(argument) for argument in arguments])


def fails(capsys, *arguments):
    """The line on stderr of a command that has to fail."""
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("focusvit: error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("batch_size", [1, 2])
def test_classify_prints_and_writes_what_the_pipeline_says(batch_size, saved, images, tmp_path, capsys):
    out = tmp_path / "out" / "answers.json"
    assert run("classify", *images, "--model", saved, "--out", out, "--top-k", 3, "--batch-size", batch_size) == 0
    result = json.loads(out.read_text())
    model, processor = load_checkpoint(str(saved))
    classifier = pipeline("image-classification", model=model, image_processor=processor)
    assert [item["image"] for item in result["images"]] == [str(path) for path in images]
    printed = capsys.readouterr().out
    for path, item in zip(images, result["images"], strict=True):
        # The command decodes no more of a file than the model needs.
        expected = classifier(read_image(path, needed=needed_by(processor)), top_k=3)
        assert item["labels"] == [answer["label"] for answer in expected]
        assert item["scores"] == pytest.approx([answer["score"] for answer in expected], abs=1e-5)
        assert str(path) in printed and f"{item['scores'][0]:.1%}" in printed
    assert result["environment"]["dtype"] == "float32" and result["model"] == str(saved)
    assert len({tuple(item["scores"]) for item in result["images"]}) == 3


def test_another_number_of_superpixels_is_classified_and_drawn(saved, images, tmp_path, capsys):
    own, other, drawn = tmp_path / "own.json", tmp_path / "other.json", tmp_path / "drawn.png"
    assert run("classify", images[0], "--model", saved, "--out", own) == 0
    assert run("classify", images[0], "--model", saved, "--num-superpixels", 4, "--out", other) == 0
    model = FocusViTForImageClassification.from_pretrained(saved, num_superpixels=4)
    processor = FocusViTImageProcessor.from_pretrained(saved, num_superpixels=4)
    [expected] = pipeline("image-classification", model=model, image_processor=processor)(
        [read_image(images[0], needed=needed_by(processor))]
    )
    results = [json.loads(path.read_text()) for path in (own, other)]
    assert [result["num_tokens"] for result in results] == [load_checkpoint(str(saved))[0].config.num_tokens, 4]
    scores = [result["images"][0]["scores"] for result in results]
    assert scores[1] == pytest.approx([answer["score"] for answer in expected], abs=1e-5)
    assert scores[0] != pytest.approx(scores[1], abs=1e-5)
    assert run("visualize", images[0], "--model", saved, "--num-superpixels", 4, "--out", drawn) == 0
    assert drawn.is_file()
    capsys.readouterr()
    assert "got 1000" in fails(capsys, "classify", *images, "--model", saved, "--num-superpixels", 1000)


def test_images_are_opened_upright_and_over_white(images, tmp_path):
    transparent = np.asarray(read_image(images[1]))
    assert transparent[0, 0].tolist() == [255, 255, 255] and transparent[20, 20].tolist() == [10, 10, 250]
    deep = np.asarray(read_image(images[2]))
    assert deep.shape == (64, 64, 3) and deep.max() == 255 and 100 < deep.mean() < 150
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=turned)
    assert read_image(tmp_path / "turned.jpg").size == (20, 30)


def test_classify_takes_more_classes_than_there_are(saved, images, capsys):
    assert run("classify", images[0], "--model", saved, "--top-k", 50) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES.values())


def test_the_librarys_logging_is_as_before(saved, images):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    run("classify", images[0], "--model", saved)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def truncated(folder):
    path = folder / "truncated.jpg"
    Image.fromarray(chelsea()).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    return path


def not_an_image(folder):
    path = folder / "text.png"
    path.write_text("no image")
    return path


def not_finite(folder):
    path = folder / "nan.tiff"
    Image.fromarray(np.full((20, 20), np.nan, dtype=np.float32)).save(path)
    return path


BAD_FILES = [truncated, not_an_image, not_finite, lambda f: f / "absent.jpg", lambda f: f]


@pytest.mark.parametrize(("command", "make"), [("visualize", truncated), *(("classify", make) for make in BAD_FILES)])
def test_a_bad_image_is_named_and_the_others_are_not_lost(command, make, saved, images, tmp_path, capsys):
    bad, out = make(tmp_path), tmp_path / ("out.json" if command == "classify" else "out.png")
    out.write_text("old")
    assert run(command, images[0], bad, images[1], "--model", saved, "--out", out) == 1
    captured = capsys.readouterr()
    assert f"cannot be used: {bad}: " in captured.err and captured.err.count("focusvit: error: ") == 1
    assert not list(tmp_path.glob("*.incomplete"))
    if command == "classify":
        result = json.loads(out.read_text())
        assert [item["image"] for item in result["images"]] == [str(path) for path in images[:2]]
        [failure] = result["failures"]
        assert failure["image"] == str(bad) and failure["error"] in captured.err
    else:
        assert Image.open(out).height > 2 * 300
    # Where no image is left, nothing is written.
    out.write_text("old")
    assert run(command, bad, "--model", saved, "--out", out) == 1
    assert out.read_text() == "old"


@pytest.mark.parametrize("make", [truncated, lambda f: f / "absent.jpg"])
def test_the_demo_refuses_a_bad_image_before_it_measures(make, saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli_demo, "time_split", lambda *args: pytest.fail("nothing to time"))
    bad = make(tmp_path)
    assert f"cannot be used: {bad}: " in fails(capsys, "demo", bad, "--model", saved, "--out", tmp_path / "demo")
    assert os.listdir(tmp_path / "demo") == []


def test_an_image_that_the_model_refuses_is_named_among_its_batch(checkpoint, tmp_path, capsys):
    FocusViTImageProcessor.from_pretrained(checkpoint, do_resize=False).save_pretrained(checkpoint)
    paths = [tmp_path / f"{side}.png" for side in (32, 33, 64)]
    for path, side in zip(paths, (32, 33, 64), strict=True):
        Image.new("RGB", (side, 32), (200, 30, 30)).save(path)
    assert run("classify", *paths, "--model", checkpoint, "--batch-size", 3) == 1
    captured = capsys.readouterr()
    assert str(paths[1]) in captured.err and captured.err.count("\n") == 1
    assert str(paths[0]) in captured.out and str(paths[2]) in captured.out


def test_options_that_no_image_can_be_prepared_with_are_one_line(checkpoint, images, capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("unhashable type: 'dict'")

    monkeypatch.setattr(FocusViTImageProcessor, "preprocess", broken)
    for command in ("classify", "visualize"):
        assert "preprocessor_config.json: TypeError: unhashable type: 'dict'" in fails(
            capsys, command, images[0], "--model", checkpoint
        )


def test_what_was_classified_before_an_interruption_is_kept(saved, images, tmp_path, capsys, monkeypatch):
    def stops_at_the_second(path, index=0, needed=None):
        if index:
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr(cli_images, "read_image", stops_at_the_second)
    assert run("classify", *images, "--model", saved, "--out", tmp_path / "o.json") == 130
    assert capsys.readouterr().err == "focusvit: stopped\n"
    assert [item["image"] for item in json.loads((tmp_path / "o.json").read_text())["images"]] == [str(images[0])]


@pytest.mark.parametrize("command", ["classify", "visualize"])
def test_out_may_not_be_an_image_that_is_read(command, saved, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli_images, "load_checkpoint", lambda *args: pytest.fail("loaded before it was checked"))
    image, link = tmp_path / "round.png", tmp_path / "link.png"
    link.symlink_to(image)
    before = image.read_bytes()
    for out in (image, link, tmp_path / "." / "round.png"):
        error = fails(capsys, command, images[0], image, "--model", saved, "--out", out)
        assert f"none of the inputs, got {out}" in error
    assert image.read_bytes() == before


def test_out_is_checked_before_all_the_work(saved, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli_images, "load_checkpoint", lambda *args: pytest.fail("loaded before it was checked"))
    assert "got the folder" in fails(capsys, "classify", images[0], "--model", saved, "--out", tmp_path)
    below = images[0] / "out.json"
    assert str(images[0]) in fails(capsys, "classify", images[0], "--model", saved, "--out", below)


def test_names_and_labels_reach_the_terminal_as_text(checkpoint, images, tmp_path, capsys):
    config = json.loads((checkpoint / "config.json").read_text())
    config["id2label"]["1"] = "dog\x1b[2J\nfrog"
    (checkpoint / "config.json").write_text(json.dumps(config))
    odd = tmp_path / "a\x1b]0;title\x07.jpg"
    shutil.copy(images[0], odd)
    assert run("classify", odd, tmp_path / "b\x1b[31m.jpg", "--model", checkpoint, "--out", tmp_path / "o.json") == 1
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "dog\\x1b[2J\\x0afrog" in captured.out and "b\\x1b[31m.jpg" in captured.err
    # The file holds the names as they are.
    assert "dog\x1b[2J\nfrog" in json.loads((tmp_path / "o.json").read_text())["images"][0]["labels"]


def test_a_decompression_bomb_is_refused(saved, images, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("classify", images[0], "--model", saved) == 1
    error = capsys.readouterr().err
    assert "MAX_IMAGE_PIXELS" in error and str(images[0]) in error


def test_an_image_of_one_pixel_is_classified(saved, tmp_path, capsys):
    Image.new("RGB", (1, 1), (9, 90, 200)).save(tmp_path / "pixel.png")
    assert run("classify", tmp_path / "pixel.png", "--model", saved) == 0


def test_a_full_disk_is_reported_and_the_old_file_stays(saved, images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.json"
    out.write_text("old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert "No space left" in fails(capsys, "classify", images[0], "--model", saved, "--out", out)
    assert out.read_text() == "old" and not list(tmp_path.glob("*.incomplete"))


def without_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_a_foreign_tensor(folder):
    tensors = load_file(folder / "model.safetensors") | {"foreign": torch.zeros(1)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_another_shape(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_nan(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"][1] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def as_a_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def damaged(folder):
    (folder / "model.safetensors").write_bytes(b"no tensors here")


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def without_a_processor(folder):
    (folder / "preprocessor_config.json").unlink()


def with_a_processor_of_its_own(folder):
    processor = FocusViTImageProcessor.from_pretrained(folder, num_superpixels=4, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(folder)


def another_model(folder):
    ViTConfig().save_pretrained(folder)


def misspelt(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_superpixel": 16}))


def wrong_type(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))


def removed(folder):
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_a_tensor, "classifier.bias is missing"),
        (with_a_foreign_tensor, "foreign is not of this model"),
        (with_another_shape, "classifier.bias has shape (3,) instead of (5,)"),
        (with_nan, "expected finite weights, got NaN or infinity in classifier.bias"),
        (as_a_pickle, "got a pickle (pytorch_model.bin)"),
        (damaged, "expected a FocusViT checkpoint in safetensors"),
        (without_weights, "model.safetensors"),
        (without_a_processor, "expected a FocusViT checkpoint"),
        (with_a_processor_of_its_own, "num_superpixels: expected 16, got 4"),
        (another_model, "config.json: expected a model_type of focusvit, got 'vit'"),
        (misspelt, "expected 'num_superpixels'"),
        (wrong_type, "hidden_size"),
        (removed, "expected a FocusViT checkpoint"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bad_checkpoint_is_refused(spoil, message, checkpoint, images, capsys):
    spoil(checkpoint)
    assert message in fails(capsys, "classify", images[0], "--model", checkpoint)


def test_every_missing_tensor_counts_but_the_error_stays_short(checkpoint, images, capsys):
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({"classifier.bias": tensors["classifier.bias"]}, checkpoint / "model.safetensors", {"format": "pt"})
    error = fails(capsys, "classify", images[0], "--model", checkpoint)
    assert f"and {len(tensors) - 1 - 3} more" in error and len(error) < 500


def test_the_checkpoint_of_the_source_tree_is_the_default(saved, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checkpoints, "DEFAULT_CHECKPOINT", tmp_path / "absent-nano")
    error = fails(capsys, "classify", images[0])
    assert "expected --model FOLDER_OR_NAME" in error and "absent-nano" in error
    monkeypatch.setattr(checkpoints, "DEFAULT_CHECKPOINT", saved)
    assert run("classify", images[0]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["classify"], "IMAGE"),
        (["classify", "a.jpg", "--top-k", "0"], "expected a whole number >= 1, got '0'"),
        (["classify", "a.jpg", "--batch-size", "many"], "expected a whole number >= 1, got 'many'"),
        (["classify", "a.jpg", "--device", "abacus"], "expected a device of this machine, got 'abacus'"),
        (["classify", "a.jpg", "--device", "cuda:99"], "expected a device of this machine, got 'cuda:99'"),
        (["paint", "a.jpg"], "paint"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_end_with_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out.startswith("focusvit 0.")


def test_visualize_draws_one_sheet_or_a_folder_of_them(saved, images, tmp_path, capsys):
    sheet = tmp_path / "both.PNG"
    assert run("visualize", *images[:2], "--model", saved, "--out", sheet) == 0
    folder = tmp_path / "drawn"
    assert run("visualize", *images[:2], "--model", saved, "--out", folder) == 0
    assert sorted(os.listdir(folder)) == ["cat.png", "round.png"]
    single, both = Image.open(folder / "cat.png"), Image.open(sheet)
    assert single.format == both.format == "PNG"
    assert both.height == single.height + Image.open(folder / "round.png").height
    np.testing.assert_array_equal(np.asarray(both)[: single.height, : single.width], np.asarray(single))
    assert capsys.readouterr().out.count("wrote") == 3


@pytest.mark.parametrize(
    ("names", "out", "message"),
    [
        (["cat.jpg"], "drawing.gif", "expected a .png file or a folder for --out"),
        (["cat.jpg"], "deep.txt", "expected a .png file or a folder for --out"),
        (["cat.jpg", "cat.jpg"], "drawn", "expected images with different names"),
    ],
    ids=["suffix", "file", "twins"],
)
def test_visualize_refuses_where_it_cannot_write(names, out, message, saved, images, tmp_path, capsys):
    (tmp_path / "deep.txt").write_text("old")
    paths = [tmp_path / name for name in names]
    assert message in fails(capsys, "visualize", *paths, "--model", saved, "--out", tmp_path / out)


def test_visualize_overwrites_no_image_of_a_folder(saved, images, tmp_path, capsys):
    photograph = tmp_path / "here" / "cat.png"
    photograph.parent.mkdir()
    Image.open(images[0]).save(photograph)
    before = photograph.read_bytes()
    error = fails(capsys, "visualize", photograph, "--model", saved, "--out", photograph.parent)
    assert f"expected an --out that is none of the images, got {photograph}" in error
    assert photograph.read_bytes() == before


def test_the_photograph_of_the_demo_is_small_and_its_licence_lies_beside_it():
    assert cli_demo.SAMPLE.stat().st_size < 100_000
    licence = cli_demo.SAMPLE.with_name("LICENSE.txt").read_text()
    assert cli_demo.SAMPLE.name in licence and "creativecommons.org/licenses/by/2.0" in licence
    assert "danielbuechele" in licence and "danielbuechele" in cli_demo.SAMPLE_TITLE


def test_demo_shows_its_photograph_and_further_images(saved, images, tmp_path, capsys, monkeypatch):
    model, processor = load_checkpoint(str(saved))
    # As fast as can be; the real ones have a test of their own.
    monkeypatch.setattr(cli_demo, "DEMO_BATCHES", (1, 2))
    systems = {"focusvit-tiny": (model, processor), "ViT-Ti/16": (model, processor)}
    monkeypatch.setattr(cli_demo, "_tiny_systems", lambda device: systems)
    assert run("demo", images[1], "--model", saved, "--out", tmp_path / "demo") == 0
    assert sorted(os.listdir(tmp_path / "demo")) == ["result.json", "result.png"]
    result = json.loads((tmp_path / "demo" / "result.json").read_text())
    expected = pipeline("image-classification", model=model, image_processor=processor)(Image.open(cli_demo.SAMPLE))
    assert result["labels"] == [answer["label"] for answer in expected] and len(result["labels"]) == 5
    assert result["scores"] == pytest.approx([answer["score"] for answer in expected], abs=1e-5)
    assert [item["image"] for item in result["images"]] == [cli_demo.SAMPLE_TITLE, "round.png"]
    assert result["splits"]["own_size"].keys() == {"batch_1", "batch_2"}
    for batch, split in result["splits"]["at_224_pixels"].items():
        assert split.keys() == {"focusvit-tiny", "ViT-Ti/16"}
        ratio = split["ViT-Ti/16"]["whole_path"]["median_ms"] / split["focusvit-tiny"]["whole_path"]["median_ms"]
        assert result["ratios"][batch]["whole_path"] == pytest.approx(ratio)
    assert result["environment"]["torch"] == torch.__version__
    # Two rows of three panels, the first as large as the photograph.
    drawn = Image.open(tmp_path / "demo" / "result.png")
    assert drawn.width > 3 * 480 and drawn.height > 320 + 320
    printed = capsys.readouterr().out
    assert result["labels"][0] in printed and "ratio" in printed and "superpixels" in printed


@pytest.fixture
def quick_demo(saved, monkeypatch):
    """The demo without its measurement, and the demo's arguments."""
    split = {part: {"median_ms": 1.0} for part in cli_demo.PART_NAMES}
    monkeypatch.setattr(cli_demo, "_tiny_systems", lambda device: {"focusvit-tiny": None, "ViT-Ti/16": None})
    monkeypatch.setattr(cli_demo, "time_split", lambda systems, images: dict.fromkeys(systems, split))
    return "demo", "--model", saved


class Closed(io.StringIO):
    def write(self, text):
        raise BrokenPipeError("Broken pipe")


def test_demo_writes_its_result_even_if_it_cannot_be_printed(quick_demo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout", Closed())
    assert run(*quick_demo, "--out", tmp_path / "demo") == 2
    assert capsys.readouterr().err.endswith("focusvit: error: Broken pipe\n")
    assert sorted(os.listdir(tmp_path / "demo")) == ["result.json", "result.png"]


def test_demo_prints_its_result_even_if_the_disk_is_full_at_the_end(quick_demo, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(cli_demo, "write_json", full)
    assert run(*quick_demo, "--out", tmp_path / "demo") == 2
    captured = capsys.readouterr()
    assert cli_demo.SAMPLE_TITLE in captured.out and "batch 32" in captured.out
    assert "No space left" in captured.err and "wrote" not in captured.out


def test_demo_finds_first_where_it_cannot_write(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli_demo, "load_checkpoint", lambda *args: pytest.fail("loaded before it was checked"))
    (tmp_path / "file").write_text("old")
    assert "file" in fails(capsys, "demo", "--model", saved, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old"


def test_demo_compares_the_preset_with_a_vit_of_its_width_and_depth():
    systems = cli_demo._tiny_systems(torch.device("cpu"))
    (model, processor), (dense, dense_processor) = systems["focusvit-tiny"], systems["ViT-Ti/16"]
    preset = Path(__file__).resolve().parents[2] / "src" / "focusvit_hf" / "presets" / "focusvit-tiny.json"
    expected = json.loads(preset.read_text())
    assert model.config.cell_size == expected.pop("superpixel_cell_size")
    assert {name: getattr(model.config, name) for name in expected} == expected
    names = (
        "image_size",
        "patch_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    )
    assert [getattr(dense.config, name) for name in names] == [getattr(model.config, name) for name in names]
    assert dense.config._attn_implementation == model.config._attn_implementation == "sdpa"
    photograph = Image.fromarray(chelsea())
    pixels = [p(photograph, return_tensors="pt").pixel_values for p in (processor, dense_processor)]
    assert torch.equal(*pixels) and not dense_processor.do_superpixels


def test_visualize_decodes_what_a_sheet_shows_and_the_model_sees(images):
    large = images[0].with_name("large.jpg")
    Image.fromarray(chelsea()).resize((3200, 2400)).save(large)
    processor = FocusViTImageProcessor(size={"height": 224, "width": 224})
    assert read_image(large, needed=cli_images.needed_by_drawing(processor)).size == (1600, 1200)
    processor.size = {"height": 1024, "width": 1024}
    assert read_image(large, needed=cli_images.needed_by_drawing(processor)).size == (3200, 2400)
    assert cli_images.needed_by_drawing(FocusViTImageProcessor(do_resize=False)) is None
