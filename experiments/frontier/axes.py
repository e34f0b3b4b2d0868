"""What drawings of quality against speed share: the ticks of a logarithmic axis, and names beside points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


# From a point to the nearest edge of its name, in points of type: the best places first.
_OFFSETS = [
    (x * step, y * step)
    for step in (6, 10, 16)
    for x, y in ((1, 0), (0, 1), (0, -1), (-1, 0), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7))
]
# Of a tick the first digits, the coarsest first.
_STEPS = (
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8),
    tuple(step / 10 for step in range(10, 100, 2)),
)


class Name(NamedTuple):
    """
    What stands beside a point.

    Args:
        text (`str`): The name.
        place (pair of `float`): The point, in the units of the axes.
        colour (`str`): Of the writing.
        size (`float`): Of the writing, in points of type.
        is_best (`bool`): In bold, and with the first choice of places.
    """

    text: str
    place: tuple[float, float]
    colour: str
    size: float
    is_best: bool = False


def ticks_between(low: float, high: float) -> Iterator[float]:
    """Of a logarithmic axis: 1, 2, 5 and their like; finer steps where there would be too few."""
    for steps in _STEPS:
        found = [step * 10**power for power in range(-3, 7) for step in steps if low <= step * 10**power <= high]
        if len(found) >= 4:
            break
    yield from found


def speed_axis(axes: Any, low: float, high: float) -> None:
    """A logarithmic horizontal axis from `low` to `high`, with a grid behind the points."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks := list(ticks_between(low, high)), [f"{tick:g}" for tick in ticks])
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)


def name_points(figure: Any, axes: Any, names: Sequence[Name], others: Sequence[tuple[float, float]] = ()) -> None:
    """
    Puts each name where it covers least of the points, of the names before it, and of what is outside.

    Args:
        figure, axes: Of matplotlib, drawn once, so that the places are known.
        names (sequence of [`Name`]): One for each point.
        others (sequence of pairs of `float`): Points without a name, which are not to be covered either.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    # Boxes are in pixels, of which a point of type has so many.
    scale = figure.dpi / 72
    radius = 4 * scale
    points = axes.transData.transform([name.place for name in names] + list(others))
    taken = [Bbox([(x - radius, y - radius), (x + radius, y + radius)]) for x, y in points]
    inside = axes.get_window_extent()
    for name in sorted(names, key=lambda name: not name.is_best):
        text = axes.annotate(
            name.text,
            name.place,
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=name.size,
            fontweight="bold" if name.is_best else "normal",
            color=name.colour,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
        box = text.get_window_extent()
        boxes = {}
        for x, y in _OFFSETS:
            # From the point to the nearest edge of the writing, and on to its middle.
            shift = x + _sign(x) * box.width / 2 / scale, y + _sign(y) * box.height / 2 / scale
            boxes[shift] = box.translated(shift[0] * scale, shift[1] * scale)
        best = min(boxes, key=lambda shift: _covered(boxes[shift], taken, inside))
        text.set_position(best)
        taken.append(boxes[best])


def _covered(box: Any, taken: Sequence[Any], inside: Any) -> float:
    """Pixels of a box that others have taken, or that lie outside."""
    overlaps = (box.intersection(box, other) for other in (*taken, inside))
    *covered, shown = (0.0 if overlap is None else overlap.width * overlap.height for overlap in overlaps)
    return sum(covered) + box.width * box.height - shown


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
