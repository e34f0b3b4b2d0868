"""What training minimises, and which parameters weight decay acts on."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


# Learned vectors and tables, which DeiT trains without weight decay: tokens, latents, position table.
NO_DECAY_NAMES = ("cls_token", "distillation_token", "register_tokens", "latents", "position.table")


def soft_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0, reduction: str = "mean"
) -> torch.Tensor:
    """
    Cross entropy for class numbers and for class probabilities (mixup, cutmix), in fp32.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Scores before the softmax.
        labels (`torch.LongTensor` of shape `(batch_size,)` or `torch.FloatTensor` like `logits`):
            Class numbers, or probabilities that sum to one in each row.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of the target, in 0..1, spread evenly over all classes (Szegedy et al. 2016, section 7).
        reduction (`str`, *optional*, defaults to `"mean"`): As in `torch.nn.functional.cross_entropy`.

    Returns:
        `torch.FloatTensor`: The mean over the batch (a scalar), or one value an image for `reduction="none"`.

    Raises:
        ValueError: If the labels fit neither form.
    """
    hard = labels.ndim == 1 and not labels.is_floating_point()
    soft = labels.shape == logits.shape and labels.is_floating_point()
    if not hard and not soft:
        raise ValueError(
            f"expected integer labels of shape {(logits.shape[0],)} or floating point labels of shape "
            f"{tuple(logits.shape)}, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    target = labels.float() if soft else labels
    return F.cross_entropy(logits.float(), target, label_smoothing=label_smoothing, reduction=reduction)


def require_probabilities(labels: torch.Tensor) -> None:
    """
    Checks soft labels of one class per image.

    Args:
        labels (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Probabilities.

    Raises:
        ValueError: If a row does not sum to one, as where an image has several classes.
    """
    sums = labels.float().sum(dim=-1)
    # Probabilities of half precision sum to one within about a hundredth.
    wrong = ((sums - 1).abs() > 0.02).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise ValueError(
            "expected soft labels whose rows sum to one, or config.problem_type='multi_label_classification' for "
            f"several classes per image, got a sum of {float(sums[index]):g} in row {index}"
        )


def require_finite(loss: float, step: int) -> None:
    """ValueError where training has diverged."""
    if not math.isfinite(loss):
        raise ValueError(f"expected a finite loss, got {loss} at step {step}; a lower --learning_rate may help")


def no_decay(name: str, parameter: torch.Tensor) -> bool:
    """Whether DeiT (Touvron et al. 2021) keeps weight decay off a parameter: vectors, tokens and position tables."""
    return parameter.ndim <= 1 or name.endswith(NO_DECAY_NAMES)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of `model` for an optimiser: those with weight decay, and those without, see [`no_decay`]."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[no_decay(name, parameter)]["params"].append(parameter)
    return groups
