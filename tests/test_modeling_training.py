"""Gradients, losses, stochastic depth, precision, and graphs of the model."""

import copy
import itertools

import pytest
import torch

from compiled import check_gradients_of_one_graph
from focusvit_hf import embeddings as embeddings_module
from focusvit_hf.superpixels import slic
from focusvit_hf.transformer_layer import FocusViTDropPath


FULL, LATENT = "full_attention", "latent_attention"
MIXED = {"layer_types": [FULL, LATENT, FULL], "num_hidden_layers": 3}
# What has parameters or a path of its own.
VARIANTS = [
    pytest.param(
        {
            "embedding_type": embedding,
            "position_embedding_type": position,
            "superpixel_assignment": assignment,
            **rest,
        },
        id=f"{embedding}-{position}-{assignment}-{'-'.join(rest) or 'plain'}",
    )
    for embedding, position, assignment, rest in itertools.product(
        ("conv", "patch"), ("dynamic", "learned"), ("soft", "hard"), ({}, {"attention_area_bias": True, **MIXED})
    )
]


def gradients(model, pixels, **options):
    model.zero_grad()
    model(pixels, labels=torch.arange(len(pixels)), **options).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# Gradients.


@pytest.mark.parametrize("variant", [*VARIANTS, {"patch_pooling": "grid"}, {"patch_pooling": "none"}])
def test_every_parameter_has_a_gradient(tiny_model, pixels, variant):
    for name, gradient in gradients(tiny_model(**variant).train(), pixels).items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        # A bias of the keys moves all scores of a query alike: its gradient is zero but for rounding.
        assert gradient.abs().max() > (0 if "k_proj.bias" in name else 1e-7), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_equal_to_the_bit_in_two_runs(tiny_model, pixels, variant, deterministic):
    first, second = (gradients(tiny_model(**variant).train(), pixels) for _ in range(2))
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("variant", [{}, {"attention_area_bias": True, **MIXED}])
def test_checkpointing_gives_the_same_gradients(tiny_model, pixels, variant, use_reentrant):
    model = tiny_model(**variant).train()
    expected = gradients(model, pixels)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = []
    model.focusvit.layers[0].layernorm_before.register_forward_hook(lambda *args: calls.append(1))
    for name, gradient in gradients(model, pixels).items():
        torch.testing.assert_close(gradient, expected[name])
    # The layer ran again for the gradients.
    assert len(calls) == 2


def _layers_again(model, pixels, **options):
    model.gradient_checkpointing_enable(options)
    return model(pixels).logits


def _compiled(model, pixels, run=lambda model, pixels: model(pixels).logits):
    torch.compiler.reset()
    return run(torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager"), pixels)


def _compiled_stem(model, pixels):
    torch.compiler.reset()
    model.focusvit.embeddings.units.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    return model(pixels).logits


def _without_gradients(model, pixels):
    with torch.no_grad():
        return model(pixels).logits


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda model, pixels: model(pixels).logits, id="plain"),
        pytest.param(_without_gradients, id="without gradients"),
        pytest.param(lambda *args: _layers_again(*args, use_reentrant=False), id="layers again"),
        pytest.param(lambda *args: _layers_again(*args, use_reentrant=True), id="layers again, reentrant"),
        pytest.param(_compiled, id="compiled"),
        pytest.param(
            lambda *args: _compiled(*args, lambda *args: _layers_again(*args, use_reentrant=False)),
            id="compiled, layers again",
        ),
        pytest.param(_compiled_stem, id="compiled stem"),
    ],
)
def test_statistics_move_once_a_step(tiny_model, pixels, run):
    model = tiny_model().train()
    stem = model.focusvit.embeddings.units
    plain = copy.deepcopy(stem)
    for step in range(2):
        plain(pixels + step)
        answers = run(model, pixels + step)
        if answers.requires_grad:
            answers.square().sum().backward()
        for name, expected in plain.named_buffers():
            torch.testing.assert_close(stem.get_buffer(name), expected, msg=name)


