"""Measuring: interleaved timing, what a figure was measured with, and where the time of a picture goes."""

import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from .image_processing_focusvit import FocusViTImageProcessor
from .superpixels import slic


def synchronize() -> None:
    """Waits until the accelerator, where there is one, has done all it was told."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def interleaved(
    subjects: Mapping[str, Callable[[], Any]], repeats: int = 7, warmup: int = 2
) -> dict[str, list[float]]:
    """
    Times several subjects on equal footing: in turn, round after round, so that a change of the machine's speed meets
    all of them.

    Args:
        subjects (mapping from `str` to callables): What to time. Every call ends when the accelerator has finished.
        repeats (`int`, *optional*, defaults to 7): Timed rounds.
        warmup (`int`, *optional*, defaults to 2): Rounds before them that do not count.

    Returns:
        `dict[str, list[float]]`: Seconds of each call, `repeats` for each subject.

    Raises:
        ValueError: when `repeats` is below 1 or `warmup` below 0.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"Expected repeats >= 1 and warmup >= 0, got {repeats} and {warmup}.")
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(warmup + repeats):
        for name, subject in subjects.items():
            synchronize()
            start = time.perf_counter()
            subject()
            synchronize()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: Sequence[float], count: int = 1) -> dict[str, float]:
    """
    Median and quartiles of repeated timings, in milliseconds for each of `count` pictures.

    Returns:
        `dict[str, float]` with the keys `median_ms`, `lower_quartile_ms`, `upper_quartile_ms`.
    """
    times = [1000 * value / count for value in seconds]
    lower, median, upper = quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"median_ms": median, "lower_quartile_ms": lower, "upper_quartile_ms": upper}


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


def split_subjects(
    model: PreTrainedModel, image_processor: BaseImageProcessor, pictures: Sequence[Image.Image]
) -> dict[str, Callable[[], Any]]:
    """
    The whole path of a batch of pictures and its parts, each as something to time.

    Args:
        model ([`PreTrainedModel`]): A classifier, FocusViT or another; it is set to evaluation mode.
        image_processor ([`BaseImageProcessor`]): The processor that belongs to it.
        pictures (sequence of `PIL.Image.Image`): One batch.

    Returns:
        `dict[str, Callable]`: `processor` (without superpixels), `pixels_to_logits` (superpixels counted),
        `whole_path` (picture to logits), and where the processor computes superpixels in torch, `superpixels` alone
        and `model` (given the map).
    """
    model.eval()
    batch = list(pictures)
    without: dict[str, Any] = {}
    with_superpixels = None
    if isinstance(image_processor, FocusViTImageProcessor):
        without = {"do_superpixels": False}
        if image_processor.do_superpixels and image_processor.superpixel_method == "torch":
            with_superpixels = image_processor

    def process(**options: Any) -> Any:
        return image_processor(batch, return_tensors="pt", **options).to(model.device)

    @torch.no_grad()
    def run(inputs: Mapping[str, Any]) -> torch.Tensor:
        return model(**inputs).logits

    pixels = process(**without)
    subjects: dict[str, Callable[[], Any]] = {"processor": lambda: process(**without)}
    if with_superpixels is not None:
        inputs = process()
        levels = process(do_superpixels=False, do_rescale=False, do_normalize=False)["pixel_values"].to(torch.uint8)
        options = (
            with_superpixels.num_superpixels,
            with_superpixels.superpixel_compactness,
            with_superpixels.superpixel_iterations,
            levels.shape[-1] // inputs["superpixel_ids"].shape[-1],
        )
        subjects["superpixels"] = lambda: slic(levels, *options)
        subjects["model"] = lambda: run(inputs)
    subjects["pixels_to_logits"] = lambda: run(pixels)
    subjects["whole_path"] = lambda: run(process())
    return subjects


def time_split(
    systems: Mapping[str, tuple[PreTrainedModel, BaseImageProcessor]],
    pictures: Sequence[Image.Image],
    repeats: int = 7,
    warmup: int = 2,
) -> dict[str, dict[str, dict[str, float]]]:
    """
    Where the time of a picture goes, for several systems in the same run.

    Args:
        systems (mapping from `str` to pairs of model and image processor): What to compare.
        pictures (sequence of `PIL.Image.Image`): One batch, the same for all.
        repeats (`int`, *optional*, defaults to 7), warmup (`int`, *optional*, defaults to 2): See [`interleaved`].

    Returns:
        `dict`: By system and part (see [`split_subjects`]) the [`summary`], in milliseconds a picture.
    """
    subjects: dict[str, Callable[[], Any]] = {}
    places = {}
    for system, (model, image_processor) in systems.items():
        for part, subject in split_subjects(model, image_processor, pictures).items():
            name = f"{system}: {part}"
            subjects[name], places[name] = subject, (system, part)
    result: dict[str, dict[str, dict[str, float]]] = {system: {} for system in systems}
    for name, seconds in interleaved(subjects, repeats, warmup).items():
        system, part = places[name]
        result[system][part] = summary(seconds, len(pictures))
    return result
