"""Costs as they are counted, against costs by hand, torch's counter for the whole model, and its parameters."""

import pytest
from torch import nn
from transformers import LevitConfig, LevitForImageClassification, ViTConfig, ViTForImageClassification

from focusvit_hf.benchmark.cost import count_flops, model_costs, stage_costs


VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MIXED = ["full_attention", "latent_attention", "full_attention", "latent_attention"]
VARIANTS = [
    {"layer_types": MIXED, "num_hidden_layers": 4},
    {"embedding_type": "patch", "position_embedding_type": "learned"},
    {"patch_pooling": "none", "classifier_pooling": "cls_patch_mean", "layer_types": ["full_attention"] * 2},
    {"mlp_type": "swiglu", "layer_scale": 1.0, "num_register_tokens": 2, "superpixel_assignment": "hard"},
]


def by_stage(model, resolution=32):
    return {cost.stage: cost for cost in stage_costs(model, resolution)}


def test_products_of_every_stage_of_a_tiny_model_by_hand(tiny_model):
    """
    32 px, cells of 2 px: 256 of them. 16 superpixels, 5 rounds. Stem of 8 channels, width 32, MLP 48, 4 heads. One
    layer of latent attention: 1 class token and 4 latents ask 5 + 16 = 21 keys.
    """
    products = {stage: cost.matmul_flops for stage, cost in by_stage(tiny_model(num_hidden_layers=1)).items()}
    assert products == {
        # Cell x candidate x feature x round, twice (distances, sums), as multiply and add.
        "superpixels": 256 * 9 * 6 * 5 * 2 * 2,
        "embedding": 2 * 256 * (8 * 3 * 4 * 4 + 8 * 8 * 9 + 24 * 8),
        # Projection; the two layers of the position.
        "pooling": 2 * 16 * 16 * 32 + 2 * 16 * (27 * 32 + 32 * 32),
        # Queries and output of 5, keys and values of 21; scores and their sum over values.
        "attention": 2 * 32 * 32 * (5 + 5 + 21 + 21) + 2 * 5 * 21 * 32 * 2,
        "mlp": 2 * 2 * 5 * 32 * 48,
        "head": 2 * 32 * 5,
    }
    assert list(products) == ["superpixels", "embedding", "pooling", "attention", "mlp", "head"]


def test_elements_and_bytes_of_an_mlp_by_hand(tiny_model):
    """Five queries of width 32 through a hidden layer of 48, in float32."""
    mlp = by_stage(tiny_model(num_hidden_layers=1))["mlp"]
    # The activation is all that is no product; each product reads its input and writes its output.
    assert mlp.element_operations == 5 * 48
    assert mlp.activation_bytes == 4 * 5 * ((32 + 48) + (48 + 32))
    assert mlp.weight_bytes == 4 * (2 * 32 * 48 + 48 + 32)


@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
@pytest.mark.parametrize("resolution", [32, 64])
def test_stages_hold_all_that_torch_counts_and_all_parameters(overrides, resolution, tiny_model):
    model = tiny_model(**overrides)
    costs = stage_costs(model, resolution)
    assert sum(cost.matmul_flops for cost in costs) == count_flops(model, resolution)
    assert sum(cost.weight_bytes for cost in costs) == 4 * model.num_parameters()
    assert all(cost.activation_bytes > 0 for cost in costs)


def test_a_vit_costs_the_same_products_with_any_attention():
    model = ViTForImageClassification(ViTConfig(**VIT, intermediate_size=48, num_labels=5))
    found = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        costs = by_stage(model)
        assert list(costs) == ["embedding", "attention", "mlp", "head"]
        found.append([cost.matmul_flops for cost in costs.values()])
    # 16 patches and the class token, two layers.
    attention = 2 * (2 * 4 * 17 * 32 * 32 + 2 * 2 * 17 * 17 * 32)
    assert found[0] == found[1] == [2 * 16 * 32 * 3 * 64, attention, 2 * 2 * 2 * 17 * 32 * 48, 2 * 32 * 5]


def test_what_is_new_in_a_stage_needs_no_formula(tiny_model):
    """Another MLP inside the layer's own counts as MLP, another head as head."""

    class Wide(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.more = inner, nn.Linear(32, 32)

        def forward(self, states):
            return self.more(self.inner(states))

    model = tiny_model(num_hidden_layers=1)
    before = by_stage(model)
    model.focusvit.layers[0].mlp.fc2 = Wide(model.focusvit.layers[0].mlp.fc2)
    model.classifier = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 5))
    after = by_stage(model)
    added = {stage: after[stage].matmul_flops - before[stage].matmul_flops for stage in after}
    head = 2 * (32 * 64 + 64 * 5) - 2 * 32 * 5
    assert added == dict.fromkeys(after, 0) | {"mlp": 2 * 5 * 32 * 32, "head": head}


def test_superpixels_of_scikit_image_are_not_charged_as_those_of_torch(tiny_model):
    """The map is given: what remains is all other stages."""
    costs = model_costs(tiny_model(superpixel_method="skimage"), 32)
    ours = model_costs(tiny_model(), 32)
    assert costs["stages"] == ours["stages"][1:] and ours["stages"][0]["stage"] == "superpixels"
    assert costs["flops"] == ours["flops"] - ours["stages"][0]["matmul_flops"]


def test_counting_twice_gives_the_same_and_leaves_the_model_trainable(tiny_model):
    model = tiny_model()
    model.focusvit.latents.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    assert stage_costs(model, 32) == stage_costs(model, 32)
    assert [parameter.requires_grad for parameter in model.parameters()] == trained and not all(trained)


def test_other_models_have_flops_but_no_stages():
    config = LevitConfig(image_size=64, hidden_sizes=[16, 32, 48], num_attention_heads=[1, 1, 1], depths=[1, 1, 1])
    costs = model_costs(LevitForImageClassification(config), 64)
    assert costs["flops"] > 0 and costs["stages"] is None
