"""Options of the programs: one name means one thing in all of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from experiments.micro.data import CACHE, DATA, SPLITS
from experiments.micro.results import RESULTS, TABLES


_OPTIONS: dict[str, dict[str, Any]] = {
    "seeds": {"type": int, "nargs": "+", "default": [0]},
    "split": {"choices": SPLITS, "default": "test", "help": "What the runs are measured on."},
    "epochs": {"type": int, "default": 20},
    "workers": {"type": int, "default": os.cpu_count(), "help": "Runs side by side, one thread each."},
    "data": {"type": Path, "default": DATA},
    "cache": {"type": Path, "default": CACHE, "help": "Shrunk images and weights; outside the repository."},
    "results": {"type": Path, "default": RESULTS},
    "tables": {"type": Path, "default": TABLES},
}


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows the docstring of a program as it stands."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_options(parser: argparse.ArgumentParser, *names: str, **defaults: Any) -> None:
    """
    Adds options of these names.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
        names (`str`): Which.
        defaults: Other defaults than the common ones, by name.
    """
    for name in names:
        option = dict(_OPTIONS[name])
        parser.add_argument(f"--{name}", **{**option, "default": defaults.get(name, option["default"])})
