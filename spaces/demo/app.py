"""
A web page that classifies an image with a FocusViT and shows what the answer rests on: a Space of the Hub, or on
your own machine.

    pip install -r spaces/demo/requirements.txt
    python spaces/demo/app.py --model model_cards/focusvit-tiny-imagenette-taught
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image

from focusvit_hf import FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.explanation import explain
from focusvit_hf.explanation.overlays import draw_borders, draw_heat
from focusvit_hf.hub.checkpoints import load_checkpoint


# What a Space sets in the place of an argument.
MODEL_VARIABLE = "FOCUSVIT_MODEL"
# A page shows no more of an image than this, and the borders stay as wide as they are meant to be.
LARGEST_SIDE = 1280


def answer(
    model: FocusViTForImageClassification, image_processor: FocusViTImageProcessor, image: Image.Image | None
) -> tuple[dict[str, float], Image.Image, Image.Image]:
    """
    What the page shows for an image.

    Args:
        model ([`FocusViTForImageClassification`]), image_processor ([`FocusViTImageProcessor`]): The checkpoint.
        image (`PIL.Image.Image`, *optional*): What was handed in.

    Returns:
        The probability of each class by its name, the image with the borders of its regions, and its heat map.

    Raises:
        ValueError: when there is no image, or one that cannot be classified.
    """
    if image is None:
        raise ValueError("expected an image, got none")
    shown = image.copy()
    shown.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    explanation = explain(model, image_processor, shown)
    ranked = explanation.ranked()
    return (
        dict(zip(ranked["labels"], ranked["scores"], strict=True)),
        draw_borders(explanation.image, explanation.region_map()),
        draw_heat(explanation.image, explanation.heat()),
    )


def build_page(show: Callable[[Image.Image | None], Any], title: str) -> Any:
    """
    The page: an image goes in; its classes, its regions and its heat map come out.

    Args:
        show (function of an image): [`answer`] of a checkpoint.
        title (`str`): What stands above.

    Returns:
        `gradio.Interface`, to be launched.
    """
    import gradio

    def shown_or_told(image: Image.Image | None) -> Any:
        try:
            return show(image)
        except ValueError as error:
            raise gradio.Error(str(error)) from error

    return gradio.Interface(
        fn=shown_or_told,
        inputs=gradio.Image(type="pil", label="Image"),
        outputs=[
            gradio.Label(num_top_classes=5, label="Classes"),
            gradio.Image(type="pil", label="What the model sees: one token for each region"),
            gradio.Image(type="pil", label="What the answer rests on"),
        ],
        title=title,
        flagging_mode="never",
    )


def main() -> None:
    """Loads the checkpoint and serves the page."""
    parser = argparse.ArgumentParser(description="Serves a web page that classifies images and explains the answers.")
    parser.add_argument(
        "--model",
        default=os.environ.get(MODEL_VARIABLE),
        metavar="FOLDER_OR_NAME",
        help=f"a FocusViT checkpoint (default: the environment variable {MODEL_VARIABLE}, or the source tree's own)",
    )
    name = parser.parse_args().model
    page = build_page(partial(answer, *load_checkpoint(name)), name or "FocusViT")
    page.launch()


if __name__ == "__main__":
    main()
