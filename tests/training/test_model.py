"""The model that a run begins with, and the image processor that goes with it."""

import json
from pathlib import Path

import pytest

from blobs import NAMES, TINY
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.training.arguments import parse_arguments
from focusvit_hf.training.model import load_model


@pytest.fixture
def base(tmp_path):
    """A checkpoint to begin from, whose processor resizes, crops and interpolates in its own way."""
    options = {**TINY, "image_size": 32, "patch_size": 8, "num_superpixels": 16}
    names = dict(enumerate(NAMES))
    config = FocusViTConfig(**options, id2label=names, label2id={name: index for index, name in names.items()})
    FocusViTForImageClassification(config).save_pretrained(tmp_path / "base")
    own = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    processor = FocusViTImageProcessor.from_model_config(config, **own, resample=3)
    processor.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def processor_for(base: Path, *more: str) -> dict:
    """Options of the image processor that the scripts train with when they begin from `base`."""
    model_args, _, _ = parse_arguments(["--model_name_or_path", str(base), "--use_cpu", *more])
    return load_model(model_args, NAMES)[1].to_dict()


def test_a_checkpoint_brings_its_image_processor(base):
    own = FocusViTImageProcessor.from_pretrained(base).to_dict()
    assert own["do_center_crop"] and own["resample"] == 3
    assert processor_for(base) == own
    fewer = processor_for(base, "--config_overrides", '{"num_superpixels": 4, "drop_path_rate": 0.1}')
    assert fewer == {**own, "num_superpixels": 4}
    dense = processor_for(base, "--config_overrides", '{"patch_pooling": "none", "layer_types": null}')
    assert dense == {**own, "do_superpixels": False}


def test_its_image_processor_follows_the_size_of_the_images(base):
    own = FocusViTImageProcessor.from_pretrained(base).to_dict()
    larger = processor_for(base, "--config_overrides", '{"image_size": 64}')
    assert larger == {**own, "size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}}
    wide = processor_for(base, "--config_overrides", '{"image_size": [32, 64], "num_superpixels": [2, 4]}')
    sizes = {"size": {"shortest_edge": 80}, "crop_size": {"height": 32, "width": 64}}
    assert wide == {**own, **sizes, "num_superpixels": (2, 4)}
    assert processor_for(base, "--config_overrides", '{"image_size": [32, 32]}') == own


def test_a_checkpoint_without_an_image_processor_gets_the_one_of_its_configuration(base):
    (base / "preprocessor_config.json").unlink()
    config = FocusViTConfig.from_pretrained(base)
    assert processor_for(base) == FocusViTImageProcessor.from_model_config(config).to_dict()


def test_an_image_processor_that_is_named_comes_first(base, tmp_path):
    config = FocusViTConfig.from_pretrained(base)
    FocusViTImageProcessor.from_model_config(config, resample=0).save_pretrained(tmp_path / "named")
    config.save_pretrained(tmp_path / "named")
    named = processor_for(base, "--image_processor_name", str(tmp_path / "named"))
    assert named["resample"] == 0 and not named.get("do_center_crop")


def test_an_image_processor_that_cannot_serve_is_refused(base):
    path = base / "preprocessor_config.json"
    options = json.loads(path.read_text())
    path.write_text(json.dumps({**options, "superpixel_compactness": 3.0}))
    with pytest.raises(ValueError, match=r"superpixel_compactness: expected 10\.0, got 3\.0"):
        processor_for(base)
    assert processor_for(base, "--config_overrides", '{"superpixel_compactness": 10.0}')["num_superpixels"] == 16
    path.write_text("{")
    with pytest.raises(ValueError, match=r"expected an image processor in .*base: expected JSON in "):
        processor_for(base)
