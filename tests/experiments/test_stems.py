"""Stems and poolings that were tried: each fits into a model, trains, and knows its place."""

import pytest
import torch

from experiments.micro.stems import STEMS, with_stem
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification


CONFIG = {
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "stem_channels": 8,
    "num_superpixels": 4,
    "num_labels": 3,
}


def built(name: str, **changes: int) -> FocusViTForImageClassification:
    torch.manual_seed(0)
    return with_stem(FocusViTForImageClassification(FocusViTConfig(**{**CONFIG, **changes})), name)


@pytest.mark.parametrize("cell", [4, 8])
@pytest.mark.parametrize("name", STEMS)
def test_every_stem_gives_each_cell_its_features_and_trains(name, cell):
    model = built(name, superpixel_cell_size=cell)
    pixels = torch.rand(2, 3, 64, 64)
    units = model.focusvit.embeddings.units(pixels)
    assert units.shape[:2] == (2, (64 // cell) ** 2)
    # The second moment keeps near 1: no stem begins silent or deafening.
    assert 0.02 < units.float().square().mean() < 20
    logits = model.train()(pixel_values=pixels).logits
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_stem_named_after_the_model_computes_what_the_model_does():
    pixels = torch.rand(2, 3, 64, 64)
    model = FocusViTForImageClassification(FocusViTConfig(**CONFIG)).eval()
    tried = built("model").eval()
    own, theirs = model.focusvit.embeddings.units, tried.focusvit.embeddings.units.fine
    for mine, other in ((own.cells, theirs[0]), (own.mixing, theirs[2])):
        other[0].weight.data = mine.convolution.weight.data
        for norm in (mine.norm, other[1]):
            norm.running_mean.copy_(torch.linspace(-1, 1, 8))
            norm.running_var.copy_(torch.linspace(0.5, 2, 8))
    theirs[3].linear.load_state_dict(own.position.state_dict())
    torch.testing.assert_close(tried.focusvit.embeddings.units(pixels), own(pixels), atol=1e-5, rtol=1e-5)


def test_the_spread_is_a_regions_standard_deviation():
    model = built("deviation", num_superpixels=1).eval()
    embeddings = model.focusvit.embeddings
    pixels = torch.rand(2, 3, 64, 64)
    ids = torch.zeros(2, 16, 16, dtype=torch.long)
    pooled = embeddings.projection[0](embeddings.pool(pixels, ids, 1)[0])
    cells = embeddings.units.stem(pixels)
    expected = (cells.var(dim=1, correction=0) + 1e-4).sqrt()
    torch.testing.assert_close(pooled[:, 0, 16:], expected, atol=1e-3, rtol=1e-3)
