"""
Accuracy against measured whole-path throughput: every subject and number of tokens a point, and the frontier.

    python -m experiments.frontier.run measure --threads 1
    python -m experiments.frontier.run plot

`measure` times every row that has a result in `experiments/results/<question>/`, interleaved, from the encoded
image to its class, and writes `experiments/results/frontier/throughput.json`. Weights are random: time does not
depend on them. `plot` joins times and accuracies by the name of the row and writes `experiments/frontier.png` (the
largest batch), `experiments/frontier-batch<n>.png` (the others) and `experiments/tables/frontier.json` and `.md`.

Trained folders instead, at any resolution, with what their own image processors make of an image:

    python -m experiments.frontier.run record FOLDER ... --questions full
    python -m experiments.frontier.run measure --folders FOLDER ... --questions full --image_size 224 \\
        --name frontier-224
    python -m experiments.frontier.run plot --questions full --image_size 224 --name frontier-224

`record` measures a folder on the test split, so that it has a result like the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch

from experiments.frontier.folders import folder_subject, record
from experiments.frontier.plot import draw
from experiments.frontier.rows import QUESTIONS, Row, load_rows
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.processes import keep_heap
from experiments.micro.results import TABLES, write_table
from experiments.micro.training import BASE
from focusvit_hf.benchmark.plots import footnote
from focusvit_hf.benchmark.report import describe_failure, report
from focusvit_hf.benchmark.run import Plan, Setting, measure
from focusvit_hf.utils.files import read_json, write_json, write_whole


PARTS = ("decode", "processor", "superpixels", "pixels_to_logits", "whole_path")
# Ratios are to the first of these that is there.
_BASELINES = ("dense_linear", "dense_stem")


def encoded_images(data: Path, count: int) -> list[bytes]:
    """The first images of the test split as they are stored, encoded files."""
    rows = datasets.load_dataset("parquet", data_dir=str(data), split="test")
    rows = rows.select(range(min(count, len(rows)))).cast_column("image", datasets.Image(decode=False))
    return [image["bytes"] for image in rows["image"]]


def throughput(
    rows: Sequence[Row],
    images: Sequence[bytes],
    batch_sizes: Sequence[int] = (1, 32),
    repeats: int = 9,
    folders: Sequence[Path] = (),
) -> dict[str, Any]:
    """
    Times the rows in one interleaved run.

    Args:
        rows (sequence of [`Row`]): All of one image size.
        images (sequence of `bytes`): JPEG files.
        batch_sizes (sequence of `int`), repeats (`int`): See [`Plan`].
        folders (sequence of `Path`): Trained folders that take the places of the rows of their names.

    Returns:
        `dict`: What `benchmark.run.measure` returns, and under `built` what each row was built from.

    Raises:
        ValueError: when the rows are of several image sizes, or a folder is none of them.
    """
    sizes = sorted({row.image_size for row in rows})
    if len(sizes) != 1:
        raise ValueError(f"Expected rows of one image size, got {sizes}; choose with --image_size.")
    trained = {subject.name: subject for subject in map(folder_subject, folders)}
    unknown = sorted(trained.keys() - {row.name for row in rows})
    if unknown:
        raise ValueError(f"Expected folders that are recorded, got {unknown}.")
    subjects = [trained[row.name] if row.name in trained else row.subject() for row in rows]
    names = [row.name for row in rows]
    plan = Plan(
        subjects,
        [Setting("inference", sizes[0], batch_size) for batch_size in batch_sizes],
        baseline=next((name for name in _BASELINES if name in names), names[0]),
        parts=PARTS,
        memory=False,
        repeats=repeats,
    )
    return {**measure(plan, images), "built": {row.name: row.built for row in rows}}


def table(rows: Sequence[Row], measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    Accuracies beside throughputs.

    Args:
        rows (sequence of [`Row`]): With their accuracies.
        measured (mapping): See [`throughput`].

    Returns:
        `list[dict]`, the fastest first: `name, family, label, tokens, parameters, seeds`, `accuracy` (mean, low,
        high), and by batch size, as text, `speed` (images per second from JPEG to class: median, quartiles; `model`:
        from pixels to logits) and `frontier`: whether no other row is as fast and as accurate, and one of them more.

    Raises:
        ValueError: when a row was not measured, or was built otherwise then.
    """
    missing = [row.name for row in rows if row.name not in measured["built"]]
    if missing:
        raise ValueError(f"Expected times of {', '.join(missing)}; measure again.")
    changed = [row.name for row in rows if measured["built"][row.name] != row.built]
    if changed:
        raise ValueError(f"Expected times of what was trained, got others of {', '.join(changed)}; measure again.")
    found = []
    for row in rows:
        accuracy = row.accuracy()
        found.append(
            {
                "name": row.name,
                "family": row.family,
                "label": row.label,
                "tokens": row.first["tokens"],
                "parameters": row.first["parameters"],
                "seeds": sorted(row.runs),
                "accuracy": {"mean": accuracy.mean, "low": accuracy.low, "high": accuracy.high},
                "speed": _speed(row.name, measured),
            }
        )
    for entry in found:
        entry["frontier"] = {batch: is_best(entry, found, batch) for batch in entry["speed"]}
    largest = max(found[0]["speed"], key=int)
    return sorted(found, key=lambda entry: -entry["speed"][largest]["median"])


