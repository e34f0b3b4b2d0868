"""The stem against its plain twins: cells, patches, and normalisation that is folded into the convolution."""

import pytest
import torch
from torch.nn.utils import prune

from focusvit_hf.embeddings import FocusViTConvEmbedding, FocusViTConvNorm, FocusViTPatchEmbedding
from focusvit_hf.positions import fourier_features


@pytest.mark.parametrize(("channels", "patch", "cell"), [(3, 8, None), (1, 16, 4), (4, 14, 7), (3, 4, 1)])
def test_conv_embedding_gives_cells(tiny_config, channels, patch, cell):
    config = tiny_config(
        num_channels=channels, patch_size=patch, image_size=patch * 4, superpixel_cell_size=cell, num_superpixels=4
    )
    embedding = FocusViTConvEmbedding(config)
    units = embedding(torch.randn(2, channels, patch * 4, patch * 2))
    assert units.shape == (2, patch * 4 // config.cell_size * (patch * 2 // config.cell_size), 8)


def test_conv_embedding_knows_where_a_cell_is(tiny_config):
    embedding = FocusViTConvEmbedding(tiny_config())
    units = embedding(torch.zeros(1, 3, 32, 32))[0].view(16, 16, 8)
    inner = units[1:-1, 1:-1].flatten(0, 1)
    distance = torch.cdist(inner, inner) + torch.eye(len(inner))
    assert distance.min() > 1e-4


def test_blocks_of_the_stem_are_residual_and_begin_as_the_identity(tiny_model, pixels):
    stem = tiny_model(stem_blocks=2).focusvit.embeddings.units
    axis = (torch.arange(16) + 0.5) / 16
    position = stem.position(fourier_features(torch.cartesian_prod(axis, axis)))

    def with_position(cells):
        return (cells.flatten(2).transpose(1, 2) + position).relu()

    with torch.no_grad():
        cells = stem.mixing(stem.cells(pixels).relu()).relu()
        torch.testing.assert_close(stem(pixels), with_position(cells))
        for block in stem.blocks:
            for norm in (block.first.norm, block.second.norm):
                norm.weight.uniform_(0.5, 1.5)
                norm.running_mean.normal_()
            cells = cells.relu()
            inner = block.first.norm(block.first.convolution(cells)).relu()
            cells = cells + block.second.norm(block.second.convolution(inner))
        torch.testing.assert_close(stem(pixels), with_position(cells), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (8, 4), (15, 7)])
def test_normalisation_is_folded_into_the_convolution_in_evaluation(kernel, stride):
    torch.manual_seed(0)
    block = FocusViTConvNorm(3, 8, kernel, stride)
    for value in (block.norm.weight, block.norm.bias):
        torch.nn.init.normal_(value)
    pixels = torch.randn(2, 3, 28, 56)
    assert block(pixels).shape == (2, 8, 28 // stride, 56 // stride)
    torch.testing.assert_close(block.norm.running_mean, 0.1 * block.convolution(pixels).mean(dim=(0, 2, 3)))
    for _ in range(4):
        block(pixels)
    # Each channel of a batch in training has the bias as its mean, and the statistics have begun to follow it.
    torch.testing.assert_close(block(pixels).mean(dim=(0, 2, 3)), block.norm.bias, rtol=1e-4, atol=1e-4)
    assert block.norm.running_mean.abs().max() > 0
    block.eval()
    folded, plain = block(pixels), block.norm(block.convolution(pixels))
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)
    parameters = tuple(block.parameters())
    for own, expected in zip(
        torch.autograd.grad(folded.square().sum(), parameters),
        torch.autograd.grad(plain.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-2)


class _Doubled(torch.nn.Conv2d):
    def forward(self, pixels):
        return 2 * super().forward(pixels)


def _hooked(block):
    block.convolution.register_forward_hook(lambda module, args, output: 2 * output)


def _hooked_before(block):
    block.norm.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def _subclass(block):
    block.convolution.__class__ = _Doubled


def _pruned(block):
    prune.random_unstructured(block.convolution, "weight", 0.5)
    # As after a step of training: what is pruned anew from it is seen in a call alone.
    with torch.no_grad():
        block.convolution.weight_orig.mul_(2)


CHANGES = [_hooked, _hooked_before, _subclass, _pruned]


def block_with_statistics():
    torch.manual_seed(0)
    block = FocusViTConvNorm(3, 8, 8, 4)
    for _ in range(5):
        block(torch.randn(2, 3, 16, 16) + 1)
    return block


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_done_to_the_parts_of_a_block_counts_in_evaluation(change):
    block, plain, pixels = block_with_statistics().eval(), block_with_statistics().eval(), torch.randn(2, 3, 16, 16)
    change(block)
    torch.testing.assert_close(block(pixels), block.norm(block.convolution(pixels)))
    assert not torch.allclose(block(pixels), plain(pixels))


def test_calls_of_the_parts_of_a_block_are_seen_by_their_hooks():
    block, seen = block_with_statistics().eval(), []
    block.convolution.register_full_backward_hook(lambda *args: seen.append("convolution"))
    block.norm.register_forward_hook(lambda *args: seen.append("norm"))
    block(torch.randn(2, 3, 16, 16, requires_grad=True)).sum().backward()
    assert seen == ["norm", "convolution"]


@pytest.mark.parametrize("change", [None, torch.nn.SyncBatchNorm.convert_sync_batchnorm, _hooked, _subclass])
def test_frozen_weights_of_normalisation_freeze_its_statistics(change):
    block, pixels = block_with_statistics(), torch.randn(2, 3, 16, 16)
    if change is not None:
        change(block)
    expected = block.eval()(pixels)
    before = {name: buffer.clone() for name, buffer in block.named_buffers()}
    block.train().norm.requires_grad_(False)
    torch.testing.assert_close(block(pixels), expected)
    for name, buffer in block.named_buffers():
        assert torch.equal(buffer, before[name]), name
    # The other way to freeze them.
    block.norm.requires_grad_()
    block.norm.eval()
    torch.testing.assert_close(block(pixels), expected)


def test_patch_embedding_is_that_of_vit(tiny_config):
    embedding = FocusViTPatchEmbedding(tiny_config())
    pixels = torch.randn(2, 3, 16, 32)
    patches = torch.nn.functional.unfold(pixels, 8, stride=8).transpose(1, 2)
    weight = embedding.projection.weight.flatten(1)
    torch.testing.assert_close(embedding(pixels), patches @ weight.T + embedding.projection.bias, rtol=1e-5, atol=1e-5)
