"""What token sparsification is built of, against plain loops over one image at a time."""

import math

import numpy as np
import pytest
import torch

from focusvit_hf.sparsification_options import kept_counts, kept_shares, most_merged
from focusvit_hf.token_choice import (
    gather_tokens,
    masked_softmax,
    most_relevant,
    ratio_loss,
    straight_through_choice,
    weighted_mean,
)
from focusvit_hf.token_merging import match_tokens, merge_tokens, merged_sums
from focusvit_hf.token_relevance import (
    TokenObserver,
    attention_descriptors,
    attention_relevance,
    image_seeds,
    random_relevance,
)


PREFIX, TOKENS, HEADS = 2, 7, 3
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def a_map(queries, keys):
    return torch.randn(2, HEADS, queries, keys).softmax(dim=-1)


def plain_descriptors(weights, columns, rows, kept, full):
    """(T, 3 or 6, heads) of one image, a number at a time; `kept` lists the tokens that are still there."""
    described = np.zeros((len(columns), 6 if full else 3, weights.shape[0]))
    over = [rows[i] for i in kept] if full else rows
    for head in range(weights.shape[0]):
        for i, column in enumerate(columns):
            down = [float(weights[head, row, column]) for row in over]
            described[i, :3, head] = float(weights[head, 0, column]), np.mean(down), np.var(down)
            if full:
                along = [float(weights[head, column, columns[j]]) for j in kept]
                described[i, 3:, head] = float(weights[head, column, 0]), np.mean(along), np.var(along)
    return described


def places(some):
    return list(range(some.start, some.stop))


