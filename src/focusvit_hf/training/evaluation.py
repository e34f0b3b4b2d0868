"""Accuracy: the metric of training, and the measurement of a saved model as its users run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from transformers import EvalPrediction, pipeline

from .arguments import DataTrainingArguments
from .data import ImageDataset


# The scores that are asked for: those of the first five classes, or of all where there are fewer.
LARGEST_K = 5


class TopKAccuracy(evaluate.Metric):
    """
    Top-1 and top-5 accuracy, as an `evaluate.Metric` that needs no network.

    `compute(predictions=..., references=...)` takes class numbers ranked best first, one list an image, and the true
    class numbers; it returns `{"accuracy": a}`, and `"top_5_accuracy"` beside it where five ranks were given, both in
    0..1.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the images whose true class is ranked first, and among the first five.",
            citation="",
            inputs_description="predictions: class numbers, best first; references: the true class numbers.",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: Sequence[Sequence[int]], references: Sequence[int]) -> dict[str, float]:
        ranked = np.asarray(predictions)
        hits = ranked == np.asarray(references)[:, None]
        result = {"accuracy": float(hits[:, 0].mean())}
        if ranked.shape[1] >= 5:
            result["top_5_accuracy"] = float(hits[:, :5].any(axis=1).mean())
        return result


def ranked(logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """
    What is kept of the logits for the metric: the class numbers, best first.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Scores of the classes.
        labels: Has no part in it; Trainer hands it over.

    Returns:
        `torch.LongTensor` of shape `(batch_size, min(5, num_labels))`.
    """
    return logits.topk(min(LARGEST_K, logits.shape[-1])).indices


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """[`TopKAccuracy`] of what [`ranked`] kept, as Trainer asks for it."""
    metric = TopKAccuracy(keep_in_memory=True)
    return metric.compute(predictions=prediction.predictions, references=prediction.label_ids)


def measure(
    folder: str | Path, split: Any, data_args: DataTrainingArguments, batch_size: int, device: torch.device
) -> dict[str, float]:
    """
    Measures a saved model as its users run it: images through `pipeline`.

    The images are decoded as in training, before the pipeline sees them: its own decoding cuts 16-bit levels off at
    255 and drops transparency. `evaluate`'s evaluator is not used: `evaluate` 0.4.6 does not work with a pipeline of
    transformers 5, since it asks for `transformers.TFPreTrainedModel`.

    Args:
        folder (`str`): Folder of the model and its image processor.
        split (`datasets.Dataset`): The images and labels.
        batch_size (`int`): Images in a forward pass.
        device (`torch.device`): Where the model runs, in fp32.

    Returns:
        `dict[str, float]`: accuracy and, with five classes or more, top_5_accuracy, in 0..1.
    """
    classifier: Any = pipeline(
        "image-classification", model=str(folder), batch_size=batch_size, device=device, dtype=torch.float32
    )
    numbers = classifier.model.config.label2id
    rows = ImageDataset(split, data_args.image_column_name)
    images = (rows[index][data_args.image_column_name] for index in range(len(rows)))
    answers = classifier(images, top_k=min(LARGEST_K, len(numbers)))
    ranks = [[numbers[entry["label"]] for entry in answer] for answer in answers]
    truths = split[data_args.label_column_name]
    return TopKAccuracy(keep_in_memory=True).compute(predictions=ranks, references=list(truths))