def test_pixels_have_a_gradient_given_a_map(tiny_model, small_photographs, pixels):
    pixels.requires_grad_()
    model = tiny_model()
    for ids in (None, slic(small_photographs, 16, cell_size=2)):
        (gradient,) = torch.autograd.grad(model(pixels, ids).logits[:, 0].sum(), pixels)
        assert (gradient.abs().sum(dim=(1, 2, 3)) > 0).all()


# Losses.


def test_tables_made_in_inference_mode_serve_later_training(tiny_model, pixels):
    embeddings_module._cell_features.cache_clear()
    model = tiny_model()
    with torch.inference_mode():
        model(pixels)
    assert all(gradient is not None for gradient in gradients(model, pixels).values())


def test_loss_of_a_single_label(tiny_model, pixels):
    targets = torch.tensor([0, 4, 2, 2])
    outputs = tiny_model()(pixels, labels=targets)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, targets))


def test_loss_of_many_labels(tiny_model, pixels):
    targets = torch.randint(0, 2, (4, 5)).float()
    outputs = tiny_model(problem_type="multi_label_classification")(pixels, labels=targets)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, targets)
    torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize("labels", [1, 3])
def test_loss_of_a_regression(tiny_model, pixels, labels):
    targets = torch.randn(4, labels).squeeze(1)
    outputs = tiny_model(problem_type="regression", num_labels=labels)(pixels, labels=targets)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.mse_loss(outputs.logits.squeeze(1), targets))


# Dropout and stochastic depth.


def test_stochastic_depth_drops_branches_of_images_and_keeps_the_mean():
    drop_path = FocusViTDropPath(0.25).train()
    states = torch.rand(20000, 3, 2) + 1
    dropped = drop_path(states)
    gone = (dropped == 0).flatten(1)
    assert torch.equal(gone.any(dim=1), gone.all(dim=1))
    kept = ~gone[:, 0]
    torch.testing.assert_close(dropped[kept], states[kept] / 0.75)
    assert abs(kept.float().mean() - 0.75) < 0.01
    torch.testing.assert_close(dropped.mean(), states.mean(), rtol=0.02, atol=0)
    assert torch.equal(drop_path.eval()(states), states)
    assert torch.equal(FocusViTDropPath(0.0).train()(states), states)


