"""Parts of a layer beside its attention: MLPs, LayerScale, stochastic depth; and the pooling layer of a backbone."""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_focusvit import FocusViTConfig


class FocusViTDropPath(nn.Module):
    """
    Stochastic depth (Huang et al. 2016): drops a residual branch for a random share `rate` of the images. Of packed
    tokens `(total, hidden_size)` the image of each one is given, and the number of the images.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(
        self, hidden_states: torch.Tensor, images: torch.Tensor | None = None, num_images: int = 0
    ) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return hidden_states
        if images is None:
            kept = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(1 - self.rate)
        else:
            kept = hidden_states.new_empty(num_images, 1).bernoulli_(1 - self.rate)[images]
        return hidden_states * kept / (1 - self.rate)


class FocusViTLayerScale(nn.Module):
    """LayerScale (Touvron et al. 2021): a learned factor for each channel of a residual branch."""

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.factor


class FocusViTMLP(nn.Module):
    """The two-layer MLP of ViT."""

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class FocusViTSwiGLU(nn.Module):
    """SwiGLU (Shazeer 2020), the MLP of the largest DINOv2: down(SiLU(gate(x)) · up(x))."""

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate = nn.functional.silu(self.gate_proj(hidden_states))
        return self.down_proj(gate * self.up_proj(hidden_states))


class FocusViTPooler(nn.Module):
    """The pooling layer of ViT: a linear layer and tanh on the class token, `(batch_size, hidden_size)`."""

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, class_token: torch.Tensor) -> torch.Tensor:
        return self.dense(class_token).tanh()


def keep_variance(*layers: Any) -> None:
    """
    Marks layers that are no residual branches: their initial weights have to keep the variance of their input.

    The mark is on the layers since a model initialises none of its modules that own no parameter themselves.
    """
    for layer in layers:
        layer.keeps_variance = True


def begin_at_zero(norm: Any) -> None:
    """Marks the batch norm that ends a residual branch: its weights begin at zero, so that the branch adds nothing."""
    norm.begins_at_zero = True
