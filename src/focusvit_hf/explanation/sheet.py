"""Sheets that show what a model sees and what its answer rests on: an image, its regions, its heat map in a row."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..utils.messages import printable
from .explain import Explanation
from .overlays import draw_borders, draw_heat, draw_kept, require_matplotlib


# In pixels: how high an image is drawn; then what surrounds it, and the size of type, beside an image of up to 400.
_LOWEST, HIGHEST_PANEL = 320, 1080
_GAP, _HEAD, _FOOT, _TYPE = 18, 36, 34, 17
_NARROWEST_COLUMN = 220
_DPI = 100
_INK, _FRAME = "#202020", "#a0a0a0"


def draw_sheet(explanations: Sequence[Explanation], titles: Sequence[str]) -> Image.Image:
    """
    A row for each image: the image, its regions, and the heat map of its answer with a scale of colours; and, where
    tokens leave between the layers, the image darkened where they left, the earlier the darker; where layers select
    tokens, the image darkened the more, the fewer of them selected its tokens.

    Args:
        explanations (sequence of [`Explanation`]): What [`explain`] found.
        titles (sequence of `str`): A title for each image.

    Returns:
        `PIL.Image.Image` in mode RGB. An image is drawn pixel by pixel where it is 320 to 1080 pixels high, a lower
        one is enlarged and a higher one shrunk to that.

    Raises:
        ValueError: where matplotlib is not installed.
    """
    require_matplotlib()
    rows = [_draw_row(*pair) for pair in zip(explanations, titles, strict=True)]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def listed(numbers: Iterable[int]) -> str:
    """Numbers with commas between them."""
    return ", ".join(map(str, numbers))


def named(layers: Sequence[int]) -> str:
    """Layers by their numbers, three and more neighbours as the first and the last."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {listed(layers)}"


def _draw_row(explanation: Explanation, title: str) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = explanation.image
    label = explanation.labels[explanation.target]
    panels = {
        f"{title}, {image.width} x {image.height}": image,
        f"{explanation.num_regions} {explanation.region_name}": draw_borders(image, explanation.region_map()),
        f"what “{label}” ({explanation.probabilities[explanation.target]:.0%}) rests on": draw_heat(
            image, explanation.heat()
        ),
    }
    for layers, tokens, what, levels in (
        (explanation.layers, explanation.kept, "tokens stay before", explanation.stages_passed),
        (explanation.selecting_layers, explanation.selected, "selected by", explanation.times_selected),
    ):
        if layers:
            title_of_panel = f"{listed(map(len, tokens))} {what} {named(layers)}"
            panels[title_of_panel] = draw_kept(image, levels(), len(layers))
    drawn = {printable(text): _at_panel_size(panel) for text, panel in panels.items()}
    wide, tall = next(iter(drawn.values())).size
    # Type grows with the images, so that it stays readable when a large sheet is looked at as a whole.
    unit = max(1.0, tall / 400)
    gap, head, foot, type_size = (round(unit * length) for length in (_GAP, _HEAD, _FOOT, _TYPE))
    column = max(wide, round(unit * _NARROWEST_COLUMN))
    width, height = gap + len(drawn) * (column + gap), head + tall + foot
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def axes_at(left: int, bottom: int, size: tuple[int, int]) -> Any:
        place = (left / width, bottom / height, size[0] / width, size[1] / height)
        axes = figure.add_axes(place, xticks=[], yticks=[])
        axes.spines[:].set_color(_FRAME)
        return axes

    def write(text: str, left: float, bottom: float, size: float, **options: Any) -> Any:
        # Without parse_math a dollar sign in a label would begin a formula.
        return figure.text(
            left / width, bottom / height, text, fontsize=size * 72 / _DPI, color=_INK, parse_math=False, **options
        )

    heads = []
    for number, (text, panel) in enumerate(drawn.items()):
        left = gap + number * (column + gap)
        axes_at(left, foot, (wide, tall)).imshow(panel, interpolation="nearest", aspect="auto")
        heads.append(write(text, left, foot + tall + gap / 2, type_size))
    _fit(heads, column, canvas.get_renderer())
    left, middle, small = gap + 2 * (column + gap), foot / 2, 0.75 * type_size
    words = round(3 * small)
    if wide > 3 * words:
        write("less", left, middle, small, va="center")
        write("more", left + wide, middle, small, va="center", ha="right")
        scale = axes_at(left + words, round(middle - small / 2), (wide - 2 * words, round(small)))
        scale.imshow(np.linspace(0, 1, 256)[None], cmap="inferno", aspect="auto")
    canvas.draw()
    return Image.fromarray(np.array(canvas.buffer_rgba())[..., :3])


def _fit(texts: Sequence[Any], width: int, renderer: Any) -> None:
    """Ends each of the texts with an ellipsis where it is wider than `width` pixels."""
    for text in texts:
        shown = text.get_text()[:_NARROWEST_COLUMN]
        text.set_text(shown)
        while shown and text.get_window_extent(renderer).width > width:
            shown = shown[:-1]
            text.set_text(f"{shown}…")


def _at_panel_size(image: Image.Image) -> Image.Image:
    """Shrinks an image higher than a panel may be, enlarges one lower than a panel has to be."""
    if image.height > HIGHEST_PANEL:
        width = max(1, round(image.width * HIGHEST_PANEL / image.height))
        return image.resize((width, HIGHEST_PANEL), Image.Resampling.LANCZOS)
    times = math.ceil(_LOWEST / image.height)
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
