"""What is measured and drawn of segmenters: guided borders beside interpolation, and the README's sheet."""

import json

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from experiments.dense import compare, edges, finish, keep, peers, sheet, tables, taught, teacher
from focusvit_hf import FocusViTConfig, FocusViTForSemanticSegmentation, FocusViTImageProcessor
from focusvit_hf.explanation import Segmentation
from focusvit_hf.hub.model_card import check_card
from focusvit_hf.training.augmentation import random_crop_boxes
from focusvit_hf.training.segmentation_metrics import SegmentationMetrics
from focusvit_hf.utils.files import write_json


@pytest.fixture
def halves():
    """A dark left part of 21 of 40 columns, and logits whose border lies at column 20."""
    levels = np.full((40, 40, 3), 200, dtype=np.uint8)
    levels[:, :21] = (20, 60, 30)
    logits = torch.zeros(2, 8, 8)
    logits[1] = torch.where(torch.arange(8) < 4, 6.0, -6.0)
    return Image.fromarray(levels), logits


def test_the_package_s_own_setting_is_one_of_those_that_are_compared(halves):
    image, logits = halves
    assert edges.REACH in edges.REACHES and edges.COLOUR_SCALE in edges.SCALES
    tried = edges.guided(logits[None], image, edges.REACH, edges.COLOUR_SCALE)
    assert torch.equal(tried, edges.plain(logits[None], image, "guided"))


def test_rows_hold_means_and_what_they_gain(halves):
    better, worse = [0.8, 0.9, 0.7], [0.6, 0.6, 0.6]
    found = {
        "guided": {"iou": better, "boundary_f": better},
        "bilinear": {"iou": worse, "boundary_f": worse},
    }
    guided, control = edges.summed_up("test", found)
    assert guided["iou"] == pytest.approx(0.8) and "iou_difference" not in control
    assert guided["iou_difference"]["mean"] == pytest.approx(0.2) and guided["iou_difference"]["low"] > 0
    assert "| test | guided | 80.0 | +20.0 [" in edges.markdown([guided, control])


def test_a_sheet_shows_image_classes_and_cut_out_side_by_side(halves):
    image, logits = halves
    drawn = sheet.sheet_of(Segmentation(image, logits, ("ground", "figure")))
    assert drawn.size == (3 * 40 + 2 * sheet.GAP, 40)
    parts = [np.asarray(drawn)[:, start : start + 40] for start in (0, 40 + sheet.GAP, 2 * (40 + sheet.GAP))]
    assert np.array_equal(parts[0], np.asarray(image))
    assert not np.array_equal(parts[1], parts[0])
    cut = np.where(np.arange(40)[None, :, None] < 21, np.asarray(image), np.asarray(sheet.chequered((40, 40))))
    assert np.array_equal(parts[2], cut)


def test_the_loss_of_a_figure_is_cross_entropy_and_overlap_of_each_image():
    torch.manual_seed(0)
    logits, truth = torch.randn(3, 6, 6), torch.zeros(3, 6, 6)
    truth[:, 1:4, 2:5] = 1
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, truth)
    shares = [(c * t).sum() / (c + t - c * t).sum() for c, t in zip(logits.sigmoid(), truth, strict=True)]
    torch.testing.assert_close(teacher.figure_loss(logits, truth), entropy + 1 - torch.stack(shares).mean())
    # A certain and right answer costs nothing.
    assert teacher.figure_loss(40 * truth - 20, truth) < 1e-6


class BrightIsFigure(nn.Module):
    """A stand-in for the teacher: cells of 4 x 4 pixels that are brighter than the middle."""

    def forward(self, images):
        return 20 * (nn.functional.avg_pool2d(images, 4).mean(dim=1) - 0.5)


