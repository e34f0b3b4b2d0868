"""Models whose tokens leave on the way: against loops over one image, in training, compiled and exported."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, token_sparsification
from focusvit_hf.token_choice import most_relevant
from focusvit_hf.token_relevance import image_seeds, random_relevance
from saved import saved_and_loaded
from sparsified import CLOSE, DENSE, FULL, LATENT, PATCHES, STACKS, WAYS, options, plain_model, run


pytestmark = pytest.mark.usefixtures("deterministic")

VARIANTS = [
    pytest.param(options(relevance, mode, layers), id=f"{relevance}-{mode}-{name}")
    for (relevance, mode), (name, layers) in itertools.product(WAYS, STACKS.items())
]
FEW = [
    pytest.param(options(*way, layers=STACKS[name]), id=f"{'-'.join(way)}-{name}")
    for way, name in zip(WAYS, itertools.cycle(("mixed", "full")), strict=False)
]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_against_one_image_in_loops(tiny_model, pixels, ids, variant):
    model = tiny_model(**variant)
    found = model(pixels, ids)
    assert [tuple(places.shape) for places in found.kept_tokens] == [(4, 11), (4, 7)]
    seeds = image_seeds(pixels, model.config.image_mean, model.config.image_std)
    predicted = predictions_of(model, pixels, ids)
    for image in range(4):

        def score(number, seen, group, image=image):
            places = [token["place"] for token in group if token["place"] is not None]
            relevance = model.config.sparsification_relevance
            if relevance == "random":
                return random_relevance(seeds[image : image + 1], 16)[0][places]
            if relevance == "learned":
                return predicted[number][image]
            maps, first = seen["maps"].mean(dim=0), seen["first"]
            columns = [first + i for i in range(len(places))]
            return [float(maps[0, j]) + float(maps[seen["rows"], j].mean()) for j in columns]

        expected, kept = plain_model(model, pixels[image : image + 1], ids[image : image + 1], score)
        torch.testing.assert_close(found.logits[image : image + 1], expected, rtol=1e-4, atol=2e-5)
        assert [places[image].tolist() for places in found.kept_tokens] == kept


def predictions_of(model, pixels, ids):
    """What each predictor says, by the number of the stage's layer."""
    if model.config.sparsification_relevance != "learned":
        return {}
    said, sparsification = {}, model.focusvit.sparsification
    hooks = [
        predictor.register_forward_hook(lambda module, args, output, layer=layer: said.update({layer: output}))
        for layer, predictor in zip(sparsification.layers, sparsification.predictors, strict=True)
    ]
    model(pixels, ids)
    for hook in hooks:
        hook.remove()
    return said


