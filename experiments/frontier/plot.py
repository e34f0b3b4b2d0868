"""The frontier as a plot: accuracy against images per second, families in colours, every point named."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.frontier.axes import Name, name_points, speed_axis
from experiments.frontier.rows import DENSE, FAMILIES, GRID, GRID_LATENT, LARGER, LATENT, OURS, PEERS, WIDER
from focusvit_hf.benchmark.plots import DPI, STYLE, require_matplotlib


# Colours of Okabe and Ito, which everybody can tell apart.
_COLOURS = {
    OURS: "#0072B2",
    LATENT: "#56B4E9",
    GRID: "#009E73",
    GRID_LATENT: "#8CCDB6",
    LARGER: "#CC79A7",
    DENSE: "#000000",
    PEERS: "#D55E00",
}
# A wider stem: the colour and the marker of the others, darker and larger.
_COLOURS |= {WIDER[OURS]: "#00456B", WIDER[LATENT]: "#2B7FB0", WIDER[GRID]: "#005A42", WIDER[GRID_LATENT]: "#4F9E83"}
_MARKERS = {OURS: "o", LATENT: "o", GRID: "s", GRID_LATENT: "s", LARGER: "D", DENSE: "^", PEERS: "v"}
_MARKERS |= {wider: _MARKERS[family] for family, wider in WIDER.items()}
_MARKER_SIZES = {OURS: 6.5, LATENT: 6.5, **dict.fromkeys(WIDER.values(), 8.0)}
# Inches: at 900 pixels of a README, writing of 9 points is 12 pixels high.
_SIZE = (9.0, 5.6)
_NOTE = "numbers: tokens of an image; bars: 95 % intervals of the accuracy; bold: on the frontier"


def draw(rows: Sequence[Mapping[str, Any]], batch: str, title: str, foot: str) -> bytes:
    """
    A PNG of one batch size.

    Args:
        rows (sequence of mappings): See `frontier.table`.
        batch (`str`): The batch size, a key of their `speed`.
        title (`str`), foot (`str`): Lines above and below.

    Returns:
        `bytes`: The file.

    Raises:
        ImportError: when matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = sorted(rows, key=lambda row: row["speed"][batch]["median"])
    with rc_context({**STYLE, "font.size": 9}):
        figure = Figure(figsize=_SIZE, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        best = [row for row in shown if row["frontier"][batch]]
        axes.plot(
            *_places(best, batch), color="#FFD966", linewidth=7, solid_capstyle="round", zorder=0, label="the frontier"
        )
        for family in FAMILIES:
            members = [row for row in rows if row["family"] == family]
            if members:
                _draw_family(axes, members, family, batch)
        _finish_axes(axes, shown, batch)
        axes.set_title(title, fontsize=11, fontweight="bold")
        figure.supxlabel(foot, fontsize=7, color="#555555")
        axes.text(0.01, 0.01, _NOTE, transform=axes.transAxes, fontsize=7.5, color="#555555")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=8)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        name_points(figure, axes, [_name(row, batch) for row in shown])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _places(rows: Sequence[Mapping[str, Any]], batch: str) -> tuple[list[float], list[float]]:
    return [row["speed"][batch]["median"] for row in rows], [100 * row["accuracy"]["mean"] for row in rows]


def _name(row: Mapping[str, Any], batch: str) -> Name:
    (speed,), (accuracy,) = _places([row], batch)
    is_best = row["frontier"][batch]
    return Name(row["label"], (speed, accuracy), _COLOURS[row["family"]], 9 if is_best else 7.5, is_best)


def _draw_family(axes: Any, rows: Sequence[Mapping[str, Any]], family: str, batch: str) -> None:
    """Points with intervals; a line where a family is one model at several numbers of tokens."""
    rows = sorted(rows, key=lambda row: row["tokens"] or 0)
    speeds, accuracies = _places(rows, batch)
    ends = [[100 * row["accuracy"][end] for row in rows] for end in ("low", "high")]
    around = [[abs(end - middle) for end, middle in zip(side, accuracies, strict=True)] for side in ends]
    style: Any = {"color": _COLOURS[family], "marker": _MARKERS[family], "label": family, "zorder": 2}
    style |= {"markersize": _MARKER_SIZES.get(family, 5.5), "linewidth": 1.2, "elinewidth": 0.7}
    axes.errorbar(speeds, accuracies, around, linestyle="none" if family in (DENSE, PEERS) else "-", **style)


def _finish_axes(axes: Any, rows: Sequence[Mapping[str, Any]], batch: str) -> None:
    speeds, _ = _places(rows, batch)
    speed_axis(axes, min(speeds) / 1.12, max(speeds) * 1.2)
    axes.set_xlabel(f"images per second, JPEG to class, batch {batch} (logarithmic): faster to the right")
    axes.set_ylabel("accuracy on the test split, %")
