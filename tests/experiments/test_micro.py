"""The harness of the experiments: images, regions, training at micro scale, changed images."""

import json
import re

import datasets
import numpy as np
import pytest
import torch
from skimage.measure import label

from blobs import SMALLEST, blob_tensors, write_parquet
from experiments.micro import results as results_module
from experiments.micro import run as micro
from experiments.micro import training as micro_training
from experiments.micro.data import Examples, load_examples, load_images, training_and_evaluation
from experiments.micro.questions import PARAMETER_TOLERANCE, QUESTIONS, parameters_matched
from experiments.micro.regions import detail_tiles, random_regions, region_ids
from experiments.robustness import checkpoints as robustness_of_checkpoints
from experiments.robustness import corruptions
from experiments.robustness import run as robustness
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification
from focusvit_hf.superpixels import slic


TINY = {**SMALLEST, "num_superpixels": 4, "num_labels": 3}
SHORT = {"epochs": 2, "batch_size": 16}


@pytest.fixture(scope="module")
def examples():
    """48 blobs of 32 pixels, three classes."""
    return Examples(*blob_tensors(48))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """The same kind of images as a data set in files."""
    return write_parquet(tmp_path_factory.mktemp("blobs"), 40)


# Images


def test_images_are_shrunk_once_and_kept(parquet, tmp_path, monkeypatch):
    examples = load_examples(parquet, "test", 16, tmp_path)
    assert examples.images.shape == (10, 3, 16, 16) and examples.images.dtype == torch.uint8
    assert examples.labels.tolist() == [number % 3 for number in range(100, 110)]
    monkeypatch.setattr(datasets, "load_dataset", None)
    again = load_examples(parquet, "test", 16, tmp_path)
    assert torch.equal(again.images, examples.images)


def test_images_alone_are_loaded_whatever_else_a_data_set_has(parquet, tmp_path):
    images = load_images(parquet, "test", 16, tmp_path)
    assert torch.equal(images, load_examples(parquet, "test", 16, tmp_path).images)
    assert torch.equal(images, load_images(parquet, "test", 16, tmp_path))
    with pytest.raises(ValueError, match="expected a folder of parquet files"):
        load_images(tmp_path / "nowhere", "train", 16, tmp_path)
    with pytest.raises(ValueError, match="Unknown split"):
        load_images(parquet, "dusk", 16, tmp_path)


def test_what_is_held_out_is_not_trained_on(parquet, tmp_path):
    everything, test = training_and_evaluation(parquet, 32, "test", tmp_path)
    training, validation = training_and_evaluation(parquet, 32, "validation", tmp_path)
    assert (len(everything), len(test), len(training), len(validation)) == (40, 10, 32, 8)
    seen = {image.numpy().tobytes() for image in training.images}
    assert not any(image.numpy().tobytes() in seen for image in validation.images)
    with pytest.raises(ValueError, match="Expected split to be one of"):
        training_and_evaluation(parquet, 32, "train", tmp_path)


# Regions


@pytest.mark.parametrize(("count", "cells"), [(36, (24, 24)), (10, (9, 17)), ((3, 2), (7, 11))], ids=str)
def test_random_regions_are_connected_and_all_there(count, cells):
    ids = random_regions(6, count, cells, torch.Generator().manual_seed(3))
    total = count if isinstance(count, int) else count[0] * count[1]
    for one in ids.numpy():
        assert sorted(np.unique(one)) == list(range(total))
        assert label(one + 1, connectivity=1).max() == total
    assert not torch.equal(ids[0], ids[1])
    assert torch.equal(ids, random_regions(6, count, cells, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(("count", "side"), [(1, 12), (7, 12), (16, 12), (30, 12), (36, 12)])
def test_tiles_by_detail_are_rectangles_and_all_there(count, side):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8)
    images[1] = 7
    images[2, :, :20] = 7
    ids = detail_tiles(images, count, 2)
    assert ids.shape == (3, side, side) and ids.dtype == torch.long
    for one in ids:
        assert one.unique().tolist() == list(range(count))
        for number in range(count):
            rows, columns = (one == number).nonzero(as_tuple=True)
            assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    with pytest.raises(ValueError, match="at most 36 tiles by detail"):
        detail_tiles(images, 37, 2)
    # All detail is in the lowest sixth: more than a sixth of the tiles are there, and where there is none, a sixth.
    if count >= 16:
        assert len(ids[2, 10:].unique()) > count // 3
        assert (ids[1].flatten().bincount() <= 2 * side**2 / count).all()


def test_regions_of_another_image_are_superpixels_of_the_one_before(examples):
    images = examples.images[:4]
    ids = region_ids(images, "other_image", 4, 10.0, 5, 4)
    assert torch.equal(ids, slic(images, 4, 10.0, 5, 4)[[3, 0, 1, 2]])
    with pytest.raises(ValueError, match="Expected regions to be one of"):
        region_ids(images, "voronoi", 4, 10.0, 5, 4)


# Training


def test_variants_of_a_seed_see_the_same_images(examples):
    seen = []
    for variant in ({}, {"patch_pooling": "grid"}):
        config, recipe = micro_training.settings({**TINY, **variant}, batch_size=16)
        seen.append(list(micro_training.batches(examples, config, recipe, torch.Generator().manual_seed(5))))
    assert len(seen[0]) == 3
    for (images, labels), (others, other_labels) in zip(*seen, strict=True):
        assert images.dtype == torch.uint8 and images.shape == (16, 3, 32, 32)
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


def test_mixed_images_have_probabilities(examples):
    config, recipe = micro_training.settings(TINY, cutmix_alpha=1.0, mix_probability=1.0, batch_size=16)
    _, targets = next(micro_training.batches(examples, config, recipe, torch.Generator().manual_seed(0)))
    assert targets.shape == (16, 3)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(16))


