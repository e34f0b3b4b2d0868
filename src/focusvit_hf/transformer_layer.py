"""A layer of the encoder: attention of one kind and an MLP, before each of which everything is normalised."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_focusvit import FocusViTConfig
from .latent_attention import FocusViTAttention
from .token_relevance import TokenObserver
from .transformer_blocks import FocusViTDropPath, FocusViTLayerScale, FocusViTMLP, FocusViTSwiGLU


class FocusViTLayer(GradientCheckpointingLayer):
    r"""
    A layer before which everything is normalised. `"full_attention"`: the layer of ViT. `"latent_attention"`:
    Z ← Z + LLA(LN₁(Z), LN_x(X)); Z ← Z + MLP(LN₂(Z)), and the context X stays as it is.
    """

    def __init__(self, config: FocusViTConfig, layer_type: str, drop_path_rate: float):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if layer_type == "latent_attention":
            self.layernorm_context = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = FocusViTAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp: nn.Module = FocusViTSwiGLU(config) if config.mlp_type == "swiglu" else FocusViTMLP(config)
        scaled = config.layer_scale is not None
        self.attention_scale = FocusViTLayerScale(config) if scaled else None
        self.mlp_scale = FocusViTLayerScale(config) if scaled else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = FocusViTDropPath(drop_path_rate)

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        column_mask: torch.Tensor | None = None,
        observer: TokenObserver | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if context is not None:
            context = self.layernorm_context(context)
        attended, _, observed = self.attention(
            self.layernorm_before(hidden_states), context, attention_mask, column_mask, observer, **kwargs
        )
        hidden_states = hidden_states + self._residual(attended, self.attention_scale)
        hidden_states = hidden_states + self._residual(self.mlp(self.layernorm_after(hidden_states)), self.mlp_scale)
        return hidden_states if observed is None else (hidden_states, observed)

    def _residual(
        self, branch: torch.Tensor, scale: nn.Module | None, images: torch.Tensor | None = None, num_images: int = 0
    ) -> torch.Tensor:
        """What a branch adds. Of packed tokens `(total, hidden_size)`, `images` tells the image of each one."""
        if scale is not None:
            branch = scale(branch)
        # In evaluation both are identities, and for a single image even the call of a module takes time that shows.
        return self.drop_path(self.dropout(branch), images, num_images) if self.training else branch
