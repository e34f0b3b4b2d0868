"""`benchmarks/gpu.py` on a CPU with small images: every figure that a GPU will give is there."""

import json
import sys

import pytest
import torch


@pytest.fixture
def script(benchmark_script):
    return benchmark_script("gpu")


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
    script.main()


def test_one_call_gives_every_figure(script, monkeypatch, tmp_path, capsys):
    modes = []

    def compiled(model, dynamic=None, mode=None):
        modes.append(mode)
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(script, "SUBJECTS", ("ViT-Ti/16", "focusvit-nano-latent"))
    monkeypatch.setattr("focusvit_hf.benchmark.floor._SIDE_ON_CPU", 64)
    monkeypatch.setattr("focusvit_hf.benchmark.floor._COPIED", 2**12)
    out = tmp_path / "gpu.json"
    run(script, monkeypatch, "--device", "cpu", "--tiny", "--repeats", "1", "--out", out)
    result = json.loads(out.read_text())
    assert set(result["runs"]) == {"bfloat16, eager", "bfloat16, compiled"}
    for found in result["runs"].values():
        assert not found["failures"]
        settings = {(row["mode"], row["resolution"], row["batch_size"]) for row in found["rows"]}
        assert len(settings) == len(script.TINY_INFERENCE) + len(script.TINY_TRAINING)
        assert {row["part"] for row in found["rows"]} == {*script.PARTS, "training_step"}
    one = result["one image"]["bfloat16"]
    assert set(one["graphs, batch 1"]) == set(script.SUBJECTS)
    assert one["floors"]["64 px, batch 2"]["ViT-Ti/16"]["floor_ms"] > 0
    assert "reduce-overhead" in modes and None in modes


def test_a_cpu_is_refused_without_tiny(script, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(script, monkeypatch, "--device", "cpu", "--out", tmp_path / "out.json")
    assert "expected a GPU, got a CPU" in capsys.readouterr().err