def test_training_repeats_and_learns(examples):
    first, second = (micro_training.train(TINY, 1, examples, learning_rate=1e-2, **SHORT) for _ in range(2))
    other = micro_training.train(TINY, 2, examples, learning_rate=1e-2, **SHORT)
    assert [entry["loss"] for entry in first.history] == [entry["loss"] for entry in second.history]
    assert first.history[-1]["loss"] != other.history[-1]["loss"]
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])
    longer = micro_training.train(TINY, 1, examples, learning_rate=1e-2, epochs=12, batch_size=16)
    assert longer.history[-1]["loss"] < longer.history[0]["loss"] - 0.05
    outcome, loss = micro_training.outcomes(longer, examples)
    assert outcome.shape == (48,) and 0 < loss < 10


@pytest.mark.parametrize(
    "changes",
    [
        {"regions": "random"},
        {"regions": "other_image"},
        {"train_num_superpixels": (4, 16), "train_compactness": (5.0, 20.0)},
        {"ema_decay": 0.9},
        {"precision": "float32", "patch_pooling": "none"},
        {"layer_types": "latent_attention", "num_latents": 2},
    ],
    ids=str,
)
def test_every_kind_of_variant_trains(examples, changes):
    run = micro_training.train({**TINY, **changes}, 0, examples, **SHORT)
    assert len(run.history) == 2 and not run.model.training
    # What was drawn for a batch does not outlive it.
    assert (run.model.config.num_superpixels, run.model.config.superpixel_compactness) == (4, 10.0)


@pytest.mark.parametrize("seen", ["embeddings", "moments", "both"])
def test_predictors_see_what_the_variant_says(examples, seen):
    spot = {"num_hidden_layers": 2, "sparsification_layers": [1], "sparsification_relevance": "learned"}
    run = micro_training.train({**TINY, **spot, "predictor_inputs": seen}, 0, examples, **SHORT)
    [predictor] = run.model.focusvit.sparsification.predictors
    tokens, moments = torch.randn(2, 1, 16, predictor.norm.weight.shape[0]), torch.rand(2, 1, 16, 6, 2)
    with torch.no_grad():
        of_tokens = predictor(tokens[0], moments[0]) - predictor(tokens[1], moments[0])
        of_moments = predictor(tokens[0], moments[0]) - predictor(tokens[0], moments[1])
    assert bool(of_tokens.any()) == (seen != "moments")
    assert bool(of_moments.any()) == (seen != "embeddings")
    with pytest.raises(ValueError, match="got 'nothing'"):
        micro_training.train({**TINY, **spot, "predictor_inputs": "nothing"}, 0, examples, **SHORT)


