"""
The image of the README: a photograph, its classes, and its figure cut out.

    python -m experiments.dense.sheet

The photograph is that of `focusvit demo` (LICENSE.txt beside it names who took it), the model `focusvit-tiny-ecssd`.
`docs/segment.jpg` shows what `focusvit segment` and `focusvit cutout` write, the cut-out on a chequered ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.micro.arguments import parser_of
from focusvit_hf import FocusViTForSemanticSegmentation
from focusvit_hf.cli.demo import SAMPLE
from focusvit_hf.cli.segment import DEFAULT_SEGMENTER
from focusvit_hf.explanation import Segmentation, segment
from focusvit_hf.hub.checkpoints import load_checked


TARGET = Path("docs/segment.jpg")
# Pixels between the images, the sides of the chequers, and the quality at which the file stays well below 150 kB.
GAP, CHEQUER, QUALITY = 8, 10, 85


def chequered(size: tuple[int, int]) -> Image.Image:
    """A ground of light and white squares, of this width and height."""
    rows, columns = np.arange(size[1]) // CHEQUER, np.arange(size[0]) // CHEQUER
    light = (rows[:, None] + columns) % 2 == 1
    return Image.fromarray(np.where(light, 224, 255).astype(np.uint8)).convert("RGB")


def sheet_of(found: Segmentation) -> Image.Image:
    """The image, its overlay without the legend, and the cut-out, side by side."""
    width, height = found.image.size
    cut, ground = found.cutout(), chequered(found.image.size)
    ground.paste(cut, mask=cut)
    sheet = Image.new("RGB", (3 * width + 2 * GAP, height), (255, 255, 255))
    for index, part in enumerate((found.image, found.overlay().crop((0, 0, width, height)), ground)):
        sheet.paste(part, (index * (width + GAP), 0))
    return sheet


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, default=TARGET, help=f"default: {TARGET}")
    arguments = parser.parse_args(argv)
    model, processor = load_checked(str(DEFAULT_SEGMENTER), FocusViTForSemanticSegmentation)
    sheet_of(segment(model, processor, SAMPLE)).save(arguments.out, quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
