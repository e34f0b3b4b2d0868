"""
Makes the table of a question from the results of its runs: accuracies, and differences to a control with intervals.

    python -m experiments.micro.tables controls_36 attention
    python -m experiments.micro.tables tokens --control grid_16
    python -m experiments.micro.tables controls_36 controls_16 controls_9 --together controls

Writes `experiments/tables/<question>.json` and `.md`. Differences are paired over images and over the seeds that
both have, see `paired_bootstrap.py`. `--together` makes one table of all questions, in which the runs of each count
like more seeds: a difference that is the same at several numbers of tokens is known better than at one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.micro.arguments import add_options, parser_of
from experiments.micro.paired_bootstrap import MARGINS, interval_text, paired_bootstrap
from experiments.micro.questions import PARAMETER_TOLERANCE, QUESTIONS
from experiments.micro.results import folder_of, unpacked, write_table
from focusvit_hf.utils.environment import environment
from focusvit_hf.utils.files import read_json


Results = dict[str, dict[int, dict[str, Any]]]


def collect(folder: Path) -> Results:
    """The results in a folder, by variant and seed."""
    found: Results = {}
    for path in sorted(folder.glob("*-seed*.json")):
        result = read_json(path)
        found.setdefault(result["variant"], {})[result["seed"]] = result
    return found


def outcomes(runs: Mapping[int, Mapping[str, Any]], seeds: Sequence[int]) -> np.ndarray:
    """Whether each image was right in each run, `(seeds, images)` bool."""
    return np.stack([unpacked(runs[seed]["correct"], runs[seed]["images"]) for seed in seeds])


def table(found: Results, control: str, margin: float = MARGINS["imagenette"]) -> list[dict[str, Any]]:
    """
    One row a variant, the control first, then by accuracy.

    Args:
        found (`dict`): By variant and seed the results of [`collect`].
        control (`str`): The variant that the others are compared with.
        margin (`float`): See `Difference.verdict`.

    Returns:
        `list[dict]`: `variant, tokens, parameters, parameter_ratio, seeds, accuracy` (mean over seeds), `accuracies`,
        `minutes` and, but for the control, `difference` (a dict) and `verdict`, where both have a seed in common.

    Raises:
        ValueError: when there is no result of the control.
    """
    if control not in found:
        raise ValueError(f"Expected results of the control {control!r}, got only {sorted(found)}.")
    own = next(iter(found[control].values()))["parameters"]
    rows = []
    for variant, runs in found.items():
        seeds = sorted(runs)
        first = runs[seeds[0]]
        accuracies = [runs[seed]["accuracy"] for seed in seeds]
        row = {
            "variant": variant,
            "tokens": first["tokens"],
            "parameters": first["parameters"],
            "parameter_ratio": round(first["parameters"] / own, 4),
            "seeds": seeds,
            "accuracy": float(np.mean(accuracies)),
            "accuracies": accuracies,
            "minutes": round(float(np.mean([runs[seed]["seconds"] for seed in seeds])) / 60, 1),
        }
        common = [seed for seed in seeds if seed in found[control]]
        if variant != control and common:
            difference = paired_bootstrap(outcomes(runs, common), outcomes(found[control], common))
            row |= {"difference": asdict(difference), "verdict": difference.verdict(margin)}
        rows.append(row)
    return sorted(rows, key=lambda row: (row["variant"] != control, -row["accuracy"]))


def together(
    found: Mapping[str, Results], control: str, margin: float = MARGINS["imagenette"]
) -> list[dict[str, Any]]:
    """
    One row for each variant that stands beside the control in several questions, the best first.

    Args:
        found (mapping): By question the results of [`collect`], all on the same images.
        control (`str`), margin (`float`): See [`table`].

    Returns:
        `list[dict]`: `variant`, `runs` (by question the seeds that both have), `accuracy` and `control_accuracy` over
        these runs, `difference` and `verdict`.

    Raises:
        ValueError: when no variant stands beside the control in several questions.
    """
    rows = []
    for variant in dict.fromkeys(variant for results in found.values() for variant in results if variant != control):
        runs = {
            question: sorted(results[variant].keys() & results[control].keys())
            for question, results in found.items()
            if variant in results and control in results
        }
        runs = {question: seeds for question, seeds in runs.items() if seeds}
        if len(runs) < 2:
            continue
        own, others = (
            np.concatenate([outcomes(found[question][name], seeds) for question, seeds in runs.items()])
            for name in (variant, control)
        )
        difference = paired_bootstrap(own, others)
        rows.append(
            {
                "variant": variant,
                "runs": runs,
                "accuracy": float(own.mean()),
                "control_accuracy": float(others.mean()),
                "difference": asdict(difference),
                "verdict": difference.verdict(margin),
            }
        )
    if not rows:
        raise ValueError(f"Expected variants beside the control {control!r} in several of {sorted(found)}, got none.")
    return sorted(rows, key=lambda row: -row["difference"]["mean"])


def markdown_together(rows: Sequence[Mapping[str, Any]], control: str) -> str:
    """The rows of [`together`] as a table to read."""
    lines = [
        f"| variant | runs | accuracy | {control} | difference (95 %) | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        runs = ", ".join(f"{question}: {len(seeds)}" for question, seeds in row["runs"].items())
        accuracies = (f"{100 * row[key]:.1f}" for key in ("accuracy", "control_accuracy"))
        cells = (row["variant"], runs, *accuracies, interval_text(row["difference"]), row["verdict"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table to read; parameters that differ from the control's by more than allowed are marked."""
    control = rows[0]["variant"]
    lines = [
        f"| variant | tokens | parameters | seeds | accuracy | difference to {control} (95 %) | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mark = " !" if abs(row["parameter_ratio"] - 1) > PARAMETER_TOLERANCE else ""
        cells = (
            row["variant"],
            row["tokens"],
            f"{row['parameters'] / 1000:.0f} k{mark}",
            len(row["seeds"]),
            f"{100 * row['accuracy']:.1f}",
            interval_text(row.get("difference")),
            row.get("verdict", "control" if row["variant"] == control else ""),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _write_together(arguments: argparse.Namespace) -> None:
    controls = {arguments.control or QUESTIONS[question]().control for question in arguments.questions}
    if len(controls) != 1:
        raise ValueError(f"Expected questions of one control, or --control, got {sorted(controls)}.")
    control = controls.pop()
    found = {q: collect(arguments.results / folder_of(q, arguments.split)) for q in arguments.questions}
    rows = together(found, control, arguments.margin)
    content = {"questions": arguments.questions, "split": arguments.split, "control": control}
    content["environment"] = environment(torch.device("cpu"), torch.float32)
    stem = arguments.together if arguments.control is None else f"{arguments.together}-against-{control}"
    content |= {"margin": arguments.margin, "rows": rows}
    write_table(arguments.tables, stem, content, markdown_together(rows, control))


def main(argv: Sequence[str] | None = None) -> None:
    """Writes and prints the tables asked for."""
    parser = parser_of(__doc__)
    parser.add_argument("questions", nargs="+", choices=QUESTIONS)
    parser.add_argument("--control", help="Another control than the question's own.")
    add_options(parser, "split", "results", "tables")
    parser.add_argument("--margin", type=float, default=MARGINS["imagenette"], help="Of 'not worse', in 0..1.")
    parser.add_argument("--together", metavar="NAME", help="One table of all questions, of this name.")
    arguments = parser.parse_args(argv)
    if arguments.together is not None:
        _write_together(arguments)
        return
    for question in arguments.questions:
        name = folder_of(question, arguments.split)
        asked = QUESTIONS[question]()
        control = arguments.control or asked.control
        found = collect(arguments.results / name)
        rows = table(found, control, arguments.margin)
        first = next(iter(found[control].values()))
        content = {
            "question": question,
            "asks": asked.asks,
            "split": arguments.split,
            "control": control,
            "margin": arguments.margin,
            "epochs": first["recipe"]["epochs"],
            "environment": environment(torch.device("cpu"), torch.float32),
            "rows": rows,
        }
        stem = name if arguments.control is None else f"{name}-against-{control}"
        write_table(arguments.tables, stem, content, markdown(rows))


if __name__ == "__main__":
    main()
