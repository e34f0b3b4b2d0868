"""What `benchmarks/sparsification.py` measures: the same models with and without tokens that leave."""

import json
import sys

import pytest

from focusvit_hf.benchmark.result import read_result


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("sparsification")


def test_rows_of_a_table_differ_in_how_tokens_leave_alone(script):
    for table, (base, resolution, fields, _) in script.TABLES.items():
        plain, *sparse = (subject.configure(resolution) for subject in script.subjects_of(table))
        assert plain.num_tokens == 196 and not plain.sparsification_layers, (table, base, fields)
        for config in sparse:
            assert config.num_tokens == 196 and max(config.sparsification_layers) < config.num_hidden_layers
            differing = {name for name, value in config.to_dict().items() if value != plain.to_dict()[name]}
            own = {"sparsification_relevance", "sparsification_mode", "sparsification_layers", "keep_ratio"}
            assert differing <= own, (table, differing)
            last = config.keep_ratio[-1] if isinstance(config.keep_ratio, list) else config.keep_ratio**3
            assert last == pytest.approx(0.7**3)


def test_a_table_is_written_as_a_result_that_can_be_read(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(script.TABLES, "small", ("focusvit-nano-full", 32, {}, 1))
    arguments = ["--tables", "small", "--batch-sizes", "1", "--out", str(tmp_path), "--repeats", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["sparsification.py", *arguments])
    script.main()
    result = read_result(tmp_path / "sparsification-small-cpu.json")
    assert not result["failures"] and {row["part"] for row in result["rows"]} == {"pixels_to_logits"}
    assert [row["subject"] for row in result["rows"]] == result["settings"]["subjects"]
    assert "focusvit-nano-full-merge" in capsys.readouterr().out
    assert json.loads((tmp_path / "sparsification-small-cpu.json").read_text()) == result