def squares(count, seed):
    """Dark images with a bright rectangle, and where it is at half of the side."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, 3, 224, 224), dtype=torch.uint8, generator=generator)
    masks = torch.zeros(count, 112, 112, dtype=torch.long)
    for number in range(count):
        top, left = torch.randint(0, 56, (2,), generator=generator).tolist()
        masks[number, top : top + 50, left : left + 50] = 1
        images[number, :, 2 * top : 2 * top + 100, 2 * left : 2 * left + 100] += 170
    return images, masks


def segmenter():
    torch.manual_seed(0)
    config = FocusViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        embedding_type="conv",
        stem_channels=8,
        num_superpixels=16,
        num_labels=2,
        attn_implementation="eager",
    )
    return FocusViTForSemanticSegmentation(config)


def test_a_segmenter_learns_what_a_teacher_says_of_new_views_and_goes_on_where_it_was_ended(tmp_path, monkeypatch):
    images, held_out = squares(24, 0)[0], squares(4, 1)
    plan = taught.Plan(epochs=3, batch_size=8, learning_rate=5e-3, warmup_epochs=0.5, ema_decay=0.5)
    whole = taught.train(segmenter(), BrightIsFigure(), images, held_out, plan, tmp_path / "whole")
    assert whole[-1]["loss"] < whole[0]["loss"] and whole[-1]["image_iou"] > whole[0]["image_iou"]

    drawn = taught.lesson

    def ended(*given):
        if (tmp_path / "part" / taught.STATE_FILE).exists():
            raise KeyboardInterrupt
        return drawn(*given)

    monkeypatch.setattr(taught, "lesson", ended)
    with pytest.raises(KeyboardInterrupt):
        taught.train(segmenter(), BrightIsFigure(), images, held_out, plan, tmp_path / "part")
    monkeypatch.setattr(taught, "lesson", drawn)
    again = taught.train(segmenter(), BrightIsFigure(), images, held_out, plan, tmp_path / "part")
    assert [entry["loss"] for entry in again] == [entry["loss"] for entry in whole]
    first, second = (
        FocusViTForSemanticSegmentation.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "part")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert FocusViTImageProcessor.from_pretrained(tmp_path / "whole").num_superpixels == 16
    with pytest.raises(ValueError, match=r"expected the plan of .* got another; choose another --out"):
        other = taught.Plan(epochs=4)
        taught.train(segmenter(), BrightIsFigure(), images, held_out, other, tmp_path / "part")


def test_what_the_teacher_is_asked_is_what_the_segmenter_sees():
    images = squares(4, 2)[0]
    torch.manual_seed(0)
    seen, chances = taught.lesson(BrightIsFigure(), images)
    assert seen.shape == (4, 3, 224, 224) and seen.min() >= 0 and seen.max() <= 1
    torch.testing.assert_close(chances, BrightIsFigure()(seen).sigmoid())
    assert not torch.equal(taught.lesson(BrightIsFigure(), images)[0], seen)


def test_a_run_is_kept_in_half_the_bytes_with_what_the_pipeline_finds_in_test_images(tmp_path):
    model = segmenter()
    model.save_pretrained(tmp_path / "run")
    FocusViTImageProcessor.from_model_config(model.config).save_pretrained(tmp_path / "run")
    arguments = {"data_dir": "data/figures", "model_name_or_path": "runs/before"}
    log = {"arguments": arguments, "command": "focusvit train", "figures": {"eval_mean_iou": 0.5}}
    write_json(tmp_path / "run" / keep.TRAINING_LOG_FILE, {**log, "images": {"train": 9, "validation": 3}})
    images, masks = squares(3, 3)
    rows = [
        {"image": Image.fromarray(image.permute(1, 2, 0).numpy()).resize((112, 112)), "mask": Image.fromarray(mask)}
        for image, mask in zip(images, masks.byte().numpy(), strict=True)
    ]
    notes = "**Small.** It finds squares.\n"
    figures = keep.keep(tmp_path / "run", tmp_path / "focusvit-mine", rows, notes, "apache-2.0")
    kept = load_file(tmp_path / "focusvit-mine" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values() if tensor.is_floating_point()} == {torch.float16}
    # The same by hand, from the class of each cell, interpolated as the pipeline does it.
    own = FocusViTForSemanticSegmentation.from_pretrained(tmp_path / "focusvit-mine", dtype=torch.float32).eval()
    processor = FocusViTImageProcessor.from_pretrained(tmp_path / "focusvit-mine")
    metrics = SegmentationMetrics(["LABEL_0", "LABEL_1"], 255)
    for row, mask in zip(rows, masks, strict=True):
        with torch.no_grad():
            outputs = own(**processor(row["image"], return_tensors="pt"))
        metrics.update(processor.post_process_semantic_segmentation(outputs, [(112, 112)])[0], mask)
    assert figures == pytest.approx(metrics.figures(), abs=1e-3)
    card = (tmp_path / "focusvit-mine" / "README.md").read_text()
    check_card(ModelCard(card))
    assert f"| Mean IoU | test | 3 | {figures['mean_iou']:.4f} |" in card
    assert "| began from | before |" in card and "base_model" not in card and "license: apache-2.0" in card
    assert card.index("It finds squares.") < card.index("## Model")
    with pytest.raises(ValueError, match="expected a new or an empty folder"):
        keep.keep(tmp_path / "run", tmp_path / "focusvit-mine", rows)


def test_runs_are_averaged_and_the_last_class_shifted_as_long_as_the_held_out_images_gain(tmp_path, capsys):
    images, masks = squares(8, 4)
    levels = [Image.fromarray(image.permute(1, 2, 0).numpy()).resize((112, 112)) for image in images]
    columns = {"image": levels, "mask": [Image.fromarray(mask) for mask in masks.byte().numpy()]}
    features = Features(image=datasets.Image(), mask=datasets.Image())
    (tmp_path / "data").mkdir()
    Dataset.from_dict(columns, features).to_parquet(tmp_path / "data" / "train-00000.parquet")
    write_json(tmp_path / "data" / "labels.json", ["ground", "figure"])
    arguments = {"data_dir": "data/squares", "seed": 7, "train_val_split": 0.25}
    log = {"arguments": arguments, "figures": {"eval_loss": 1.0}, "wall_time_seconds": 60.0}
    weights, runs = {}, [tmp_path / name for name in ("one", "two", "three")]
    for number, run in enumerate(runs):
        model = segmenter()
        model.config.id2label, model.config.label2id = {0: "ground", 1: "figure"}, {"ground": 0, "figure": 1}
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(run)
        FocusViTImageProcessor.from_model_config(model.config).save_pretrained(run)
        write_json(run / keep.TRAINING_LOG_FILE, {**log, "command": f"train {number}"})
        weights[run.name] = load_file(run / "model.safetensors")
    command = [*map(str, runs), "--data", str(tmp_path / "data"), "--shifts", "0", "-0.6", "40", "--out"]
    finish.main([*command, str(tmp_path / "mixed")])
    mixed = json.loads((tmp_path / "mixed" / keep.TRAINING_LOG_FILE).read_text())
    tried = [(entry["runs"], entry["shift"], entry["figure"]) for entry in mixed["tried"]]
    lines = [f"{figure:.4f}  {shift:+.1f}  {' + '.join(names)}" for names, shift, figure in tried]
    assert capsys.readouterr().out.splitlines() == lines
    # Each alone, the best first, then the means, of which one stays where it is no worse, then the shifts.
    (best, *_), alone = tried[0][0], [figure for *_, figure in tried[:3]]
    assert alone == sorted(alone, reverse=True) and [shift for _, shift, _ in tried] == [0.0] * 6 + [-0.6, 40.0]
    kept, figure = [best], alone[0]
    for names, _, found in tried[3:5]:
        assert names[:-1] == kept
        kept, figure = (names, found) if found >= figure else (kept, figure)
    assert all(names == kept for names, *_ in tried[5:]) and tried[5][-1] == figure
    # Where all is taken for the figure, its IoU is the share that it has.
    assert tried[7][-1] == pytest.approx(50 * 50 / 112**2, abs=1e-3)
    shift, figure = max(tried[5:], key=lambda entry: entry[2])[1:]
    found = load_file(tmp_path / "mixed" / "model.safetensors")
    for name, tensor in found.items():
        expected = sum(weights[run][name] for run in kept) / len(kept)
        if name == finish.BIAS:
            expected[-1] += shift
        torch.testing.assert_close(tensor, expected.to(tensor.dtype))
    assert mixed["figures"]["eval_image_iou_figure"] == pytest.approx(figure) and "eval_loss" not in mixed["figures"]
    assert mixed["wall_time_seconds"] == 60 * len(kept) and mixed["command"].count("train ") == len(kept)
    assert mixed["command"].endswith(f"--shifts {shift:g} --data data/squares --out runs/mixed")

    write_json(runs[0] / keep.TRAINING_LOG_FILE, {**log, "arguments": {**arguments, "seed": 8}})
    with pytest.raises(ValueError, match=r"one --seed and one --train_val_split, got \[\(7, 0.25\), \(8, 0.25\)\]"):
        finish.main([*command, str(tmp_path / "other")])
    with pytest.raises(ValueError, match="Expected runs of one model, got weights of other names or shapes"):
        finish.mean_of([{"a": torch.ones(2)}, {"a": torch.ones(3)}])
    assert not (tmp_path / "other").exists()


@given(st.integers(0, 2**31), st.integers(192, 320), st.integers(192, 320))
def test_a_box_of_the_image_is_a_box_within_its_larger_mask(seed, height, width):
    generator = torch.Generator().manual_seed(seed)
    for box in random_crop_boxes(8, (192, 192), (0.35, 1.0), (3 / 4, 4 / 3), generator):
        top, left, rows, columns = compare.scaled_box(box, (192, 192), (height, width)).tolist()
        assert 0 <= top < top + rows <= height and 0 <= left < left + columns <= width
        wanted = box * torch.tensor([height, width] * 2) / 192
        assert (torch.tensor([top, left, rows, columns]) - wanted).abs().max() <= 1
    whole = compare.scaled_box(torch.tensor([0, 0, 192, 192]), (192, 192), (height, width))
    assert whole.tolist() == [0, 0, height, width]


@pytest.fixture
def discs(tmp_path, monkeypatch):
    """Bright discs on a dark ground, squashed to squares that are smaller than their masks."""
    monkeypatch.setitem(compare.RECIPE, "batch_size", 4)
    places = np.mgrid[:90, :100]
    for part in ("train", "validation"):
        for kind in ("images", "masks"):
            (tmp_path / part / kind).mkdir(parents=True)
        for number in range(4 if part == "train" else 2):
            disc = np.hypot(places[0] - 30 - 4 * number, places[1] - 50) < 25
            levels = np.where(disc[..., None], np.uint8(220), np.uint8(30)).repeat(3, axis=2)
            Image.fromarray(levels).save(tmp_path / part / "images" / f"{number}.png")
            Image.fromarray(disc.astype(np.uint8)).save(tmp_path / part / "masks" / f"{number}.png")
    monkeypatch.setattr(compare, "tested", lambda side: compare.loaded(tmp_path / "validation", side))
    return tmp_path


def test_superpixels_grids_and_peers_are_trained_on_the_same_views_and_compared(discs, monkeypatch):
    seen = {}
    logits = compare.Row.logits

    def noted(row, levels):
        seen.setdefault(row, []).append(levels)
        return logits(row, levels)

    monkeypatch.setattr(compare.Row, "logits", noted)
    rows = ["superpixel_49", "grid_49", "grid_49_nearest", *compare.PEER_ROWS]
    results = ["--results", str(discs / "results")]
    command = [str(discs), "--rows", *rows, "--epochs", "1", "--side", "64", *results]
    compare.main([*command, "--seeds", "0", "1"])
    trained = [levels[0] for levels in seen.values()]
    assert len(trained) == 2 * len(rows)
    # Rows of a seed follow each other.
    for index, views in enumerate(trained):
        assert torch.equal(views, trained[index // len(rows) * len(rows)])
    stored = {path.stem: path.read_text() for path in (discs / "results" / "dense").iterdir()}
    assert stored.keys() == {f"{row}-seed{seed}" for row in rows for seed in (0, 1)}
    # What is there is not run again.
    compare.main([*command, "--seeds", "0"])
    assert len(seen) == len(trained)
    threads, plot = torch.get_num_threads(), discs / "dense.png"
    tables.main(["--repeats", "1", "--plot", str(plot), "--tables", str(discs), *results])
    torch.set_num_threads(threads)
    text = (discs / "dense.md").read_text()
    assert text.count("| 2 |") == 2 * len(rows) - 1 and text.count("| superpixel_49 − ") == 2 + len(compare.PEER_ROWS)
    # Times are kept where they are not measured again.
    timed = json.loads((discs / "dense.json").read_text())
    assert all(row["batch_8"]["median_ms"] > 0 for row in timed["rows"])
    tables.main(["--repeats", "0", "--plot", str(plot), "--tables", str(discs), *results])
    with Image.open(plot) as drawn:
        assert drawn.size == (1350, 630)
    assert json.loads((discs / "dense.json").read_text()) == timed
    compare.main([*command[:-4], "--epochs", "2", *results, "--seeds", "2"])
    with pytest.raises(ValueError, match="Expected results of one recipe in"):
        tables.main(["--repeats", "0", "--tables", str(discs), *results])
    with pytest.raises(ValueError, match="got none: run experiments"):
        tables.main(["--tables", str(discs), "--results", str(discs / "none")])
    with pytest.raises(
        ValueError, match=r"Expected superpixel_K, grid_K, grid_K_nearest or one of .*, got 'tiles_49'"
    ):
        compare.Row("tiles_49", 64)


def test_peers_are_those_of_transformers_and_no_others():
    for name in peers.PEERS:
        assert peers.build_peer(name, {0: "ground", 1: "figure"}).config.num_labels == 2
    with pytest.raises(ValueError, match="got 'U-Net'"):
        peers.build_peer("U-Net", {0: "ground"})


def test_an_untrained_peer_that_is_timed_has_activations_like_a_trained_one():
    torch.manual_seed(0)
    least = []

    def note(module, given, found):
        least.append(float(found.abs().max()))

    peer = peers.build_peer(peers.MOBILEVIT, {0: "ground", 1: "figure"}).eval()
    norms = [module for module in peer.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_hook(note)
    pixels = torch.rand(1, 3, 160, 160) * 2 - 1
    with torch.no_grad():
        peer(pixels)
        before, momenta = min(least), [norm.momentum for norm in norms]
        least.clear()
        assert peers.settle_batch_norms(peer, pixels) is peer and not peer.training
        least.clear()
        peer(pixels)
    # The smallest normal number of float32 is about 1e-38.
    assert before < 1e-37 and min(least) > 1e-6
    assert [norm.momentum for norm in norms] == momenta
