"""`benchmarks/cutout.py`: every part of a cut-out counts, and the file is what the command writes."""

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("cutout")


def test_parts_add_up_and_a_row_holds_time_and_memory(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "peak_mebibytes", lambda source, folder, upsampling: 1.0)
    rows = script.measured(tmp_path, 1, (120, 80))
    assert set(rows) == set(script.UPSAMPLINGS)
    for row in rows.values():
        medians = {name: one["median_ms"] for name, one in row["parts"].items()}
        assert medians.pop("all") == pytest.approx(sum(medians.values()), rel=1e-6) and set(medians) == set(
            script.PARTS
        )
        assert row["jpeg_bytes"] == (tmp_path / "photograph.jpg").stat().st_size
    with Image.open(tmp_path / "cutout.png") as cut:
        assert (cut.mode, cut.size) == ("RGBA", (120, 80))


def test_a_command_that_fails_has_no_memory(script, tmp_path):
    with pytest.raises(RuntimeError, match="to end well, got status"):
        script.peak_mebibytes(tmp_path / "none.jpg", tmp_path, "cubic")
