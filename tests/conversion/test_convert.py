"""Converted checkpoints: what they compute, and that every tensor is accounted for."""

import pytest
import torch
import transformers

from focusvit_hf import FocusViTForImageClassification, FocusViTModel, convert_vit_checkpoint
from focusvit_hf.superpixels import slic, tile_ids
from vits import BACKBONES, VITS, make_vit


FULL, LATENT = "full_attention", "latent_attention"


@pytest.fixture(scope="module")
def vit():
    """A function from a name to a dense ViT with perturbed weights, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = make_vit(name)
        return made[name]

    return get


def image(model, size=None, batch=2):
    torch.manual_seed(1)
    side = model.config.image_size
    height, width = size or (side if isinstance(side, (tuple, list)) else (side, side))
    return torch.randn(batch, model.config.num_channels, height, width)


@torch.no_grad()
def outputs(model, pixels, *args, **kwargs):
    return model(pixels, *args, output_hidden_states=True, **kwargs)


def assert_equal_answers(found, expected, tolerance):
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=tolerance)
    for states, others in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(states, others, rtol=0, atol=tolerance)


# What a converted model computes.


@pytest.mark.parametrize(("perturbed", "tolerance"), [(False, 1e-5), (True, 1e-4)], ids=["new", "perturbed"])
@pytest.mark.parametrize("name", VITS)
def test_without_pooling_the_answers_are_the_sources(name, perturbed, tolerance):
    source = make_vit(name, perturbed)
    model = convert_vit_checkpoint(source, patch_pooling="none")
    assert type(model) is FocusViTForImageClassification
    pixels = image(source, batch=1)
    expected = outputs(source, pixels)
    assert_equal_answers(outputs(model, pixels), expected, tolerance)
    if perturbed:
        assert expected.logits.abs().max() > 0.1


@pytest.mark.parametrize("size", [(224, 224), (140, 196), (518, 560)])
@pytest.mark.parametrize("name", ["dinov2-tiny", "dinov2-swiglu", "dinov2-registers"])
def test_other_resolutions_of_dinov2(vit, name, size):
    source = vit(name)
    model = convert_vit_checkpoint(source, patch_pooling="none")
    pixels = image(source, size, batch=1)
    assert_equal_answers(outputs(model, pixels), outputs(source, pixels), 1e-4)


@pytest.mark.parametrize("size", [(256, 256), (160, 288)])
@pytest.mark.parametrize("name", ["vit-tiny", "deit-tiny"])
def test_other_resolutions_of_vit(vit, name, size):
    source = vit(name)
    model = convert_vit_checkpoint(source, patch_pooling="none")
    pixels = image(source, size)
    expected = outputs(source, pixels, interpolate_pos_encoding=True)
    assert_equal_answers(outputs(model, pixels), expected, 1e-4)


@pytest.mark.parametrize("name", ["vit-tiny", "deit-base-distilled", "dinov2-swiglu", "dinov2-registers"])
def test_one_superpixel_a_patch_gives_the_sources_answers(vit, name):
    source = vit(name)
    side, patch = source.config.image_size, source.config.patch_size
    side = min(side, 140) if patch == 14 else side
    grid, cells = side // patch, side // (2 if patch == 14 else 4)
    pixels = image(source, (side, side))
    model = convert_vit_checkpoint(source, num_superpixels=grid**2)
    ids = tile_ids((grid, grid), cells, cells).expand(2, -1, -1)
    assert_equal_answers(outputs(model, pixels, superpixel_ids=ids), outputs(source, pixels), 1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_gives_a_backbone(name):
    source = make_vit(name)
    model = convert_vit_checkpoint(source, patch_pooling="none")
    assert type(model) is FocusViTModel
    pixels = image(source)
    found, expected = outputs(model, pixels), outputs(source, pixels)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["vit-backbone", "deit-backbone"])
def test_a_backbone_without_pooling_layer(name):
    source = make_vit(name, model_options={"add_pooling_layer": False})
    model = convert_vit_checkpoint(source, patch_pooling="none")
    found, expected = outputs(model, image(source)), outputs(source, image(source))
    assert not model.config.add_pooling_layer
    assert torch.equal(found.pooler_output, found.last_hidden_state[:, 0])
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-4)


def test_the_table_can_be_brought_to_another_size(vit):
    for name in ("dinov2-tiny", "dinov2-registers"):
        source = vit(name)
        model = convert_vit_checkpoint(source, patch_pooling="none", image_size=224)
        assert model.get_parameter("focusvit.embeddings.position.table").shape[1] == 1 + 16 * 16
        pixels = image(source, (224, 224))
        assert_equal_answers(outputs(model, pixels), outputs(source, pixels), 1e-4)
        assert "interpolated from 37 x 37 to 16 x 16" in str(model.conversion_report)


# With superpixels and latents.


@pytest.mark.parametrize(
    ("name", "number"), [("vit-tiny", 49), ("deit-tiny", 49), ("dinov2-swiglu", 25), ("vit-other", 24)]
)
def test_superpixels_run_at_once(vit, name, number):
    source = vit(name)
    model = convert_vit_checkpoint(source)
    config = model.config
    assert (config.patch_pooling, config.embedding_type, config.position_embedding_type) == (
        "superpixel",
        "patch",
        "learned",
    )
    assert config.layer_types == [FULL, FULL]
    # One for each 2 x 2 patches.
    assert config.num_superpixels == number
    assert config.cell_size == {16: 4, 14: 2, 8: 2}[config.patch_size]
    answer = outputs(model, image(source))
    assert answer.logits.isfinite().all()
    assert answer.hidden_states[0].shape[1] == config.num_prefix_tokens + number
    assert not model.conversion_report.fresh


def test_the_mean_of_the_tokens_is_weighted_by_area(vit, photographs):
    model = convert_vit_checkpoint(vit("dinov2-swiglu"), num_superpixels=20)
    images = photographs[:2, :, :140, :140]
    ids = slic(images, 20, cell_size=2)
    pixels = images / 127.5 - 1
    answer = outputs(model, pixels, superpixel_ids=ids)
    states = model.focusvit.layernorm(answer.hidden_states[-1])
    share = torch.nn.functional.one_hot(ids.flatten(1), 20).float().mean(dim=1)
    mean = (share[..., None] * states[:, 1:]).sum(dim=1)
    expected = model.classifier(torch.cat((states[:, 0], mean), dim=1))
    torch.testing.assert_close(answer.logits, expected, rtol=0, atol=1e-5)
    unweighted = model.classifier(torch.cat((states[:, 0], states[:, 1:].mean(dim=1)), dim=1))
    assert (expected - unweighted).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["vit-tiny", "deit-base-distilled", "dinov2-swiglu", "dinov2-registers"])
@pytest.mark.parametrize("first", [0, 1])
def test_latent_layers_take_the_sources_tensors(vit, name, first):
    source = vit(name)
    size = (140, 140) if "dinov2" in name else (224, 224)
    layers = [FULL] * first + [LATENT] * (2 - first)
    model = convert_vit_checkpoint(source, layer_types=layers, num_latents=6, num_superpixels=25)
    plain = convert_vit_checkpoint(source).state_dict()
    added = {}
    for key, tensor in model.state_dict().items():
        if key in plain:
            assert torch.equal(tensor, plain[key]), key
        else:
            added[key] = tensor
    for key, tensor in added.items():
        if key != "focusvit.latents":
            assert torch.equal(tensor, plain[key.replace("layernorm_context", "layernorm_before")]), key
    assert len(added) == 1 + 2 * (2 - first)
    answer = outputs(model, image(source, size))
    assert answer.logits.isfinite().all()
    assert answer.hidden_states[-1].shape[1] == model.config.num_prefix_tokens + 6
    report = model.conversion_report
    assert {f"focusvit.{key}" for key in report.derived} == set(added)


def test_latents_start_as_tokens_of_an_empty_image(vit):
    source = vit("dinov2-swiglu")
    empty = torch.zeros(1, 3, 140, 140)
    states = outputs(source, empty).hidden_states[1][:, 1:].unflatten(1, (10, 10))
    layers = [FULL, LATENT]
    model = convert_vit_checkpoint(source, layer_types=layers, num_latents=4)
    # The centre of a tile of 5 x 5 patches is the centre of a patch.
    torch.testing.assert_close(model.focusvit.latents[0], states[0, 2::5, 2::5].flatten(0, 1), rtol=0, atol=1e-5)
    many = convert_vit_checkpoint(source, layer_types=layers, num_latents=7).focusvit.latents
    assert many.shape == (1, 7, 192)
    assert torch.cdist(many[0], many[0]).add(torch.eye(7)).min() > 0.1
    assert convert_vit_checkpoint(source, layer_types=layers, num_latents=1).focusvit.latents.isfinite().all()


# Every tensor is accounted for.


def accounted(model, source):
    """The names of the model and of the source that the report knows."""
    report = model.conversion_report
    parts = (report.mapped, report.derived, report.fresh)
    names = [key for part in parts for key in part]
    assert len(names) == len(set(names))
    assert set(names) == {name.removeprefix("focusvit.") for name in model.state_dict()}
    return report, set(source.state_dict()) - set(report.mapped.values()) - set(report.dropped)


@pytest.mark.parametrize("name", [*VITS, *BACKBONES])
def test_every_tensor_is_accounted_for(name):
    source = make_vit(name)
    report, missing = accounted(convert_vit_checkpoint(source), source)
    assert not missing
    assert not report.fresh
    assert not report.derived
    assert {key.rpartition(".")[2] for key in report.dropped} <= {"mask_token"}


def test_what_the_overrides_drop_is_told(caplog):
    source = make_vit("deit-backbone")
    transformers.utils.logging.enable_propagation()
    try:
        model = convert_vit_checkpoint(
            source, position_embedding_type="dynamic", embedding_type="conv", add_pooling_layer=False
        )
    finally:
        transformers.utils.logging.disable_propagation()
    report, missing = accounted(model, source)
    # They went into the tokens, and the table is dropped.
    assert missing == {"embeddings.cls_token", "embeddings.distillation_token"}
    assert report.dropped == {
        "embeddings.position_embeddings": "position_embedding_type='dynamic'",
        "embeddings.patch_embeddings.projection.weight": "embedding_type='conv'",
        "embeddings.patch_embeddings.projection.bias": "embedding_type='conv'",
        "pooler.dense.weight": "add_pooling_layer=False",
        "pooler.dense.bias": "add_pooling_layer=False",
    }
    assert {".".join(key.split(".")[:2]) for key in report.fresh} == {
        "embeddings.units",
        "embeddings.projection",
        "embeddings.position",
    }
    table = source.embeddings.position_embeddings
    assert torch.equal(model.embeddings.cls_token, source.embeddings.cls_token + table[:, :1])
    assert torch.equal(model.embeddings.distillation_token, source.embeddings.distillation_token + table[:, 1:2])
    assert "Not all of the source was kept" in caplog.text
    assert "dropped: pooler.dense.weight: add_pooling_layer=False" in caplog.text
    assert outputs(model, image(source)).last_hidden_state.isfinite().all()


def test_a_conversion_that_keeps_all_is_quiet(vit, caplog):
    transformers.utils.logging.enable_propagation()
    try:
        convert_vit_checkpoint(vit("dinov2-swiglu"), layer_types=[FULL, LATENT])
    finally:
        transformers.utils.logging.disable_propagation()
    assert not caplog.text


def test_another_number_of_labels_gives_a_new_classifier(vit):
    source = vit("deit-base-distilled")
    model = convert_vit_checkpoint(source, num_labels=3)
    assert model.classifier.weight.shape == model.distillation_classifier.weight.shape == (3, 768)
    report = model.conversion_report
    assert set(report.fresh.values()) == {"num_labels=3"}
    assert set(report.dropped) == {
        f"{head}.{part}" for head in ("cls_classifier", "distillation_classifier") for part in ("weight", "bias")
    }
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    kept = convert_vit_checkpoint(source, num_labels=7)
    assert torch.equal(kept.classifier.weight, source.cls_classifier.weight)
    named = convert_vit_checkpoint(source, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    assert named.config.num_labels == 2


def test_a_classifier_without_labels():
    source = make_vit("vit-tiny", num_labels=0)
    model = convert_vit_checkpoint(source, patch_pooling="none")
    torch.testing.assert_close(model(image(source)).logits, source(image(source)).logits, rtol=0, atol=1e-4)


def test_the_mask_token_is_dropped_with_its_reason():
    source = make_vit("vit-backbone", model_options={"use_mask_token": True})
    report = convert_vit_checkpoint(source).conversion_report
    assert report.dropped == {"embeddings.mask_token": "stands for masked patches in pre-training only"}


# What else comes along.


def test_labels_and_settings_come_along():
    labels = {0: "cat", 1: "dog", 2: "ship"}
    source = make_vit(
        "vit-tiny",
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
        problem_type="multi_label_classification",
        hidden_act="relu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.2,
        initializer_range=0.03,
        layer_norm_eps=1e-5,
    )
    config = convert_vit_checkpoint(source).config
    assert config.id2label == labels
    assert config.label2id == {"cat": 0, "dog": 1, "ship": 2}
    for name in (
        "problem_type",
        "hidden_act",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "initializer_range",
        "layer_norm_eps",
        "image_size",
        "patch_size",
        "intermediate_size",
    ):
        assert getattr(config, name) == getattr(source.config, name), name
    assert config.image_mean == [0.5, 0.5, 0.5]
    assert convert_vit_checkpoint(make_vit("dinov2-backbone")).config.image_std == [0.229, 0.224, 0.225]
    assert convert_vit_checkpoint(source, image_mean=0.4).config.image_mean == [0.4, 0.4, 0.4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_mode_and_attention_are_kept(dtype):
    source = make_vit("vit-tiny").to(dtype).train()
    source.set_attn_implementation("eager")
    model = convert_vit_checkpoint(source, layer_types=[FULL, LATENT])
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
    assert model.training and source.training
    assert model.config._attn_implementation == "eager"
    assert not convert_vit_checkpoint(source.eval()).training
    model = convert_vit_checkpoint(source, attn_implementation="sdpa")
    assert model.config._attn_implementation == "sdpa"
    assert source.config._attn_implementation == "eager"


def test_the_source_is_neither_changed_nor_shared():
    source = make_vit("dinov2-registers")
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    config = source.config.to_dict()
    model = convert_vit_checkpoint(source, layer_types=[FULL, LATENT])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3)
    model.config.id2label[0] = "changed"
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert source.config.to_dict() == config
    assert all(parameter.requires_grad for parameter in source.parameters())
    # Nor do copies share memory with each other.
    storages = [parameter.data_ptr() for parameter in model.parameters()]
    assert len(storages) == len(set(storages))


# What is refused.
