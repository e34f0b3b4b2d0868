import argparse
import io
import json
import os

import pytest
import torch

from benchmark_results import benchmark_result
from focusvit_hf.benchmark import run as benchmark_run
from focusvit_hf.benchmark.run import Setting
from focusvit_hf.benchmark.subjects import sample_images
from focusvit_hf.cli import benchmark as cli_benchmark
from focusvit_hf.cli.__main__ import main
from focusvit_hf.cli.benchmark import add_benchmark_command


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_benchmark_command(parser.add_subparsers())
    return parser.parse_args(["benchmark", *map(str, arguments)])


def settings(*arguments):
    return list(cli_benchmark._plan(parsed(*arguments)).settings)


def run(*arguments):
    return main(["benchmark", *(str(argument) for argument in arguments)])


def fails(capsys, *arguments):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("focusvit: error: ") and error.count("\n") == 1
    return error


@pytest.fixture
def preset(tiny_config, tmp_path):
    path = tmp_path / "tiny.json"
    tiny_config().to_json_file(path)
    return path


@pytest.fixture
def measured(monkeypatch):
    """Plans that were to be measured, and what comes back for them."""
    asked = []

    def fixed(plan, images):
        asked.append((plan, list(images), torch.get_num_threads()))
        return benchmark_result(focusvit_tiny_full=2.0)

    monkeypatch.setattr(cli_benchmark, "measure", fixed)
    return asked


@pytest.fixture
def never_measured(monkeypatch):
    monkeypatch.setattr(cli_benchmark, "measure", lambda *args: pytest.fail("measured before everything was checked"))


def test_a_tiny_model_from_the_command_to_the_plots(preset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_run, "peak_memory", lambda *args, **options: 5.0)
    out, plots = tmp_path / "results" / "new.json", tmp_path / "plots"
    options = ["--resolutions", "32,64:2", "--batch-sizes", 1, "--mode", "both", "--repeats", 1, "--warmup", 1]
    given = ["--subjects", preset, "--baseline", preset, *options]
    assert run(*given, "--out", out, "--plots", plots) == 0
    result = json.loads(out.read_text())
    assert {(row["mode"], row["resolution"], row["batch_size"]) for row in result["rows"]} == {
        (mode, *size) for mode in ("inference", "training") for size in ((32, 1), (64, 2))
    }
    assert sorted(os.listdir(plots)) == ["memory.png", "throughput.png", "time_split.png"]
    printed = capsys.readouterr().out
    assert "inference, 64 px, batch 2" in printed and "5 MiB (100%)" in printed and f"wrote {out}" in printed
    assert run("--read", out, "--compare", out) == 0
    assert "1.00" in capsys.readouterr().out


def test_settings_of_resolutions_and_batches():
    both = ("--batch-sizes", "1,4", "--mode", "both")
    assert settings("--resolutions", "224,448:2", *both) == [
        *(Setting("inference", *size) for size in ((224, 1), (224, 4), (448, 2))),
        *(Setting("training", *size) for size in ((224, 1), (224, 4), (448, 2))),
    ]
    assert settings("--resolutions", "224:1", "--training-resolutions", "224:32", *both) == [
        Setting("inference", 224, 1),
        Setting("training", 224, 32),
    ]
    assert settings() == [Setting("inference", 224, 1), Setting("inference", 224, 32)]
    assert settings("--mode", "training", "--batch-sizes", "8") == [Setting("training", 224, 8)]


def test_the_baseline_is_the_dense_vit_or_the_first_subject(preset):
    def baseline(*arguments):
        return cli_benchmark._plan(parsed("--resolutions", "64", *arguments)).baseline

    assert baseline("--subjects", f"{preset},ViT-Ti/16") == "ViT-Ti/16"
    assert baseline("--subjects", f"{preset},ViT-Ti/32") == "tiny"
    assert baseline("--subjects", f"ViT-Ti/32,{preset}", "--baseline", "tiny") == "tiny"
    assert baseline("--subjects", f"ViT-Ti/32,{preset}", "--baseline", preset) == "tiny"


def test_options_reach_the_plan(measured, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "one.jpg").write_bytes(sample_images()[1])
    before = torch.get_num_threads()
    options = "--subjects ResNet-18,focusvit-tiny-full --baseline ResNet-18 --dtype bfloat16 --compile --threads 2"
    options += " --repeats 5 --warmup 3 --parts decode,model --no-memory --device cpu"
    assert run(*options.split(), "--images", folder) == 0
    plan, images, threads = measured[0]
    assert [subject.name for subject in plan.subjects] == ["ResNet-18", "focusvit-tiny-full"]
    assert (plan.baseline, plan.dtype, plan.device) == ("ResNet-18", torch.bfloat16, torch.device("cpu"))
    assert (plan.compiled, plan.memory, plan.repeats, plan.warmup) == (True, False, 5, 3)
    assert plan.parts == ["decode", "model"]
    assert images == [sample_images()[1]]
    assert threads == 2 and torch.get_num_threads() == before


def test_the_scikit_image_photographs_are_the_default(measured):
    assert run() == 0
    assert measured[0][1] == sample_images()


