"""One graph from an image to its logits: ONNX Runtime and torch.export against the model, on real images."""

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import ExifTags, Image
from skimage.data import rocket

import focusvit_hf.export
from focusvit_hf import FocusViTConfig, FocusViTImageProcessor
from focusvit_hf.cli.__main__ import main
from focusvit_hf.export import export_model
from focusvit_hf.export import folder as export
from processes import run_command


NAMES = ["cat", "astronaut", "cup", "rocket", "other"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
# By what a graph takes, another model each: together they use every part that has operators of its own.
VARIANTS = {
    "images": {
        "superpixel_iterations": 2,
        "num_hidden_layers": 1,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.23, 0.22, 0.23],
    },
    "pixel_values": {
        "superpixel_iterations": 1,
        "embedding_type": "patch",
        "position_embedding_type": "learned",
        "superpixel_assignment": "hard",
        "attention_area_bias": True,
        "layer_types": ["full_attention", "latent_attention", "full_attention"],
        "num_hidden_layers": 3,
    },
    "superpixel_ids": {
        "superpixel_method": "skimage",
        "embedding_type": "patch",
        "num_superpixels": [3, 5],
        "num_hidden_layers": 1,
    },
}
SIZES = (1, 2, 9)
LEVELS = [onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL]


def processor_of(model, **options):
    return FocusViTImageProcessor.from_model_config(model.config, **options)


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    """A function from what a graph takes to the model, its processor and the folder; each is exported once."""
    made = {}

    def make(graph_input, export_format):
        if (graph_input, export_format) not in made:
            model = tiny_model(**VARIANTS[graph_input], **LABELS)
            options = {"export_format": export_format, "graph_input": graph_input}
            folder = tmp_path_factory.mktemp("exported") / "graph"
            export_model(model, processor_of(model), folder, **options)
            made[graph_input, export_format] = model, processor_of(model), folder
        return made[graph_input, export_format]

    return make


@pytest.fixture(scope="module")
def images(photographs):
    """(9, 3, 32, 32) uint8: photographs, and what makes ties or leaves superpixels without cells."""
    generator = torch.Generator().manual_seed(0)
    small = torch.nn.functional.avg_pool2d(photographs.float(), 7).round().to(torch.uint8)
    noise = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    flat = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    stripes = (torch.arange(32) % 2 * 255).to(torch.uint8).expand(1, 3, 32, 32)
    return torch.cat((small, noise, flat, stripes))


def feed_of(graph_input, processor, images):
    """What a graph is fed with, as the processor prepares it."""
    prepared = processor(list(images), return_tensors="pt")
    fed = {"images": images, **prepared}
    names = {"superpixel_ids": ["pixel_values", "superpixel_ids"]}.get(graph_input, [graph_input])
    return {name: fed[name] for name in names}, prepared


@pytest.mark.parametrize("graph_input", VARIANTS)
def test_onnx_runtime_agrees_with_the_model(exported, images, graph_input):
    model, processor, folder = exported(graph_input, "onnx")
    for level, size in itertools.product(LEVELS, SIZES):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        feed, prepared = feed_of(graph_input, processor, images[:size])
        found = session.run(None, {name: value.numpy() for name, value in feed.items()})
        with torch.no_grad():
            expected = model(**prepared).logits
        torch.testing.assert_close(torch.from_numpy(found[0]), expected, rtol=0, atol=1e-4)
        if graph_input != "superpixel_ids":
            np.testing.assert_array_equal(found[1], prepared["superpixel_ids"])


# Normalised pixels alone are in the test of models without superpixels.
@pytest.mark.parametrize("graph_input", ["images", "superpixel_ids"])
def test_the_exported_program_agrees_with_the_model(exported, images, graph_input):
    model, processor, folder = exported(graph_input, "torch-export")
    program = torch.export.load(folder / "model.pt2").module()
    for size in SIZES:
        feed, prepared = feed_of(graph_input, processor, images[:size])
        with torch.no_grad():
            found, expected = program(**feed), model(**prepared).logits
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-5)
        if graph_input != "superpixel_ids":
            assert torch.equal(found["superpixel_ids"], prepared["superpixel_ids"])


@pytest.mark.parametrize("variant", [{"patch_pooling": "none"}, {"patch_pooling": "grid", "num_channels": 1}])
def test_a_model_without_superpixels_gives_logits_only(tiny_model, tmp_path, variant):
    model = tiny_model(**variant, num_hidden_layers=1)
    options = {"export_format": "torch-export", "graph_input": "pixel_values", "batch_size": 3}
    program = torch.export.load(export_model(model, processor_of(model), tmp_path / "out", **options) / "model.pt2")
    pixel_values = torch.randn(3, model.config.num_channels, 32, 32)
    with torch.no_grad():
        found, expected = program.module()(pixel_values=pixel_values), model(pixel_values).logits
    assert list(found) == ["logits"]
    torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", [{"patch_pooling": "none"}, {"patch_pooling": "grid", "embedding_type": "patch"}])
