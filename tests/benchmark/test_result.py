"""A benchmark's JSON is read back whole, or refused in one line that names the file and the reason."""

import copy
import json
from pathlib import Path

import pytest

from benchmark_results import SETTINGS, benchmark_result
from focusvit_hf.benchmark.report import compare, describe_failure, report
from focusvit_hf.benchmark.result import memory_of, read_result, settings_of, times_of


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def result():
    return benchmark_result(focusvit_tiny_full=2.0)


def test_records_are_found_by_setting(result):
    assert settings_of(result) == list(SETTINGS)
    times = times_of(result, ("inference", 448, 8))
    assert list(times) == ["ViT-Ti/16", "focusvit-tiny-full"]
    assert times["ViT-Ti/16"]["decode"]["median_ms"] == 4.0
    assert memory_of(result, ("training", 224, 32))["focusvit-tiny-full"]["share"] == 0.5
    assert memory_of(result, ("inference", 224, 1)) == {}


def test_reading_refuses_what_is_no_benchmark(result, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    assert read_result(path) == result
    path.write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match=r"Expected the JSON of a benchmark in .*without memory, costs"):
        read_result(path)
    path.write_text("not JSON")
    with pytest.raises(ValueError, match="expected JSON"):
        read_result(path)
    with pytest.raises(FileNotFoundError):
        read_result(tmp_path / "absent.json")


@pytest.mark.parametrize("name", ["cpu", "cpu-others", "cpu-avx512"])
def test_committed_results_are_read(name):
    assert report(read_result(ROOT / "benchmarks" / "results" / f"{name}.json"))


def places(value, path=()):
    """The paths of all values inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


DELETED = object()


@pytest.mark.parametrize(
    "wrong",
    [DELETED, None, [], {}, [[]], "many", -1, True, float("nan"), float("inf")],
    ids=lambda wrong: "deleted" if wrong is DELETED else repr(wrong),
)
def test_a_mangled_result_is_refused_in_one_line_or_does_no_harm(wrong, result, tmp_path):
    """Every value in turn is replaced or deleted, in a result with one record of each kind."""
    result["rows"], result["memory"], result["costs"] = result["rows"][:1], result["memory"][:1], result["costs"][:1]
    place = {"subject": "ViT-Ti/16", "mode": "training", "resolution": 224, "batch_size": 32}
    result["failures"] = [{**place, "what": "time", "error": "no memory left"}]
    path, refused = tmp_path / "mangled.json", 0
    for *outer, last in list(places(result)):
        mangled = copy.deepcopy(result)
        around = mangled
        for key in outer:
            around = around[key]
        if wrong is DELETED:
            del around[last]
        else:
            around[last] = wrong
        path.write_text(json.dumps(mangled))
        try:
            found = read_result(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert report(found) and compare(found, result) and compare(result, found)
            assert all(map(describe_failure, found["failures"]))
    assert refused > 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result: result["rows"][2].update(median_ms=0), r"got rows\[2\]\.median_ms = 0\.$"),
        (lambda result: result["rows"][2].update(median_ms=1e-320), r"got rows\[2\]\.median_ms = 1e-320\.$"),
        (lambda result: result["costs"][0]["stages"][0].pop("stage"), r"got costs\[0\]\.stages\[0\] without stage\.$"),
        (lambda result: result.update(memory=None), r"got memory = None in the place of a list\.$"),
        (lambda result: result["environment"].update(processor=[7]), r"got environment\.processor = \[7\]\.$"),
    ],
    ids=["row", "tiny", "stage", "list", "environment"],
)
def test_the_reason_names_the_field(change, message, result, tmp_path):
    change(result)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    with pytest.raises(ValueError, match=message):
        read_result(path)
