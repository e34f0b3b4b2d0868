"""LLA, light latent attention: a short query stream attends to itself and to a static context of tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_focusvit import FocusViTConfig
from .token_choice import masked_softmax
from .token_packing import Packing, packed_attention
from .token_relevance import TokenObserver


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
        column_mask (`torch.FloatTensor` of shape `(batch_size, length + context_length)`, *optional*):
            1 for a token that is there, 0 for one that was dropped, which nobody but itself sees.
        observer ([`TokenObserver`], *optional*): Whom the map and the keys are shown.

    Returns the attended states, the map where the implementation gives one, and what the observer makes of it.
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
        column_mask: torch.Tensor | None = None,
        observer: TokenObserver | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        source = hidden_states if context is None else torch.cat((hidden_states, context), dim=1)
        query = self._split_heads(self.q_proj(hidden_states))
        key = self._split_heads(self.k_proj(source))
        value = self._split_heads(self.v_proj(source))
        if column_mask is not None or (observer is not None and observer.needs_map):
            output, weights = self._with_map(query, key, value, attention_mask, column_mask)
            observed = None if observer is None else observer(weights, key, column_mask)
            # As of any other layer, maps are given out where attention is eager.
            shown = weights if self.config._attn_implementation == "eager" else None
            return self.o_proj(output.reshape(hidden_states.shape)), shown, observed
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
        observed = None if observer is None else observer(None, key)
        return self.o_proj(output.reshape(hidden_states.shape)), weights, observed

    def packed(self, states: torch.Tensor, packing: Packing, bias: torch.Tensor | None = None) -> torch.Tensor:
        """
        Self-attention of packed tokens, each to those of its own image.

        Args:
            states (`torch.FloatTensor` of shape `(total, hidden_size)`): Normalised packed tokens.
            packing ([`Packing`]): Which tokens they are.
            bias (`torch.FloatTensor` of shape `(total,)`, *optional*): What attention to each token is raised by.
        """
        shape = (states.shape[0], -1, self.head_dim)
        query, key, value = (each(states).view(shape) for each in (self.q_proj, self.k_proj, self.v_proj))
        dropout = self.attention_dropout if self.training else 0.0
        attended = packed_attention(query, key, value, packing, bias, self.scaling, dropout, self.config.pack_length)
        return self.o_proj(attended.reshape(states.shape))

    def _with_map(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        column_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Attention whose map is there, in float32 and before dropout, whatever kernel the other layers run on.
        `column_mask` `(batch_size, keys)` holds 1 for columns that are seen and 0 for those that only see themselves.
        """
        scores = torch.matmul(query, key.transpose(2, 3)) * self.scaling
        if attention_mask is not None:
            scores = scores + attention_mask
        if column_mask is None:
            weights = scores.softmax(dim=-1, dtype=torch.float32)
        else:
            weights = masked_softmax(scores.float(), column_mask, self_loop=query.shape[2] == key.shape[2])
        rates = nn.functional.dropout(weights, p=self.attention_dropout, training=self.training).to(value.dtype)
        return torch.matmul(rates, value).transpose(1, 2), weights

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)