# What changes nothing.


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_ratio_of_one_is_the_model_without_to_the_bit(tiny_model, pixels, variant):
    model = tiny_model(**{**variant, "keep_ratio": 1.0, "attn_implementation": "sdpa"})
    plain = tiny_model(**{**variant, "sparsification_layers": None, "attn_implementation": "sdpa"})
    weights = {name: weight for name, weight in model.state_dict().items() if "sparsification" not in name}
    plain.load_state_dict(weights)
    found = run(model, pixels)
    assert torch.equal(found.logits, run(plain, pixels).logits)
    assert all(torch.equal(places, torch.arange(16).expand(4, -1)) for places in found.kept_tokens)
    assert run(plain, pixels).keys() == {"logits"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_equals_its_singles(tiny_model, pixels, variant):
    model = tiny_model(**variant)
    whole, singles = run(model, pixels), [run(model, one[None]) for one in pixels]
    torch.testing.assert_close(torch.cat([one.logits for one in singles]), whole.logits, **CLOSE)
    for stage, places in enumerate(whole.kept_tokens):
        assert torch.equal(torch.cat([one.kept_tokens[stage] for one in singles]), places)


def by_rank(model, monkeypatch):
    """Lets training choose as inference does: the most relevant of those still there, as many as are wanted."""
    counts = itertools.cycle(model.config.kept_counts(16))

    def choice(scores, kept):
        stay, _ = most_relevant(scores.masked_fill(kept == 0, -torch.inf), next(counts))
        return torch.zeros_like(kept).scatter(1, stay, 1.0) * (1 + scores - scores.detach())

    monkeypatch.setattr(token_sparsification, "straight_through_choice", choice)
    return model


@pytest.mark.parametrize("area_bias", [False, True])
@pytest.mark.parametrize("window", [1, None])
@pytest.mark.parametrize("mode", ["drop", "fuse"])
@pytest.mark.parametrize("stack", STACKS)
def test_masks_in_training_and_gathers_in_inference_agree(
    tiny_model, pixels, monkeypatch, stack, mode, window, area_bias
):
    more = {"descriptor_window": window, "attention_area_bias": area_bias, **PATCHES}
    model = by_rank(tiny_model(**options("learned", mode, STACKS[stack], **more)), monkeypatch)
    expected, found = run(model, pixels), run(model.train(), pixels)
    torch.testing.assert_close(found.logits, expected.logits, **CLOSE)
    assert found.kept_tokens is None
    for mask, places in zip(found.kept_masks, expected.kept_tokens, strict=True):
        assert [row.nonzero().flatten().tolist() for row in mask] == places.tolist()
    if expected.token_states is not None:
        assert found.token_states.shape == (4, 16, 32)
        index = expected.kept_tokens[-1][..., None].expand(-1, -1, 32)
        torch.testing.assert_close(found.token_states.gather(1, index), expected.token_states, **CLOSE)
    assert (expected.token_states is None) == (stack == "latent")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("variant", [options("learned", layers=layers) for layers in STACKS.values()], ids=STACKS)
def test_a_dropped_token_never_influences_the_logits(tiny_model, pixels, monkeypatch, variant, training):
    """The states of tokens as they leave: no gradient of any logit, to the bit, whatever the path."""
    model = by_rank(tiny_model(**variant), monkeypatch).train(training)
    original, seen = token_sparsification.FocusViTTokenSparsification._relevance, []

    def detached(self, tokens, state, layer, seeds):
        # The relevance itself sees what it drops; what counts is what comes after the choice.
        return original(self, tokens.detach(), state, layer, seeds).detach()

    def apart(module, args):
        # The tokens of latent layers are those of the layers before the stage too.
        tokens = args[0].clone()
        tokens.retain_grad()
        return tokens, *args[1:]

    def watch(module, args, output):
        seen.append((args[0], output[1]))

    monkeypatch.setattr(token_sparsification.FocusViTTokenSparsification, "_relevance", detached)
    model.focusvit.sparsification.register_forward_pre_hook(apart)
    model.focusvit.sparsification.register_forward_hook(watch)
    model(pixels).logits.square().sum().backward()
    assert len(seen) == 2
    for tokens, state in seen:
        there = tokens.grad.abs().amax(dim=2) > 0
        assert (there.sum(dim=1) == (state.kept > 0).sum(dim=1) if training else there.sum(dim=1) == state.count).all()


def test_a_fused_token_of_nothing_is_seen_by_nobody(tiny_model, pixels, monkeypatch):
    model = tiny_model(**options("learned", "fuse", **PATCHES)).train()
    monkeypatch.setattr(token_sparsification, "straight_through_choice", lambda scores, kept: kept * (scores * 0 + 1))
    outputs = model(pixels, labels=torch.arange(4))
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    model.config.keep_ratio = 1.0
    torch.testing.assert_close(outputs.logits, run(model.eval(), pixels).logits, **CLOSE)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("mode", ["drop", "fuse"])
def test_all_tokens_of_an_image_may_be_dropped_in_training(tiny_model, pixels, monkeypatch, mode, stack):
    more = {"classifier_pooling": "cls_patch_mean", "descriptor_window": None}
    model = tiny_model(**options("learned", mode, STACKS[stack], **more)).train()
    monkeypatch.setattr(token_sparsification, "straight_through_choice", lambda scores, kept: kept * (scores * 0))
    outputs = model(pixels, labels=torch.arange(4))
    outputs.loss.backward()
    assert outputs.logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("window", [1, 2, None])
@pytest.mark.parametrize(
    "variant", [options("learned", mode, s) for mode in ("drop", "fuse") for s in STACKS.values()]
)
def test_every_parameter_has_a_gradient(tiny_model, pixels, variant, window):
    model = tiny_model(**variant, descriptor_window=window).train()
    outputs = model(pixels, labels=torch.arange(4))
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > (0 if "k_proj.bias" in name else 1e-9), name


@pytest.mark.parametrize("variant", [options(), options(mode="fuse"), options(mode="merge"), options("random")])
def test_without_predictors_training_gathers_too(tiny_model, pixels, variant):
    model = tiny_model(**variant, **PATCHES).train()
    outputs = model(pixels, labels=torch.arange(4))
    assert [places.shape[1] for places in outputs.kept_tokens] == [11, 7]
    assert outputs.aux_loss is None
    torch.testing.assert_close(outputs.logits, run(model.eval(), pixels).logits, **CLOSE)


# Losses and outputs.


def test_the_loss_is_that_of_the_classes_and_twice_that_of_the_ratio(tiny_model, pixels):
    model = tiny_model(**options("learned", keep_ratio=[0.9, 0.4])).train()
    outputs = model(pixels, labels=torch.arange(4))
    shares = [mask.mean(dim=1) for mask in outputs.kept_masks]
    ratio = ((shares[0] - 0.9) ** 2 + (shares[1] - 0.4) ** 2).mean() / 2
    torch.testing.assert_close(outputs.aux_loss, 2 * ratio)
    expected = torch.nn.functional.cross_entropy(outputs.logits, torch.arange(4)) + 2 * ratio
    torch.testing.assert_close(outputs.loss, expected)
    # In evaluation the counts are exact.
    outputs = model.eval()(pixels, labels=torch.arange(4))
    assert outputs.aux_loss is None
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, torch.arange(4)))


