"""Token merging and how much of a dense ViT a conversion keeps, against plain references."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTForImageClassification

from blobs import blobs
from experiments.conversion import curve as conversion_curve
from experiments.conversion import table as conversion_table
from experiments.conversion.token_merging import TokenMerging, merge, merged_places, merging_schedule
from experiments.micro import results as results_module
from experiments.micro import training as micro_training
from experiments.micro.data import Pictures
from focusvit_hf import FocusViTForImageClassification, convert_vit_checkpoint
from focusvit_hf.utils.files import write_json


TINY = {
    "image_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 3,
}


def vit():
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**TINY, patch_size=8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def dense():
    return convert_vit_checkpoint(vit(), patch_pooling="none")


def merge_one_by_one(tokens, sizes, keys, num_merged, num_prefix):
    """The same for one picture, in loops: dicts of what stands at each position."""
    first, second = range(0, len(keys), 2), range(1, len(keys), 2)
    pairs = []
    for i in first:
        if i < num_prefix:
            continue
        cosines = {
            j: float(torch.dot(keys[i], keys[j]) / keys[i].norm() / keys[j].norm()) for j in second if j >= num_prefix
        }
        j = max(cosines, key=cosines.get)
        pairs.append((cosines[j], i, j))
    groups = {i: [i] for i in range(len(keys))}
    for _, i, j in sorted(pairs, reverse=True)[:num_merged]:
        groups[j] += groups.pop(i)
    new, new_sizes = [], []
    for i in [*first, *second]:
        if i in groups:
            total = sum(sizes[j] for j in groups[i])
            new.append(sum(tokens[j] * sizes[j] for j in groups[i]) / total)
            new_sizes.append(total)
    return torch.stack(new), torch.stack(new_sizes)


@pytest.mark.parametrize(
    ("num_tokens", "num_merged", "num_prefix"), [(17, 8, 1), (18, 5, 1), (17, 0, 1), (16, 6, 2)], ids=str
)
def test_merging_against_loops(num_tokens, num_merged, num_prefix):
    torch.manual_seed(num_tokens)
    keys, tokens = torch.randn(3, num_tokens, 4), torch.randn(3, num_tokens, 5)
    sizes = torch.randint(1, 5, (3, num_tokens)).float()
    places = merged_places(keys, num_merged, num_prefix)
    found, found_sizes = merge(tokens, sizes, places)
    assert found.shape == (3, num_tokens - num_merged, 5)
    for index in range(3):
        expected, expected_sizes = merge_one_by_one(tokens[index], sizes[index], keys[index], num_merged, num_prefix)
        torch.testing.assert_close(found[index], expected)
        torch.testing.assert_close(found_sizes[index], expected_sizes)
    # The class token stands where it stood, alone.
    torch.testing.assert_close(found[:, 0], tokens[:, 0])
    torch.testing.assert_close(found_sizes.sum(1), sizes.sum(1))


def test_no_more_than_half_can_be_merged():
    with pytest.raises(ValueError, match="Expected to merge 0 to 8 of 17 tokens, got 9"):
        merged_places(torch.randn(1, 17, 4), 9)


def test_schedules_end_where_they_should():
    assert merging_schedule(144, 4, 72) == [18] * 4
    assert merging_schedule(144, 4, 18) == [36, 36, 36, 18]
    assert merging_schedule(144, 4, 144) == [0] * 4
    with pytest.raises(ValueError, match="Expected a number of tokens that 4 halvings of 144 reach, got 8"):
        merging_schedule(144, 4, 8)


def test_merging_nothing_is_the_dense_model():
    model, pixels = dense(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits
        torch.testing.assert_close(TokenMerging(model, (0, 0))(pixels).logits, expected)
        assert not torch.allclose(TokenMerging(model, (4, 4))(pixels).logits, expected)


def test_merging_equal_patches_changes_nothing():
    """Without positions a picture of one colour has equal tokens; proportional attention makes up for their number."""
    model = dense()
    with torch.no_grad():
        model.focusvit.embeddings.position.table[:, 1:] = 0
        pixels = torch.full((1, 3, 32, 32), 0.3)
        expected = model(pixel_values=pixels).logits
        torch.testing.assert_close(TokenMerging(model, (8, 4))(pixels).logits, expected, atol=1e-5, rtol=1e-5)


def test_merging_is_for_dense_models():
    torch.manual_seed(0)
    model = FocusViTForImageClassification(micro_training.settings({**TINY, "num_superpixels": 4})[0])
    with pytest.raises(ValueError, match="Expected a dense model"):
        TokenMerging(model, (0, 0))
    with pytest.raises(ValueError, match="Expected a number for each of 2 layers"):
        TokenMerging(dense(), (0,))


# The curve


@pytest.fixture(scope="module")
def pictures():
    rows = blobs(16)
    images = np.stack([np.asarray(image).transpose(2, 0, 1) for image in rows["image"]])
    return Pictures(torch.from_numpy(images).contiguous(), torch.tensor(rows["label"]))


@pytest.fixture
def tiny(monkeypatch):
    for module in (micro_training, conversion_curve):
        monkeypatch.setattr(module, "BASE", {**micro_training.BASE, **TINY, "superpixel_cell_size": 2})
    monkeypatch.setattr(conversion_curve, "Recipe", lambda **plan: micro_training.Recipe(**PLAN))


PLAN = {"epochs": 1, "batch_size": 8}


def test_the_dense_vit_is_trained_once_and_kept_whole(pictures, tiny, tmp_path):
    where = (0, pictures, pictures, tmp_path / "cache", tmp_path / "results")
    vit = conversion_curve.dense_vit(*where)
    trained = json.loads((tmp_path / "results" / "vit-seed0.json").read_text())
    again = conversion_curve.dense_vit(*where)
    assert all(torch.equal(a, b) for a, b in zip(vit.parameters(), again.parameters(), strict=True))
    row = conversion_curve.Row({"patch_pooling": "none"})
    plan = micro_training.Recipe(**PLAN)
    dense = conversion_curve.measured(row, "at_once", vit, plan, 0, pictures, pictures)
    assert (dense["correct"], dense["multiply_adds"]) == (trained["correct"], trained["multiply_adds"])
    (tmp_path / "cache" / "weights" / "conversion" / "vit-seed0" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"Expected the weights of .*vit-seed0.json in .*, got none"):
        conversion_curve.dense_vit(*where)


def test_a_row_of_other_settings_is_an_error(tiny, tmp_path):
    row, plan = conversion_curve.Row({"num_superpixels": (2, 2)}), micro_training.Recipe(**PLAN)
    there = {"recipe": {**PLAN, "epochs": 2}, "overrides": {"num_superpixels": [2, 2]}, "schedule": []}
    (tmp_path / "few-tuned-seed0.json").write_text(json.dumps(there))
    (tmp_path / "few-at_once-seed0.json").write_text(json.dumps({**there, "recipe": None}))
    ask = ({"few": row}, ["at_once"], plan, 0, tmp_path)
    assert list(conversion_curve.unfinished(*ask)) == []
    assert list(conversion_curve.unfinished({"few": row}, conversion_curve.LEARNING[2:], plan, 0, tmp_path)) == [
        ("few", "distilled")
    ]
    with pytest.raises(ValueError, match=r"Expected .*few-tuned-seed0.json with .*'epochs': 1"):
        list(conversion_curve.unfinished({"few": row}, ["tuned"], plan, 0, tmp_path))


@pytest.mark.parametrize("learning", conversion_curve.LEARNING)
def test_a_row_is_converted_taught_and_measured(pictures, tiny, learning):
    torch.manual_seed(0)
    vit = conversion_curve.new_vit().eval()
    before = [parameter.clone() for parameter in vit.parameters()]
    plan = micro_training.Recipe(**PLAN)
    for row, tokens in (
        (conversion_curve.Row({"num_superpixels": (2, 2)}), 4),
        (conversion_curve.Row({"patch_pooling": "none"}, (4, 4)), 8),
    ):
        found = conversion_curve.measured(row, learning, vit, plan, 0, pictures, pictures)
        assert (found["tokens"], found["pictures"], len(found["history"])) == (tokens, 16, learning != "at_once")
    # The teacher is the dense ViT itself: nothing of it may move.
    assert all(torch.equal(a, b) for a, b in zip(before, vit.parameters(), strict=True))


@pytest.mark.parametrize(
    "overrides",
    [
        None,
        {"num_superpixels": 4, "patch_pooling": "grid"},
        {"num_superpixels": 4, "patch_pooling": "grid", "layer_types": ["latent_attention"] * 2, "num_latents": 3},
    ],
    ids=["dense", "grid", "latent"],
)
def test_multiply_adds_against_a_counter(overrides):
    model = vit()
    model.set_attn_implementation("eager")
    config = micro_training.settings({**TINY, "patch_pooling": "none"})[0]
    if overrides is not None:
        model = convert_vit_checkpoint(model, **overrides)
        config = model.config
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixel_values=torch.zeros(1, 3, 32, 32))
    classifier = config.hidden_size * config.num_labels
    assert conversion_curve.multiply_adds(config) == counter.get_total_flops() / 2 - classifier


def test_each_row_of_the_curve_can_be_made():
    vit, costs = conversion_curve.new_vit(), {}
    for name, row in conversion_curve.all_rows().items():
        config = convert_vit_checkpoint(vit, **row.overrides).config
        costs[name] = conversion_curve.multiply_adds(config, row.schedule)
        assert name.endswith(f"_{config.num_tokens - sum(row.schedule)}")
        assert name.endswith("_144") or costs[name] < costs["dense_144"]
    assert costs["merging_18"] == pytest.approx(costs["superpixel_72"], rel=0.02)


def test_the_table_compares_row_by_row(tmp_path):
    rng = np.random.default_rng(0)
    right = {"vit": 180, "grid_36": 100, "superpixel_36": 120, "merging_36": 150}
    for variant, count in right.items():
        for learning in conversion_curve.LEARNING if variant.endswith("36") else ("at_once",):
            outcome = rng.permutation(200) < count + 10 * conversion_curve.LEARNING.index(learning)
            result = {"variant": variant, "learning": learning, "tokens": 36, "multiply_adds": 10**7, "seed": 0}
            result |= {"pictures": 200, "accuracy": float(outcome.mean()), "correct": results_module.packed(outcome)}
            write_json(tmp_path / f"{variant}-{learning}-seed0.json", result)
    rows = conversion_table.table(conversion_table.collect(tmp_path))
    assert len(rows) == 10
    by_name = {(row["variant"], row["learning"]): row["differences"] for row in rows}
    assert by_name["vit", "at_once"] == {}
    found = by_name["superpixel_36", "distilled"]
    assert {name: round(difference["mean"], 3) for name, difference in found.items()} == {
        "to_vit": -0.2,
        "to_grid": 0.1,
        "to_tuned": 0.05,
    }
    assert "to_grid" not in by_name["merging_36", "at_once"]
    assert "| grid_36 | at once | 36 | 10 M | 50.0 | -40.0 [" in conversion_table.markdown(rows)
    pytest.importorskip("matplotlib")
    assert conversion_table.plot(rows).startswith(b"\x89PNG")
    (tmp_path / "vit-at_once-seed0.json").unlink()
    with pytest.raises(ValueError, match="Expected a result of the dense ViT"):
        conversion_table.table(conversion_table.collect(tmp_path))
