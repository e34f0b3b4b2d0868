"""Fields of the configuration: defaults, what follows from them, what is refused, and what survives saving."""

import json
import tracemalloc
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from focusvit_hf import FocusViTConfig, configuration_focusvit


def test_defaults():
    config = FocusViTConfig()
    expected = {
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "qkv_bias": True,
        "embedding_type": "conv",
        "patch_pooling": "superpixel",
        "num_superpixels": 49,
        "superpixel_compactness": 10.0,
        "superpixel_iterations": 5,
        "superpixel_cell_size": None,
        "superpixel_method": "torch",
        "superpixel_assignment": "soft",
        "position_embedding_type": "dynamic",
        "layer_types": ["latent_attention"] * 12,
        "num_latents": 16,
        "attention_area_bias": False,
        "classifier_pooling": "cls",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.model_type == "focusvit"


@pytest.mark.parametrize(
    ("overrides", "cell", "tokens", "size"),
    [
        ({}, 4, 49, (224, 224)),
        ({"patch_size": 14}, 2, 49, (224, 224)),
        ({"patch_size": 8, "superpixel_cell_size": 8}, 8, 49, (224, 224)),
        ({"image_size": [64, 96], "num_superpixels": 24}, 4, 24, (64, 96)),
        ({"image_size": (64, 96), "num_superpixels": (3, 5)}, 4, 15, (64, 96)),
        ({"patch_pooling": "none"}, 4, 196, (224, 224)),
        ({"patch_pooling": "grid", "num_superpixels": [2, 3]}, 4, 6, (224, 224)),
    ],
)
def test_what_follows_from_the_fields(overrides, cell, tokens, size):
    config = FocusViTConfig(**overrides)
    assert config.cell_size == cell
    assert config.num_tokens == tokens
    assert config.image_height_and_width == size


def test_the_prefix_is_class_token_distillation_token_and_registers():
    assert FocusViTConfig().num_prefix_tokens == 1
    assert FocusViTConfig(use_distillation_token=True).num_prefix_tokens == 2
    assert FocusViTConfig(use_distillation_token=True, num_register_tokens=4).num_prefix_tokens == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        *(
            ({name: 10**9}, f"{name} as a whole number from [01] to (1048576|1000), got 1000000000")
            for name in (
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "patch_size",
                "num_channels",
                "stem_channels",
                "num_latents",
                "num_register_tokens",
                "superpixel_iterations",
                "image_size",
                "num_labels",
            )
        ),
        ({"image_size": [224, 10**9]}, "image_size as a whole number from 1 to 1048576, got 1000000000"),
        ({"hidden_size": 3 * 2**16}, r"at most 1e\+11 parameters, got .* from hidden_size=196608, .* image_size=224"),
        ({"num_hidden_layers": 1000, "hidden_size": 3 * 2**12}, r"at most 1e\+11 parameters"),
        ({"intermediate_size": 2**20, "hidden_size": 3 * 2**12}, r"at most 1e\+11 parameters"),
        ({"num_labels": 2**20, "hidden_size": 3 * 2**15, "num_hidden_layers": 1}, r"at most 1e\+11 parameters"),
        (
            {"position_embedding_type": "learned", "patch_size": 1, "image_size": 2**18},
            r"at most 1e\+11 parameters, got .* patch_size=1 and image_size=262144",
        ),
        ({"embedding_type": "patch", "patch_size": 2**15, "image_size": 2**15}, r"at most 1e\+11 parameters"),
        ({"image_size": 2**20, "num_superpixels": 999983}, "got 999983; the nearest that can is 999984"),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(overrides, message):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"Expected .*{message}"):
            FocusViTConfig(**overrides)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_the_largest_vit_is_not_absurd():
    # ViT-22B (Dehghani et al. 2023).
    FocusViTConfig(hidden_size=6144, num_hidden_layers=48, num_attention_heads=48, intermediate_size=24576)


