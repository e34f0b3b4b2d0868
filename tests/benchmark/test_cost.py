"""Costs by formula against costs by hand, by torch's counter, and by the parameters of the models."""

import pytest
import torch
from transformers import LevitConfig, LevitForImageClassification, ViTConfig, ViTForImageClassification

from focusvit_hf.benchmark.cost import StageCost, count_flops, model_costs, stage_costs
from focusvit_hf.benchmark.subjects import find_subject


VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MIXED = ["latent_attention", "full_attention", "latent_attention", "full_attention"]
VARIANTS = [
    {},
    {"layer_types": ["full_attention", "full_attention"]},
    {"layer_types": MIXED, "num_hidden_layers": 4},
    {"layer_types": ["full_attention", *MIXED], "num_hidden_layers": 5},
    {"embedding_type": "patch"},
    {"embedding_type": "patch", "position_embedding_type": "learned"},
    {"position_embedding_type": "learned"},
    {"patch_pooling": "grid"},
    {"patch_pooling": "none"},
    {"patch_pooling": "none", "embedding_type": "patch", "position_embedding_type": "learned"},
    {"attention_area_bias": True},
    {"classifier_pooling": "cls_patch_mean"},
    {"classifier_pooling": "cls_patch_mean", "layer_types": ["full_attention", "full_attention"]},
]


def by_stage(config, resolution=32):
    return {cost.stage: cost for cost in stage_costs(config, resolution)}


def test_every_stage_of_a_tiny_model_by_hand(tiny_config):
    """
    32 px, cells of 2 px: 256 of them. 16 superpixels, 5 rounds. Stem of 8 channels, width 32, MLP 48, 4 heads. One
    layer of latent attention: 1 class token and 4 latents ask 5 + 16 = 21 keys.
    """
    costs = by_stage(tiny_config(num_hidden_layers=1))
    assert list(costs) == ["superpixels", "embedding", "pooling", "attention", "mlp", "head"]
    assert costs["superpixels"] == StageCost(
        "superpixels",
        # Cell x candidate x feature x round, twice (distances, sums), as multiply and add.
        matmul_flops=256 * 9 * 6 * 5 * 2 * 2,
        # 3072 pixel values added up. 256 cells: three channels that undo the normalisation (4), colour (42), 5 rounds
        # of a minimum and a comparison with nine candidates, the id. 16 centres, 5 rounds: means (10), norm (9),
        # scaled (6), nine candidates and the sums of nine tiles of six features.
        element_operations=3072 + 256 * (12 + 42 + 5 * 18 + 1) + 16 * 5 * (10 + 9 + 6 + 9 * 6 + 9 * 6),
        # Pixels read, colours written, six features read each round; ids of 8 bytes.
        activation_bytes=4 * (3072 + 256 * 3 + 256 * 6 * 5) + 8 * 256,
    )
    weights = 8 * 3 * 4 * 4 + 8 * 8 * 9 + 24 * 8
    assert costs["embedding"] == StageCost(
        "embedding",
        matmul_flops=2 * 256 * weights,
        # Two ReLUs, the position added.
        element_operations=256 * 8 * 3,
        # Pixels read; cells written, read and written.
        activation_bytes=4 * (3072 + 3 * 256 * 8),
        # Factor and bias of two normalisations, bias of the position.
        weight_bytes=4 * (weights + 4 * 8 + 8),
    )
    assert costs["pooling"] == StageCost(
        "pooling",
        # Projection; the two layers of the position.
        matmul_flops=2 * 16 * 16 * 32 + 2 * 16 * (27 * 32 + 32 * 32),
        # Five moments of cells added up; maximum, subtract, scale, exponential and two sums of units; 5 for each mean
        # and maximum; 36 for Fourier features, 6 for logarithms, GELU and sum of 32.
        element_operations=256 * 5 + 256 * 8 * 6 + 16 * 8 * 5 + 16 * (36 + 6 + 32 * 5),
        # Ids; units read; pooled written and read; the hidden layer of the position too; tokens written.
        activation_bytes=8 * 256 + 4 * (256 * 8 + 2 * 16 * 16 + 2 * 16 * 32 + 16 * 32),
        weight_bytes=4 * (16 * 32 + 32 + 27 * 32 + 32 + 32 * 32 + 32),
    )
    assert costs["attention"] == StageCost(
        "attention",
        # Queries and output of 5, keys and values of 21; scores and their sum over values.
        matmul_flops=2 * 32 * 32 * (5 + 5 + 21 + 21) + 2 * 5 * 21 * 32 * 2,
        # Norms of 21, residual of 5; softmax of 4 heads.
        element_operations=32 * (7 * 21 + 5) + 4 * 5 * 21 * 6,
        # Read 21; queries, keys and values written and read; the sum written and read, the residual read, the output
        # written.
        activation_bytes=4 * 32 * (21 + 2 * (5 + 21 + 21) + 2 * 5 + 5 + 5),
        weight_bytes=4 * (4 * (32 * 32 + 32) + 2 * 2 * 32),
    )
    assert costs["mlp"] == StageCost(
        "mlp",
        matmul_flops=2 * 2 * 5 * 32 * 48,
        # Norm and residual; GELU.
        element_operations=5 * (32 * 8 + 48 * 4),
        # Input read; hidden layer written and read; residual read, output written.
        activation_bytes=4 * 5 * (32 + 2 * 48 + 2 * 32),
        weight_bytes=4 * (2 * 32 * 48 + 48 + 32 + 2 * 32),
    )
    assert costs["head"] == StageCost(
        "head",
        matmul_flops=2 * 32 * 5,
        element_operations=5 * 32 * 7,
        activation_bytes=4 * (2 * 5 * 32 + 32 + 5),
        weight_bytes=4 * (32 * 5 + 5 + 2 * 32),
    )


