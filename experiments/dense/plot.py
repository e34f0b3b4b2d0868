"""Quality against images per second, one panel for each batch size, every row named."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.dense.compare import PEER_ROWS
from experiments.frontier.plot import ticks_between
from focusvit_hf.benchmark.plots import DPI, STYLE, require_matplotlib


# Of Okabe and Ito, which everybody can tell apart, and the marker, by the kind of a row.
_STYLES = {"superpixel": ("#0072B2", "o"), "grid": ("#009E73", "s"), "peer": ("#D55E00", "v")}
_NAMES = {"superpixel": "superpixels", "grid": "regular grid, same stem", "peer": "others in Transformers"}
# Inches.
_SIZE = (9.0, 4.2)


def label_of(name: str) -> str:
    """What stands beside the point of a row."""
    if name in PEER_ROWS:
        return PEER_ROWS[name]
    kind, _, rest = name.partition("_")
    return f"{rest.replace('_', ', ')} {'superpixels' if kind == 'superpixel' else 'tiles'}"


def draw(rows: Sequence[Mapping[str, Any]], batches: Sequence[int], title: str) -> bytes:
    """
    A PNG.

    Args:
        rows (sequence of mappings): See `experiments.dense.tables`, the best first.
        batches (sequence of `int`): Batch sizes that were timed.
        title (`str`): Above.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    with rc_context({**STYLE, "font.size": 9}):
        figure = Figure(figsize=_SIZE, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, batch in zip(figure.subplots(1, len(batches), sharey=True, squeeze=False)[0], batches, strict=True):
            for number, row in enumerate(rows):
                name = row["row"]
                kind = "peer" if name in PEER_ROWS else name.partition("_")[0]
                colour, marker = _STYLES[kind]
                place = 1000 / row[f"batch_{batch}"]["median_ms"], 100 * row["iou"]
                axes.plot(*place, color=colour, marker=marker, linestyle="none", markersize=6.5)
                # Over and under by turns, since rows of like quality may be near each other.
                away = (0, -14) if number % 2 else (0, 7)
                options = {"xytext": away, "textcoords": "offset points", "ha": "center", "fontsize": 7.5}
                axes.annotate(label_of(name), place, **options)
            axes.set_xscale("log")
            # Half of a name stands to each side of its point.
            low, high = axes.get_xlim()[0] / 1.4, axes.get_xlim()[1] * 1.4
            axes.set_xlim(low, high)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(ticks := list(ticks_between(low, high)), [f"{tick:g}" for tick in ticks])
            axes.margins(y=0.15)
            axes.set_xlabel(f"images per second, batch of {batch} (logarithmic)")
            axes.grid(color="#E6E6E6", linewidth=0.7)
            axes.set_axisbelow(True)
        first = figure.axes[0]
        first.set_ylabel("IoU of the figure, %")
        for kind, (colour, marker) in _STYLES.items():
            first.plot([], [], color=colour, marker=marker, linestyle="none", label=_NAMES[kind])
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        figure.suptitle(title, fontsize=11, fontweight="bold")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
