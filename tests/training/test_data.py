"""Images on their way to the collator: checked before training, decoded by the one function, named by row and file."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as PILImage

import run_classification
from blobs import NAMES, blob, blobs, flags
from focusvit_hf.images import decode_image
from focusvit_hf.training.arguments import parse_arguments
from focusvit_hf.training.data import ImageDataset, as_rows, load_images


def encoded(image: PILImage.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned() -> bytes:
    """A JPEG whose EXIF says that it was taken with the camera turned."""
    exif = PILImage.Exif()
    exif[0x0112] = 6
    return encoded(blob(0).resize((40, 24)), "JPEG", exif=exif)


def of_16_bit() -> bytes:
    return encoded(PILImage.fromarray(np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)))


def transparent() -> bytes:
    image = blob(1).convert("RGBA")
    image.putalpha(100)
    return encoded(image)


def dataset(images, labels=None, decode=True) -> datasets.Dataset:
    rows = [{"bytes": image, "path": None} if isinstance(image, bytes) else image for image in images]
    columns = {"image": rows, "label": labels or [number % 3 for number in range(len(rows))]}
    features = Features(image=Image(decode=decode), label=ClassLabel(names=NAMES))
    return datasets.Dataset.from_dict(columns, features=features)


def loaded(folder, tmp_path, *more, training=False):
    command = ["--data_dir", str(folder), "--cache_dir", str(tmp_path / "cache"), "--use_cpu", *more]
    model_args, data_args, _ = parse_arguments([*command, "--output_dir", str(tmp_path / "run")])
    return load_images(data_args, model_args, seed=0, training=training), data_args


@pytest.mark.parametrize("decode", [True, False], ids=["decoded", "undecoded"])
@pytest.mark.parametrize("once", [True, False], ids=["once", "each time"])
def test_images_are_decoded_by_the_one_function(tmp_path, decode, once):
    files = [turned(), of_16_bit(), transparent(), encoded(blob(2).convert("P"))]
    folder = tmp_path / "data"
    folder.mkdir()
    dataset(files, decode=decode).to_parquet(folder / "train-00000.parquet")
    splits, data_args = loaded(folder, tmp_path, *(["--decode_once", "True"] if once else []))
    rows = as_rows(splits["train"], data_args)
    for row, file in zip(rows.__getitems__(list(range(4))), files, strict=True):
        expected = np.asarray(decode_image(file))
        assert np.array_equal(np.asarray(row["image"]), expected)
    assert np.asarray(rows[0]["image"]).shape == (40, 24, 3), "upright"


def test_training_and_final_evaluation_see_the_same_16_bit_images(tmp_path):
    """Gradients that differ above 8 bits alone: cut off there, all of them are white."""
    rng = np.random.default_rng(0)
    files, labels = [], []
    for number in range(24):
        level = 5000 if number % 2 else 50000
        files.append(encoded(PILImage.fromarray(rng.integers(level, level + 5000, (32, 32), dtype=np.uint16))))
        labels.append(number % 2)
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        dataset(files, labels, decode=False).to_parquet(folder / f"{split}-00000.parquet")
    learning = {
        "max_steps": 20,
        "learning_rate": 5e-3,
        "max_eval_samples": None,
        "config": {"embedding_type": "patch"},
    }
    figures = run_classification.main(flags(folder, tmp_path / "run", **learning))
    assert figures["eval_accuracy"] == 1.0
    assert figures["test_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([encoded(blob(0)), None], [0, 1], "expected an image in every row of the split 'train', got none in row 1"),
        ([encoded(blob(0))] * 2, [0, None], "expected a label in every row of the split 'train', got None in row 1"),
    ],
    ids=["image", "label"],
)
def test_what_is_missing_is_found_before_training(tmp_path, images, labels, message):
    folder = tmp_path / "data"
    folder.mkdir()
    dataset(images, labels).to_parquet(folder / "train-00000.parquet")
    with pytest.raises(ValueError, match=message):
        loaded(folder, tmp_path)


def test_a_broken_image_is_named_by_row_and_file(tmp_path):
    blob(0).save(tmp_path / "good.png")
    (tmp_path / "broken.jpg").write_bytes(encoded(blob(1).resize((64, 64)), "JPEG")[:-300])
    features = Features(image=Image(), label=Value("int64"))
    paths = [str(tmp_path / name) for name in ("good.png", "good.png", "broken.jpg")]
    split = datasets.Dataset.from_dict({"image": paths, "label": [0, 1, 2]}, features=features)
    rows = ImageDataset(split, "image")
    assert len(rows.__getitems__([0, 1])) == 2
    with pytest.raises(ValueError, match=r"can be decoded in row 2, got .*broken\.jpg.*--skip_broken_images"):
        rows.__getitems__([0, 1, 2])


def test_broken_images_can_be_skipped(tmp_path, caplog):
    folder = tmp_path / "data"
    folder.mkdir()
    files = [encoded(blob(0)), encoded(blob(1))[:-50], encoded(blob(2)), b"no image"]
    dataset(files).to_parquet(folder / "train-00000.parquet")
    splits, data_args = loaded(folder, tmp_path, "--skip_broken_images", "True")
    assert list(splits["train"]["label"]) == [0, 2]
    assert "2 of 4 images of the split 'train' are skipped" in caplog.text
    assert len(as_rows(splits["train"], data_args)) == 2
    with pytest.raises(ValueError, match="no --skip_broken_images with --streaming"):
        loaded(folder, tmp_path, "--skip_broken_images", "True", "--streaming", "True")
    plain, data_args = loaded(folder, tmp_path, "--decode_once", "True")
    with pytest.raises(ValueError, match="can be decoded in row 1"):
        as_rows(plain["train"], data_args)


def test_a_checkpoint_keeps_its_class_numbers(blob_dir, tmp_path):
    """Its classes in another order than the data's are the same classes: the figures are those of its own order."""
    base = tmp_path / "base"
    short = {"max_steps": 12, "per_device_train_batch_size": 22, "final_evaluation": False}
    figures = run_classification.main(flags(blob_dir, base, **short))
    other = tmp_path / "other"
    other.mkdir()
    test = blobs(24, first=1000)
    order = ClassLabel(names=NAMES[::-1])
    labels = [2 - label for label in test["label"]]
    test = test.remove_columns("label").add_column("label", np.asarray(labels), feature=order)
    test.to_parquet(other / "test-00000.parquet")
    evaluating = {"preset": None, "config_overrides": None, "model_name_or_path": base, "do_train": None}
    again = run_classification.main(flags(other, tmp_path / "again", **evaluating))
    assert again["eval_accuracy"] == figures["eval_accuracy"]
    assert again["eval_loss"] == pytest.approx(figures["eval_loss"], rel=1e-4)
    strangers = test.remove_columns("label").add_column(
        "label", np.asarray(labels), feature=ClassLabel(names=["x", "y", "z"])
    )
    strangers.to_parquet(other / "test-00000.parquet")
    with pytest.raises(ValueError, match=r"expected images of the checkpoint's classes to evaluate it on, \['red'"):
        run_classification.main(flags(other, tmp_path / "strangers", **evaluating))
    assert not json.loads((base / "training_log.json").read_text())["resumed_from"]


