"""Values of regions on pixels against loops and the library's interpolation."""

import numpy as np
import pytest
import torch

from focusvit_hf.lay_back import Box, CellsAround, cells_to_pixels, combined, lay_back
from focusvit_hf.superpixels import tile_ids


def naive_lay_back(values, ids, size, box):
    result = torch.zeros(values.shape[0], values.shape[2], *size)
    for b in range(values.shape[0]):
        for y in range(size[0]):
            for x in range(size[1]):
                row = int(np.floor((y + 0.5 - box.top) / (box.bottom - box.top) * ids.shape[1]))
                column = int(np.floor((x + 0.5 - box.left) / (box.right - box.left) * ids.shape[2]))
                if (
                    0 <= row < ids.shape[1]
                    and 0 <= column < ids.shape[2]
                    and 0 <= ids[b, row, column] < len(values[b])
                ):
                    result[b, :, y, x] = values[b, ids[b, row, column]]
    return result


@pytest.mark.parametrize("size", [(8, 10), (13, 9), (4, 3), (40, 40)], ids=str)
@pytest.mark.parametrize("box", [None, Box(1.5, -2, 7, 8.25)], ids=["whole", "part"])
def test_lay_back_equals_loops(size, box):
    values = torch.randn(2, 6, 3)
    # 6 and -1 belong to nobody.
    ids = torch.randint(-1, 7, (2, 4, 5))
    expected = naive_lay_back(values, ids, size, box or Box(0, 0, *size))
    torch.testing.assert_close(lay_back(values, ids, size, box), expected, rtol=0, atol=0)
    torch.testing.assert_close(lay_back(values[..., 0], ids, size, box), expected[:, 0], rtol=0, atol=0)


def test_lay_back_takes_one_map_for_all():
    values, ids = torch.randn(3, 4), tile_ids((2, 2), 4, 4)[None]
    assert torch.equal(lay_back(values, ids, (8, 8)), lay_back(values, ids.expand(3, -1, -1), (8, 8)))


def test_lay_back_keeps_integers_and_passes_gradients():
    ids = tile_ids((2, 2), 4, 4)[None]
    assert lay_back(torch.arange(4)[None], ids, (4, 4)).dtype == torch.int64
    values = torch.randn(1, 4, requires_grad=True)
    lay_back(values, ids, (6, 6)).sum().backward()
    assert values.grad.tolist() == [[9, 9, 9, 9]]


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_head_trains_through_lay_back(mode):
    # 4 and -1 belong to nobody; part of the map lies outside the result.
    ids = torch.randint(-1, 5, (2, 3, 4))
    values = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: lay_back(v, ids, (7, 6), Box(-1, 1, 6.5, 5), mode), values)


def test_gradients_of_lay_back_are_sums_over_a_regions_pixels(ids):
    values = torch.randn(4, 16, requires_grad=True)
    upstream = torch.randn(4, 32, 32)
    lay_back(values, ids, (32, 32)).backward(upstream)
    pixel_ids = ids.repeat_interleave(2, 1).repeat_interleave(2, 2)
    owned = pixel_ids[:, None] == torch.arange(16)[:, None, None]
    torch.testing.assert_close(values.grad, (owned * upstream[:, None]).sum(dim=(2, 3)))


