"""
The table of `experiments.dense.compare`: quality with intervals, and the time from an image's tensor to its label map.

    python -m experiments.dense.tables
    python -m experiments.dense.tables --repeats 0

Means over the images of ECSSD's test split and over seeds; differences are paired over both. Times are of untrained
networks, float32, two threads, all rows in turn, on the photograph of `focusvit demo` at the side of the training, on
a machine that does nothing else; FocusViT computes its superpixels within. With `--repeats 0` the times of the table
that is there are kept. Writes `experiments/tables/dense.json` and `.md`, and draws `experiments/dense-frontier.png`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.dense.compare import PEER_ROWS, QUESTION, Row
from experiments.dense.peers import settle_batch_norms
from experiments.dense.speed import call_of, photograph
from experiments.frontier.panels import GRID, OURS, PEER, Point, draw
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.paired_bootstrap import MARGINS, interval_text, paired_bootstrap
from experiments.micro.processes import keep_heap
from experiments.micro.results import TABLES, write_table
from focusvit_hf.benchmark.timing import interleaved, summary
from focusvit_hf.utils.environment import environment
from focusvit_hf.utils.files import read_json, write_whole


SUBJECT = "superpixel_49"
CONTROLS = ("grid_49", "grid_49_nearest", "grid_196", "grid_400", *PEER_ROWS)
KINDS = ("iou", "boundary_f")
BATCHES, THREADS, WARMUP = (1, 8), 2, 2
TITLE = "Figures of ECSSD, all trained alike: {side} px, {epochs} epochs"
STYLES = {"superpixels": OURS, "regular grid, same stem": GRID, "others in Transformers": PEER}

Runs = Mapping[str, Mapping[int, Mapping[str, Any]]]


def collect(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """
    By row and seed what was measured.

    Raises:
        ValueError: If there is nothing, or if runs had different recipes.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        result = read_json(path)
        found.setdefault(result["row"], {})[result["seed"]] = result
    if not found:
        raise ValueError(f"Expected results in {folder}, got none: run experiments.dense.compare first.")
    recipes = [result["recipe"] for runs in found.values() for result in runs.values()]
    other = next((recipe for recipe in recipes if recipe != recipes[0]), None)
    if other is not None:
        raise ValueError(f"Expected results of one recipe in {folder}, got {recipes[0]} and {other}.")
    return found


def scores_of(runs: Mapping[int, Mapping[str, Any]], kind: str, seeds: Sequence[int]) -> np.ndarray:
    """`(seeds, images)`, each run with the upsampling that was chosen for it on held-out images."""
    return np.array([runs[seed]["test"][runs[seed]["upsampling"]][kind] for seed in seeds])


@torch.no_grad()
def times_of(names: Sequence[str], side: int, repeats: int) -> dict[str, dict[str, Any]]:
    """By row the time of an image, in ms, at each batch size."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    torch.manual_seed(0)
    models = {name: Row(name, side, "sdpa").model.eval() for name in names}
    for name in PEER_ROWS.keys() & models.keys():
        settle_batch_norms(models[name], photograph((side, side)))
    for batch in BATCHES:
        pixels = photograph((side, side)).repeat(batch, 1, 1, 1)
        calls = {name: call_of(model, pixels) for name, model in models.items()}
        for name, seconds in interleaved(calls, repeats, WARMUP).items():
            found[name][f"batch_{batch}"] = summary(seconds, batch)
    return found


def rows_of(found: Runs, times: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each, the most accurate first."""
    rows = [
        {
            "row": name,
            "seeds": sorted(runs),
            "upsampling": sorted({result["upsampling"] for result in runs.values()}),
            "parameters": next(iter(runs.values()))["parameters"],
            **{kind: float(scores_of(runs, kind, sorted(runs)).mean()) for kind in KINDS},
            **times.get(name, {}),
        }
        for name, runs in found.items()
    ]
    return sorted(rows, key=lambda row: -row["iou"])