def parquet(folder: Path, columns: dict, features: Features, split: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_bad_data_is_refused_before_training(tmp_path):
    classes = ClassLabel(names=NAMES)
    features = Features(image=Image(), label=classes)
    run = tmp_path / "run"

    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"expected files \*\.parquet in .*empty, got none"):
        run_classification.main(flags(empty, run))
    with pytest.raises(ValueError, match="expected a folder"):
        run_classification.main(flags(tmp_path / "nowhere", run))
    with pytest.raises(ValueError, match=r"expected a folder of images for each class in .*empty, got no image"):
        run_classification.main(flags(empty, run, data_dir=None, train_dir=empty))

    data = parquet(
        tmp_path / "columns", {"picture": [blob(0)], "label": [0]}, Features(picture=Image(), label=classes)
    )
    with pytest.raises(
        ValueError, match=r"expected a column 'image' in the split 'train', got \['label', 'picture'\]"
    ):
        run_classification.main(flags(data, run))

    data = parquet(tmp_path / "none", {"image": [], "label": []}, features)
    with pytest.raises(ValueError, match=r"expected images and labels .* in .*none, got"):
        run_classification.main(flags(data, run))

    data = parquet(tmp_path / "labels", {"image": [blob(0), blob(1)], "label": [0, 1]}, features)
    wider = datasets.Dataset.from_parquet(str(data / "train-00000-of-00001.parquet"))
    table = wider.data.table.set_column(1, "label", [[0, 3]])
    pyarrow_parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow_parquet.write_table(table, data / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"expected labels in 0\.\.2 in the split 'train', got 3 in row 1"):
        run_classification.main(flags(data, run))

    assert not run.exists()


def test_a_part_of_the_images_is_drawn_from_all_of_them(blob_dir, tmp_path):
    limits = ["--max_train_samples", "12", "--max_eval_samples", "5"]
    model_args, data_args, _ = parse_arguments(["--data_dir", str(blob_dir), "--cache_dir", str(tmp_path), *limits])
    splits = load_images(data_args, model_args, seed=0)
    assert {name: len(split) for name, split in splits.items()} == {"train": 12, "test": 5}
    assert [label % 3 for label in range(12)] != list(splits["train"]["label"])
    again = load_images(data_args, model_args, seed=0)
    assert list(again["train"]["label"]) == list(splits["train"]["label"])


def test_decoded_once_equals_decoded_each_time(blob_dir, tmp_path):
    model_args, data_args, _ = parse_arguments(["--data_dir", str(blob_dir), "--cache_dir", str(tmp_path)])
    split = load_images(data_args, model_args, seed=0)["train"]
    plain = as_rows(split, data_args)
    data_args.decode_once = True
    decoded = as_rows(split, data_args)
    assert len(plain) == len(decoded) == 132
    for expected, row in zip(plain.__getitems__([3, 131, 0]), decoded.__getitems__([3, 131, 0]), strict=True):
        assert np.array_equal(np.asarray(expected["image"]), row["image"])
        assert (expected["label"], expected["index"]) == (row["label"], row["index"])
