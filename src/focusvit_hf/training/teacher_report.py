"""What a student has made of its teacher: accuracy and measured images per second of both, and their agreement."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .distillation import Distillation


@torch.no_grad()
def compare_with_teacher(
    model: nn.Module, distillation: Distillation, batches: Iterable[Mapping[str, torch.Tensor]], device: torch.device
) -> dict[str, float]:
    """
    Classifies images by student and teacher in turn, both in float32, and times both from image tensors to logits.

    The student computes its superpixels itself where it can, since a user pays for them too; the teacher's time holds
    its own normalisation and resizing. The first batch goes through both once before anything is timed.

    Args:
        model ([`FocusViTForImageClassification`]): The student, as it was saved.
        distillation ([`Distillation`]): The teacher. A module is left in float32.
        batches: Of the evaluation's collator: `pixel_values`, `labels` and, where they are, `superpixel_ids`.
        device (`torch.device`): Where both run.

    Returns:
        `dict[str, float]`: `images`; `batch_size`, the largest; `threads`; for `teacher` and `student` each
        `_accuracy` in 0..1 and `_images_per_second` (the median over full batches); `agreement`, the share of images,
        in 0..1, that both give the same class; `speed_up`, the ratio of the speeds.

    Raises:
        ValueError: If there are no images.
    """
    model.eval().to(device=device, dtype=torch.float32)
    if isinstance(distillation.teacher, nn.Module):
        distillation.teacher.float()
    own = getattr(model.config, "superpixel_method", "torch") == "torch"

    def student(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**inputs).logits

    def teacher(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return distillation.teacher_logits(inputs["pixel_values"])

    runs: dict[str, Callable[[dict[str, torch.Tensor]], torch.Tensor]] = {"student": student, "teacher": teacher}
    times: dict[str, list[tuple[int, float]]] = {"student": [], "teacher": []}
    right = {"student": 0, "teacher": 0}
    agreed = count = 0
    for batch in batches:
        inputs = {name: value.to(device) for name, value in batch.items()}
        labels = inputs.pop("labels")
        if own:
            inputs.pop("superpixel_ids", None)
        if count == 0:
            for classify in runs.values():
                classify(inputs)
        choices: dict[str, torch.Tensor] = {}
        for name, classify in runs.items():
            begin = _now(device)
            logits = classify(inputs)
            times[name].append((len(labels), _now(device) - begin))
            choices[name] = logits.argmax(dim=1)
            right[name] += int((choices[name] == labels).sum())
        agreed += int((choices["student"] == choices["teacher"]).sum())
        count += len(labels)
    if count == 0:
        raise ValueError("expected images to compare student and teacher on, got none")
    largest = max(size for size, _ in times["student"])
    speeds = {
        name: statistics.median(size / seconds for size, seconds in measured if size == largest)
        for name, measured in times.items()
    }
    return {
        "images": count,
        "batch_size": largest,
        "threads": torch.get_num_threads(),
        "agreement": agreed / count,
        "speed_up": speeds["student"] / speeds["teacher"],
        **{f"{name}_accuracy": hits / count for name, hits in right.items()},
        **{f"{name}_images_per_second": speed for name, speed in speeds.items()},
    }


def _now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def report_table(report: Mapping[str, Any]) -> str:
    """A report of [`compare_with_teacher`] as a table of text."""
    rows = [
        f"{'':10}{'accuracy':>10}{'images/s':>12}",
        *(
            f"{name:10}{report[f'{name}_accuracy']:>10.4f}{report[f'{name}_images_per_second']:>12.1f}"
            for name in ("teacher", "student")
        ),
        f"The student is {report['speed_up']:.2f} times as fast and agrees with its teacher on "
        f"{100 * report['agreement']:.1f} % of {report['images']} images "
        f"(batches of {report['batch_size']}, {report['threads']} threads).",
    ]
    return "\n".join(rows)
