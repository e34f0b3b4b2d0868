import re
import subprocess

import pytest
import torch
from PIL import Image
from skimage.data import chelsea
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from focusvit_hf import FocusViTImageProcessor, benchmark
from focusvit_hf.benchmark import environment, interleaved, split_subjects, summary, time_split


@pytest.fixture
def systems(tiny_model):
    focusvit = tiny_model()
    dense = ViTForImageClassification(
        ViTConfig(image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    processors = FocusViTImageProcessor.from_model_config(focusvit.config), ViTImageProcessorPil(size=32)
    return {"focusvit": (focusvit, processors[0]), "dense": (dense.eval(), processors[1])}


def test_subjects_take_turns_and_warm_up(monkeypatch):
    calls, now = [], [0.0]

    def subject(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds * (1 + calls.count(name))

        return call

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    seconds = interleaved({"a": subject("a", 1), "b": subject("b", 10)}, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert seconds == {"a": [4, 5, 6], "b": [40, 50, 60]}


def test_the_accelerator_is_waited_for_inside_the_timed_region(monkeypatch):
    events = []
    monkeypatch.setattr(benchmark, "synchronize", lambda: events.append("wait"))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: events.append("clock") or 0.0)
    interleaved({"a": lambda: events.append("call")}, repeats=1, warmup=0)
    assert events == ["wait", "clock", "call", "wait", "clock"]


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warmup": -1}], ids=str)
def test_interleaved_refuses_too_few_rounds(options):
    with pytest.raises(ValueError, match="Expected repeats >= 1 and warmup >= 0"):
        interleaved({"a": int}, **options)


def test_summary_is_median_and_quartiles_a_picture():
    times = summary([0.5, 0.1, 0.4, 0.2, 0.3], count=10)
    assert times == pytest.approx({"median_ms": 30, "lower_quartile_ms": 20, "upper_quartile_ms": 40})
    assert summary([0.25]) == {"median_ms": 250, "lower_quartile_ms": 250, "upper_quartile_ms": 250}


def test_environment_says_what_a_figure_was_measured_with(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/focusvit", "demo", "a file.jpg"])
    record = environment(torch.device("cpu"), torch.bfloat16, seed=3)
    assert record["command"] == "focusvit demo 'a file.jpg'"
    assert record["torch"] == torch.__version__ and record["threads"] == torch.get_num_threads()
    assert record["device"].startswith("cpu") and record["dtype"] == "bfloat16" and record["seed"] == 3
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])
    assert record["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["commit"])


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)], ids=str)
def test_environment_does_without_git(error, monkeypatch):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(subprocess, "run", fails)
    assert environment(torch.device("cpu"), torch.float32)["commit"] is None


def test_parts_compute_what_the_whole_path_computes(systems):
    pictures = [Image.fromarray(chelsea()), Image.new("RGB", (50, 40), (200, 30, 30))]
    model, processor = systems["focusvit"]
    subjects = split_subjects(model, processor, pictures)
    assert list(subjects) == ["processor", "superpixels", "model", "pixels_to_logits", "whole_path"]
    inputs = processor(pictures, return_tensors="pt")
    assert torch.equal(subjects["superpixels"](), inputs["superpixel_ids"])
    assert list(subjects["processor"]()) == ["pixel_values"]
    expected = subjects["whole_path"]()
    assert expected.shape == (2, 5) and not expected.requires_grad
    assert torch.equal(subjects["model"](), expected) and torch.equal(subjects["pixels_to_logits"](), expected)


@pytest.mark.parametrize("pooling", ["grid", "none"])
def test_controls_have_no_superpixels_to_time(pooling, tiny_model):
    model = tiny_model(patch_pooling=pooling)
    processor = FocusViTImageProcessor.from_model_config(model.config)
    subjects = split_subjects(model, processor, [Image.new("RGB", (40, 40))])
    assert list(subjects) == ["processor", "pixels_to_logits", "whole_path"]
    assert torch.equal(subjects["whole_path"](), subjects["pixels_to_logits"]())


def test_time_split_of_two_systems_is_milliseconds_a_picture(systems, monkeypatch):
    seconds = {}

    def fixed(subjects, repeats, warmup):
        assert (repeats, warmup) == (4, 1)
        seconds.update({name: [0.02 * (1 + number)] * repeats for number, name in enumerate(subjects)})
        return seconds

    monkeypatch.setattr(benchmark, "interleaved", fixed)
    split = time_split(systems, [Image.new("RGB", (40, 40))] * 2, repeats=4, warmup=1)
    assert len(seconds) == 5 + 3
    assert list(split) == ["focusvit", "dense"] and list(split["dense"]) == [
        "processor",
        "pixels_to_logits",
        "whole_path",
    ]
    assert split["focusvit"]["processor"]["median_ms"] == pytest.approx(10)
    assert split["dense"]["whole_path"]["median_ms"] == pytest.approx(80)


def test_time_split_measures(systems):
    split = time_split(systems, [Image.new("RGB", (40, 40))], repeats=2, warmup=0)
    assert all(times["median_ms"] > 0 for parts in split.values() for times in parts.values())
