"""A benchmark: subjects x settings, measured by the contract, as one dictionary that is written as JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tqdm import tqdm
from transformers.image_processing_utils import BaseImageProcessor

from ..utils.environment import environment
from .cost import model_costs
from .memory import peak_memory
from .parts import PARTS, forward_pass, split_subjects, training_step, zero_gradients
from .subjects import Subject, batch_of
from .timing import interleaved, summary


MODES = ("inference", "training")
TRAINING_PART = "training_step"
SEED = 0
_CPU = torch.device("cpu")
_BAR = "{desc:<44}{percentage:3.0f}% {bar} {elapsed}, {remaining} to go"
# Too little memory, or a model that cannot take a setting. These go into the result instead of ending the run.
_RECORDED = (RuntimeError, ValueError, MemoryError)
Calls = dict[tuple[str, str], Callable[[], Any]]


@dataclass(frozen=True)
class Setting:
    """What all subjects meet at the same time."""

    mode: str
    resolution: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.mode}, {self.resolution} px, batch {self.batch_size}"


@dataclass(frozen=True)
class Plan:
    """
    What to measure.

    Args:
        subjects (sequence of [`Subject`]): See [`find_subject`].
        settings (sequence of [`Setting`]): In this order.
        baseline (`str`): Name of the subject by which ratios divide.
        parts (sequence of `str`, *optional*): Of [`PARTS`], for inference; by default all.
        device (`torch.device`, *optional*), dtype (`torch.dtype`, *optional*): By default the CPU and float32.
        compiled (`bool`, *optional*, defaults to `False`): Whether `torch.compile` runs the models.
        memory (`bool`, *optional*, defaults to `True`): Whether to measure memory, on a CPU in a process a figure.
        repeats (`int`, *optional*, defaults to 7): Timed rounds, see [`interleaved`].
        warmup (`int`, *optional*, defaults to 2): Rounds before them; the first also shows what cannot run.

    Raises:
        ValueError: when parts or the baseline are unknown, a subject stands twice, or one cannot take a resolution.
    """

    subjects: Sequence[Subject]
    settings: Sequence[Setting]
    baseline: str
    parts: Sequence[str] = PARTS
    device: torch.device = _CPU
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    memory: bool = True
    repeats: int = 7
    warmup: int = 2

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(f"Expected parts from {', '.join(PARTS)}, got {', '.join(unknown) or 'none'}.")
        if self.repeats < 1 or self.warmup < 1:
            raise ValueError(f"Expected repeats >= 1 and warmup >= 1, got {self.repeats} and {self.warmup}.")
        names = [subject.name for subject in self.subjects]
        if len(set(names)) < len(names):
            raise ValueError(f"Expected every subject once, got {', '.join(names)}.")
        if self.baseline not in names:
            raise ValueError(f"Expected the baseline among the subjects {', '.join(names)}, got {self.baseline}.")
        for subject in self.subjects:
            for setting in self.settings:
                subject.configure(setting.resolution)


def measure(plan: Plan, images: Sequence[bytes]) -> dict[str, Any]:
    """
    Measures a plan. What cannot run, for want of memory for instance, does not keep the rest from it.

    Args:
        plan ([`Plan`]): Subjects and settings.
        images (sequence of `bytes`): JPEG files; a batch takes them in turn.

    Returns:
        `dict[str, Any]` with lists of flat records, each of which names its `subject` and `resolution`:

        - `rows`: by `mode`, `batch_size` and `part` the [`summary`] in milliseconds an image,
          `images_per_second`, and `times_faster`: the baseline's median over the own, None where it has no such
          part.
        - `memory`: by `mode` and `batch_size` the `peak_memory_mib` of pixels to logits or of a training step, beside
          weights, gradients and the optimiser's state (see [`peak_memory`]), and its `share` of the baseline's. Not
          for a batch of one, whose few activations are lost in what libraries take.
        - `costs`: see [`model_costs`].
        - `failures`: `what` could not be measured, and the `error`. What fails while it is timed has no rows of that
          setting.

        Beside them `settings`, with the classes of the `image_processors` that were used, and `environment`.
    """
    result: dict[str, Any] = {
        "environment": environment(plan.device, plan.dtype, SEED),
        "settings": {
            "subjects": [subject.name for subject in plan.subjects],
            "baseline": plan.baseline,
            "images": len(images),
            "image_processors": [],
            "compiled": plan.compiled,
            "repeats": plan.repeats,
            "warmup": plan.warmup,
        },
        "rows": [],
        "memory": [],
        "costs": [],
        "failures": [],
    }
    steps = len(plan.subjects) * len(plan.parts) * (plan.warmup - 1 + plan.repeats)
    with tqdm(total=steps * len(plan.settings), disable=None, bar_format=_BAR) as bar:
        for number, setting in enumerate(plan.settings, 1):
            bar.set_description_str(str(setting))
            batch = batch_of(images, setting.batch_size)
            calls = _calls(plan, setting, batch, result)
            failed = partial(_drop, calls, result["failures"], setting)
            seconds = interleaved(calls, plan.repeats, plan.warmup - 1, bar.update, device=plan.device, failed=failed)
            # These models would be in the way of the next ones.
            calls.clear()
            result["rows"] += _rows(plan, setting, seconds)
            if plan.memory and setting.batch_size > 1:
                bar.set_description_str(f"{setting}, memory")
                result["memory"] += _memory(plan, setting, result["failures"])
            bar.update(steps * number - bar.n)
    return result


def _calls(plan: Plan, setting: Setting, batch: list[bytes], result: dict[str, Any]) -> Calls:
    """What to time, by subject and part. Each has run once. Adds to the result's settings, `costs` and `failures`."""
    if plan.compiled:
        # Shapes of earlier settings would count towards the limit of recompilations.
        torch.compiler.reset()
    known = {(cost["subject"], cost["resolution"]) for cost in result["costs"]}
    used = result["settings"]["image_processors"]
    calls: Calls = {}
    for subject in plan.subjects:
        try:
            model, image_processor = _build(plan, setting, subject)
            kind = type(image_processor).__name__
            if kind not in used:
                used.append(kind)
            if (subject.name, setting.resolution) not in known:
                cost = model_costs(model, setting.resolution)
                result["costs"].append({"subject": subject.name, "resolution": setting.resolution, **cost})
            parts = _parts(plan, setting, model, image_processor, batch)
            for call in parts.values():
                call()
        except _RECORDED as error:
            result["failures"].append(_failure("time", subject.name, setting, error))
        else:
            calls |= {(subject.name, part): call for part, call in parts.items()}
    return calls