FULL_MAP = (slice(PREFIX, PREFIX + TOKENS), slice(PREFIX, PREFIX + TOKENS), PREFIX + TOKENS)
# Two prefix tokens and four latents ask; the tokens are keys alone.
LATENT_MAP = (slice(6, 6 + TOKENS), slice(PREFIX, 6), 6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("columns", "rows", "queries"), [FULL_MAP, LATENT_MAP], ids=["full", "latent"])
def test_descriptors_and_relevance_against_loops(columns, rows, queries, masked):
    weights, full = a_map(queries, columns.stop), columns == rows
    kept = torch.tensor([[1, 0, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 1, 1.0]]) if masked else None
    found = attention_descriptors(weights, columns, rows, kept)
    relevance = attention_relevance(weights, columns, rows, kept)
    for image in range(2):
        there = range(TOKENS) if kept is None else [i for i in range(TOKENS) if kept[image, i]]
        expected = plain_descriptors(weights[image], places(columns), places(rows), there, full)
        np.testing.assert_allclose(found[image], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(relevance[image], expected[:, :2].mean(axis=2).sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("relevance", ["learned", "attention"])
def test_masked_descriptors_are_those_of_the_tokens_that_are_there(relevance):
    """In training dropped tokens stay in the map; in inference they are not in it. Uniform attention is 1."""
    scores, kept = torch.randn(2, HEADS, 9, 9), torch.tensor([[1, 0, 1, 1, 0, 1, 1], [0, 1, 0, 1, 1, 1, 1.0]])
    column_mask = torch.nn.functional.pad(kept, (2, 0), value=1.0)
    weights = masked_softmax(scores, column_mask, self_loop=True)
    keys = torch.randn(2, HEADS, 9, 4)
    masked = TokenObserver(relevance, TOKENS, num_prefix=2)(weights, keys, column_mask)
    for image in range(2):
        there = kept[image].nonzero().flatten()
        whole = torch.cat((torch.arange(2), there + 2))
        small = scores[image][:, whole][:, :, whole].softmax(dim=-1)
        alone = TokenObserver(relevance, len(there), num_prefix=2)(small[None], keys[:1, :, whole])
        expected = masked[image : image + 1, there]
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
    uniform = torch.full((1, HEADS, TOKENS, TOKENS), 1 / TOKENS)
    told = TokenObserver(relevance, TOKENS)(uniform, keys[:1, :, :TOKENS])
    expected = torch.tensor([1.0, 1, 0, 1, 1, 0])[:, None].expand(TOKENS, -1, HEADS)
    torch.testing.assert_close(told[0], expected if relevance == "learned" else torch.full((TOKENS,), 2.0))


def test_an_observer_of_keys_leaves_out_prefix_and_fused_token():
    keys = torch.randn(2, HEADS, 10, 4)
    observer = TokenObserver("keys", TOKENS, num_fused=1)
    assert not observer.needs_map
    assert torch.equal(observer(None, keys), keys[:, :, 2:9].mean(dim=1))
    with pytest.raises(ValueError, match="Expected a map of attention for relevance 'learned', got None"):
        TokenObserver("learned", TOKENS)(None, keys)


def test_random_relevance_depends_on_the_image_alone():
    levels = torch.randint(0, 256, (6, 3, 8, 8)).float()
    mean, std = [0.48, 0.46, 0.41], [0.23, 0.22, 0.23]
    pixels = (levels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    seeds = image_seeds(pixels, mean, std)
    assert seeds.tolist() == levels.sum(dim=(1, 2, 3)).long().tolist()
    scores = random_relevance(seeds, 100)
    assert torch.equal(scores[3:4], random_relevance(image_seeds(pixels[3:4], mean, std), 100))
    assert scores.min() >= 0
    assert scores.max() < 2**24
    orders = scores.argsort(dim=1)
    assert len({tuple(order.tolist()) for order in orders}) == 6
    # Neither by place nor by image is anything preferred: ranks average to the middle, and differ as in a shuffle.
    many = random_relevance(torch.arange(10_000, 12_000), 100)
    ranks = many.argsort(dim=1).argsort(dim=1).float()
    assert (ranks.mean(dim=0) - 49.5).abs().max() < 4 * 28.9 / math.sqrt(2000)
    following = torch.corrcoef(torch.stack((ranks[:, :-1].flatten(), ranks[:, 1:].flatten())))[0, 1]
    assert following.abs() < 0.03


# The choice.


def test_counts_and_shares():
    assert kept_counts(196, kept_shares(0.7, 3)) == (137, 96, 67)
    assert kept_counts(100, kept_shares(0.9, 3)) == (90, 81, 72)
    assert kept_counts(196, kept_shares(1.0, 2)) == (196, 196)
    assert kept_counts(196, kept_shares([0.5, 0.25], 2)) == (98, 49)
    assert kept_counts(3, kept_shares(0.1, 2)) == (1, 1)
    assert [most_merged(count) for count in (0, 1, 2, 3, 16, 17)] == [0, 0, 1, 2, 8, 9]


@pytest.mark.parametrize("count", [1, 4, 7])
def test_the_most_relevant_stay_in_their_order(count):
    scores = torch.randn(3, TOKENS)
    stay, rest = most_relevant(scores, count)
    for image in range(3):
        order = sorted(range(TOKENS), key=lambda place: -float(scores[image, place]))
        assert stay[image].tolist() == sorted(order[:count])
        assert rest[image].tolist() == sorted(order[count:])
    values = torch.randn(1, TOKENS, 5)
    gathered = gather_tokens(values, stay)
    assert all(torch.equal(gathered[i], values[0, stay[i]]) for i in range(3))


def test_a_weighted_mean_of_no_weight_is_zero():
    tokens, weights = torch.randn(2, 3, 4), torch.tensor([[1.0, 2, 5], [0, 0, 0]])
    found = weighted_mean(tokens, weights)
    torch.testing.assert_close(found[0, 0], (tokens[0, 0] + 2 * tokens[0, 1] + 5 * tokens[0, 2]) / 8)
    assert (found[1] == 0).all()


@pytest.mark.parametrize("self_loop", [False, True])
def test_a_masked_softmax_is_one_over_what_is_kept(self_loop):
    scores = torch.randn(2, HEADS, 5, 5, dtype=torch.float64, requires_grad=True)
    kept = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 1.0]])
    found = masked_softmax(scores, kept, self_loop)
    for image, head, row in np.ndindex(2, HEADS, 5):
        seen = [j for j in range(5) if kept[image, j] or (self_loop and j == row)]
        rates = {j: math.exp(scores[image, head, row, j].item()) for j in seen}
        expected = [rates.get(j, 0.0) / sum(rates.values()) for j in range(5)]
        np.testing.assert_allclose(found[image, head, row].detach(), expected, rtol=1e-6)
    # What nobody sees has no gradient, to the bit.
    (gradient,) = torch.autograd.grad(found[:, :, 0].square().sum(), scores)
    dropped = (kept == 0)[:, None, None].expand_as(gradient)
    assert (gradient[dropped] == 0).all()


