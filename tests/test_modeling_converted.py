"""The parts that converted models bring along: prefix tokens, LayerScale, SwiGLU, pooling layer and other heads."""

import pytest
import torch

from compiled import check_gradients_of_one_graph
from focusvit_hf import FocusViTModel
from focusvit_hf.superpixels import tile_ids
from saved import saved_and_loaded


FULL, LATENT = "full_attention", "latent_attention"
# What converted models bring along: each field of theirs is in one of the two.
CONVERTED = {
    "deit": {
        "use_distillation_token": True,
        "classifier_pooling": "cls_dist_mean",
        "embedding_type": "patch",
        "position_embedding_type": "learned",
    },
    "dinov2": {
        "num_register_tokens": 2,
        "layer_scale": 0.5,
        "mlp_type": "swiglu",
        "classifier_pooling": "cls_patch_mean",
        "embedding_type": "patch",
        "position_embedding_type": "learned",
        "position_antialias": True,
    },
}
STACKS = {"full": [FULL] * 3, "latent": [LATENT] * 3, "mixed": [FULL, LATENT, FULL]}
VARIANTS = [
    pytest.param({**options, "layer_types": layers, "num_hidden_layers": 3}, id=f"{name}-{stack}")
    for name, options in CONVERTED.items()
    for stack, layers in STACKS.items()
]
CLOSE = {"rtol": 0, "atol": 1e-5}


@torch.no_grad()
def logits(model, *args, **kwargs):
    return model(*args, **kwargs).logits


@pytest.mark.parametrize("name", CONVERTED)
@pytest.mark.parametrize(
    ("layers", "lengths"),
    [
        ([FULL] * 2, [16, 16, 16]),
        ([LATENT] * 2, [4, 4, 4]),
        ([FULL, LATENT, FULL, LATENT], [16, 16, 4, 20, 4]),
        ([LATENT, LATENT, FULL, FULL, LATENT], [4, 4, 4, 20, 20, 4]),
    ],
)
def test_the_prefix_goes_with_the_query_stream(tiny_model, pixels, name, layers, lengths):
    model = tiny_model(**CONVERTED[name], layer_types=layers, num_hidden_layers=len(layers)).focusvit
    prefix = {"deit": 2, "dinov2": 3}[name]
    with torch.no_grad():
        outputs = model(pixels, output_hidden_states=True)
    assert [states.shape[1] for states in outputs.hidden_states] == [prefix + length for length in lengths]
    embeddings = model.embeddings
    tokens = (embeddings.cls_token, embeddings.distillation_token if name == "deit" else embeddings.register_tokens)
    expected = torch.cat(tokens, dim=1)
    # Registers have no position.
    placed = 2 if name == "deit" else 1
    expected = torch.cat((expected[:, :placed] + embeddings.position.table[:, :placed], expected[:, placed:]), dim=1)
    torch.testing.assert_close(outputs.hidden_states[0][:, :prefix], expected.expand(4, -1, -1))
    assert embeddings.position.table.shape[1] == placed + 16


