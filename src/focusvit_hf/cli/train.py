"""`focusvit train`: trains a classifier on a folder of images or a data set."""

import argparse
import json


def add_train_command(commands: argparse._SubParsersAction) -> None:
    """Adds `focusvit train`."""
    # No argument begins with this prefix: all of them go to the parser of the training application, --help too.
    command = commands.add_parser("train", help="train a classifier on images", prefix_chars="\0", add_help=False)
    command.add_argument("arguments", nargs="*", help="a JSON recipe, and flags as of examples/run_classification.py")
    command.set_defaults(run=train)


def train(arguments: argparse.Namespace) -> None:
    """`focusvit train`: trains, and prints what was measured as JSON."""
    # It loads Trainer and datasets, which take seconds and which no other command needs.
    from ..training.run import run, train_with_trainer

    print(json.dumps(run(arguments.arguments, "focusvit train", train_with_trainer), indent=2))
