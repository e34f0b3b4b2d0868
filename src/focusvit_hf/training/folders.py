"""Folders of images, one for each class: what `datasets` is told of them, and what is wrong with them."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from PIL import Image


_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def image_patterns(folder: str) -> tuple[list[str], bool]:
    """
    Patterns of the images of a split, as `datasets.load_dataset("imagefolder", data_files=...)` takes them.

    Args:
        folder (`str`): A folder in which every class has a folder with its images; links are followed. Or one with a
            metadata file of `datasets`, which names the classes itself.

    Returns:
        `tuple[list[str], bool]`: The patterns, and whether the class of an image is the name of its folder.

    Raises:
        ValueError: If there is no such folder or no image, or if an image is in no folder of a class.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"expected a folder, got {folder}")
    if any((root / name).is_file() for name in _METADATA):
        return [f"{glob.escape(folder)}/**"], False
    first = {place: image for place, image in _first_images(root, frozenset()) if image is not None}
    if not first:
        raise ValueError(f"expected a folder of images for each class in {folder}, got no image; see {_example(root)}")
    if root in first:
        raise ValueError(
            f"expected a folder for each class in {folder}, got an image that is in none: {first[root]}; "
            f"move it to {_example(root)}"
        )
    for place in first:
        above = next((parent for parent in place.parents if parent in first), None)
        if above is not None:
            raise ValueError(
                f"expected all images of a class in one folder, got some in {above} and others in {place} below it"
            )
    return [f"{glob.escape(str(place))}/*" for place in first], True


def require_files(folder: str, pattern: str) -> None:
    """ValueError unless there is a file like `pattern` below `folder`, in linked folders too."""
    if not Path(folder).is_dir():
        raise ValueError(f"expected a folder, got {folder}")
    if not any(map(Path.is_file, map(Path, glob.iglob(f"{glob.escape(folder)}/**/{pattern}", recursive=True)))):
        raise ValueError(f"expected files {pattern} in {folder}, got none")


def _example(root: Path) -> Path:
    return root / "NAME_OF_THE_CLASS" / "image.jpg"


def _first_images(folder: Path, above: frozenset[Path]) -> Iterator[tuple[Path, Path | None]]:
    """Every folder below `folder`, itself included, with an image of it; a link to a folder above is not followed."""
    real = folder.resolve()
    if real in above:
        return
    kinds = Image.registered_extensions()
    children = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    yield folder, next((path for path in children if path.suffix.lower() in kinds and path.is_file()), None)
    for child in children:
        if child.is_dir():
            yield from _first_images(child, above | {real})