def test_onnx_folds_the_constants_of_small_images_without_superpixels(tiny_model, tmp_path, variant):
    model = tiny_model(**variant, num_hidden_layers=1)
    # It runs the graph, and refuses one whose logits are not the model's.
    export_model(model, processor_of(model), tmp_path / "out")


@pytest.mark.parametrize("graph_input", VARIANTS)
def test_the_folder_says_what_to_feed(exported, graph_input):
    model, processor, folder = exported(graph_input, "onnx")
    files = ["config.json", "export.json", "model.onnx", "preprocessor_config.json"]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert FocusViTConfig.from_pretrained(folder).id2label == model.config.id2label
    assert FocusViTImageProcessor.from_pretrained(folder).to_dict() == processor.to_dict()
    description = json.loads((folder / "export.json").read_text())
    session = onnxruntime.InferenceSession(folder / description["file"], providers=["CPUExecutionProvider"])
    types = {"uint8": "tensor(uint8)", "float32": "tensor(float)", "int64": "tensor(int64)"}
    for said, got in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        expected = {name: (types[tensor["dtype"]], tensor["shape"]) for name, tensor in description[said].items()}
        assert {value.name: (value.type, value.shape) for value in got} == expected
        assert all(value.shape[0] == "batch" for value in got)
    assert description["largest_difference_of_logits"] < 1e-4
    assert description["quantization"] is None and "onnxruntime" in description["versions"]


@pytest.mark.parametrize("export_format", ["onnx", "torch-export"])
def test_a_graph_holds_no_path_of_this_machine(exported, export_format):
    *_, folder = exported("images", export_format)
    # Of a .pt2 the parts are stored as they are.
    content = (folder / export.EXPORT_FILES[export_format]).read_bytes()
    for path in (Path(export.__file__).parents[2], Path(torch.__file__).parents[1]):
        assert str(path).encode() not in content


def test_a_fixed_batch_takes_no_other(tiny_model, tmp_path):
    model = tiny_model(num_hidden_layers=1)
    options = {"graph_input": "superpixel_ids", "batch_size": 1}
    folder = export_model(model, processor_of(model), tmp_path / "out", **options)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [value.shape for value in session.get_inputs()] == [[1, 3, 32, 32], [1, 16, 16]]
    feed = {"pixel_values": np.zeros((2, 3, 32, 32), np.float32), "superpixel_ids": np.zeros((2, 16, 16), np.int64)}
    assert session.run(["logits"], {name: value[:1] for name, value in feed.items()})[0].shape == (1, 5)
    with pytest.raises(Exception, match="Got invalid dimensions"):
        session.run(None, feed)


def test_the_size_is_that_of_the_processors_images(tiny_model, tmp_path):
    model = tiny_model(num_hidden_layers=1)
    crop = {"do_center_crop": True, "crop_size": {"height": 40, "width": 48}}
    processor = processor_of(model, size={"shortest_edge": 60}, **crop)
    options = {"export_format": "torch-export", "graph_input": "superpixel_ids"}
    folder = export_model(model, processor, tmp_path / "out", **options)
    inputs = json.loads((folder / "export.json").read_text())["inputs"]
    assert [value["shape"] for value in inputs.values()] == [["batch", 3, 40, 48], ["batch", 20, 24]]


