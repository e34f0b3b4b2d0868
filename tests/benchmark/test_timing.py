import importlib.machinery
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from focusvit_hf.benchmark import timing as benchmark
from focusvit_hf.benchmark.timing import interleaved, summary
from focusvit_hf.utils import environment as environment_module
from focusvit_hf.utils.environment import environment


ROOT = Path(__file__).resolve().parents[2]


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
    monkeypatch.setattr(benchmark, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: events.append("clock") or 0.0)
    interleaved({"a": lambda: events.append("call")}, repeats=1, warmup=0)
    assert events == ["wait", "clock", "call", "wait", "clock"]


@pytest.mark.parametrize(
    ("device", "expected"),
    [(torch.device("cuda:1"), [torch.device("cuda:1")] * 2), (torch.device("cpu"), []), (None, [None] * 2)],
    ids=str,
)
def test_the_device_that_computes_is_waited_for(device, expected, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    interleaved({"a": int}, repeats=1, warmup=0, device=device)
    assert waited == expected


def test_what_fails_is_dropped_and_the_rest_goes_on():
    calls = []

    def breaks():
        calls.append("b")
        if calls.count("b") == 3:
            raise MemoryError("no memory left")

    def failed(name, error):
        assert (name, str(error)) == ("b", "no memory left")
        return ["b", "c"]

    subjects = {"a": lambda: calls.append("a"), "b": breaks, "c": lambda: calls.append("c")}
    seconds = interleaved(subjects, repeats=3, warmup=1, failed=failed)
    assert calls == ["a", "b", "c"] * 2 + ["a", "b", "a"]
    assert list(seconds) == ["a"] and len(seconds["a"]) == 3


def test_without_anybody_to_tell_an_error_ends_the_measurement():
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": lambda: 1 / 0})


def test_progress_is_told_of_every_call():
    told = []
    interleaved({"a": int, "b": int}, repeats=2, warmup=1, progress=lambda: told.append(1))
    assert len(told) == 2 * 3


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warmup": -1}], ids=str)
def test_interleaved_refuses_too_few_rounds(options):
    with pytest.raises(ValueError, match="Expected repeats >= 1 and warmup >= 0"):
        interleaved({"a": int}, **options)


def test_summary_is_median_quartiles_and_percentiles_an_image():
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


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        (["benchmarks/superpixels.py", "--limit", "3"], "python benchmarks/superpixels.py --limit 3"),
        ([f"{ROOT}/experiments/micro/run.py"], "python experiments/micro/run.py"),
        (["/elsewhere/mine.py", "a"], "python mine.py a"),
        (["/bin/focusvit", "--out", f"{ROOT}/new.json", "-n=1"], "focusvit --out new.json -n=1"),
        (["focusvit", f"--a={ROOT.parent}/data", f"ViT-Ti/16,{ROOT}/b.json"], "focusvit --a=../data ViT-Ti/16,b.json"),
    ],
    ids=["in the source tree", "absolute", "elsewhere", "option", "in lists"],
)
def test_the_command_runs_as_recorded_and_names_no_place_of_the_machine(typed, recorded, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", typed)
    assert environment(torch.device("cpu"), torch.float32)["command"] == recorded


def test_a_module_is_recorded_as_one(monkeypatch):
    file = str(ROOT / "src" / "focusvit_hf" / "cli" / "push.py")
    spec = importlib.machinery.ModuleSpec("focusvit_hf.cli.push", None, origin=file)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr("sys.argv", [file, "demo"])
    assert environment(torch.device("cpu"), torch.float32)["command"] == "python -m focusvit_hf.cli.push demo"


def test_environment_names_the_processor_and_what_torch_uses_of_it(monkeypatch, tmp_path):
    def processor():
        return environment(torch.device("cpu"), torch.float32)["processor"]

    assert environment(torch.device("cpu"), torch.float32)["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr(environment_module, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(environment_module.platform, "processor", lambda: "i386")
    assert processor() == "i386"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC 7B13\nmodel name\t: AMD EPYC 7B13\n")
    assert processor() == "AMD EPYC 7B13"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 243.75\n")
    monkeypatch.setattr(environment_module.platform, "processor", lambda: "")
    assert processor() is None


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)], ids=str)
def test_environment_does_without_git(error, monkeypatch):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(subprocess, "run", fails)
    assert environment(torch.device("cpu"), torch.float32)["commit"] is None
