"""`slic` against its plain twin, an independent SLIC in floating point, and what it promises on any picture."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import focusvit_hf.superpixels as module
import reference
from focusvit_hf.superpixel_options import default_cell_size, superpixel_layout
from focusvit_hf.superpixels import slic, tile_ids


KINDS = ("noise", "constant", "checkerboard", "stripes", "columns", "dots", "ramp")


def picture(kind, height, width, seed=0):
    """(3, height, width) uint8."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    first, second = random.integers(0, 256, (2, 3, 1, 1))
    if kind == "noise":
        return random.integers(0, 256, (3, height, width), dtype=np.uint8)
    if kind == "ramp":
        return np.stack((y * 255 // height, x * 255 // width, (y + x) % 256)).astype(np.uint8)
    mask = {
        "constant": y < 0,
        "checkerboard": (y + x) % 2 == 0,
        "stripes": y % 2 == 0,
        "columns": x % 2 == 0,
        "dots": random.random((height, width)) < 0.02,
    }[kind]
    return np.where(mask, first, second).astype(np.uint8)


def run(image, *args, **options):
    """`slic` of one picture in numpy."""
    return slic(torch.from_numpy(image)[None], *args, **options)[0].numpy()


def assert_owned(ids, number):
    for one in ids.reshape(-1, *ids.shape[-2:]):
        np.testing.assert_array_equal(np.unique(np.asarray(one)), np.arange(number))


def layable(height, width, lowest=16, highest=196):
    numbers = []
    for number in range(lowest, highest + 1):
        try:
            superpixel_layout(number, height, width)
        except ValueError:
            continue
        numbers.append(number)
    return numbers


COMPACTNESS = st.sampled_from([1e-3, 0.1, 1.0, 10.0, 20.0, 300.0, 1e4])


@settings(max_examples=150)
@given(data=st.data(), kind=st.sampled_from(KINDS), cell=st.integers(1, 4), compactness=COMPACTNESS)
def test_every_superpixel_owns_a_cell_of_any_image(data, kind, cell, compactness):
    height, width = data.draw(st.integers(5, 41)), data.draw(st.integers(5, 41))
    number = data.draw(st.sampled_from(layable(height, width) or [(2, 2)]))
    image = picture(kind, height * cell, width * cell, data.draw(st.integers(0, 99)))
    ids = run(image, number, compactness, data.draw(st.integers(1, 6)), cell)
    assert ids.shape == (height, width)
    assert ids.dtype == np.int64
    assert_owned(ids, number if isinstance(number, int) else 4)


@pytest.mark.parametrize("number", [16, 25, 36, 49, 64, 100, 144, 196])
def test_every_superpixel_owns_a_cell_of_photographs(photographs, number):
    assert_owned(slic(photographs, number), number)


@settings(max_examples=60)
@given(data=st.data(), kind=st.sampled_from(KINDS), cell=st.integers(1, 5), compactness=COMPACTNESS)
def test_slic_equals_the_plain_reference(data, kind, cell, compactness):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    layout = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    image = picture(kind, height * cell, width * cell, data.draw(st.integers(0, 99)))
    options = compactness, data.draw(st.integers(1, 5)), cell
    np.testing.assert_array_equal(run(image, layout, *options), reference.slic(image, layout, *options))


@pytest.mark.parametrize(("index", "number"), [(0, 49), (1, 16), (3, 100)])
def test_slic_equals_the_plain_reference_on_photographs(photographs, index, number):
    image = photographs[index].numpy()
    expected = reference.slic(image, superpixel_layout(number, 56, 56))
    np.testing.assert_array_equal(run(image, number), expected)


def test_slic_agrees_with_slic_in_floating_point(photographs):
    agreement = [
        (run(image, number) == reference.float_slic(image, superpixel_layout(number, 56, 56))).mean()
        for image in photographs.numpy()
        for number in (16, 49, 100, 196)
    ]
    # Where two superpixels have almost the same colour, rounding to a quarter of a unit of Lab moves the border.
    assert np.mean(agreement) > 0.97
    assert min(agreement) > 0.93


@pytest.mark.parametrize("layout", [(2, 2), (1, 1), (1, 16), (16, 1)])
@pytest.mark.parametrize("compactness", [0.01, 10.0, 3000.0])
def test_large_tiles_stay_exact(layout, compactness):
    # Blue and yellow are as far apart as colours get; large tiles make the largest sums and positions.
    image = np.zeros((3, 96, 64), np.uint8)
    image[2] = 255
    image[:, :70, :30] = np.array([255, 255, 0], np.uint8)[:, None, None]
    image[:, 3] = 255
    expected = reference.slic(image, layout, compactness, 2, 1)
    np.testing.assert_array_equal(run(image, layout, compactness, 2, 1), expected)


def test_superpixels_follow_a_strong_border():
    y, x = np.mgrid[:64, :64]
    disc = (y - 30) ** 2 + (x - 33) ** 2 < 20**2
    image = np.where(disc, 230, 40).astype(np.uint8)[None].repeat(3, axis=0)
    ids = run(image, 16, cell_size=1)
    inside = np.bincount(ids[disc], minlength=16)
    outside = np.bincount(ids[~disc], minlength=16)
    # No superpixel lies on both sides, where tiles would.
    assert np.minimum(inside, outside).sum() == 0
    tiles = tile_ids((4, 4), 64, 64).numpy()
    assert np.minimum(np.bincount(tiles[disc], minlength=16), np.bincount(tiles[~disc], minlength=16)).sum() > 300


def test_compactness_draws_superpixels_to_squares(photographs):
    tiles = tile_ids((7, 7), 56, 56)
    agreement = [(slic(photographs, 49, m) == tiles).float().mean().item() for m in (1, 10, 100, 10000)]
    assert agreement == sorted(agreement)
    assert agreement[-1] > 0.99


def test_two_runs_and_any_number_of_threads_give_the_same_map(photographs):
    expected = slic(photographs)
    assert torch.equal(slic(photographs), expected)
    torch.set_num_threads(2)
    try:
        assert torch.equal(slic(photographs), expected)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("number", [16, 49, (5, 9)])
def test_a_batch_equals_its_singles(photographs, number):
    batch = slic(photographs, number)
    for image, ids in zip(photographs, batch, strict=True):
        assert torch.equal(slic(image[None], number)[0], ids)


def test_layout_in_memory_does_not_matter(photographs):
    expected = slic(photographs)
    assert torch.equal(slic(photographs.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(slic(photographs.flip(0)).flip(0), expected)


def test_floats_in_0_to_1_equal_8_bits(photographs):
    expected = slic(photographs)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(slic(photographs.to(dtype) / 255), expected)
    # What lies outside of the range counts as its end.
    levels = photographs.clamp(50, 200)
    stretched = torch.where(levels == 200, 7.0, torch.where(levels == 50, -7.0, levels / 255))
    ends = torch.where(levels == 200, 255, torch.where(levels == 50, 0, levels)).to(torch.uint8)
    assert torch.equal(slic(stretched), slic(ends))


@pytest.mark.parametrize("granted", ["high", "medium"])
def test_precision_granted_to_matrix_products_does_not_reach_the_map(photographs, granted):
    expected = slic(photographs)
    torch.set_float32_matmul_precision(granted)
    try:
        assert torch.equal(slic(photographs), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_autocast_default_dtype_and_gradients_do_not_reach_the_map(photographs):
    expected = slic(photographs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(slic(photographs), expected)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(slic(photographs), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    floats = (photographs.float() / 255).requires_grad_()
    assert torch.equal(slic(floats), expected)


def test_tables_made_in_inference_mode_serve_later_training(photographs):
    module._tiling.cache_clear()
    with torch.inference_mode():
        expected = slic(photographs, (3, 5))
    assert torch.equal(slic((photographs.float() / 255).requires_grad_(), (3, 5)), expected)


def test_slic_compiles_to_one_graph_for_any_size(photographs):
    torch.compiler.reset()
    compiled = torch.compile(slic, fullgraph=True, backend="eager")
    # With the second size, sizes become symbols, and its tiles are unequal.
    for height, width in ((64, 64), (96, 72)):
        images = photographs[:, :, 40 : 40 + height, 40 : 40 + width]
        assert torch.equal(compiled(images, 32), slic(images, 32))


def test_nan_and_an_empty_batch_give_a_map():
    images = torch.rand(2, 3, 32, 32)
    images[0, 1, :9] = math.nan
    assert_owned(slic(images, 16), 16)
    assert torch.equal(slic(images, 16)[1:], slic(images[1:], 16))
    assert slic(torch.zeros(0, 3, 32, 32), 16).shape == (0, 8, 8)


# The rule for superpixels that lost all their cells.


def test_a_superpixel_that_lost_all_its_cells_gets_its_tiles_centre(monkeypatch):
    # Black, then black and white in turn, then white: the grey mean of the middle is nearest to no cell.
    y, x = np.mgrid[:8, :24]
    white = (x >= 16) | ((x >= 8) & ((x + y) % 2 == 0))
    image = np.where(white, 255, 0).astype(np.uint8)[None].repeat(3, axis=0)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_give_each_a_cell", lambda ids, counts, tiling: ids)
        before = run(image, (1, 3), compactness=0.1, cell_size=1)
    np.testing.assert_array_equal(before, np.where(white, 2, 0))
    after = run(image, (1, 3), compactness=0.1, cell_size=1)
    assert after[4, 12] == 1
    assert (before != after).sum() == 1
    np.testing.assert_array_equal(after, reference.slic(image, (1, 3), 0.1, 5, 1))


@settings(max_examples=200)
@given(data=st.data(), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_the_rule_gives_every_superpixel_a_cell_of_any_map(data, rows, columns):
    height, width = data.draw(st.integers(rows, 9)), data.draw(st.integers(columns, 9))
    number = rows * columns
    tiling = module._tiling(rows, columns, height, width, 1.0, torch.device("cpu"))
    # Few ids, so that most superpixels are lost, and centres that are the only cell of another.
    some = data.draw(st.lists(st.integers(0, number - 1), min_size=1, max_size=4))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    ids = torch.from_numpy(random.choice(some, (1, height * width)))
    centre = tiling.tile_centre[data.draw(st.integers(0, number - 1))]
    ids[0, centre] = data.draw(st.integers(0, number - 1))
    counts = torch.bincount(ids[0], minlength=number)[None].float()
    repaired = module._give_each_a_cell(ids, counts, tiling)
    assert_owned(repaired.view(1, height, width), number)
    if (counts > 0).all():
        assert torch.equal(repaired, ids)


def test_a_tile_centre_that_is_anothers_only_cell_leaves_that_one_its_own():
    # Four tiles in a row, of three cells each: 0 holds all but the centre of its tile, which is all that 2 has.
    tiling = module._tiling(1, 4, 1, 12, 1.0, torch.device("cpu"))
    ids = torch.zeros(1, 12, dtype=torch.int64)
    ids[0, 1] = 2
    repaired = module._give_each_a_cell(ids, torch.bincount(ids[0], minlength=4)[None].float(), tiling)
    assert repaired[0].tolist() == [0, 2, 0, 0, 1, 0, 0, 2, 0, 0, 3, 0]


# Layouts.


@pytest.mark.parametrize(
    ("number", "height", "width", "layout"),
    [
        (49, 56, 56, (7, 7)),
        (50, 56, 56, (5, 10)),
        (16, 56, 56, (4, 4)),
        (36, 24, 24, (6, 6)),
        (12, 30, 40, (3, 4)),
        (12, 40, 30, (4, 3)),
        (8, 56, 56, (2, 4)),
        (2, 10, 10, (1, 2)),
        (1, 3, 5, (1, 1)),
        ((2, 9), 56, 56, (2, 9)),
        ([56, 1], 56, 56, (56, 1)),
    ],
)
def test_layouts_are_nearest_to_squares(number, height, width, layout):
    assert superpixel_layout(number, height, width) == layout


@pytest.mark.parametrize(
    ("number", "height", "width", "message"),
    [
        (47, 56, 56, "got 47; the nearest that can is 48"),
        (53, 56, 56, "got 53; the nearest that can is 54"),
        (65, 8, 8, "got 65; the nearest that can is 64"),
        (10**12, 8, 8, "the nearest that can is 64"),
        (3, 2, 40, "got 3; the nearest that can is 10"),
        (1, 1, 3, "got 1; the nearest that can is 2"),
        (0, 8, 8, "at least one superpixel, got num_superpixels=0"),
        (-4, 8, 8, "at least one superpixel"),
        ((9, 2), 8, 8, r"between \(1, 1\) and the image's \(8, 8\) cells, got \(9, 2\)"),
        ((0, 2), 8, 8, r"got \(0, 2\)"),
        ((2, 3, 4), 8, 8, r"as K or \(rows, columns\)"),
    ],
)
def test_numbers_that_cannot_be_laid_out_are_refused(number, height, width, message):
    with pytest.raises(ValueError, match=message):
        superpixel_layout(number, height, width)


@settings(max_examples=100)
@given(number=st.integers(1, 250), height=st.integers(1, 60), width=st.integers(1, 60))
def test_a_layout_has_the_number_asked_for_and_tiles_of_an_aspect_of_at_most_2(number, height, width):
    if number not in layable(height, width, number, number):
        return
    rows, columns = superpixel_layout(number, height, width)
    assert rows * columns == number
    assert 1 / 2 <= (height / rows) / (width / columns) <= 2


@settings(max_examples=50)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), height=st.integers(9, 20), width=st.integers(9, 20))
def test_tiles_equal_the_plain_reference(rows, columns, height, width):
    expected = reference.tile_numbers((rows, columns), height, width)
    np.testing.assert_array_equal(tile_ids((rows, columns), height, width).numpy(), expected)


@settings(max_examples=50)
@given(
    layout=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    size=st.tuples(st.integers(4, 9), st.integers(5, 11)),
    step=st.sampled_from([0.25, 1.0, 5.5]),
)
def test_tables_of_a_tiling_equal_the_plain_reference(layout, size, step):
    (rows, columns), (height, width) = layout, size
    tables = module._tiling(rows, columns, height, width, step, torch.device("cpu"))._asdict()
    expected = reference.tiling((rows, columns), height, width, step)
    assert tables.keys() == expected.keys()
    for name, table in tables.items():
        if expected[name] is None:
            assert table is None
        else:
            np.testing.assert_array_equal(np.asarray(table), expected[name], err_msg=name)


def test_default_cell_sizes():
    assert {patch: default_cell_size(patch) for patch in (32, 16, 14, 12, 8, 7, 4, 2, 1)} == {
        32: 8,
        16: 4,
        14: 2,
        12: 3,
        8: 2,
        7: 1,
        4: 1,
        2: 1,
        1: 1,
    }


# Errors.


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(3, 8, 8), {}, r"shape \(batch, 3, height, width\), got \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), {}, r"got \(1, 1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), {}, r"uint8 or floating point \(0..1\), got torch.int64"),
        (torch.zeros(1, 3, 8, 8), {"cell_size": 3}, r"cell_size=3 divides, got \(8, 8\)"),
        (torch.zeros(1, 3, 8, 8), {"cell_size": 0}, "cell_size=0"),
        (torch.zeros(1, 3, 0, 8), {}, r"got \(0, 8\)"),
        (torch.zeros(1, 3, 8, 8), {"compactness": 0.0}, "compactness > 0, got 0.0"),
        (torch.zeros(1, 3, 8, 8), {"compactness": math.nan}, "compactness > 0, got nan"),
        (torch.zeros(1, 3, 8, 8), {"compactness": math.inf}, "compactness > 0, got inf"),
        (torch.zeros(1, 3, 8, 8), {"num_iterations": 0}, "num_iterations >= 1, got 0"),
        (torch.zeros(1, 3, 8, 8), {"num_superpixels": 5}, "got 5; the nearest that can is"),
    ],
)
def test_bad_input_of_slic_is_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        slic(images, **{"num_superpixels": 4, **options})
