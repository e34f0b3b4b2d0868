"""
Makes the table of what selecting costs in accuracy from the results of `experiments.selection.run`.

    python -m experiments.selection.tables

A row for each variant, and one for each other threshold of a gate that has one: accuracy and its difference from the
dense control, paired over images and seeds, the share of the tokens and of the FLOPs of the layers that select, and
recall of the tokens of which half or more lie in the object. Writes `experiments/tables/selection.json` and `.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from experiments.micro.arguments import add_options, parser_of
from experiments.micro.paired_bootstrap import MARGINS, interval_text, paired_bootstrap
from experiments.micro.results import folder_of, write_table
from experiments.micro.tables import Results, collect, outcomes
from focusvit_hf.utils.environment import environment


CONTROL = "dense"


def rows_of(found: Results) -> list[dict[str, Any]]:
    """The rows, the control first; ValueError where there is no result of it."""
    if CONTROL not in found:
        raise ValueError(f"Expected results of the control {CONTROL!r}, got only {sorted(found)}.")
    rows = []
    for variant in sorted(found, key=lambda name: (name != CONTROL, name)):
        runs = found[variant]
        seeds = sorted(runs)
        row: dict[str, Any] = {"variant": variant, "seeds": seeds}
        row["accuracy"] = float(np.mean([runs[seed]["accuracy"] for seed in seeds]))
        row |= means([runs[seed]["selection"] for seed in seeds])
        common = [seed for seed in seeds if seed in found[CONTROL]]
        if variant != CONTROL and common:
            difference = paired_bootstrap(outcomes(runs, common), outcomes(found[CONTROL], common))
            row |= {"difference": asdict(difference), "verdict": difference.verdict(MARGINS["imagenette"])}
        rows.append(row)
        for threshold in runs[seeds[0]].get("thresholds", {}):
            others = means([runs[seed]["thresholds"][threshold] for seed in seeds])
            rows.append({"variant": f"{variant}, threshold {threshold}", "seeds": seeds, **others})
    return rows


def means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means over seeds of figures by name."""
    return {name: float(np.mean([each[name] for each in figures])) for name in figures[0]}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table to read."""
    heads = ["variant", "seeds", "accuracy", "difference from dense", "tokens selected", "FLOPs", "recall"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["variant"], str(len(row["seeds"])), f"{100 * row['accuracy']:.1f} %"]
        verdict = f", {row['verdict']}" if "verdict" in row else ""
        cells.append(interval_text(row.get("difference")) + verdict)
        shares = (row.get(name) for name in ("selected_share", "cost_share", "recall"))
        cells += ["" if share is None else f"{100 * share:.1f} %" for share in shares]
        lines.append("| " + " | ".join(cells) + " |")
    tokens, area = (f"{100 * rows[0][name]:.1f} %" for name in ("object_tokens", "object_share"))
    lines += ["", f"Objects cover {area} of the images, and half or more of {tokens} of the tokens."]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the table."""
    parser = parser_of(__doc__)
    add_options(parser, "split", "results", "tables")
    arguments = parser.parse_args(argv)
    stem = folder_of("selection", arguments.split)
    rows = rows_of(collect(arguments.results / stem))
    content = {"rows": rows, "environment": environment(torch.device("cpu"), torch.bfloat16)}
    write_table(arguments.tables, stem, content, markdown(rows))


if __name__ == "__main__":
    main()