def test_a_teacher_takes_part(examples, tmp_path):
    # It knows one class only, which no label says.
    of_one = Examples(examples.images, torch.zeros_like(examples.labels))
    teacher = micro_training.train(TINY, 0, of_one, learning_rate=1e-2, **SHORT)
    micro_training.save_model(teacher.model, tmp_path / "controls" / "superpixel-seed0")
    student = {**TINY, "patch_pooling": "grid"}
    alone, taught = (
        micro_training.train({**student, **more}, 1, examples, tmp_path, learning_rate=1e-2, **SHORT)
        for more in ({}, {"teacher": "controls/superpixel-seed0"})
    )
    shares = [
        micro_training.predict(run.model, examples.images).softmax(dim=1)[:, 0].mean() for run in (alone, taught)
    ]
    assert shares[1] > shares[0] + 0.05
    with pytest.raises(ValueError, match="Expected weights of the teacher controls/grid-seed0, trained before, got"):
        micro_training.train({**student, "teacher": "controls/grid-seed0"}, 1, examples, tmp_path, **SHORT)


def test_settings_refuse_what_nobody_knows():
    with pytest.raises(ValueError, match=r"Expected fields of the configuration or of the recipe, got \['num_latent'"):
        micro_training.settings({"num_latent": 3})


def test_saved_weights_are_halved_and_loaded_in_full(examples, tmp_path):
    run = micro_training.train(TINY, 0, examples, **SHORT)
    micro_training.save_model(run.model, tmp_path)
    loaded = micro_training.load_model(tmp_path)
    assert next(loaded.parameters()).dtype == torch.float32
    expected, found = (micro_training.predict(model, examples.images) for model in (run.model, loaded))
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)
    assert (tmp_path / "model.safetensors").stat().st_size < 2.5 * run.model.num_parameters() + 5000


# Questions and runs


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_can_be_asked(question):
    asked = QUESTIONS[question]()
    assert asked.control in asked.variants
    configs = {name: micro_training.settings(variant)[0] for name, variant in asked.variants.items()}
    if not question.startswith("controls"):
        return
    wanted = micro_training.num_parameters(configs["superpixel"])
    assert set(configs) >= {"grid", "random", "dense_linear", "dense_stem"}
    for name, config in configs.items():
        assert config.num_tokens >= configs["superpixel"].num_tokens
        if name.endswith("_unmatched"):
            continue
        assert abs(micro_training.num_parameters(config) / wanted - 1) <= PARAMETER_TOLERANCE, name


def test_parameters_are_matched_by_the_mlp():
    variant = {"patch_pooling": "none", "embedding_type": "patch", "patch_size": 32}
    wanted, plain = (micro_training.num_parameters(micro_training.settings(v)[0]) for v in ({}, variant))
    matched = micro_training.num_parameters(micro_training.settings(parameters_matched(variant, {}))[0])
    assert plain / wanted > 1 + PARAMETER_TOLERANCE
    assert matched == pytest.approx(wanted, rel=0.002)


def test_a_finished_run_is_not_run_again(parquet, tmp_path, monkeypatch):
    monkeypatch.setattr(micro_training, "BASE", {**micro_training.BASE, **TINY})
    places = {"data": parquet, "cache": tmp_path / "cache", "results": tmp_path / "results"}
    names = ["full", "latent_8"]
    assert micro.unfinished("attention", names, [0, 1], "test", places["results"], **SHORT) == [
        ("full", 0),
        ("latent_8", 0),
        ("full", 1),
        ("latent_8", 1),
    ]
    result = micro.run("attention", "full", {}, 1, "test", **places, **SHORT)
    stored = json.loads((tmp_path / "results" / "attention" / "full-seed1.json").read_text())
    assert stored["accuracy"] == result["accuracy"] == results_module.unpacked(stored["correct"], 10).mean()
    assert stored["environment"]["seed"] == 1 and stored["environment"]["dtype"] == "float32"
    assert (tmp_path / "cache" / "weights" / "attention" / "full-seed1" / "model.safetensors").is_file()
    model, test = micro.load_run("attention", "full", 1, **places, limit=7)
    assert len(test) == 7 and model.config.layer_types == ["full_attention"]
    assert micro.load_run("attention", "full", 0, **places) is None
    left = micro.unfinished("attention", names, [0, 1], "test", places["results"], **SHORT)
    assert ("full", 1) not in left and len(left) == 3
    assert len(micro.unfinished("attention", names, [1], "validation", places["results"], **SHORT)) == 2
    with pytest.raises(ValueError, match=re.escape("with {'epochs': 3}, got {'epochs': 2}")):
        micro.unfinished("attention", names, [1], "test", places["results"], epochs=3, batch_size=16)


