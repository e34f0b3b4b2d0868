"""
Pupils that were taught side by side: what they know of the test images, and how fast they are.

    python -m experiments.teacher.table runs/controls --subject focusvit-tiny --name taught-controls
    python -m experiments.teacher.table runs/frontier --subject superpixel-36 --name taught-frontier \\
        --scratch experiments/tables/frontier.json --plot experiments/frontier-taught.png

`runs/controls` is what `experiments.teacher.train` wrote for several recipes. Intervals are over the test images, and
paired where two pupils are compared; one seed each. Times are from the tensor of the images to the logits, float32,
SDPA, two threads, all pupils in turn, on a machine that does nothing else; FocusViT computes its superpixels within.
Networks that are not FocusViT's are in the memory format that suits convolutions. With `--scratch`, a table of
`experiments.frontier.run`, each pupil stands beside what the same network learns from the labels alone.

`experiments/results/<name>/<pupil>.json` keeps each run's log, `experiments/tables/<name>.json` and `.md` the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageClassification

from experiments.frontier.panels import DENSE, OURS, PEER, Point, draw
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.data import load_examples
from experiments.micro.paired_bootstrap import MARGINS, interval_text, paired_bootstrap
from experiments.micro.processes import keep_heap
from experiments.micro.results import unpacked, write_table
from experiments.teacher.efficientnet import SIZE
from experiments.teacher.train import LOG_FILE, pixels_of
from focusvit_hf import FocusViTConfig
from focusvit_hf.benchmark.timing import interleaved, summary
from focusvit_hf.utils.environment import environment
from focusvit_hf.utils.files import read_json, write_json, write_whole


BATCHES, THREADS, WARMUP = (1, 32), 2, 2
# Batches between two looks at the clock, by the number of images in each.
RUNS = {1: 10, 32: 1}
STYLES = {"FocusViT": OURS, "dense ViT, same stem": DENSE, "others in Transformers": PEER}
TITLE = "Imagenette at {side} px, {epochs} epochs: taught by an ImageNet model, and from the labels alone"


def finished(folder: Path, subject: str) -> dict[str, dict[str, Any]]:
    """
    By the name of each pupil its log.

    Raises:
        ValueError: If a run is not finished, or was not measured on the test split, or there is none of the subject.
    """
    logs = {path.parent.name: read_json(path) for path in sorted(folder.glob(f"*/{LOG_FILE}"))}
    odd = [name for name, log in logs.items() if not log.get("correct")]
    if odd or not logs:
        raise ValueError(f"Expected runs in {folder} that ended with the test images, got {odd or 'none'}.")
    if subject not in logs:
        raise ValueError(f"Expected --subject to be one of {sorted(logs)}, got {subject!r}.")
    return logs


def answers(log: Mapping[str, Any], count: int) -> np.ndarray:
    """Whether each test image was right: `(1, count)`, bool."""
    return unpacked(log["correct"], count)[None]


def timed(folder: Path, sizes: Mapping[str, int], images: torch.Tensor, repeats: int) -> dict[str, dict[str, Any]]:
    """By pupil: parameters, and the times of each number of images at once, in ms an image."""
    models = {name: AutoModelForImageClassification.from_pretrained(folder / name).eval() for name in sizes}
    for model in models.values():
        if model.config.model_type != FocusViTConfig.model_type:
            model.to(memory_format=torch.channels_last)
    rows: dict[str, dict[str, Any]] = {name: {"parameters": model.num_parameters()} for name, model in models.items()}

    def subject(name: str, batch: int) -> Callable[[], None]:
        pixels = pixels_of(images[:batch], sizes[name])

        @torch.no_grad()
        def call() -> None:
            for _ in range(RUNS[batch]):
                models[name](pixels)

        return call

    for batch in BATCHES:
        for name, seconds in interleaved({name: subject(name, batch) for name in models}, repeats, WARMUP).items():
            rows[name][f"batch_{batch}"] = summary(seconds, batch * RUNS[batch])
    return rows


def rows_of(
    logs: Mapping[str, Mapping[str, Any]],
    subject: str,
    count: int,
    costs: Mapping[str, Mapping[str, Any]],
    scratch: Mapping[str, float],
) -> list[dict[str, Any]]:
    """A row for each pupil, the subject first, with its accuracy of `scratch` where there is one."""
    own, rows = answers(logs[subject], count), []
    for name in sorted(logs, key=lambda each: (each != subject, each)):
        right = answers(logs[name], count)
        row = {"pupil": name, **logs[name]["figures"], **costs[name]}
        row["accuracy"] = asdict(paired_bootstrap(right, np.zeros_like(right)))
        if name != subject:
            difference = paired_bootstrap(own, right)
            row |= {"difference": asdict(difference), "verdict": difference.verdict(MARGINS["imagenette"])}
        if name in scratch:
            row["scratch"] = scratch[name]
        rows.append(row)
    return rows


def without_a_teacher(path: Path) -> dict[str, float]:
    """By the name of a pupil, in which capitals and underscores do not count, the accuracy of a table's row."""
    return {row["name"].lower().replace("_", "-"): row["accuracy"]["mean"] for row in read_json(path)["rows"]}


