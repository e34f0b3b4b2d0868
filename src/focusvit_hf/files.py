"""Files that are written whole or not at all, and JSON read with clear errors."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> None:
    """
    Writes a file; one that is there is replaced in one step, or kept where writing fails.

    Args:
        path (`Path`): The file; folders above it are made where they are missing.
        content (`bytes`): What it shall hold.

    Raises:
        OSError: when it cannot be written, such as on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f"{path.name}.incomplete")
    try:
        staging.write_bytes(content)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """[`write_whole`] of `content` as JSON with sorted keys; what JSON does not know becomes text."""
    text = json.dumps(content, indent=2, sort_keys=True, default=str, ensure_ascii=False)
    write_whole(path, f"{text}\n".encode())


def read_json(path: Path) -> dict[str, Any]:
    """
    Reads a JSON object.

    Raises:
        ValueError: If the file does not hold one, with the reason.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {path}, got: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(content).__name__}")
    return content
