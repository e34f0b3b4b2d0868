"""Packed tokens and what they attend to, against one image at a time."""

import pytest
import torch

from focusvit_hf.token_packing import Packing, attend_by_image, attend_in_containers, containers_of, packed_attention


HEADS, WIDTH, LENGTH = 3, 8, 20
COUNTS = [(5, 20, 0, 13, 1), (0, 0, 0), (20, 20, 20), (0, 7), (1, 1, 1, 1)]


def some_tokens(counts):
    selected = torch.zeros(len(counts), LENGTH, dtype=torch.bool)
    for image, count in enumerate(counts):
        selected[image, torch.randperm(LENGTH)[:count]] = True
    return Packing.of(selected), selected


def plain(states, packing, bias):
    start, parts = 0, []
    for count in packing.counts:
        own = slice(start, start + count)
        q, k, v = (each[own].transpose(0, 1) for each in states)
        scores = q @ k.transpose(1, 2) / WIDTH**0.5
        parts.append(((scores + (0 if bias is None else bias[own])).softmax(dim=-1) @ v).transpose(0, 1))
        start += count
    return torch.cat(parts)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("pack_length", [1, 7, 16, 100])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_both_ways_are_attention_of_each_image_to_itself(counts, pack_length, biased):
    packing, _ = some_tokens(counts)
    total = sum(counts)
    states = [torch.randn(total, HEADS, WIDTH, requires_grad=True) for _ in range(3)]
    bias = torch.randn(total, requires_grad=True) if biased else None
    leaves = [*states, *([bias] if biased else [])]
    expected = plain(states, packing, bias)
    ways = {"image": attend_by_image(*states, packing, bias)}
    ways["containers"] = attend_in_containers(*states, packing, bias, pack_length=pack_length)
    back = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * back).sum(), leaves, materialize_grads=True)
    for found in ways.values():
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        for one, other in zip(
            torch.autograd.grad((found * back).sum(), leaves, materialize_grads=True), wanted, strict=True
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_half_precision_to_its_own_precision():
    packing, _ = some_tokens(COUNTS[0])
    states = [torch.randn(packing.index.numel(), HEADS, WIDTH) for _ in range(3)]
    expected, narrow = plain(states, packing, None), [each.bfloat16() for each in states]
    for found in (packed_attention(*narrow, packing), attend_in_containers(*narrow, packing, pack_length=7)):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.03)


def test_packing_is_in_order_and_only_the_last_container_is_padded():
    packing, selected = some_tokens(COUNTS[0])
    values = torch.randn(len(selected), LENGTH, 2)
    packed = packing.pack(values)
    assert torch.equal(packed, values[selected])
    assert packing.images.tolist() == [image for image, count in enumerate(COUNTS[0]) for _ in range(count)]
    back = packing.scatter(packed + 1, values)
    assert torch.equal(back, values + selected[..., None])
    for total in range(1, 60):
        for pack_length in (1, 7, 64):
            containers, padding = containers_of(total, pack_length)
            assert 0 <= padding < pack_length
            assert containers * pack_length == total + padding
