"""Files and folders that are written whole or not at all, and JSON read with clear errors."""

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


try:
    import fcntl
except ImportError:  # Windows has no locks on folders: there the files of two writers of one folder may mix.
    fcntl = None  # type: ignore[assignment]

_MOST_LEVELS = 100


def staging_path(target: Path) -> Path:
    """
    A path beside `target` that nobody else uses, to write what is then moved to `target` in one step: two writers
    never share it, and it is the name of no file of a user. A process that is killed leaves it there.
    """
    return target.with_name(f".{secrets.token_hex(8)}.incomplete")


def write_whole(path: Path, content: bytes) -> None:
    """
    Writes a file; one that is there is replaced in one step, or kept where writing fails. Of several writers the last
    one wins, and a reader sees the whole content of one of them.

    A link stays a link, and the file that it leads to is replaced, with the permissions that it had. What is no
    regular file, such as a device or a named pipe, is written into.

    Args:
        path (`Path`): The file; folders above it are made where they are missing.
        content (`bytes`): What it shall hold.

    Raises:
        OSError: when it cannot be written, such as on a full disk.
    """
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        path.write_bytes(content)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = staging_path(path)
    # Nobody may read for a moment what only its owner may read.
    permissions = 0o666 if mode is None else stat.S_IMODE(mode) & 0o600
    try:
        with open(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions), "wb") as file:
            file.write(content)
            file.flush()
            # The content before its name: else a machine that stops may keep the new name without it.
            os.fsync(file.fileno())
        if mode is not None:
            staging.chmod(stat.S_IMODE(mode))
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def _mode(path: Path) -> int | None:
    """Kind and permissions of the file that a path leads to, None where there is none."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def check_file(path: Path, inputs: Iterable[Path] = ()) -> None:
    """
    Whether [`write_whole`] can write a file, before the work begins whose result it is to hold.

    Args:
        path (`Path`): The file.
        inputs (iterable of `Path`): What the work reads, none of which may be replaced by its result.

    Raises:
        ValueError: when it is a folder, or one of the inputs.
        OSError: when it cannot be written.
    """
    mode = _mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        raise ValueError(f"expected a file to write to, got the folder {path}")
    for given in inputs:
        if path.resolve() == given.resolve() or (
            mode is not None and _mode(given) is not None and path.samefile(given)
        ):
            raise ValueError(f"expected a file to write to that is none of the inputs, got {path}")
    if mode is None or stat.S_ISREG(mode):
        check_folder(path.resolve().parent)
    if mode is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """
    A new folder that appears whole or not at all: gives another one beside it to write into, which takes the name
    `folder` at the end, and is removed where the writing fails.

    Args:
        folder (`Path`): Its name; folders above it are made where they are missing.

    Raises:
        ValueError: when there is such a file, or such a folder with anything in it, at the beginning or at the end:
            nothing is ever replaced, and of several writers the first one wins.
    """
    folder = folder.resolve()
    _refuse_taken(folder)
    staging = staging_path(folder)
    staging.mkdir(parents=True)
    try:
        yield staging
        _onto_the_disk(staging)
        _refuse_taken(folder)
        try:
            # An empty folder is replaced in the same step, but not on Windows.
            if folder.is_dir():
                folder.rmdir()
            os.rename(staging, folder)
        except OSError:
            # Another writer may have come first since the look above.
            _refuse_taken(folder)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _refuse_taken(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"expected a new or an empty folder, got {folder}, which holds something already")


def _onto_the_disk(folder: Path) -> None:
    """Waits until the content of all files of a folder is on the disk, before the folder or they get other names."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


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
    """
    Moves every file of the folder `source` into `target`, each in one step, and removes `source`. Two writers with a
    `source` each take turns, so that `target` holds the files of one of them.
    """
    target.mkdir(parents=True, exist_ok=True)
    _onto_the_disk(source)
    with _turn(target):
        for path in sorted(source.iterdir()):
            os.replace(path, target / path.name)
        source.rmdir()


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Waits until nobody else holds the folder, and holds it: a lock that leaves no file and ends with its owner."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
        ValueError: If the file does not hold one, with the reason, or one of more than 100 levels: programs that copy
            or write it would fail on it later.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    # Text that is no UTF-8, numbers of thousands of digits, lists in lists without end.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in {path}, got: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(content).__name__}")
    level: list[Any] = [content]
    for _ in range(_MOST_LEVELS):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
        if not level:
            return content
    raise ValueError(f"expected JSON of at most {_MOST_LEVELS} levels in {path}, got more")
