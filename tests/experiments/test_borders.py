"""Outputs with borders: composites, scores, figure finders, their tables."""

import io
import json
import re
from itertools import product

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.measure import label
from skimage.segmentation import find_boundaries

from blobs import SMALLEST
from experiments.borders import run as borders
from experiments.borders import tables as borders_tables
from experiments.borders.data import (
    blobs,
    composites,
    fixed_composites,
    human_segments,
    segment_composites,
    shares_of_cells,
    training_batches,
)
from experiments.borders.models import Answer, FigureFinder, Head, find_figures, measure, tile_map, upsampled
from experiments.borders.scores import borders as borders_of
from experiments.borders.scores import (
    boundary_f,
    intersection_over_union,
    majority,
    packed_scores,
    pixel_accuracy,
    region_ceilings,
    unpacked_scores,
)
from experiments.micro import training as micro_training
from experiments.micro.data import Examples
from focusvit_hf.superpixels import tile_ids


TINY = {**SMALLEST, "num_superpixels": 16, "num_labels": 3}


@pytest.fixture
def tiny_base(monkeypatch):
    """What variants change is tiny."""
    monkeypatch.setattr(micro_training, "BASE", {**micro_training.BASE, **TINY})


@pytest.fixture(scope="module")
def plain():
    """20 images of 24 pixels, the levels of each are its number times ten."""
    levels = (torch.arange(20) * 10).to(torch.uint8)
    return Examples(levels[:, None, None, None].repeat(1, 3, 24, 24), torch.arange(20) % 3)


