"""What conversion refuses: other models, options and changes that FocusViT cannot represent."""

import pytest
import torch
import transformers

from focusvit_hf import convert_vit_checkpoint
from vits import make_vit, timm_weights


FULL = "full_attention"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("BeitForImageClassification", {}),
        ("ViTForMaskedImageModeling", {}),
        ("DeiTForMaskedImageModeling", {}),
        ("Dinov2Backbone", {}),
        ("ViTMAEModel", {}),
    ],
)
def test_other_architectures_are_refused(kind, options):
    source = make_vit((kind, {"hidden_size": 32, "num_attention_heads": 2, "image_size": 32, **options}), False)
    with pytest.raises(ValueError, match=f"Expected a model of one of the classes ViTModel, .*, got {kind}"):
        convert_vit_checkpoint(source)


def test_a_subclass_is_refused():
    class ViTWithATwist(transformers.ViTForImageClassification):
        pass

    source = ViTWithATwist(transformers.ViTConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
    with pytest.raises(ValueError, match="got ViTWithATwist"):
        convert_vit_checkpoint(source)


@pytest.mark.parametrize("source", [None, 3, torch.nn.Linear(2, 2), [torch.zeros(1)]])
def test_what_is_no_checkpoint_is_refused(source):
    with pytest.raises(ValueError, match="Expected a model, a name or a state dict, got"):
        convert_vit_checkpoint(source)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit-backbone", {"pooler_act": "relu"}, r"options .* FocusViT does not have, got {'pooler_act': 'relu'}"),
        ("deit-backbone", {"pooler_output_size": 64}, "got {'pooler_output_size': 64}"),
        ("dinov2-backbone", {"drop_path_rate": 0.1}, "got {'drop_path_rate': 0.1}"),
        ("dinov2-backbone", {"hidden_dropout_prob": 0.1}, "got {'hidden_dropout_prob': 0.1}"),
        ("vit-backbone", {"head_dim": 32}, "got {'head_dim': 32}"),
        ("vit-backbone", {"patch_size": (16, 8)}, r"a square patch_size in the source, got \(16, 8\)"),
        ("dinov2-backbone", {"image_size": (140, 154)}, r"a square image_size in the source, got \(140, 154\)"),
        ("vit-backbone", {"image_size": 230}, "an image_size that patch_size=16 divides, got 230"),
    ],
)
def test_options_that_cannot_be_represented_are_named(name, options, message):
    source = make_vit(name, **options)
    with pytest.raises(ValueError, match=message):
        convert_vit_checkpoint(source)


def test_an_option_that_is_replaced_does_not_matter():
    source = make_vit("dinov2-backbone", drop_path_rate=0.1)
    assert convert_vit_checkpoint(source, drop_path_rate=0.2).config.drop_path_rate == 0.2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": 384}, "hidden_size=192 as the source has it, got 384"),
        ({"num_register_tokens": 4}, "num_register_tokens=0 as the source has it, got 4"),
        ({"mlp_type": "swiglu"}, "mlp_type='mlp' as the source has it, got 'swiglu'"),
        ({"classifier_pooling": "cls_patch_mean"}, "classifier_pooling='cls' as the source has it"),
        ({"layer_types": [FULL]}, "2 layer_types, one for each layer, got 1"),
        ({"num_superpixels": 11, "image_size": 64}, "the nearest that can is"),
        ({"num_superpixel": 16}, "'num_superpixels'"),
    ],
)
def test_overrides_at_odds_with_the_source_are_refused(overrides, message):
    source = make_vit("vit-tiny")
    with pytest.raises(ValueError, match=message):
        convert_vit_checkpoint(source, **overrides)
    same = {"hidden_size": 192, "num_register_tokens": 0}
    assert convert_vit_checkpoint(source, **same).config.hidden_size == 192


def test_a_model_that_was_changed_is_refused():
    source = make_vit("vit-backbone")
    source.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(
        ValueError, match=r"tensors of a plain ViTModel, got: adapter.weight is unexpected; adapter.bi"
    ):
        convert_vit_checkpoint(source)
    source = make_vit("vit-backbone")
    del source.layers[1]
    with pytest.raises(ValueError, match=r"got: layers.1.layernorm_before.weight is missing.*; and \d+ more"):
        convert_vit_checkpoint(source)
    source = make_vit("vit-backbone")
    source.layernorm = torch.nn.LayerNorm(3)
    with pytest.raises(ValueError, match=r"layernorm.weight has shape \(3,\) instead of \(192,\)"):
        convert_vit_checkpoint(source)
    with torch.device("meta"):
        source = transformers.ViTModel(make_vit("vit-backbone").config)
    with pytest.raises(ValueError, match=r"embeddings.cls_token holds no floating-point numbers"):
        convert_vit_checkpoint(source)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    source = make_vit("vit-backbone")
    with torch.no_grad():
        source.layernorm.bias[3] = value
    for given in (source, timm_weights()):
        if isinstance(given, dict):
            given["norm.bias"][3] = value
        with pytest.raises(ValueError, match=r"got: (layer)?norm.bias holds NaN or infinity"):
            convert_vit_checkpoint(given, **({"num_attention_heads": 4} if isinstance(given, dict) else {}))
