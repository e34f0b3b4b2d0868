"""Trained checkpoints beside each other on a test split."""

import json

import datasets
import pytest

from blobs import NAMES, blobs, write_parquet
from experiments.frontier import checkpoints as compare_checkpoints
from experiments.micro.paired_bootstrap import interval_text
from experiments.micro.results import unpacked
from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.hub.folder import TRAINING_LOG_FILE


CLASSES = dict(enumerate(NAMES))


@pytest.fixture
def folders(tmp_path, tiny_model):
    """A dense classifier without a log, and one of 16 superpixels that was trained for seven epochs."""
    dense = {"patch_pooling": "none", "embedding_type": "patch"}
    for name, overrides in (("dense", dense), ("pooled", {})):
        model = tiny_model(num_labels=3, id2label=CLASSES, **overrides)
        model.save_pretrained(tmp_path / name)
        FocusViTImageProcessor.from_model_config(model.config).save_pretrained(tmp_path / name)
    (tmp_path / "pooled" / TRAINING_LOG_FILE).write_text(json.dumps({"figures": {"epoch": 7.0}}))
    return [str(tmp_path / "dense"), str(tmp_path / "pooled")]


def test_each_number_of_superpixels_is_a_row_and_compared(folders, tmp_path, tmp_path_factory):
    data = write_parquet(tmp_path_factory.mktemp("data"), 3)
    command = ["--num-superpixels", "4", "16", "--name", "blobs", "--data", str(data), "--tables", str(tmp_path)]
    compare_checkpoints.main([*folders, *command])
    written = json.loads((tmp_path / "blobs-checkpoints.json").read_text())
    dense, own, fewer = written["rows"]
    assert [(row["checkpoint"], row["tokens"], row["own"]) for row in (dense, own, fewer)] == [
        ("dense", 16, True),
        ("pooled", 16, True),
        ("pooled", 4, False),
    ]
    assert "epochs" not in dense and own["epochs"] == 7
    assert not {"difference", "change"} & dense.keys() and "change" not in own
    outcomes = [unpacked(row["correct"], 10) for row in (dense, own, fewer)]
    assert [row["accuracy"] for row in (dense, own, fewer)] == [outcome.mean() for outcome in outcomes]
    assert fewer["change"]["mean"] == pytest.approx(fewer["accuracy"] - own["accuracy"])
    assert fewer["difference"]["mean"] == pytest.approx(fewer["accuracy"] - dense["accuracy"])
    table = (tmp_path / "blobs-checkpoints.md").read_text()
    assert table.count("control") == 1 and f"{interval_text(fewer['difference'])} | {fewer['verdict']} |" in table


def test_ranks_are_the_models(folders, tiny_model):
    examples = blobs(7)
    (row, right), _ = compare_checkpoints.measure(folders[1], examples, [4])
    model = tiny_model(num_labels=3, id2label=CLASSES)
    processor = FocusViTImageProcessor.from_model_config(model.config)
    logits = model(**processor(examples["image"][:], return_tensors="pt")).logits
    assert right.tolist() == (logits.argmax(1).numpy() == examples["label"][:]).tolist()
    # All three classes are among the first five.
    assert row["top_5_accuracy"] == 1


def test_classes_have_to_be_those_of_the_images(folders):
    other = blobs(3).cast_column("label", datasets.ClassLabel(names=["cyan", "pink", "ochre"]))
    with pytest.raises(ValueError, match=r"Expected a checkpoint of the classes \['cyan'.*dense"):
        compare_checkpoints.compare(folders, other)
