"""
A segmenter's run as a folder to ship: in float16, measured on the test split, with its card.

    python -m experiments.dense.keep runs/ecssd-tiny model_cards/focusvit-tiny-ecssd --data ../shared/data/ecssd \\
        --notes notes.md

Each test image goes once through `pipeline("image-segmentation")` as a user would load it, from the weights that are
shipped, in float32, and is measured at its own size. `--notes` is Markdown that the card has below its figures, such
as what the model began from and what it cannot do.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import pipeline
from transformers.utils import SAFE_WEIGHTS_NAME

from experiments.micro.arguments import parser_of
from experiments.teacher.keep import in_half
from focusvit_hf.explanation.segmentation import class_names
from focusvit_hf.hub.contents import TRAINING_LOG_FILE
from focusvit_hf.hub.model_card import model_card
from focusvit_hf.hub.training_record import TrainingRecord
from focusvit_hf.segmentation_maps import decode_mask
from focusvit_hf.training.segmentation_metrics import SegmentationMetrics
from focusvit_hf.utils.files import new_folder, read_json, write_json, write_whole


def measured(find: Any, rows: Any) -> dict[str, float]:
    """The figures of [`SegmentationMetrics`] of rows with an `image` and a `mask`, through the pipeline `find`."""
    names = class_names(find.model.config)
    metrics = SegmentationMetrics(names, find.model.config.semantic_loss_ignore_index)
    for row in rows:
        truth = torch.from_numpy(decode_mask(row["mask"]).astype(np.int64))
        found = torch.full_like(truth, -1)
        for part in find(row["image"].convert("RGB")):
            found[torch.from_numpy(np.array(part["mask"]) > 0)] = names.index(part["label"])
        if (found < 0).any():
            raise ValueError("expected a class for each pixel from the pipeline, got none for some")
        metrics.update(found, truth)
    return metrics.figures()


def keep(run: Path, target: Path, rows: Any, notes: str = "", license: str | None = None) -> dict[str, float]:
    """Writes the folder `target`, which must not be there yet, and returns what was measured, each in 0..1."""
    log = read_json(run / TRAINING_LOG_FILE)
    if log["arguments"].get("model_name_or_path"):
        # A folder, which from elsewhere would look like a name on the Hub.
        log["base_model"] = f"./{log['arguments']['model_name_or_path']}"
    if license is not None:
        log["license"] = license
    log["images"] = {**log["images"], "test": len(rows)}
    with new_folder(target) as folder:
        write_whole(folder / SAFE_WEIGHTS_NAME, in_half(run / SAFE_WEIGHTS_NAME))
        for name in ("config.json", "preprocessor_config.json"):
            shutil.copy(run / name, folder / name)
        find: Any = pipeline("image-segmentation", model=str(folder), dtype=torch.float32)
        figures = measured(find, rows)
        log["figures"] = {**log["figures"], **{f"test_{name}": value for name, value in figures.items()}}
        write_json(folder / TRAINING_LOG_FILE, log)
        record = TrainingRecord.from_log(log)
        card = str(model_card(find.model, target.name, location=f"model_cards/{target.name}", record=record))
        head, mark, rest = card.partition("\n## Model\n")
        below = f"\n{notes.strip()}\n" if notes else ""
        write_whole(folder / "README.md", f"{head}{below}{mark}{rest}".encode())
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path, help="folder that `focusvit train --task segmentation` wrote")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--data", type=Path, required=True, help="folder of parquet files with a test split")
    parser.add_argument("--notes", type=Path, metavar="FILE.md", help="what the card says below its figures")
    parser.add_argument("--license", default="apache-2.0", help="of the weights (default: apache-2.0)")
    args = parser.parse_args(argv)
    rows = datasets.load_dataset("parquet", data_dir=str(args.data), split="test")
    notes = "" if args.notes is None else args.notes.read_text(encoding="utf-8")
    for name, value in keep(args.run, args.target, rows, notes, args.license).items():
        print(f"{name:24} {value:.4f}")


if __name__ == "__main__":
    main()
