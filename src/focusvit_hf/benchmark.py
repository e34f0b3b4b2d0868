"""The measuring contract: interleaved timing, its summary, and what a figure was measured with."""

import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import Any, TypeVar

import torch
import transformers


Name = TypeVar("Name", bound=Hashable)


def synchronize() -> None:
    """Waits until the accelerator, where there is one, has done all it was told."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def interleaved(
    subjects: Mapping[Name, Callable[[], Any]],
    repeats: int = 7,
    warmup: int = 2,
    progress: Callable[[], Any] | None = None,
) -> dict[Name, list[float]]:
    """
    Times several subjects on equal footing: in turn, round after round, so that a change of the machine's speed meets
    all of them.

    Args:
        subjects (mapping from names to callables): What to time. Every call ends when the accelerator has finished.
        repeats (`int`, *optional*, defaults to 7): Timed rounds.
        warmup (`int`, *optional*, defaults to 2): Rounds before them that do not count.
        progress (callable, *optional*): Called after every call, outside the timed region.

    Returns:
        `dict[name, list[float]]`: Seconds of each call, `repeats` for each subject.

    Raises:
        ValueError: when `repeats` is below 1 or `warmup` below 0.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"Expected repeats >= 1 and warmup >= 0, got {repeats} and {warmup}.")
    seconds: dict[Name, list[float]] = {name: [] for name in subjects}
    for turn in range(warmup + repeats):
        for name, subject in subjects.items():
            synchronize()
            start = time.perf_counter()
            subject()
            synchronize()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
            if progress is not None:
                progress()
    return seconds


def summary(seconds: Sequence[float], count: int = 1) -> dict[str, float]:
    """
    Median, quartiles and percentiles of repeated timings, in milliseconds for each of `count` pictures.

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


def environment(device: torch.device, dtype: torch.dtype, seed: int | None = None) -> dict[str, Any]:
    """
    What a measurement depends on, for the JSON that it is written to.

    Args:
        device (`torch.device`): What ran it.
        dtype (`torch.dtype`): What it was computed in.
        seed (`int`, *optional*): The seed of what was random.

    Returns:
        `dict`: commit (`None` outside a checkout; ends in "-dirty" where files differ from it), versions, device,
        threads, dtype, seed, date (UTC) and the command.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    # Installed as a wheel the package may lie in somebody else's checkout.
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
