"""Attention and the latent layer against plain loops over heads, queries and keys."""

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

import reference
from focusvit_hf.latent_attention import FocusViTAttention
from focusvit_hf.transformer_layer import FocusViTLayer


QUERIES, CONTEXT = 5, 9


def make_attention(tiny_config, implementation="eager", **overrides):
    torch.manual_seed(0)
    attention = FocusViTAttention(tiny_config(attn_implementation=implementation, **overrides)).eval()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return attention


def arrays(module):
    return {name: parameter.detach().double().numpy() for name, parameter in module.named_parameters()}


def bias_of(length):
    """(2, 1, QUERIES, length), the same for every query."""
    return torch.randn(2, 1, 1, length).expand(-1, -1, QUERIES, -1)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_context", [False, True])
def test_attention_equals_plain_loops(tiny_config, with_context, with_bias, qkv_bias):
    attention = make_attention(tiny_config, qkv_bias=qkv_bias)
    states, context = torch.randn(2, QUERIES, 32), torch.randn(2, CONTEXT, 32)
    source = torch.cat((states, context), dim=1) if with_context else states
    mask = bias_of(source.shape[1]) if with_bias else None
    with torch.no_grad():
        output, weights, _ = attention(states, context if with_context else None, mask)
    assert weights.shape == (2, 4, QUERIES, source.shape[1])
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, QUERIES))
    for index in range(2):
        bias = mask[index, 0, 0].double().numpy() if with_bias else None
        expected = reference.attention(
            states[index].double().numpy(), source[index].double().numpy(), arrays(attention), 4, bias
        )
        np.testing.assert_allclose(output[index], expected, atol=1e-5)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_context", [False, True])
def test_sdpa_equals_eager(tiny_config, with_context, with_bias):
    states = torch.randn(2, QUERIES, 32)
    context = torch.randn(2, CONTEXT, 32) if with_context else None
    mask = bias_of(QUERIES + (CONTEXT if with_context else 0)) if with_bias else None
    with torch.no_grad():
        expected, *_ = make_attention(tiny_config)(states, context, mask)
        output, *_ = make_attention(tiny_config, "sdpa")(states, context, mask)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_context", [False, True])
def test_flex_attention_equals_eager(tiny_config, with_context, monkeypatch):
    # Its plain twin: to compile the kernel takes long.
    monkeypatch.setattr(
        "transformers.integrations.flex_attention.compile_friendly_flex_attention",
        lambda *args, training=False, **options: flex_attention(*args, **options),
    )
    states = torch.randn(2, QUERIES, 32)
    context = torch.randn(2, CONTEXT, 32) if with_context else None
    with torch.no_grad():
        expected, *_ = make_attention(tiny_config)(states, context)
        output, *_ = make_attention(tiny_config, "flex_attention")(states, context)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_a_bias_of_log_n_counts_a_token_n_times(tiny_config):
    attention = make_attention(tiny_config)
    states, context = torch.randn(1, QUERIES, 32), torch.randn(1, 3, 32)
    repeated = torch.cat((context, context[:, :1], context[:, :1]), dim=1)
    bias = torch.zeros(1, 1, QUERIES, QUERIES + 3)
    bias[..., QUERIES] = np.log(3)
    with torch.no_grad():
        torch.testing.assert_close(attention(states, context, bias)[0], attention(states, repeated)[0])


def test_attention_dropout_acts_in_training_only(tiny_config):
    attention = make_attention(tiny_config, attention_probs_dropout_prob=0.5)
    states = torch.randn(1, QUERIES, 32)
    assert torch.equal(attention(states)[0], attention(states)[0])
    attention.train()
    assert not torch.equal(attention(states)[0], attention(states)[0])


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_latent_layer_equals_its_definition(tiny_config, with_bias):
    torch.manual_seed(0)
    layer = FocusViTLayer(tiny_config(attn_implementation="eager"), "latent_attention", 0.0).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    states, context = torch.randn(2, QUERIES, 32), torch.randn(2, CONTEXT, 32)
    before = context.clone()
    mask = bias_of(QUERIES + CONTEXT) if with_bias else None
    with torch.no_grad():
        output = layer(states, context, mask)
        queries = layer.layernorm_before(states)
        source = torch.cat((queries, layer.layernorm_context(context)), dim=1)
        for index in range(2):
            bias = mask[index, 0, 0].double().numpy() if with_bias else None
            attended = reference.attention(
                queries[index].double().numpy(), source[index].double().numpy(), arrays(layer.attention), 4, bias
            )
            expected = states[index] + torch.from_numpy(attended).float()
            expected = expected + layer.mlp(layer.layernorm_after(expected))
            torch.testing.assert_close(output[index], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(context, before)


def test_the_mlp_of_a_latent_layer_sees_the_queries_alone(tiny_config):
    layer = FocusViTLayer(tiny_config(), "latent_attention", 0.0)
    seen = []
    layer.mlp.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape)))
    layer(torch.randn(2, QUERIES, 32), torch.randn(2, CONTEXT, 32))
    assert seen == [(2, QUERIES, 32)]


def test_a_full_layer_has_no_norm_of_a_context(tiny_config):
    layer = FocusViTLayer(tiny_config(), "full_attention", 0.0)
    assert not hasattr(layer, "layernorm_context")
    assert layer(torch.randn(2, 7, 32)).shape == (2, 7, 32)
