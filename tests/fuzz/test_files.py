"""A sample of what `python -m tests.fuzz.files` does in minutes, and whether it would see a fault."""

import random
import time

import pytest

from tests.fuzz import files


@pytest.mark.parametrize(("kind", "tries"), [("image", 150), ("result", 30)])
def test_spoilt_files_are_refused_in_one_line_or_taken(kind, tries, tmp_path):
    counts = files.fuzz((kind,), tries, 1, tmp_path)[kind]
    assert counts["failures"] == []
    assert counts["refused"] > tries / 2 and counts["taken"] > 0 and counts["refused"] + counts["taken"] == tries


def test_the_same_seed_spoils_in_the_same_way():
    content = bytes(range(256)) * 4
    values = {"a": [1, {"b": 2}], "c": "d"}
    first, second = ([files.spoilt_bytes(content, random.Random(n)) for n in range(20)] for _ in range(2))
    assert first == second and len(set(first)) == 20 and content not in first
    assert files.spoilt_json(values, random.Random(3)) == files.spoilt_json(values, random.Random(3)) != values
    assert values == {"a": [1, {"b": 2}], "c": "d"}


def raises():
    raise TypeError("unsupported operand")


def says(*lines, status=2, out=""):
    def work():
        print(out)
        for line in lines:
            print(line, file=files.sys.stderr)
        return status

    return work


@pytest.mark.parametrize(
    ("work", "verdict"),
    [
        (raises, "traceback"),
        (says(), "no clear line"),
        (says("focusvit: error: one two three", "focusvit: error: one two three"), "no clear line"),
        (says("focusvit: error: key"), "no clear line"),
        (says(status=0, out="cat  nan%"), "not finite"),
        (says("focusvit: error: expected an image, got none"), "refused"),
        (says(status=0, out="cat  99%"), "taken"),
    ],
    ids=["traceback", "silent", "twice", "wordless", "nan", "refused", "taken"],
)
def test_faults_are_seen(work, verdict, monkeypatch):
    assert files.outcome(work).verdict == verdict
    monkeypatch.setattr(files, "LONGEST", 0.01)
    assert files.outcome(lambda: time.sleep(0.02) or 0).verdict == "too long"