@pytest.mark.parametrize("size", [(8, 10), (13, 9), (3, 2), (4, 5)], ids=str)
def test_bilinear_equals_interpolation_by_the_library(size):
    cells = torch.randn(2, 3, 4, 5)
    expected = torch.nn.functional.interpolate(cells, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(cells_to_pixels(cells, size, mode="bilinear"), expected)
    values, ids = torch.randn(2, 6, 3), torch.randint(0, 6, (2, 4, 5))
    laid = lay_back(values, ids, (4, 5))
    expected = torch.nn.functional.interpolate(laid, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(lay_back(values, ids, size, mode="bilinear"), expected)
    torch.testing.assert_close(lay_back(values[..., 0], ids, size, mode="bilinear"), expected[:, 0])


def test_bilinear_in_a_box_is_the_whole_cut_out():
    cells = torch.rand(4, 4)
    whole = cells_to_pixels(cells, (16, 16), mode="bilinear")
    part = cells_to_pixels(cells, (8, 10), Box(-4, -2, 12, 14), mode="bilinear")
    torch.testing.assert_close(part, whole[4:12, 2:12])
    padded = cells_to_pixels(cells, (20, 20), Box(2, 3, 18, 19), fill=-1, mode="bilinear")
    torch.testing.assert_close(padded[2:18, 3:19], whole)
    assert (padded == -1).sum() == 400 - 256


def test_modes_of_lay_back_are_checked():
    ids = tile_ids((2, 2), 4, 4)[None]
    with pytest.raises(ValueError, match=r"Expected mode to be one of \('nearest', 'bilinear'\), got 'cubic'"):
        lay_back(torch.zeros(1, 4), ids, (4, 4), mode="cubic")
    with pytest.raises(ValueError, match=r"Expected floating-point cells .* got torch\.int64"):
        lay_back(torch.arange(4)[None], ids, (4, 4), mode="bilinear")


@pytest.mark.parametrize(
    ("values", "ids"), [((2, 4), (3, 4, 4)), ((4,), (1, 4, 4)), ((2, 4), (4, 4))], ids=["batch", "values", "map"]
)
def test_lay_back_refuses_shapes_that_do_not_fit(values, ids):
    with pytest.raises(ValueError, match=r"Expected values of shape .* got"):
        lay_back(torch.zeros(values), torch.zeros(ids, dtype=torch.int64), (8, 8))


def test_cells_to_pixels_fills_outside_the_box():
    cells = torch.ones(2, 2, dtype=torch.bool)
    assert cells_to_pixels(cells, (4, 4), Box(0, 0, 2, 4)).tolist() == [[True] * 4] * 2 + [[False] * 4] * 2
    assert cells_to_pixels(torch.zeros(2, 2), (2, 2), Box(0, 0, 1, 2), fill=-1).tolist() == [[0, 0], [-1, -1]]


@pytest.mark.parametrize("size", [(6, 7), (61, 90), (3, 2), (13, 50)])
def test_corners_interpolate_single_pixels_and_know_where_the_cells_around_them_agree(size):
    values = torch.randn(3, 6, 7)
    states = (values[0] > 0.5).long()
    corners = CellsAround((6, 7), size, values.device)
    rows, columns = torch.ones(size).nonzero(as_tuple=True)
    found = corners.interpolate(values.flatten(1).T, rows, columns).T.reshape(3, *size)
    assert torch.allclose(found, cells_to_pixels(values, size, mode="bilinear"), atol=1e-5)
    # Where all four have the same state, so has every mean of them; where they differ, some may.
    share = cells_to_pixels(states.double(), size, mode="bilinear")
    agreed = torch.cat((corners.agree(states, 0, 2), corners.agree(states, 2, size[0])))
    assert torch.equal(agreed & (share < 0.5), agreed & (share == 0))
    assert torch.equal(agreed & (share > 0.5), agreed & (share == 1))
    inside = (share > 1e-9) & (share < 1 - 1e-9)
    assert not (agreed & inside).any()


@pytest.mark.parametrize("reach", [1, 2, 3])
@pytest.mark.parametrize("size", [(6, 7), (31, 45), (3, 2)])
def test_the_cells_around_pixels_are_those_of_a_plain_loop(size, reach):
    states = torch.randint(2, (6, 7))
    around = CellsAround((6, 7), size, states.device, reach)
    rows, columns = torch.ones(size).nonzero(as_tuple=True)
    cells = combined(around.cells, rows, columns, torch.add).T
    nearness = combined(around.nearness, rows, columns, torch.mul).T
    agreed = around.agree(states, 0, size[0])
    for index, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        y, x = (row + 0.5) * 6 / size[0] - 0.5, (column + 0.5) * 7 / size[1] - 0.5
        window = [
            (i, j)
            for i in range(int(np.floor(y)) - reach + 1, int(np.floor(y)) + reach + 1)
            for j in range(int(np.floor(x)) - reach + 1, int(np.floor(x)) + reach + 1)
        ]
        inside = [(min(max(i, 0), 5), min(max(j, 0), 6)) for i, j in window]
        assert cells[index].tolist() == [i * 7 + j for i, j in inside]
        near = [(1 - abs(y - i) / reach) * (1 - abs(x - j) / reach) for i, j in window]
        assert nearness[index].tolist() == pytest.approx(near, abs=1e-5)
        assert agreed[row, column] == (len({int(states[place]) for place in inside}) == 1)
    disagreeing = torch.zeros(size, dtype=torch.bool)
    for strip_rows, strip_columns in around.disagreeing(states, 2 * size[1]):
        disagreeing[strip_rows, strip_columns] = True
    assert torch.equal(disagreeing, ~agreed)
