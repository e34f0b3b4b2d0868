"""Models that pool their tokens before a later layer: against loops, with tokens that leave after it, in one graph."""

import pytest
import torch

from focusvit_hf.superpixels import tile_ids
from sparsified import CLOSE, STACKS, WAYS, options, run


pytestmark = pytest.mark.usefixtures("deterministic")

POOLED = {"pooling_layer": 2, "num_hidden_layers": 4}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("embedding", ["conv", "patch"])
@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_pooling_at_depth_against_loops(tiny_model, pixels, ids, assignment, embedding, stack):
    more = {"embedding_type": embedding, "layer_types": STACKS[stack], "num_superpixels": 16}
    model = tiny_model(**POOLED, superpixel_assignment=assignment, **more)
    seen = []
    for layer in model.focusvit.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append((args, output)))
    found = run(model, pixels, ids)
    # The states behind layer 1 are those of the dense model; before layer 2 each image's are pooled on its own.
    dense = tiny_model(**{**POOLED, "pooling_layer": 0}, **more, patch_pooling="none")
    dense.load_state_dict(model.state_dict())
    states = run(dense, pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(seen[1][1], states[2], **CLOSE)
    before = seen[1][0][1] if stack != "full" else seen[1][1][:, -16:]
    after = seen[2][0][1] if stack != "full" else seen[2][0][0][:, -16:]
    # 4 x 4 cells make a patch.
    blocks = ids.unflatten(1, (4, 4)).unflatten(3, (4, 4)).transpose(2, 3).flatten(3).flatten(1, 2)
    for image in range(4):
        for region in range(16):
            shares = (blocks[image] == region).float().mean(dim=1)
            if assignment == "hard":
                areas = torch.bincount(ids[image].flatten(), minlength=16)
                shares = torch.tensor([float(winner(patch, areas) == region) for patch in blocks[image]])
                if winner is None or not shares.any():
                    continue
            expected = (shares[:, None] * before[image]).sum(dim=0) / shares.sum()
            torch.testing.assert_close(after[image, region], expected, rtol=1e-4, atol=1e-5)
    assert found.logits.isfinite().all()


def winner(patch, areas):
    """The region with the largest share of a patch, the larger region where two have as much."""
    return max(range(16), key=lambda region: (int((patch == region).sum()), int(areas[region])))


def test_one_region_a_patch_is_the_dense_model_whatever_the_layer(tiny_model, pixels):
    patches = tile_ids((4, 4), 16, 16).expand(4, -1, -1)
    for layer in (1, 3):
        model = tiny_model(**{**POOLED, "pooling_layer": layer})
        dense = tiny_model(num_hidden_layers=4, patch_pooling="none")
        dense.load_state_dict(model.state_dict())
        torch.testing.assert_close(run(model, pixels, patches).logits, run(dense, pixels).logits, **CLOSE)


@pytest.mark.parametrize("pooling", ["superpixel", "grid"])
@pytest.mark.parametrize("way", WAYS)
def test_tokens_pooled_at_depth_can_leave_later(tiny_model, pixels, ids, way, pooling):
    more = {**options(*way), "sparsification_layers": [3], **POOLED, "num_superpixels": 9, "patch_pooling": pooling}
    model = tiny_model(**more)
    found = run(model, pixels)
    assert found.kept_tokens[0].shape == (4, 6)
    singles = torch.cat([run(model, one[None]).logits for one in pixels])
    torch.testing.assert_close(singles, found.logits, **CLOSE)
    if pooling == "superpixel":
        numbers = model.focusvit.region_ids(pixels)
        assert torch.equal(run(model, pixels, numbers).logits, found.logits)
        swapped = (numbers + 1) % 9
        assert not torch.equal(run(model, pixels, swapped.roll(1, dims=0)).logits, found.logits)


def test_pooling_at_depth_in_one_graph(tiny_model, pixels):
    model = tiny_model(**POOLED, layer_types=STACKS["full"], num_superpixels=9)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(run(compiled, pixels).logits, run(model, pixels).logits, **CLOSE)
    model.train()(pixels, labels=torch.arange(4)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
