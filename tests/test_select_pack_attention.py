"""Layers and models of select-and-pack attention, against one image at a time."""

import itertools
import math

import numpy as np
import pytest
import torch

from focusvit_hf import (
    FocusViTConfig,
    FocusViTForImageClassification,
    FocusViTForSemanticSegmentation,
    select_pack_attention,
    token_packing,
)
from focusvit_hf.select_pack_attention import FocusViTSelectPackLayer
from focusvit_hf.token_selection import (
    GATE_BIAS,
    FocusViTSelectionGate,
    affordable_tokens,
    budget_level,
    cost_share,
    largest_share,
    region_means,
    region_saliency,
)
from saved import saved_and_loaded
from spa import plain_layer


pytestmark = pytest.mark.usefixtures("deterministic")

FULL, LATENT, SPA = "full_attention", "latent_attention", "select_pack_attention"
PATCHES = {"embedding_type": "patch"}
DENSE = {**PATCHES, "patch_pooling": "none", "position_embedding_type": "learned"}
STACKS = {"spa": [SPA] * 3, "late": [FULL, SPA, SPA], "latent": [LATENT, SPA, LATENT], "mixed": [SPA, FULL, SPA]}


def options(stack="spa", **more):
    layers = STACKS[stack]
    return {**PATCHES, "layer_types": layers, "num_hidden_layers": len(layers), **more}


@pytest.fixture
def spa_model(tiny_model):
    """A function to a tiny model whose gates are undecided, so that about half of the tokens are selected."""

    def make(stack="spa", **more):
        model = tiny_model(**options(stack, **more))
        for layer in model.focusvit.layers:
            if isinstance(layer, FocusViTSelectPackLayer):
                torch.nn.init.zeros_(layer.gate.bias)
        return model

    return make


@torch.no_grad()
def run(model, *args, **kwargs):
    return model(*args, **kwargs)


# A layer.

