"""
Table and plot of how much a conversion keeps, from the results of `curve.py`.

    python -m experiments.conversion.table

Writes `experiments/tables/conversion.json` and `.md`, and `experiments/results/conversion/conversion.png`. Differences
are paired over images, see `micro/paired_bootstrap.py`: to the dense ViT, of superpixels to the grid, of a fine-tune
with a teacher to one without.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.conversion.curve import LEARNING, QUESTION
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.paired_bootstrap import MARGINS, Difference, interval_text, paired_bootstrap
from experiments.micro.results import RESULTS, write_table
from experiments.micro.tables import outcomes
from focusvit_hf.utils.files import read_json, write_whole


# By variant and learning; the dense ViT is ("vit", "at_once").
Found = dict[tuple[str, str], list[dict[str, Any]]]

# Colours of Okabe and Ito, which everybody can tell apart.
_COLOURS = {
    "superpixel": "#D55E00",
    "superpixel_area_bias": "#E69F00",
    "superpixel_latent": "#CC79A7",
    "grid": "#0072B2",
    "merging": "#009E73",
}
_STYLES = {
    "at_once": {"linestyle": ":", "marker": "o", "fillstyle": "none"},
    "tuned": {"linestyle": "--", "marker": "s", "fillstyle": "none"},
    "distilled": {"linestyle": "-", "marker": "o"},
}
_WORDS = {"at_once": "at once", "tuned": "fine-tuned", "distilled": "fine-tuned with the ViT as teacher"}


def collect(folder: Path) -> Found:
    """The results in a folder by variant and learning, seed by seed."""
    found: Found = {}
    for path in sorted(folder.glob("*-seed*.json")):
        result = read_json(path)
        found.setdefault((result["variant"], result.get("learning", "at_once")), []).append(result)
    return found


def difference(found: Found, subject: tuple[str, str], control: tuple[str, str]) -> Difference | None:
    """The difference of two rows over the seeds that both have; None where there is none, or a row is missing."""
    runs = [{run["seed"]: run for run in found.get(key, ())} for key in (subject, control)]
    seeds = sorted(runs[0].keys() & runs[1].keys())
    if not seeds or subject == control:
        return None
    return paired_bootstrap(outcomes(runs[0], seeds), outcomes(runs[1], seeds))


def table(found: Found) -> list[dict[str, Any]]:
    """One row a variant and learning: by tokens, then variant, then learning; ValueError without the dense ViT."""
    if ("vit", "at_once") not in found:
        raise ValueError(f"Expected a result of the dense ViT, got only {sorted(found)}.")
    rows = []
    for (variant, learning), runs in found.items():
        controls = {
            "to_vit": ("vit", "at_once"),
            "to_grid": (variant.replace("superpixel_", "grid_"), learning),
            "to_tuned": (variant, "tuned") if learning == "distilled" else (variant, learning),
        }
        differences = {name: difference(found, (variant, learning), other) for name, other in controls.items()}
        rows.append(
            {
                "variant": variant,
                "learning": learning,
                "tokens": runs[0]["tokens"],
                "multiply_adds": runs[0]["multiply_adds"],
                "seeds": [run["seed"] for run in runs],
                "accuracy": float(np.mean([run["accuracy"] for run in runs])),
                "differences": {
                    name: {**asdict(found), "verdict": found.verdict(MARGINS["imagenette"])}
                    for name, found in differences.items()
                    if found is not None
                },
            }
        )
    return sorted(rows, key=lambda row: (-row["tokens"], row["variant"], LEARNING.index(row["learning"])))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table to read; multiply-adds in millions, the rest in points."""
    names = {"to_vit": "to the ViT", "to_grid": "to the grid", "to_tuned": "to no teacher"}
    head = ("variant", "learning", "tokens", "multiply-adds", "accuracy", *names.values())
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["variant"], _WORDS[row["learning"]], str(row["tokens"])]
        cells += [f"{row['multiply_adds'] / 1e6:.0f} M", f"{100 * row['accuracy']:.1f}"]
        for name in names:
            cells.append(interval_text(row["differences"].get(name)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG: accuracy against tokens and against multiply-adds, by variant and learning."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    dense = next(row for row in rows if row["variant"] == "vit")
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["multiply_adds"]):
        lines.setdefault((row["variant"].rpartition("_")[0], row["learning"]), []).append(row)
    with rc_context({"axes.spines.right": False, "axes.spines.top": False, "font.size": 9}):
        figure = Figure(figsize=(10, 5.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, key, unit in ((left, "tokens", 1), (right, "multiply_adds", 1e6)):
            axes.axhline(100 * dense["accuracy"], color="black", linewidth=1, label="dense ViT, 144 tokens")
            for (kind, learning), points in sorted(lines.items()):
                if kind not in _COLOURS:
                    continue
                places = [point[key] / unit for point in points], [100 * point["accuracy"] for point in points]
                label = f"{kind.replace('_', ' ')}, {_WORDS[learning]}"
                style: Any = {**_STYLES[learning], "color": _COLOURS[kind]}
                axes.plot(*places, label=label, linewidth=1.4, markersize=5, **style)
            axes.set_xscale("log", base=2)
            axes.grid(axis="y", color="#DDDDDD")
            axes.tick_params(axis="x", which="minor", bottom=False)
        left.set_xticks([18, 36, 72, 144], ["18", "36", "72", "144"])
        right.set_xticks([16, 32, 64, 128], ["16", "32", "64", "128"])
        left.set_xlabel("tokens (merging: behind the last layer)")
        right.set_xlabel("million multiply-adds a picture, superpixels not counted")
        left.set_ylabel("accuracy on 2,000 test pictures, %")
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        figure.suptitle("What is left of a dense ViT at fewer tokens (Imagenette, 96 px, micro scale, one seed)")
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
    first = found["vit", "at_once"][0]
    content = {"question": QUESTION, "split": "test", "environment": first["environment"], "rows": rows}
    write_table(arguments.tables, QUESTION, content, markdown(rows))
    write_whole(arguments.results / f"{QUESTION}.png", plot(rows))


if __name__ == "__main__":
    main()