def comparisons_of(found: Runs) -> list[dict[str, Any]]:
    """What [`SUBJECT`] gains over each control, over the seeds that both have."""
    comparisons = []
    for control in CONTROLS:
        seeds = sorted(found.get(SUBJECT, {}).keys() & found.get(control, {}).keys())
        for kind in KINDS if seeds else ():
            own, other = (scores_of(found[name], kind, seeds) for name in (SUBJECT, control))
            difference = paired_bootstrap(own, other)
            about = {"subject": SUBJECT, "control": control, "kind": kind}
            about["verdict"] = difference.verdict(MARGINS["imagenette"])
            comparisons.append({**about, "difference": asdict(difference)})
    return comparisons


def markdown(rows: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Both tables."""
    batches = [batch for batch in BATCHES if all(f"batch_{batch}" in row for row in rows)]
    heads = ["row", "seeds", "upsampling", "parameters", "figure's IoU", "border's F, 2 px"]
    heads += [f"ms an image, batch {batch}" for batch in batches]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["row"], str(len(row["seeds"])), ", ".join(row["upsampling"]), f"{row['parameters'] / 1e6:.2f} M"]
        cells += [f"{100 * row[kind]:.1f}" for kind in KINDS]
        cells += [f"{row[f'batch_{batch}']['median_ms']:.1f}" for batch in batches]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| difference, in points | seeds | figure's IoU | border's F |", "|---|---|---|---|"]
    pairs: dict[str, dict[str, Mapping[str, Any]]] = {}
    for one in comparisons:
        pairs.setdefault(one["control"], {})[one["kind"]] = one
    for control, kinds in pairs.items():
        texts = [f"{interval_text(kinds[kind]['difference'])} {kinds[kind]['verdict']}" for kind in KINDS]
        seeds = kinds[KINDS[0]]["difference"]["seeds"]
        lines.append(f"| {SUBJECT} − {control} | {seeds} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def point_of(row: Mapping[str, Any]) -> Point:
    """A row of the table in the drawing."""
    name, speed = row["row"], {batch: 1000 / row[f"batch_{batch}"]["median_ms"] for batch in BATCHES}
    own, grid, peer = STYLES
    if name in PEER_ROWS:
        return Point(PEER_ROWS[name], peer, 100 * row["iou"], speed)
    kind, _, rest = name.partition("_")
    is_grid = kind == "grid"
    label = f"{rest.replace('_', ', ')} {'tiles' if is_grid else 'superpixels'}"
    return Point(label, grid if is_grid else own, 100 * row["iou"], speed)


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds; 0 keeps the times that are there")
    parser.add_argument("--plot", type=Path, default=TABLES.parent / "dense-frontier.png")
    add_options(parser, "results", "tables")
    arguments = parser.parse_args(argv)
    found = collect(arguments.results / QUESTION)
    first = next(iter(next(iter(found.values())).values()))
    timing = environment(torch.device("cpu"), torch.float32)
    if arguments.repeats:
        torch.set_num_threads(THREADS)
        times = times_of(list(found), first["recipe"]["side"], arguments.repeats)
    else:
        there = read_json(arguments.tables / f"{QUESTION}.json")
        times = {row["row"]: {key: row[key] for key in row if key.startswith("batch_")} for row in there["rows"]}
        timing = there["timing"]
    rows, comparisons = rows_of(found, times), comparisons_of(found)
    about = {key: first[key] for key in ("question", "recipe", "encoder", "training_images", "environment")}
    content = {**about, "timing": timing, "rows": rows, "comparisons": comparisons}
    write_table(arguments.tables, QUESTION, content, markdown(rows, comparisons))
    if all(f"batch_{batch}" in row for row in rows for batch in BATCHES):
        points = [point_of(row) for row in rows]
        write_whole(arguments.plot, draw(points, STYLES, "IoU of the figure, %", TITLE.format(**first["recipe"])))


if __name__ == "__main__":
    keep_heap()
    main()
