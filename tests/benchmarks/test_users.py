"""`benchmarks/users.py`: a table of what users wait for, row by row, with the floor beside it."""

import json
import sys

import pytest


VIT, LEVIT, LATENT, FULL = "ViT-Ti/16", "LeViT-128S", "focusvit-tiny-latent", "focusvit-tiny-full"


@pytest.fixture
def script(benchmark_script):
    return benchmark_script("users")


def figures(median):
    return {"median_ms": median, "lower_quartile_ms": median, "upper_quartile_ms": median}


def row(**others):
    times = {VIT: figures(16.0), LEVIT: figures(5.0), LATENT: figures(2.0), FULL: figures(4.0)}
    floors = {name: {"floor_ms": 1.25, "operations": 900, "dispatch_ms": 0.75} for name in times}
    return {"times": times, "floors": floors, "stages": {LATENT: {"layers": 1.5, "superpixels": 0.25}}, **others}


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["users.py", *map(str, arguments)])
    script.main()


def test_the_table_has_every_row_that_was_measured_with_floor_and_ratio(script):
    table = script.table({"single": row(), "float32": row()}).splitlines()
    assert len(table) == 4 and table[2].startswith("| float32, batch 32")
    assert table[3] == (
        "| float32, batch 1, eager | 16.0 | 5.00 | 2.00 / 4.00 | 8.0 / 4.0 | 1.25 / 1.25 "
        "| layers 1.50; superpixels 0.25; of it 900 operations 0.75 |"
    )


def test_an_earlier_run_stands_beside(script):
    earlier = row()
    earlier["times"][LATENT] = figures(3.0)
    rows = {"single": row(), "jpeg": row(), "448": row()}
    table = script.table(rows, {"single": earlier, "448": row()}).splitlines()
    assert "| 2.00 / 4.00 | 3.00 / 4.00 | 8.0 / 4.0 |" in table[2]
    # Measured for the first time, and not measured again.
    assert all("| 2.00 / 4.00 | – |" in line for line in table[3:])


def test_every_row_of_the_table_is_measured(script):
    assert list(script.ROWS) == list(script.TITLES)


def test_other_ways_stand_beside_the_subjects(script):
    measured = row(floors={}, stages={})
    measured["times"][f"{LATENT} int8"] = figures(1.0)
    assert f"2.00 / 4.00; {LATENT} int8: 1.00 | 8.0 / 4.0 | – | – |" in script.table({"onnx": measured})


def test_rows_are_measured_one_by_one_and_the_others_stay(script, monkeypatch, tmp_path, capsys):
    out = tmp_path / "out.json"
    monkeypatch.setattr(script, "measured", lambda name, options: row())
    run(script, monkeypatch, "--out", out, "--rows", "single", "jpeg")
    run(script, monkeypatch, "--out", out, "--rows", "pipeline")
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == {"single", "jpeg", "pipeline"}
    assert {"commit", "torch", "threads", "dtype", "command", "repeats"} <= rows["jpeg"]["environment"].keys()
    capsys.readouterr()
    run(script, monkeypatch, "--out", out, "--table")
    assert capsys.readouterr().out.count("\n| ") == 3


def test_a_row_that_fails_is_not_written(script, monkeypatch, tmp_path):
    def failed(*arguments, **options):
        return type("Done", (), {"returncode": 1})

    monkeypatch.setattr(script.subprocess, "run", failed)
    with pytest.raises(SystemExit, match="expected the row single to be measured, got an error"):
        run(script, monkeypatch, "--out", tmp_path / "out.json", "--rows", "single")
    assert not (tmp_path / "out.json").exists()


def test_models_are_timed_with_their_floors_and_stages(script, monkeypatch):
    monkeypatch.setattr(script, "ROUNDS_OF_SHORT", 2)
    found = script.pixels_to_logits((VIT, LATENT), 32, 2, script.FLOAT32, repeats=2)
    assert set(found["times"]) == {VIT, LATENT} and set(found["stages"]) == {LATENT}
    assert set(found["stages"][LATENT]) == {"superpixels", "stem and pooling", "layers"}
    assert found["times"][VIT]["median_ms"] > 0.8 * found["floors"][VIT]["floor_ms"]


def test_files_go_through_every_subject_and_through_transformers_processor(script, monkeypatch):
    monkeypatch.setattr(script, "ROUNDS_OF_SHORT", 2)
    found = script.files_to_classes(script.sample_images()[:1], repeats=2)
    assert set(found["times"]) == {VIT, LEVIT, LATENT, FULL, f"{VIT}, transformers' processor"}
    stages = found["stages"][LATENT]
    assert set(stages) == {"decode every pixel", "decode, resize and normalise", "superpixels and model"}
