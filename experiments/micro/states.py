"""Where a run stands, kept so that the same command goes on after an interruption."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from focusvit_hf.utils.files import write_whole


def write_state(path: Path, content: Mapping[str, Any]) -> None:
    """
    `torch.save` that replaces an older state in one step, so that an interruption leaves one of the two whole;
    `torch.load(path, weights_only=True)` reads it.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_whole(path, buffer.getvalue())
