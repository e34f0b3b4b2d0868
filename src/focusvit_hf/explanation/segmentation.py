"""The classes of an image's pixels at its own resolution: label map, overlay, shares, and cut-outs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..configuration_focusvit import FocusViTConfig
from ..image_processing_focusvit import FocusViTImageProcessor
from ..images import decode_image
from ..lay_back import cells_to_pixels
from ..modeling_focusvit_dense import FocusViTForSemanticSegmentation
from ..segmentation_maps import UPSAMPLINGS, between_cells, segmentation_maps_of


# Values of an opacity that are held in floating point at a time.
_STRIP_PIXELS = 2**18
# Probability over which a cut-out goes from nothing to everything.
_SOFTNESS = 0.3
_OVERLAY_OPACITY = 0.55


def palette(count: int) -> list[tuple[int, int, int]]:
    """
    Colours of classes that are told apart, the first one black: the bits of a number, dealt out to red, green and blue
    from the highest on, as in the masks of PASCAL VOC.
    """
    colours = []
    for number in range(count):
        channels = [0, 0, 0]
        for bit in range(24):
            if number >> bit & 1:
                channels[bit % 3] |= 1 << (7 - bit // 3)
        colours.append((channels[0], channels[1], channels[2]))
    return colours


@dataclass(frozen=True)
class Segmentation:
    """
    What a model says about the pixels of one image.

    Attributes:
        image (`PIL.Image.Image`): The image, RGB and upright.
        logits (`torch.FloatTensor` of shape `(num_labels, rows, columns)`): Of the cells, which cover the image.
        names (`tuple[str, ...]`): The classes.
        upsampling (`str`):
            How what lies between cells is found, see [`~segmentation_maps.segmentation_maps_of`]; an opacity is
            bilinear with `"nearest"`, too.
    """

    image: Image.Image
    logits: torch.Tensor
    names: tuple[str, ...]
    upsampling: str = "guided"

    def label_map(self) -> Image.Image:
        """The class of each pixel: an image in mode P, of the image's size, with a colour for each class."""
        if len(self.names) > 256:
            raise ValueError(f"expected at most 256 classes, as a palette has, got {len(self.names)}")
        size = (self.image.height, self.image.width)
        images = [self.image] if self.upsampling == "guided" else None
        (labels,) = segmentation_maps_of(self.logits[None], [size], self.upsampling, images)
        drawn = Image.fromarray(labels.to(torch.uint8).numpy(), mode="L")
        drawn.putpalette([value for colour in palette(len(self.names)) for value in colour])
        return drawn

    def shares(self, label_map: Image.Image | None = None) -> dict[str, float]:
        """The share of the image's pixels that each class has which occurs, the largest first."""
        drawn = self.label_map() if label_map is None else label_map
        counts = np.asarray(drawn.histogram()[: len(self.names)])
        order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
        return {self.names[number]: float(counts[number] / counts.sum()) for number in order}

    def overlay(self, label_map: Image.Image | None = None) -> Image.Image:
        """The image under the colours of its classes, with a legend below."""
        drawn = self.label_map() if label_map is None else label_map
        blended = Image.blend(self.image, drawn.convert("RGB"), _OVERLAY_OPACITY)
        return _with_legend(
            blended, [(name, palette(len(self.names))[self.names.index(name)]) for name in self.shares(drawn)]
        )

    def opacity(self, label: str | int | None = None, threshold: float = 0.5) -> Image.Image:
        """
        How much of each pixel is of a class: 0 where its probability is well below the threshold, 255 well above.

        Args:
            label (`str` or `int`, *optional*): The class; by default the second one, a figure before its ground.
            threshold (`float`, *optional*, defaults to 0.5): Probability at which a pixel is half there, in 0..1.

        Returns:
            `PIL.Image.Image` in mode L, of the image's size.

        Raises:
            ValueError: for a class that there is not, and a threshold outside of 0..1.
        """
        number = self._number(label)
        if not 0 < threshold < 1:
            raise ValueError(f"expected a threshold above 0 and below 1, got {threshold}")
        others = torch.cat((self.logits[:number], self.logits[number + 1 :])).float()
        # The probability of one class against all others is the sigmoid of this.
        score = self.logits[number].float() - others.logsumexp(dim=0)

        def levels(scores: torch.Tensor) -> torch.Tensor:
            soft = scores.sigmoid().sub_(threshold).div_(_SOFTNESS).add_(0.5).clamp_(0, 1)
            return soft.mul_(255).round_().to(torch.uint8)

        height, width = self.image.height, self.image.width
        cells = levels(score)
        alpha = cells_to_pixels(cells, (height, width))
        # Where the cells around a pixel are all there, or all not, so is the pixel; a level between agrees with none.
        half = torch.arange(1, cells.numel() + 1).view_as(cells)
        states = torch.where((cells == 0) | (cells == 255), cells.long() - 255, half)
        guide = self.image if self.upsampling == "guided" else None
        grid, scores = (cells.shape[0], cells.shape[1]), score.reshape(-1, 1)
        around, interpolate = between_cells(grid, (height, width), cells.device, guide)
        for rows, columns in around.disagreeing(states, _STRIP_PIXELS):
            alpha[rows, columns] = levels(interpolate(scores, rows, columns)[:, 0])
        return Image.fromarray(alpha.numpy(), mode="L")

    def cutout(self, label: str | int | None = None, threshold: float = 0.5) -> Image.Image:
        """
        The image in mode RGBA, with a soft border and transparent where another class is; there it is black, so that a
        file holds nothing that is not seen. See [`opacity`].
        """
        alpha = self.opacity(label, threshold)
        seen = alpha.point([0] + [255] * 255)
        cut = Image.composite(self.image, Image.new("RGB", self.image.size), seen)
        cut.putalpha(alpha)
        return cut

    def _number(self, label: str | int | None) -> int:
        if len(self.names) < 2:
            raise ValueError(
                f"expected a model of two classes or more to tell one from others, got {list(self.names)}"
            )
        if label is None:
            return 1
        if isinstance(label, str) and label in self.names:
            return self.names.index(label)
        if isinstance(label, int) and 0 <= label < len(self.names):
            return label
        raise ValueError(f"expected one of the classes {list(self.names)[:20]}, got {label!r}")


