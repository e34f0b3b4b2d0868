"""Class numbers: those of the user, alike in all splits, and those of a checkpoint."""

import datasets
import pytest
from datasets import ClassLabel, Features, Value

from focusvit_hf.training.labels import encoded, fitted_to_checkpoint, renumbered, require_trained_classes


def split(labels, feature):
    columns = {"image": list(range(len(labels))), "label": labels}
    return datasets.Dataset.from_dict(columns, features=Features(image=Value("int64"), label=feature))


def names(splits):
    (first,) = {tuple(each.features["label"].names) for each in splits.values()}
    return list(first)


def test_whole_numbers_keep_their_values():
    # As text they would be ordered 0, 1, 10, 11, 2.
    splits = encoded(
        {"train": split(list(range(12)), Value("int32")), "test": split([11, 10, 2], Value("int64"))}, "label"
    )
    assert names(splits) == [str(number) for number in range(12)]
    assert list(splits["train"]["label"]) == list(range(12))
    assert list(splits["test"]["label"]) == [11, 10, 2]
    gaps = encoded({"train": split([7, 3], Value("uint8"))}, "label")
    assert names(gaps) == [str(number) for number in range(8)] and list(gaps["train"]["label"]) == [7, 3]


def test_text_and_truth_become_classes_of_all_splits():
    text = {"train": split(["cat", "ant", "dog"], Value("string")), "test": split(["dog", "bee"], Value("string"))}
    splits = encoded(text, "label")
    assert names(splits) == ["ant", "bee", "cat", "dog"]
    assert [list(each["label"]) for each in splits.values()] == [[2, 0, 3], [3, 1]]
    truth = encoded({"train": split([True, False, True], Value("bool"))}, "label")
    assert names(truth) == ["False", "True"] and list(truth["train"]["label"]) == [1, 0, 1]


def test_splits_of_one_order_or_another_get_the_same_numbers():
    order, other = ClassLabel(names=["ant", "bee", "cat"]), ClassLabel(names=["cat", "ant", "bee"])
    mixed = {
        "train": split([0, 1, 2], order),
        "validation": split([0, 1], other),
        "test": split([2, 0], Value("int64")),
    }
    splits = encoded({**mixed, "more": split(["bee"], Value("string"))}, "label")
    assert names(splits) == ["ant", "bee", "cat"]
    assert [list(each["label"]) for each in splits.values()] == [[0, 1, 2], [2, 0], [2, 0], [1]]
    # A split that lacks a class is one like others.
    assert names(encoded({"train": split([0, 1], Value("int64")), "test": split([0], Value("int64"))}, "label")) == [
        "0",
        "1",
    ]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"test": split([0, -1, -1], Value("int64"))},
            r"labels in 0\.\.\d+ in the split 'test', got -1 in row 1 \(2 such",
        ),
        ({"train": split([0, 10**9], Value("int64"))}, "got 1000000000 in row 1"),
        ({"train": split([0, None], Value("int64"))}, "a label in every row of the split 'train', got None in row 1"),
        ({"train": split(["a", None], Value("string"))}, "got None in row 1 .* a folder for each class"),
        ({"train": split([0, None], ClassLabel(names=["a", "b"]))}, "got None in row 1"),
        ({"train": split([0.0, float("nan")], Value("float32"))}, "got nan in row 1"),
        (
            {"train": split([0.0, 1.0], Value("float32"))},
            "whole numbers or text as labels in the split 'train', got float",
        ),
        (
            {"train": split([0], Value("int64")), "test": split(["a"], Value("string"))},
            "labels of one kind in all splits",
        ),
        (
            {
                "train": split([0], ClassLabel(names=["a", "b"])),
                "test": split([0], ClassLabel(names=["a", "\x1b[31mc"])),
            },
            r"the same classes in all splits, \['a', 'b'\], got \{'test': \"\['a', '\\\\x1b\[31mc'\]",
        ),
        (
            {"train": split([0], ClassLabel(names=["a", "b"])), "test": split([2], Value("int64"))},
            r"got \{'test': \"\['2'\]",
        ),
        (
            {"train": split([0], ClassLabel(names=["a"])), "test": split(["b"], Value("string"))},
            r"got \{'test': \"\['b'\]",
        ),
    ],
)
def test_labels_that_are_no_classes_are_refused(splits, message):
    with pytest.raises(ValueError, match=message):
        encoded(splits, "label")


def test_classes_that_are_never_trained_are_refused(caplog):
    kinds = ClassLabel(names=["ant", "bee", "cat", "dog", "emu"])
    splits = {"train": split([0, 1, 2, 3], kinds), "validation": split([0, 1, 2, 4], kinds)}
    with pytest.raises(ValueError, match=r"split 'validation' among those that occur in 'train', got also \['emu'\]"):
        require_trained_classes(splits, "label")
    require_trained_classes({"train": splits["train"], "validation": split([0], kinds)}, "label")
    assert "Of 5 classes 1 have no image to train on: ['emu']" in caplog.text
    require_trained_classes({"test": splits["validation"]}, "label")


def test_the_numbers_of_a_checkpoint_are_kept(caplog):
    data = ClassLabel(names=["ant", "bee", "cat"])
    splits = {"train": split([0, 1, 2], data), "test": split([2, 0], data)}
    for training in (True, False):
        fitted = fitted_to_checkpoint(splits, "label", ["cat", "bee", "ant"], training)
        assert names(fitted) == ["cat", "bee", "ant"]
        assert [list(each["label"]) for each in fitted.values()] == [[2, 1, 0], [0, 2]]
    # Some of its classes can be measured; trained on them, a model gets a head of its own.
    assert list(fitted_to_checkpoint(splits, "label", ["cat", "dog", "bee", "ant"], False)["test"]["label"]) == [0, 3]
    assert not caplog.text
    assert names(fitted_to_checkpoint(splits, "label", ["cat", "dog", "bee", "ant"], True)) == data.names
    assert "['cat', 'dog', 'bee', 'ant'] give way to those of the images, ['ant', 'bee', 'cat']" in caplog.text
    with pytest.raises(
        ValueError, match=r"expected images of the checkpoint's classes .* got \['ant', 'bee', 'cat'\]"
    ):
        fitted_to_checkpoint(splits, "label", ["cat", "dog", "emu"], False)
    assert fitted_to_checkpoint(splits, "label", None, False) == splits
    plain = encoded({"test": split([2, 0], Value("int64"))}, "label")
    fitted = fitted_to_checkpoint(plain, "label", ["cat", "dog", "emu", "gnu"], False)
    assert names(fitted) == ["cat", "dog", "emu", "gnu"] and list(fitted["test"]["label"]) == [2, 0]


def test_a_stream_is_renumbered_on_the_way():
    data = ClassLabel(names=["ant", "bee", "cat"])
    stream = renumbered(split([0, 1, 2], data).to_iterable_dataset(), "label", ["cat", "bee", "ant"])
    assert [row["label"] for row in stream] == [2, 1, 0]
    assert stream.features["label"].names == ["cat", "bee", "ant"]
