"""Training of segmentation from data to a measured model, on squares made up on the spot."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import pipeline

import run_semantic_segmentation
from blobs import SMALLEST, blob
from blobs import flags as blob_flags
from focusvit_hf import FocusViTForSemanticSegmentation
from focusvit_hf.cli.__main__ import main
from focusvit_hf.training.arguments import ModelArguments
from focusvit_hf.training.segmentation import overlap_loss
from focusvit_hf.training.segmentation_data import SegmentationDataArguments, class_weights, load_masks


NAMES = ["ground", "figure"]
TINY = {
    **SMALLEST,
    "patch_size": 8,
    "superpixel_cell_size": 2,
    "num_superpixels": 16,
    "layer_types": ["full_attention"],
}


def mask_of(image):
    return Image.fromarray((np.asarray(image).max(axis=2) > 100).astype(np.uint8))


def write_folder(folder, count, first=0):
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(first, first + count):
        blob(number).save(folder / "images" / f"{number}.png")
        mask_of(blob(number)).save(folder / "masks" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("squares")
    write_folder(root / "train", 40)
    write_folder(root / "validation", 8, first=100)
    (root / "labels.json").write_text(json.dumps({"labels": NAMES}))
    return root


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet")
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    for split, first, count in (("train", 0, 40), ("test", 100, 8)):
        images = [blob(number) for number in range(first, first + count)]
        columns = {"image": images, "mask": [mask_of(image) for image in images]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000.parquet")
    (folder / "labels.json").write_text(json.dumps({"labels": NAMES, "ignore_index": 255}))
    return folder


def flags(output_dir, **changes):
    """The command line of a short run; the data are among the `changes`."""
    values = {"config_overrides": json.dumps(TINY), "max_steps": 4, "learning_rate": 3e-3}
    return blob_flags(None, output_dir, **{**values, **changes})


def test_a_run_on_parquet_files_learns_and_tells_of_every_class(parquet, tmp_path):
    output_dir = tmp_path / "run"
    options = {"augmentation": '{"crop_scale": [0.5, 1.0]}', "ema_decay": 0.9, "train_val_split": 0.2}
    options["overlap_loss_weight"] = 1.0
    command = flags(output_dir, data_dir=parquet, max_steps=60, **options)
    figures = run_semantic_segmentation.main(command)
    # Of all pixels the square has 6 %.
    assert figures["test_image_iou_figure"] > 0.5
    assert {"test_mean_iou", "test_boundary_f", "test_iou_ground", "eval_iou_figure", "eval_loss"} <= figures.keys()
    card = ModelCard.load(output_dir / "README.md")
    assert card.data.pipeline_tag == "image-segmentation"
    assert "| IoU of figure, mean over images | test | 8 |" in card.text
    assert {result.metric_type for result in card.data.eval_results} == {"mean_iou", "accuracy", "f1"}
    model = FocusViTForSemanticSegmentation.from_pretrained(output_dir)
    assert model.config.id2label == dict(enumerate(NAMES))
    assert {part["label"] for part in pipeline("image-segmentation", model=str(output_dir))(blob(105))} == set(NAMES)
    # The run is finished: the same command tells the same.
    assert run_semantic_segmentation.main(command) == figures


def test_the_command_trains_on_folders_and_goes_on_from_a_checkpoint(folders, tmp_path, capsys):
    data = {"train_dir": folders / "train", "validation_dir": folders / "validation"}
    data |= {"labels_file": folders / "labels.json", "class_weights": "balanced"}
    schedule = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", "--task", "segmentation", *flags(whole, **data, **schedule)]) == 0
    told = capsys.readouterr().out
    assert "eval_iou_figure" in json.loads(told[told.rindex("\n{\n") :])
    for steps in (2, 4):
        main(["train", "--task", "segmentation", *flags(parts, **data, **schedule, max_steps=steps)])
    log = json.loads((parts / "training_log.json").read_text())
    assert log["resumed_from"].endswith("checkpoint-2")
    assert log["command"].startswith("focusvit train --task segmentation --preset")
    models = [FocusViTForSemanticSegmentation.from_pretrained(folder).state_dict() for folder in (whole, parts)]
    for name, weight in models[0].items():
        torch.testing.assert_close(weight, models[1][name], rtol=0, atol=1e-6)


def test_a_stream_is_trained_on(parquet, tmp_path):
    options = {"streaming": True, "data_dir": parquet, "max_steps": 2, "do_eval": None}
    run_semantic_segmentation.main(flags(tmp_path / "run", **options))
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_another_task_is_refused(capsys):
    assert main(["train", "--task", "detection", "--output_dir", "nowhere"]) == 2
    assert "expected --task classification or segmentation, got 'detection'" in capsys.readouterr().err


def test_the_loss_of_overlap_is_a_plain_sum():
    logits, labels = torch.randn(3, 4, 5, 6, requires_grad=True), torch.randint(3, (3, 5, 6))
    labels[0][labels[0] == 1] = 255
    labels[2] = 255
    probabilities = logits.softmax(dim=1)
    losses = []
    for image in range(3):
        for label in set(labels[image].flatten().tolist()) - {255}:
            truth, counted = labels[image] == label, labels[image] != 255
            found = probabilities[image, label] * counted
            both = found[truth].sum()
            losses.append(1 - both / (found.sum() + truth.sum() - both))
    loss = overlap_loss(logits, labels, 255)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    loss.backward()
    assert logits.grad.isfinite().all() and not logits.grad[2].any()
    assert overlap_loss(logits, torch.full_like(labels, 255), 255) == 0


@pytest.mark.parametrize("weight", [-1, math.inf, math.nan])
def test_a_weight_of_the_overlap_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match="expected --overlap_loss_weight >= 0"):
        SegmentationDataArguments(overlap_loss_weight=weight)


# What is found out about the data.


def arguments(**options):
    return SegmentationDataArguments(**{name: str(value) for name, value in options.items()})


def test_classes_without_names_are_numbers_and_shares_become_weights(folders):
    data_args = arguments(train_dir=folders / "train", class_weights="balanced")
    masks = load_masks(data_args, ModelArguments(), seed=0, training=True)
    assert masks.names == ["0", "1"]
    counts = [sum((np.asarray(mask_of(blob(n))) == label).sum() for n in range(40)) for label in (0, 1)]
    assert masks.shares == pytest.approx([count / sum(counts) for count in counts])
    raw = [1 / math.log(1.02 + share) for share in masks.shares]
    assert class_weights(data_args, masks).tolist() == pytest.approx([2 * weight / sum(raw) for weight in raw])
    data_args.class_weights = "[1, 3]"
    assert class_weights(data_args, masks).tolist() == [1, 3]
    for wrong in ("[1]", "[1, -1]", "[0, 0]", "heavy", '{"a": 1}'):
        data_args.class_weights = wrong
        with pytest.raises(ValueError, match=r"expected (a weight|--class_weights)"):
            class_weights(data_args, masks)


def test_data_that_do_not_fit_are_refused_before_training(folders, tmp_path):
    def load(folder, **options):
        return load_masks(arguments(train_dir=folder, **options), ModelArguments(), seed=0, training=True)

    (tmp_path / "names.json").write_text(json.dumps([*NAMES, "nothing"]))
    with pytest.raises(ValueError, match=r"pixels of every class in the masks to train on, got none of \['nothing'\]"):
        load(folders / "train", labels_file=tmp_path / "names.json")
    (tmp_path / "names.json").write_text(json.dumps(["ground"]))
    with pytest.raises(ValueError, match=r"a mask of the classes in row 0 .*expected labels in 0\.\.0, .* got 1"):
        load(folders / "train", labels_file=tmp_path / "names.json")
    (tmp_path / "names.json").write_text(json.dumps({"labels": ["a", "a"]}))
    with pytest.raises(ValueError, match="expected names that differ"):
        load(folders / "train", labels_file=tmp_path / "names.json")
    (tmp_path / "names.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON with the names of the classes"):
        load(folders / "train", labels_file=tmp_path / "names.json")
    alone = write_folder(tmp_path / "alone", 3)
    (alone / "masks" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"expected a mask for each image .* got 1 alone, such as '1'"):
        load(alone)
    with pytest.raises(ValueError, match=r"expected a folder .*images, got none"):
        load(tmp_path)
    coloured = write_folder(tmp_path / "coloured", 2)
    blob(1).save(coloured / "masks" / "1.png")
    with pytest.raises(ValueError, match=r"in row 1 .*one channel with numbers of classes, got an image in RGB"):
        load(coloured)
    with pytest.raises(ValueError, match="expected one of --dataset_name"):
        load_masks(SegmentationDataArguments(), ModelArguments(), seed=0)


def test_a_teacher_is_refused(folders, tmp_path):
    with pytest.raises(
        ValueError, match="expected none of the options for classifiers alone, got train_num_superpixels"
    ):
        run_semantic_segmentation.main(flags(tmp_path / "run", train_dir=folders / "train", train_num_superpixels=16))
