"""What the commands of `focusvit` share: types of arguments, and the arguments of all that load a checkpoint."""

import argparse
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def new_command(
    commands: argparse._SubParsersAction,
    run: Callable[[argparse.Namespace], int | None],
    help: str,
    parents: Sequence[argparse.ArgumentParser] = (),
    **options: Any,
) -> argparse.ArgumentParser:
    """
    Adds a command that is called like the function `run`, which does its work and may return an exit status. `help` is
    its line in the list of commands; the command's own help begins with the first paragraph of `run`'s docstring.
    """
    description = (inspect.getdoc(run) or "").partition("\n\n")[0]
    command = commands.add_parser(run.__name__, parents=parents, help=help, description=description, **options)
    command.set_defaults(run=run)
    return command


def add_images(command: argparse.ArgumentParser, help: str = "an image file", nargs: str = "+") -> None:
    """Adds the images that a command works on."""
    command.add_argument("images", nargs=nargs, type=Path, metavar="IMAGE", help=help)


def add_runtime(command: argparse.ArgumentParser) -> None:
    """Adds `--runtime`."""
    command.add_argument(
        "--runtime",
        choices=("torch", "onnx"),
        default="torch",
        help="what runs the model; with onnx, --model is a folder that `focusvit export` wrote (default: torch)",
    )


def add_new_folder(command: argparse.ArgumentParser, name: str) -> None:
    """Adds the folder that a command writes."""
    help = "the folder to write, which must be new or empty"
    command.add_argument(name, type=Path, metavar=name.upper(), help=help)


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def device(text: str | None) -> torch.device:
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # Only a tensor shows whether the device is there.
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"expected a device of this machine, got {text!r}: {error}") from error


def add_num_superpixels(command: argparse.ArgumentParser) -> None:
    """Adds `--num-superpixels`, the K of [`load_checkpoint`]."""
    command.add_argument(
        "--num-superpixels",
        type=count,
        metavar="K",
        help="how many superpixels to cut an image into (default: what the checkpoint was trained with)",
    )


def checkpoint_arguments() -> argparse.ArgumentParser:
    """Parent of the commands that run a checkpoint: `--model`, `--num-superpixels` and `--device`."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--model",
        metavar="FOLDER_OR_NAME",
        help="a FocusViT checkpoint: a folder or a name on the Hub (default: the one in this source tree)",
    )
    add_num_superpixels(shared)
    shared.add_argument(
        "--device",
        type=device,
        default=device(None),
        help="where to run, such as cpu or cuda:1 (default: cuda if there is a GPU, else cpu)",
    )
    return shared