@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
@pytest.mark.parametrize("resolution", [32, 64])
def test_products_are_those_that_torch_counts(overrides, resolution, tiny_model):
    model = tiny_model(**overrides)
    pixels = torch.rand(1, 3, resolution, resolution)
    given = {}
    if model.config.patch_pooling == "superpixel":
        given["superpixel_ids"] = model.focusvit.compute_superpixel_ids(pixels)
    costs = by_stage(model.config, resolution)
    products = sum(cost.matmul_flops for stage, cost in costs.items() if stage != "superpixels")
    assert count_flops(model, pixels, **given) == products


@pytest.mark.parametrize("patch_size", [8, 16])
def test_a_vit_costs_what_torch_counts_with_any_attention(patch_size):
    config = ViTConfig(**{**VIT, "patch_size": patch_size}, intermediate_size=48, num_labels=5)
    model = ViTForImageClassification(config)
    products = sum(cost.matmul_flops for cost in stage_costs(config, 32))
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        assert count_flops(model, torch.zeros(1, 3, 32, 32)) == products
    assert sum(cost.weight_bytes for cost in stage_costs(config, 32)) == 4 * model.num_parameters()


def test_the_mean_beside_the_class_token_by_hand(tiny_config):
    """Width 32, five classes: latents (4) are added up, tokens (16) multiplied by their areas."""
    for kind, products, operations, averaged in (("latent", 0, 4 * 32, 4), ("full", 2 * 16 * 32, 0, 16)):
        layers = {"layer_types": [f"{kind}_attention"], "num_hidden_layers": 1}
        plain, mean = (
            by_stage(tiny_config(**layers, classifier_pooling=pooling))["head"]
            for pooling in ("cls", "cls_patch_mean")
        )
        assert mean.matmul_flops - plain.matmul_flops == 2 * 32 * 5 + products
        assert mean.element_operations - plain.element_operations == operations
        assert mean.activation_bytes - plain.activation_bytes == 4 * (32 + (averaged + 1) * 32)
        assert mean.weight_bytes - plain.weight_bytes == 4 * 32 * 5


@pytest.mark.parametrize(
    "overrides",
    [{"mlp_type": "swiglu"}, {"layer_scale": 1.0}, {"num_register_tokens": 2}, {"superpixel_assignment": "hard"}],
    ids=str,
)
def test_what_the_formulas_do_not_know_is_not_counted(overrides, tiny_config):
    assert stage_costs(tiny_config(**overrides), 32) is None


@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
def test_weights_are_all_but_class_token_and_latents(overrides, tiny_model):
    model = tiny_model(**overrides)
    tokens = model.focusvit.embeddings.cls_token.numel()
    tokens += model.focusvit.latents.numel() if hasattr(model.focusvit, "latents") else 0
    weights = sum(cost.weight_bytes for cost in stage_costs(model.config, 32))
    assert weights == 4 * (model.num_parameters() - tokens)


@pytest.mark.parametrize("name", ["ViT-Ti/16", "ViT-Ti/32"])
def test_weights_of_the_dense_baseline_are_its_parameters(name):
    subject = find_subject(name)
    config = subject.configure(224)
    with torch.device("meta"):
        model = subject.model_class(config)
    assert sum(cost.weight_bytes for cost in stage_costs(config, 224)) == 4 * model.num_parameters()


def test_a_field_of_focusvits_means_nothing_in_a_vit():
    config = ViTConfig(**VIT, intermediate_size=48, num_labels=5)
    stages = stage_costs(config, 32)
    config.classifier_pooling = "cls_patch_mean"
    assert stage_costs(config, 32) == stages


def test_superpixels_of_scikit_image_are_not_charged_as_those_of_torch(tiny_model):
    """The map is given: what remains are the products of all other stages."""
    costs = model_costs(tiny_model(superpixel_method="skimage"), 32)
    ours = model_costs(tiny_model(), 32)
    assert costs["stages"] == [stage for stage in ours["stages"] if stage["stage"] != "superpixels"]
    assert costs["flops"] == sum(stage["matmul_flops"] for stage in costs["stages"]) < ours["flops"]


def test_counting_leaves_the_model_trainable(tiny_model):
    model = tiny_model()
    model.focusvit.latents.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    count_flops(model, torch.zeros(1, 3, 32, 32))
    assert [parameter.requires_grad for parameter in model.parameters()] == trained and not all(trained)


def test_costs_of_a_model_are_ready_for_json(tiny_model):
    model = tiny_model()
    costs = model_costs(model, 32)
    assert costs["parameters"] == model.num_parameters()
    assert costs["flops"] == count_flops(model, torch.zeros(1, 3, 32, 32))
    assert [stage["stage"] for stage in costs["stages"]] == list(by_stage(model.config))


def test_other_models_have_flops_but_no_stages():
    config = LevitConfig(image_size=64, hidden_sizes=[16, 32, 48], num_attention_heads=[1, 1, 1], depths=[1, 1, 1])
    costs = model_costs(LevitForImageClassification(config), 64)
    assert costs["flops"] > 0 and costs["stages"] is None
