"""Accuracy against throughput: rows from results, times of what was trained, the frontier, its plot."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from blobs import SMALLEST, blobs
from experiments.frontier import folders as frontier_folders
from experiments.frontier import peers
from experiments.frontier import plot as frontier_plot
from experiments.frontier import run as frontier
from experiments.frontier.axes import Name, name_points, ticks_between
from experiments.frontier.rows import DENSE, GRID, LARGER, LATENT, OURS, PEERS, WIDER, load_rows
from experiments.micro import results as results_module
from experiments.micro.training import Recipe, intended, settings
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor


VARIANTS = {
    "superpixel": {},
    "superpixel_latent": {"layer_types": "latent_attention", "num_latents": 2},
    "grid": {"patch_pooling": "grid"},
    "random": {"regions": "random"},
    "larger_patches": {"patch_pooling": "none", "embedding_type": "patch", "patch_size": 16},
    "larger_patches_unmatched": {"patch_pooling": "none", "embedding_type": "patch", "patch_size": 16},
    "dense_stem": {"patch_pooling": "none"},
}
NAMES = ["superpixel_4", "superpixel_latent_4", "grid_4", "larger_patches_4", "dense_stem", "LeViT-128S"]
IMAGES = 200


def write(folder, question, variant, seed, right, about):
    outcome = np.arange(IMAGES) < right
    result = {"question": question, "variant": variant, "seed": seed, **about}
    result |= {"images": IMAGES, "accuracy": float(outcome.mean()), "correct": results_module.packed(outcome)}
    path = folder / question / f"{variant}-seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))


def of_variant(variant, **recipe):
    config, plan = settings({**SMALLEST, "num_superpixels": 4, **VARIANTS[variant]}, **recipe)
    return {**intended(config, plan), "tokens": config.num_tokens, "parameters": 1000}


@pytest.fixture
def results(tmp_path):
    """Results of one small model of each family."""
    folder = tmp_path / "results"
    for number, variant in enumerate(VARIANTS):
        write(folder, "controls_4", variant, 0, 100 + number, of_variant(variant))
    fed, _ = settings({**SMALLEST, "patch_pooling": "none"})
    peer = peers.intended(peers.configuration("LeViT-128S", fed), Recipe())
    write(folder, "peers", "LeViT-128S", 0, 150, {**peer, "tokens": None, "parameters": 5000})
    return folder


@pytest.fixture
def image_files():
    """Three encoded images."""
    files = []
    for image in blobs(3)["image"]:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG")
        files.append(buffer.getvalue())
    return files


def measured(rows, **speeds):
    """Times of rows, all at 100 images a second but for those named."""
    times = []
    for row in rows:
        for batch in (1, 32):
            for part in ("whole_path", "pixels_to_logits"):
                median = 1000 / speeds.get(row.name, 100.0)
                quartiles = {"lower_quartile_ms": 0.8 * median, "upper_quartile_ms": 1.25 * median}
                times.append(
                    {"subject": row.name, "batch_size": batch, "part": part, "median_ms": median, **quartiles}
                )
    return {"rows": times, "built": {row.name: row.built for row in rows}}


# Rows


def test_rows_are_what_somebody_would_use(results):
    rows = load_rows(results)
    assert [row.name for row in rows] == NAMES
    assert [row.family for row in rows] == [OURS, LATENT, GRID, LARGER, DENSE, PEERS]
    assert [row.label for row in rows] == ["4", "4", "4", "4", "dense ViT, same stem", "LeViT-128S"]
    assert {row.image_size for row in rows} == {32}


def test_a_wider_stem_is_a_family_of_its_own(results):
    wider = of_variant("grid")
    wider["configuration"]["stem_channels"] = 64
    write(results, "controls_36_stem_64", "grid", 0, 140, wider)
    row = next(row for row in load_rows(results) if row.name == "grid_4_stem_64")
    assert row.family == WIDER[GRID] and row.label == "4"
    assert row.subject().configure(32).stem_channels == 64
    assert "grid_4" in [row.name for row in load_rows(results)]
    # What was recorded from a folder has said what it is.
    write(results, "controls_36_stem_64", "mine", 0, 140, {**wider, "family": GRID})
    assert next(row for row in load_rows(results) if row.name == "mine").family == GRID


def test_unmatched_patches_stand_in_where_nothing_else_is(results):
    (results / "controls_4" / "larger_patches-seed0.json").unlink()
    assert "larger_patches_unmatched_4" in [row.name for row in load_rows(results)]


def test_seeds_are_brought_together_and_the_same_run_counts_once(results):
    for question in ("controls_9", "controls_16"):
        for seed, right in ((0, 106), (1, 126)):
            write(results, question, "dense_stem", seed, right, of_variant("dense_stem"))
    row = next(row for row in load_rows(results) if row.name == "dense_stem")
    assert sorted(row.runs) == [0, 1]
    accuracy = row.accuracy()
    assert accuracy.mean == pytest.approx(0.58) and accuracy.low < 0.55 < 0.61 < accuracy.high


def test_rows_of_another_recipe_are_refused(results):
    # What a field that came later was before is no difference, nor is what the row itself is.
    path = results / "controls_4" / "grid-seed0.json"
    old = json.loads(path.read_text())
    del old["recipe"]["train_compactness"]
    path.write_text(json.dumps({**old, "recipe": {**old["recipe"], "regions": "grid"}}))
    assert len(load_rows(results)) == len(NAMES)
    write(results, "controls_4", "superpixel", 1, 100, of_variant("superpixel", batch_size=7))
    with pytest.raises(ValueError, match=re.escape("got {'batch_size': (64, 7)}")):
        load_rows(results)


def test_one_name_is_one_configuration(results):
    other = of_variant("grid")
    other["configuration"]["hidden_size"] = 32
    write(results, "controls_16", "grid", 0, 100, other)
    with pytest.raises(ValueError, match="Expected one configuration of grid_4, got another one in controls_4"):
        load_rows(results, ["controls_16", "controls_4"])


def test_questions_without_results_are_named(tmp_path):
    with pytest.raises(ValueError, match="Expected results of peers in"):
        load_rows(tmp_path, ["peers"])


# Times


def test_rows_are_timed_as_they_were_trained(results, image_files):
    rows = load_rows(results)
    found = frontier.throughput(rows, image_files, [1, 3], repeats=1)
    assert found["failures"] == [] and found["settings"]["baseline"] == "dense_stem"
    assert {(row["subject"], row["batch_size"]) for row in found["rows"]} == {(n, b) for n in NAMES for b in (1, 3)}
    parts = {name: {row["part"] for row in found["rows"] if row["subject"] == name} for name in NAMES}
    assert {name for name in NAMES if "superpixels" in parts[name]} == {"superpixel_4", "superpixel_latent_4"}
    parameters = {cost["subject"]: cost["parameters"] for cost in found["costs"]}
    expected = FocusViTForImageClassification(settings({**SMALLEST, "num_superpixels": 4})[0]).num_parameters()
    assert parameters["superpixel_4"] == expected
    assert len(frontier.table(rows, json.loads(json.dumps(found)))) == len(rows)


def test_every_row_is_fed_the_same_pixels(results):
    images = list(blobs(2)["image"])
    fed = []
    for row in load_rows(results):
        model, processor = row.subject().build(32)
        inputs = processor(images, return_tensors="pt")
        assert ("superpixel_ids" in inputs) == row.name.startswith("superpixel")
        with torch.no_grad():
            assert model.eval()(**inputs).logits.shape == (2, 10)
        fed.append(inputs["pixel_values"])
    assert all(torch.equal(values, fed[0]) for values in fed)


def test_rows_of_several_sizes_are_not_timed_together(results, image_files):
    larger = of_variant("grid")
    larger["configuration"]["image_size"] = 64
    write(results, "controls_9", "grid", 0, 100, {**larger, "tokens": 9})
    with pytest.raises(ValueError, match=re.escape("got [32, 64]; choose with --image_size")):
        frontier.throughput(load_rows(results), image_files)


# The table


def test_the_frontier_is_what_nothing_beats(results):
    rows = load_rows(results)
    found = {row["name"]: row for row in frontier.table(rows, measured(rows, superpixel_4=400.0, grid_4=50.0))}
    # Right: 100, 101, 102, 104, 106 and 150 of 200; all but two are as fast as each other.
    best = [name for name, row in found.items() if row["frontier"]["32"]]
    assert best == ["superpixel_4", "LeViT-128S"]
    assert next(iter(found)) == "superpixel_4" and list(found)[-1] == "grid_4"
    speed = found["superpixel_4"]["speed"]["1"]
    assert speed == pytest.approx({"median": 400, "lower_quartile": 320, "upper_quartile": 500, "model": 400})
    accuracy = found["LeViT-128S"]["accuracy"]
    assert accuracy["mean"] == 0.75 and accuracy["low"] == pytest.approx(0.69, abs=0.01)
    lines = frontier.markdown(list(found.values())).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[2].startswith("| superpixel_4 | FocusViT | 4 | 0.00 M | 1 | 50.0 [43.0, 57.0] | **400** [320, 500]")


def test_points_that_are_alike_are_both_on_the_frontier():
    rows = [{"speed": {"1": {"median": 2.0}}, "accuracy": {"mean": 0.5}} for _ in range(2)]
    assert all(frontier.is_best(row, rows, "1") for row in rows)


def test_times_of_something_else_are_refused(results):
    rows = load_rows(results)
    times = measured(rows)
    times["built"]["grid_4"] = {**times["built"]["grid_4"], "hidden_size": 99}
    with pytest.raises(ValueError, match="got others of grid_4; measure again"):
        frontier.table(rows, times)
    del times["built"]["grid_4"]
    with pytest.raises(ValueError, match="Expected times of grid_4; measure again"):
        frontier.table(rows, times)


# The plot


def test_the_image_names_every_point(results):
    rows = load_rows(results)
    found = frontier.table(rows, measured(rows, **{name: 50.0 * 2**n for n, name in enumerate(NAMES)}))
    with Image.open(io.BytesIO(frontier_plot.draw(found, "32", "title", "foot"))) as image:
        assert image.format == "PNG" and image.width >= 900
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=2**20)}
    drawn = {tuple(bytes.fromhex(frontier_plot._COLOURS[row.family][1:])) for row in rows}
    assert drawn <= colours


def test_labels_do_not_cover_each_other():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = [(100.0, 70.0), (101.0, 70.0), (100.0, 70.2), (400.0, 50.0)]
    names = [Name("a name", place, "#000000", 7.5) for place in places]
    others = [(100.0, 68.0)]
    figure = Figure(dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlim(50, 450)
    axes.set_ylim(40, 80)
    name_points(figure, axes, names, others)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4
    assert not any(box.contains(*axes.transData.transform(place)) for box in boxes for place in places + others)
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
    assert all(axes.get_window_extent().contains(*corner) for box in boxes for corner in box.corners())


@pytest.mark.parametrize(("low", "high"), [(50, 700), (13, 80), (90, 140), (42, 140), (0.02, 900)])
def test_an_axis_has_a_few_ticks(low, high):
    ticks = list(ticks_between(low, high))
    assert 4 <= len(ticks) <= 16 and all(low <= tick <= high for tick in ticks)
    assert ticks == sorted(ticks)


# Programs and trained folders


@pytest.fixture
def parquet(tmp_path):
    folder = tmp_path / "blobs"
    folder.mkdir()
    blobs(6).to_parquet(folder / "test-00000.parquet")
    return folder


def test_the_programs_write_times_tables_and_images(results, parquet, tmp_path, capsys):
    places = ["--results", str(results), "--image_size", "32"]
    frontier.main(["measure", *places, "--data", str(parquet), "--batch_sizes", "1", "2", "--repeats", "1"])
    out = tmp_path / "out"
    frontier.main(["plot", *places, "--tables", str(out), "--plots", str(out)])
    assert sorted(path.name for path in out.iterdir()) == [
        "frontier-batch1.png",
        "frontier.json",
        "frontier.md",
        "frontier.png",
    ]
    table = json.loads((out / "frontier.json").read_text())
    assert {row["name"] for row in table["rows"]} == set(NAMES) and table["epochs"] == 20
    assert table["environment"]["commit"] and (out / "frontier.md").read_text() in capsys.readouterr().out
    with pytest.raises(ValueError, match="Expected results at 224 pixels"):
        frontier.main(["plot", "--results", str(results), "--image_size", "224"])


def test_trained_folders_are_recorded_and_timed(parquet, tmp_path):
    fields = {**SMALLEST, "num_superpixels": 4, "num_labels": 3, "patch_size": 8}
    for name, pooling in (("ours-seed1", "superpixel"), ("dense", "none")):
        config = FocusViTConfig(**fields, patch_pooling=pooling)
        model = FocusViTForImageClassification(config)
        model.save_pretrained(tmp_path / name)
        FocusViTImageProcessor.from_model_config(config).save_pretrained(tmp_path / name)
        log = {"arguments": {"learning_rate": 0.5, "num_train_epochs": 7.0, "preset": name}}
        (tmp_path / name / "training_log.json").write_text(json.dumps(log))
    folders = [str(tmp_path / name) for name in ("ours-seed1", "dense")]
    places = ["--results", str(tmp_path / "results"), "--questions", "full"]
    frontier.main(["record", *folders, *places, "--data", str(parquet)])
    rows = {row.name: row for row in load_rows(tmp_path / "results", ["full"])}
    assert {name: (row.family, sorted(row.runs)) for name, row in rows.items()} == {
        "ours": ("FocusViT, latent attention", [1]),
        "dense": (DENSE, [0]),
    }
    assert rows["ours"].first["recipe"]["learning_rate"] == 0.5 and rows["ours"].first["images"] == 6
    # The same as by hand.
    model = FocusViTForImageClassification.from_pretrained(folders[1])
    data = blobs(6)
    inputs = FocusViTImageProcessor.from_pretrained(folders[1])(list(data["image"]), return_tensors="pt")
    with torch.no_grad():
        right = model(**inputs).logits.argmax(dim=1).numpy() == data["label"]
    assert rows["dense"].first["accuracy"] == pytest.approx(right.mean())
    options = ["--image_size", "32", "--name", "full_frontier"]
    measured_once = ["--data", str(parquet), "--batch_sizes", "1", "--repeats", "1"]
    frontier.main(["measure", *places, *options, "--folders", *folders, *measured_once])
    out = ["--tables", str(tmp_path / "out"), "--plots", str(tmp_path / "out")]
    frontier.main(["plot", *places, *options, *out, "--title", "Blobs"])
    assert (tmp_path / "out" / "full_frontier.png").is_file()
    # Where the folders lay is nobody's business.
    for path in (tmp_path / "results").rglob("*-seed*.json"):
        content = json.loads(path.read_text())
        content.pop("environment")
        assert str(tmp_path) not in json.dumps(content)


def test_what_cannot_be_recorded_is_refused(results, parquet, tmp_path, image_files):
    with pytest.raises(ValueError, match="Expected --questions NEW_NAME"):
        frontier.main(["record", str(tmp_path), "--results", str(results)])
    config = FocusViTConfig(**SMALLEST, num_superpixels=4, num_labels=2, patch_size=8)
    FocusViTForImageClassification(config).save_pretrained(tmp_path / "two")
    FocusViTImageProcessor.from_model_config(config).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="Expected a model of 3 classes, got 2"):
        frontier_folders.record(tmp_path / "two", parquet, "full", results)
    with pytest.raises(ValueError, match=re.escape("Expected folders that are recorded, got ['two']")):
        frontier.throughput(load_rows(results), image_files, folders=[tmp_path / "two"])


@pytest.mark.parametrize(
    ("folder", "expected"), [("tiny", ("tiny", 0)), ("a/tiny-seed12", ("tiny", 12)), ("x-seed", ("x-seed", 0))]
)
def test_seeds_are_read_from_the_names_of_folders(folder, expected, tmp_path):
    assert frontier_folders.name_and_seed(tmp_path / folder) == expected
