"""A short fine-tune of a model that works on fewer tokens than the dense ViT that it was made of."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import get_cosine_schedule_with_warmup

from experiments.micro.data import Examples
from experiments.micro.training import Recipe, batches, model_inputs
from focusvit_hf import FocusViTForImageClassification
from focusvit_hf.training.distillation import distillation_loss
from focusvit_hf.training.objective import parameter_groups, require_finite, soft_cross_entropy
from focusvit_hf.training.sparsification import (
    is_predictor,
    rest_backbone,
    token_distillation_loss,
    with_predictor_rate,
)


@dataclass(frozen=True)
class Plan:
    """
    How a row is tuned; the same for all rows of a table.

    Args:
        epochs (`int`), batch_size (`int`), learning_rate (`float`), weight_decay (`float`), label_smoothing (`float`):
            AdamW, whose rate rises for a twentieth of the steps and falls as a cosine to 0.
        predictor_rate (`float`): The learning rate of predictors, which start new.
        frozen_epochs (`int`): Epochs in which only predictors learn, where there are any.
        crop_scale (pair of `float`), jitter (`float`): Of the augmentation.
        teacher_weight, token_weight (`float`):
            Of the dense ViT's answers and of its tokens in the loss, with a teacher; the tokens' where tokens leave.
        max_grad_norm (`float`): Largest norm of the gradients.
        precision (`str`): `"float32"`, or `"bfloat16"` (autocast); a model is measured in float32.
    """

    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    predictor_rate: float = 1e-3
    frozen_epochs: int = 1
    crop_scale: tuple[float, float] = (0.5, 1.0)
    jitter: float = 0.3
    teacher_weight: float = 0.5
    token_weight: float = 0.5
    max_grad_norm: float = 1.0
    precision: str = "float32"


def tune(
    model: FocusViTForImageClassification,
    teacher: FocusViTForImageClassification | None,
    plan: Plan,
    seed: int,
    examples: Examples,
    device: torch.device,
) -> list[dict[str, float]]:
    """
    Trains a model where it stands, and leaves it in evaluation mode.

    Args:
        model, teacher ([`FocusViTForImageClassification`]): The row, and the dense ViT where it teaches.
        plan ([`Plan`]), seed (`int`): Of the images' order and augmentation, and of the draws of a learned choice.
        examples ([`Examples`]): To learn from.
        device (`torch.device`): Where.

    Returns:
        `list[dict]`: For each epoch its mean loss, and seconds since the beginning.

    Raises:
        ValueError: where the loss is not finite.
    """
    torch.manual_seed(seed)
    on_device(model, device).train()
    # SDPA's backward pass in bfloat16 is slow on a CPU.
    attention = model.config._attn_implementation
    if plan.precision == "bfloat16":
        model.set_attn_implementation("eager")
    groups = parameter_groups(model, plan.weight_decay)
    optimizer = torch.optim.AdamW(with_predictor_rate(groups, model, plan.predictor_rate), lr=plan.learning_rate)
    steps = len(examples) // plan.batch_size
    scheduler = get_cosine_schedule_with_warmup(optimizer, round(steps * plan.epochs / 20), steps * plan.epochs)
    learned = any(is_predictor(name) for name, _ in model.named_parameters())
    history, begin = [], time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(plan.epochs):
        losses = []
        for loss in _losses(model, teacher, plan, examples, device, generator):
            optimizer.zero_grad()
            loss.backward()
            if learned and epoch < plan.frozen_epochs:
                rest_backbone(model)
            torch.nn.utils.clip_grad_norm_(model.parameters(), plan.max_grad_norm)
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        require_finite(mean, (epoch + 1) * steps)
        history.append({"loss": mean, "seconds": round(time.perf_counter() - begin, 1)})
    model.set_attn_implementation(attention)
    model.eval()
    return history


def _losses(
    model: FocusViTForImageClassification,
    teacher: FocusViTForImageClassification | None,
    plan: Plan,
    examples: Examples,
    device: torch.device,
    generator: torch.Generator,
) -> Iterator[torch.Tensor]:
    """The loss of each batch of an epoch."""
    augmentation = Recipe(batch_size=plan.batch_size, crop_scale=plan.crop_scale, jitter=plan.jitter)
    for images, labels in batches(examples, model.config, augmentation, generator):
        inputs = moved(model_inputs(model.config, images), device)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bfloat16")
        with autocast:
            outputs: Any = model(**inputs)
        loss = soft_cross_entropy(outputs.logits, labels.to(device), plan.label_smoothing)
        if teacher is not None:
            with torch.no_grad(), autocast:
                states = teacher.focusvit(inputs["pixel_values"])
                answers = teacher.classifier(states.pooler_output)
            told = distillation_loss(outputs.logits, answers, temperature=1.0)
            loss = (1 - plan.teacher_weight) * loss + plan.teacher_weight * told
            if outputs.token_states is not None:
                tokens = states.last_hidden_state[:, model.config.num_prefix_tokens :]
                loss = loss + plan.token_weight * token_distillation_loss(outputs, tokens)
        if outputs.aux_loss is not None:
            loss = loss + outputs.aux_loss
        yield loss


def on_device(model: Any, device: torch.device) -> Any:
    """The model, moved where it stands."""
    return model.to(device)


def moved(inputs: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Inputs on a device."""
    return {name: value.to(device) for name, value in inputs.items()}
