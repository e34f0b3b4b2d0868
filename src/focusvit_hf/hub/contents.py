"""What a checkpoint's folder is made of on the Hub: a list of what goes there, so that nothing else does."""

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..utils.files import read_json
from .loading import find_file, weights_files


CARD_FILE = "README.md"
TRAINING_LOG_FILE = "training_log.json"
_NAMES = (
    CARD_FILE,
    TRAINING_LOG_FILE,
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    ".gitattributes",
    "CITATION.cff",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
)
# Images of a card may lie in folders of their own.
_IMAGES = (".gif", ".jpeg", ".jpg", ".png", ".svg", ".webp")


def code_files() -> set[Path]:
    """
    The files of this package that every checkpoint carries: all that lie at its root, but for `__init__.py`. The
    library's loader reads `from .sibling import X` beside the entry file and no folder, so what a model needs lies
    there, and nothing else does.
    """
    return {path for path in Path(__file__).resolve().parents[1].glob("*.py") if path.name != "__init__.py"}


def with_imports(folder: Path, modules: Iterable[str]) -> set[Path]:
    """The files of modules and of all siblings they import; FileNotFoundError where one of these is not there."""
    entries = {folder / f"{module}.py" for module in modules}
    # The library's own search, so that what is saved is what the library will look for.
    return entries | {Path(file) for entry in entries for file in get_relative_import_files(entry)}


def code_of(folder: Path) -> set[Path]:
    """
    The code that a folder brings: the classes that its config.json names, all that they import, and what else of this
    package's lies there. Empty where there is no such folder, or where part of its code is absent.

    Raises:
        ValueError: when config.json cannot be read, or names classes in another way than `module.Class`.
    """
    if not folder.is_dir() or find_file(folder, CONFIG_NAME) is None:
        return set()
    entries = read_json(folder / CONFIG_NAME).get("auto_map") or {}
    if not isinstance(entries, dict) or not all(isinstance(entry, str) for entry in entries.values()):
        raise ValueError(f"{CONFIG_NAME}: expected an auto_map from classes to module.Class, got {entries!r}")
    modules = {entry.partition(".")[0] for entry in entries.values()}
    # Another repository's code is none of this folder's: "owner/name--module.Class".
    if not modules or not all(module.isidentifier() for module in modules):
        return set()
    try:
        found = with_imports(folder, modules)
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        raise ValueError(f"expected the code that {CONFIG_NAME} names, got: {error}") from error
    return found | {folder / file.name for file in code_files() if (folder / file.name).is_file()}


def files_of_checkpoint(folder: Path) -> dict[str, Path]:
    """
    What goes to the Hub of a folder by [`save_for_hub`], by its path there.

    Raises:
        ValueError: when one of them is a link that leads outside of the folder, or no file.
    """
    chosen = {file for file in (folder / name for name in _NAMES) if os.path.lexists(file)}
    chosen |= {*code_of(folder), *weights_files(folder)}
    chosen |= {file for file in _walk(folder) if file.suffix.lower() in _IMAGES and not _is_hidden(file, folder)}
    root = folder.resolve()
    for file in chosen:
        # Unlike Path.resolve it takes links that lead to themselves, which are refused below.
        target = Path(os.path.realpath(file))
        if not target.is_relative_to(root):
            raise ValueError(f"expected files of {folder} alone, got a link: {file.name} leads to {target}")
        if not file.is_file():
            raise ValueError(f"{file.name}: expected a file, got another thing of that name")
    return {file.relative_to(folder).as_posix(): file for file in sorted(chosen)}


def left_out_of(folder: Path, uploaded: Collection[str]) -> tuple[str, ...]:
    """The files of a folder that are not among those uploaded, and folders of which none is, with a `/` behind."""
    kept = {parent.as_posix() for name in uploaded for parent in Path(name).parents}
    left_out = set()
    for file in _walk(folder):
        name = file.relative_to(folder)
        if name.as_posix() not in uploaded:
            above = [parent.as_posix() for parent in name.parents if parent.as_posix() not in kept]
            left_out.add(f"{above[-1]}/" if above else name.as_posix())
    return tuple(sorted(left_out))


def _walk(folder: Path) -> Iterable[Path]:
    """All that lies in a folder but folders; links to folders are among it and are not followed."""
    for above, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(above, name))]
        yield from (Path(above, name) for name in [*names, *links])


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)
