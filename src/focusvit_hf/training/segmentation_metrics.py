"""Figures of segmentation, summed up image by image, so that no map is kept: overlap, pixels, border."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


# Pixels by which a border may be off, up, down, sideways and diagonally.
TOLERANCE = 2


def confusion_matrix(found: Tensor, truth: Tensor, num_labels: int, ignore_index: int) -> Tensor:
    """
    How many pixels of each class were taken for which.

    Args:
        found, truth (`torch.LongTensor` of the same shape): Classes, in the truth perhaps `ignore_index`.

    Returns:
        `torch.LongTensor` of shape `(num_labels, num_labels)`: a row for each true class.
    """
    counted = truth != ignore_index
    pairs = truth[counted] * num_labels + found[counted]
    return torch.bincount(pairs, minlength=num_labels**2).view(num_labels, num_labels)


def overlaps(matrix: Tensor) -> Tensor:
    """IoU of each class from a [`confusion_matrix`], float64; NaN for a class that neither side has."""
    hits = matrix.diagonal().double()
    return hits / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())


def borders(labels: Tensor, ignored: Tensor) -> Tensor:
    """
    The pixels that touch, by a side, one of a class with a lower number: of a figure (1) on a ground (0) its rim.

    Args:
        labels (`torch.LongTensor` of shape `(height, width)`): Classes.
        ignored (`torch.BoolTensor` of shape `(height, width)`): What is neither side of a border.
    """
    border = torch.zeros_like(ignored)
    for axis in (0, 1):
        length = labels.shape[axis] - 1
        first, second = (labels.narrow(axis, start, length) for start in (0, 1))
        skipped = ignored.narrow(axis, 0, length) | ignored.narrow(axis, 1, length)
        border.narrow(axis, 0, length).logical_or_((first > second) & ~skipped)
        border.narrow(axis, 1, length).logical_or_((second > first) & ~skipped)
    return border


def boundary_f(found: Tensor, truth: Tensor, ignore_index: int, tolerance: int = TOLERANCE) -> float:
    """
    F-measure of the borders of one image: the harmonic mean of the share of the border found that lies within
    `tolerance` pixels of the true one, and of the share of the true one that lies so near the one found.

    Args:
        found, truth (`torch.LongTensor` of shape `(height, width)`): Classes.

    Returns:
        `float` in 0..1: 1 where neither has a border, 0 where only one has.
    """
    ignored = truth == ignore_index
    ours, theirs = borders(found, ignored), borders(truth, ignored)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())

    def share_near(part: Tensor, other: Tensor) -> float:
        near = F.max_pool2d(other[None, None].float(), 2 * tolerance + 1, stride=1, padding=tolerance)[0, 0] > 0
        return float((part & near).sum() / part.sum())

    precision, recall = share_near(ours, theirs), share_near(theirs, ours)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


class SegmentationMetrics:
    """
    Figures of a set of images, whose maps are taken in one by one and forgotten.

    Called with an `EvalPrediction` of a batch it is the `compute_metrics` of a Trainer with `batch_eval_metrics=True`.

    Args:
        names (sequence of `str`): The classes.
        ignore_index (`int`): Label of pixels that do not count.
    """

    def __init__(self, names: Sequence[str], ignore_index: int):
        self.names = list(names)
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        number = len(self.names)
        self._matrix = torch.zeros(number, number, dtype=torch.int64)
        # Sums over images of each class's IoU, and the number of images that have the class on either side.
        self._shares = torch.zeros(number, dtype=torch.float64)
        self._images = torch.zeros(number, dtype=torch.int64)
        self._borders: list[float] = []

    def update(self, found: Tensor, truth: Tensor) -> None:
        """Takes in one image: two `torch.LongTensor` of shape `(height, width)`. One without labels does not count."""
        matrix = confusion_matrix(found, truth, len(self.names), self.ignore_index)
        if not matrix.any():
            return
        shares = overlaps(matrix)
        self._matrix += matrix
        self._images += ~shares.isnan()
        self._shares += shares.nan_to_num(0.0)
        self._borders.append(boundary_f(found, truth, self.ignore_index))

    def figures(self) -> dict[str, float]:
        """
        `mean_iou` and `iou_…` of each class over all pixels (classes that occur nowhere have none), `pixel_accuracy`,
        `image_iou_…`: the mean over the images that have the class, and `boundary_f`: the mean over images. In 0..1.
        """
        if not self._borders:
            raise ValueError("expected images with labels to measure on, got none")
        shares = overlaps(self._matrix)
        there = ~shares.isnan()
        result = {
            "mean_iou": float(shares[there].mean()),
            "pixel_accuracy": float(self._matrix.diagonal().sum() / self._matrix.sum()),
            "boundary_f": sum(self._borders) / len(self._borders),
        }
        for index, name in enumerate(self.names):
            if there[index]:
                result[f"iou_{name}"] = float(shares[index])
                result[f"image_iou_{name}"] = float(self._shares[index] / self._images[index])
        return result

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """Takes in a batch of maps, and gives the figures of all behind the last one."""
        for found, truth in zip(prediction.predictions, prediction.label_ids, strict=True):
            self.update(torch.as_tensor(found).cpu().long(), torch.as_tensor(truth).cpu().long())
        if not compute_result:
            return {}
        figures = self.figures()
        self.reset()
        return figures
