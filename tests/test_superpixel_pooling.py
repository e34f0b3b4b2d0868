"""Pooling, hard assignment, positions and tokens against their plain twins."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from focusvit_hf import embeddings as embeddings_module
from focusvit_hf.embeddings import FocusViTEmbeddings, FocusViTPatchEmbedding
from focusvit_hf.positions import FocusViTDynamicPosition, FocusViTLearnedPosition, fourier_features
from focusvit_hf.superpixel_pooling import harden, pool_units
from focusvit_hf.superpixels import geometry, overlap, slic, tile_ids


def weights_of(ids, grid, number):
    return overlap(ids, grid, number).transpose(1, 2)


def random_ids(*shape, number=5, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, number, shape))


# Pooling.


@settings(max_examples=40)
@given(
    units=st.integers(1, 9),
    channels=st.integers(1, 5),
    regions=st.integers(1, 6),
    scale=st.sampled_from([0.01, 1.0, 10.0]),
    seed=st.integers(0, 99),
    with_maximum=st.booleans(),
)
def test_pooling_equals_the_plain_reference(units, channels, regions, scale, seed, with_maximum):
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(2, units, channels, generator=random) * scale
    weights = torch.rand(2, regions, units, generator=random)
    # Many weights are 0, sometimes all of a region.
    weights = torch.where(torch.rand(weights.shape, generator=random) < 0.5, weights, 0.0)
    pooled = pool_units(values, weights, with_maximum)
    assert pooled.shape == (2, regions, channels * (2 if with_maximum else 1))
    for one, value, weight in zip(pooled, values.double().numpy(), weights.double().numpy(), strict=True):
        np.testing.assert_allclose(one, reference.pool(value, weight, with_maximum), atol=2e-5)


def test_pooling_over_single_units_gives_them_back():
    values = torch.randn(2, 5, 3)
    pooled = pool_units(values, torch.eye(5)[None], with_maximum=True)
    torch.testing.assert_close(pooled, torch.cat((values, values), dim=-1))


def test_the_smooth_maximum_lies_between_mean_and_maximum():
    values = torch.randn(2, 30, 4)
    weights = torch.ones(2, 1, 30)
    mean, maximum = pool_units(values, weights, with_maximum=True)[:, 0].chunk(2, dim=-1)
    largest = values.amax(dim=1)
    assert (mean < maximum).all()
    assert (maximum <= largest + 1e-6).all()
    assert (maximum >= largest - math.log(30) / 8 - 1e-6).all()


def test_a_region_without_units_gives_zeros_and_no_gradient():
    values = torch.randn(1, 4, 3, requires_grad=True)
    weights = torch.tensor([[[1.0, 1, 0, 0], [0, 0, 0, 0]]])
    pooled = pool_units(values, weights, with_maximum=True)
    assert (pooled[0, 1] == 0).all()
    pooled.sum().backward()
    assert values.grad.isfinite().all()
    assert (values.grad[0, :2] != 0).all()
    # The others are in no region.
    torch.testing.assert_close(values.grad[0, 2:], torch.zeros(2, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("with_maximum", [False, True])
def test_gradients_of_pooling_are_those_of_its_formula(with_maximum):
    values = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 4, 6, dtype=torch.float64)
    if not with_maximum:
        assert torch.autograd.gradcheck(lambda units: pool_units(units, weights), values)
        return
    # The maximum passes through float32 on its way, which is too coarse for finite differences.
    (got,) = torch.autograd.grad(pool_units(values, weights, with_maximum).square().sum(), values)
    mean = weights @ values / weights.sum(dim=2, keepdim=True)
    rates = weights @ (8 * values).exp() / weights.sum(dim=2, keepdim=True)
    (expected,) = torch.autograd.grad(torch.cat((mean, rates.log() / 8), dim=-1).square().sum(), values)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pooling_in_half_precision_is_near_float32(dtype):
    values = torch.randn(2, 50, 4) * 2
    weights = weights_of(random_ids(2, 10, 10), (5, 10), 5)
    pooled = pool_units(values.to(dtype), weights, with_maximum=True)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.float(), pool_units(values, weights, with_maximum=True), rtol=0.02, atol=0.03)


def test_a_mean_commutes_with_the_linear_map_of_patches(tiny_config):
    config = tiny_config()
    embedding = FocusViTPatchEmbedding(config)
    pixels = torch.randn(1, 3, 32, 32)
    weights = torch.rand(1, 3, 16)
    patches = torch.nn.functional.unfold(pixels, 8, stride=8).transpose(1, 2)
    mean_patch = pool_units(patches, weights).reshape(3, 3, 8, 8)
    expected = embedding(mean_patch)[:, 0]
    torch.testing.assert_close(pool_units(embedding(pixels), weights)[0], expected, rtol=1e-5, atol=1e-5)


# Hard assignment.


@settings(max_examples=60)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    part=st.integers(1, 3),
    number=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_hard_assignment_equals_the_plain_reference(rows, columns, part, number, seed):
    ids = random_ids(2, rows * part, columns * part, number=number, seed=seed)
    weights, shapes = weights_of(ids, (rows, columns), number), geometry(ids, number)
    hard = harden(weights, shapes, (rows, columns))
    for one, weight, shape in zip(hard, weights.numpy(), shapes.numpy(), strict=True):
        # In the precision of the code, so that both see the same ties.
        np.testing.assert_allclose(one, reference.harden(weight, shape, (rows, columns)), atol=1e-6)


def test_every_unit_of_a_photograph_counts_once(photographs):
    ids = slic(photographs)
    weights = weights_of(ids, (14, 14), 49)
    hard = harden(weights, geometry(ids, 49), (14, 14))
    won = (hard == 1) & (weights == weights.amax(dim=1, keepdim=True))
    winners = won.any(dim=2)
    assert torch.equal(hard[~winners], weights[~winners])
    assert (hard[winners].sum() > 0) and ((hard * winners[..., None]).sum(dim=1) <= 1).all()


def test_ties_go_to_the_larger_region_then_to_the_nearer_centroid():
    # The middle unit is shared by 0 and 1 in equal parts. 1 is larger.
    ids = torch.tensor([[[0, 0, 0, 1, 1, 1], [0, 2, 0, 1, 1, 1]]])
    hard = harden(weights_of(ids, (1, 3), 3), geometry(ids, 3), (1, 3))[0]
    assert hard[:, 1].tolist() == [0, 1, 0]
    # Both are as large; the centroid of 0 is nearer to the middle unit.
    ids = torch.tensor([[[2, 0, 0, 1, 2, 1], [2, 0, 0, 1, 2, 1]]])
    shapes = geometry(ids, 3)
    assert shapes[0, 0, 2] == shapes[0, 1, 2]
    assert harden(weights_of(ids, (1, 3), 3), shapes, (1, 3))[0, :, 1].tolist() == [1, 0, 0]


def test_a_tie_in_everything_is_shared():
    ids = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    hard = harden(weights_of(ids, (1, 3), 2), geometry(ids, 2), (1, 3))
    assert hard[0].tolist() == [[1, 0.5, 0], [0, 0.5, 1]]


def test_a_region_that_wins_nothing_keeps_its_soft_weights():
    ids = torch.tensor([[[0, 0, 0, 1], [0, 0, 0, 0]]])
    hard = harden(weights_of(ids, (1, 2), 2), geometry(ids, 2), (1, 2))
    assert hard[0].tolist() == [[1, 1], [0, 0.25]]


@settings(max_examples=60)
@given(seed=st.integers(0, 999), kind=st.sampled_from(["tiles", "random", "stripes"]))
def test_renumbering_permutes_the_hard_assignment(seed, kind):
    # Sizes that are no powers of two, and tiles that lie across the patches: ties everywhere.
    ids = {
        "tiles": tile_ids((4, 4), 14, 14)[None],
        "stripes": tile_ids((1, 7), 14, 14)[None],
        "random": random_ids(1, 14, 14, number=16, seed=seed),
    }[kind]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    hard = harden(weights_of(ids, (7, 7), 16), geometry(ids, 16), (7, 7))
    renumbered = harden(weights_of(order[ids], (7, 7), 16), geometry(order[ids], 16), (7, 7))
    assert torch.equal(renumbered[:, order], hard)


# Positions.


def test_fourier_features_are_sines_then_cosines():
    features = fourier_features(torch.tensor([[0.5, 0.0]]), num_bands=2)
    expected = [math.sin(math.pi / 2), math.sin(math.pi), 0, 0, math.cos(math.pi / 2), math.cos(math.pi), 1, 1]
    torch.testing.assert_close(features[0], torch.tensor(expected), rtol=0, atol=1e-6)


def test_dynamic_position_tells_places_areas_and_extents_apart(tiny_config):
    torch.manual_seed(0)
    position = FocusViTDynamicPosition(tiny_config())
    base = torch.tensor([0.5, 0.5, 0.1, 0.01, 0.01])
    others = base.repeat(5, 1)
    for column, change in enumerate((0.05, 0.05, 0.1, 0.02, 0.02)):
        others[column, column] += change
    outputs = position(torch.cat((base[None], others))[None], torch.float32)[0]
    assert ((outputs[1:] - outputs[0]).norm(dim=1) > 1e-2).all()
    # An absent superpixel.
    assert position(torch.tensor([[[0.5, 0.5, 0.0, 0.0, 0.0]]]), torch.float32).isfinite().all()


def test_learned_position_is_the_table_at_the_trained_size_and_smooth_at_others(tiny_config):
    position = FocusViTLearnedPosition(tiny_config(image_size=(16, 32)))
    assert position.table.shape == (1, 1 + 2 * 4, 32)
    torch.nn.init.normal_(position.table)
    assert torch.equal(position.patch_positions((2, 4)), position.table[:, 1:])
    assert position.patch_positions((5, 3)).shape == (1, 15, 32)
    # A constant stays what it is, and rows stay rows.
    with torch.no_grad():
        position.table.fill_(3.0)
        torch.testing.assert_close(position.patch_positions((3, 8)), torch.full((1, 24, 32), 3.0))
        position.table[0, 1:] = torch.arange(2.0).repeat_interleave(4)[:, None]
        grid = position.patch_positions((4, 4)).view(4, 4, 32)
    torch.testing.assert_close(grid, grid[:, :1].expand_as(grid))
    assert (grid[1:, 0, 0] > grid[:-1, 0, 0]).all()
    special = torch.ones(1, 1, 32)
    prefix, patches = position(special, (4, 4), torch.eye(16)[None])
    assert torch.equal(prefix, special + position.table[:, :1])
    assert torch.equal(patches, grid.view(1, 16, 32))


# Tokens.


@pytest.mark.parametrize("embedding_type", ["conv", "patch"])
@pytest.mark.parametrize("position", ["dynamic", "learned"])
@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_tokens_equal_the_plain_reference(tiny_config, photographs, embedding_type, position, assignment):
    config = tiny_config(
        embedding_type=embedding_type, position_embedding_type=position, superpixel_assignment=assignment
    )
    torch.manual_seed(0)
    embeddings = FocusViTEmbeddings(config).eval()
    torch.nn.init.normal_(embeddings.cls_token)
    if position == "learned":
        torch.nn.init.normal_(embeddings.position.table)
    pixels = torch.randn(2, 3, 32, 32)
    ids = slic(photographs[:2, :, ::7, ::7], 16, cell_size=2)
    with torch.no_grad():
        class_token, tokens, area = embeddings(pixels, ids)
        units = embeddings.units(pixels).double().numpy()
    for index, one in enumerate(ids.numpy()):
        shapes = reference.geometry(one, 16)
        cells = reference.overlap(one, (16, 16), 16).T
        patches = reference.overlap(one, (4, 4), 16).T
        if assignment == "hard":
            exact = geometry(ids, 16)[index].numpy()
            patches = reference.harden(patches.astype(np.float32), exact, (4, 4))
        weights = cells if embedding_type == "conv" else patches
        pooled = reference.pool(units[index], weights, with_maximum=embedding_type == "conv")
        with torch.no_grad():
            expected = embeddings.projection(torch.from_numpy(pooled).float())
            if position == "dynamic":
                expected += embeddings.position(torch.from_numpy(shapes).float()[None], torch.float32)[0]
                expected_class = embeddings.cls_token[0]
            else:
                table = embeddings.position.table[0].double().numpy()
                expected += torch.from_numpy(reference.pool(table[1:], patches)).float()
                expected_class = embeddings.cls_token[0] + embeddings.position.table[0, :1]
        torch.testing.assert_close(tokens[index], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(class_token[index], expected_class)
        torch.testing.assert_close(area[index].double(), torch.from_numpy(shapes[:, 2]))


@pytest.mark.parametrize("options", [{}, {"position_embedding_type": "learned"}, {"patch_pooling": "grid"}])
def test_chunks_equal_the_whole(tiny_config, photographs, monkeypatch, options):
    torch.manual_seed(0)
    embeddings = FocusViTEmbeddings(tiny_config(num_superpixels=16, **options)).eval()
    pixels = torch.randn(4, 3, 32, 32)
    ids = None if "patch_pooling" in options else slic(photographs[:, :, ::7, ::7], 16, cell_size=2)
    with torch.no_grad():
        expected = embeddings(pixels, ids)
        monkeypatch.setattr(embeddings_module, "_CHUNK_BYTES", 3 * 4 * 16 * 16 * embeddings.config.stem_channels)
        calls = []
        pool = embeddings.pool
        monkeypatch.setattr(embeddings, "pool", lambda *args: calls.append(len(args[0])) or pool(*args))
        torch.testing.assert_close(embeddings(pixels, ids), expected)
    # One map for all images is not cut.
    assert calls == ([4] if ids is None else [3, 1])


@pytest.mark.parametrize("embedding_type", ["conv", "patch"])
@pytest.mark.parametrize("position", ["dynamic", "learned"])
def test_an_empty_batch_has_no_tokens(tiny_config, embedding_type, position):
    config = tiny_config(embedding_type=embedding_type, position_embedding_type=position)
    embeddings = FocusViTEmbeddings(config).eval()
    outputs = embeddings(torch.zeros(0, 3, 32, 32), torch.zeros(0, 16, 16, dtype=torch.int64))
    assert [output.shape for output in outputs] == [(0, 1, 32), (0, 16, 32), (0, 16)]


def test_what_training_computes_again_gives_the_same_gradients(tiny_config, photographs, monkeypatch):
    ids = slic(photographs[:2, :, ::7, ::7], 16, cell_size=2)
    pixels = torch.randn(2, 3, 32, 32)

    def gradients_and_statistics():
        torch.manual_seed(0)
        embeddings = FocusViTEmbeddings(tiny_config()).train()
        sum(output.square().sum() for output in embeddings(pixels, ids)).backward()
        gradients = {name: parameter.grad for name, parameter in embeddings.named_parameters()}
        return gradients, dict(embeddings.named_buffers())

    found = gradients_and_statistics()
    monkeypatch.setattr(embeddings_module, "checkpoint", lambda function, *args, **options: function(*args))
    torch.testing.assert_close(found, gradients_and_statistics())


def test_training_without_gradients_normalises_the_whole_batch_once(tiny_config, photographs, monkeypatch):
    monkeypatch.setattr(embeddings_module, "_CHUNK_BYTES", 1)
    ids, pixels = slic(photographs[:, :, ::7, ::7], 16, cell_size=2), torch.randn(4, 3, 32, 32)
    found = []
    for with_gradients in (True, False):
        torch.manual_seed(0)
        embeddings = FocusViTEmbeddings(tiny_config()).train()
        with torch.set_grad_enabled(with_gradients):
            found.append((embeddings(pixels, ids), dict(embeddings.named_buffers())))
    torch.testing.assert_close(*found)


def test_regions_of_the_controls(tiny_config):
    grid = FocusViTEmbeddings(tiny_config(patch_pooling="grid", num_superpixels=9))
    assert torch.equal(grid.tile_map(32, 32, torch.device("cpu"))[0], tile_ids((3, 3), 16, 16))
    dense = FocusViTEmbeddings(tiny_config(patch_pooling="none"))
    assert torch.equal(dense.tile_map(32, 48, torch.device("cpu"))[0], tile_ids((4, 6), 16, 24))


def test_gradients_of_compiled_pooling_are_those_of_eager_in_bfloat16():
    weights = weights_of(random_ids(2, 4, 4), (4, 4), 5)

    def pool(units):
        # Fused with the pooling, a kernel goes on with the activation's unrounded float32 values.
        return pool_units(torch.nn.functional.gelu(units), weights, with_maximum=True)

    def gradient(function):
        units = (torch.arange(64.0).sin().view(2, 16, 2) * 3).bfloat16().requires_grad_()
        function(units).float().square().sum().backward()
        return units.grad

    expected = gradient(pool)
    assert expected.isfinite().all()
    torch.testing.assert_close(gradient(torch.compile(pool)), expected, atol=0.1, rtol=0.1)