@pytest.mark.parametrize("variant", VARIANTS)
def test_numbering_batch_and_tiles(tiny_model, pixels, ids, variant):
    model = tiny_model(**variant)
    base = logits(model, pixels, ids)
    torch.testing.assert_close(logits(model, pixels, torch.randperm(16)[ids]), base, **CLOSE)
    torch.testing.assert_close(torch.cat([logits(model, one[None]) for one in pixels]), logits(model, pixels), **CLOSE)
    assert (logits(model, pixels, ids.roll(1, dims=0)) - base).abs().max() > 1e-3
    dense = tiny_model(**variant, patch_pooling="none")
    patches = tile_ids((4, 4), 16, 16).expand(4, -1, -1)
    torch.testing.assert_close(logits(model, pixels, patches), logits(dense, pixels), **CLOSE)
    assert logits(model, pixels, torch.zeros_like(ids)).isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_has_a_gradient(tiny_model, pixels, variant):
    model = tiny_model(**variant).train()
    model(pixels, labels=torch.arange(4)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > (0 if "k_proj.bias" in name else 1e-7), name


@pytest.mark.parametrize("name", CONVERTED)
def test_one_graph_from_pixels_to_loss(tiny_model, pixels, name):
    model = tiny_model(**CONVERTED[name], layer_types=STACKS["mixed"], num_hidden_layers=3).train()
    check_gradients_of_one_graph(model, pixels)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_model_gives_the_same_answer(tiny_model, pixels, tmp_path, variant):
    model = tiny_model(**variant)
    assert torch.equal(logits(saved_and_loaded(model, tmp_path), pixels), logits(model, pixels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_is_near_float32(tiny_model, pixels, variant, dtype):
    model = tiny_model(**{**variant, "initializer_range": 0.05})
    expected = logits(model, pixels)
    found = logits(model.to(dtype), pixels)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("size", [(64, 64), (48, 32), (16, 16)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_resolution(tiny_model, variant, size):
    model = tiny_model(**variant, patch_pooling="none")
    assert logits(model, torch.randn(2, 3, *size)).isfinite().all()


def test_the_mean_of_the_tokens(tiny_model, pixels, ids):
    share = torch.nn.functional.one_hot(ids.flatten(1), 16).float().mean(dim=1)
    for layers, expected in (
        ([FULL, FULL], lambda states: (share[..., None] * states[:, -16:]).sum(dim=1)),
        ([LATENT, FULL], lambda states: (share[..., None] * states[:, -16:]).sum(dim=1)),
        ([FULL, LATENT], lambda states: states[:, -4:].mean(dim=1)),
    ):
        model = tiny_model(**CONVERTED["dinov2"], layer_types=layers).focusvit
        with torch.no_grad():
            outputs = model(pixels, ids)
        torch.testing.assert_close(outputs.patch_mean, expected(outputs.last_hidden_state), **CLOSE)
    with torch.no_grad():
        assert tiny_model().focusvit(pixels).patch_mean is None


def test_two_heads_are_averaged(tiny_model, pixels):
    model = tiny_model(**CONVERTED["deit"])
    with torch.no_grad():
        states = model.focusvit(pixels).last_hidden_state
        expected = (model.classifier(states[:, 0]) + model.distillation_classifier(states[:, 1])) / 2
    torch.testing.assert_close(logits(model, pixels), expected)
    headless = tiny_model(**CONVERTED["deit"], num_labels=0)
    with torch.no_grad():
        states = headless.focusvit(pixels).last_hidden_state
    torch.testing.assert_close(logits(headless, pixels), states[:, :2].mean(dim=1))


def test_layer_scale_starts_as_told_and_scales_the_branches(tiny_model, pixels):
    model = tiny_model(layer_scale=0.25)
    factors = [parameter for name, parameter in model.named_parameters() if name.endswith("_scale.factor")]
    assert len(factors) == 4
    assert all(torch.equal(factor, torch.full((32,), 0.25)) for factor in factors)
    plain = tiny_model()
    plain.load_state_dict({name: weight for name, weight in model.state_dict().items() if "_scale" not in name})
    with torch.no_grad():
        for layer in plain.focusvit.layers:
            for last in (layer.attention.o_proj, layer.mlp.fc2):
                last.weight *= 0.25
                last.bias *= 0.25
    torch.testing.assert_close(logits(model, pixels), logits(plain, pixels), **CLOSE)


def test_swiglu_is_what_its_paper_says(tiny_model):
    mlp = tiny_model(mlp_type="swiglu").focusvit.layers[0].mlp
    states = torch.randn(2, 3, 32)
    gate, up = mlp.gate_proj(states), mlp.up_proj(states)
    torch.testing.assert_close(mlp(states), mlp.down_proj(gate * torch.sigmoid(gate) * up))
    assert mlp.down_proj.weight.shape == (32, 48)


def test_the_pooling_layer_is_the_backbones_alone(tiny_config, tiny_model, pixels, tmp_path):
    config = tiny_config(add_pooling_layer=True)
    backbone = FocusViTModel(config).eval()
    with torch.no_grad():
        outputs = backbone(pixels)
    expected = torch.tanh(backbone.pooler.dense(outputs.last_hidden_state[:, 0]))
    torch.testing.assert_close(outputs.pooler_output, expected)
    backbone.save_pretrained(tmp_path)
    loaded, info = FocusViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(pixels).pooler_output, outputs.pooler_output)
    assert not any("pooler" in name for name in tiny_model(add_pooling_layer=True).state_dict())
    assert not FocusViTModel(config, add_pooling_layer=False).state_dict().keys() & {"pooler.dense.weight"}


def test_new_tokens_are_not_left_at_zero(tiny_config):
    config = tiny_config(use_distillation_token=True, num_register_tokens=3)
    embeddings = FocusViTModel(config).embeddings
    for token in (embeddings.cls_token, embeddings.distillation_token, embeddings.register_tokens):
        assert (token != 0).any(dim=-1).all()


def test_antialiasing_matters_only_where_the_table_is_interpolated(tiny_model):
    options = {**CONVERTED["dinov2"], "patch_pooling": "none"}
    smooth, plain = tiny_model(**options), tiny_model(**{**options, "position_antialias": False})
    native, small = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 16, 16)
    assert torch.equal(logits(smooth, native), logits(plain, native))
    assert not torch.allclose(logits(smooth, small), logits(plain, small))
