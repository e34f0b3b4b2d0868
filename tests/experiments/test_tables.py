"""Intervals of differences, and the tables of the experiments."""

import json

import numpy as np
import pytest

from experiments.micro import results as results_module
from experiments.micro import tables
from experiments.micro.paired_bootstrap import Difference, paired_bootstrap


# Intervals


def test_one_seed_gives_the_normal_approximation():
    rng = np.random.default_rng(1)
    subject, control = rng.random((1, 2000)) < 0.75, rng.random((1, 2000)) < 0.7
    found = paired_bootstrap(subject, control)
    differences = subject.astype(float) - control
    error = differences.std() / np.sqrt(2000)
    assert found.mean == pytest.approx(differences.mean())
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.001)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.001)


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(1)
    control = rng.random((1, 500)) < 0.7
    subject = control.copy()
    subject[0, :10] = ~subject[0, :10]
    paired, shuffled = (paired_bootstrap(s, control, 1000) for s in (subject, rng.permutation(subject, axis=1)))
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_seeds_count_with_their_own_variance():
    # All images of a run move together: what is left is the mean over seeds.
    shifts = np.linspace(0.0, 0.3, 6)[:, None]
    found = paired_bootstrap(np.broadcast_to(shifts, (6, 50)), np.zeros((6, 50)), level=0.6827)
    error = shifts.std(ddof=1) / np.sqrt(6)
    assert (found.high - found.low) / 2 == pytest.approx(error, rel=0.1)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_covers_the_truth(seeds):
    rng = np.random.default_rng(seeds)
    covered, trials, truth = 0, 100, 0.05
    for _ in range(trials):
        # How hard an image is, is shared by both subjects and all seeds.
        hard = rng.normal(size=400)
        control = rng.normal(size=(seeds, 400)) + hard < 0.5
        chance = rng.random((seeds, 400)) < truth
        subject = control.astype(float) + chance
        found = paired_bootstrap(subject, control, replicates=400)
        covered += found.low <= truth <= found.high
    assert 0.9 <= covered / trials <= 1.0


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.001, 0.02, "better"),
        (-0.015, 0.02, "not worse"),
        (-0.016, 0.02, "open"),
        (-0.01, -0.001, "worse within margin"),
        (-0.03, -0.001, "worse"),
    ],
)
def test_verdicts(low, high, verdict):
    assert Difference((low + high) / 2, low, high, 1, 100).verdict(0.015) == verdict


def test_intervals_need_pairs():
    with pytest.raises(ValueError, match="Expected two arrays"):
        paired_bootstrap(np.zeros((1, 4)), np.zeros((1, 5)))


# Tables


def stored(variant, seed, right, parameters=1000):
    outcome = np.arange(200) % 100 < right
    return {
        "variant": variant,
        "seed": seed,
        "tokens": 36,
        "parameters": parameters,
        "accuracy": float(outcome.mean()),
        "images": 200,
        "correct": results_module.packed(outcome),
        "seconds": 90.0,
        "recipe": {"epochs": 20},
        "environment": {"seed": seed},
    }


def test_tables_compare_with_the_control():
    found = {
        "grid": {0: stored("grid", 0, 70), 1: stored("grid", 1, 72)},
        "worse": {1: stored("worse", 1, 50, parameters=1100)},
        "better": {0: stored("better", 0, 90), 1: stored("better", 1, 92), 2: stored("better", 2, 94)},
        "alone": {2: stored("alone", 2, 60)},
    }
    rows = tables.table(found, "grid", margin=0.015)
    assert [row["variant"] for row in rows] == ["grid", "better", "alone", "worse"]
    control, better, alone, worse = rows
    assert control["accuracy"] == pytest.approx(0.71) and "difference" not in control
    assert better["accuracies"] == [0.9, 0.92, 0.94] and better["verdict"] == "better"
    # Over the seeds that both have.
    assert better["difference"]["mean"] == pytest.approx(0.2) and better["difference"]["seeds"] == 2
    assert worse["difference"]["mean"] == pytest.approx(-0.22) and worse["verdict"] == "worse"
    assert "difference" not in alone
    lines = tables.markdown(rows).splitlines()
    assert lines[2] == "| grid | 36 | 1 k | 2 | 71.0 |  | control |"
    assert "| 1 k ! | 1 | 50.0 | -22.0 [" in lines[5]
    with pytest.raises(ValueError, match="Expected results of the control 'dense'"):
        tables.table(found, "dense")


def test_questions_are_pooled_over_the_runs_that_both_have():
    few = {
        "grid": {0: stored("grid", 0, 60), 1: stored("grid", 1, 60)},
        "better": {0: stored("better", 0, 70), 1: stored("better", 1, 72), 2: stored("better", 2, 99)},
        "here_only": {0: stored("here_only", 0, 50)},
    }
    many = {
        "grid": {0: stored("grid", 0, 70)},
        "better": {0: stored("better", 0, 83)},
        "alone": {5: stored("alone", 5, 1)},
    }
    (row,) = tables.together({"few": few, "many": many}, "grid")
    assert row["variant"] == "better" and row["runs"] == {"few": [0, 1], "many": [0]}
    assert row["accuracy"] == pytest.approx(0.75) and row["control_accuracy"] == pytest.approx(0.19 / 0.3)
    assert row["difference"]["mean"] == pytest.approx((0.1 + 0.12 + 0.13) / 3) and row["difference"]["seeds"] == 3
    assert row["verdict"] == "better"
    lines = tables.markdown_together([row], "grid").splitlines()
    assert lines[2].startswith("| better | few: 2, many: 1 | 75.0 | 63.3 | +11.7 [")
    with pytest.raises(ValueError, match=r"control 'grid' in several of \['few'\], got none"):
        tables.together({"few": few}, "grid")


def test_a_table_of_several_questions_is_written(tmp_path, capsys):
    for question, right in (("controls_16", 70), ("controls_36", 75)):
        for variant, more in (("grid", 0), ("superpixel", 5)):
            path = tmp_path / "results" / question / f"{variant}-seed0.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(stored(variant, 0, right + more)))
    places = ["--results", str(tmp_path / "results"), "--tables", str(tmp_path / "tables")]
    tables.main(["controls_16", "controls_36", "--together", "controls", *places])
    content = json.loads((tmp_path / "tables" / "controls.json").read_text())
    assert content["control"] == "grid" and content["rows"][0]["difference"]["mean"] == pytest.approx(0.05)
    assert (tmp_path / "tables" / "controls.md").read_text() in capsys.readouterr().out
    tables.main(["controls_16", "controls_36", "--together", "controls", "--control", "superpixel", *places])
    assert (tmp_path / "tables" / "controls-against-superpixel.md").is_file()
    with pytest.raises(ValueError, match=r"questions of one control, or --control, got \['full', 'grid'\]"):
        tables.main(["controls_16", "attention", "--together", "controls", *places])


def test_tables_are_written(tmp_path, capsys):
    for variant, right in (("full", 70), ("latent_8", 71)):
        path = tmp_path / "results" / "attention" / f"{variant}-seed0.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(stored(variant, 0, right)))
    places = ["--results", str(tmp_path / "results"), "--tables", str(tmp_path / "tables")]
    tables.main(["attention", *places])
    content = json.loads((tmp_path / "tables" / "attention.json").read_text())
    assert content["control"] == "full" and [row["variant"] for row in content["rows"]] == ["full", "latent_8"]
    assert (tmp_path / "tables" / "attention.md").read_text() in capsys.readouterr().out