def test_training_learns_the_ratio(tiny_model, pixels):
    model = tiny_model(**options("learned", keep_ratio=0.5, initializer_range=0.05)).train()
    optimizer = torch.optim.Adam(model.focusvit.sparsification.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        model(pixels).aux_loss.backward()
        optimizer.step()
    shares = torch.stack([torch.stack([m.mean() for m in model(pixels).kept_masks]) for _ in range(10)]).mean(dim=0)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25]), rtol=0, atol=0.1)


def test_trainer_evaluates_logits_alone(tiny_config):
    ignored = set(tiny_config().keys_to_ignore_at_inference)
    assert ignored >= {"kept_tokens", "kept_masks", "token_states", "aux_loss"}


@pytest.mark.parametrize("mode", ["drop", "fuse", "merge"])
def test_the_mean_of_the_tokens_goes_by_their_areas(tiny_model, pixels, ids, mode):
    model = tiny_model(**options(mode=mode, classifier_pooling="cls_patch_mean")).focusvit
    with torch.no_grad():
        outputs = model(pixels, ids)
    area = torch.nn.functional.one_hot(ids.flatten(1), 16).float().mean(dim=1)
    states = outputs.last_hidden_state[:, 1:]
    assert states.shape[1] == (8 if mode == "fuse" else 7)
    assert torch.equal(outputs.token_states, states[:, :7])
    here = area.gather(1, outputs.kept_tokens[-1])
    if mode == "drop":
        here = here / here.sum(dim=1, keepdim=True)
        torch.testing.assert_close(outputs.patch_mean, (here[..., None] * states).sum(dim=1), **CLOSE)
    elif mode == "fuse":
        here = torch.cat((here, 1 - here.sum(dim=1, keepdim=True)), dim=1)
        torch.testing.assert_close(outputs.patch_mean, (here[..., None] * states).sum(dim=1), **CLOSE)
    else:
        # Of equal tokens any mean by areas that sum to one is the token.
        assert outputs.patch_mean.isfinite().all()


