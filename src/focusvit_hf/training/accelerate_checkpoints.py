"""Checkpoints of a loop with Accelerate: written whole or not at all, and read without running code in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers.trainer_utils import rotate_checkpoints

from ..utils.files import read_json, write_json
from .checkpoints import (
    PROGRESS_FILE,
    begin_checkpoint,
    check_state,
    check_weights,
    discard_unfinished,
    discarding_unfinished,
)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether every process holds a part of the weights only."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def write_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    progress: Mapping[str, Any],
    more: Callable[[Path], None],
    is_main: bool,
    limit: int | None = None,
) -> None:
    """
    Writes a checkpoint, then deletes the oldest ones beside it; all processes call this.

    Args:
        folder (`Path`): The new checkpoint, see [`checkpoint_folder`].
        progress (`dict`): Where training stands, for JSON: what [`read_checkpoint`] gives back.
        more (`Callable`): Writes what else belongs to the checkpoint into the folder it is given; main process only.
        is_main (`bool`): Whether this process is the one that writes what is not of each process.
        limit (`int`, *optional*): How many checkpoints are kept; all by default.

    Raises:
        OSError: When it cannot be written, such as on a full disk; it is discarded then, and older ones are kept.
    """
    with discarding_unfinished(folder.parent, PROGRESS_FILE, is_main):
        if is_main:
            begin_checkpoint(folder)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(folder))
        # The random states of all processes, before the file that makes the checkpoint complete.
        accelerator.wait_for_everyone()
        if is_main:
            more(folder)
            # Through JSON here, which refuses what `write_json` would turn into text.
            write_json(folder / PROGRESS_FILE, json.loads(json.dumps(progress)))
    if is_main:
        discard_unfinished(folder.parent, PROGRESS_FILE)
        # Not by Accelerate's `ProjectConfiguration(total_limit=...)`, which deletes before it writes: a run that keeps
        # one checkpoint would have none while the next is written.
        rotate_checkpoints(str(folder.parent), limit, use_mtime=True)
    accelerator.wait_for_everyone()


def read_checkpoint(accelerator: Accelerator, folder: Path, model: nn.Module) -> dict[str, Any]:
    """
    Loads the state that Accelerate saved, after a look at every part of it; all processes call this.

    Args:
        model (`nn.Module`): The prepared model.

    Returns:
        `dict`: The `progress` that [`write_checkpoint`] was given.

    Raises:
        ValueError: If a part is missing, damaged, of another model, or a pickle of an older version.
    """
    progress = read_json(folder / PROGRESS_FILE)
    pickles = sorted(path.name for path in folder.glob("custom_checkpoint_*.pkl"))
    if pickles or "scheduler" not in progress:
        raise ValueError(
            f"expected the state of the learning rate in {folder / PROGRESS_FILE}, got {pickles or 'none'}: pickled "
            "state of an older version is not read"
        )
    if not is_sharded(accelerator):
        check_weights(folder, model)
        check_state(folder / "optimizer.bin")
    if accelerator.scaler is not None:
        check_state(folder / "scaler.pt")
    check_state(folder / f"random_states_{accelerator.process_index}.pkl", needed=False)
    accelerator.load_state(str(folder))
    return progress
