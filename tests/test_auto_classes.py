"""What importing the package registers: the Auto classes and the pipelines, in which the map must reach the model."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    pipeline,
)

from focusvit_hf import (
    FocusViTConfig,
    FocusViTForImageClassification,
    FocusViTImageProcessor,
    FocusViTModel,
)


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    names = ["cat", "astronaut", "cup", "rocket", "other"]
    model = tiny_model(id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})
    model.save_pretrained(tmp_path)
    FocusViTImageProcessor.from_model_config(model.config).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def images(photographs):
    """PIL images of different sizes."""
    images = [Image.fromarray(image) for image in photographs.permute(0, 2, 3, 1).numpy()]
    return [image.resize((90 + 20 * index, 140 - 10 * index)) for index, image in enumerate(images)]


@torch.no_grad()
def expected_scores(checkpoint, image, **options):
    model = FocusViTForImageClassification.from_pretrained(checkpoint).eval()
    processor = FocusViTImageProcessor.from_pretrained(checkpoint, **options)
    scores = model(**processor(image, return_tensors="pt")).logits[0].softmax(dim=-1)
    return {model.config.id2label[index]: score for index, score in enumerate(scores.tolist())}


def as_dict(answer):
    return {entry["label"]: entry["score"] for entry in answer}


def test_auto_classes_know_a_saved_checkpoint(checkpoint):
    assert type(AutoConfig.from_pretrained(checkpoint)) is FocusViTConfig
    assert type(AutoModel.from_pretrained(checkpoint)) is FocusViTModel
    assert type(AutoModelForImageClassification.from_pretrained(checkpoint)) is FocusViTForImageClassification
    assert type(AutoImageProcessor.from_pretrained(checkpoint)) is FocusViTImageProcessor


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_the_processor_is_found_whatever_backend_is_asked_for(checkpoint, backend):
    assert type(AutoImageProcessor.from_pretrained(checkpoint, backend=backend)) is FocusViTImageProcessor


def test_auto_classes_know_the_type_of_the_model():
    assert type(AutoConfig.for_model("focusvit", num_superpixels=36)) is FocusViTConfig
    assert type(AutoModel.from_config(FocusViTConfig(num_hidden_layers=1))) is FocusViTModel


def test_registering_again_does_no_harm(checkpoint):
    AutoConfig.register("focusvit", FocusViTConfig, exist_ok=True)
    AutoModel.register(FocusViTConfig, FocusViTModel, exist_ok=True)
    assert type(AutoModel.from_pretrained(checkpoint)) is FocusViTModel


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_image_classification_pipeline(checkpoint, images, batch_size):
    classify = pipeline("image-classification", model=str(checkpoint))
    answers = classify(images, batch_size=batch_size, top_k=5)
    assert len(answers) == 4
    for answer, image in zip(answers, images, strict=True):
        assert as_dict(answer) == pytest.approx(expected_scores(checkpoint, image), abs=1e-5)
        assert [entry["score"] for entry in answer] == sorted((entry["score"] for entry in answer), reverse=True)


def test_a_pipeline_takes_one_image_and_a_path(checkpoint, images, tmp_path):
    classify = pipeline("image-classification", model=str(checkpoint))
    path = tmp_path / "image.png"
    images[0].save(path)
    expected = pytest.approx(expected_scores(checkpoint, images[0]), abs=1e-5)
    assert as_dict(classify(images[0], top_k=5)) == expected
    assert as_dict(classify(str(path), top_k=5)) == expected


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_map_of_the_processor_reaches_the_model_and_changes_the_answer(
    checkpoint, images, batch_size, monkeypatch
):
    received = []
    forward = FocusViTModel.forward

    def spy(self, pixel_values=None, superpixel_ids=None, **kwargs):
        received.append(superpixel_ids)
        return forward(self, pixel_values, superpixel_ids=superpixel_ids, **kwargs)

    monkeypatch.setattr(FocusViTModel, "forward", spy)
    options = {"superpixel_compactness": 1000.0}
    processor = FocusViTImageProcessor.from_pretrained(checkpoint, **options)
    model = FocusViTForImageClassification.from_pretrained(checkpoint)
    squarer = pipeline("image-classification", model=model, image_processor=processor)
    plain = pipeline("image-classification", model=str(checkpoint))
    answers = [classify(images, batch_size=batch_size, top_k=5) for classify in (plain, squarer)]
    # Of the first pipeline the model computes the maps, see test_pipeline_maps.py.
    calls = 4 // batch_size
    assert received[:calls] == [None] * calls
    assert [tuple(ids.shape) for ids in received[calls:]] == [(batch_size, 16, 16)] * calls
    for index, image in enumerate(images):
        first, second = (as_dict(answer[index]) for answer in answers)
        assert max(abs(first[label] - second[label]) for label in first) > 1e-4
        assert second == pytest.approx(expected_scores(checkpoint, image, **options), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_image_feature_extraction_pipeline(checkpoint, images, batch_size):
    extract = pipeline("image-feature-extraction", model=str(checkpoint))
    assert isinstance(extract.model, FocusViTModel)
    processor = FocusViTImageProcessor.from_pretrained(checkpoint)
    features = extract(images, batch_size=batch_size)
    pooled = extract(images, batch_size=batch_size, pool=True)
    for index, image in enumerate(images):
        with torch.no_grad():
            outputs = extract.model(**processor(image, return_tensors="pt"))
        np.testing.assert_allclose(features[index], outputs.last_hidden_state, atol=1e-5)
        np.testing.assert_allclose(pooled[index], outputs.pooler_output, atol=1e-5)