def test_a_dense_model_need_not_fit_k():
    # One patch of 4 x 4 cells: 49 superpixels do not fit, but nobody asks for them.
    config = FocusViTConfig(image_size=16, patch_pooling="none")
    assert config.num_tokens == 1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_statistics_are_one_number_or_one_a_channel(channels):
    assert FocusViTConfig(num_channels=channels).image_mean == [0.5] * channels
    assert FocusViTConfig(num_channels=channels, image_std=1).image_std == [1.0] * channels
    listed = [0.1 * (index + 1) for index in range(channels)]
    assert FocusViTConfig(num_channels=channels, image_mean=tuple(listed)).image_mean == listed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"embedding_type": "linear"}, r"embedding_type to be one of \('conv', 'patch'\), got 'linear'"),
        ({"patch_pooling": "mean"}, "patch_pooling to be one of .*, got 'mean'"),
        ({"superpixel_method": "opencv"}, "superpixel_method to be one of .*, got 'opencv'"),
        ({"superpixel_assignment": "SOFT"}, "superpixel_assignment to be one of .*, got 'SOFT'"),
        ({"position_embedding_type": "rope"}, "position_embedding_type to be one of .*, got 'rope'"),
        ({"classifier_pooling": "mean"}, "classifier_pooling to be one of .*, got 'mean'"),
        ({"hidden_act": "gleu"}, "hidden_act to be one of .*, got 'gleu'"),
        ({"patch_size": 0}, "patch_size as a (whole )?number from .*, got 0"),
        ({"num_channels": -3}, "num_channels as a (whole )?number from .*, got -3"),
        ({"hidden_size": 0}, "hidden_size as a (whole )?number from .*, got 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers as a (whole )?number from .*, got 0"),
        ({"num_attention_heads": 0}, "num_attention_heads as a (whole )?number from .*, got 0"),
        ({"intermediate_size": -1}, "intermediate_size as a (whole )?number from .*, got -1"),
        ({"superpixel_iterations": 0}, "superpixel_iterations as a (whole )?number from .*, got 0"),
        ({"superpixel_compactness": 0.0}, "superpixel_compactness as a (whole )?number from .*, got 0.0"),
        ({"superpixel_compactness": float("nan")}, "superpixel_compactness as a (whole )?number from .*, got nan"),
        ({"superpixel_compactness": float("inf")}, "superpixel_compactness as a (whole )?number from .*, got inf"),
        (
            {"superpixel_compactness": 1e200},
            r"superpixel_compactness as a number from .*, got 1e\+200",
        ),
        ({"stem_blocks": -1}, "stem_blocks as a (whole )?number from .*, got -1"),
        ({"stem_channels": 0}, "stem_channels as a (whole )?number from .*, got 0"),
        ({"num_latents": 0}, "num_latents as a (whole )?number from .*, got 0"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps as a (whole )?number from .*, got 0.0"),
        ({"initializer_range": -0.1}, "initializer_range as a number from 1e-12 to 1000.0, got -0.1"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob in \[0, 1\), got 1.0"),
        ({"attention_probs_dropout_prob": -0.1}, r"attention_probs_dropout_prob in \[0, 1\), got -0.1"),
        ({"drop_path_rate": float("nan")}, r"drop_path_rate in \[0, 1\), got nan"),
        ({"image_mean": [0.5]}, r"image_mean with one value for each of the 3 channels, got \[0.5\]"),
        ({"image_std": [0.5] * 4}, "image_std with one value for each of the 3 channels"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean as a number from .*, got nan"),
        ({"image_std": [0.5, 0.0, 0.5]}, r"image_std as a (whole )?number from .*, got 0.0"),
        ({"hidden_size": 200}, "hidden_size that num_attention_heads=3 divides, got 200"),
        ({"image_size": 225}, "image_size that superpixel_cell_size=4 divides, got 225"),
        ({"image_size": 0}, "image_size as a whole number from 1 to 1048576, got 0"),
        ({"image_size": [224, 200], "embedding_type": "patch"}, r"that patch_size=16 divides, got \[224, 200\]"),
        ({"image_size": 200, "patch_pooling": "none"}, "image_size that patch_size=16 divides, got 200"),
        ({"image_size": 200, "position_embedding_type": "learned"}, "that patch_size=16 divides, got 200"),
        ({"image_size": [224, 224, 3]}, r"image_size as one number or \(height, width\)"),
        ({"superpixel_cell_size": 3}, "superpixel_cell_size that divides patch_size=16, got 3"),
        ({"superpixel_cell_size": 32}, "superpixel_cell_size that divides patch_size=16, got 32"),
        ({"superpixel_cell_size": 0}, "superpixel_cell_size as a whole number from 1 to 1048576, got 0"),
        ({"num_superpixels": 47}, "got 47; the nearest that can is 48"),
        ({"num_superpixels": 10**9}, "the nearest that can is 3136"),
        ({"num_superpixels": [57, 1]}, r"image's \(56, 56\) cells, got \(57, 1\)"),
        ({"num_superpixels": [7]}, r"num_superpixels as K or \(rows, columns\), each >= 1, got \[7\]"),
        (
            {"num_superpixels": [7], "patch_pooling": "none"},
            r"num_superpixels as K or \(rows, columns\), each >= 1, got \[7\]",
        ),
        ({"num_labels": -1}, "num_labels as a whole number from 0 to 1048576, got -1"),
        ({"initializer_range": 0.0}, "initializer_range as a number from 1e-12 to 1000.0, got 0.0"),
        ({"image_std": 1e-320}, "image_std as a number from 1e-06 to 1000000.0, got 1e-320"),
        ({"superpixel_compactness": 1e-160}, "superpixel_compactness as a number from 1e-06 to 1000000.0, got 1e-160"),
        ({"superpixel_iterations": 2**20}, "superpixel_iterations as a whole number from 1 to 1000, got 1048576"),
        ({"num_hidden_layers": 100_000, "hidden_size": 3}, "num_hidden_layers as a whole number from 1 to 1000"),
        ({"patch_size": 2**17, "superpixel_cell_size": 2**16, "image_size": 2**17}, r"at most 1e\+11 parameters"),
        ({"num_labels": "10"}, "num_labels as a whole number from 0 to 1048576, got '10'"),
        ({"mlp_type": "glu"}, "mlp_type to be one of .*, got 'glu'"),
        ({"layer_scale": 0.0}, "layer_scale as a number from .*, got 0.0"),
        ({"layer_scale": float("nan")}, "layer_scale as a number from .*, got nan"),
        ({"num_register_tokens": -1}, "num_register_tokens as a whole number from 0 to 1048576, got -1"),
        ({"classifier_pooling": "cls_dist_mean"}, "use_distillation_token=True with .*, got False"),
        ({"layer_types": ["full_attention"] * 11}, "12 layer_types, one for each layer, got 11"),
        ({"layer_types": ["full_attention"] * 11 + ["window"]}, r"layer_types from .*, got \['window'\]"),
    ],
)
def test_bad_values_are_refused(overrides, message):
    with pytest.raises(ValueError, match=f"Expected .*{message}") as caught:
        FocusViTConfig(**overrides)
    # Not the library's error for types, which is no help with a value.
    assert not isinstance(caught.value, StrictDataclassError)


@pytest.mark.parametrize(
    "overrides",
    [
        {"hidden_size": "192"},
        {"hidden_size": 192.0},
        {"num_latents": True},
        {"qkv_bias": "yes"},
        {"num_superpixels": 49.0},
        {"num_superpixels": "7x7"},
        {"layer_types": "full_attention"},
        {"layer_types": [1] * 12},
        {"image_mean": "0.5"},
        {"superpixel_cell_size": 4.0},
        {"embedding_type": None},
    ],
)
def test_wrong_types_are_refused(overrides):
    with pytest.raises(StrictDataclassError, match=next(iter(overrides))):
        FocusViTConfig(**overrides)


def test_a_field_is_checked_when_it_is_set_later():
    config = FocusViTConfig()
    with pytest.raises(StrictDataclassError):
        config.num_latents = "16"


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("num_superpixel", "num_superpixels"),
        ("numsuperpixels", "num_superpixels"),
        ("superpixels_compactness", "superpixel_compactness"),
        ("hidden_dropout", "hidden_dropout_prob"),
        ("layer_type", "layer_types"),
        ("image_sizes", "image_size"),
        ("num_latent", "num_latents"),
        ("num_label", "num_labels"),
    ],
)
def test_a_misspelt_field_is_refused(key, near):
    with pytest.raises(ValueError, match=f"'{key}': expected '{near}'"):
        FocusViTConfig(**{key: 4})


