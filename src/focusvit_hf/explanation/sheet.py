"""Sheets of pictures with titles: a photograph, its superpixels, and the heat map of a model's answer."""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from PIL import Image, ImageDraw, ImageFont

from ..image_processing_focusvit import FocusViTImageProcessor
from ..images import decode_image
from ..modeling_focusvit import FocusViTForImageClassification
from .overlays import colour_levels, covered_box, heat_map, superpixel_boundaries
from .relevance import evaluating, region_relevance, relevance_per_area


_PAPER, _INK, _FRAME = (255, 255, 255), (32, 32, 32), (160, 160, 160)
_SMALLEST_PANEL, _LARGEST_PANEL = 280, 1080
_MARGIN, _TITLE_SIZE, _SMALLEST_TITLE = 16, 18, 11
# In heights of the type.
_NARROWEST_COLUMN = 13


class Panel(NamedTuple):
    """A picture with its title, and the ends of its scale of colours where it has one."""

    title: str
    image: Image.Image
    scale: tuple[str, str] | None = None


def explain(
    model: FocusViTForImageClassification, image_processor: FocusViTImageProcessor, image: Image.Image, title: str
) -> list[Panel]:
    """
    A photograph, its superpixels, and the heat map of the regions that carried the model's answer.

    Args:
        model ([`FocusViTForImageClassification`]): The model.
        image_processor ([`FocusViTImageProcessor`]): The processor that belongs to it.
        image (`PIL.Image.Image`): The photograph. One higher than 1080 pixels is drawn at that height.
        title (`str`): Its title.

    Returns:
        `list[Panel]`: The three panels, for [`draw_sheet`].
    """
    inputs = image_processor(image, return_tensors="pt").to(model.device)
    ids = model.focusvit.region_ids(inputs["pixel_values"], inputs.get("superpixel_ids"))
    with torch.no_grad(), evaluating(model):
        probabilities = model(**inputs).logits.float().softmax(dim=1)[0]
    answer = int(probabilities.argmax())
    relevance = region_relevance(model, **inputs, target=answer)
    density = relevance_per_area(relevance, ids)[0]

    photograph = _at_panel_size(cast(Image.Image, decode_image(image)))
    box = covered_box(image_processor, photograph.height, photograph.width)
    noun = {"superpixel": "superpixels", "grid": "tiles of a grid", "none": "patches"}[model.config.patch_pooling]
    label = class_name(model, answer)
    return [
        Panel(f"{title}, {image.width} x {image.height}", photograph),
        Panel(f"{relevance.shape[1]} {noun}", superpixel_boundaries(photograph, ids[0], box)),
        Panel(
            f"what carried “{label}” ({probabilities[answer]:.0%})",
            heat_map(photograph, density, ids[0], box),
            ("less", "more"),
        ),
    ]


def class_name(model: FocusViTForImageClassification, number: int) -> str:
    """The name of a class in the model's configuration."""
    return cast(dict[int, str], model.config.id2label)[number]


def _at_panel_size(image: Image.Image) -> Image.Image:
    """Shrinks a picture higher than a panel may be, enlarges one lower than a panel has to be."""
    if image.height > _LARGEST_PANEL:
        width = max(1, round(image.width * _LARGEST_PANEL / image.height))
        return image.resize((width, _LARGEST_PANEL), Image.Resampling.LANCZOS)
    times = math.ceil(_SMALLEST_PANEL / image.height)
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def draw_sheet(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """
    Lays panels out in rows, with titles above, thin frames around, and a scale of colours below where there is one.

    Args:
        rows (sequence of sequences of [`Panel`]): The panels; those of one row have one height.

    Returns:
        `PIL.Image.Image` in mode RGB.
    """
    strips = [_draw_row(row) for row in rows]
    width = max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), _PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _draw_row(row: Sequence[Panel]) -> Image.Image:
    height = max(panel.image.height for panel in row)
    # Type grows with the panels, so that it stays readable when a large sheet is looked at as a whole.
    unit = max(1.0, height / 400)
    margin, size = round(_MARGIN * unit), round(_TITLE_SIZE * unit)
    head, foot = margin + round(1.6 * size), 2 * margin + size
    # A narrow picture gets a column that a title fits into.
    columns = [max(panel.image.width, _NARROWEST_COLUMN * size) for panel in row]
    width = sum(columns) + margin * (len(row) + 1)
    # One size of type for a row: the one that its tightest title needs.
    size_of_titles = min(_fitting_size(panel.title, size, column) for panel, column in zip(row, columns, strict=True))
    font = ImageFont.load_default(size_of_titles)
    strip = Image.new("RGB", (width, head + height + foot), _PAPER)
    draw = ImageDraw.Draw(strip)
    left = margin
    for panel, column in zip(row, columns, strict=True):
        right, bottom = left + panel.image.width, head + panel.image.height
        text = _shortened(panel.title, font, column)
        draw.text((left, head - 0.4 * size), text, fill=_INK, font=font, anchor="ls")
        strip.paste(panel.image, (left, head))
        draw.rectangle((left - 1, head - 1, right, bottom), outline=_FRAME)
        if panel.scale is not None:
            _draw_scale(strip, draw, panel.scale, (left, bottom + margin // 2, right), round(0.75 * size))
        left += column + margin
    return strip


def _fitting_size(text: str, size: int, width: int) -> int:
    """The largest size of type up to `size` in which the text is no wider than `width`, or the smallest there is."""
    while size > _SMALLEST_TITLE and ImageFont.load_default(size).getlength(text) > width:
        size -= 1
    return size


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, or its beginning and an ellipsis, no wider than `width`."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _draw_scale(
    strip: Image.Image, draw: ImageDraw.ImageDraw, names: tuple[str, str], place: tuple[int, int, int], size: int
) -> None:
    left, top, right = place
    font = ImageFont.load_default(size)
    before, after = (round(font.getlength(name)) + size // 2 for name in names)
    length = right - left - before - after
    if length < size:
        return
    levels = Image.linear_gradient("L").rotate(90).resize((length, size))
    strip.paste(colour_levels(levels, Image.new("L", levels.size, 128)), (left + before, top))
    for name, x, anchor in ((names[0], left, "lm"), (names[1], right, "rm")):
        draw.text((x, top + size / 2), name, fill=_INK, font=font, anchor=anchor)