SELECTIONS = {"random": 0.5, "few": 0.1, "none": 0.0, "all": 1.0}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("share", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_against_one_image_at_a_time(tiny_config, monkeypatch, training, share, biased):
    layer = FocusViTSelectPackLayer(tiny_config(layer_types=[SPA, SPA]), 0.0).train(training)
    states = torch.randn(5, 13, 32, requires_grad=True)
    picked = torch.rand(5, 11) < share
    bias = torch.randn(5, 1, 1, 13) if biased else None

    def choose(scores, *args):
        return picked.float() + 0 * scores

    monkeypatch.setattr(select_pack_attention, "straight_through_choice", choose)
    monkeypatch.setattr(select_pack_attention, "straight_through", choose)
    mask = None if bias is None else bias.expand(-1, -1, 13, -1)
    found, scores, selected, _ = layer(states, 11, None, mask)
    assert torch.equal(selected, picked)
    r = layer.layernorm_before(states)[:, 2:]
    torch.testing.assert_close(scores, (r @ layer.gate.weight.T + layer.gate.bias).squeeze(-1))
    weights = torch.cat((torch.ones(5, 2), scores.sigmoid()), dim=1)
    chosen = torch.cat((torch.ones(5, 2), picked), dim=1)
    expected = plain_layer(layer, states, weights, chosen, None if bias is None else bias[:, 0, 0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(found[:, 2:][~picked], states[:, 2:][~picked])
    leaves, back = [states, *layer.parameters()], torch.randn_like(found)
    ours = torch.autograd.grad((found * back).sum(), leaves, retain_graph=True, materialize_grads=True)
    theirs = torch.autograd.grad((expected * back).sum(), leaves, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_map_of_all_tokens_and_the_packed_ones_agree(spa_model, pixels, ids, stack, implementation):
    found = run(spa_model(stack), pixels, ids)
    other = run(spa_model(stack, attn_implementation=implementation), pixels, ids, output_attentions=True)
    torch.testing.assert_close(found.logits, other.logits, rtol=0, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(found.selected_tokens, other.selected_tokens, strict=True))
    if implementation == "eager":
        assert len(other.attentions) == 3


def test_scores_are_inherited_by_their_maximum(spa_model, pixels, ids):
    model = spa_model()
    chosen = run(model, pixels, ids).selected_tokens
    assert [mask.shape for mask in chosen] == [(4, 16)] * 3
    assert all(mask.dtype == torch.bool for mask in chosen)
    assert not chosen[0].all()
    # What a layer selects, the next one selects too.
    assert all((later | ~earlier).all() for earlier, later in itertools.pairwise(chosen))
    last = model.focusvit.layers[2]
    torch.nn.init.zeros_(last.gate.weight)
    torch.nn.init.constant_(last.gate.bias, -50.0)
    assert torch.equal(run(model, pixels, ids).selected_tokens[2], run(model, pixels, ids).selected_tokens[1])


def test_a_new_gate_lets_a_model_be_what_it_was(tiny_model, pixels, ids):
    outputs = run(tiny_model(**options(initializer_range=0.02)), pixels, ids)
    assert all(mask.all() for mask in outputs.selected_tokens)


# A batch.


@pytest.mark.parametrize("stack", STACKS)
def test_images_never_see_one_another_and_their_order_does_not_matter(spa_model, pixels, ids, stack):
    model = spa_model(stack)
    inputs = pixels.clone().requires_grad_()
    logits = model(inputs, ids).logits
    (gradient,) = torch.autograd.grad(logits[1].square().sum(), inputs)
    assert (gradient[[0, 2, 3]] == 0).all()
    assert gradient[1].abs().sum() > 0
    for image in range(4):
        alone = run(model, pixels[image : image + 1], ids[image : image + 1]).logits
        torch.testing.assert_close(alone, logits[image : image + 1].detach(), rtol=0, atol=1e-5)
    changed = pixels.clone()
    changed[0] = torch.rand_like(changed[0])
    torch.testing.assert_close(run(model, changed, ids).logits[1:], logits[1:].detach(), rtol=0, atol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(run(model, pixels[order], ids[order]).logits, logits[order].detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pack_length", [1, 7, 64])
def test_containers_give_what_single_images_give(spa_model, pixels, ids, pack_length, monkeypatch):
    model = spa_model("late", pack_length=pack_length)
    expected = run(model, pixels, ids).logits
    lengths = []

    def in_containers(query, key, value, packing, bias, scaling, dropout, length):
        lengths.append(length)
        return token_packing.attend_in_containers(query, key, value, packing, bias, scaling, dropout, length)

    monkeypatch.setattr("focusvit_hf.latent_attention.packed_attention", in_containers)
    torch.testing.assert_close(run(model, pixels, ids).logits, expected, rtol=0, atol=1e-5)
    assert lengths == [pack_length] * 2


@pytest.mark.parametrize("kind", [PATCHES, DENSE, {**PATCHES, "patch_pooling": "grid", "attention_area_bias": True}])
def test_in_half_precision(spa_model, pixels, kind):
    model = spa_model(**kind)
    expected, found = run(model, pixels).logits, run(model.bfloat16(), pixels.bfloat16()).logits
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.15 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_gradient_checkpointing_gives_the_same_gradients(spa_model, pixels, ids, rate):
    model = spa_model("late", drop_path_rate=rate, hidden_dropout_prob=rate / 2).train()

    def gradients():
        torch.manual_seed(3)
        model.zero_grad()
        model(pixels, ids, labels=torch.arange(4), selection_masks=torch.rand(4, 32, 32)).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.activation_checkpointing_enable()
    for one, other in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(one, other)


# A fixed number of tokens.


@pytest.mark.parametrize("stack", STACKS)
def test_a_budget_is_met_exactly_and_computes_the_same_as_packing(spa_model, pixels, ids, stack):
    model = spa_model(stack, select_budget=0.3)
    outputs = run(model, pixels, ids)
    assert all((mask.sum(dim=1) == 4).all() for mask in outputs.selected_tokens)
    packed = spa_model(stack)
    for layer in packed.focusvit.layers:
        if isinstance(layer, FocusViTSelectPackLayer):
            layer._choice = lambda scores, kept, count: torch.zeros_like(scores).scatter(
                1, scores.topk(4, dim=1).indices, 1.0
            )
    torch.testing.assert_close(run(packed, pixels, ids).logits, outputs.logits, rtol=0, atol=1e-5)


def test_a_budget_is_compiled_and_exported_and_a_threshold_refused(spa_model, pixels, ids):
    model = spa_model("late", select_budget=0.3)
    expected = run(model, pixels, ids).logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(run(compiled, pixels, ids).logits, expected, rtol=0, atol=1e-5)
    program = torch.export.export(model, (pixels, ids), strict=False)
    torch.testing.assert_close(program.module()(pixels, ids).logits, expected, rtol=0, atol=1e-5)
    dynamic = spa_model("late")
    with pytest.raises(ValueError, match="Expected select_budget without select_threshold in a compiled or exported"):
        torch.export.export(dynamic, (pixels, ids), strict=False)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="Expected select_budget without select_threshold in a compiled or exported"):
        run(torch.compile(dynamic, fullgraph=True, backend="eager"), pixels, ids)


# With the other ways to fewer tokens.


@pytest.mark.parametrize("budget", [None, 0.5])
@pytest.mark.parametrize("mode", ["drop", "fuse", "merge"])
@pytest.mark.parametrize("relevance", ["attention", "learned", "random"])
def test_with_token_sparsification(spa_model, pixels, ids, relevance, mode, budget):
    if mode == "merge" and relevance != "attention":
        relevance = "attention"
    more = {"sparsification_layers": [1, 2], "sparsification_relevance": relevance, "sparsification_mode": mode}
    model = spa_model("late", **more, select_budget=budget)
    outputs = run(model, pixels, ids)
    for mask, kept in zip(outputs.selected_tokens, outputs.kept_tokens, strict=True):
        assert mask.shape == (4, 16)
        assert (mask.sum(dim=1) <= kept.shape[1]).all()
        gone = torch.ones(4, 16, dtype=torch.bool).scatter(1, kept, False)
        assert not (mask & gone).any()
    alone = run(model, pixels[1:2], ids[1:2]).logits
    torch.testing.assert_close(alone, outputs.logits[1:2], rtol=0, atol=2e-5)
    model.train()
    outputs = model(pixels, ids, labels=torch.arange(4), selection_masks=torch.rand(4, 32, 32))
    outputs.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_of_tokens_that_nothing_attends_to_those_with_the_higher_scores_stay(spa_model, pixels, ids, monkeypatch):
    scores = []
    forward = FocusViTSelectPackLayer.forward

    def spy(self, *args, **kwargs):
        found = forward(self, *args, **kwargs)
        scores.append(found[1])
        return found

    monkeypatch.setattr(FocusViTSelectPackLayer, "forward", spy)
    model = spa_model("late", select_budget=0.3, sparsification_layers=[2], keep_ratio=0.6, descriptor_window=1)
    outputs = run(model, pixels, ids)
    (selected, _), (kept,) = outputs.selected_tokens, outputs.kept_tokens
    for image in range(4):
        best = scores[0][image].masked_fill(selected[image], torch.inf).topk(kept.shape[1]).indices
        assert sorted(best.tolist()) == kept[image].tolist()


def test_with_pooling_at_depth(spa_model, pixels, ids):
    model = spa_model("spa", pooling_layer=1, num_superpixels=4, patch_pooling="grid")
    outputs = run(model, pixels, selection_masks=torch.rand(4, 32, 32))
    assert [mask.shape[1] for mask in outputs.selected_tokens] == [16, 4, 4]
    assert outputs.aux_loss.isfinite()


def test_a_segmenter_gives_every_cell_a_class(tiny_config, pixels, ids):
    config = tiny_config(**options("late"))
    model = FocusViTForSemanticSegmentation(config).eval()
    labels, masks = torch.randint(0, 5, (4, 32, 32)), torch.rand(4, 32, 32)
    plain, taught = run(model, pixels, ids, labels), run(model, pixels, ids, labels, masks)
    assert len(taught.selected_tokens) == 2
    torch.testing.assert_close(taught.loss, plain.loss + taught.aux_loss)
    assert plain.aux_loss is None


# What the gate is taught.


def test_the_loss_is_the_tasks_and_the_cross_entropies_of_all_layers(spa_model, pixels, ids):
    model, masks = spa_model(select_alpha=0.5), (torch.rand(4, 32, 32) > 0.7).float()
    said = []
    for layer in model.focusvit.layers:
        layer.register_forward_hook(lambda module, args, output: said.append(output[1]))
    plain = run(model, pixels, ids, labels=torch.arange(4))
    outputs = run(model, pixels, ids, labels=torch.arange(4), selection_masks=masks)
    expected = 0.0
    for scores in said[3:]:
        terms = []
        for image in range(4):
            for region in range(16):
                inside = masks[image][np.kron(ids[image].numpy() == region, np.ones((2, 2))).astype(bool)].mean()
                p = scores[image, region].double().sigmoid()
                terms.append(-(inside * p.log() + (1 - inside) * (1 - p).log()))
        expected += 0.5 * float(torch.stack(terms).mean())
    assert float(outputs.aux_loss) == pytest.approx(expected, rel=1e-4)
    assert float(outputs.loss) == pytest.approx(float(plain.loss) + expected, rel=1e-4)


def test_saliency_is_the_contrast_with_the_surroundings():
    ids = torch.arange(16).view(1, 4, 4)
    cells = torch.zeros(1, 3, 4, 4)
    cells[0, :, 1, 2] = 1.0
    colours = region_means(cells, ids, 16)
    geometry = torch.zeros(1, 16, 5)
    geometry[0, :, 0] = (torch.arange(16) // 4 + 0.5) / 4
    geometry[0, :, 1] = (torch.arange(16) % 4 + 0.5) / 4
    geometry[0, :, 2] = 1 / 16
    found = region_saliency(colours, geometry)[0]
    for i in range(16):
        weights = [float((-((geometry[0, i, :2] - geometry[0, j, :2]) ** 2).sum() * 8).exp()) for j in range(16)]
        contrasts = [float((colours[0, i] - colours[0, j]).norm()) for j in range(16)]
        expected = sum(w * c for w, c in zip(weights, contrasts, strict=True)) / sum(weights)
        assert float(found[i]) == pytest.approx(expected, rel=1e-4)
    assert int(found.argmax()) == 6
    assert largest_share(found[None], 0.1)[0].nonzero().tolist() == [[6]]


def test_the_cost_of_a_layer_is_that_of_its_products():
    assert float(cost_share(torch.tensor([10.0]), 10, 1, 8, 16)) == 1
    found = float(cost_share(torch.tensor([3.0]), 10, 1, 8, 16))
    cost = [n * (4 * 64 + 2 * 8 * 16) + 2 * 8 * n * n for n in (4, 11)]
    assert found == pytest.approx(cost[0] / cost[1])
    assert affordable_tokens(found, 10, 1, 8, 16) == pytest.approx(3)
    assert affordable_tokens(1.0, 10, 1, 8, 16) == pytest.approx(10)
    assert affordable_tokens(1e-6, 10, 1, 8, 16) == 0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_level_parts_the_highest_scores_of_the_batch_from_the_others(masked, count):
    scores = torch.randn(5, 7)
    there = torch.ones(5, 7)
    if masked:
        there = (torch.rand(5, 7) < 0.7).float()
        there[3], there[4] = 0.0, torch.tensor([0, 0, 1, 0, 0, 0, 0])
    own = sorted((float(s) for s, t in zip(scores.flatten(), there.flatten(), strict=True) if t), reverse=True)
    wanted = sum(min(count, int(row.sum())) for row in there)
    level = (own[wanted - 1] + own[wanted]) / 2 if wanted < len(own) else own[-1] - GATE_BIAS
    assert float(budget_level(scores, count, there if masked else None)) == pytest.approx(level, rel=1e-5)
    assert math.isnan(budget_level(scores, count, torch.zeros(5, 7)))


def test_a_gate_follows_the_level_of_the_batches_and_keeps_it_where_there_is_none():
    gate = FocusViTSelectionGate(4)
    for level in (1.0, float("nan"), 3.0):
        gate.follow(torch.tensor(level))
    assert float(gate.level) == pytest.approx(0.1 + 0.1 * (3.0 - 0.1))


def test_a_saliency_teaches_the_gate_its_share(spa_model, pixels, ids):
    fields = {"select_threshold": 0.5, "select_budget": 0.4, "select_alpha": 1.0, "initializer_range": 0.02}
    model = spa_model("late", select_supervision="saliency", **fields)
    gates = [layer.gate for layer in model.focusvit.layers[1:]]
    optimizer = torch.optim.Adam([p for gate in gates for p in gate.parameters()], lr=0.05)
    model.train()
    for _ in range(60):
        outputs = model(pixels, ids)
        assert outputs.loss is None
        optimizer.zero_grad()
        outputs.aux_loss.backward()
        optimizer.step()
    chosen = run(model.eval(), pixels, ids).selected_tokens
    assert run(model, pixels, ids).aux_loss is None
    counts = torch.stack([mask.sum(dim=1) for mask in chosen]).float()
    assert abs(float((counts / 16).mean()) - 0.4) < 0.1


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_a_budget_is_kept_in_training_and_learned_for_inference(spa_model, pixels, ids, threshold):
    fields = {"select_threshold": threshold, "select_budget": 0.4, "initializer_range": 0.5}
    model = spa_model("late", select_supervision="budget", **fields).train()
    affordable = round(affordable_tokens(0.4, 16, 1, 32, 48))
    for _ in range(60):
        outputs = model(pixels, ids)
        assert outputs.aux_loss is None
        assert all((mask.sum(dim=1) == affordable).all() for mask in outputs.selected_tokens)
    # Beside the choice by number, the threshold parts the tokens of the model's own scores.
    chosen = run(model.eval(), pixels, ids).selected_tokens
    counts = torch.stack([mask.sum(dim=1) for mask in chosen]).float()
    assert abs(float(cost_share(counts, 16, 1, 32, 48).mean()) - 0.4) < 0.1
    # Masks teach and select by the threshold, whatever the supervision without them.
    masked = model.train()(pixels, ids, selection_masks=torch.ones(len(pixels), *pixels.shape[-2:]))
    assert masked.aux_loss is not None


def test_the_level_of_a_budget_is_saved(spa_model, pixels, ids, tmp_path):
    fields = {"select_threshold": 0.5, "select_budget": 0.4, "select_supervision": "budget"}
    model = spa_model("late", **fields).train()
    model(pixels, ids)
    loaded = saved_and_loaded(model.eval(), tmp_path)
    for one, other in zip(model.focusvit.layers[1:], loaded.focusvit.layers[1:], strict=True):
        assert float(one.gate.level) == float(other.gate.level) != 0


# Options.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"select_threshold": 0.0}, r"Expected select_threshold in \(0, 1\) or None, got 0.0"),
        ({"select_threshold": 1.0}, r"Expected select_threshold in \(0, 1\) or None, got 1.0"),
        ({"select_budget": 0.0}, r"Expected select_budget in \(0, 1\] or None, got 0.0"),
        ({"select_budget": 1.5}, r"Expected select_budget in \(0, 1\] or None, got 1.5"),
        ({"select_budget": float("nan")}, r"Expected select_budget in \(0, 1\] or None, got nan"),
        ({"pack_length": 0}, "Expected pack_length"),
        ({"select_alpha": -1.0}, "Expected select_alpha"),
        ({"select_supervision": "labels"}, "Expected select_supervision to be one of"),
        ({"select_supervision": "teacher"}, "Expected select_budget, the share that is aimed at"),
        ({"select_supervision": "budget", "select_budget": 0.5}, "Expected select_threshold with"),
        (
            {"select_supervision": "saliency", "select_budget": 0.5, "layer_types": [FULL] * 3},
            "Expected a layer of layer_types to be 'select_pack_attention'",
        ),
    ],
)
def test_bad_options_are_refused(tiny_config, fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**{**options(), **fields})


def test_masks_that_do_not_fit_are_refused(spa_model, tiny_model, pixels, ids):
    model = spa_model()
    with pytest.raises(ValueError, match=r"Expected selection_masks of shape \(4, 32, 32\)"):
        model(pixels, ids, selection_masks=torch.zeros(4, 16, 16))
    with pytest.raises(ValueError, match=r"Expected selection_masks in \[0, 1\], got values from 0.0 to 2.0"):
        model(pixels, ids, selection_masks=torch.tensor([0.0, 2.0])[torch.randint(0, 2, (4, 32, 32))])
    with pytest.raises(ValueError, match="Expected no selection_masks"):
        tiny_model()(pixels, ids, selection_masks=torch.zeros(4, 32, 32))


def test_a_teachers_relevance_has_to_be_given_in_training(spa_model, pixels, ids):
    model = spa_model(select_supervision="teacher", select_budget=0.5).train()
    with pytest.raises(ValueError, match="Expected selection_masks, a teacher's relevance of each pixel"):
        model(pixels, ids, labels=torch.arange(4))
    outputs = model(pixels, ids, labels=torch.arange(4), selection_masks=torch.rand(4, 32, 32))
    assert outputs.aux_loss > 0
    assert run(model.eval(), pixels, ids).logits.isfinite().all()


def test_saved_and_loaded_with_another_threshold(spa_model, pixels, ids, tmp_path):
    model = spa_model("late", select_threshold=0.4)
    loaded = saved_and_loaded(model, tmp_path)
    torch.testing.assert_close(run(loaded, pixels, ids).logits, run(model, pixels, ids).logits, rtol=0, atol=0)
    other = FocusViTForImageClassification.from_pretrained(tmp_path, select_threshold=None, select_budget=0.5)
    assert all((mask.sum(dim=1) == 8).all() for mask in run(other, pixels, ids).selected_tokens)
    assert FocusViTConfig.from_pretrained(tmp_path).select_threshold == 0.4
