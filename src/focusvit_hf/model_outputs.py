"""What the models return."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import ModelOutput


class TokenStage(NamedTuple):
    """
    The tokens at one depth, before the last norm: one for each region of a map of the cells.

    Attributes:
        tokens (`torch.FloatTensor` of shape `(batch_size, T, hidden_size)`): The tokens.
        latents (`torch.FloatTensor` of shape `(batch_size, prefix + M, hidden_size)`, *optional*):
            Behind a latent layer, which leaves the tokens as they are: class token and latents, which have learned.
        region_ids (`torch.LongTensor` of shape `(batch_size or 1, height / cell, width / cell)`):
            Region of each cell, in [0, T).
    """

    tokens: torch.Tensor
    latents: torch.Tensor | None
    region_ids: torch.Tensor


@dataclass
class FocusViTModelOutput(BaseModelOutputWithPooling):
    r"""
    patch_mean (`torch.FloatTensor` of shape `(batch_size, hidden_size)`, *optional*):
        With `classifier_pooling="cls_patch_mean"` the mean of the final tokens, weighted by the area they cover, or of
        the latents where the last layer is a latent one.
    kept_tokens (`tuple` of `torch.LongTensor` of shape `(batch_size, k_s)`, *optional*):
        With `sparsification_layers` which of the N tokens stay after each stage, in ascending order. Of tokens that
        were merged it is the one that the others joined; a fused token is none of them. None where `kept_masks` are
        given. An item of the outputs in training and where there are labels, else an attribute alone.
    kept_masks (`tuple` of `torch.FloatTensor` of shape `(batch_size, N)`, *optional*):
        In training with a learned relevance, in which no token leaves: 1 for tokens that stay after each stage, 0 for
        dropped ones. They carry the gradients of the choice.
    token_states (`torch.FloatTensor` of shape `(batch_size, T, hidden_size)`, *optional*):
        With `sparsification_layers` and a last layer of full attention the final states of the tokens of
        `kept_tokens[-1]`, or of all N where `kept_masks` are given: what a dense teacher's tokens are compared with.
    selected_tokens (`tuple` of `torch.BoolTensor` of shape `(batch_size, N)`, *optional*):
        Which of the N tokens each layer of select-and-pack attention selected. An item or an attribute as
        `kept_tokens`.
    selection_loss (`torch.FloatTensor` of shape `()`, *optional*):
        What the gates of those layers add to the loss, its weight included: where `selection_masks` are given, and in
        training with `select_supervision` `"budget"` or `"saliency"`.
    token_stages (`tuple` of [`TokenStage`], *optional*):
        With `output_stages` the tokens before the first layer and after each one.
    units (`torch.FloatTensor` of shape `(batch_size, N, channels)`, *optional*):
        With `output_stages` what was pooled: features of the stem's cells, in reading order, or linear patches.
    """

    patch_mean: torch.Tensor | None = None
    kept_tokens: tuple[torch.Tensor, ...] | None = None
    kept_masks: tuple[torch.Tensor, ...] | None = None
    token_states: torch.Tensor | None = None
    selected_tokens: tuple[torch.Tensor, ...] | None = None
    selection_loss: torch.Tensor | None = None
    token_stages: tuple[TokenStage, ...] | None = None
    units: torch.Tensor | None = None


@dataclass
class FocusViTImageClassifierOutput(ImageClassifierOutput):
    r"""
    aux_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
        What a learned choice of tokens and the gates of select-and-pack attention add to the loss, their weights
        included; part of `loss` where that is given.
    kept_tokens, kept_masks, token_states, selected_tokens: As of [`FocusViTModelOutput`].
    """

    aux_loss: torch.Tensor | None = None
    kept_tokens: tuple[torch.Tensor, ...] | None = None
    kept_masks: tuple[torch.Tensor, ...] | None = None
    token_states: torch.Tensor | None = None
    selected_tokens: tuple[torch.Tensor, ...] | None = None


def tell_of_layers(outputs: ModelOutput, told: Mapping[str, tuple[Any, ...] | None], as_items: bool) -> None:
    """
    Puts into the outputs of a model what has an entry for each layer or stage, by name; None is left out.

    Who splits a batch into its images, as pipelines do, takes the first axis of every item of the outputs for the
    images, but for `hidden_states` and `attentions`. So these become items only where losses are computed, which the
    items reach through any wrapper around the model, and attributes alone elsewhere.

    Args:
        outputs (`ModelOutput`): Changed in place.
        told (mapping): The entries, whose names are fields of `outputs`.
        as_items (`bool`): Whether they become items, too.
    """
    for name, entries in told.items():
        if entries is None:
            continue
        if as_items:
            outputs[name] = entries
        else:
            # The own method of `ModelOutput` would make an item of it.
            object.__setattr__(outputs, name, entries)
