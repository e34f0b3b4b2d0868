"""Plots of a benchmark's dictionary: throughput against resolution, where the time goes, and memory."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.files import write_whole
from .report import machine
from .result import memory_of, settings_of, times_of


# Colours of Okabe and Ito, which everybody can tell apart; the two strongest are ours.
_OURS = ("#0072B2", "#D55E00", "#009E73", "#56B4E9")
_OTHERS = ("#000000", "#777777", "#CC79A7", "#E69F00", "#AAAAAA")
_QUIET = "#999999"
_PART_COLOURS = {"decode": "#BBBBBB", "processor": "#F0E442", "superpixels": "#D55E00", "model": "#0072B2"}
_MARKERS = "osD^vPX"
STYLE: Any = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
}
_ROW = 0.34
DPI = 150
# How far apart labels at the end of lines stand at least, as a share of the height of the axes.
_LABEL_GAP = 0.055


def require_matplotlib() -> None:
    """Raises ImportError, with what to install, where there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install focusvit-hf[plots]") from error


def draw_plots(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """
    Draws what [`~run.measure`] returned, or what was read from its JSON.

    Args:
        result (`dict`): The benchmark.
        folder (`Path`): Where `throughput.png`, `time_split.png` and `memory.png` go, each if there is something to
            draw.

    Returns:
        `list[Path]`: The files written.

    Raises:
        ImportError: when matplotlib is not installed.
        OSError: when a file cannot be written.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    written = []
    for name, draw in (
        ("throughput.png", _draw_throughput),
        ("time_split.png", _draw_time_split),
        ("memory.png", _draw_memory),
    ):
        with rc_context(STYLE):
            figure = Figure(layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
            if draw(result, figure):
                figure.supxlabel(footnote(result), fontsize=8, color="#555555")
                buffer = io.BytesIO()
                figure.savefig(buffer, format="png", dpi=DPI)
                write_whole(folder / name, buffer.getvalue())
                written.append(folder / name)
    return written


def _draw_throughput(result: Mapping[str, Any], figure: Any) -> bool:
    """Images per second against resolution, or bars where there is one resolution only."""
    settings = [setting for setting in _largest_batches(result) if setting[0] == "inference"]
    points: dict[str, list[tuple[int, float]]] = {}
    for setting in settings:
        for subject, parts in times_of(result, setting).items():
            row = parts.get("whole_path")
            if row is not None:
                points.setdefault(subject, []).append((setting[1], row["images_per_second"]))
    if not points:
        return False
    axes = figure.add_subplot()
    if len(settings) == 1:
        speeds = {subject: values[0][1] for subject, values in points.items()}
        figure.set_size_inches(7, 1.3 + _ROW * len(speeds))
        _bars(axes, speeds, {subject: f"{speed:.0f}" for subject, speed in speeds.items()})
        axes.set_title(f"Images per second, JPEG to class: {_words(settings[0])}")
        return True
    figure.set_size_inches(7.4, 4.6)
    colours = _colours(list(points))
    for number, (subject, values) in enumerate(points.items()):
        width = 2.6 if _is_ours(subject) else 1.4
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(*zip(*values, strict=True), color=colours[subject], marker=marker, linewidth=width)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    logs = {subject: math.log(values[-1][1] / low) / math.log(high / low) for subject, values in points.items()}
    for subject, place in _spread(logs).items():
        axes.annotate(
            subject,
            (points[subject][-1][0], low * (high / low) ** place),
            xytext=(9, 0),
            textcoords="offset points",
            verticalalignment="center",
            color=colours[subject],
            fontweight="bold" if _is_ours(subject) else "normal",
            annotation_clip=False,
        )
    axes.set_ylim(low, high)
    axes.minorticks_off()
    axes.set_xticks([setting[1] for setting in settings], [f"{px} px\nbatch {size}" for _, px, size in settings])
    steps = [step * 10**power for power in range(-2, 6) for step in (1, 2, 5)]
    axes.set_yticks(ticks := [step for step in steps if low <= step <= high], [f"{tick:g}" for tick in ticks])
    axes.grid(axis="y", color="#DDDDDD")
    axes.set_title("Images per second, JPEG to class (logarithmic)")
    return True


def _draw_time_split(result: Mapping[str, Any], figure: Any) -> bool:
    """Stacked bars, the parts of the path: one panel for each batch size at the first resolution."""
    found = [setting for setting in settings_of(result) if setting[0] == "inference"]
    settings = [setting for setting in found if setting[1] == found[0][1]]
    splits = {setting: _split(times_of(result, setting)) for setting in settings}
    splits = {setting: split for setting, split in splits.items() if split}
    if not splits:
        return False
    subjects = max(map(len, splits.values()))
    figure.set_size_inches(max(6.5, 4.9 * len(splits)), 1.7 + _ROW * subjects)
    panels = figure.subplots(1, len(splits), squeeze=False, sharey=True)[0]
    for axes, (setting, split) in zip(panels, splits.items(), strict=True):
        left = dict.fromkeys(split, 0.0)
        for part, colour in _PART_COLOURS.items():
            widths = [parts.get(part, 0.0) for parts in split.values()]
            axes.barh(list(split), widths, left=list(left.values()), color=colour, label=part, height=0.7)
            left = {subject: left[subject] + width for subject, width in zip(split, widths, strict=True)}
        whole = {subject: parts.get("whole_path", left[subject]) for subject, parts in split.items()}
        axes.plot(
            list(whole.values()), range(len(whole)), "|", color="black", markersize=17, label="whole path, measured"
        )
        ends = {subject: max(left[subject], total) for subject, total in whole.items()}
        _finish_bars(axes, ends, {subject: f"{total:.1f}" for subject, total in whole.items()})
        axes.set_title(f"Milliseconds per image: {_words(setting)}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
    return True


def _split(times: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """
    Milliseconds of each part and of the whole path, by subject. Where there are no superpixels, the model is all from
    pixels to logits.
    """
    split = {}
    for subject, rows in times.items():
        parts = {part: rows[part]["median_ms"] for part in (*_PART_COLOURS, "whole_path") if part in rows}
        if "model" not in parts and "pixels_to_logits" in rows:
            parts["model"] = rows["pixels_to_logits"]["median_ms"]
        if parts:
            split[subject] = parts
    return split


def _draw_memory(result: Mapping[str, Any], figure: Any) -> bool:
    """Bars of peak memory, a panel for each mode, at its first resolution and largest batch."""
    panels: dict[Any, dict[str, dict[str, Any]]] = {}
    for setting in _largest_batches(result):
        rows = {
            subject: row for subject, row in memory_of(result, setting).items() if row["peak_memory_mib"] is not None
        }
        if rows and all(setting[0] != other[0] for other in panels):
            panels[setting] = rows
    if not panels:
        return False
    subjects = max(map(len, panels.values()))
    figure.set_size_inches(max(6.5, 4.9 * len(panels)), 1.3 + _ROW * subjects)
    for axes, (setting, rows) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True
    ):
        peaks = {subject: row["peak_memory_mib"] for subject, row in rows.items()}
        shares = {subject: "" if row["share"] is None else f" ({row['share']:.0%})" for subject, row in rows.items()}
        _bars(axes, peaks, {subject: f"{peak:.0f}{shares[subject]}" for subject, peak in peaks.items()})
        axes.set_title(f"Peak memory, MiB: {_words(setting)}")
    return True


def _bars(axes: Any, values: Mapping[str, float], texts: Mapping[str, str]) -> None:
    colours = [_OURS[0] if _is_ours(subject) else _QUIET for subject in values]
    axes.barh(list(values), list(values.values()), color=colours, height=0.7)
    _finish_bars(axes, values, texts)


def _finish_bars(axes: Any, ends: Mapping[str, float], texts: Mapping[str, str]) -> None:
    """The figures at the ends of the bars instead of an axis; the first bar on top."""
    for number, (subject, end) in enumerate(ends.items()):
        axes.annotate(
            texts[subject], (end, number), xytext=(4, 0), textcoords="offset points", verticalalignment="center"
        )
    axes.set_xlim(0, max(ends.values()) * 1.18)
    axes.set_ylim(len(ends) - 0.5, -0.5)
    axes.set_xticks([])
    axes.spines.bottom.set_visible(False)
    axes.tick_params(axis="y", length=0)


def _largest_batches(result: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Of each mode and resolution the setting with the largest batch."""
    largest: dict[tuple[str, int], tuple[str, int, int]] = {}
    for setting in settings_of(result):
        known = largest.get(setting[:2])
        if known is None or setting[2] > known[2]:
            largest[setting[:2]] = setting
    return list(largest.values())


def _is_ours(subject: str) -> bool:
    return subject.startswith("focusvit")


def _colours(subjects: Sequence[str]) -> dict[str, str]:
    """Our models in strong colours, the others in quiet ones, by their order."""
    colours: dict[str, str] = {}
    for ours, palette in ((True, _OURS), (False, _OTHERS)):
        names = [subject for subject in subjects if _is_ours(subject) == ours]
        colours |= {name: palette[number % len(palette)] for number, name in enumerate(names)}
    return colours


def _spread(places: Mapping[str, float]) -> dict[str, float]:
    """Moves places in 0..1 apart, upwards from the lowest, until none stands in another's way."""
    moved: dict[str, float] = {}
    lowest = -math.inf
    for name in sorted(places, key=lambda name: places[name]):
        lowest = moved[name] = max(places[name], lowest + _LABEL_GAP)
    return moved


def _words(setting: tuple[str, int, int]) -> str:
    mode, resolution, batch_size = setting
    return f"{'training step' if mode == 'training' else mode}, {resolution} px, batch {batch_size}"


def footnote(result: Mapping[str, Any]) -> str:
    """What a benchmark's figures were measured with, in a line for the foot of a plot."""
    place = result["environment"]
    compiled = ", compiled" if result["settings"]["compiled"] else ""
    return (
        f"{machine(place)}, {place['threads']} threads, {place['dtype']}{compiled}, torch {place['torch']}, "
        f"transformers {place['transformers']}, medians of {result['settings']['repeats']}, {place['date'][:10]}"
    )
