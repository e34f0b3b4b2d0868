"""Files and folders that are written whole or not at all, and JSON read with clear errors."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
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


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """
    A new folder that appears whole or not at all: gives another one beside it to write into, which takes the name
    `folder` at the end, and is removed where the writing fails.

    Args:
        folder (`Path`): Its name; folders above it are made where they are missing.

    Raises:
        ValueError: when there is such a file, or such a folder with anything in it: nothing is ever replaced.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"expected a new or an empty folder, got {folder}, which holds something already")
    staging = folder.with_name(f".{folder.name}.incomplete")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        if folder.is_dir():
            folder.rmdir()
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def discarded_on_error(folder: Path | None) -> Iterator[None]:
    """Removes a half-written `folder` where writing failed, and says in the error that nothing older was touched."""
    try:
        yield
    except Exception as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        error.add_note("The new checkpoint could not be written and was discarded; older ones are untouched.")
        raise


def replace_files(source: Path, target: Path) -> None:
    """Moves every file of the folder `source` into `target`, each in one step, and removes `source`."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        os.replace(path, target / path.name)
    source.rmdir()


def check_folder(folder: Path) -> None:
    """Raises OSError where no file can be written, before the work begins."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


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