@pytest.mark.parametrize("mode", ["fuse", "merge"])
def test_equal_tokens_become_one_without_a_trace(tiny_model, mode):
    """Attention in proportion to the number of tokens makes up for those that became one."""
    model = tiny_model(**options(mode=mode, **DENSE))
    with torch.no_grad():
        model.focusvit.embeddings.position.table[:, 1:] = 0
    pixels = torch.full((1, 3, 32, 32), 0.3)
    found = run(model, pixels).logits
    model.config.keep_ratio = 1.0
    torch.testing.assert_close(found, run(model, pixels).logits, **CLOSE)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_what_needs_a_mask_refuses_attention_that_takes_none(tiny_model, implementation):
    model = tiny_model(**options(mode="fuse"))
    model.config._attn_implementation = implementation
    with pytest.raises(ValueError, match=f"or 'sdpa' with sparsification_mode='fuse'.*got '{implementation}'"):
        state = token_sparsification.TokenState(torch.ones(1, 4), 4, sizes=torch.ones(1, 4))
        token_sparsification.column_bias(state, model.config, torch.float32)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_layers_outside_the_window_keep_their_kernel(tiny_model, pixels, implementation, monkeypatch):
    model = tiny_model(**options(attn_implementation=implementation))
    maps = []
    for layer in model.focusvit.layers:
        original = layer.attention._with_map
        monkeypatch.setattr(
            layer.attention, "_with_map", lambda *args, original=original: maps.append(1) or original(*args)
        )
    run(model, pixels)
    assert len(maps) == 2
    expected = tiny_model(**options(attn_implementation="eager"))
    torch.testing.assert_close(run(model, pixels).logits, run(expected, pixels).logits, **CLOSE)
    if implementation == "eager":
        shown = run(model, pixels, output_attentions=True, output_hidden_states=True)
        assert [tuple(each.shape[2:]) for each in shown.attentions] == [(17, 17), (12, 12), (12, 12), (8, 8)]
        assert [each.shape[1] for each in shown.hidden_states] == [17, 17, 12, 12, 8]


def test_descriptors_are_averaged_over_the_window(tiny_model, pixels):
    model = tiny_model(**options("learned", descriptor_window=None, sparsification_layers=[2, 3]))
    told, used = {}, []
    for number, layer in enumerate(model.focusvit.layers[:3]):
        layer.register_forward_hook(lambda module, args, output, number=number: told.update({number: output[1]}))
    for predictor in model.focusvit.sparsification.predictors:
        predictor.register_forward_hook(lambda module, args, output: used.append(args[1]))
    first = run(model, pixels).kept_tokens[0]
    torch.testing.assert_close(used[0], (told[0] + told[1]) / 2)
    index = first[..., None, None].expand(-1, -1, 6, 4)
    torch.testing.assert_close(used[1], (told[0].gather(1, index) + told[1].gather(1, index) + told[2]) / 3)


# One graph. Dense patches, whose graph is short: superpixels in a graph have tests of their own.


def in_graph(tiny_model, relevance, mode):
    more = {"sparsification_layers": [1, 2], **DENSE}
    return tiny_model(**{**options(relevance, mode, [FULL, LATENT, FULL]), **more})


@pytest.mark.parametrize("way", [("attention", "fuse"), ("learned", "drop")], ids="-".join)
def test_one_graph_gives_the_same_tokens(tiny_model, pixels, way):
    model = in_graph(tiny_model, *way)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    found, expected = run(compiled, pixels), run(model, pixels)
    torch.testing.assert_close(found.logits, expected.logits, **CLOSE)
    for one, other in zip(found.kept_tokens, expected.kept_tokens, strict=True):
        assert torch.equal(one, other)


