"""What `benchmarks/superpixels.py` measures against scikit-image."""

import numpy as np
import pytest

from focusvit_hf.benchmark.timing import interleaved
from focusvit_hf.superpixels import slic


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("superpixels")


def test_both_take_as_many_rounds_for_their_speed(script, monkeypatch):
    rounds = {"torch": set(), "skimage": set()}

    def ours(images, num_superpixels, compactness, num_iterations):
        rounds["torch"].add(num_iterations)
        return slic(images[:1], num_superpixels, compactness, num_iterations)

    def theirs(image, max_num_iter=10, **options):
        rounds["skimage"].add(max_num_iter)
        return np.zeros(image.shape[:2], dtype=np.int64)

    monkeypatch.setattr(script, "slic", ours)
    monkeypatch.setattr(script.skimage.segmentation, "slic", theirs)
    monkeypatch.setattr(script, "interleaved", lambda subjects, repeats: interleaved(subjects, repeats, warmup=0))
    result = script.speed(1)
    assert rounds == {"torch": {5}, "skimage": {5}} and result["iterations"] == 5
    assert {"skimage, K=49", "torch, K=49"} <= result["milliseconds_per_image"].keys()
    assert result["ratios"]["torch, K=49 / torch, K=49"] == 1
