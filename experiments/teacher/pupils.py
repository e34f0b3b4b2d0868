"""What learns from the teacher: a FocusViT with heads that are thrown away, or a peer of Transformers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from experiments.frontier.peers import steady_batch_norms
from experiments.teacher.bank import NUM_AXES, NUM_LOGITS, PLACES
from experiments.teacher.recipe import Recipe
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification
from focusvit_hf.benchmark.subjects import find_subject


NAMES = (
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
)


class Pupil(nn.Module):
    """The model with two heads that are thrown away: 1,000 classes, and the teacher's map."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        labels: dict[str, Any] = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
        config = FocusViTConfig(**recipe.config, **labels)
        # SDPA's backward pass is slow in bfloat16 on a CPU.
        self.model = FocusViTForImageClassification._from_config(config, attn_implementation="eager")
        self.thousand = nn.Linear(self.model.classifier.in_features, NUM_LOGITS)
        self.guided = nn.Linear(config.hidden_size, NUM_AXES) if recipe.guidance else None
        self.layer = recipe.guided_layer

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Ten logits, 1,000 logits, and the map `(batch_size, 49, 64)` where it is guided."""
        outputs = self.model.focusvit(pixels, output_hidden_states=self.guided is not None)
        features = outputs.pooler_output
        if outputs.patch_mean is not None:
            features = torch.cat((features, outputs.patch_mean), dim=1)
        logits, thousand = self.model.classifier(features), self.thousand(features)
        if self.guided is None:
            return logits, thousand, None
        tokens = outputs.hidden_states[self.layer][:, 1:]
        side, places = math.isqrt(tokens.shape[1]), math.isqrt(PLACES)
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        if side != places:
            grid = nn.functional.adaptive_avg_pool2d(grid, places)
        return logits, thousand, self.guided(grid.flatten(2).transpose(1, 2))


class Peer(nn.Module):
    """
    A network of Transformers, untrained, whose head has the ten classes and, after them, the teacher's 1,000.

    Args:
        recipe (`Recipe`): Names it; it is built for the images of the last stage.
    """

    def __init__(self, recipe: Recipe):
        super().__init__()
        subject = find_subject(recipe.peer)
        config = subject.configure(recipe.size(recipe.epochs - 1))
        config.num_labels = len(NAMES) + NUM_LOGITS
        self.model = subject.model_class(config).to(memory_format=torch.channels_last)
        steady_batch_norms(self.model)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Ten logits, 1,000 logits, and no map."""
        logits = self.model(pixels).logits
        return logits[:, : len(NAMES)], logits[:, len(NAMES) :], None
