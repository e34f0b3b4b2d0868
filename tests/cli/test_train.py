"""`focusvit train`: the training application as a command."""

import json

import pytest

from blobs import flags
from focusvit_hf.cli.__main__ import main


def test_it_trains_as_the_script_does(blob_dir, tmp_path, capsys):
    output_dir = tmp_path / "run"
    assert main(["train", *flags(blob_dir, output_dir, max_steps=2)]) == 0
    out = capsys.readouterr().out
    figures = json.loads(out[out.rindex("\n{\n") :])
    log = json.loads((output_dir / "training_log.json").read_text())
    assert figures == log["figures"] and figures.keys() >= {"eval_accuracy", "test_accuracy"}
    assert log["command"].startswith("focusvit train --preset focusvit-nano")


def test_its_help_and_its_errors(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    assert "usage: focusvit train " in (told := capsys.readouterr().out) and "--train_dir" in told
    assert main(["train", "--preset", "focusvit-nano", "--output_dir", str(tmp_path / "run"), "--bananas", "3"]) == 2
    assert "--bananas" in capsys.readouterr().err
    assert main(["train", "--preset", "focusvit-nano", "--output_dir", str(tmp_path / "run"), "--use_cpu"]) == 2
    assert "expected one of --dataset_name" in capsys.readouterr().err
