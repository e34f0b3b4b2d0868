"""The presets that a run can begin with."""

import json

from blobs import ROOT
from focusvit_hf import FocusViTConfig


PRESETS = ROOT / "src" / "focusvit_hf" / "presets"


def test_presets_are_valid_and_their_controls_differ_in_one_thing():
    presets = {path.stem: json.loads(path.read_text()) for path in PRESETS.glob("*.json")}
    assert len(presets) == 16
    for name in ("tiny", "small"):
        added = {"sparsification_layers": [3, 6, 9], "keep_ratio": 0.7, "sparsification_relevance": "learned"}
        assert {**presets[f"focusvit-{name}-dense"], **added} == presets[f"spot-{name}"]
        half = presets[f"focusvit-{name}-dense"]["num_hidden_layers"] // 2
        layers = ["full_attention"] * half + ["select_pack_attention"] * half
        added = {"select_threshold": 0.5, "select_budget": 0.3, "select_supervision": "budget"}
        spa = presets[f"spa-{name}"]
        assert {**presets[f"focusvit-{name}-dense"], **added, "layer_types": layers} == spa
        FocusViTConfig(**spa)
    for name in ("nano", "tiny", "small", "base"):
        config, grid, dense = (presets[f"focusvit-{name}{control}"] for control in ("", "-grid", "-dense"))
        assert {**config, "patch_pooling": "grid"} == grid
        layers = ["full_attention"] * config["num_hidden_layers"]
        assert {**config, "patch_pooling": "none", "layer_types": layers} == dense
        for content in (config, grid, dense):
            assert not set(content) - set(FocusViTConfig().to_dict())
            FocusViTConfig(**content)
    nano = FocusViTConfig(**presets["focusvit-nano"])
    assert (nano.image_size, nano.patch_size, nano.cell_size, nano.superpixel_count) == (32, 4, 2, 16)
    assert (nano.hidden_size, nano.num_hidden_layers, nano.num_attention_heads) == (160, 6, 5)
