"""
Measures checkpoints that are kept in folders on images they were not trained for.

    python -m experiments.robustness.checkpoints model_cards/focusvit-tiny-imagenette \\
        model_cards/focusvit-tiny-imagenette-taught model_cards/vit-tiny-imagenette

The first folder is the control. Each model sees the test images at its own size as they are, corrupted, stretched,
and where it pools with other numbers of tokens (`run.py`). What counts is the change from its own clean images, paired
over images with the control's. Writes `experiments/tables/<name>-robustness.json` and `.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.conversion.curve import load_folder
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.data import load_examples
from experiments.micro.paired_bootstrap import MARGINS
from experiments.micro.processes import keep_heap
from experiments.micro.results import write_table
from experiments.robustness.run import markdown, measure, rows_of
from focusvit_hf.utils.environment import environment


def main(argv: Sequence[str] | None = None) -> None:
    """Measures one folder after another."""
    parser = parser_of(__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--name", default="imagenette-tiny", help="Of the table.")
    parser.add_argument("--limit", type=int, help="Measure on the first so many images.")
    add_options(parser, "data", "cache", "tables")
    arguments = parser.parse_args(argv)
    models = {folder: load_folder(folder) for folder in arguments.folders}
    sizes = {model.config.image_height_and_width for model in models.values()}
    if len(sizes) > 1 or len({folder.name for folder in models}) < len(models):
        raise ValueError(f"Expected folders of different names with models for one size, got {sorted(sizes)}.")
    (side, _), *_ = sizes
    examples = load_examples(arguments.data, "test", side, arguments.cache)[slice(arguments.limit)]
    measured = {}
    for folder, model in models.items():
        outcomes = measure(model, examples)
        measured[folder.name] = {0: outcomes}
        print(folder.name, {what: round(float(right.mean()), 3) for what, right in outcomes.items()}, flush=True)
    control = arguments.folders[0].name
    rows = rows_of(measured, control, MARGINS["imagenette"])
    content = {
        "control": control,
        "images": len(examples),
        "environment": environment(torch.device("cpu"), torch.float32),
        "rows": rows,
    }
    write_table(arguments.tables, f"{arguments.name}-robustness", content, markdown(rows, control))


if __name__ == "__main__":
    keep_heap()
    main()
