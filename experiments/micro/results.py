"""Results of runs and tables of them: where they lie, what they say, and which runs are left to do."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from focusvit_hf.utils.environment import environment
from focusvit_hf.utils.files import read_json, write_json, write_whole


RESULTS = Path(__file__).resolve().parents[1] / "results"
TABLES = RESULTS.parent / "tables"


def packed(outcome: np.ndarray) -> str:
    """Outcomes `(count,)` bool as text: bits, first image first, in base 64."""
    return base64.b64encode(np.packbits(outcome).tobytes()).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """The inverse of [`packed`]."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)


def folder_of(question: str, split: str) -> str:
    """Name of the folder that holds a question's results on a split."""
    return question if split == "test" else f"{question}-{split}"


class Beginning:
    """
    When a run began and with what code, which may change while it runs.

    Args:
        precision (`str`), seed (`int`): Of the run.
    """

    def __init__(self, precision: str, seed: int) -> None:
        self.environment = environment(torch.device("cpu"), getattr(torch, precision), seed)
        self._time = time.perf_counter()

    def about(self) -> dict[str, Any]:
        """For the JSON of the run: `seconds` since then, and the `environment`."""
        return {"seconds": round(time.perf_counter() - self._time, 1), "environment": self.environment}


def write_result(path: Path, about: Mapping[str, Any], outcome: np.ndarray, beginning: Beginning) -> dict[str, Any]:
    """
    Writes the JSON of a run.

    Args:
        path (`Path`): The file.
        about (mapping): What was run.
        outcome (`np.ndarray` of shape `(images,)`): Whether each image was right.
        beginning ([`Beginning`]): Of the run.

    Returns:
        `dict`: What the JSON holds: `about`, and what follows from the others.
    """
    result = {
        **about,
        "images": len(outcome),
        "accuracy": float(outcome.mean()),
        "correct": packed(outcome),
        **beginning.about(),
    }
    write_json(path, result)
    return result


def write_table(folder: Path, stem: str, content: Mapping[str, Any], text: str) -> None:
    """Writes a table as `<stem>.json` and, to be read, as `<stem>.md`, and prints the text."""
    write_json(folder / f"{stem}.json", content)
    write_whole(folder / f"{stem}.md", text.encode())
    print(f"{stem}\n{text}")


def runs_left(
    wanted: Mapping[str, Mapping[str, Mapping[str, Any]]],
    seeds: Sequence[int],
    folder: Path,
    before: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, int]]:
    """
    The runs whose result is not in a folder, seed by seed: `(name, seed)`.

    Args:
        wanted (mapping): By name the `configuration` and the `recipe` that a result has to have.
        before (mapping): What fields of these were that came later than a result: their defaults.

    Raises:
        ValueError: when a result that is there is one of another configuration or recipe.
    """
    todo = []
    for seed in seeds:
        for name in wanted:
            path = folder / f"{name}-seed{seed}.json"
            if not path.is_file():
                todo.append((name, seed))
                continue
            there = read_json(path)
            for part, values in wanted[name].items():
                require_settings(path, {**before[part], **there[part]}, values)
    return todo


def require_settings(path: Path, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ValueError where what is known of a result that is there differs from what is wanted of it."""
    other = {key: known.get(key) for key in wanted if known.get(key) != wanted[key]}
    if other:
        raise ValueError(
            f"Expected {path} with { ({key: wanted[key] for key in other}) }, got {other}; choose another --results."
        )
