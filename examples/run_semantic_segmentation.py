"""
Trains a FocusViT for semantic segmentation with the Trainer; `focusvit train --task segmentation` is the same.

    python examples/run_semantic_segmentation.py configuration/recipes/ecssd-tiny.json --output_dir runs/ecssd-tiny
    python examples/run_semantic_segmentation.py --preset focusvit-tiny --train_dir mine/train \
        --validation_dir mine/val --labels_file mine/labels.json --output_dir runs/mine --do_train --do_eval

Data are parquet files with the columns `image` and `mask` (`--data_dir`), a data set on the Hub (`--dataset_name`), or
folders with `images/` and `masks/`, whose files have the same names. A mask holds the number of a class for each
pixel, and 255 where none counts. A run that was interrupted goes on from its last checkpoint when the same command is
given again.
"""

from __future__ import annotations

import sys

from focusvit_hf.training.run import run
from focusvit_hf.training.segmentation import SEGMENTATION, train_segmentation


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs a command line, by default the program's own; see `focusvit_hf.training.run.run`."""
    argv = sys.argv[1:] if argv is None else argv
    return run(argv, "python examples/run_semantic_segmentation.py", train_segmentation, task=SEGMENTATION)


if __name__ == "__main__":
    main()
