import copy
import re

import pytest

from benchmark_results import SETTINGS, benchmark_result
from focusvit_hf.benchmark.report import aligned, compare, report


@pytest.fixture
def result():
    return benchmark_result(focusvit_tiny_full=2.0)


def cells(line):
    return re.split(r" {2,}", line.strip())


def test_report_shows_every_setting_with_ratios_of_what_can_be_compared(result):
    lines = report(result).splitlines()
    assert lines[0] == "cpu (x86_64), 2 threads, float32"
    start = next(number for number, line in enumerate(lines) if line.startswith("inference, 224 px, batch 32"))
    assert cells(lines[start])[1:] == [
        "decode",
        "processor",
        "superpixels",
        "model",
        "pixels→logits",
        "JPEG→class",
        "memory",
    ]
    assert cells(lines[start + 1])[1:] == ["1.00", "2.00", "–", "–", "4.50 (1.00×)", "8.00 (1.00×)", "100 MiB (100%)"]
    assert cells(lines[start + 2])[1:] == [
        "0.50",
        "1.00",
        "0.25",
        "2.00",
        "2.25 (2.00×)",
        "4.00 (2.00×)",
        "50 MiB (50%)",
    ]
    for mode, resolution, batch in SETTINGS:
        assert any(line.startswith(f"{mode}, {resolution} px, batch {batch} ") for line in lines)


def test_report_shows_costs_by_stage(result):
    result["costs"][0]["stages"] = None
    lines = report(result).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("cost of an image"))
    assert cells(lines[start + 1]) == ["ViT-Ti/16, 224 px", "5.70", "2500", "–", "–"]
    assert cells(lines[start + 2]) == ["focusvit-tiny-full, 224 px", "5.70", "2500", "10.0", "2.0"]
    assert cells(lines[start + 3]) == ["mlp", "2.00", "1000", "10.0", "2.0"]


def test_nothing_is_missing_without_a_word(result):
    result["rows"] = [row for row in result["rows"] if row["mode"] == "inference" or row["subject"] == "ViT-Ti/16"]
    result["memory"][0].update(peak_memory_mib=None, share=None)
    failure = {"subject": "focusvit-tiny-full", "mode": "training", "resolution": 224, "batch_size": 32}
    result["failures"].append({**failure, "what": "time", "error": "no memory left"})
    text = report(result)
    training = text[text.index("training, 224 px") :].splitlines()
    assert cells(training[2])[:2] == ["focusvit-tiny-full", "–"]
    assert "failed: time of focusvit-tiny-full (training, 224 px, batch 32): no memory left" in text
    assert "–" in text[text.index("inference, 224 px, batch 32") :].splitlines()[1]


def test_comparison_gives_new_over_old_and_says_what_differs(result):
    old = copy.deepcopy(result)
    for row in old["rows"]:
        row["median_ms"] *= 2
    old["rows"] = [row for row in old["rows"] if row["part"] != "decode"]
    old["environment"]["threads"] = 4
    result["memory"] = result["memory"][1:]
    lines = compare(result, old).splitlines()
    assert "below 1 is better" in lines[0] and "0" * 40 in lines[0]
    assert lines[1] == "differs: threads: 2 / 4"
    table = [cells(line) for line in lines[2:]]
    setting = "inference, 224 px, batch 32"
    assert ["ViT-Ti/16", setting, "whole_path", "0.50", "8.00 / 16.00"] in table
    assert ["ViT-Ti/16", setting, "decode", "–", "only new"] in table
    assert ["ViT-Ti/16", setting, "memory", "–", "only old"] in table
    assert ["focusvit-tiny-full", setting, "memory", "1.00", "50.00 / 50.00"] in table
    assert len(table) == len(result["rows"]) + len(old["memory"])


def test_comparison_names_other_processors_and_settings(result):
    old = copy.deepcopy(result)
    result["environment"] |= {"processor": "AMD EPYC", "cpu_capability": "AVX2"}
    result["settings"] |= {"compiled": True, "image_processors": ["FocusViTImageProcessor"]}
    old["environment"]["processor"] = "Intel Xeon"
    old["settings"]["baseline"] = "focusvit-tiny-full"
    assert [line for line in compare(result, old).splitlines() if line.startswith("differs")] == [
        "differs: processor: AMD EPYC / Intel Xeon",
        "differs: cpu_capability: AVX2 / not known",
        "differs: baseline: ViT-Ti/16 / focusvit-tiny-full",
        "differs: compiled: True / False",
        "differs: image_processors: FocusViTImageProcessor / not known",
    ]
    assert "differs" not in compare(old, old) and "differs" not in compare(result, result)


def test_report_names_the_processor_where_it_is_known(result):
    result["environment"] |= {"processor": "AMD EPYC", "cpu_capability": "AVX2"}
    assert report(result).splitlines()[0] == "cpu (AMD EPYC, AVX2), 2 threads, float32"
    result["environment"]["device"] = "cuda (NVIDIA H200)"
    assert report(result).splitlines()[0] == "cuda (NVIDIA H200), 2 threads, float32"


def test_columns_are_aligned():
    assert aligned([["a", "bb"], ["long", "c"]]) == ["a     bb", "long   c"]
    assert aligned([]) == []
