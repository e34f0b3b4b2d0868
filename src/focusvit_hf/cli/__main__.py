"""The `focusvit` command. Each of its commands lives in a file of its own in this folder."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers.utils import logging

import focusvit_hf

from ..utils.messages import one_line
from .benchmark import add_benchmark_command
from .convert import add_convert_command
from .demo import add_demo_command
from .export import add_export_command
from .images import add_image_commands
from .push import add_push_command
from .segment import add_segmentation_commands
from .train import add_train_command


# Of a shell, a process that was stopped from the keyboard ends with 128 and the number of the signal.
_FAILED, _STOPPED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the command.

    Args:
        argv (sequence of `str`, *optional*): The arguments, by default those of the process.

    Returns:
        `int`: 0; 1 where some of several images could not be used; 2 after an error; 130 when it was stopped from the
        keyboard. Errors are printed to stderr, in one line each. No output is left half-written.
    """
    arguments = _parser().parse_args(argv)
    try:
        with _quiet_library():
            return arguments.run(arguments) or 0
    except (ValueError, OSError) as error:
        print(f"focusvit: error: {one_line(error)}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("focusvit: stopped", file=sys.stderr)
        return _STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="focusvit",
        description="Classifies and segments images with a FocusViT, shows what its answers rest on, and converts, "
        "exports, measures and publishes models. `focusvit COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"focusvit {focusvit_hf.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_image_commands,
        add_segmentation_commands,
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
    """Without the progress bars and warnings of Transformers, which would stand between the lines of an answer."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # Errors too: what went wrong is said once, in one line.
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
