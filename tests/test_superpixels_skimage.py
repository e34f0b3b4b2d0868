import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focusvit_hf.superpixels_skimage import majority, repair, skimage_slic_ids


def naive_majority(labels, cell):
    rows, columns = labels.shape[0] // cell, labels.shape[1] // cell
    result = np.zeros((rows, columns), np.int64)
    for row in range(rows):
        for column in range(columns):
            block = labels[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell].ravel().tolist()
            result[row, column] = max(sorted(set(block)), key=block.count)
    return result


@pytest.mark.parametrize("cell", [1, 2, 3])
def test_majority_equals_counting(cell):
    labels = np.random.default_rng(0).integers(0, 5, (12, 18))
    np.testing.assert_array_equal(majority(labels, cell), naive_majority(labels, cell))


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    labels=st.integers(1, 20),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_repair_gives_exactly_k_owned_ids(rows, columns, labels, share, seed):
    number = 1 + int(share * (rows * columns - 1))
    # Labels with gaps, as a majority over cells leaves them.
    map_ = np.random.default_rng(seed).integers(0, labels, (rows, columns)) * 3
    repaired = repair(map_, number)
    assert repaired.dtype == np.int64
    np.testing.assert_array_equal(np.unique(repaired), np.arange(number))


def test_repair_halves_the_largest_across_its_longer_axis():
    map_ = np.array([[0, 0, 0, 0, 1], [0, 0, 0, 0, 1]])
    np.testing.assert_array_equal(repair(map_, 3), [[0, 0, 2, 2, 1], [0, 0, 2, 2, 1]])
    np.testing.assert_array_equal(repair(map_.T, 3), np.array([[0, 0, 2, 2, 1], [0, 0, 2, 2, 1]]).T)


def test_repair_merges_the_smallest_over_its_longest_border():
    map_ = np.array([[5, 5, 7, 7], [5, 5, 9, 7], [5, 5, 7, 7]])
    np.testing.assert_array_equal(repair(map_, 2), [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]])


def test_repair_keeps_a_map_that_is_right():
    map_ = np.array([[0, 1], [2, 1]])
    np.testing.assert_array_equal(repair(map_, 3), map_)
    np.testing.assert_array_equal(map_, [[0, 1], [2, 1]])


@pytest.mark.parametrize("number", [1, 7, 16, 64])
def test_skimage_slic_ids_owns_every_id(number):
    image = np.random.default_rng(0).integers(0, 256, (3, 16, 32), dtype=np.uint8)
    ids = skimage_slic_ids(image, number, 10.0, 5, cell_size=2)
    assert ids.shape == (8, 16)
    np.testing.assert_array_equal(np.unique(ids), np.arange(number))


def test_skimage_slic_ids_finds_a_plain_border():
    image = np.zeros((3, 16, 16), np.uint8)
    image[:, :, 6:] = 255
    ids = skimage_slic_ids(image, 4, 1.0, 5, cell_size=2)
    assert not set(np.unique(ids[:, :3])) & set(np.unique(ids[:, 3:]))


def test_a_missing_scikit_image_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match="needs scikit-image"):
        skimage_slic_ids(np.zeros((3, 8, 8), np.uint8), 4, 10.0, 5, cell_size=2)


@pytest.mark.parametrize("compactness", [1e-6, 1e6])
def test_the_ends_of_the_range_of_compactness_are_safe(compactness):
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    ids = skimage_slic_ids(image, 16, compactness, 5, 4)
    assert np.unique(ids).tolist() == list(range(16))