@pytest.fixture(scope="module")
def noisy():
    """48 images of 32 pixels, fine noise of many colours: whatever is enlarged is smooth beside them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (48, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Examples(images, torch.arange(48) % 3)


@pytest.fixture(scope="module")
def segment_dir(tmp_path_factory):
    """Six photographs and what one person, and another, took for their parts: a strip of an eighth, and more."""
    folder = tmp_path_factory.mktemp("segments")

    def png(array):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    rng = np.random.default_rng(0)
    rows = {"image": [], "segmentations": []}
    for _ in range(6):
        strips = np.repeat(np.uint8([1, 2, 2, 2, 3, 3, 3, 3]), 8)[:, None].repeat(48, 1)
        # Four parts of the second person would all count.
        quarters = np.repeat(np.uint8([1, 2, 3, 4]), 16)[:, None].repeat(48, 1)
        rows["image"].append(png(rng.integers(0, 255, (64, 48, 3), dtype=np.uint8)))
        rows["segmentations"].append([png(strips), png(quarters)])
    features = datasets.Features({"image": datasets.Image(), "segmentations": datasets.List(datasets.Image())})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "test-00000.parquet")
    return folder


# Composites


def test_blobs_are_whole_and_cover_what_they_shall():
    masks, middles = blobs(40, 48, torch.Generator().manual_seed(0), (0.1, 0.5))
    shares = masks.float().mean(dim=(1, 2))
    assert 0.09 < shares.min() < 0.15 and 0.45 < shares.max() < 0.51
    assert all(label(mask, connectivity=2).max() == 1 for mask in masks.numpy())
    assert all(mask[tuple(middle.long())] for mask, middle in zip(masks, middles, strict=True))
    assert torch.equal(masks, blobs(40, 48, torch.Generator().manual_seed(0))[0])
    exact, _ = blobs(5, 48, torch.Generator().manual_seed(1), (0.25, 0.25))
    assert exact.sum(dim=(1, 2)).tolist() == [576] * 5


def test_composites_are_figures_on_other_images(plain):
    figures = torch.tensor([3, 3, 19, 0])
    made = composites(plain, figures, torch.Generator().manual_seed(0))
    assert torch.equal(made.figures, figures) and made.images.dtype == torch.uint8
    for image, mask, figure in zip(made.images, made.masks, figures, strict=True):
        assert (image[:, mask] == 10 * figure).all()
        (ground,) = image[:, ~mask].unique().tolist()
        assert ground != 10 * figure and ground % 10 == 0
    assert not torch.equal(made.masks[0], made.masks[1])


def test_composites_keep_every_pixel_of_the_figure_where_it_was(noisy):
    made = composites(noisy, torch.arange(20), torch.Generator().manual_seed(0))
    mirrored = 0
    for image, mask, figure in zip(made.images, made.masks, made.figures, strict=True):
        source = noisy.images[figure]
        kept, flipped = ((image == s)[:, mask].all().item() for s in (source, source.flip(-1)))
        assert kept != flipped
        mirrored += flipped
    assert 3 < mirrored < 17


def test_the_middle_of_an_image_can_be_moved_into_the_blob(plain):
    spot = plain.images.clone()
    spot[:, :, 10:14, 10:14] = 255
    made = composites(
        Examples(spot, plain.labels), torch.arange(20), torch.Generator().manual_seed(0), (0.3, 0.4), middle=True
    )
    shown = (made.images[:, 0] == 255) & made.masks
    assert (shown.sum(dim=(1, 2)) >= 12).all()


def test_an_epoch_has_each_figure_once(plain):
    batches = list(training_batches(plain, 6, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [6, 6, 6]
    assert len(set(torch.cat([batch.figures for batch in batches]).tolist())) == 18


def test_fixed_composites_are_always_the_same(plain):
    first, second, other = (fixed_composites(plain, seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, second.images) and torch.equal(first.masks, second.masks)
    assert not torch.equal(first.masks, other.masks)
    assert first.figures.tolist() == list(range(20))


def test_composites_need_two_square_images(plain):
    for examples in (plain[slice(1)], Examples(plain.images[..., :12], plain.labels)):
        with pytest.raises(ValueError, match="Expected two or more square images, got"):
            composites(examples, torch.tensor([0]), torch.Generator())


def test_segments_of_the_first_person_become_composites(segment_dir):
    images, masks, owners = human_segments(segment_dir, 32)
    # Of an eighth, three eighths and a half.
    assert images.shape == (6, 3, 32, 32) and owners.tolist() == [i for i in range(6) for _ in range(3)]
    assert masks.float().mean(dim=(1, 2)).tolist() == [0.125, 0.375, 0.5] * 6
    made = segment_composites(segment_dir, 32)
    assert len(made) == 18
    for image, mask, owner in zip(made.images, made.masks, made.figures, strict=True):
        assert (image == images[owner])[:, mask].all() and not (image == images[owner])[:, ~mask].all()


def test_shares_of_cells():
    masks = torch.zeros(1, 4, 6, dtype=torch.bool)
    masks[0, :2, :3] = True
    assert shares_of_cells(masks, (2, 3)).tolist() == [[[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]]]
    with pytest.raises(ValueError, match=re.escape("Expected cells that divide 4 x 6 pixels, got (3, 3)")):
        shares_of_cells(masks, (3, 3))


# Scores


def test_overlap_and_accuracy():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2] = True
    found = torch.zeros_like(masks)
    found[0, 1:3] = True
    assert intersection_over_union(found, masks).tolist() == [pytest.approx(1 / 3), 1.0]
    assert pixel_accuracy(found, masks).tolist() == [0.5, 1.0]


def test_borders_equal_those_of_scikit_image():
    masks = torch.rand(5, 1, 9, 7) > 0.5
    masks = torch.cat((masks, torch.ones(1, 1, 9, 7, dtype=torch.bool)))[:, 0]
    expected = [find_boundaries(mask, connectivity=1, mode="inner", background=0) & mask for mask in masks.numpy()]
    np.testing.assert_array_equal(borders_of(masks).numpy(), np.stack(expected))


def test_borders_within_the_tolerance_are_right():
    masks = torch.zeros(1, 40, 40, dtype=torch.bool)
    masks[0, 10:30, 10:30] = True
    assert boundary_f(masks, masks).item() == 1
    assert boundary_f(masks.roll((2, -2), (1, 2)), masks).item() == pytest.approx(1)
    half = masks.clone()
    half[0, 20:] = False
    # The middle of the cut lies too far from any true border, and half of the true border is missed.
    assert 0.4 < boundary_f(half, masks).item() < 0.8
    assert boundary_f(masks.roll(6, 1), masks).item() < 0.7
    assert boundary_f(torch.zeros_like(masks), masks).item() == 0
    assert boundary_f(torch.zeros_like(masks), torch.zeros_like(masks)).item() == 1


def test_ceilings_equal_trying_all_answers():
    shares, ids = torch.rand(6, 4, 5), torch.randint(0, 5, (6, 4, 5))
    iou, accuracy = region_ceilings(shares, ids, 5)
    for b in range(6):
        best = {"iou": 0.0, "accuracy": 0.0}
        for chosen in product((False, True), repeat=5):
            inside = torch.tensor(chosen)[ids[b]]
            hit = shares[b][inside].sum()
            best["iou"] = max(best["iou"], float(hit / (inside.sum() + shares[b].sum() - hit)))
            best["accuracy"] = max(best["accuracy"], float((hit + (1 - shares[b])[~inside].sum()) / 20))
        assert iou[b].item() == pytest.approx(best["iou"]) and accuracy[b].item() == pytest.approx(best["accuracy"])
    # Cells as pixels: that answer is the one with the most of them right.
    masks = shares > 0.5
    answer = majority(masks, masks.float(), ids, 5)
    torch.testing.assert_close(pixel_accuracy(answer, masks), region_ceilings(masks.float(), ids, 5)[1])
    one_map, _ = region_ceilings(shares, ids[:1], 5)
    assert torch.equal(one_map, region_ceilings(shares, ids[:1].expand(6, -1, -1), 5)[0])


def test_scores_keep_four_digits():
    scores = torch.tensor([0.0, 0.12344, 0.99996, 1.0])
    assert unpacked_scores(packed_scores(scores)).tolist() == [0.0, 0.1234, 1.0, 1.0]


# Figure finders


@pytest.mark.parametrize(
    ("pooling", "head"),
    [("superpixel", Head()), ("superpixel", Head(True)), ("grid", Head()), ("grid", Head(True, "bilinear"))],
    ids=str,
)
def test_figures_are_found(pooling, head, noisy, tiny_base):
    config, plan = micro_training.settings({"patch_pooling": pooling}, epochs=4, batch_size=8, learning_rate=1e-2)
    model, history = find_figures(config, head, plan, 0, noisy)
    assert history[-1]["loss"] < history[0]["loss"] - 0.05 and not model.training
    tested = fixed_composites(noisy, seed=1)
    with torch.no_grad():
        answer = model(**micro_training.model_inputs(config, tested.images))
    logits = upsampled(answer, (32, 32), model.cells, "nearest")
    figure, ground = ((logits * part).sum(dim=(1, 2)) / part.sum(dim=(1, 2)) for part in (tested.masks, ~tested.masks))
    assert (figure > ground).float().mean() > 0.9
    scores = measure(model, tested)
    assert set(scores) == {"nearest", "bilinear", "bilinear_cells", "bicubic", "ceiling"}
    assert all(values.shape == (48,) for kinds in scores.values() for values in kinds.values())
    for kind, values in scores["ceiling"].items():
        assert (scores["nearest"][kind] <= values + 1e-6).all()


def test_runs_of_a_seed_differ_by_nothing_but_the_regions(noisy, tiny_base):
    seen = []
    for pooling in ("superpixel", "grid", "superpixel"):
        config, plan = micro_training.settings({"patch_pooling": pooling}, epochs=1, batch_size=16)
        torch.manual_seed(3)
        start = FigureFinder(config, Head()).state_dict()
        seen.append((start, find_figures(config, Head(), plan, 3, noisy)))
    for name, value in seen[0][0].items():
        assert torch.equal(value, seen[1][0][name])
    losses = [history[0]["loss"] for _, (_, history) in seen]
    assert losses[0] == losses[2] != losses[1]


def test_the_loss_of_cells_is_that_of_pixels(noisy, tiny_base):
    model = FigureFinder(micro_training.settings({})[0], Head())
    masks, _ = blobs(4, 32, torch.Generator().manual_seed(0))
    answer = Answer(torch.randn(4, 16), torch.randint(0, 16, (4, 8, 8)))
    pixels = upsampled(answer, (32, 32), model.cells, "nearest")
    expected = F.binary_cross_entropy_with_logits(pixels, masks.float())
    torch.testing.assert_close(model.loss(answer, masks), expected)


@pytest.mark.parametrize("own_feature", [False, True])
def test_gradients_reach_everything(own_feature, noisy, tiny_base):
    model = FigureFinder(micro_training.settings({})[0], Head(own_feature)).train()
    batch = composites(noisy, torch.arange(8), torch.Generator().manual_seed(0))
    inputs = micro_training.model_inputs(model.focusvit.config, batch.images)
    model.loss(model(**inputs), batch.masks).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_grid_is_interpolated_between_tiles():
    answer = Answer(torch.randn(2, 16), torch.arange(16).view(1, 4, 4))
    tiles = answer.logits.view(2, 1, 4, 4)
    expected = F.interpolate(tiles, (32, 32), mode="bicubic", align_corners=False)[:, 0]
    torch.testing.assert_close(upsampled(answer, (32, 32), (8, 8), "bicubic"), expected)
    expected = F.interpolate(tiles, (32, 32), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(upsampled(answer, (32, 32), (8, 8), "bilinear"), expected)
    expected = tiles[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(upsampled(answer, (32, 32), (8, 8), "nearest"), expected)
    # Onto the cells first.
    cells = Answer(answer.logits, tile_ids((4, 4), 8, 8)[None])
    expected = upsampled(cells, (32, 32), (8, 8), "bilinear")
    torch.testing.assert_close(upsampled(answer, (32, 32), (8, 8), "bilinear_cells"), expected)


def test_figure_finders_refuse_what_they_cannot_lay_back(tiny_config):
    with pytest.raises(ValueError, match="Expected embedding_type 'conv' and patch_pooling"):
        FigureFinder(tiny_config(patch_pooling="none"), Head())
    with pytest.raises(ValueError, match="Expected full attention in all layers"):
        FigureFinder(tiny_config(), Head())
    with pytest.raises(ValueError, match=re.escape("Expected tiles alike, got (3, 3) of them over (16, 16) cells")):
        tile_map(tiny_config(patch_pooling="grid", num_superpixels=9))


# Runs and tables


def test_a_finished_run_is_not_run_again(blob_dir, segment_dir, tmp_path, tiny_base):
    named = borders.variants(4)
    places = {"data": blob_dir, "bsds500": segment_dir, "cache": tmp_path / "cache", "results": tmp_path}
    assert list(named) == [
        "superpixel_4",
        "grid_4",
        "superpixel_4_own",
        "grid_4_own",
        "grid_4_smooth",
        "grid_4_own_smooth",
        "superpixel_4_cells_2",
        "grid_4_cells_2",
    ]
    for name in ("superpixel_4", "grid_4"):
        result = borders.run(name, named[name], 0, **places, epochs=1)
        assert result["images"] == {"imagenette": 24, "bsds500": 18}
    left = borders.unfinished(named, [0], tmp_path, epochs=1)
    assert left == [(name, 0) for name in list(named)[2:]]
    with pytest.raises(ValueError, match=re.escape("with {'epochs': 2}, got {'epochs': 1}")):
        borders.unfinished(named, [0], tmp_path, epochs=2)
    with pytest.raises(ValueError, match="'own_feature': True"):
        borders.unfinished({"grid_4": (named["grid_4"][0], Head(True))}, [0], tmp_path, epochs=1)
    places = ["--results", str(tmp_path), "--tables", str(tmp_path / "tables"), "--bsds500", str(segment_dir)]
    borders.main(["table", *places])
    content = json.loads((tmp_path / "tables" / "borders.json").read_text())
    assert {row["tokens"] for row in content["comparisons"]} == {4}
    assert len(content["rows"]) == 2 * 2 * 5 and content["recipe"]["epochs"] == 1
    overlap, border = content["photographs"]
    assert overlap["kind"] == "iou" and border["kind"] == "boundary_f" and overlap["difference"]["images"] == 6
    # Of 2 x 2 tiles the lower two are exactly the half; three eighths and an eighth are not to be had.
    assert overlap["grid"] == pytest.approx((1 + 0.75 + 0.25) / 3, abs=1e-3)
    assert "| superpixel_4 | imagenette |" in (tmp_path / "tables" / "borders.md").read_text()


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Expected variants from .*, got \['grid_9'\]"):
        borders.main(["train", "--tokens", "16", "--variants", "grid_9", "--results", str(tmp_path)])
    with pytest.raises(ValueError, match="run 'train' first"):
        borders.main(["table", "--results", str(tmp_path)])


def result_of(variant, seed, **levels):
    """A result whose images have scores about a level, by upsampling."""
    scores = np.random.default_rng(0).uniform(-0.05, 0.05, 100)
    kinds = {
        how: {
            kind: {"mean": level, "images": packed_scores(torch.tensor(scores + level))}
            for kind in ("iou", "boundary_f")
        }
        for how, level in levels.items()
    }
    kinds["ceiling"] = {"iou": {"mean": 0.9}, "accuracy": {"mean": 0.95}}
    common = {"tokens": 36, "parameters": 1000, "seconds": 60.0}
    return {"variant": variant, "seed": seed, "scores": {"imagenette": kinds}, **common}


def test_tables_take_the_best_of_the_grid():
    ways = {"nearest": 0.6, "bilinear": 0.65, "bilinear_cells": 0.62, "bicubic": 0.7}
    found = {
        "superpixel_36": {
            0: result_of("superpixel_36", 0, nearest=0.7, bilinear=0.72, bilinear_cells=0.7, bicubic=0.7)
        },
        "grid_36": {seed: result_of("grid_36", seed, **ways) for seed in (0, 1)},
    }
    nearest, best = [row for row in borders_tables.comparisons(found) if row["kind"] == "iou"]
    assert nearest["grid"] == {"variant": "grid_36", "upsampling": "nearest"}
    assert nearest["difference"]["mean"] == pytest.approx(0.1) and nearest["difference"]["seeds"] == 1
    assert nearest["reached"] and nearest["wanted"] == 0.07
    assert best["grid"]["upsampling"] == "bicubic" and best["superpixel"]["upsampling"] == "bilinear"
    assert best["difference"]["mean"] == pytest.approx(0.02) and not best["reached"]
    text = borders_tables.markdown(borders_tables.rows_of(found), borders_tables.comparisons(found)).splitlines()
    assert (
        "| grid_36 | imagenette | 1 k | 2 | 60.0 / 60.0 | 65.0 / 65.0 | 62.0 / 62.0 | 70.0 / 70.0 | 90.0, 95.0 |"
        in text
    )
    assert text[-1].endswith("| +4, missed |") and text[-2].endswith("| +7, reached |")
