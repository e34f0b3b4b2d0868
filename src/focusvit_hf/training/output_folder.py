"""The output folder of a run: where training begins, what is in the way, and whether the run is finished already."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..hub.folder import TRAINING_LOG_FILE
from ..utils.files import read_json
from .arguments import TrainingArguments
from .checkpoints import (
    TRAINER_STATE,
    checkpoint_folder,
    discard_unfinished,
    is_complete,
    is_left_over,
    last_checkpoint,
)


logger = logging.get_logger(__name__)


def prepare_output_dir(args: TrainingArguments, state_file: str = TRAINER_STATE) -> str | None:
    """
    Decides where training begins; changes nothing.

    Args:
        state_file (`str`, *optional*, defaults to `"trainer_state.json"`): The file that a checkpoint ends with.

    Returns:
        `str` or `None`: The checkpoint to resume from: the one asked for, or the last complete one in the output
        folder.

    Raises:
        ValueError: If nothing can be written to the output folder, if it holds something else, if the checkpoint is
            not there or of another script, or if one is asked for without training.
    """
    output_dir = args.folder
    require_writable(output_dir)
    wanted = args.resume_from_checkpoint
    if not args.do_train:
        if wanted:
            raise ValueError(f"expected --do_train with --resume_from_checkpoint, got {wanted!r} alone")
        return None
    if wanted and wanted.lower() not in ("true", "last"):
        if not is_complete(Path(wanted), state_file):
            raise ValueError(f"expected a checkpoint with {state_file} in {wanted}, got none")
        return wanted
    if args.overwrite_output_dir and not wanted:
        return None
    checkpoint = last_checkpoint(output_dir, state_file)
    if checkpoint is not None:
        return str(checkpoint)
    if wanted:
        raise ValueError(f"expected a checkpoint to resume from in {output_dir}, got none")
    # What is left of a first checkpoint that was never finished is no reason to refuse the same command.
    others = [path.name for path in output_dir.glob("*") if not is_left_over(path)]
    if others:
        raise ValueError(
            f"expected an empty output_dir, got {output_dir} with other files in it, such as {min(others)!r}; "
            "choose another or give --overwrite_output_dir"
        )
    return None


def require_writable(folder: Path) -> None:
    """ValueError where the folder, or the nearest one above it that is there, takes no file: known before training."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as error:
        raise ValueError(f"expected a folder to write to as --output_dir, got {folder}: {error}") from error


def clear_output_dir(args: TrainingArguments, checkpoint: str | None, state_file: str = TRAINER_STATE) -> None:
    """
    Deletes the checkpoints that training does not go on from: a half-written one, and all with
    `--overwrite_output_dir`.

    Args:
        checkpoint (`str`, *optional*): What [`prepare_output_dir`] decided on.
    """
    with args.main_process_first(desc="clearing the output folder"):
        if args.should_save:
            discard_unfinished(args.folder, state_file)
            if args.overwrite_output_dir and checkpoint is None:
                for folder in args.folder.glob("checkpoint-*"):
                    shutil.rmtree(folder)


def finished_figures(
    args: TrainingArguments, arguments: Mapping[str, Any], state_file: str = TRAINER_STATE
) -> dict[str, float] | None:
    """
    What the same run told when it ended, or None where it has to be done, or done again. The log is written when
    everything else is done, and tells of the model only while no other training went on from there.

    Args:
        arguments (`dict`): All arguments of the run that is started now, see [`public_arguments`].
        state_file (`str`, *optional*, defaults to `"trainer_state.json"`): The file that a checkpoint ends with.
    """
    path = args.folder / TRAINING_LOG_FILE
    if not args.do_train or args.overwrite_output_dir or not path.is_file():
        return None
    log = read_json(path)
    # As they are read back: pairs as lists, paths as text.
    if log.get("arguments") != json.loads(json.dumps(arguments, default=str)):
        return None
    checkpoint = last_checkpoint(args.folder, state_file)
    if checkpoint is not None and checkpoint != checkpoint_folder(args.folder, log.get("steps", -1)):
        return None
    logger.warning(
        f"The run in {args.folder} is finished: nothing was trained and nothing was written. More --max_steps or "
        "--num_train_epochs go on from its end, --overwrite_output_dir begins anew."
    )
    return log.get("figures", {})
