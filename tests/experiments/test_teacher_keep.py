"""Pupils of the teacher that are kept as checkpoints, with cards that name it."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import ViTForImageClassification

from cards import PATTERN
from experiments.teacher import keep, train
from focusvit_hf import FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.hub.model_card import check_card
from teaching import CONFIG, RECIPE, examples


def test_the_dense_pupil_is_kept_as_a_plain_vit(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "load_examples", examples)
    recipe = train.Recipe(**{**RECIPE, "stages": [[112, 1]]})
    train.run({tmp_path / "run": recipe}, tmp_path / "bank", "test", every=1)
    pupil = FocusViTForImageClassification.from_pretrained(tmp_path / "run").eval()
    accuracy = keep.keep(tmp_path / "run", tmp_path / "vit-tiny")
    kept = ViTForImageClassification.from_pretrained(tmp_path / "vit-tiny").eval()
    assert kept.dtype == torch.float32 and kept.config.id2label[0] == "tench"
    assert all(
        tensor.dtype == torch.float16 for tensor in load_file(tmp_path / "vit-tiny" / "model.safetensors").values()
    )
    pixels = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(kept(pixels).logits, pupil(pixels).logits, atol=5e-3, rtol=5e-3)
    card = (tmp_path / "vit-tiny" / "README.md").read_text()
    assert f"accuracy: {accuracy:.4f}" in card and "Taught, not trained from scratch" in card
    with pytest.raises(ValueError, match="expected a new or an empty folder"):
        keep.keep(tmp_path / "run", tmp_path / "vit-tiny")


def test_a_pupil_of_superpixels_is_kept_with_a_card_that_names_its_teacher(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "load_examples", examples)
    changes = {"embedding_type": "conv", "patch_pooling": "superpixel", "position_embedding_type": "dynamic"}
    config = {**CONFIG, **changes, "num_superpixels": 9}
    recipe = train.Recipe(**{**RECIPE, "config": config, "stages": [[224, 1]], "guidance": 0})
    train.run({tmp_path / "run": recipe}, tmp_path / "bank", "test", every=1)
    accuracy = keep.keep(tmp_path / "run", tmp_path / "focusvit-mine")
    kept = load_file(tmp_path / "focusvit-mine" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in kept.values()} == {"torch.float16", "torch.int64"}
    text = (tmp_path / "focusvit-mine" / "README.md").read_text()
    assert PATTERN.match(text)["location"] == "model_cards/focusvit-mine"
    check_card(ModelCard(text))
    assert f"accuracy: {accuracy:.4f}" in text and "Taught, not trained from scratch" in text
    log = json.loads((tmp_path / "focusvit-mine" / "training_log.json").read_text())
    assert log["figures"]["test_accuracy"] == accuracy <= log["figures"]["test_top_5_accuracy"]
    processor = FocusViTImageProcessor.from_pretrained(tmp_path / "focusvit-mine")
    assert processor.num_superpixels == 9
    model = FocusViTForImageClassification.from_pretrained(tmp_path / "focusvit-mine")
    log["settings"]["recipe"] |= {"views": 0, "mix": 0.7}
    told = "views drawn anew at every step, 70% of the batches mixed by mixup or cutmix"
    log["rounds"] = [{"command": f"python {name}", "recipe": {"unlabelled": []}} for name in ("first", "second")]
    earlier = log["history"]
    for rounds in (1, 2, 3):
        card = " ".join(keep.pooled_card(model, "focusvit-mine", {**log, "earlier": earlier}, 7).split())
        assert told in card and ", after 1 epochs on fixed views" in card and "without their labels" not in card
        assert "```bash python first python second ```" in card
        assert ("mixup or cutmix in the last round" in card) == (rounds > 1)
        assert (f"and {rounds - 1} more on new ones" in card) == (rounds > 1)
        assert ("before, after 1 and 2 epochs on new views" in card) == (rounds == 3)
        earlier = [*earlier, {**earlier[0], "views": 0}]
    log["settings"]["recipe"]["num_superpixels"] = [4, 9]
    log["rounds"][0]["recipe"]["unlabelled"] = ["other/train"]
    card = " ".join(keep.pooled_card(model, "focusvit-mine", {**log, "earlier": earlier}, 7).split())
    assert "with images of other data sets without their labels among them (other/train)" in card
    assert "was drawn from 4, 9 for each batch of the training" in card
