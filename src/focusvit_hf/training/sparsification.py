"""Training models whose tokens leave on the way: what a dense teacher's tokens add, rates and rest of the backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.utils import ModelOutput


# Where the parameters of a learned choice of tokens lie in a model: SPOT's predictors and SPA's gates.
PREDICTORS = (".sparsification.predictors.", ".gate.")


def is_predictor(name: str) -> bool:
    """Whether a parameter belongs to what predicts which tokens matter."""
    return any(part in f".{name}" for part in PREDICTORS)


def with_aux_loss(loss: torch.Tensor, outputs: Any) -> torch.Tensor:
    """A loss and, where there is one, what the model itself adds to it (`aux_loss` of its outputs)."""
    added = outputs.get("aux_loss") if isinstance(outputs, Mapping) else None
    return loss if added is None else loss + added.to(loss)


def require_predictors(model: nn.Module, rate: float | None, frozen_epochs: float) -> None:
    """Raises ValueError where options of predictors are given for a model that has none."""
    if rate is None and not frozen_epochs:
        return
    if not any(is_predictor(name) for name, _ in model.named_parameters()):
        raise ValueError(
            "expected a model with sparsification_relevance='learned' or layers of select-and-pack attention for "
            "--predictor_learning_rate and --frozen_epochs, got one that predicts nothing of its tokens"
        )


def token_distillation_loss(outputs: ModelOutput, teacher_tokens: torch.Tensor) -> torch.Tensor:
    """
    How far the tokens that stayed are from the same tokens of a dense teacher: the mean of their squared differences,
    channel by channel (Rao et al. 2021, equation 8).

    Args:
        outputs (`ModelOutput`): What a model with `sparsification_layers` returns: `token_states`, with `kept_tokens`,
            or in training with a learned choice with `kept_masks`.
        teacher_tokens (`torch.FloatTensor` of shape `(batch_size, N, hidden_size)`): The teacher's final states.

    Raises:
        ValueError: when the model gives no states of tokens, or the teacher has others.
    """
    states = outputs.get("token_states")
    if states is None:
        raise ValueError("expected a model with sparsification_layers that ends in full attention, got another")
    # Outside of training the places are an attribute and no item.
    masks, kept = outputs.get("kept_masks"), getattr(outputs, "kept_tokens", None)
    teacher_tokens = teacher_tokens.detach()
    if masks is None and kept is not None:
        index = kept[-1][..., None].expand(-1, -1, teacher_tokens.shape[-1])
        teacher_tokens = teacher_tokens.gather(1, index)
    if teacher_tokens.shape != states.shape:
        raise ValueError(
            f"expected a teacher's tokens of shape {tuple(states.shape)}, as the student's, got "
            f"{tuple(teacher_tokens.shape)}"
        )
    distances = (states.float() - teacher_tokens.float()).square().mean(dim=2)
    if masks is None:
        return distances.mean()
    # The choice is not to be made by how well a token is imitated.
    there = masks[-1].detach().float()
    return (distances * there).sum() / there.sum().clamp(min=1)


def with_predictor_rate(groups: Iterable[dict[str, Any]], model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """
    Groups of parameters for an optimiser, in which the predictors have a learning rate of their own.

    Args:
        groups (iterable of `dict`): Groups of an optimiser, see `torch.optim.Optimizer`.
        model (`nn.Module`): Whose parameters they are.
        rate (`float`): The predictors' learning rate.
    """
    own = {id(parameter) for name, parameter in model.named_parameters() if is_predictor(name)}
    split = []
    for group in groups:
        others = [parameter for parameter in group["params"] if id(parameter) not in own]
        predictors = [parameter for parameter in group["params"] if id(parameter) in own]
        if others:
            split.append({**group, "params": others})
        if predictors:
            split.append({**group, "params": predictors, "lr": rate})
    return split


def rest_backbone(model: nn.Module) -> None:
    """Forgets the gradients of all but the predictors, so that an optimiser leaves the rest as it is."""
    for name, parameter in model.named_parameters():
        if not is_predictor(name):
            parameter.grad = None


class FrozenBackbone(TrainerCallback):
    """
    For the first epochs only the predictors learn: what they choose is no use before, and would spoil a trained model.

    Args:
        epochs (`float`): How many.
    """

    def __init__(self, epochs: float):
        self.epochs = epochs

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Just before each step of the optimiser."""
        if (state.epoch or 0.0) < self.epochs:
            rest_backbone(model)
