"""The README says what was measured: exactly what the script makes of the committed JSON."""

import re
import sys

import pytest

from benchmark_results import benchmark_result


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("readme_table")


@pytest.fixture
def readme(script, tmp_path, monkeypatch):
    """A copy to change."""
    path = tmp_path / "README.md"
    path.write_bytes(script.README.read_bytes())
    monkeypatch.setattr(script, "README", path)
    return path


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["readme_table.py", *arguments])
    return script.main()


def test_the_readme_is_up_to_date(script, monkeypatch, capsys):
    assert run(script, monkeypatch, "--check") == 0, capsys.readouterr().err


def test_a_figure_changed_by_hand_is_found_and_mended(script, readme, monkeypatch, capsys):
    text = readme.read_text()
    spoilt = re.sub(r"(<!-- begin: measured -->.*?)\d", r"\g<1>~", text, count=1, flags=re.DOTALL)
    assert spoilt != text
    readme.write_text(spoilt)
    assert run(script, monkeypatch, "--check") == 1
    assert "README.md" in capsys.readouterr().err and readme.read_text() == spoilt
    assert run(script, monkeypatch) == 0
    assert readme.read_text() == text


def test_figures_and_ratios_stand_where_they_belong(script):
    table = script.speed_table(benchmark_result(focusvit_tiny_full=2.0)).splitlines()
    assert table[0].count("|") == table[1].count("|") == table[2].count("|")
    assert table[2] == "| ViT-Ti/16 | 4.5 ms, 1.0× | 4.5 ms, 1.0× | 8.0 ms, 1.0× | 30.0 ms, 1.0× | 100% |"
    assert table[3] == "| **FocusViT-tiny, full** | 2.2 ms, 2.0× | 2.2 ms, 2.0× | 4.0 ms, 2.0× | 15.0 ms, 2.0× | 50% |"
    table = script.resolution_table(benchmark_result(focusvit_tiny_full=2.0)).splitlines()
    assert table[3] == "| **FocusViT-tiny, full** | 2.2 ms, 2.0× | 9.0 ms, 2.0× | 36.0 ms, 2.0× |"


def test_what_was_not_measured_is_a_dash(script):
    result = benchmark_result(focusvit_tiny_full=2.0)
    result["rows"] = [row for row in result["rows"] if row["mode"] == "inference" or row["subject"] == "ViT-Ti/16"]
    result["memory"] = []
    assert script.speed_table(result).splitlines()[3].endswith("| 4.0 ms, 2.0× | – | – |")


def test_the_command_that_measured_is_named(script):
    assert script.measured(benchmark_result()).endswith("`focusvit benchmark --repeats 9`")


def test_the_processor_is_named_where_it_is_known(script):
    result = benchmark_result()
    result["environment"] |= {"processor": "AMD EPYC", "cpu_capability": "AVX2"}
    assert script.provenance(result).startswith("cpu (AMD EPYC, AVX2), 2 threads, float32, torch")


@pytest.mark.parametrize("text", ["nothing", "<!-- begin: a -->\n1\n<!-- end: a -->\n" * 2], ids=["absent", "twice"])
def test_a_block_has_to_be_there_once(text, script):
    with pytest.raises(ValueError, match="expected one block"):
        script.with_blocks(text, {"a": "2"})


def test_only_what_is_between_the_marks_changes(script):
    text = "before\n<!-- begin: a -->\nold\n<!-- end: a -->\nafter\n"
    assert script.with_blocks(text, {"a": r"new \1"}) == "before\n<!-- begin: a -->\nnew \\1\n<!-- end: a -->\nafter\n"