def test_the_recipe_in_the_docstring_prepares_files_as_the_processor_does(exported, tmp_path):
    """Without torch: an ordinary file, a 16-bit grey one, a transparent one, a photograph on its side."""
    model, processor, folder = exported("images", "onnx")
    (tmp_path / "exported").symlink_to(folder)
    photograph = Image.fromarray(rocket()).resize((96, 64))
    grey = np.asarray(photograph.convert("L")).astype(np.uint16) * 257
    transparent = photograph.copy()
    transparent.putalpha(photograph.convert("L"))
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    photograph.save(tmp_path / "plain.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    transparent.save(tmp_path / "transparent.png")
    photograph.save(tmp_path / "rotated.png", exif=orientation)
    names = ["plain.png", "grey.png", "transparent.png", "rotated.png"]

    recipe = focusvit_hf.export.__doc__.split("```python\n")[1].split("```")[0]
    guide = Path(__file__).resolve().parents[2] / "docs" / "guides" / "export.md"
    assert f"```python\n{recipe}```" in guide.read_text()
    script = f"""
import sys
for name in {names}:
    exec({recipe!r}.replace("cat.png", name))
    np.save(name + ".npy", images)
assert not {{'torch', 'transformers', 'focusvit_hf'}} & set(sys.modules)
"""
    done = run_command([sys.executable, "-c", script], cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    files = [str(tmp_path / name) for name in names]
    only_sized = {"do_rescale": False, "do_normalize": False, "do_superpixels": False}
    expected = processor(files, return_tensors="pt", **only_sized)["pixel_values"]
    found = np.concatenate([np.load(tmp_path / f"{name}.npy") for name in names]).astype(np.float32)
    # PIL's filter and PyTorch's round differently.
    np.testing.assert_allclose(found, expected, atol=1)
    with torch.no_grad():
        best = model(**processor(files, return_tensors="pt")).logits.argmax(dim=1).tolist()
    assert done.stdout.split() == [NAMES[index] for index in best]


# Errors.


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ({}, {"export_format": "tflite"}, r"one of \('onnx', 'torch-export'\), got 'tflite'"),
        ({}, {"graph_input": "pixels"}, r"one of \('images', 'pixel_values', 'superpixel_ids'\), got 'pixels'"),
        ({}, {"quantization": "int4"}, r"one of \('int8',\) or None, got 'int4'"),
        ({}, {"quantization": "int8", "export_format": "torch-export"}, "torchao"),
        ({}, {"batch_size": 0}, "batch_size >= 1, or None for any, got 0"),
        ({"num_channels": 4}, {}, "three channels .* got num_channels=4"),
        (
            {"patch_pooling": "grid"},
            {"graph_input": "superpixel_ids"},
            "takes superpixels .* got patch_pooling='grid'",
        ),
        ({"superpixel_method": "skimage"}, {}, "superpixel_method='torch' .* graph_input='superpixel_ids' takes any"),
        ({"attn_implementation": "flex_attention"}, {}, "'eager' or 'sdpa', got 'flex_attention'"),
    ],
)
def test_options_that_do_not_fit_are_refused(tiny_model, tmp_path, variant, options, message):
    model = tiny_model(**variant)
    with pytest.raises(ValueError, match=message):
        export_model(model, processor_of(model), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_other_types_and_other_processors_are_refused(tiny_model, tmp_path):
    model = tiny_model()
    with pytest.raises(ValueError, match="num_superpixels: expected 16, got 4"):
        export_model(model, processor_of(model, num_superpixels=4), tmp_path / "out")
    with pytest.raises(ValueError, match=r"float32 on the CPU, got torch.bfloat16 on cpu: model.float\(\).cpu\(\)"):
        export_model(model.to(torch.bfloat16), processor_of(model), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_the_extra(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else object())
    model = tiny_model()
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install focusvit-hf\[onnx\]"):
        export_model(model, processor_of(model), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced(tiny_model, tmp_path):
    (tmp_path / "thesis.txt").write_text("the only copy")
    model = tiny_model()
    for out in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ValueError, match="new or an empty folder"):
            export_model(model, processor_of(model), out)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_graph_that_differs_is_not_written(tiny_model, tmp_path, monkeypatch):
    model = tiny_model(num_hidden_layers=1)
    options = {"export_format": "torch-export", "graph_input": "superpixel_ids", "batch_size": 1}
    monkeypatch.setattr(export, "_TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="Expected the logits of the model"):
        export_model(model, processor_of(model), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_other_superpixels_are_found():
    ids = torch.zeros(1, 2, 2, dtype=torch.int64)
    expected = {"logits": torch.zeros(1, 3), "superpixel_ids": ids}
    assert export._compare(expected, expected, None) == 0
    with pytest.raises(RuntimeError, match="superpixels of the model"):
        export._compare(expected, {**expected, "superpixel_ids": ids + 1}, "int8")


# The command.


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    """In half precision, which is a way to store weights."""
    model = tiny_model(**LABELS, num_hidden_layers=1).bfloat16()
    model.save_pretrained(tmp_path / "checkpoint")
    processor_of(model).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_the_command_writes_the_folder_in_full_precision_and_says_what_to_feed(checkpoint, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    arguments = ["--format", "torch-export", "--input", "superpixel_ids", "--batch", "dynamic"]
    assert main(["export", str(checkpoint), str(out), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "pixel_values float32 ['batch', 3, 32, 32]" in printed
    assert "superpixel_ids int64 ['batch', 16, 16]" in printed
    assert f"wrote {out / 'model.pt2'}" in printed and (out / "model.pt2").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quantize", "int8", "--format", "torch-export"], "expected export_format='onnx'"),
        (["--batch", "0"], "expected a whole number >= 1, got '0'"),
        (["--format", "tflite"], "invalid choice: 'tflite'"),
    ],
)
def test_errors_of_the_command_are_short(checkpoint, tmp_path, capsys, arguments, message):
    try:
        assert main(["export", str(checkpoint), str(tmp_path / "out"), *arguments]) == 2
    except SystemExit as error:
        assert error.code == 2
    assert message.lower() in capsys.readouterr().err.lower()
    assert not (tmp_path / "out").exists()


def test_the_command_names_the_extra(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 2
    assert "pip install focusvit-hf[onnx]" in capsys.readouterr().err
