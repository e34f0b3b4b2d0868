"""Pipelines split a batch into its images; what a model tells of each layer is not in their way."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from focusvit_hf import FocusViTForSemanticSegmentation, FocusViTImageProcessor


SPOT = {"sparsification_layers": [1], "keep_ratio": 0.7}
SPA = {"layer_types": ["full_attention", "select_pack_attention"]}
WAYS = {
    "spot": SPOT,
    "merged": {**SPOT, "sparsification_mode": "merge"},
    "spa": SPA,
    "spa-budget": {**SPA, "select_budget": 0.5},
    "both": {**SPOT, **SPA},
}
COUNT = 6


@pytest.fixture
def images(photographs):
    images = [Image.fromarray(image) for image in photographs.permute(0, 2, 3, 1).numpy()]
    return [images[number % len(images)].rotate(number) for number in range(COUNT)]


def options(way):
    return {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, **WAYS[way]}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", ["image-classification", "image-feature-extraction"])
def test_a_batch_of_more_images_than_stages_is_answered_as_its_images(task, way, tiny_model, images, tmp_path):
    model = tiny_model(**options(way), initializer_range=0.2)
    model.save_pretrained(tmp_path)
    FocusViTImageProcessor.from_model_config(model.config).save_pretrained(tmp_path)
    pipe = pipeline(task, model=str(tmp_path))
    found, expected = pipe(images, batch_size=COUNT), [pipe(image) for image in images]
    assert len(found) == COUNT
    if task == "image-classification":
        found, expected = (
            [{each["label"]: each["score"] for each in one} for one in all_] for all_ in (found, expected)
        )
        assert found == [pytest.approx(scores, abs=1e-5) for scores in expected]
    else:
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-4)


def test_a_batch_of_label_maps(tiny_config, images, tmp_path):
    torch.manual_seed(0)
    model = FocusViTForSemanticSegmentation(tiny_config(**options("spa"), initializer_range=0.2)).eval()
    model.save_pretrained(tmp_path)
    FocusViTImageProcessor.from_model_config(model.config).save_pretrained(tmp_path)
    segment = pipeline("image-segmentation", model=str(tmp_path))
    for found, image in zip(segment(images, batch_size=COUNT), images, strict=True):
        found, expected = ({each["label"]: np.asarray(each["mask"]) for each in of} for of in (found, segment(image)))
        # Sums of a batch are rounded otherwise, which may turn a pixel at a border.
        assert all((found[label] == mask).mean() > 0.99 for label, mask in expected.items() if mask.mean() > 2)


# A threshold selects in no graph.
@pytest.mark.parametrize(
    ("way", "compiled"), [*((way, False) for way in WAYS), ("spot", True), ("merged", True), ("spa-budget", True)]
)
def test_what_is_told_of_each_layer_is_an_item_only_with_labels(way, compiled, tiny_model, pixels):
    model = tiny_model(**options(way))
    call = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    names = {"kept_tokens"} if "sparsification_layers" in WAYS[way] else set()
    names |= {"selected_tokens"} if "layer_types" in WAYS[way] else set()
    with torch.no_grad():
        plain, told = call(pixels), call(pixels, labels=torch.zeros(len(pixels), dtype=torch.long))
    assert not names & plain.keys() and names <= told.keys()
    assert all(len(item) == len(pixels) for item in plain.values())
    for name in names:
        for one, other in zip(getattr(plain, name), told[name], strict=True):
            assert torch.equal(one, other)