def test_stochastic_depth_grows_with_depth(tiny_model):
    model = tiny_model(drop_path_rate=0.3, num_hidden_layers=4)
    rates = [layer.drop_path.rate for layer in model.focusvit.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert tiny_model(drop_path_rate=0.3, num_hidden_layers=1).focusvit.layers[0].drop_path.rate == 0


@pytest.mark.parametrize("name", ["drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_what_is_dropped_in_training_is_there_in_evaluation(tiny_model, pixels, name):
    model, plain = tiny_model(**{name: 0.5}), tiny_model()
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, plain(pixels).logits)
        model.train()
        assert not torch.equal(model(pixels).logits, model(pixels).logits)
        assert torch.equal(plain.train()(pixels).logits, plain(pixels).logits)


# Precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", [*VARIANTS, {"patch_pooling": "grid"}, {"patch_pooling": "none"}])
def test_half_precision_is_near_float32(tiny_model, pixels, variant, dtype):
    options = {**variant, "initializer_range": 0.05}
    model = tiny_model(**options)
    with torch.no_grad():
        expected = model(pixels).logits
        # Only the weights are rounded: the map is that of the float32 pixels.
        found = model.to(dtype)(pixels).logits
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_under_autocast(tiny_model, pixels, variant):
    model = tiny_model(**variant, initializer_range=0.05).train()
    expected = gradients(model, pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(model, pixels)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        distance = (gradient - expected[name]).norm()
        assert distance <= 0.1 * expected[name].norm() + 0.02, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", [*VARIANTS, {"patch_pooling": "grid"}, {"patch_pooling": "none"}])
def test_the_stream_stays_in_float32_under_autocast(tiny_model, pixels, ids, variant, dtype):
    model = tiny_model(**variant).focusvit
    streams = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, args: streams.append([*args[:2]]))
    given = {} if "patch_pooling" in variant else {"superpixel_ids": ids}
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        answer = model(pixels, **given)
    prefix = model.embeddings.cls_token
    if variant.get("position_embedding_type") == "learned":
        prefix = prefix + model.embeddings.position.table[:, :1]
    assert {states.dtype for pair in streams for states in pair if states is not None} == {torch.float32}
    assert torch.equal(streams[0][0][:, :1], prefix.expand(4, -1, -1))
    if "layer_types" not in variant:
        assert torch.equal(streams[0][0][:, 1:], model.latents.expand(4, -1, -1))
    assert answer.last_hidden_state.isfinite().all()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_an_absent_superpixel_has_finite_gradients_under_autocast(tiny_model, pixels, implementation):
    model = tiny_model(attention_area_bias=True, attn_implementation=implementation, **MIXED).train()
    masks = []
    model.focusvit.layers[0].register_forward_pre_hook(lambda module, args: masks.append(args[2]))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            found = gradients(model, pixels, superpixel_ids=torch.zeros(4, 16, 16, dtype=torch.int64))
        assert masks[-1].to(dtype).isfinite().all()
        for name, gradient in found.items():
            assert gradient.isfinite().all(), name


def test_an_absent_superpixel_has_finite_gradients_in_half_precision(tiny_model, pixels):
    model = tiny_model(attention_area_bias=True, **MIXED).to(torch.bfloat16).train()
    ids = torch.zeros(4, 16, 16, dtype=torch.int64)
    for name, gradient in gradients(model, pixels, superpixel_ids=ids).items():
        assert gradient.isfinite().all(), name


# Attention and graphs.


@pytest.mark.parametrize("variant", VARIANTS)
def test_eager_and_sdpa_agree(tiny_model, pixels, variant):
    eager, sdpa = (gradients(tiny_model(**variant, attn_implementation=name), pixels) for name in ("eager", "sdpa"))
    for name, gradient in eager.items():
        torch.testing.assert_close(sdpa[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", [{}, {"attention_area_bias": True, "superpixel_assignment": "hard", **MIXED}])
def test_one_graph_from_pixels_to_loss(tiny_model, pixels, variant):
    check_gradients_of_one_graph(tiny_model(**variant).train(), pixels)


@pytest.mark.parametrize("changed", [False, True])
def test_one_graph_with_a_frozen_stem(tiny_model, pixels, changed):
    model = tiny_model().train()
    stem = model.focusvit.embeddings.units.requires_grad_(False)
    if changed:
        stem.cells.convolution.register_forward_hook(lambda module, args, output: 2 * output)
    before = copy.deepcopy(dict(stem.named_buffers()))
    expected = gradients(model, pixels)
    torch.compiler.reset()
    model.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    for name, gradient in gradients(model, pixels).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(buffer, before[name]) for name, buffer in stem.named_buffers())


@pytest.mark.parametrize("with_map", [False, True])
def test_one_graph_for_every_batch_size(tiny_model, small_photographs, pixels, with_map):
    model = tiny_model(**MIXED, embedding_type="patch", position_embedding_type="learned")
    ids = slic(small_photographs, 16, cell_size=2)
    inputs = {"pixel_values": pixels, **({"superpixel_ids": ids} if with_map else {})}
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        model, (), kwargs=inputs, dynamic_shapes={name: {0: batch} for name in inputs}
    ).module()
    with torch.no_grad():
        for size in (1, 3, 4):
            part = {name: value[:size] for name, value in inputs.items()}
            torch.testing.assert_close(exported(**part).logits, model(**part).logits, rtol=0, atol=1e-5)
