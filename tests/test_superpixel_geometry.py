"""Overlap and geometry against their plain twins and against regions whose moments are known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from focusvit_hf.regions import Regions, _cell_moments
from focusvit_hf.superpixels import geometry, overlap, slic, tile_ids


SIDES = st.integers(1, 6)


def random_ids(*shape, number=5, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, number, shape))


@settings(max_examples=60)
@given(rows=SIDES, columns=SIDES, height=SIDES, width=SIDES, number=st.integers(1, 9), seed=st.integers(0, 99))
def test_overlap_equals_the_plain_reference(rows, columns, height, width, number, seed):
    # Some ids are out of range.
    ids = random_ids(2, rows * height, columns * width, number=number + 2, seed=seed) - 1
    table = overlap(ids, (rows, columns), number)
    assert table.shape == (2, rows * columns, number)
    assert table.dtype == torch.float32
    for one, expected in zip(table, ids.numpy(), strict=True):
        np.testing.assert_allclose(one, reference.overlap(expected, (rows, columns), number), atol=1e-6)


def test_shares_of_a_unit_sum_to_1(photographs):
    table = overlap(slic(photographs), (14, 14), 49)
    torch.testing.assert_close(table.sum(dim=2), torch.ones(4, 196))
    assert table.min() >= 0


def test_overlap_with_cells_is_one_hot():
    ids = random_ids(2, 6, 8)
    assert torch.equal(overlap(ids, (6, 8), 5), torch.nn.functional.one_hot(ids.flatten(1), 5).float())


def test_a_unit_within_one_superpixel_belongs_to_it():
    ids = tile_ids((2, 3), 8, 12)[None]
    assert torch.equal(overlap(ids, (2, 3), 6)[0], torch.eye(6))
    # Units across four tiles.
    assert torch.equal(overlap(tile_ids((2, 2), 4, 4)[None], (1, 1), 4), torch.full((1, 1, 4), 0.25))


@pytest.mark.parametrize("outside", [-1, 5, 255, 2**31, 2**32, -(2**32), 2**63 - 1])
def test_an_id_out_of_range_counts_for_nobody(outside):
    ids = random_ids(1, 4, 4)
    ids[0, 0, 0] = outside
    shares = overlap(ids, (4, 4), 5)[0]
    assert (shares[0] == 0).all()
    assert torch.equal(shares[1:].sum(dim=1), torch.ones(15))
    assert geometry(ids, 5)[0, :, 2].sum() == 15 / 16


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers_of_any_width_are_taken(dtype):
    ids = random_ids(2, 4, 6)
    assert torch.equal(overlap(ids.to(dtype), (2, 3), 5), overlap(ids, (2, 3), 5))
    assert torch.equal(geometry(ids.to(dtype), 5), geometry(ids, 5))


@pytest.mark.parametrize(("height", "width"), [(56, 56), (88, 120), (224, 224)])
def test_moments_are_exact_in_any_order_so_that_every_runtime_has_the_same_shapes(height, width):
    """Summed up in units of the image, the variance of a region of a few cells differed by up to a thousandth."""
    ids = tile_ids((height // 4, width // 4), height, width)[None]
    number = (height // 4) * (width // 4)
    regions = Regions(ids, number)
    found = regions.geometry()
    order = torch.randperm(height * width, generator=torch.Generator().manual_seed(0))
    shuffled = Regions(ids, number)
    shuffled._moments = torch.matmul(
        shuffled.membership[:, :, order], _cell_moments(height, width, ids.device)[:, order]
    )
    assert torch.equal(shuffled.geometry(), found)
    # Every tile is as large as the others, and 4 x 4 cells have a variance that is known.
    known = torch.tensor([16 / (height * width), 16 / (12 * height**2), 16 / (12 * width**2)])
    torch.testing.assert_close(found[0, :, 2:], known.expand(number, 3), rtol=2e-4, atol=0)


def test_membership_is_one_hot():
    ids = random_ids(2, 3, 4)
    expected = torch.nn.functional.one_hot(ids.flatten(1), 5).transpose(1, 2).float()
    assert torch.equal(Regions(ids, 5).membership, expected)


@settings(max_examples=60)
@given(height=st.integers(1, 12), width=st.integers(1, 12), number=st.integers(1, 9), seed=st.integers(0, 99))
def test_geometry_equals_the_plain_reference(height, width, number, seed):
    ids = random_ids(2, height, width, number=number, seed=seed)
    shapes = geometry(ids, number)
    assert shapes.shape == (2, number, 5)
    assert shapes.dtype == torch.float32
    for one, expected in zip(shapes, ids.numpy(), strict=True):
        np.testing.assert_allclose(one, reference.geometry(expected, number), atol=1e-6)


def test_geometry_of_photographs_equals_the_plain_reference(photographs):
    ids = slic(photographs[:1])
    np.testing.assert_allclose(geometry(ids, 49)[0], reference.geometry(ids[0].numpy(), 49), atol=2e-6)


def test_geometry_of_the_whole_image_and_of_its_quarters():
    whole = geometry(torch.zeros(1, 6, 10, dtype=torch.int64), 1)
    torch.testing.assert_close(whole[0, 0], torch.tensor([0.5, 0.5, 1.0, 1 / 12, 1 / 12]))
    quarters = geometry(tile_ids((2, 2), 6, 10)[None], 4)[0]
    for number, (y, x) in enumerate([(0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)]):
        torch.testing.assert_close(quarters[number], torch.tensor([y, x, 0.25, 1 / 48, 1 / 48]))


def test_geometry_of_a_single_cell_and_of_a_line():
    ids = torch.zeros(1, 4, 8, dtype=torch.int64)
    ids[0, 1, 6] = 1
    ids[0, 3] = 2
    shapes = geometry(ids, 3)[0]
    torch.testing.assert_close(shapes[1], torch.tensor([1.5 / 4, 6.5 / 8, 1 / 32, 1 / 192, 1 / 768]))
    torch.testing.assert_close(shapes[2], torch.tensor([3.5 / 4, 0.5, 8 / 32, 1 / 192, 1 / 12]))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_geometry_does_not_depend_on_the_size_of_the_cells(factor):
    ids = random_ids(1, 7, 5)
    finer = ids.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    torch.testing.assert_close(geometry(finer, 5), geometry(ids, 5), rtol=0, atol=1e-6)


def test_an_absent_id_has_a_finite_geometry():
    shapes = geometry(torch.zeros(1, 4, 4, dtype=torch.int64), 3)
    assert shapes[0, 1:].tolist() == [[0.5, 0.5, 0.0, 0.0, 0.0]] * 2


def test_an_empty_batch_has_an_empty_geometry():
    ids = torch.zeros(0, 4, 6, dtype=torch.int64)
    assert geometry(ids, 3).shape == (0, 3, 5)
    assert Regions(ids, 3).sums(torch.zeros(1, 24, 2)).shape == (0, 3, 2)


def test_there_is_a_geometry_without_data():
    ids = torch.zeros(2, 4, 6, dtype=torch.int64, device="meta")
    assert geometry(ids, 3).shape == (2, 3, 5)


def test_renumbering_permutes_overlap_and_geometry_bit_for_bit(photographs):
    ids = slic(photographs)
    order = torch.randperm(49)
    # Superpixel i becomes order[i].
    assert torch.equal(overlap(order[ids], (14, 14), 49)[..., order], overlap(ids, (14, 14), 49))
    assert torch.equal(geometry(order[ids], 49)[:, order], geometry(ids, 49))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(4, 4, dtype=torch.int64), r"\(batch, rows, columns\), got torch.int64 \(4, 4\)"),
        (torch.zeros(1, 4, 4), r"got torch.float32 \(1, 4, 4\)"),
        (torch.zeros(1, 4, 4, dtype=torch.bool), "got torch.bool"),
        (torch.zeros(1, 4, 4, dtype=torch.complex64), "got torch.complex64"),
    ],
)
def test_what_is_no_map_is_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        overlap(ids, (2, 2), 4)
    with pytest.raises(ValueError, match=message):
        geometry(ids, 4)


@pytest.mark.parametrize("grid", [(3, 2), (2, 3), (8, 4), (0, 2), (-2, 2)])
def test_units_that_do_not_divide_the_map_are_refused(grid):
    with pytest.raises(ValueError, match=r"divides the map's 4 x 4 cells, got \("):
        overlap(torch.zeros(1, 4, 4, dtype=torch.int64), grid, 4)


@settings(max_examples=60)
@given(height=SIDES, width=SIDES, number=st.integers(1, 9), channels=st.integers(1, 5), seed=st.integers(0, 99))
def test_sums_in_order_equal_the_product_with_the_membership(height, width, number, channels, seed):
    ids = random_ids(2, height, width, number=number + 2, seed=seed) - 1
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, height * width, channels))).float()
    for one_map, some in ((ids, values), (ids[:1], values), (ids, values[:1])):
        regions = Regions(one_map, number)
        expected = torch.matmul(regions.membership, some)
        torch.testing.assert_close(regions.sums(some), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_far_out_of_range_never_index_memory(dtype):
    ids = torch.tensor([[[0, 1, -1, 2, torch.iinfo(dtype).max, torch.iinfo(dtype).min]]], dtype=dtype)
    sums = Regions(ids, 2).sums(torch.ones(1, 6, 1))
    assert torch.equal(sums, torch.ones(1, 2, 1))


def test_sums_have_the_gradients_of_the_product(photographs):
    regions = Regions(slic(photographs, 16), 16)
    values = torch.randn(4, 56 * 56, 3, requires_grad=True)
    weight = torch.randn(4, 16, 3)
    gradients = [
        torch.autograd.grad((sums * weight).sum(), values)[0]
        for sums in (regions.sums(values), torch.matmul(regions.membership, values))
    ]
    torch.testing.assert_close(*gradients)


def test_sums_do_not_depend_on_the_number_of_threads(photographs):
    ids, values = slic(photographs), torch.randn(4, 56 * 56, 32)
    expected, threads = Regions(ids, 49).sums(values), torch.get_num_threads()
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            assert torch.equal(Regions(ids, 49).sums(values), expected)
    finally:
        torch.set_num_threads(threads)
