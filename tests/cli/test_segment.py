"""`focusvit segment` and `focusvit cutout`, from files to files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from focusvit_hf import FocusViTForSemanticSegmentation, FocusViTImageProcessor
from focusvit_hf.cli.__main__ import main


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    torch.manual_seed(0)
    names = {0: "ground", 1: "figure"}
    model = FocusViTForSemanticSegmentation(tiny_config(num_labels=2, id2label=names, initializer_range=0.5))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    FocusViTImageProcessor.from_model_config(model.config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def files(photographs, tmp_path):
    paths = [tmp_path / "cat.jpg", tmp_path / "cup.png"]
    for path, pixels in zip(paths, photographs[[0, 2]], strict=True):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((80, 61)).save(path)
    return [str(path) for path in paths]


def test_segment_writes_maps_overlays_and_shares(checkpoint, files, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["segment", *files, "--model", checkpoint, "--out", str(out)]) == 0
    names = {f"{stem}_{kind}.png" for stem in ("cat", "cup") for kind in ("labels", "overlay")}
    assert {path.name for path in out.iterdir()} == names | {"segmentation.json"}
    log = json.loads((out / "segmentation.json").read_text())
    for entry, path in zip(log["images"], files, strict=True):
        assert entry["image"] == path
        drawn = Image.open(out / f"{path.rpartition('/')[2][:3]}_labels.png")
        assert drawn.mode == "P" and drawn.size == (80, 61)
        assert entry["shares"].get("figure", 0) == pytest.approx(np.mean(np.asarray(drawn) == 1))
    assert "figure" in capsys.readouterr().out


def test_cutout_writes_transparent_images_and_goes_on_after_a_bad_one(checkpoint, files, tmp_path, capsys):
    out, bad = tmp_path / "out", tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    command = ["cutout", files[0], str(bad), files[1], "--model", checkpoint, "--out", str(out), "--label", "ground"]
    assert main([*command, "--threshold", "0.3"]) == 1
    assert str(bad) in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"cat_cutout.png", "cup_cutout.png"}
    cut = Image.open(out / "cup_cutout.png")
    assert cut.mode == "RGBA" and cut.size == (80, 61)
    seen = np.asarray(cut)[..., 3] > 0
    assert np.array_equal(np.asarray(cut)[seen][:, :3], np.asarray(Image.open(files[1]).convert("RGB"))[seen])


def test_what_cannot_be_done_is_said_before_an_image_is_read(checkpoint, files, tmp_path, capsys, monkeypatch):
    def error(*arguments):
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    model = ["--model", checkpoint]
    told = error("cutout", *files, *model, "--label", "sky")
    assert "expected a --label of the model, ground; figure, got 'sky'" in told
    assert "expected a --threshold above 0 and below 1" in error("cutout", *files, *model, "--threshold", "1.5")
    assert "expected images with different names" in error("segment", files[0], files[0], *model)
    assert main(["segment", *files, *model, "--out", files[0]]) == 2
    assert "expected a folder for --out" in capsys.readouterr().err
    written_over = tmp_path / "cat_cutout.png"
    Image.open(files[0]).save(written_over)
    (tmp_path / "cat.jpg").rename(tmp_path / "cat.jpeg")
    both = [str(tmp_path / "cat.jpeg"), str(written_over)]
    assert main(["cutout", *both, *model, "--out", str(tmp_path)]) == 2
    assert "none of the images is written over" in capsys.readouterr().err
    monkeypatch.setattr("focusvit_hf.cli.segment.DEFAULT_SEGMENTER", tmp_path / "nowhere")
    assert "expected --model FOLDER_OR_NAME" in error("segment", files[1])
