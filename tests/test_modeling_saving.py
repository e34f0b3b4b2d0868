"""Saving and loading: weights, options that may change at loading, precision, and files that are not whole."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from focusvit_hf import FocusViTForImageClassification, FocusViTImageProcessor, FocusViTModel
from focusvit_hf.superpixels import geometry


FULL, LATENT = "full_attention", "latent_attention"


@torch.no_grad()
def logits(model, *args, **kwargs):
    return model(*args, **kwargs).logits


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"layer_types": [FULL, FULL], "patch_pooling": "none", "embedding_type": "patch"},
        {"layer_types": [FULL, LATENT], "position_embedding_type": "learned", "attention_area_bias": True},
    ],
)
def test_a_saved_model_gives_the_same_answer(tiny_model, pixels, tmp_path, variant):
    model = tiny_model(**variant)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded, info = FocusViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(loaded, pixels), logits(model, pixels))
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_the_backbone_of_a_saved_classifier_can_be_loaded_and_the_other_way_round(tiny_model, pixels, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "classifier")
    backbone = FocusViTModel.from_pretrained(tmp_path / "classifier")
    with torch.no_grad():
        assert torch.equal(backbone(pixels).pooler_output, model.focusvit(pixels).pooler_output)
    backbone.save_pretrained(tmp_path / "backbone")
    loaded, info = FocusViTForImageClassification.from_pretrained(tmp_path / "backbone", output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(loaded.focusvit.latents, model.focusvit.latents)


def test_the_number_of_superpixels_can_change_at_loading(tiny_model, photographs, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    FocusViTImageProcessor.from_model_config(model.config).save_pretrained(tmp_path)
    answers = []
    for number in (16, 9, [2, 3]):
        loaded = FocusViTForImageClassification.from_pretrained(tmp_path, num_superpixels=number)
        processor = FocusViTImageProcessor.from_pretrained(tmp_path, num_superpixels=number)
        processor.validate_against_config(loaded.config)
        inputs = processor(list(photographs.numpy()), return_tensors="pt")
        count = number if isinstance(number, int) else number[0] * number[1]
        assert inputs.superpixel_ids.amax(dim=(1, 2)).tolist() == [count - 1] * 4
        assert torch.equal(logits(loaded, **inputs), logits(loaded, inputs.pixel_values))
        answers.append(logits(loaded, **inputs))
    assert not torch.allclose(answers[0], answers[1])
    assert not torch.allclose(answers[1], answers[2])
    with pytest.raises(ValueError, match="got 11; the nearest that can is"):
        FocusViTForImageClassification.from_pretrained(tmp_path, num_superpixels=11)


def test_another_head_can_be_put_on_a_saved_model(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        FocusViTForImageClassification.from_pretrained(tmp_path, num_labels=7)
    loaded = FocusViTForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert loaded.classifier.weight.shape == (7, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_can_change_at_loading(tiny_model, pixels, tmp_path, dtype):
    model = tiny_model(initializer_range=0.05)
    model.save_pretrained(tmp_path)
    loaded = FocusViTForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    torch.testing.assert_close(logits(loaded, pixels).float(), logits(model, pixels), rtol=0.05, atol=0.03)


def test_half_precision_weights_run_in_float32_where_the_configuration_says_so(tiny_model, tmp_path):
    model = tiny_model().to(torch.float16)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}))
    loaded = FocusViTForImageClassification.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_missing_tensor_and_a_strange_one_are_reported(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["focusvit.latents"]
    weights["focusvit.strange"] = torch.zeros(3)
    save_file(weights, path, metadata={"format": "pt"})
    loaded, info = FocusViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"focusvit.latents"}
    assert set(info["unexpected_keys"]) == {"focusvit.strange"}
    # What is missing starts as in a new model.
    assert loaded.focusvit.latents.std() > 0.1


def test_a_truncated_file_is_refused(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"(?i)incomplete|metadata|header"):
        FocusViTForImageClassification.from_pretrained(tmp_path)


# New weights.


def test_new_models_of_a_seed_are_equal_and_nothing_is_left_at_zero(tiny_config):
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(FocusViTForImageClassification(tiny_config(position_embedding_type="learned")))
    for (name, first), (_, second) in zip(*(model.named_parameters() for model in models), strict=True):
        assert torch.equal(first, second), name
        if "bias" not in name:
            assert (first != 0).any(), name


def test_initializer_range_scales_what_lies_on_the_stream(tiny_config):
    small, large = (
        FocusViTForImageClassification(tiny_config(initializer_range=scale, num_latents=64)) for scale in (0.01, 0.1)
    )
    for name in ("focusvit.latents", "focusvit.embeddings.cls_token", "focusvit.layers.0.mlp.fc1.weight"):
        ratio = large.get_parameter(name).std() / small.get_parameter(name).std()
        assert 6 < ratio < 16, name


def test_the_stem_keeps_the_variance_of_the_image(tiny_config, photographs):
    torch.manual_seed(0)
    options = {"image_size": 224, "patch_size": 16, "num_superpixels": 49, "hidden_size": 64, "stem_channels": 32}
    model = FocusViTModel(tiny_config(**options, initializer_range=0.02))
    embeddings = model.embeddings
    stem = embeddings.units
    convolutions = stem.cells.convolution, stem.mixing.convolution
    for layer in (*convolutions, stem.position, embeddings.projection, embeddings.position.fc1):
        gain = layer.weight.std() * layer.weight[0].numel() ** 0.5
        assert 0.8 < gain < 1.6
    pixels = photographs.float() / 127.5 - 1
    ids = model.compute_superpixel_ids(pixels)
    with torch.no_grad():
        _, tokens, _ = embeddings(pixels, ids)
        positions = embeddings.position(geometry(ids, 49), torch.float32)
    # Tokens differ by what they show, and where they lie is small beside it.
    assert 0.1 < tokens.std(dim=1).mean() < 2
    assert positions.std(dim=1).mean() < 0.5 * tokens.std(dim=1).mean()


def test_a_missing_layer_of_the_stem_starts_as_in_a_new_model(tiny_model, tmp_path):
    tiny_model(initializer_range=0.02).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["focusvit.embeddings.units.cells.convolution.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    loaded = FocusViTForImageClassification.from_pretrained(tmp_path)
    assert loaded.focusvit.embeddings.units.cells.convolution.weight.std() > 0.2
