"""What a teacher looks at, made into the `selection_masks` that teach a gate (`select_supervision="teacher"`)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..token_selection import largest_share


@torch.no_grad()
def attended_masks(
    teacher: Any, pixels: torch.Tensor, share: float, size: tuple[int, int]
) -> tuple[torch.Tensor, ModelOutput]:
    """
    The patches that a ViT's class token attends to most in its last layer, over all heads.

    Args:
        teacher (`PreTrainedModel`): A ViT of Transformers, whose sequence ends with its patches.
        pixels (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): The teacher's images.
        share (`float`): The share of the patches that matter, in (0, 1].
        size ((height, width)): Of the masks, in pixels.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, *size)`, 1 where a patch matters, 0 elsewhere; and all that the
        teacher answered.

    Raises:
        ValueError: on a teacher that gives no attention, or has no patches in rows and columns.
    """
    patch = getattr(getattr(teacher, "config", None), "patch_size", None)
    if not isinstance(teacher, PreTrainedModel) or not isinstance(patch, int):
        raise ValueError(
            "expected a ViT of Transformers as the teacher with select_supervision='teacher', got "
            f"{type(teacher).__name__}"
        )
    # Other ways to compute attention keep no map of it.
    teacher.set_attn_implementation("eager")
    answer = teacher(pixel_values=pixels, output_attentions=True)
    attentions = answer.attentions
    rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    if not attentions or attentions[-1].ndim != 4 or attentions[-1].shape[-1] <= rows * columns:
        raise ValueError(
            f"expected a teacher with a class token and {rows} x {columns} patches with select_supervision='teacher', "
            f"got {type(teacher).__name__} with {len(attentions or ())} maps of attention"
        )
    attended = attentions[-1][:, :, 0, -rows * columns :].float().mean(dim=1)
    chosen = largest_share(attended, share).view(-1, 1, rows, columns)
    return F.interpolate(chosen, size, mode="nearest").squeeze(1), answer
