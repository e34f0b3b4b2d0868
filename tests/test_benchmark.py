import re
import subprocess

import pytest
import torch

from focusvit_hf import benchmark
from focusvit_hf.benchmark import environment, interleaved, summary


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


def test_progress_is_told_of_every_call():
    told = []
    interleaved({"a": int, "b": int}, repeats=2, warmup=1, progress=lambda: told.append(1))
    assert len(told) == 2 * 3


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warmup": -1}], ids=str)
def test_interleaved_refuses_too_few_rounds(options):
    with pytest.raises(ValueError, match="Expected repeats >= 1 and warmup >= 0"):
        interleaved({"a": int}, **options)


def test_summary_is_median_quartiles_and_percentiles_a_picture():
    times = summary([0.5, 0.1, 0.4, 0.2, 0.3], count=10)
    expected = {"p5_ms": 12, "lower_quartile_ms": 20, "median_ms": 30, "upper_quartile_ms": 40, "p95_ms": 48}
    assert times == pytest.approx(expected)
    assert summary([0.25]) == dict.fromkeys(expected, 250)


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
