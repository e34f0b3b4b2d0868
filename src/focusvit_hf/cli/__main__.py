"""The `focusvit` command. Each group of commands lives in a file of its own, `cli_*.py`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers.utils import logging

import focusvit_hf

from .benchmark import add_benchmark_command
from .convert import add_convert_command
from .demo import add_demo_command
from .export import add_export_command
from .pictures import add_picture_commands
from .push import add_push_command
from .train import add_train_command


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the command.

    Args:
        argv (sequence of `str`, *optional*): The arguments, by default those of the process.

    Returns:
        `int`: 0, or 2 after an error, which is printed to stderr in one line. No output is left half-written.
    """
    arguments = _parser().parse_args(argv)
    try:
        with _quiet_library():
            arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"focusvit: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="focusvit", description="Classifies pictures with a FocusViT and shows what its answer rests on."
    )
    parser.add_argument("--version", action="version", version=f"focusvit {focusvit_hf.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_picture_commands,
        add_demo_command,
        add_convert_command,
        add_train_command,
        add_benchmark_command,
        add_push_command,
        add_export_command,
    ):
        add(commands)
    return parser


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Without progress bars and warnings of Transformers, whose say in errors is ours here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