def test_ratios_to_an_earlier_result(measured, tmp_path, capsys):
    old = tmp_path / "old.json"
    old.write_text(json.dumps(benchmark_result(focusvit_tiny_full=1.0)))
    assert run("--compare", old) == 0
    printed = capsys.readouterr().out
    line = next(
        line for line in printed.splitlines() if line.startswith("focusvit-tiny-full") and "whole_path" in line
    )
    assert "0.50" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subjects", "ViT-Ti/16,Focus"], "Expected a subject from ViT-Ti/16, ViT-Ti/32, LeViT-128S"),
        (["--baseline", "MobileNetV2"], "Expected the baseline among the subjects"),
        (["--parts", "decode,encode"], "Expected parts from decode"),
        (["--resolutions", "225"], "does not work at 225 pixels"),
        (["--images", "absent"], "Expected a folder of JPEG files, got absent"),
        (["--compare", "absent.json"], "No such file"),
        (["--read", "absent.json"], "No such file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_option_is_told_before_anything_is_measured(options, message, never_measured, capsys):
    assert message in fails(capsys, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-sizes", "1,0"], "expected a whole number >= 1, got '0'"),
        (["--resolutions", "224:"], "expected a whole number >= 1, got ''"),
        (["--subjects", "a,,b"], "expected names between commas, got 'a,,b'"),
        (["--dtype", "int8"], "int8"),
        (["--mode", "sleeping"], "sleeping"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_syntax_ends_with_usage(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--plots"])
def test_what_cannot_be_written_is_found_first(option, never_measured, tmp_path, capsys):
    (tmp_path / "file").write_text("old")
    name = "file/result.json" if option == "--out" else "file"
    assert "file" in fails(capsys, option, tmp_path / name)
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_is_no_file_to_write(never_measured, tmp_path, capsys):
    assert "expected a file to write to, got the folder" in fails(capsys, "--out", tmp_path)


def test_names_of_a_result_reach_the_terminal_as_text(tmp_path, capsys):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(benchmark_result(odd=2.0)).replace("odd", "odd\\u001b[2J"))
    assert run("--read", path, "--compare", path) == 0
    printed = capsys.readouterr().out
    assert "odd\\x1b[2J" in printed and "\x1b" not in printed and printed.count("\n") > 10


@pytest.mark.parametrize("option", ["--read", "--compare"])
def test_an_earlier_result_that_is_read_is_not_replaced(option, never_measured, tmp_path, capsys):
    path, link = tmp_path / "old.json", tmp_path / "link.json"
    path.write_text(json.dumps(benchmark_result()))
    link.symlink_to(path)
    before = path.read_text()
    for out in (path, link):
        assert f"none of the inputs, got {out}" in fails(capsys, option, path, "--out", out)
    assert path.read_text() == before


def test_without_matplotlib_nothing_is_measured(never_measured, tmp_path, capsys, monkeypatch):
    def missing():
        raise ImportError("Plots need matplotlib: pip install focusvit-hf[plots]")

    monkeypatch.setattr(cli_benchmark, "require_matplotlib", missing)
    assert "focusvit-hf[plots]" in fails(capsys, "--plots", tmp_path)


def test_an_earlier_result_outlives_a_run_that_fails(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.json"
    out.write_text("old")

    def fails_late(*args):
        raise OSError("the machine is on fire")

    monkeypatch.setattr(cli_benchmark, "measure", fails_late)
    assert "on fire" in fails(capsys, "--out", out)
    assert out.read_text() == "old" and os.listdir(tmp_path) == ["out.json"]


def test_a_failure_of_one_subject_is_told_when_all_else_is_written(tmp_path, capsys, monkeypatch):
    result = benchmark_result(focusvit_tiny_full=2.0)
    failure = {"subject": "ViT-Ti/16", "mode": "inference", "resolution": 896, "batch_size": 2}
    result["failures"] = [{**failure, "what": what, "error": "no memory left"} for what in ("time", "memory")]
    monkeypatch.setattr(cli_benchmark, "measure", lambda *args: result)
    error = fails(capsys, "--out", tmp_path / "out.json", "--plots", tmp_path)
    assert "could not measure time of ViT-Ti/16 (inference, 896 px, batch 2): no memory left; and 1 more" in error
    assert sorted(os.listdir(tmp_path)) == ["memory.png", "out.json", "throughput.png", "time_split.png"]
    # To look at it later is no failure.
    assert run("--read", tmp_path / "out.json") == 0


def test_tables_are_printed_even_if_the_disk_is_full_at_the_end(measured, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(cli_benchmark, "write_json", full)
    assert run("--out", tmp_path / "out.json") == 2
    captured = capsys.readouterr()
    assert "inference, 224 px, batch 32" in captured.out and "No space left" in captured.err


def test_what_is_written_is_told_even_if_it_cannot_be_drawn(measured, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(cli_benchmark, "draw_plots", full)
    assert run("--out", tmp_path / "out.json", "--plots", tmp_path) == 2
    assert f"\n\nwrote {tmp_path / 'out.json'}\n" in capsys.readouterr().out


def test_a_result_is_written_and_drawn_even_if_it_cannot_be_printed(measured, tmp_path, capsys, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", stream)
    assert run("--out", tmp_path / "out.json", "--plots", tmp_path) == 2
    assert "charmap" in capsys.readouterr().err
    assert json.loads((tmp_path / "out.json").read_text()) == benchmark_result(focusvit_tiny_full=2.0)
    assert sorted(os.listdir(tmp_path)) == ["memory.png", "out.json", "throughput.png", "time_split.png"]
