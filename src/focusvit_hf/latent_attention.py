"""LLA, light latent attention: a short query stream attends to itself and to a static context of tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_focusvit import FocusViTConfig


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(QKᵀ·scaling + mask)·V on `(batch_size, heads, length, head_dim)`; the softmax is taken in float32."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class FocusViTAttention(nn.Module):
    r"""
    Multi-head attention of a query stream to itself and, where given, to a context:
    Q = Z'·W_q; K, V = [Z'; X']·W_k, W_v; softmax(QKᵀ/√d + b)·V·W_o.

    Without a context this is the self-attention of ViT. With the latents as Z and the tokens as X it is LLA, whose
    cost is O((1 + M)(1 + M + K)) where self-attention costs O((1 + K)²).

    Args of `forward`:
        hidden_states (`torch.FloatTensor` of shape `(batch_size, length, hidden_size)`): Z'.
        context (`torch.FloatTensor` of shape `(batch_size, context_length, hidden_size)`, *optional*): X'.
        attention_mask (`torch.FloatTensor` of shape `(batch_size, 1, length, length + context_length)`, *optional*):
            b, the same for every query.
    """

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        source = hidden_states if context is None else torch.cat((hidden_states, context), dim=1)
        query = self._split_heads(self.q_proj(hidden_states))
        key = self._split_heads(self.k_proj(source))
        value = self._split_heads(self.v_proj(source))
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(hidden_states.shape)), weights

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)
