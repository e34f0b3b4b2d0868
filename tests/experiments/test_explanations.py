"""Heat maps of classifiers: whether the answer rests on them, and whether they lie where the object lies."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.borders import explanations
from experiments.micro.data import Examples, load_examples
from experiments.micro.results import packed
from experiments.micro.training import predict, save_model
from focusvit_hf import FocusViTConfig
from focusvit_hf.utils.files import write_json


class SeesACorner(torch.nn.Module):
    """A stand-in for a classifier: class 0 the more, the brighter the upper left quarter is."""

    config = FocusViTConfig(image_size=32, patch_size=8, patch_pooling="grid", num_superpixels=16, num_labels=2)

    def forward(self, pixel_values, superpixel_ids=None):
        score = 5 * pixel_values[:, :, :16, :16].mean(dim=(1, 2, 3))
        return SimpleNamespace(logits=torch.stack((score, -score), dim=1))


def test_areas_tell_good_heat_maps_from_bad_ones():
    bright, dark = (torch.full((2, 3, 32, 32), level, dtype=torch.uint8) for level in (250, 5))
    good = torch.zeros(2, 32, 32)
    good[:, :16, :16] = 1
    target = torch.zeros(2, dtype=torch.int64)
    areas = [
        explanations.area_under_curve(SeesACorner(), heat, start, end, target)
        for start, end in ((bright, dark), (dark, bright))
        for heat in (good, -good)
    ]
    deletion, worst_deletion, insertion, worst_insertion = (area.mean().item() for area in areas)
    # All that counts goes, or comes, in the first quarter; half of it in the first eighth, or the last but seven.
    assert deletion == pytest.approx(1 / 8, abs=0.02) and worst_deletion == pytest.approx(7 / 8, abs=0.02)
    assert insertion == pytest.approx(7 / 8, abs=0.02) and worst_insertion == pytest.approx(1 / 8, abs=0.02)


def test_ranks_and_hits():
    heat = torch.tensor([[[0.5, 2.0], [0.5, 2.0]]])
    assert explanations.ranks(heat).tolist() == [[[2, 0], [3, 1]]]
    masks = torch.tensor([[[True, True], [False, False]]])
    assert explanations.hits(heat, masks).tolist() == [0.5]
    assert explanations.hits(-heat, ~masks).tolist() == [0.5]


@pytest.mark.parametrize("pooling", ["superpixel", "grid", "none"])
def test_classifiers_are_explained(pooling, small_photographs, tiny_model):
    model = tiny_model(patch_pooling=pooling)
    maps = explanations.heat_maps(model, small_photographs, torch.tensor([0, 1, 2, 3]))
    assert set(maps) == {"nearest", "bilinear", "chance"}
    assert all(heat.shape == (4, 32, 32) for heat in maps.values())
    assert len(maps["nearest"][0].unique()) <= 16 < len(maps["bilinear"][0].unique())
    scores = explanations.measure(model, Examples(small_photographs, torch.arange(4)), steps=4)
    assert list(scores)[:4] == ["deletion", "insertion", "deletion_gain", "insertion_gain"]
    assert set(list(scores)[4:]) == {
        f"{name}_{ground}" for name in ("pointing", "energy", "iou", "accuracy") for ground in ("textured", "smooth")
    }
    for modes in scores.values():
        assert all(values.shape == (4,) and np.isfinite(values).all() for values in modes.values())
    gain = scores["deletion"]["chance"] - scores["deletion"]["nearest"]
    np.testing.assert_allclose(scores["deletion_gain"]["nearest"], gain)


def test_better_is_positive_for_every_score():
    def scores(deletion, iou):
        levels = {"deletion": deletion, "iou": iou}
        return {
            score: {mode: np.full(50, value) for mode, value in (*by.items(), ("chance", 0.3))}
            for score, by in levels.items()
        }

    measured = {
        "grid": {0: scores({"nearest": 0.4, "bilinear": 0.35}, {"nearest": 0.2, "bilinear": 0.1})},
        "superpixel": {0: scores({"nearest": 0.3, "bilinear": 0.4}, {"nearest": 0.5, "bilinear": 0.4})},
    }
    rows = explanations.rows_of(measured, "grid")
    found = {(row["score"], row["variant"], row["upsampling"]): row for row in rows}
    assert found["deletion", "superpixel", "nearest"]["difference"]["mean"] == pytest.approx(0.1)
    assert found["deletion", "superpixel", "nearest"]["difference_to_best"]["mean"] == pytest.approx(0.05)
    assert found["deletion", "superpixel", "bilinear"]["difference"]["mean"] == pytest.approx(-0.05)
    assert found["iou", "superpixel", "bilinear"]["difference_to_best"]["mean"] == pytest.approx(0.2)
    assert (
        "difference" not in found["iou", "superpixel", "chance"]
        and "difference" not in found["iou", "grid", "nearest"]
    )
    assert "| deletion | superpixel | nearest | 30.0 | +10.0 [+10.0, +10.0] |" in explanations.markdown(rows, "grid")


def test_saved_classifiers_are_explained(blob_dir, tmp_path, tiny_model, capsys):
    examples = load_examples(blob_dir, "test", 32, tmp_path)
    for name in ("superpixel", "grid"):
        model = tiny_model(patch_pooling=name, num_labels=3)
        save_model(model, tmp_path / "weights" / "controls_16" / f"{name}-seed0")
        outcome = predict(model, examples.images).argmax(dim=1) == examples.labels
        result = {"recipe": {"regions": "superpixel"}, "images": len(outcome), "correct": packed(outcome.numpy())}
        write_json(tmp_path / "controls_16" / f"{name}-seed0.json", result)
    places = ["--data", str(blob_dir), "--cache", str(tmp_path), "--results", str(tmp_path), "--tables", str(tmp_path)]
    explanations.main(["controls_16", "--images", "4", "--steps", "2", "--seeds", "0", "1", *places])
    content = json.loads((tmp_path / "controls_16-explanations.json").read_text())
    assert {row["variant"] for row in content["rows"]} == {"superpixel", "grid"}
    assert all(row["seeds"] == [0] for row in content["rows"])
    assert (tmp_path / "controls_16-explanations.md").read_text() in capsys.readouterr().out
    with pytest.raises(ValueError, match="Expected weights of the control 'grid', got those of"):
        explanations.main(["controls_36", *places])
