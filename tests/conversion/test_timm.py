"""State dicts with timm's names, against a plain ViT on them."""

import pytest
import torch

from focusvit_hf import FocusViTForImageClassification, FocusViTModel, convert_vit_checkpoint
from vits import timm_logits, timm_weights


KINDS = {
    "vit": {},
    "vit without a head": {"labels": 0},
    "deit": {"distilled": True},
    "deit without a head": {"distilled": True, "labels": 0},
    "dinov2": {"scale": True, "labels": 0},
    "dinov2 giant": {"scale": True, "gate": "packed"},
    "dinov2 with registers": {"scale": True, "registers": 4, "bare_table": True},
    "distilled, bare table": {"distilled": True, "bare_table": True},
    "separate gate": {"gate": "split"},
    "one layer, one patch a side": {"layers": 1, "side": 1},
}


def convert(weights, **overrides):
    return convert_vit_checkpoint(weights, num_attention_heads=4, **overrides)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_answers_are_those_of_the_plain_vit(pixels, options):
    weights = timm_weights(**options)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    model = convert(weights, patch_pooling="none")
    assert type(model) is (FocusViTForImageClassification if options.get("labels", 5) else FocusViTModel)
    side = 8 * options.get("side", 4)
    pixels = pixels[..., :side, :side]
    with torch.no_grad():
        answer = model(pixels)
        found = answer.logits if "logits" in answer else answer.pooler_output
        expected = timm_logits(weights, pixels, heads=4)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    for parameter in model.parameters():
        parameter.data.fill_(3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_every_tensor_is_accounted_for(options):
    weights = timm_weights(**options)
    model = convert(weights, patch_pooling="none")
    report = model.conversion_report
    assert not report.fresh and not report.dropped
    assert set(report.mapped) | set(report.derived) == {name.removeprefix("focusvit.") for name in model.state_dict()}
    split = {name for how in report.derived.values() for name in weights if name in how.split()}
    assert set(report.mapped.values()) | split == set(weights)
    assert report.derived["layers.0.attention.k_proj.weight"] == "part 2 of 3 of blocks.0.attn.qkv.weight"


def test_settings_follow_from_the_shapes():
    model = convert(timm_weights(scale=True, registers=3, gate="packed"), image_mean=[0.4, 0.5, 0.6])
    config = model.config
    expected = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "mlp_type": "swiglu",
        "num_register_tokens": 3,
        "num_labels": 5,
        "num_superpixels": 4,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "image_mean": [0.4, 0.5, 0.6],
    }
    assert {name: getattr(config, name) for name in expected} == expected
    config = convert(timm_weights(), hidden_act="relu", layer_norm_eps=1e-5).config
    assert (config.hidden_act, config.layer_norm_eps) == ("relu", 1e-5)


def test_labels_can_be_named():
    model = convert(timm_weights(labels=2), id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    assert model.config.id2label == {0: "cat", 1: "dog"}
    assert not model.conversion_report.fresh
    model = convert(timm_weights(labels=3), id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    assert set(model.conversion_report.fresh) == {"classifier.weight", "classifier.bias"}


def test_biases_of_the_attention_may_be_absent(pixels):
    weights = {name: tensor for name, tensor in timm_weights().items() if not name.endswith("qkv.bias")}
    model = convert(weights, patch_pooling="none")
    assert not model.config.qkv_bias
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, timm_logits(weights, pixels, 4), rtol=0, atol=1e-4)


def test_latent_layers_of_a_state_dict(pixels):
    layers = ["full_attention", "latent_attention"]
    model = convert(timm_weights(), layer_types=layers, num_latents=3)
    assert model(pixels).logits.isfinite().all()
    assert not model.conversion_report.fresh


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_dtype_is_kept(dtype):
    model = convert({name: tensor.to(dtype) for name, tensor in timm_weights().items()})
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc_norm.weight": torch.ones(48)}, "timm's VisionTransformer, got: fc_norm.weight is unexpected"),
        ({"blocks.0.attn.q_norm.weight": torch.ones(12)}, "blocks.0.attn.q_norm.weight is unexpected"),
        ({"norm_pre.weight": torch.ones(48)}, "norm_pre.weight is unexpected"),
        ({"pos_embed": torch.zeros(1, 19, 48)}, "each patch of a square image.*got 19 entries"),
        ({"norm.weight": None}, "layernorm.weight is missing"),
        ({"cls_token": None}, "a state dict of timm's VisionTransformer with a class token, got .* without cls_token"),
        ({"blocks.1.mlp.fc1.weight": torch.zeros(7, 48)}, r"fc1.weight has shape \(7, 48\) instead of \(96, 48\)"),
        ({"head.bias": torch.zeros(5, dtype=torch.int8)}, "head.bias holds no floating-point numbers"),
        ({"patch_embed.proj.weight": torch.zeros(48, 3, 8, 4)}, "a square patch_size in the source"),
    ],
)
def test_other_state_dicts_are_refused(change, message):
    weights = {**timm_weights(), **change}
    with pytest.raises(ValueError, match=message):
        convert({name: tensor for name, tensor in weights.items() if tensor is not None})


def test_the_number_of_heads_has_to_be_given():
    with pytest.raises(ValueError, match="num_attention_heads beside a state dict"):
        convert_vit_checkpoint(timm_weights())
    with pytest.raises(ValueError, match="hidden_size that num_attention_heads=5 divides, got 48"):
        convert_vit_checkpoint(timm_weights(), num_attention_heads=5)


def test_an_empty_state_dict_is_refused():
    with pytest.raises(ValueError, match="got 0 entries without cls_token, pos_embed"):
        convert({})
