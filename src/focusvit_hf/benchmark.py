"""The measuring contract: interleaved timing, its summary, and what a figure was measured with."""

import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import Any, TypeVar

import torch
import transformers


Name = TypeVar("Name", bound=Hashable)
_ROOT = Path(__file__).resolve().parents[2]
_CPU_INFO = Path("/proc/cpuinfo")


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
        `dict`: commit (`None` outside a checkout; ends in "-dirty" where files differ from it), versions, device, the
        processor's name (`None` where the system has none) and the instructions that torch uses of it, threads, dtype,
        seed, date (UTC) and the command, without absolute paths.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": f"{device.type} ({name})",
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*_program(), *map(_relative, sys.argv[1:])]),
    }


def _processor() -> str | None:
    """The model of the processor: of Linux, where it names one, else of Python, which on Linux often knows none."""
    text = _CPU_INFO.read_text(errors="replace") if _CPU_INFO.exists() else ""
    found = re.search(r"^model name\s*: *(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or None


def _program() -> list[str]:
    """What runs, as it is called from the root of the source tree."""
    program = Path(sys.argv[0])
    spec = sys.modules["__main__"].__spec__
    if spec is not None and spec.origin == sys.argv[0]:
        return ["python", "-m", spec.name]
    if program.suffix != ".py":
        return [program.name]
    script = program.resolve()
    return ["python", script.relative_to(_ROOT).as_posix() if script.is_relative_to(_ROOT) else script.name]


def _relative(argument: str) -> str:
    """An argument, or a list or `--name=value`, with absolute paths made relative to the working directory."""
    pieces = re.split("([=,])", argument)
    return "".join(_relative_path(piece) if os.path.isabs(piece) else piece for piece in pieces)


def _relative_path(path: str) -> str:
    try:
        return os.path.relpath(path)
    except ValueError:
        # On another drive of Windows.
        return os.path.basename(path)


def _commit() -> str | None:
    # Installed as a wheel the package may lie in somebody else's checkout.
    if not (_ROOT / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