def test_one_graph_from_pixels_to_the_loss_of_a_learned_choice(tiny_model, pixels, monkeypatch):
    model = in_graph(tiny_model, "learned", "fuse").train()
    monkeypatch.setattr(torch, "rand_like", lambda values, **kwargs: torch.full_like(values, 0.5, **kwargs))
    model(pixels, labels=torch.arange(4)).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    torch.compiler.reset()
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    compiled(pixels, labels=torch.arange(4)).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("relevance", ["learned", "attention"])
def test_layers_computed_again_give_the_same_gradients(tiny_model, pixels, monkeypatch, relevance, reentrant):
    model = tiny_model(**options(relevance)).train()
    monkeypatch.setattr(torch, "rand_like", lambda values, **kwargs: torch.full_like(values, 0.5, **kwargs))
    model(pixels, labels=torch.arange(4)).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(pixels, labels=torch.arange(4)).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


class Answers(torch.nn.Module):
    """Logits and kept tokens, as a graph gives them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        outputs = self.model(pixel_values)
        return outputs.logits, *outputs.kept_tokens


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.parametrize("way", [("attention", "merge"), ("learned", "fuse"), ("random", "drop")], ids="-".join)
def test_exported_graphs_keep_the_same_tokens(tiny_model, pixels, tmp_path, way):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = Answers(in_graph(tiny_model, *way)).eval()
    program = torch.export.export(model, (pixels[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.onnx.export(program, (), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for some in (pixels, pixels[:3]):
        expected, found = run(model, some), run(program.module(), some)
        torch.testing.assert_close(found[0], expected[0], **CLOSE)
        assert all(torch.equal(one, other) for one, other in zip(found[1:], expected[1:], strict=True))
        found = [torch.from_numpy(one) for one in session.run(None, {session.get_inputs()[0].name: some.numpy()})]
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-4)
        assert all(torch.equal(one, other) for one, other in zip(found[1:], expected[1:], strict=True))


# Loading, types, devices.


@pytest.mark.parametrize("variant", FEW)
def test_a_saved_model_gives_the_same_answer_and_takes_another_ratio(tiny_model, pixels, tmp_path, variant):
    model = tiny_model(**variant)
    assert torch.equal(run(saved_and_loaded(model, tmp_path), pixels).logits, run(model, pixels).logits)
    fewer = FocusViTForImageClassification.from_pretrained(tmp_path, keep_ratio=[0.8, 0.5])
    assert [places.shape[1] for places in run(fewer, pixels).kept_tokens] == [12, 8]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", FEW)
def test_half_precision_runs_in_training_and_inference(tiny_model, pixels, variant, dtype):
    model = tiny_model(**{**variant, "initializer_range": 0.05}).to(dtype)
    assert run(model, pixels).logits.dtype == dtype
    outputs = model.train()(pixels, labels=torch.arange(4))
    outputs.loss.backward()
    assert outputs.loss.isfinite()


@pytest.mark.parametrize("variant", FEW)
def test_layers_can_lie_on_other_devices(tiny_model, pixels, variant):
    model = tiny_model(**variant)
    backbone = model.focusvit
    for module in (*backbone.layers, *backbone.sparsification.children(), backbone.layernorm, model.classifier):
        module.to("meta")
        if not isinstance(module, torch.nn.ModuleList):
            module.register_forward_pre_hook(
                lambda module, args: tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args)
            )
    outputs = model(pixels)
    assert outputs.logits.shape == (4, 5)
    assert [tuple(places.shape) for places in outputs.kept_tokens] == [(4, 11), (4, 7)]


def test_other_sizes_keep_their_own_numbers(tiny_model):
    model = tiny_model(**options(patch_pooling="none"))
    for size in ((64, 32), (16, 24)):
        number = size[0] * size[1] // 64
        found = run(model, torch.randn(2, 3, *size)).kept_tokens
        assert [places.shape[1] for places in found] == [int(number * 0.7), int(number * 0.49 + 1e-6)]


# What it costs.


def flops(model, pixels):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixels)
    return counter.get_flop_counts()


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6)], ids=["ViT-Ti", "ViT-S"])
def test_predictors_are_a_twentieth_at_most_and_three_stages_save_a_third(width, heads):
    options = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "patch_pooling": "none",
        "embedding_type": "patch",
        "position_embedding_type": "learned",
        "layer_types": [FULL] * 12,
    }
    stages = {"sparsification_layers": [3, 6, 9], "sparsification_relevance": "learned"}
    with torch.device("meta"):
        dense = FocusViTForImageClassification(FocusViTConfig(**options)).eval()
        model = FocusViTForImageClassification(FocusViTConfig(**options, **stages)).eval()
        pixels = torch.zeros(1, 3, 224, 224)
    predictors = model.focusvit.sparsification
    share = sum(p.numel() for p in predictors.parameters()) / sum(p.numel() for p in model.parameters())
    counted, before = flops(model, pixels), sum(flops(dense, pixels)["Global"].values())
    total = sum(counted["Global"].values())
    name = "FocusViTForImageClassification.focusvit.sparsification"
    assert 0 < share <= 0.05
    assert 0 < sum(counted[name].values()) / total <= 0.05
    # 196 tokens for three layers, then 137, 96 and 67.
    assert total / before < 0.65
    assert [places.shape[1] for places in model(pixels).kept_tokens] == [137, 96, 67]


# Values that are refused.


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sparsification_layers": [0, 3]}, r"sparsification_layers in \[1, 4\).*got \[0, 3\]"),
        ({"sparsification_layers": [4]}, r"in \[1, 4\).*got \[4\]"),
        ({"sparsification_layers": [3, 1]}, r"in ascending order, each once, got \[3, 1\]"),
        ({"sparsification_layers": [2, 2]}, r"in ascending order, each once, got \[2, 2\]"),
        ({"keep_ratio": 0.0}, r"keep_ratio in \(0, 1\], got 0.0"),
        ({"keep_ratio": 1.1}, r"keep_ratio in \(0, 1\], got 1.1"),
        ({"keep_ratio": float("nan")}, r"keep_ratio in \(0, 1\], got nan"),
        ({"keep_ratio": [0.5]}, r"one for each of the 2 sparsification_layers, got \[0.5\]"),
        ({"keep_ratio": [0.5, 0.6]}, r"none larger than the one before, got \[0.5, 0.6\]"),
        ({"keep_ratio": [0.5, 0.0]}, r"in \(0, 1\], none larger than the one before, got \[0.5, 0.0\]"),
        ({"sparsification_relevance": "magic"}, "sparsification_relevance to be one of.*got 'magic'"),
        ({"sparsification_mode": "magic"}, "sparsification_mode to be one of.*got 'magic'"),
        ({"descriptor_window": 0}, "descriptor_window >= 1 or None, got 0"),
        ({"pooling_layer": 4}, r"pooling_layer in \[0, 4\), got 4"),
        ({"pooling_layer": 1, "patch_pooling": "none"}, "'superpixel' or 'grid' with pooling_layer=1, got 'none'"),
        ({"pooling_layer": 1}, r"sparsification_layers in \[2, 4\) after pooling_layer=1.*got \[1, 3\]"),
        (
            {"sparsification_mode": "merge", "sparsification_relevance": "random"},
            "'attention' with .*'merge'.*'random'",
        ),
        ({"sparsification_mode": "merge", "keep_ratio": 0.3}, "at most 8 of 16 tokens in one step, got 12"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(tiny_config, changed, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**{**options(), **changed})
