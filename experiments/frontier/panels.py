"""Quality against images per second, one panel for each batch size, every point named."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.frontier.axes import Name, name_points, speed_axis
from focusvit_hf.benchmark.plots import DPI, STYLE, require_matplotlib


# Of Okabe and Ito, which everybody can tell apart, and the marker, by the kind of a point.
OURS, GRID, DENSE, PEER = ("#0072B2", "o"), ("#009E73", "s"), ("#000000", "^"), ("#D55E00", "v")
# Inches.
_SIZE = (9.0, 4.2)


@dataclass(frozen=True)
class Point:
    """
    One network.

    Args:
        label (`str`): Stands beside its point.
        kind (`str`): What the legend explains: superpixels, peers.
        quality (`float`): In percent.
        speed (`dict`): Images per second by batch size.
        before (`float`, *optional*): Its quality without what the drawing is about, in percent: a hollow point.
    """

    label: str
    kind: str
    quality: float
    speed: Mapping[int, float]
    before: float | None = None


def draw(
    points: Sequence[Point],
    styles: Mapping[str, tuple[str, str]],
    quality: str,
    title: str,
    before: str | None = None,
) -> bytes:
    """
    A PNG.

    Args:
        points (sequence of [`Point`]): The best first.
        styles (mapping): Colour and marker of each kind, in the order of the legend.
        quality (`str`): Name of the vertical axis.
        title (`str`): Above.
        before (`str`, *optional*): What the legend says of hollow points.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    batches = list(points[0].speed)
    with rc_context({**STYLE, "font.size": 9}):
        figure = Figure(figsize=_SIZE, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, batch in zip(figure.subplots(1, len(batches), sharey=True, squeeze=False)[0], batches, strict=True):
            for point in points:
                colour, marker = styles[point.kind]
                place = point.speed[batch], point.quality
                look = {"color": colour, "marker": marker, "markersize": 6.5}
                if point.before is not None:
                    axes.plot([place[0]] * 2, [point.before, point.quality], color=colour, linewidth=0.8, alpha=0.5)
                    axes.plot(place[0], point.before, linestyle="none", markerfacecolor="white", **look)
                axes.plot(*place, linestyle="none", **look)
            axes.set_xscale("log")
            # A name stands beside its point.
            low, high = axes.get_xlim()[0] / 1.2, axes.get_xlim()[1] * 1.2
            speed_axis(axes, low, high)
            axes.margins(y=0.15)
            axes.set_xlabel(f"images per second, batch of {batch} (logarithmic)")
        first = figure.axes[0]
        first.set_ylabel(quality)
        for kind, (colour, marker) in styles.items():
            first.plot([], [], color=colour, marker=marker, linestyle="none", label=kind)
        if before is not None:
            first.plot([], [], color="#555555", marker="o", markerfacecolor="white", linestyle="none", label=before)
        figure.legend(loc="outside lower center", ncols=len(styles) + 1, frameon=False, fontsize=8)
        figure.suptitle(title, fontsize=11, fontweight="bold")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes, batch in zip(figure.axes, batches, strict=True):
            names = [
                Name(point.label, (point.speed[batch], point.quality), styles[point.kind][0], 7.5) for point in points
            ]
            hollow = [(point.speed[batch], point.before) for point in points if point.before is not None]
            name_points(figure, axes, names, hollow)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
