"""The conversion curve on tiny data: rows at their budgets, made of a dense ViT, tuned, measured, put in a table."""

import json

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from blobs import blob_tensors
from experiments.conversion import curve
from experiments.conversion import table as conversion_table
from experiments.conversion.rows import FAMILIES, TOLERANCE, UNTRAINED, Row, all_rows, at_budget
from experiments.conversion.tuning import Plan, tune
from experiments.micro.data import Examples
from experiments.micro.results import packed, unpacked
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification
from focusvit_hf.conversion.cost import flops_of_an_image
from focusvit_hf.utils.files import write_json


TINY = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 8,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 3,
}
PLAN = Plan(epochs=1, batch_size=8)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def examples():
    return Examples(*blob_tensors(16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**TINY, initializer_range=0.2))
    path = tmp_path_factory.mktemp("vit")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def dense(folder):
    return curve.load_dense(folder)


def test_every_family_reaches_its_budgets_at_the_size_that_is_measured():
    options = {"patch_pooling": "none", "embedding_type": "patch", "position_embedding_type": "learned"}
    config = FocusViTConfig(**options, layer_types=["full_attention"] * 12)
    families = ["merge", "before_grid", "layer6_grid"]
    rows = {row.name: row for row in all_rows(config, families, (0.33,))}
    # Half of the layers on all patches cost half: pooling there comes too late.
    assert set(rows) == {"merge_33", "before_grid_33"}
    for row in rows.values():
        assert row.share == pytest.approx(0.33, abs=TOLERANCE)
    assert rows["merge_33"].overrides["sparsification_layers"] == list(range(1, 12))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_made_tuned_and_measured(examples, dense, family, tmp_path):
    row = at_budget(family, dense.config, 0.75) or Row(family, 0.75, 0.9, FAMILIES[family](dense.config)[-1])
    before = [parameter.clone() for parameter in dense.parameters()]
    learning = "distilled" if family in UNTRAINED else "at_once"
    path = tmp_path / "row.json"
    found = curve.measured(dense, row, learning, PLAN, 0, (examples, examples), CPU, repeats=1, path=path)
    assert json.loads(path.read_text())["correct"] == found["correct"]
    assert found["flops"] == flops_of_an_image(curve.made(dense, row).config)
    assert found["accuracy"] == unpacked(found["correct"], 16).mean()
    assert len(found["history"]) == (family in UNTRAINED)
    assert found["throughput"]["to_dense"] > 0
    # The teacher is the dense ViT itself: nothing of it may move.
    assert all(torch.equal(a, b) for a, b in zip(before, dense.parameters(), strict=True))
    assert curve.is_there(path, row, learning, PLAN)
    with pytest.raises(ValueError, match="choose another --results"):
        curve.is_there(path, Row(family, 0.75, 0.9, {"keep_ratio": 0.123}), learning, PLAN)


def test_only_predictors_learn_while_the_backbone_rests(examples, dense):
    row = Row("learned", 0.75, 0.75, {"sparsification_layers": [2], "sparsification_relevance": "learned"})
    for frozen in (1, 0):
        model = curve.made(dense, row)
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        precision = "bfloat16" if frozen else "float32"
        plan = Plan(epochs=1, batch_size=8, frozen_epochs=frozen, precision=precision)
        attention = model.config._attn_implementation
        tune(model, dense, plan, 0, examples, CPU)
        assert model.config._attn_implementation == attention
        moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        assert any("predictors" in name for name in moved)
        assert all("predictors" in name for name in moved) == bool(frozen)


def test_the_program_makes_what_is_missing_and_the_table_compares(examples, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(curve, "training_and_evaluation", lambda *args: (examples, examples))
    options = ["--results", str(tmp_path), "--epochs", "1", "--batch_size", "8", "--repeats", "1"]
    families = ["--families", "attention_drop", "random", "learned", "--budgets", "0.75"]
    command = [str(folder), *options, *families, "--learning", "at_once", "distilled", "--limit", "12"]
    curve.main([*command, "--repeats", "0"])
    untimed = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert not any("throughput" in result for result in untimed.values())
    curve.main(command)
    for path in tmp_path.glob("*.json"):
        timed = json.loads(path.read_text())
        assert timed.pop("throughput")["to_dense"] > 0 and timed == untimed[path.name]
    written = sorted(path.name for path in tmp_path.glob("*.json"))
    assert written == [
        "attention_drop_75-at_once-seed0.json",
        "attention_drop_75-distilled-seed0.json",
        "dense-at_once-seed0.json",
        "dense-distilled-seed0.json",
        "learned_75-distilled-seed0.json",
        "random_75-at_once-seed0.json",
        "random_75-distilled-seed0.json",
    ]
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.json"))]
    curve.main(command)
    assert times == [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.json"))]
    conversion_table.main(["--results", str(tmp_path), "--tables", str(tmp_path / "tables")])
    text = (tmp_path / "tables" / "conversion_224.md").read_text()
    assert "| attention_drop_75 | at once | 7" in text
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_differences_are_paired_at_equal_cost(tmp_path):
    rng = np.random.default_rng(0)
    right = {"dense": 180, "random_50": 100, "attention_drop_50": 130, "merge_50": 150}
    for variant, count in right.items():
        outcome = rng.permutation(200) < count
        result = {"variant": variant, "family": variant.removesuffix("_50"), "budget": 0.5, "share": 0.5, "flops": 1}
        result |= {"learning": "at_once", "seed": 0, "images": 200, "accuracy": float(outcome.mean())}
        write_json(tmp_path / f"{variant}-at_once-seed0.json", {**result, "correct": packed(outcome)})
    rows = {row["variant"]: row for row in conversion_table.table(conversion_table.collect(tmp_path))}
    means = {name: round(found["mean"], 3) for name, found in rows["merge_50"]["differences"].items()}
    assert means == {"to_dense": -0.15, "to_random": 0.25, "to_attention": 0.1}
    assert "to_random" not in rows["random_50"]["differences"]
    (tmp_path / "dense-at_once-seed0.json").unlink()
    with pytest.raises(ValueError, match="Expected a result of the dense ViT"):
        conversion_table.collect(tmp_path)


def test_a_model_that_is_not_dense_is_refused(tmp_path):
    FocusViTForImageClassification(FocusViTConfig(**TINY, num_superpixels=16)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Expected a dense ViT in"):
        curve.load_dense(tmp_path)
