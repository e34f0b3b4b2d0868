"""What the two programs that measure time and memory have in common: their options, and what they write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from experiments.micro.arguments import add_options, parser_of
from experiments.micro.results import write_table
from focusvit_hf.utils.environment import environment


def run_program(
    description: str | None,
    argv: Sequence[str] | None,
    stem: str,
    measured: Callable[[int], Mapping[str, Any]],
    markdown: Callable[[Any], str],
    seed: int,
) -> None:
    """
    Reads a command line, measures, and writes the table.

    Args:
        description (`str`): What the program says of itself.
        argv (sequence of `str`, *optional*): The command line; by default the program's own.
        stem (`str`): What the files of the table are called.
        measured (callable): From a number of repeats to all figures.
        markdown (callable): From the figures to a table to read.
        seed (`int`): Of the weights.
    """
    parser = parser_of(description)
    add_options(parser, "tables")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    figures = measured(arguments.repeats)
    content = {"figures": figures, "environment": environment(torch.device("cpu"), torch.float32, seed)}
    write_table(arguments.tables, stem, content, markdown(figures))
