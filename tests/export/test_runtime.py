"""Exported folders with the interfaces of the pipelines, and the commands with `--runtime onnx`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import chelsea
from transformers import pipeline

from focusvit_hf import FocusViTForSemanticSegmentation, FocusViTImageProcessor
from focusvit_hf.cli.__main__ import main
from focusvit_hf.explanation import segment
from focusvit_hf.export import OnnxImageClassifier, OnnxImageSegmenter, export_model


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


@pytest.fixture(scope="module")
def segmenter(tiny_config, tmp_path_factory):
    """A segmenter of three classes, its processor, and the folder that it was exported to."""
    torch.manual_seed(0)
    names = {0: "ground", 1: "figure", 2: "sky"}
    model = FocusViTForSemanticSegmentation(tiny_config(initializer_range=0.5, num_labels=3, id2label=names)).eval()
    processor = FocusViTImageProcessor.from_model_config(model.config)
    return model, processor, export_model(model, processor, tmp_path_factory.mktemp("exported") / "segmenter")


def test_an_exported_segmenter_answers_as_the_pipeline_and_segment_do(segmenter, files):
    model, processor, folder = segmenter
    theirs = pipeline("image-segmentation", model=model, image_processor=processor)
    ours = OnnxImageSegmenter(folder)
    several = ours(files, batch_size=2)
    for file, found in zip(files, several, strict=True):
        expected = theirs(file)
        assert [(part["label"], part["score"]) for part in found] == [(part["label"], None) for part in expected]
        for part, their in zip(found, expected, strict=True):
            assert part["mask"].size == their["mask"].size and part["mask"].mode == "L"
            assert (np.asarray(part["mask"]) == np.asarray(their["mask"])).mean() > 0.995
        alone = ours(file)
        assert [part["label"] for part in alone] == [part["label"] for part in found]
        by_graph, by_torch = ours.segment(file), segment(model, processor, file)
        torch.testing.assert_close(by_graph.logits, by_torch.logits, atol=1e-4, rtol=1e-4)
        assert (by_graph.names, by_graph.upsampling) == (by_torch.names, by_torch.upsampling)
    assert {part["label"] for part in several[0]} > {"ground"}
    with pytest.raises(ValueError, match="expected upsampling to be one of"):
        ours.segment(files[0], "bicubic")


def test_segment_and_cutout_write_the_same_by_both_runtimes(segmenter, files, tmp_path, capsys):
    model, processor, folder = segmenter
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    shares, cuts = [], []
    for runtime, source in (("torch", tmp_path / "checkpoint"), ("onnx", folder)):
        out = tmp_path / runtime
        options = ["--runtime", runtime, "--model", str(source), "--out", str(out)]
        assert main(["segment", *files, *options]) == 0
        assert main(["cutout", files[0], *options, "--label", "figure"]) == 0
        shares.append([entry["shares"] for entry in json.loads((out / "segmentation.json").read_text())["images"]])
        cuts.append(np.asarray(Image.open(out / "cat_cutout.png")).astype(int))
    for found, expected in zip(*shares, strict=True):
        assert found == pytest.approx(expected, abs=5e-3)
    assert (abs(cuts[0] - cuts[1]) <= 2).mean() > 0.99
    capsys.readouterr()
    assert main(["cutout", files[0], *options, "--label", "boat"]) == 2
    assert "expected a --label of the model, ground; figure; sky, got 'boat'" in capsys.readouterr().err
    assert main(["segment", files[0], "--runtime", "onnx", "--out", str(tmp_path / "none")]) == 2
    assert "with a --model FOLDER that `focusvit export` wrote" in capsys.readouterr().err


def test_a_graph_of_another_task_is_refused(segmenter, exported):
    with pytest.raises(ValueError, match="expected a model of image classification, got one of segmentation in"):
        OnnxImageClassifier(segmenter[2])
    with pytest.raises(ValueError, match="expected a model of image segmentation, got one of classification in"):
        OnnxImageSegmenter(exported)
    with pytest.raises(ValueError, match="batch_size >= 1"):
        OnnxImageSegmenter(segmenter[2])([], batch_size=0)


def test_numbers_below_one_are_refused(exported):
    with pytest.raises(ValueError, match="top_k >= 1"):
        OnnxImageClassifier(exported)([], top_k=0)
