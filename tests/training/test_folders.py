"""Folders of images: every layout is read, or refused with the file that is in the wrong place and what to do."""

from pathlib import Path

import pytest

from blobs import blob
from focusvit_hf.training.arguments import DataTrainingArguments, ModelArguments
from focusvit_hf.training.data import load_images


def images(root: Path, *folders: str) -> Path:
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        blob(number).save(root / folder / f"{number}.png")
    return root


def classes(tmp_path, train, validation=None):
    data = DataTrainingArguments(train_dir=str(train), validation_dir=str(validation) if validation else None)
    splits = load_images(data, ModelArguments(cache_dir=str(tmp_path / "cache")), seed=0, training=True)
    return {name: [split.features["label"].names[label] for label in split["label"]] for name, split in splits.items()}


def test_layouts_that_are_read(tmp_path):
    plain = images(tmp_path / "plain", "cat", "dog", "cat")
    assert classes(tmp_path, plain) == {"train": ["cat", "cat", "dog"]}
    # Characters with a meaning in patterns.
    odd = images(tmp_path / "set [1]*?", "[cat]", "do*g")
    assert classes(tmp_path, odd) == {"train": ["[cat]", "do*g"]}
    nested = images(tmp_path / "nested", "animals/cat", "plants/oak")
    assert classes(tmp_path, nested) == {"train": ["cat", "oak"]}
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "dog").symlink_to(plain / "dog")
    (linked / "kitten").symlink_to(plain / "cat")
    (linked / "above").symlink_to(linked)
    assert classes(tmp_path, linked) == {"train": ["dog", "kitten", "kitten"]}
    one = images(tmp_path / "one", "dog")
    assert classes(tmp_path, plain, one) == {"train": ["cat", "cat", "dog"], "validation": ["dog"]}


def test_a_metadata_file_names_the_classes_itself(tmp_path):
    folder = tmp_path / "described"
    folder.mkdir()
    for number in range(2):
        blob(number).save(folder / f"{number}.png")
    (folder / "metadata.csv").write_text("file_name,label\n0.png,oak\n1.png,elm\n")
    assert classes(tmp_path, folder) == {"train": ["oak", "elm"]}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            (".",),
            r"a folder for each class in .*, got an image that is in none: .*/0\.png; move it to .*image\.jpg",
        ),
        (("cat", "."), r"got an image that is in none: .*/1\.png"),
        (("cat", "cat/wild", "dog"), r"images of a class in one folder, got some in .*/cat and others in .*/cat/wild"),
        (("cat", "cat"), "two classes or more, got one of 'cat' alone"),
        ((), r"expected a folder of images for each class in .*, got no image; see .*/NAME_OF_THE_CLASS/image\.jpg"),
    ],
    ids=["flat", "half flat", "below one another", "single", "empty"],
)
def test_layouts_that_are_refused(tmp_path, folders, message):
    train = images(tmp_path / "train", *folders)
    train.mkdir(exist_ok=True)
    (train / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=message):
        classes(tmp_path, train)
