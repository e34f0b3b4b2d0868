"""
What an image's own colours add to the borders of a segmenter, at the image's own resolution.

    python -m experiments.dense.edges

`focusvit-tiny-ecssd` as it is shipped, on ECSSD: the class of the cell, interpolation between cells, and interpolation
guided by the image (`focusvit_hf.guided_upsampling`), with several reaches in cells and scales of colour. Those are
chosen on the training images that are held out; the package's own are measured on the test split, too, once.
`experiments/tables/dense-edges.json` and `.md` hold the figure's IoU and the F of its border within 2 px, both as
means over images, with a paired bootstrap interval against interpolation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from experiments.dense.teacher import ECSSD, HELD_OUT, SEED
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.paired_bootstrap import interval_text, paired_bootstrap
from experiments.micro.results import write_table
from focusvit_hf import FocusViTForSemanticSegmentation
from focusvit_hf.cli.segment import DEFAULT_SEGMENTER
from focusvit_hf.guided_upsampling import COLOUR_SCALE, REACH, Guide
from focusvit_hf.hub.checkpoints import load_checked
from focusvit_hf.lay_back import CellsAround
from focusvit_hf.segmentation_maps import IGNORED, decode_mask, segmentation_maps_of
from focusvit_hf.training.segmentation_metrics import boundary_f, confusion_matrix, overlaps
from focusvit_hf.utils.environment import environment


REACHES, SCALES = (1, 2, 3, 4), (5.0, 10.0, 20.0)
# The way that all others are compared with.
CONTROL = "bilinear"


def guided(logits: torch.Tensor, image: Image.Image, reach: int, scale: float) -> torch.Tensor:
    """The class of each pixel, `(height, width)`, of the logits `(1, 2, rows, columns)` of two classes."""
    size = (image.height, image.width)
    around = CellsAround((logits.shape[2], logits.shape[3]), size, logits.device, reach)
    rows, columns = torch.ones(size).nonzero(as_tuple=True)
    figure = (logits[0, 1] - logits[0, 0]).reshape(-1, 1)
    return (Guide(image, around, scale).interpolate(figure, rows, columns) > 0).long().view(size)


def plain(logits: torch.Tensor, image: Image.Image, upsampling: str) -> torch.Tensor:
    """The class of each pixel as the package has it."""
    images = [image] if upsampling == "guided" else None
    return segmentation_maps_of(logits, [(image.height, image.width)], upsampling, images)[0]


@torch.no_grad()
def scores(
    model: FocusViTForSemanticSegmentation,
    processor: Any,
    rows: datasets.Dataset,
    ways: Mapping[str, Callable[[torch.Tensor, Image.Image], torch.Tensor]],
) -> dict[str, dict[str, list[float]]]:
    """By way: the figure's IoU and the border's F of each image, at its own size."""
    found: dict[str, dict[str, list[float]]] = {name: {"iou": [], "boundary_f": []} for name in ways}
    for row in rows:
        image = row["image"].convert("RGB")
        mask = torch.from_numpy(decode_mask(row["mask"]).astype(np.int64))
        logits = model(**processor(image, return_tensors="pt")).logits.float()
        for name, way in ways.items():
            answer = way(logits, image)
            iou = overlaps(confusion_matrix(answer, mask, 2, IGNORED))[1]
            found[name]["iou"].append(float(iou.nan_to_num(1.0)))
            found[name]["boundary_f"].append(boundary_f(answer, mask, IGNORED))
    return found


def summed_up(split: str, found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """A row for each way."""
    rows = []
    for name, kinds in found.items():
        row: dict[str, Any] = {"split": split, "upsampling": name}
        for kind, values in kinds.items():
            row[kind] = float(np.mean(values))
            if name != CONTROL:
                difference = paired_bootstrap(np.array([values]), np.array([found[CONTROL][kind]]))
                row[f"{kind}_difference"] = asdict(difference)
        rows.append(row)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, with differences to the control in points."""
    lines = [f"| images | upsampling | figure's IoU | against {CONTROL} | border's F, 2 px | against {CONTROL} |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["split"], row["upsampling"]]
        for kind in ("iou", "boundary_f"):
            cells += [f"{100 * row[kind]:.1f}", interval_text(row.get(f"{kind}_difference"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = parser_of(__doc__)
    add_options(parser, "tables")
    arguments = parser.parse_args(argv)
    model, processor = load_checked(str(DEFAULT_SEGMENTER), FocusViTForSemanticSegmentation)
    shipped = {name: partial(plain, upsampling=name) for name in ("nearest", CONTROL, "guided")}
    tried: dict[str, Any] = {
        f"guided, {reach} cells, scale {scale:g}": partial(guided, reach=reach, scale=scale)
        for reach in REACHES
        for scale in SCALES
    }
    load = partial(datasets.load_dataset, "parquet", data_dir=str(ECSSD))
    held = load(split="train").train_test_split(HELD_OUT, seed=SEED)["test"]
    rows = summed_up("held out", scores(model, processor, held, {**shipped, **tried}))
    rows += summed_up("test", scores(model, processor, load(split="test"), shipped))
    content = {
        "reach": REACH,
        "colour_scale": COLOUR_SCALE,
        "rows": rows,
        "environment": environment(torch.device("cpu"), torch.float32),
    }
    write_table(arguments.tables, "dense-edges", content, markdown(rows))


if __name__ == "__main__":
    main()
