"""Several pupils of one teacher, peers among them, and the table that compares them."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from experiments.micro.results import unpacked
from experiments.teacher import table, train
from focusvit_hf import FocusViTForImageClassification
from focusvit_hf.utils.files import write_json
from teaching import MIXED, PEER, examples


def test_pupils_side_by_side_see_the_same_views_and_one_that_is_behind_catches_up(stand_in, tmp_path, monkeypatch):
    seen = {}
    forward = {kind: kind.forward for kind in (train.Pupil, train.Peer)}
    for kind in forward:

        def noted(pupil, pixels, kind=kind):
            seen.setdefault(kind, []).append(pixels)
            return forward[kind](pupil, pixels)

        monkeypatch.setattr(kind, "forward", noted)
    for name, recipe in (("ours", MIXED), ("theirs", PEER)):
        write_json(tmp_path / f"{name}.json", recipe)
    command = [str(tmp_path / "ours.json"), str(tmp_path / "theirs.json"), "--out", str(tmp_path / "runs")]
    save = train.State.save

    def interrupted(state, path):
        if state.out.name == "theirs":
            raise KeyboardInterrupt
        save(state, path)

    monkeypatch.setattr(train.State, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(command)
    monkeypatch.setattr(train.State, "save", save)
    (ours, theirs) = seen.values()
    assert len(ours) == 2 and all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    # The first epoch of ours alone was saved: theirs makes up for it before both go on.
    train.main(command)
    assert [len(views) for views in seen.values()] == [4, 6]
    for name in ("ours", "theirs"):
        log = json.loads((tmp_path / "runs" / name / "log.json").read_text())
        assert [entry["epoch"] for entry in log["history"]] == [1, 2]
        right = unpacked(log["correct"], 7)
        assert log["figures"]["test_accuracy"] == pytest.approx(right.mean())

    monkeypatch.setattr(table, "load_examples", examples)
    threads = torch.get_num_threads()
    known = [{"name": "Theirs", "accuracy": {"mean": 0.25}}, {"name": "another", "accuracy": {"mean": 0.5}}]
    write_json(tmp_path / "frontier.json", {"rows": known})
    extra = ["--scratch", str(tmp_path / "frontier.json"), "--plot", str(tmp_path / "taught.png")]
    options = [
        *extra,
        "--name",
        "taught",
        "--repeats",
        "1",
        "--tables",
        str(tmp_path),
        "--results",
        str(tmp_path / "results"),
    ]
    table.main([str(tmp_path / "runs"), "--subject", "theirs", *options])
    torch.set_num_threads(threads)
    first, second = json.loads((tmp_path / "taught.json").read_text())["rows"]
    assert (first["pupil"], second["pupil"]) == ("theirs", "ours") and "difference" not in first
    log = json.loads((tmp_path / "results" / "taught" / "ours.json").read_text())
    assert second["accuracy"]["mean"] == pytest.approx(log["figures"]["test_accuracy"])
    apart = first["accuracy"]["mean"] - second["accuracy"]["mean"]
    assert second["difference"]["mean"] == pytest.approx(apart)
    model = FocusViTForImageClassification.from_pretrained(tmp_path / "runs" / "ours")
    assert second["parameters"] == model.num_parameters() and second["batch_32"]["median_ms"] > 0
    lines = (tmp_path / "taught.md").read_text().splitlines()
    assert len(lines) == 4 and lines[2].startswith("| theirs | ") and "(1.00 times)" in lines[2]
    assert first["scratch"] == 0.25 and "scratch" not in second and "| 25.0 |" in lines[2] and "|  |" in lines[3]
    with Image.open(tmp_path / "taught.png") as drawn:
        assert drawn.size == (1350, 630)
    with pytest.raises(ValueError, match=r"Expected --subject to be one of \['ours', 'theirs'\], got 'others'"):
        table.main([str(tmp_path / "runs"), "--subject", "others", *options])
    with pytest.raises(ValueError, match=r"Expected runs in .*results that ended with the test images, got none"):
        table.main([str(tmp_path / "results"), "--subject", "ours", *options])


def test_pupils_side_by_side_differ_in_themselves_alone(stand_in, tmp_path):
    longer = train.Recipe(**{**PEER, "stages": [[112, 3]]})
    with pytest.raises(ValueError, match=r"differ in config and peer alone, got \['config', 'stages', 'peer'\] in"):
        train.run({tmp_path / "ours": train.Recipe(**MIXED), tmp_path / "theirs": longer}, None, "test", 1)
    with pytest.raises(ValueError, match="expected no config, guidance = 0 and no num_superpixels for"):
        train.Recipe(**{**PEER, "num_superpixels": [4]})
    with pytest.raises(ValueError, match="expected no --begin for MobileNetV2"):
        train.run({tmp_path / "theirs": train.Recipe(**PEER)}, None, "test", 1, begin=tmp_path)
    write_json(tmp_path / "ours.json", MIXED)
    for command in (["--begin", "runs"], []):
        with pytest.raises(SystemExit):
            train.main([*[str(tmp_path / "ours.json")] * 2, "--out", str(tmp_path / "runs"), *command])
    assert not (tmp_path / "runs").exists()


def test_the_normalisation_of_a_peer_follows_more_than_its_last_batch():
    peer = train.Peer(train.Recipe(**PEER))
    moments = {norm.momentum for norm in peer.modules() if isinstance(norm, nn.BatchNorm2d)}
    assert moments == {0.1}
    logits, thousand, none = peer.eval()(torch.randn(2, 3, 112, 112))
    assert logits.shape == (2, 10) and thousand.shape == (2, 1000) and none is None
