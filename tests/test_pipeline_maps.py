"""In a pipeline the model computes the map of a batch, as the image processor would; elsewhere the processor does."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor, FocusViTModel


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    FocusViTImageProcessor.from_model_config(model.config).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def images(photographs):
    return [Image.fromarray(image) for image in photographs.permute(0, 2, 3, 1).numpy()]


@pytest.fixture
def received(monkeypatch):
    """What the model is given for the map, and the map that it goes on with, at each call."""
    given, used = [], []
    forward, compute = FocusViTModel.forward, FocusViTModel.compute_superpixel_ids

    def spy(self, pixel_values=None, superpixel_ids=None, **kwargs):
        given.append(superpixel_ids)
        return forward(self, pixel_values, superpixel_ids=superpixel_ids, **kwargs)

    def computed(self, pixel_values):
        used.append(compute(self, pixel_values))
        return used[-1]

    monkeypatch.setattr(FocusViTModel, "forward", spy)
    monkeypatch.setattr(FocusViTModel, "compute_superpixel_ids", computed)
    return given, used


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_model_computes_the_maps_of_a_batch_bit_for_bit(checkpoint, images, received, dtype):
    given, used = received
    classify = pipeline("image-classification", model=str(checkpoint), dtype=getattr(torch, dtype))
    classify(images, batch_size=2)
    assert given == [None, None]
    expected = FocusViTImageProcessor.from_pretrained(checkpoint)(images, return_tensors="pt").superpixel_ids
    assert torch.equal(torch.cat(used), expected)


def test_the_answers_are_those_of_the_processors_map(checkpoint, images):
    classify = pipeline("image-classification", model=str(checkpoint))
    model = FocusViTForImageClassification.from_pretrained(checkpoint).eval()
    inputs = FocusViTImageProcessor.from_pretrained(checkpoint)(images, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.softmax(dim=-1).amax(dim=-1)
    found = [answer[0]["score"] for answer in classify(images, batch_size=4)]
    assert found == pytest.approx(expected.tolist(), abs=1e-6)


def test_maps_are_there_when_they_are_asked_for(checkpoint, images):
    processor = pipeline("image-classification", model=str(checkpoint)).image_processor
    assert "superpixel_ids" not in processor(images[0])
    asked = processor(images[0], do_superpixels=True, return_tensors="pt").superpixel_ids
    own = AutoImageProcessor.from_pretrained(checkpoint)(images[0], return_tensors="pt").superpixel_ids
    assert torch.equal(asked, own)


def test_what_a_pipeline_saves_computes_maps_again(checkpoint, images, tmp_path):
    pipeline("image-classification", model=str(checkpoint)).save_pretrained(tmp_path / "saved")
    assert "superpixel_ids" in FocusViTImageProcessor.from_pretrained(tmp_path / "saved")(images[0])
    assert "leaves_maps" not in (tmp_path / "saved" / "preprocessor_config.json").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"superpixel_compactness": 1000.0},
        {"num_superpixels": 4},
        {"superpixel_method": "skimage"},
        # Levels near white cannot be told apart in bfloat16.
        {"image_mean": [0.4] * 3, "image_std": [0.27] * 3, "also": True},
    ],
    ids=str,
)
def test_a_processor_that_makes_other_maps_makes_them(checkpoint, images, received, change):
    file = checkpoint / "preprocessor_config.json"
    both = change.pop("also", False)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    if both:
        file = checkpoint / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    if change.get("superpixel_method"):
        pytest.importorskip("skimage")
    classify = pipeline("image-classification", model=str(checkpoint))
    classify(images[:2], batch_size=2)
    expected = FocusViTImageProcessor.from_pretrained(checkpoint)(images[:2], return_tensors="pt").superpixel_ids
    assert torch.equal(received[0][0], expected)


def test_a_processor_without_a_configuration_beside_it_makes_maps(checkpoint, images, received, tmp_path):
    FocusViTImageProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "alone")
    classify = pipeline("image-classification", model=str(checkpoint), image_processor=str(tmp_path / "alone"))
    classify(images[0])
    assert received[0][0] is not None


def test_fields_of_a_configuration_are_read_as_the_library_reads_them():
    config = FocusViTConfig(num_labels=3, layer_norm_eps=1e-5)
    assert config.layer_norm_epsilon == config.layer_norm_eps == 1e-5
    assert config.num_labels == 3 and config.id2label is vars(config)["id2label"]
    config.layer_norm_epsilon = 1e-4
    assert config.layer_norm_eps == 1e-4
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = config.nothing_of_the_kind
