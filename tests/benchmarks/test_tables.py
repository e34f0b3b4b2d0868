"""The documentation says what was measured: exactly what the script makes of the committed JSON."""

import re
import sys
from pathlib import Path

import pytest

from benchmark_results import benchmark_result


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("tables")


@pytest.fixture
def documents(script, tmp_path, monkeypatch):
    """Copies to change."""
    present = [path for path in script.DOCUMENTS if path.exists()]
    for path in present:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    copies = tuple(tmp_path / path.name for path in script.DOCUMENTS)
    monkeypatch.setattr(script, "DOCUMENTS", copies)
    return copies


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tables.py", *arguments])
    return script.main()


def test_the_documentation_is_up_to_date(script, monkeypatch, capsys):
    assert run(script, monkeypatch, "--check") == 0, capsys.readouterr().err


def test_a_figure_changed_by_hand_is_found_and_mended(script, documents, monkeypatch, capsys):
    path = next(path for path in documents if path.exists() and "<!-- begin: measured -->" in path.read_text())
    text = path.read_text()
    spoilt = re.sub(r"(<!-- begin: measured -->.*?)\d", r"\g<1>~", text, count=1, flags=re.DOTALL)
    assert spoilt != text
    path.write_text(spoilt)
    assert run(script, monkeypatch, "--check") == 1
    assert path.name in capsys.readouterr().err and path.read_text() == spoilt
    assert run(script, monkeypatch) == 0
    assert path.read_text() == text


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


MARKED = "<!-- begin: a -->\n1\n<!-- end: a -->\n"


@pytest.mark.parametrize(
    "texts",
    [["nothing"], [MARKED * 2], [MARKED, MARKED], ["<!-- end: a -->\n<!-- begin: a -->\n"], ["<!-- begin: a -->\n"]],
    ids=["absent", "twice", "in two documents", "turned round", "without an end"],
)
def test_a_block_has_to_be_there_once(texts, script):
    documents = {Path(f"{number}.md"): text for number, text in enumerate(texts)}
    with pytest.raises(ValueError, match=r"expected .*<!-- begin: a -->"):
        script.with_blocks(documents, {"a": "2"})


def test_only_what_is_between_the_marks_changes(script):
    documents = {Path("a.md"): f"before\n{MARKED}after\n", Path("b.md"): "other\n"}
    assert script.with_blocks(documents, {"a": r"new \1"}) == {
        Path("a.md"): "before\n<!-- begin: a -->\nnew \\1\n<!-- end: a -->\nafter\n",
        Path("b.md"): "other\n",
    }