def test_weights_have_to_be_those_of_the_result(parquet, tmp_path, monkeypatch):
    monkeypatch.setattr(micro_training, "BASE", {**micro_training.BASE, **TINY})
    places = {"data": parquet, "cache": tmp_path / "cache", "results": tmp_path / "results"}
    result = micro.run("attention", "full", {}, 0, "test", **places, **SHORT)
    path = tmp_path / "results" / "attention" / "full-seed0.json"
    wrong = results_module.packed(~results_module.unpacked(result["correct"], 10))
    path.write_text(json.dumps({**result, "correct": wrong}))
    with pytest.raises(ValueError, match=r"Expected the weights of .*full-seed0.json, got others: 10 of 10 images"):
        micro.load_run("attention", "full", 0, **places)
    path.unlink()
    with pytest.raises(ValueError, match=r"Expected .*full-seed0.json beside the weights of the run, got none"):
        micro.load_run("attention", "full", 0, **places)


def test_a_result_says_what_code_it_began_with(parquet, tmp_path, monkeypatch):
    monkeypatch.setattr(micro_training, "BASE", {**micro_training.BASE, **TINY})
    places = {"data": parquet, "cache": tmp_path / "cache", "results": tmp_path / "results"}
    order = []

    def train(*given, **more):
        order.append("train")
        return micro_training.train(*given, **more)

    monkeypatch.setattr(results_module, "environment", lambda *given: order.append("environment"))
    monkeypatch.setattr(micro, "train", train)
    micro.run("attention", "full", {}, 0, "test", **places, **SHORT)
    assert order == ["environment", "train"]


def test_a_teacher_has_seen_what_is_held_out(parquet, tmp_path):
    with pytest.raises(ValueError, match="Expected a run on the test split, got 'validation'"):
        micro.run("distillation", "taught", {"teacher": "peers/ResNet-18-seed0"}, 0, "validation", parquet, tmp_path)


def test_outcomes_are_packed_and_unpacked():
    outcome = np.random.default_rng(0).random(2001) < 0.7
    text = results_module.packed(outcome)
    assert len(text) < 350
    assert np.array_equal(results_module.unpacked(text, 2001), outcome)


# Changed images


def test_corruptions_keep_images_images(small_photographs):
    sizes = {"taller_1.5": (48, 32), "wider_1.5": (32, 48)}
    for name, corrupt in corruptions.CORRUPTIONS.items():
        changed = corrupt(small_photographs)
        assert changed.dtype == torch.uint8 and changed.shape == (4, 3, *sizes.get(name, (32, 32))), name
        assert changed.shape != small_photographs.shape or not torch.equal(changed, small_photographs), name


def test_corruptions_do_what_they_say(small_photographs):
    grey = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    for corrupt in (corruptions.blur, corruptions.rotate, corruptions.jpeg):
        assert (corrupt(grey).int() - grey.int()).abs().max() <= 1
    assert torch.equal(corruptions.rotate(small_photographs, 0.0), small_photographs)
    quarter = torch.rot90(small_photographs, 1, (2, 3))
    turned = (corruptions.rotate(small_photographs, angle).int() for angle in (90.0, -90.0))
    assert any((one - quarter.int()).abs().max() <= 1 for one in turned)
    assert corruptions.brightness(grey, 1.5).unique().tolist() == [150]
    assert corruptions.brightness(grey, 3.0).unique().tolist() == [255]
    point = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    point[..., 16, 16] = 255
    spread = corruptions.blur(point, 1.0)[0, 0].float() / 255
    assert spread[16, 16] == pytest.approx(1 / (2 * torch.pi), abs=0.01)
    assert spread[16, 17] == pytest.approx(float(spread[17, 16])) and spread.sum() == pytest.approx(1.0, abs=0.05)


def test_images_are_changed_a_few_at_a_time(examples, monkeypatch):
    monkeypatch.setattr(robustness, "_CHUNK", 3)
    for name, corrupt in corruptions.CORRUPTIONS.items():
        assert torch.equal(robustness._changed(examples.images[:8], corrupt), corrupt(examples.images[:8])), name


