"""How many operations torch dispatches for one image: each takes microseconds, whatever the size of its tensors."""

import pytest
import torch

from focusvit_hf.benchmark.floor import OperationCounter


@pytest.fixture
def counted(tiny_model):
    model, pixels = tiny_model(num_hidden_layers=2), torch.rand(1, 3, 32, 32)
    body = model.focusvit
    ids = body.compute_superpixel_ids(pixels)
    calls = {
        "superpixels": lambda: body.compute_superpixel_ids(pixels),
        "embeddings": lambda: body.embeddings(pixels, ids),
        "layers": lambda: model(pixels, superpixel_ids=ids),
    }
    totals = {}
    for name, call in calls.items():
        with torch.no_grad():
            # The first call fills tables that later ones find.
            call()
            with OperationCounter() as counter:
                call()
        totals[name] = counter.total
    totals["layers"] -= totals["embeddings"]
    return totals


def test_one_image_takes_few_operations(counted):
    """Before these were thinned out: 244 for superpixels in five rounds, and 132 for stem, pooling and position."""
    assert counted["superpixels"] <= 162 and counted["embeddings"] <= 98
    # Two layers, and what is before and behind them.
    assert counted["layers"] <= 100