def test_a_masked_softmax_of_far_scores_and_its_mask_have_finite_gradients():
    scores, kept = torch.tensor([[[[0.0, 500.0], [0.0, 0.0]]]], requires_grad=True), torch.tensor([[1.0, 0.0]])
    kept.requires_grad_()
    found = masked_softmax(scores, kept, self_loop=True)
    assert torch.equal(found[0, 0, 0], torch.tensor([1.0, 0.0]))
    gradients = torch.autograd.grad(found[..., 1].sum(), (scores, kept))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1][0, 1] > 0


def test_a_choice_is_hard_inherits_drops_and_has_the_gradient_of_the_soft_one():
    scores = torch.zeros(1, 4000).fill_(1.0).requires_grad_()
    before = (torch.arange(4000) % 2).float()[None]
    kept = straight_through_choice(scores, before)
    assert ((kept == 0) | ((kept - 1).abs() < 1e-6)).all()
    assert (kept[before == 0] == 0).all()
    # Gumbel noise keeps a token of logit s with the probability sigmoid(s).
    assert kept.sum().item() / 2000 == pytest.approx(1 / (1 + math.exp(-1)), abs=0.04)
    (gradient,) = torch.autograd.grad(kept.sum(), scores)
    assert (gradient[before == 0] == 0).all()
    assert (gradient[before == 1] > 0).all()
    assert not torch.equal(kept, straight_through_choice(scores, before))


def test_the_ratio_loss_against_its_formula():
    masks = [torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1]]), torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]])]
    expected = (((0.5 - 0.7) ** 2 + (1 - 0.7) ** 2) / 2 + ((0.25 - 0.49) ** 2 + (0.5 - 0.49) ** 2) / 2) / 2
    assert float(ratio_loss(masks, (0.7, 0.49))) == pytest.approx(expected)


# Merging.


def merge_one_by_one(tokens, weights, keys, count):
    """The same for one image, in loops: which tokens stand at each place that is left."""
    pairs = []
    for i in range(0, len(keys), 2):
        cosines = {
            j: float(torch.dot(keys[i], keys[j]) / keys[i].norm() / keys[j].norm()) for j in range(1, len(keys), 2)
        }
        j = max(cosines, key=cosines.get)
        pairs.append((cosines[j], i, j))
    groups = {i: [i] for i in range(len(keys))}
    for _, i, j in sorted(pairs, reverse=True)[: len(keys) - count]:
        groups[j] += groups.pop(i)
    totals = {i: sum(weights[j] for j in group) for i, group in groups.items()}
    means = {i: sum(tokens[j] * weights[j] for j in group) / totals[i] for i, group in groups.items()}
    return list(groups), torch.stack(list(means.values())), torch.stack(list(totals.values()))


@pytest.mark.parametrize(("num_tokens", "count"), [(17, 8), (18, 13), (16, 16), (5, 4), (2, 1)], ids=str)
def test_merging_against_loops(num_tokens, count):
    keys, tokens = torch.randn(3, num_tokens, 4), torch.randn(3, num_tokens, 5)
    weights = torch.randint(1, 5, (3, num_tokens)).float()
    matched = match_tokens(keys, count)
    found, totals = merge_tokens(tokens, weights, *matched), merged_sums(weights, *matched)
    assert found.shape == (3, count, 5)
    for image in range(3):
        stay, expected, expected_totals = merge_one_by_one(tokens[image], weights[image], keys[image], count)
        assert matched[0][image].tolist() == stay
        torch.testing.assert_close(found[image], expected, **CLOSE)
        torch.testing.assert_close(totals[image], expected_totals)
    torch.testing.assert_close(totals.sum(dim=1), weights.sum(dim=1))


def test_no_more_than_one_set_can_be_merged():
    with pytest.raises(ValueError, match="Expected to merge at most 9 of 17 tokens in one step, got 10"):
        match_tokens(torch.randn(1, 17, 4), 7)


def test_tokens_of_no_area_merge_to_zero():
    matched = match_tokens(torch.ones(1, 2, 3), 1)
    assert (merge_tokens(torch.ones(1, 2, 4), torch.zeros(1, 2), *matched) == 0).all()
