"""
Trains a FocusViT for image classification with the Trainer; `focusvit train` is the same.

    python examples/run_classification.py configuration/recipes/cifar10-nano.json --output_dir runs/cifar10-nano
    accelerate launch examples/run_classification.py --preset focusvit-tiny --train_dir images/train \
        --validation_dir images/val --output_dir runs/mine --do_train --do_eval

`run` reads the arguments, loads and checks the data, makes the model and its collators, has them trained, measures the
saved model and writes its log and card. `train_with_trainer` is the part between: a `FocusViTTrainer` and its calls.
A run that was interrupted goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import sys

from focusvit_hf.training.run import run, train_with_trainer


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs a command line, by default the program's own; see `focusvit_hf.training.run.run`."""
    argv = sys.argv[1:] if argv is None else argv
    return run(argv, "python examples/run_classification.py", train_with_trainer)


if __name__ == "__main__":
    main()
