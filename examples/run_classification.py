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
    """
    Runs the script.

    Args:
        argv (`list[str]`, *optional*): The command line without the program's name; `sys.argv[1:]` by default.

    Returns:
        `dict[str, float]`: The figures of the last evaluation, and of the final one with the prefix `test_`.

    Raises:
        ValueError: On arguments or data that do not fit, before training begins.
    """
    argv = sys.argv[1:] if argv is None else argv
    return run(argv, "python examples/run_classification.py", train_with_trainer)


if __name__ == "__main__":
    main()
