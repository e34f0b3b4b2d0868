"""The measuring contract: interleaved timing, its summary, and what a figure was measured with."""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from statistics import quantiles
from typing import Any, TypeVar

import torch


Name = TypeVar("Name", bound=Hashable)


def synchronize(device: torch.device | None = None) -> None:
    """Waits until `device`, by default the current accelerator where there is one, has done all it was told."""
    if torch.accelerator.is_available() and (device is None or device.type != "cpu"):
        torch.accelerator.synchronize(device)


def interleaved(
    subjects: Mapping[Name, Callable[[], Any]],
    repeats: int = 7,
    warmup: int = 2,
    progress: Callable[[], Any] | None = None,
    device: torch.device | None = None,
    failed: Callable[[Name, Exception], Iterable[Name]] | None = None,
) -> dict[Name, list[float]]:
    """
    Times several subjects on equal footing: in turn, round after round, so that a change of the machine's speed meets
    all of them.

    Args:
        subjects (mapping from names to callables): What to time. Every call ends when `device` has finished.
        repeats (`int`, *optional*, defaults to 7): Timed rounds.
        warmup (`int`, *optional*, defaults to 2): Rounds before them that do not count.
        progress (callable, *optional*): Called after every call, outside the timed region.
        device (`torch.device`, *optional*): What the subjects compute on; by default the current accelerator.
        failed (callable from a name and an exception, *optional*):
            Called when a subject raises, outside the timed region; returns the names of what to drop. By default the
            exception ends the measurement.

    Returns:
        `dict[name, list[float]]`: Seconds of each call, `repeats` for each subject that was not dropped.

    Raises:
        ValueError: when `repeats` is below 1 or `warmup` below 0.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"Expected repeats >= 1 and warmup >= 0, got {repeats} and {warmup}.")
    running = dict(subjects)
    seconds: dict[Name, list[float]] = {name: [] for name in running}
    for turn in range(warmup + repeats):
        for name in tuple(running):
            if name not in running:
                continue
            try:
                passed = _timed(running[name], device)
            except Exception as error:
                if failed is None:
                    raise
                for dropped in failed(name, error):
                    del running[dropped], seconds[dropped]
                continue
            if turn >= warmup:
                seconds[name].append(passed)
            if progress is not None:
                progress()
    return seconds


def _timed(subject: Callable[[], Any], device: torch.device | None) -> float:
    """Seconds of one call."""
    synchronize(device)
    start = time.perf_counter()
    subject()
    synchronize(device)
    return time.perf_counter() - start


def summary(seconds: Sequence[float], count: int = 1) -> dict[str, float]:
    """
    Median, quartiles and percentiles of repeated timings, in milliseconds for each of `count` images.

    Returns:
        `dict[str, float]` with the keys `median_ms`, `lower_quartile_ms`, `upper_quartile_ms`, `p5_ms`, `p95_ms`.
    """
    times = [1000 * value / count for value in seconds]
    cuts = quantiles(times, n=20, method="inclusive") if len(times) > 1 else times * 19
    return {
        "median_ms": cuts[9],
        "lower_quartile_ms": cuts[4],
        "upper_quartile_ms": cuts[14],
        "p5_ms": cuts[0],
        "p95_ms": cuts[18],
    }
