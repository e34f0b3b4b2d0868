"""Accuracy through `evaluate`, without a network."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from evaluate.evaluator import ImageClassificationEvaluator


class TopKAccuracy(evaluate.Metric):
    """
    Top-1 and top-5 accuracy, as an `evaluate.Metric` that needs no network.

    `compute(predictions=..., references=...)` takes class numbers ranked best first, one list a picture, and the true
    class numbers; it returns `{"accuracy": a}`, and `"top_5_accuracy"` beside it where five ranks were given, both in
    0..1.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the pictures whose true class is ranked first, and among the first five.",
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


class RankedImageClassificationEvaluator(ImageClassificationEvaluator):
    """
    `evaluate`'s image classification evaluator, handing the metric the ranked classes of a transformers pipeline.

    `evaluate` 0.4.6 hands over the first class only, and its `prepare_pipeline` fails with transformers 5: it asks for
    `transformers.TFPreTrainedModel`, which is gone.
    """

    def prepare_pipeline(self, model_or_pipeline: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the pipeline itself; ValueError for anything else than an image classification pipeline."""
        if getattr(model_or_pipeline, "task", None) != self.task:
            raise ValueError(f"expected a pipeline for {self.task!r}, got {type(model_or_pipeline).__name__}")
        return model_or_pipeline

    def predictions_processor(
        self, predictions: Sequence[Sequence[Mapping[str, Any]]], label_mapping: Mapping[str, int]
    ) -> dict[str, list[list[int]]]:
        """Turns the pipeline's label names, best first, into class numbers."""
        return {"predictions": [[label_mapping[entry["label"]] for entry in ranked] for ranked in predictions]}