def point_of(row: Mapping[str, Any], log: Mapping[str, Any]) -> Point:
    """A row of the table in the drawing."""
    ours, dense, others = STYLES
    recipe = log["settings"]["recipe"]
    kind = others if recipe["peer"] else dense if recipe["config"]["patch_pooling"] == "none" else ours
    before = 100 * row["scratch"] if "scratch" in row else None
    speed = {batch: 1000 / row[f"batch_{batch}"]["median_ms"] for batch in BATCHES}
    return Point(recipe["peer"] or row["pupil"], kind, 100 * row["accuracy"]["mean"], speed, before)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table to read."""
    first, *_ = rows
    heads = ["pupil", "parameters", "accuracy (95 %)", f"{first['pupil']} − it, points", "agreement with the teacher"]
    scratch = any("scratch" in row for row in rows)
    heads += ["from the labels alone"] * scratch + [f"ms an image, batch {batch}" for batch in BATCHES]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        mean, low, high = (100 * row["accuracy"][key] for key in ("mean", "low", "high"))
        cells = [row["pupil"], f"{row['parameters'] / 1e6:.2f} M", f"{mean:.1f} [{low:.1f}, {high:.1f}]"]
        verdict = f", {row['verdict']}" if "verdict" in row else ""
        cells += [interval_text(row.get("difference")) + verdict, f"{100 * row['agreement']:.1f} %"]
        if scratch:
            cells.append(f"{100 * row['scratch']:.1f}" if "scratch" in row else "")
        for batch in BATCHES:
            own, its = (each[f"batch_{batch}"]["median_ms"] for each in (first, row))
            cells.append(f"{its:.2f} ({its / own:.2f} times)")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the table."""
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, help="what experiments.teacher.train wrote for several recipes")
    parser.add_argument("--subject", required=True, help="the pupil that the others are compared with")
    parser.add_argument("--name", required=True, help="of the table")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds")
    parser.add_argument("--scratch", type=Path, help="a table of experiments.frontier.run, to stand beside")
    parser.add_argument("--plot", type=Path, help="draw the table in this PNG file")
    add_options(parser, "data", "results", "tables")
    arguments = parser.parse_args(argv)
    scratch = without_a_teacher(arguments.scratch) if arguments.scratch else {}
    logs = finished(arguments.folder, arguments.subject)
    test = load_examples(arguments.data, "test", SIZE)
    torch.set_num_threads(THREADS)
    sizes = {name: log["history"][-1]["size"] for name, log in logs.items()}
    costs = timed(arguments.folder, sizes, test.images, arguments.repeats)
    rows = rows_of(logs, arguments.subject, len(test.images), costs, scratch)
    for name, log in logs.items():
        write_json(arguments.results / arguments.name / f"{name}.json", log)
    content = {"rows": rows, "environment": environment(torch.device("cpu"), torch.float32)}
    write_table(arguments.tables, arguments.name, content, markdown(rows))
    if arguments.plot:
        last = logs[arguments.subject]["history"][-1]
        points = [point_of(row, logs[row["pupil"]]) for row in sorted(rows, key=lambda row: -row["test_accuracy"])]
        title = TITLE.format(side=last["size"], epochs=last["epoch"])
        write_whole(
            arguments.plot, draw(points, STYLES, "accuracy, %", title, "the labels alone" if scratch else None)
        )


if __name__ == "__main__":
    keep_heap()
    main()
