"""Images on their way to the collator: checked before training, decoded by the one function, named by row and file."""

import io
import json

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as PILImage

import run_classification
from blobs import NAMES, blob, blobs, flags
from focusvit_hf.images import decode_image
from focusvit_hf.training.arguments import parse_arguments
from focusvit_hf.training.data import PictureDataset, as_rows, load_pictures


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
    return load_pictures(data_args, model_args, seed=0, training=training), data_args


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
    rows = PictureDataset(split, "image")
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
