"""Paired bootstrap over images and seeds: how sure a difference between two accuracies is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


# How far the lower end of the interval may lie below 0 for "not worse", by data set; see the measuring contract.
MARGINS = {"imagenette": 0.015, "cifar10": 0.007}
_CHUNK = 500


@dataclass(frozen=True)
class Difference:
    """
    A difference of two means with its 95 % interval.

    Args:
        mean (`float`): Difference over all seeds and images.
        low (`float`), high (`float`): Ends of the interval.
        seeds (`int`), images (`int`): What it rests on.
    """

    mean: float
    low: float
    high: float
    seeds: int
    images: int

    def verdict(self, margin: float) -> str:
        """
        `"better"` or `"worse"`: the interval excludes 0; `"not worse"`: its lower end is at least `-margin`; else
        `"open"`. A difference that is worse but within the margin is `"worse within margin"`.
        """
        if self.low > 0:
            return "better"
        if self.high < 0:
            return "worse within margin" if self.low >= -margin else "worse"
        return "not worse" if self.low >= -margin else "open"


def interval_text(difference: Mapping[str, Any] | None) -> str:
    """A [`Difference`] as a mapping, in points: `"+1.0 [-0.5, +2.5]"`; empty where there is none."""
    if difference is None:
        return ""
    mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def paired_bootstrap(
    subject: np.ndarray, control: np.ndarray, replicates: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """
    Percentile interval of the mean of `subject - control` over images and seeds, both drawn anew with replacement.

    Of n seeds n - 1 are drawn: with n the variance between so few would come out (n - 1) / n too small (McCarthy and
    Snowden, "The bootstrap and finite population sampling", 1985). With one seed the interval is over images alone.

    Args:
        subject (`np.ndarray` of shape `(seeds, images)`): Score of each image in each run, such as 0 or 1.
        control (`np.ndarray` of shape `(seeds, images)`): The same of what it is compared with; same order.
        replicates (`int`, *optional*, defaults to 10,000): Bootstrap samples.
        level (`float`, *optional*, defaults to 0.95): Coverage of the interval.
        seed (`int`, *optional*, defaults to 0): Of the draws.

    Returns:
        [`Difference`].

    Raises:
        ValueError: when the shapes differ or nothing is there.
    """
    if subject.ndim != 2 or subject.shape != control.shape or 0 in subject.shape:
        raise ValueError(f"Expected two arrays (seeds, images) alike, got {subject.shape} and {control.shape}.")
    difference = subject.astype(np.float64) - control.astype(np.float64)
    seeds, images = difference.shape
    rng = np.random.default_rng(seed)
    means = np.empty(replicates)
    for start in range(0, replicates, _CHUNK):
        size = min(_CHUNK, replicates - start)
        drawn = rng.multinomial(images, np.full(images, 1 / images), size=size) / images
        runs = rng.multinomial(max(1, seeds - 1), np.full(seeds, 1 / seeds), size=size) / max(1, seeds - 1)
        means[start : start + size] = ((drawn @ difference.T) * runs).sum(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Difference(float(difference.mean()), float(low), float(high), seeds, images)
