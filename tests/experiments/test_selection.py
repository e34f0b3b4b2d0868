"""Composites, micro models and tables of select-and-pack attention."""

import pytest
import torch

from experiments.micro.data import Examples
from experiments.micro.results import Beginning, write_result
from experiments.micro.tables import collect
from experiments.selection import run, speed, systems, tables
from experiments.selection.composites import composites
from focusvit_hf import FocusViTConfig


@pytest.fixture
def examples():
    images = torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)
    return Examples(images, torch.arange(12) % 10)


def test_a_mask_is_where_the_image_was_pasted(examples):
    white = Examples(torch.full_like(examples.images, 255), examples.labels)
    white.images[6:] = 0
    images, masks = composites(white, torch.arange(6), 64, torch.Generator().manual_seed(0))
    assert images.dtype == torch.uint8 and images.shape == (6, 3, 64, 64)
    for image, mask in zip(images, masks, strict=True):
        assert (image[:, mask > 0] == 255).all()
        assert 12**2 <= mask.sum() <= 35**2
        assert mask.any(dim=0).sum() == mask.any(dim=1).sum(), "a square"


def test_a_gate_that_is_taught_finds_more_of_the_objects(examples):
    recipe = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3}
    model = run.make_model(run.VARIANTS["masks"], seed=0)
    run.train(model, examples, True, recipe, seed=0)
    images, masks = composites(examples, torch.arange(12), 64, torch.Generator().manual_seed(1))
    right, found = run.outcomes(model, images, masks, examples.labels)
    assert right.shape == (12,)
    assert {"selected_share", "cost_share", "recall", "first_layer_recall", "object_share"} <= found.keys()
    assert all(0 <= figure <= 1 for figure in found.values())


def test_the_random_control_selects_the_same_tokens_in_all_layers(examples):
    model = run.make_model(run.VARIANTS["random_30"], seed=0).eval()
    run.select_at_random(model)
    first, second = (model(run.normalised(examples.images)).selected_tokens for _ in range(2))
    assert all(torch.equal(tokens, first[0]) for tokens in first)
    assert first[0].sum(dim=1).unique().tolist() == [19]
    assert not torch.equal(first[0], second[0])


def test_the_table_has_a_row_for_each_threshold(tmp_path):
    right = (torch.rand(40) < 0.5).numpy()
    shares = {"object_share": 0.15, "object_tokens": 0.16}
    picked = {**shares, "selected_share": 0.2, "cost_share": 0.18, "recall": 0.97}
    for variant, more in (
        ("dense", {"selection": shares}),
        ("masks", {"selection": picked, "thresholds": {"0.5": {"accuracy": 0.4, **picked}}}),
    ):
        about = {"variant": variant, "seed": 0, **more}
        write_result(tmp_path / f"{variant}-seed0.json", about, right, Beginning("bfloat16", 0))
    rows = tables.rows_of(collect(tmp_path))
    assert [row["variant"] for row in rows] == ["dense", "masks", "masks, threshold 0.5"]
    text = tables.markdown(rows)
    assert "| masks, threshold 0.5 | 1 | 40.0 % |  | 20.0 % | 18.0 % | 97.0 % |" in text
    assert "Objects cover 15.0 % of the images" in text
    with pytest.raises(ValueError, match="Expected results of the control 'dense'"):
        tables.rows_of({})


def test_layers_packed_and_padded_compute_the_same():
    for training in (False, True):
        torch.manual_seed(0)
        hidden = torch.randn(speed.BATCH, speed.TOKENS + 1, 192)
        results = []
        for way in ("packed", "padded"):
            layer = speed.make_layers(way, "uneven")[0].train(training)
            results.append(layer(hidden, speed.TOKENS)[0])
        torch.testing.assert_close(*results, rtol=0, atol=1e-5)
    counts = speed.counts_of("uneven")
    assert max(counts) == pytest.approx(3 * min(counts), abs=2) and speed.floor() > 3


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_every_system_is_a_configuration(name):
    config = systems.config_of(name)
    assert isinstance(config, FocusViTConfig) and config.num_labels == systems.CLASSES


def test_figures_become_tables():
    times = {"median_ms": 2.0, "peak_mib": 10.0}
    rows = {name: {"flops": 2e9, "inference": times, "training": times} for name in ("dense", "SPA")}
    assert "| SPA | 2.00 | 500 | 1.00 | 2.0 | 1.00 | 10 | 100% |" in systems.markdown(rows)
    names = [f"{way}-{counts}" for way, counts in speed.SUBJECTS]
    result = {title: dict.fromkeys(names, times) for title in ("inference", "training")}
    text = speed.markdown({**result, "attention": {"nested tensor": times}, "floor": 3.65})
    assert "| packed, even | 64 | 1.00 | 64 | 1.00 | 10 | 100% |" in text and "nested tensor 64.0 ms" in text