def _drop(
    calls: Calls, failures: list[dict[str, Any]], setting: Setting, name: tuple[str, str], error: Exception
) -> list[tuple[str, str]]:
    """
    Records why a subject failed while it was timed, and returns all its parts. They leave `calls`, and with them its
    model leaves memory. An error that is not to be recorded is raised again.
    """
    if not isinstance(error, _RECORDED):
        raise error
    failures.append(_failure("time", name[0], setting, error))
    dropped = [other for other in calls if other[0] == name[0]]
    for other in dropped:
        del calls[other]
    return dropped


def _build(plan: Plan, setting: Setting, subject: Subject) -> tuple[Any, BaseImageProcessor]:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model, image_processor = subject.build(setting.resolution)
    return model.to(plan.device), image_processor


def _parts(
    plan: Plan, setting: Setting, model: Any, image_processor: BaseImageProcessor, batch: list[bytes]
) -> dict[str, Callable[[], Any]]:
    if setting.mode == "training":
        return {TRAINING_PART: _model_call(plan, setting, model, image_processor)}
    parts = split_subjects(model.to(plan.dtype), image_processor, batch, plan.compiled)
    return {part: call for part, call in parts.items() if part in plan.parts}


def _model_call(plan: Plan, setting: Setting, model: Any, image_processor: BaseImageProcessor) -> Callable[[], Any]:
    """Pixels to logits, or a training step. Noise will do for pixels."""
    size = (setting.batch_size, 3, setting.resolution, setting.resolution)
    pixel_values = torch.randn(size, generator=torch.Generator().manual_seed(SEED)).to(plan.device)
    if setting.mode == "training":
        return training_step(model, image_processor, pixel_values, plan.dtype, plan.compiled)
    return forward_pass(model.to(plan.dtype), image_processor, pixel_values, plan.compiled)


def _build_model_call(plan: Plan, setting: Setting, subject: Subject) -> Callable[[], Any]:
    """What memory is measured of: little else has been in memory before, but for a compiler."""
    model, image_processor = _build(plan, setting, subject)
    call = _model_call(plan, setting, model, image_processor)
    if plan.compiled:
        call()
        if setting.mode == "training":
            # The step has let go of its gradients, which do not count.
            zero_gradients(model)
    return call


def _rows(plan: Plan, setting: Setting, seconds: Mapping[tuple[str, str], list[float]]) -> list[dict[str, Any]]:
    times = {name: summary(values, setting.batch_size) for name, values in seconds.items()}
    rows = []
    for (subject, part), figures in times.items():
        median, base = figures["median_ms"], times.get((plan.baseline, part))
        rows.append(
            {
                **_place(subject, setting),
                "part": part,
                **figures,
                "images_per_second": 1000 / median,
                "times_faster": None if base is None else base["median_ms"] / median,
            }
        )
    return rows


def _memory(plan: Plan, setting: Setting, failures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    peaks: dict[str, float | None] = {}
    for subject in plan.subjects:
        try:
            peaks[subject.name] = peak_memory(
                _build_model_call, plan, setting, subject, device=plan.device, forget=plan.compiled
            )
        except _RECORDED as error:
            failures.append(_failure("memory", subject.name, setting, error))
    base = peaks.get(plan.baseline)
    return [
        {
            **_place(name, setting),
            "peak_memory_mib": peak,
            "share": peak / base if peak is not None and base else None,
        }
        for name, peak in peaks.items()
    ]


def _place(subject: str, setting: Setting) -> dict[str, Any]:
    return {
        "subject": subject,
        "mode": setting.mode,
        "resolution": setting.resolution,
        "batch_size": setting.batch_size,
    }


def _failure(what: str, subject: str, setting: Setting, error: Exception) -> dict[str, Any]:
    """A record of `failures`, with at most 300 characters of the message."""
    text = " ".join(str(error).split())[:300]
    return {**_place(subject, setting), "what": what, "error": text or type(error).__name__}