@torch.no_grad()
def segment(
    model: FocusViTForSemanticSegmentation,
    image_processor: FocusViTImageProcessor,
    image: Any,
    upsampling: str = "guided",
) -> Segmentation:
    """
    What a model says about the pixels of one image, at the image's own resolution.

    Args:
        model ([`FocusViTForSemanticSegmentation`]): In evaluation mode.
        image_processor ([`FocusViTImageProcessor`]): The one that prepares its images, without a crop.
        image: As of [`~images.decode_image`].
        upsampling (`str`, *optional*, defaults to `"guided"`):
            `"guided"` draws borders at the image's own resolution, where its colours change; `"bilinear"` between the
            centres of cells; `"nearest"` along the cells.

    Returns:
        [`Segmentation`].

    Raises:
        ValueError: on an image that cannot be used, a processor that crops, and another `upsampling`.

    Example:

    ```python
    >>> from focusvit_hf import FocusViTConfig, FocusViTForSemanticSegmentation, FocusViTImageProcessor
    >>> from focusvit_hf.explanation import segment
    >>> from skimage.data import chelsea

    >>> config = FocusViTConfig(num_hidden_layers=2, id2label={0: "ground", 1: "figure"})
    >>> model = FocusViTForSemanticSegmentation(config).eval()
    >>> segment(model, FocusViTImageProcessor.from_model_config(config), chelsea()).cutout().size
    (451, 300)
    ```"""
    require_upsampling(upsampling)
    shown = whole_image(image_processor, image)
    inputs = image_processor(shown, return_tensors="pt").to(model.device)
    logits = model(**inputs).logits[0].float().cpu()
    return Segmentation(shown, logits, class_names(model.config), upsampling)


def require_upsampling(upsampling: str) -> None:
    """ValueError unless there is one of this name."""
    if upsampling not in UPSAMPLINGS:
        raise ValueError(f"expected upsampling to be one of {UPSAMPLINGS}, got {upsampling!r}")


def whole_image(image_processor: FocusViTImageProcessor, image: Any) -> Image.Image:
    """
    An image as of [`~images.decode_image`], RGB and upright, of which the processor shows the model all.

    Raises:
        ValueError: on an image that cannot be used, and a processor that crops.
    """
    if image_processor.do_center_crop:
        raise ValueError("expected an image processor that shows all of an image, got one with do_center_crop=True")
    decoded: Any = decode_image(image)
    if isinstance(decoded, Image.Image):
        return decoded
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(decoded, 0, -1)))


def class_names(config: FocusViTConfig) -> tuple[str, ...]:
    """The names of the classes, in the order of their numbers."""
    labels: Any = config.id2label
    return tuple(labels[number] for number in range(len(labels)))


def _with_legend(image: Image.Image, entries: list[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """An image with names and colours in lines below it."""
    size = max(12, image.width // 40)
    font = ImageFont.load_default(size)
    pad = size // 2
    # Places from left to right, in as many lines as are needed.
    places, left, line = [], pad, 0
    for name, colour in entries:
        width = round(font.getlength(name)) + 3 * pad + size
        if left > pad and left + width > image.width:
            left, line = pad, line + 1
        places.append((left, line, name, colour))
        left += width
    height = size + pad
    sheet = Image.new("RGB", (image.width, image.height + (line + 1) * height + pad), (255, 255, 255))
    sheet.paste(image)
    draw = ImageDraw.Draw(sheet)
    for left, line, name, colour in places:
        top = image.height + pad + line * height
        draw.rectangle((left, top, left + size, top + size), fill=colour, outline=(0, 0, 0))
        draw.text((left + size + pad, top), name, fill=(0, 0, 0), font=font)
    return sheet
