"""
Table and plot of what a dense ViT keeps when it does less, from the results of `curve.py`.

    python -m experiments.conversion.table

Writes `experiments/tables/conversion_224.json` and `.md`, and `experiments/results/conversion_224/curve.png`.
Differences are paired over images, see `paired_bootstrap.py`: to the dense ViT, to tokens that leave at random, and to
those that leave by their attention, each at the same share of FLOPs and with the same learning.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.conversion.curve import DENSE, LEARNING, QUESTION
from experiments.conversion.rows import FAMILIES
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.paired_bootstrap import MARGINS, Difference, interval_text, paired_bootstrap
from experiments.micro.results import RESULTS, write_table
from experiments.micro.tables import outcomes
from focusvit_hf.utils.files import read_json, write_whole


# By variant and learning.
Found = dict[tuple[str, str], list[dict[str, Any]]]
WHOLE = (DENSE, "at_once")
# Control of a row: the name of the difference, and the family that it is compared with.
_CONTROLS = {"to_random": "random", "to_attention": "attention_drop"}
_STYLES = {"at_once": "o:", "tuned": "s--", "distilled": "D-"}


def collect(folder: Path) -> Found:
    """The results in a folder by variant and learning, seed by seed; ValueError without the dense ViT's."""
    found: Found = {}
    for path in sorted(folder.glob("*-seed*.json")):
        result = read_json(path)
        found.setdefault((result["variant"], result["learning"]), []).append(result)
    if WHOLE not in found:
        raise ValueError(f"Expected a result of the dense ViT in {folder}, got only {sorted(found)}.")
    return found


def difference(found: Found, subject: tuple[str, str], control: tuple[str, str]) -> Difference | None:
    """The difference of two rows over the seeds that both have; None where there is none, or a row is missing."""
    runs = [{run["seed"]: run for run in found.get(key, ())} for key in (subject, control)]
    seeds = sorted(runs[0].keys() & runs[1].keys())
    if not seeds or subject == control:
        return None
    return paired_bootstrap(outcomes(runs[0], seeds), outcomes(runs[1], seeds))


def table(found: Found) -> list[dict[str, Any]]:
    """One row a variant and learning, by family, FLOPs and learning."""
    rows = []
    for (variant, learning), runs in found.items():
        first = runs[0]
        controls = {"to_dense": WHOLE}
        budget = round(100 * first["budget"])
        controls |= {name: (f"{family}_{budget}", learning) for name, family in _CONTROLS.items()}
        differences = {name: difference(found, (variant, learning), other) for name, other in controls.items()}
        speeds = [run["throughput"]["to_dense"] for run in runs if "throughput" in run]
        rows.append(
            {
                **{name: first[name] for name in ("variant", "family", "budget", "learning", "flops", "share")},
                "speed": float(np.median(speeds)) if speeds else None,
                "seeds": [run["seed"] for run in runs],
                "accuracy": float(np.mean([run["accuracy"] for run in runs])),
                "differences": {
                    name: {**asdict(known), "verdict": known.verdict(MARGINS["imagenette"])}
                    for name, known in differences.items()
                    if known is not None
                },
            }
        )
    order = (DENSE, *FAMILIES)
    return sorted(rows, key=lambda row: (order.index(row["family"]), -row["share"], LEARNING.index(row["learning"])))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table to read; FLOPs in per cent of the dense ViT's, the rest in points."""
    names = {"to_dense": "to the dense ViT", "to_random": "to random", "to_attention": "to attention"}
    head = ("variant", "learning", "FLOPs", "speed", "accuracy", *names.values())
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        speed = "" if row["speed"] is None else f"{row['speed']:.2f}×"
        cells = [row["variant"], row["learning"].replace("_", " "), f"{row['share']:.0%}", speed]
        cells.append(f"{100 * row['accuracy']:.1f}")
        cells += [interval_text(row["differences"].get(name)) for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG: accuracy against the share of FLOPs and against throughput, by family and learning."""
    from matplotlib import colormaps, rc_context
    from matplotlib.figure import Figure

    dense = next(row for row in rows if (row["variant"], row["learning"]) == WHOLE)
    families = [family for family in FAMILIES if any(row["family"] == family for row in rows)]
    colours = {family: colormaps["tab20"](index) for index, family in enumerate(families)}
    with rc_context({"axes.spines.right": False, "axes.spines.top": False, "font.size": 9}):
        figure = Figure(figsize=(11, 6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, key in ((left, "share"), (right, "speed")):
            axes.axhline(100 * dense["accuracy"], color="black", linewidth=1, label="dense ViT")
            for family in families:
                for learning in LEARNING:
                    points = [
                        row
                        for row in rows
                        if (row["family"], row["learning"]) == (family, learning) and row[key] is not None
                    ]
                    points.sort(key=lambda row: row[key])
                    label = f"{family.replace('_', ' ')}, {learning.replace('_', ' ')}"
                    places = [row[key] for row in points], [100 * row["accuracy"] for row in points]
                    if points:
                        axes.plot(*places, _STYLES[learning], color=colours[family], label=label, markersize=4)
            axes.grid(axis="y", color="#DDDDDD")
        left.set_xlabel("share of the dense ViT's FLOPs")
        right.set_xlabel("throughput relative to the dense ViT, superpixels included")
        left.set_ylabel("accuracy on the test images, %")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=7)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    """Writes table and plot, and prints the table."""
    parser = parser_of(__doc__)
    add_options(parser, "results", "tables", results=RESULTS / QUESTION)
    arguments = parser.parse_args(argv)
    found = collect(arguments.results)
    rows = table(found)
    environment = found[WHOLE][0]["environment"]
    content = {"question": QUESTION, "split": "test", "environment": environment, "rows": rows}
    write_table(arguments.tables, QUESTION, content, markdown(rows))
    write_whole(arguments.results / "curve.png", plot(rows))


if __name__ == "__main__":
    main()
