"""The number of superpixels drawn anew for every step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import run_classification
import run_classification_no_trainer
from blobs import flags, losses
from focusvit_hf import FocusViTConfig
from focusvit_hf.modeling_focusvit import FocusViTModel
from focusvit_hf.training.elastic import ElasticKeepRatio, ElasticSuperpixels


CHOICES = (4, 9, 16)


def test_every_number_is_drawn_about_as_often():
    elastic = ElasticSuperpixels(FocusViTConfig(), CHOICES, seed=3)
    drawn = [elastic.at(step) for step in range(3000)]
    counts = np.array([drawn.count(choice) for choice in CHOICES])
    # Five standard deviations of a binomial distribution.
    assert np.abs(counts - 1000).max() < 5 * (3000 * (1 / 3) * (2 / 3)) ** 0.5
    assert drawn != [ElasticSuperpixels(FocusViTConfig(), CHOICES, seed=4).at(step) for step in range(3000)]


@given(seed=st.integers(0, 2**31), step=st.integers(0, 10**9))
def test_a_draw_is_one_of_the_choices_and_lasts_for_its_step(seed, step):
    config = FocusViTConfig(num_superpixels=49)
    elastic = ElasticSuperpixels(config, CHOICES, seed)
    with elastic.drawn(step):
        assert config.num_superpixels == elastic.at(step)
        assert config.num_superpixels in CHOICES
    assert config.num_superpixels == 49


def test_the_number_comes_back_after_an_error():
    config = FocusViTConfig(num_superpixels=49)
    with pytest.raises(KeyError), ElasticSuperpixels(config, CHOICES).drawn(0):
        raise KeyError
    assert config.num_superpixels == 49


@pytest.mark.parametrize(
    ("choices", "changes", "message"),
    [
        ((), {}, r"one or more different numbers of superpixels to draw from, got \(\)"),
        ((4, 9, 4), {}, r"different numbers of superpixels to draw from, got \(4, 9, 4\)"),
        ((9, 13), {}, "13"),
        ((9, 0), {}, "num_superpixels=0"),
        ((9,), {"patch_pooling": "none"}, "patch_pooling 'superpixel' or 'grid'"),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_drawn_are_refused(choices, changes, message):
    with pytest.raises(ValueError, match=message):
        ElasticSuperpixels(FocusViTConfig(**changes), choices)


def test_both_scripts_draw_alike_and_in_training_alone(blob_dir, tmp_path, monkeypatch):
    seen: list[tuple[bool, int]] = []
    compute = FocusViTModel.compute_superpixel_ids

    def spy(model, pixel_values):
        seen.append((model.training, model.config.num_superpixels))
        return compute(model, pixel_values)

    monkeypatch.setattr(FocusViTModel, "compute_superpixel_ids", spy)
    config = FocusViTConfig(image_size=32, patch_size=4, num_superpixels=16)
    expected = [(True, ElasticSuperpixels(config, CHOICES, seed=42).at(step)) for step in range(6)]
    assert len(set(expected)) > 1
    drawn = ["--train_num_superpixels", *map(str, CHOICES)]
    runs = {}
    for script in (run_classification, run_classification_no_trainer):
        seen.clear()
        runs[script] = tmp_path / script.__name__
        script.main([*flags(blob_dir, runs[script], eval_strategy="steps", eval_steps=2, ema_decay=0.9), *drawn])
        assert [draw for draw in seen if draw[0]] == expected
        # In evaluation the image processor computes them, but in the pipeline that measures what was saved the model.
        assert {num_superpixels for training, num_superpixels in seen if not training} == {16}
        assert FocusViTConfig.from_pretrained(runs[script]).num_superpixels == 16
    assert losses(runs[run_classification]) == pytest.approx(losses(runs[run_classification_no_trainer]), abs=1e-4)


def test_a_resumed_run_draws_as_an_uninterrupted_one(blob_dir, tmp_path, monkeypatch):
    seen = []
    begin = ElasticSuperpixels.on_step_begin

    def spy(elastic, args, state, control, **kwargs):
        if state.global_step == 4 and 4 not in seen:
            seen.append(4)
            raise KeyboardInterrupt
        begin(elastic, args, state, control, **kwargs)
        seen.append((state.global_step, elastic.config.num_superpixels))

    monkeypatch.setattr(ElasticSuperpixels, "on_step_begin", spy)
    command = flags(blob_dir, tmp_path / "run", save_strategy="steps", save_steps=3, final_evaluation=False)
    command += ["--train_num_superpixels", *map(str, CHOICES)]
    with pytest.raises(KeyboardInterrupt):
        run_classification.main(command)
    run_classification.main(command)
    config = FocusViTConfig(image_size=32, patch_size=4, num_superpixels=16)
    expected = [(step, ElasticSuperpixels(config, CHOICES, seed=42).at(step)) for step in range(6)]
    assert seen == [*expected[:4], 4, *expected[3:]]


SPARSE = {"layer_types": ["full_attention"] * 2, "sparsification_layers": [1]}


def test_keep_ratios_are_drawn_for_each_step(tiny_model, pixels):
    model = tiny_model(**SPARSE, keep_ratio=0.7)
    elastic = ElasticKeepRatio(model.config, (0.25, 0.5, 1.0), seed=1)
    counts = set()
    for step in range(12):
        with elastic.drawn(step):
            counts.add((elastic.at(step), model(pixels).kept_tokens[0].shape[1]))
        assert model.config.keep_ratio == 0.7
    assert counts == {(0.25, 4), (0.5, 8), (1.0, 16)}


@pytest.mark.parametrize(
    ("options", "ratios", "message"),
    [
        (SPARSE, (), "one or more different keep ratios"),
        (SPARSE, (0.5, 0.5), "one or more different keep ratios"),
        (SPARSE, (0.5, 1.5), r"keep_ratio in \(0, 1\], got 1.5"),
        ({}, (0.5,), "a model with sparsification_layers to draw keep ratios for"),
    ],
    ids=["none", "twice", "too large", "all tokens stay"],
)
def test_keep_ratios_that_cannot_be_drawn_are_refused(tiny_config, options, ratios, message):
    with pytest.raises(ValueError, match=message):
        ElasticKeepRatio(tiny_config(**options), ratios)