def test_models_are_measured_under_every_change(examples):
    some = examples[slice(8)]
    larger = Examples(some.images.repeat_interleave(2, 2).repeat_interleave(2, 3), some.labels)
    run = micro_training.train(TINY, 0, examples, **SHORT)
    measured = robustness.measure(run.model, some, larger)
    # Half, one and a half times and twice the 4 superpixels; three of them cannot be laid out.
    assert list(measured) == ["clean", *corruptions.CORRUPTIONS, "larger", "k_2", "k_6", "k_8"]
    assert all(outcome.shape == (8,) and outcome.dtype == bool for outcome in measured.values())
    assert run.model.config.num_superpixels == 4
    dense = micro_training.train({**TINY, "patch_pooling": "none", "patch_size": 32}, 0, examples, **SHORT)
    assert list(robustness.measure(dense.model, some, larger)) == [
        "clean",
        *(name for name in corruptions.CORRUPTIONS if name not in ("taller_1.5", "wider_1.5")),
        "larger",
    ]


def test_robustness_on_held_out_images(parquet, tmp_path, monkeypatch):
    monkeypatch.setattr(micro_training, "BASE", {**micro_training.BASE, **TINY})
    places = {"data": parquet, "cache": tmp_path / "cache", "results": tmp_path / "results"}
    result = micro.run("elastic", "fixed", {}, 0, "validation", **places, **SHORT)
    _, held_out = micro.load_run("elastic", "fixed", 0, **places, split="validation")
    assert torch.equal(held_out.images, training_and_evaluation(parquet, 32, "validation", places["cache"])[1].images)
    assert micro.load_run("elastic", "fixed", 0, **places) is None
    flags = [text for name, place in places.items() for text in (f"--{name}", str(place))]
    tables = ["--tables", str(tmp_path / "tables"), "--larger", "64"]
    robustness.main(["elastic", "--variants", "fixed", "--split", "validation", *flags, *tables])
    (written,) = (tmp_path / "tables").glob("*.json")
    assert written.name == "elastic-validation-robustness.json"
    content = json.loads(written.read_text())
    assert content["split"] == "validation"
    assert content["rows"][0]["accuracy"] == pytest.approx(result["accuracy"])


def test_robustness_of_checkpoints(parquet, tmp_path):
    for seed, name in enumerate(("control", "other")):
        torch.manual_seed(seed)
        FocusViTForImageClassification(FocusViTConfig(**TINY)).save_pretrained(tmp_path / name)
    FocusViTForImageClassification(FocusViTConfig(**{**TINY, "image_size": 64})).save_pretrained(tmp_path / "larger")
    flags = ["--data", str(parquet), "--cache", str(tmp_path / "cache"), "--tables", str(tmp_path / "tables")]
    folders = [str(tmp_path / name) for name in ("control", "other")]
    robustness_of_checkpoints.main([*folders, "--name", "blobs", *flags])
    content = json.loads((tmp_path / "tables" / "blobs-robustness.json").read_text())
    assert (content["control"], content["images"]) == ("control", 10)
    assert {row["variant"] for row in content["rows"] if "difference" in row} == {"other"}
    with pytest.raises(ValueError, match=r"models for one size, got \[\(32, 32\), \(64, 64\)\]"):
        robustness_of_checkpoints.main([folders[0], str(tmp_path / "larger"), *flags])


def test_robustness_takes_variants_of_other_questions():
    assert robustness.question_and_variant("grid", "controls_36") == ("controls_36", "grid")
    assert robustness.question_and_variant("elastic/drawn_k", "controls_36") == ("elastic", "drawn_k")
    for name in ("drawn_k", "elastic/grid", "nothing/grid"):
        with pytest.raises(ValueError, match=f"Expected a variant of 'controls_36'.*, got '{name}'"):
            robustness.question_and_variant(name, "controls_36")


def test_changes_are_compared_with_the_control():
    def outcomes(**right):
        return {name: np.arange(100) < count for name, count in right.items()}

    measured = {
        "dense": {0: outcomes(clean=80, blur=60)},
        "ours": {0: outcomes(clean=78, blur=77, k_2=70)},
    }
    rows = {(row["variant"], row["condition"]): row for row in robustness.rows_of(measured, "dense", 0.015)}
    assert rows["dense", "blur"]["change"]["mean"] == pytest.approx(-0.2) and "verdict" not in rows["dense", "blur"]
    assert rows["ours", "blur"]["change"]["mean"] == pytest.approx(-0.01)
    assert rows["ours", "blur"]["difference"]["mean"] == pytest.approx(0.19)
    assert rows["ours", "blur"]["verdict"] == "better"
    assert "difference" not in rows["ours", "k_2"] and "change" not in rows["ours", "clean"]
    text = robustness.markdown(list(rows.values()), "dense")
    assert text.splitlines()[2] == "| clean | dense | 80.0 |  |  |  |"
