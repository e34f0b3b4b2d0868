"""`focusvit train`: trains a classifier, or a model for segmentation, on a folder of images or a data set."""

import argparse
import json
from collections.abc import Sequence


CLASSIFICATION, SEGMENTATION = "classification", "segmentation"


def add_train_command(commands: argparse._SubParsersAction) -> None:
    """Adds `focusvit train`."""
    # No argument begins with this prefix: all of them go to the parser of the training application, --help too.
    command = commands.add_parser(
        "train", help="train a classifier or a segmentation model", prefix_chars="\0", add_help=False
    )
    command.add_argument("arguments", nargs="*", help="--task segmentation for masks; a JSON recipe, and flags")
    command.set_defaults(run=train)


def train(arguments: argparse.Namespace) -> None:
    """`focusvit train`: trains, and prints what was measured as JSON."""
    # It loads Trainer and datasets, which take seconds and which no other command needs.
    from ..training.run import run, train_with_trainer

    task, argv = split_off_task(arguments.arguments)
    if task == SEGMENTATION:
        from ..training.segmentation import SEGMENTATION as OF_MASKS
        from ..training.segmentation import train_segmentation

        figures = run(argv, f"focusvit train --task {task}", train_segmentation, task=OF_MASKS)
    else:
        figures = run(argv, "focusvit train", train_with_trainer)
    print(json.dumps(figures, indent=2))


def split_off_task(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The task that `--task` names, and the other arguments; ValueError for another task."""
    # Only before the parser of the application reads the arguments is it known which they are.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", default=CLASSIFICATION)
    known, others = parser.parse_known_args(list(argv))
    if known.task not in (CLASSIFICATION, SEGMENTATION):
        raise ValueError(f"expected --task {CLASSIFICATION} or {SEGMENTATION}, got {known.task!r}")
    return known.task, others
