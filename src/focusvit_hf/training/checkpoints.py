"""Checkpoints of a run: which are whole, what an interrupted run left behind, and whether every part can be read."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..hub.loading import shapes_of_file
from ..utils.files import read_json, replace_files


logger = logging.get_logger(__name__)

# The file that each of the two scripts writes last: a folder without it, or with half of it, is no checkpoint.
TRAINER_STATE = "trainer_state.json"
PROGRESS_FILE = "progress.json"
# Names the checkpoint that is being written. Trainer leaves files that begin with "_" out of what it pushes.
UNFINISHED_FILE = "_unfinished_checkpoint"
# Where a model is written before its files replace those of an older one.
STAGING_FOLDER = ".incomplete"

_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


def checkpoint_folder(run: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return run / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def is_complete(folder: Path, state_file: str) -> bool:
    """Whether a checkpoint was written to its end: its state file is there, with all of its JSON."""
    try:
        read_json(folder / state_file)
    except (OSError, ValueError):
        return False
    return True


def last_checkpoint(run: Path, state_file: str) -> Path | None:
    """
    The complete checkpoint of the most steps in the folder `run`, or None.

    Args:
        state_file (`str`): The file that is written last, [`TRAINER_STATE`] or [`PROGRESS_FILE`].

    Raises:
        ValueError: If the last checkpoint is one of the other script, which this one cannot read.
    """
    folders = [path for path in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    for folder in sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if is_complete(folder, state_file):
            return folder
        if any(is_complete(folder, other) for other in (TRAINER_STATE, PROGRESS_FILE)):
            raise ValueError(f"expected a checkpoint with {state_file} in {folder}, got none: another script wrote it")
        logger.warning(f"{folder} is skipped: it is no complete checkpoint, since {state_file} is missing or damaged.")
    return None


def begin_checkpoint(folder: Path) -> None:
    """Makes place for a checkpoint in `folder`, and notes beside it that it is not written to its end yet."""
    # An older one of the same step would lend its state file to the half-written new one.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder.parent / UNFINISHED_FILE).write_text(folder.name)


def discard_unfinished(run: Path, state_file: str) -> Path | None:
    """Deletes the half-written checkpoint that is noted in the folder `run`, and the note; gives what was deleted."""
    note = run / UNFINISHED_FILE
    if not note.is_file():
        return None
    name, discarded = note.read_text(), None
    # Whatever a file says, nothing else than a checkpoint of this folder is deleted.
    if _NAME.fullmatch(name) and (run / name).is_dir() and not is_complete(run / name, state_file):
        discarded = run / name
        shutil.rmtree(discarded)
    note.unlink()
    return discarded


@contextlib.contextmanager
def discarding_unfinished(run: Path, state_file: str, is_main: bool = True) -> Iterator[None]:
    """Where writing a checkpoint fails within this context, it is deleted, and the error says so."""
    try:
        yield
    except Exception as error:
        if is_main and discard_unfinished(run, state_file):
            error.add_note("The new checkpoint could not be written and was discarded; older ones are untouched.")
        raise


@contextlib.contextmanager
def replacing_model(target: Path, is_main: bool = True) -> Iterator[Path]:
    """
    Gives a folder to write a model into, whose files replace those of `target` when all of them are on the disk. Where
    writing fails, the model in `target` stays as it was.

    Args:
        is_main (`bool`, *optional*, defaults to `True`): Whether this process is the one that writes.
    """
    staging = target / STAGING_FOLDER
    if is_main:
        # What a killed process left. No barrier: a model that is not sharded may be saved by one process alone.
        shutil.rmtree(staging, ignore_errors=True)
    try:
        yield staging
        if is_main:
            replace_files(staging, target)
    finally:
        if is_main:
            shutil.rmtree(staging, ignore_errors=True)


def is_left_over(path: Path) -> bool:
    """Whether a process that was killed left `path` in its output folder: nothing to be kept."""
    note = path.parent / UNFINISHED_FILE
    if path.name == UNFINISHED_FILE or (note.is_file() and path.name == note.read_text()):
        return True
    return path.name.startswith(".") and path.name.endswith(".incomplete")


def check_weights(folder: Path, model: nn.Module, optional: bool = False) -> None:
    """
    Checks the weights of a checkpoint by the headers of its files, before anything is changed.

    Args:
        folder (`Path`): The checkpoint.
        model (`nn.Module`): The model that is to take the weights.
        optional (`bool`, *optional*, defaults to `False`): Whether the weights of adapters alone are enough.

    Raises:
        ValueError: If they are missing, damaged, or of another model.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for path in (*folder.glob("model*.safetensors"), *folder.rglob("adapter*.safetensors")):
            found = shapes_of_file(path)
            if path.name.startswith("model"):
                shapes |= found
    except (OSError, SafetensorError) as error:
        raise ValueError(f"expected the weights of this model in {folder}, got: {error}") from error
    if optional and not shapes:
        return
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    different = sorted(name for name in own.keys() | shapes.keys() if own.get(name) != shapes.get(name))
    if different:
        name = different[0]
        expected, got = (f"shape {each[name]}" if name in each else "no such tensor" for each in (own, shapes))
        raise ValueError(
            f"expected the weights of this model in {folder}, got others in {len(different)} tensors, such as {name}: "
            f"expected {expected}, got {got}"
        )


def check_state(path: Path, needed: bool = True) -> None:
    """
    Checks a file of tensors and plain values that training goes on with; no code in it is run.

    Args:
        path (`Path`): What `torch.save` wrote.
        needed (`bool`, *optional*, defaults to `True`): Whether training may not go on without it.

    Raises:
        ValueError: If it is needed and missing, and if it is damaged or holds more than that.
    """
    if not path.is_file():
        if needed:
            raise ValueError(f"expected {path.name} in the checkpoint {path.parent} to resume from, got no such file")
        logger.warning(
            f"{path.name} is missing in {path.parent}: training goes on with other random numbers than a run that was "
            "not interrupted, as it does on another number of processes."
        )
        return
    try:
        with safe_globals():
            torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    # A damaged file can fail in any step of reading it.
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"expected tensors and plain values in {path}, got what cannot be read: {reason}") from error
