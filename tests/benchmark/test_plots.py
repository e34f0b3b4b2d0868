import builtins
from itertools import pairwise

import pytest
from PIL import Image

from benchmark_results import benchmark_result
from focusvit_hf.benchmark.plots import _colours, _split, _spread, draw_plots
from focusvit_hf.benchmark.report import times_of


NAMES = ["throughput.png", "time_split.png", "memory.png"]


@pytest.fixture
def result():
    return benchmark_result(focusvit_tiny_full=2.0, focusvit_tiny_latent=3.0)


@pytest.mark.parametrize("settings", [{"224", "448", "896"}, {"224"}], ids=["lines", "bars"])
def test_three_readable_images(settings, result, tmp_path):
    result["rows"] = [row for row in result["rows"] if str(row["resolution"]) in settings]
    assert draw_plots(result, tmp_path / "plots") == [tmp_path / "plots" / name for name in NAMES]
    for name in NAMES:
        with Image.open(tmp_path / "plots" / name) as image:
            assert image.format == "PNG" and image.width > 900 and image.height > 200
            # Something is drawn on the white.
            assert len(image.convert("RGB").getcolors(maxcolors=2**20)) > 10


def test_what_was_not_measured_is_not_drawn(result, tmp_path):
    result["rows"] = [row for row in result["rows"] if row["mode"] == "training"]
    assert draw_plots(result, tmp_path) == [tmp_path / "memory.png"]
    result["memory"] = []
    assert draw_plots(result, tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["memory.png"]


def test_memory_that_nobody_could_tell_is_left_out(result, tmp_path):
    for row in result["memory"]:
        row.update(peak_memory_mib=None, share=None)
    assert [path.name for path in draw_plots(result, tmp_path)] == NAMES[:2]


def test_the_split_of_a_model_without_superpixels_is_all_model(result):
    split = _split(times_of(result, ("inference", 224, 32)))
    assert split["ViT-Ti/16"] == {"decode": 1.0, "processor": 2.0, "model": 4.5, "whole_path": 8.0}
    assert split["focusvit-tiny-full"] == {
        "decode": 0.5,
        "processor": 1.0,
        "superpixels": 0.25,
        "model": 2.0,
        "whole_path": 4.0,
    }


def test_labels_do_not_stand_in_each_others_way():
    places = _spread({"c": 0.5, "a": 0.5, "b": 0.51, "d": 0.9})
    ordered = sorted(places.values())
    assert all(high - low >= 0.0549 for low, high in pairwise(ordered))
    assert places["d"] == 0.9 and min(places.values()) == 0.5


def test_each_of_a_kind_has_a_colour_of_its_own():
    names = ["ViT-Ti/16", "focusvit-a", "LeViT-128S", "focusvit-b"]
    assert len(set(_colours(names).values())) == len(names)


def test_without_matplotlib_the_error_names_the_extra(result, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"focusvit-hf\[plots\]"):
        draw_plots(result, tmp_path)
