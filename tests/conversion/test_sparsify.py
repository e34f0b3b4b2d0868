"""A ViT whose tokens leave between the layers, without training: what conversion sets, and says of cost."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, convert_vit_checkpoint
from focusvit_hf.benchmark.cost import count_flops
from focusvit_hf.cli.__main__ import main
from focusvit_hf.conversion.cost import cost_note, flops_of_an_image
from vits import make_vit


SIZES = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
IMAGES = {"image_size": 64, "patch_size": 8, "num_labels": 3}


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return make_vit("vit-tiny", **SIZES, **IMAGES).eval()


def test_tokens_that_leave_between_the_layers_are_patches(vit):
    model = convert_vit_checkpoint(vit, sparsification_layers=[1, 3], keep_ratio=0.5)
    config = model.config
    assert (config.patch_pooling, config.sparsification_relevance) == ("none", "attention")
    assert not model.conversion_report.fresh
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert [places.shape[1] for places in model(pixels).kept_tokens] == [32, 16]
        model.config.keep_ratio = 1.0
        torch.testing.assert_close(model(pixels).logits, vit(pixels).logits, rtol=0, atol=1e-5)


def test_pooling_that_is_asked_for_stays_and_takes_each_patch_whole(vit):
    both = convert_vit_checkpoint(vit, sparsification_layers=[2], num_superpixels=16).config
    assert (both.patch_pooling, both.superpixel_assignment) == ("superpixel", "hard")
    assert convert_vit_checkpoint(vit, superpixel_assignment="soft").config.superpixel_assignment == "soft"
    at_depth = convert_vit_checkpoint(vit, pooling_layer=2, num_superpixels=16, patch_pooling="grid")
    assert at_depth.config.pooling_layer == 2


def test_predictors_are_new_and_said_to_be(vit):
    report = convert_vit_checkpoint(
        vit, sparsification_layers=[2], sparsification_relevance="learned"
    ).conversion_report
    assert set(report.fresh.values()) == {"sparsification_relevance='learned'"}
    assert all(name.startswith("sparsification.predictors.0.") for name in report.fresh)


def test_gates_are_new_and_said_to_be(vit):
    kinds = ["full_attention"] * 3 + ["select_pack_attention"]
    report = convert_vit_checkpoint(vit, patch_pooling="none", layer_types=kinds, select_budget=0.5).conversion_report
    assert set(report.fresh.values()) == {"layer_types has 'select_pack_attention'"}
    assert {name.split(".")[2] for name in report.fresh} == {"gate"}


def test_a_budget_is_counted_where_a_threshold_selects():
    kinds = ["full_attention"] * 6 + ["select_pack_attention"] * 6
    costs = [
        flops_of_an_image(FocusViTConfig.from_preset("focusvit-tiny-dense", layer_types=kinds, **fields))
        for fields in (
            {"select_budget": 0.5},
            {"select_budget": 0.5, "select_threshold": 0.5, "select_supervision": "budget"},
            {"select_threshold": 0.5},
        )
    ]
    assert costs[0] == costs[1] < 0.8 * costs[2]
    assert "% less than the source's" in cost_note(FocusViTConfig.from_preset("spa-tiny"))


@pytest.mark.parametrize(
    "overrides",
    [
        {"patch_pooling": "none"},
        {"sparsification_layers": [1, 3]},
        {"sparsification_layers": [1, 2, 3], "sparsification_mode": "merge"},
        {"num_superpixels": 16, "pooling_layer": 2},
        {"patch_pooling": "grid", "num_superpixels": 16},
    ],
    ids=str,
)
def test_costs_are_those_of_a_pass(vit, overrides):
    model = convert_vit_checkpoint(vit, **overrides, attn_implementation="eager").eval()
    inputs = {"pixel_values": torch.zeros(1, 3, 64, 64)}
    if model.config.patch_pooling == "superpixel":
        inputs["superpixel_ids"] = torch.arange(16).view(1, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    assert flops_of_an_image(model.config) == counter.get_total_flops()
    note = cost_note(model.config)
    assert ("as the source" in note) == (overrides == {"patch_pooling": "none"})
    assert "more than" not in note


def test_the_command_gives_a_faster_model_at_once(vit, tmp_path, capsys):
    vit.save_pretrained(tmp_path / "vit")
    source = str(tmp_path / "vit")
    main(["convert", source, str(tmp_path / "a"), "--keep-ratio", "0.7", "--sparsification-layers", "1", "2"])
    told = capsys.readouterr().out
    assert "% less than the source's" in told
    assert f"--model_name_or_path {tmp_path / 'a'} --teacher_model_name_or_path {source}" in told
    loaded = FocusViTForImageClassification.from_pretrained(tmp_path / "a")
    assert (loaded.config.sparsification_layers, loaded.config.keep_ratio) == ([1, 2], 0.7)
    main(["convert", source, str(tmp_path / "b"), "--sparsification-mode", "merge"])
    config = FocusViTForImageClassification.from_pretrained(tmp_path / "b").config
    assert (config.sparsification_layers, config.sparsification_mode) == ([1, 2, 3], "merge")
    main(["convert", source, str(tmp_path / "learned"), "--sparsification-relevance", "learned"])
    config = FocusViTForImageClassification.from_pretrained(tmp_path / "learned").config
    assert (config.sparsification_layers, config.sparsification_relevance) == ([1, 2, 3], "learned")
    main(["convert", source, str(tmp_path / "c"), "--keep-ratio", "0.5", "0.4", "--sparsification-layers", "1", "2"])
    assert FocusViTForImageClassification.from_pretrained(tmp_path / "c").config.keep_ratio == [0.5, 0.4]
    capsys.readouterr()
    assert main(["convert", source, str(tmp_path / "d"), "--keep-ratio", "2"]) == 2
    assert "Expected keep_ratio in (0, 1], got 2.0" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_the_command_puts_gates_into_the_last_layers(vit, tmp_path, capsys):
    vit.save_pretrained(tmp_path / "vit")
    source = str(tmp_path / "vit")
    assert main(["convert", source, str(tmp_path / "a"), "--select-budget", "0.3"]) == 0
    told = capsys.readouterr().out
    assert "fresh: layers.*.gate.weight" in told and "% less than the source's" in told
    assert f"--model_name_or_path {tmp_path / 'a'} --teacher_model_name_or_path {source}" in told
    config = FocusViTForImageClassification.from_pretrained(tmp_path / "a").config
    assert config.layer_types == ["full_attention"] * 3 + ["select_pack_attention"]
    assert (config.patch_pooling, config.select_budget, config.select_threshold) == ("none", 0.3, None)
    options = ["--select-layers", "2", "--select-threshold", "0.5", "--select-budget", "0.3"]
    main(["convert", source, str(tmp_path / "b"), *options, "--select-supervision", "budget"])
    config = FocusViTForImageClassification.from_pretrained(tmp_path / "b").config
    assert config.layer_types[1:] == ["full_attention", "select_pack_attention", "select_pack_attention"]
    assert (config.select_threshold, config.select_supervision) == (0.5, "budget")
    capsys.readouterr()
    for options, message in (
        (["--select-layers", "5"], "--select-layers up to the source's 4, got 5"),
        (["--select-budget", "0.3", "--latent-layers", "1"], "--latent-layers or --select options, got both"),
        (["--select-budget", "2"], "Expected select_budget in (0, 1]"),
    ):
        assert main(["convert", source, str(tmp_path / "c"), *options]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "c").exists()


def test_the_cost_of_a_convolutional_stem_is_counted():
    config = FocusViTConfig.from_preset("focusvit-nano", patch_pooling="grid")
    side = config.image_height_and_width[0]
    assert flops_of_an_image(config) == count_flops(FocusViTForImageClassification(config), side) > 0
    # As many superpixels cost what tiles cost; computing them takes no products of weights.
    assert flops_of_an_image(FocusViTConfig.from_preset("focusvit-nano")) == flops_of_an_image(config)
