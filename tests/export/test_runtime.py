"""An exported folder with the interface of the pipeline, and `focusvit classify --runtime onnx`."""

import json

import pytest
from PIL import Image
from skimage.data import chelsea
from transformers import pipeline

from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.cli.__main__ import main
from focusvit_hf.export import OnnxImageClassifier, export_model


NAMES = {0: "cat", 1: "cup", 2: "rocket"}


@pytest.fixture(scope="module")
def classifier(tiny_model):
    model = tiny_model(num_hidden_layers=1, id2label=NAMES, label2id={name: k for k, name in NAMES.items()})
    return model, FocusViTImageProcessor.from_model_config(model.config)


@pytest.fixture(scope="module", params=["images", "superpixel_ids"])
def exported(request, classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / request.param
    return export_model(*classifier, folder, graph_input=request.param)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("cat.jpg", "small.png")]
    Image.fromarray(chelsea()).save(paths[0])
    Image.fromarray(chelsea()[:90, :70]).save(paths[1])
    return [str(path) for path in paths]


def test_the_exported_folder_answers_as_the_pipeline_does(classifier, exported, files):
    model, processor = classifier
    theirs = pipeline("image-classification", model=model, image_processor=processor)
    ours = OnnxImageClassifier(exported)
    images = [Image.open(file) for file in files]
    several = ours(images, top_k=2, batch_size=2)
    assert ours([images[1]], top_k=9) == [ours(images[1], top_k=9)]
    for image, found in zip(images, several, strict=True):
        expected = theirs(image, top_k=2)
        assert [entry["label"] for entry in found] == [entry["label"] for entry in expected]
        assert [entry["score"] for entry in found] == pytest.approx([entry["score"] for entry in expected], abs=1e-5)


def test_the_command_says_the_same_by_both_runtimes(classifier, exported, files, tmp_path, capsys):
    model, processor = classifier
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    results = []
    for runtime, folder in (("torch", tmp_path / "checkpoint"), ("onnx", exported)):
        out = tmp_path / f"{runtime}.json"
        options = ["--runtime", runtime, "--model", str(folder), "--batch-size", "2", "--out", str(out)]
        assert main(["classify", *files, str(broken), *options]) == 1
        results.append(json.loads(out.read_text()))
    torch_result, onnx_result = results
    assert onnx_result["runtime"] == "onnx" and len(onnx_result["failures"]) == 1
    assert onnx_result["num_tokens"] == torch_result["num_tokens"]
    for found, expected in zip(onnx_result["images"], torch_result["images"], strict=True):
        assert (found["image"], found["labels"]) == (expected["image"], expected["labels"])
        assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)


def test_other_folders_are_refused(classifier, tmp_path, capsys):
    with pytest.raises(ValueError, match="expected a folder that `focusvit export` wrote"):
        OnnxImageClassifier(tmp_path)
    (tmp_path / "export.json").write_text(json.dumps({"file": "model.pt2", "inputs": {}}))
    with pytest.raises(ValueError, match=r"expected a graph in ONNX, model.onnx, got model.pt2"):
        OnnxImageClassifier(tmp_path)
    for options in ([], ["--model", str(tmp_path), "--num-superpixels", "4"]):
        assert main(["classify", "cat.png", "--runtime", "onnx", *options]) == 2
        assert "without --num-superpixels" in capsys.readouterr().err


def test_numbers_below_one_are_refused(exported):
    with pytest.raises(ValueError, match="top_k >= 1"):
        OnnxImageClassifier(exported)([], top_k=0)