def test_a_misspelt_field_is_refused_while_loading(tmp_path):
    FocusViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'num_superpixel': expected 'num_superpixels'"):
        FocusViTConfig.from_pretrained(tmp_path, num_superpixel=36)


def test_unknown_keys_are_kept(tmp_path):
    later = {"token_router": {"depth": 2}, "auto_map": {"AutoModel": "modeling_focusvit.FocusViTModel"}}
    FocusViTConfig(**later).save_pretrained(tmp_path)
    config = FocusViTConfig.from_pretrained(tmp_path)
    assert config.token_router == {"depth": 2}
    assert config.auto_map == later["auto_map"]


def test_keys_of_every_configuration_are_taken(tmp_path):
    options = {
        "id2label": {0: "cat", 1: "dog"},
        "label2id": {"cat": 0, "dog": 1},
        "problem_type": "single_label_classification",
        "output_hidden_states": True,
        "torch_dtype": "float32",
        "attn_implementation": "eager",
        "architectures": ["FocusViTModel"],
    }
    config = FocusViTConfig(**options)
    assert config.num_labels == 2
    assert FocusViTConfig(num_labels=7).num_labels == 7
    config.save_pretrained(tmp_path)
    assert FocusViTConfig.from_pretrained(tmp_path).id2label == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_superpixels": (6, 8), "image_size": (192, 256), "superpixel_cell_size": 8, "hidden_act": "relu"},
        {"num_hidden_layers": 3, "layer_types": ["full_attention", "latent_attention", "full_attention"]},
        {"num_channels": 1, "image_mean": 0.3, "image_std": [0.2], "superpixel_compactness": 20},
    ],
)
def test_saving_and_loading(tmp_path, overrides):
    config = FocusViTConfig(**overrides)
    config.save_pretrained(tmp_path)
    loaded = FocusViTConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() | {"transformers_version": loaded.transformers_version}
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "focusvit"
    assert stored["layer_types"] == config.layer_types
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert (again / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_fields_can_be_overridden_while_loading(tmp_path):
    FocusViTConfig().save_pretrained(tmp_path)
    overrides = {"num_superpixels": (6, 6), "drop_path_rate": 0.1, "num_labels": 3}
    config = FocusViTConfig.from_pretrained(tmp_path, **overrides)
    assert (config.num_superpixels, config.drop_path_rate, config.num_labels) == ([6, 6], 0.1, 3)
    config, unused = FocusViTConfig.from_pretrained(tmp_path, num_latents=8, colour=1, return_unused_kwargs=True)
    assert config.num_latents == 8
    assert unused == {"colour": 1}
    with pytest.raises(ValueError, match="nearest that can is 48"):
        FocusViTConfig.from_pretrained(tmp_path, num_superpixels=47)
    with pytest.raises(ValueError, match="Expected 4 layer_types, one for each layer, got 12"):
        FocusViTConfig.from_pretrained(tmp_path, num_hidden_layers=4)


def test_configurations_do_not_share_their_lists():
    first, second = FocusViTConfig(), FocusViTConfig()
    first.layer_types.append("full_attention")
    first.image_mean[0] = 0.0
    assert len(second.layer_types) == 12
    assert second.image_mean == [0.5] * 3


def test_the_base_class_reads_it_as_trainer_does_to_resume(tmp_path):
    FocusViTConfig(num_hidden_layers=2, layer_types=["full_attention", "latent_attention"]).save_pretrained(tmp_path)
    assert PreTrainedConfig.from_json_file(tmp_path / "config.json").layer_types[1] == "latent_attention"


PRESET_FOLDER = Path(configuration_focusvit.__file__).with_name("presets")
PRESETS = sorted(path.stem for path in PRESET_FOLDER.glob("*.json"))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configurations(name):
    path = PRESET_FOLDER / f"{name}.json"
    preset = json.loads(path.read_text())
    config = FocusViTConfig.from_preset(name, num_labels=7)
    assert {field: getattr(config, field) for field in preset} == preset
    assert config.num_labels == 7
    assert FocusViTConfig.from_preset(path).to_dict() == FocusViTConfig.from_preset(name).to_dict()


def test_overrides_of_a_preset_win():
    config = FocusViTConfig.from_preset("focusvit-tiny", num_superpixels=100, image_size=448)
    assert (config.num_superpixels, config.image_size, config.hidden_size) == (100, 448, 192)
    with pytest.raises(ValueError, match="'num_superpixel': expected 'num_superpixels'"):
        FocusViTConfig.from_preset("focusvit-tiny", num_superpixel=100)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1]", "Expected a JSON object .* got list"), ("{", "Expected JSON in"), ("[" * 100_000, "Expected JSON in")],
)
def test_files_that_hold_no_preset_are_refused(tmp_path, content, message):
    path = tmp_path / "preset.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        FocusViTConfig.from_preset(path)


@pytest.mark.parametrize("name", ["focusvit-huge", "../presets/focusvit", "absent.json", ""])
def test_an_unknown_preset_names_the_known_ones(name):
    with pytest.raises(ValueError, match=r"'focusvit-tiny', 'focusvit-tiny-dense'.*path of a JSON file, got"):
        FocusViTConfig.from_preset(name)


def test_a_copy_without_presets_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(configuration_focusvit, "_PRESETS", tmp_path / "presets")
    with pytest.raises(ValueError, match="only the installed package has"):
        FocusViTConfig.from_preset("focusvit-tiny")


@pytest.fixture
def warnings_of(caplog):
    """The warnings that the configuration gives for some fields."""

    def warn(**overrides):
        configuration_focusvit.logger.warning_once.cache_clear()
        caplog.clear()
        FocusViTConfig(**overrides)
        return [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]

    return warn


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"superpixel_assignment": "hard"}, "superpixel_assignment='hard'"),
        ({"stem_channels": 64, "embedding_type": "patch"}, "stem_channels=64"),
        ({"stem_blocks": 2, "embedding_type": "patch"}, "stem_blocks=2"),
        ({"position_antialias": True}, "position_antialias=True"),
        ({"hidden_act": "relu", "mlp_type": "swiglu"}, "hidden_act='relu'"),
        ({"num_latents": 4, "layer_types": ["full_attention"] * 12}, "num_latents=4"),
        ({"drop_path_rate": 0.1, "num_hidden_layers": 1}, "drop_path_rate=0.1"),
    ],
)
def test_a_field_that_changes_nothing_is_told(warnings_of, overrides, field):
    (message,) = warnings_of(**overrides)
    assert message.startswith(f"{field} has no effect: ")


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"superpixel_assignment": "hard", "embedding_type": "patch"},
        {"superpixel_assignment": "hard", "position_embedding_type": "learned"},
        {"position_antialias": True, "position_embedding_type": "learned"},
        {"num_latents": 4},
        {"drop_path_rate": 0.1},
        *(json.loads(path.read_text()) for path in sorted(PRESET_FOLDER.glob("*.json"))),
    ],
    ids=str,
)
def test_fields_that_count_and_those_of_controls_are_taken_quietly(warnings_of, overrides):
    assert not warnings_of(**overrides)