def _speed(name: str, measured: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    speed: dict[str, dict[str, float]] = {}
    for times in measured["rows"]:
        if times["subject"] != name:
            continue
        found = speed.setdefault(str(times["batch_size"]), {})
        if times["part"] == "whole_path":
            found |= {
                "median": 1000 / times["median_ms"],
                "lower_quartile": 1000 / times["upper_quartile_ms"],
                "upper_quartile": 1000 / times["lower_quartile_ms"],
            }
        elif times["part"] == "pixels_to_logits":
            found["model"] = 1000 / times["median_ms"]
    return speed


def is_best(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], batch: str) -> bool:
    """Whether a row is on the frontier: none is at least as fast and as accurate, and better in one of both."""

    def both(one: Mapping[str, Any]) -> tuple[float, float]:
        return one["speed"][batch]["median"], one["accuracy"]["mean"]

    speed, accuracy = both(row)
    others = (both(other) for other in rows)
    return not any(s >= speed and a >= accuracy and (s, a) != (speed, accuracy) for s, a in others)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table to read: accuracies in %, images per second with quartiles; what is on the frontier bold."""
    batches = sorted({batch for row in rows for batch in row["speed"]}, key=int, reverse=True)
    head = ["row", "family", "tokens", "parameters", "seeds", "accuracy (95 %)"]
    head += [f"images per second, batch {batch}" for batch in batches] + [f"model alone, batch {batches[0]}"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        mean, low, high = (100 * row["accuracy"][key] for key in ("mean", "low", "high"))
        cells = [row["name"], row["family"], str(row["tokens"] or ""), f"{row['parameters'] / 1e6:.2f} M"]
        cells += [str(len(row["seeds"])), f"{mean:.1f} [{low:.1f}, {high:.1f}]"]
        cells += [_speed_cell(row, batch) for batch in batches]
        cells.append(f"{row['speed'][batches[0]]['model']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _speed_cell(row: Mapping[str, Any], batch: str) -> str:
    speed, mark = row["speed"][batch], "**" if row["frontier"][batch] else ""
    return f"{mark}{speed['median']:.0f}{mark} [{speed['lower_quartile']:.0f}, {speed['upper_quartile']:.0f}]"


def write_plots(rows: Sequence[Mapping[str, Any]], title: str, foot: str, folder: Path, name: str) -> list[Path]:
    """Draws each batch size; the largest has the plain name. Returns the files."""
    written = []
    for number, batch in enumerate(sorted(rows[0]["speed"], key=int, reverse=True)):
        path = folder / (f"{name}-batch{batch}.png" if number else f"{name}.png")
        write_whole(path, draw(rows, batch, title, foot))
        written.append(path)
    return written


def _record(arguments: argparse.Namespace) -> None:
    if len(arguments.questions) != 1 or arguments.questions[0] in QUESTIONS:
        raise ValueError(f"Expected --questions NEW_NAME for what is recorded, got {arguments.questions}.")
    for folder in arguments.folders:
        result = record(folder, arguments.data, arguments.questions[0], arguments.results)
        print(f"{folder.name}: {result['accuracy']:.4f} in {result['seconds']:.0f} s", flush=True)


def _measure(arguments: argparse.Namespace) -> None:
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    rows = _rows(arguments)
    images = encoded_images(arguments.data, max(arguments.batch_sizes))
    result = throughput(rows, images, arguments.batch_sizes, arguments.repeats, arguments.folders)
    write_json(_times(arguments), result)
    print(report(result))
    if result["failures"]:
        raise ValueError(f"could not measure {'; '.join(map(describe_failure, result['failures']))}")


def _plot(arguments: argparse.Namespace) -> None:
    rows, measured = _rows(arguments), read_json(_times(arguments))
    found = table(rows, measured)
    first = rows[0].first
    epochs = first["recipe"].get("epochs", first["recipe"].get("num_train_epochs"))
    content = {"questions": arguments.questions, "image_size": arguments.image_size, "epochs": epochs, "rows": found}
    # Of the times; every accuracy has its own in its result.
    content |= {"environment": measured["environment"], "settings": measured["settings"]}
    write_table(arguments.tables, arguments.name, content, markdown(found))
    title = f"{arguments.title}: {arguments.image_size} px, {epochs:g} epochs from scratch"
    for path in write_plots(found, title, footnote(measured), arguments.plots, arguments.name):
        print(f"wrote {path}")


def _rows(arguments: argparse.Namespace) -> list[Row]:
    rows = [row for row in load_rows(arguments.results, arguments.questions) if row.image_size == arguments.image_size]
    if not rows:
        raise ValueError(f"Expected results at {arguments.image_size} pixels, got none.")
    return rows


def _times(arguments: argparse.Namespace) -> Path:
    return arguments.results / arguments.name / "throughput.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Records folders, measures, or draws."""
    parser = parser_of(__doc__)
    commands = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--questions", nargs="+", default=QUESTIONS, help="Folders of results.")
    add_options(shared, "results")
    shared.add_argument("--image_size", type=int, default=BASE["image_size"])
    shared.add_argument("--name", default="frontier", help="Of the files that are written.")
    data = argparse.ArgumentParser(add_help=False)
    add_options(data, "data")

    command = commands.add_parser("record", parents=[shared, data], help="measure the accuracy of trained folders")
    command.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="<name> or <name>-seed<n>")
    command.set_defaults(call=_record)

    command = commands.add_parser("measure", parents=[shared, data], help="time the rows")
    command.add_argument("--folders", type=Path, nargs="+", default=[], help="Time these models and processors.")
    command.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    command.add_argument("--repeats", type=int, default=9, help="Timed rounds.")
    command.add_argument("--threads", type=int, help="By default torch's.")
    command.set_defaults(call=_measure)

    command = commands.add_parser("plot", parents=[shared], help="draw accuracies against times")
    add_options(command, "tables")
    command.add_argument("--plots", type=Path, default=TABLES.parent, help="Folder of the plots.")
    command.add_argument("--title", default="Imagenette", help="What is before the size.")
    command.set_defaults(call=_plot)

    arguments = parser.parse_args(argv)
    arguments.call(arguments)


if __name__ == "__main__":
    keep_heap()
    main()
