"""
Compares trained checkpoints on a test split, each at its own number of superpixels and at others.

    python -m experiments.frontier.checkpoints runs/imagenette-tiny-dense runs/imagenette-tiny-20 \
        --num-superpixels 25 36 64 81 100 --name imagenette-tiny

The first folder is the control. Images go the whole way, from their files through the image processor, in float32.
Writes `experiments/tables/<name>-checkpoints.json`, with every image's outcome, and `.md`. Differences are paired
over images, see `micro/paired_bootstrap.py`: each folder is one run of one seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from experiments.micro.arguments import add_options, parser_of
from experiments.micro.paired_bootstrap import MARGINS, interval_text, paired_bootstrap
from experiments.micro.processes import keep_heap
from experiments.micro.results import packed, write_table
from focusvit_hf.hub.checkpoints import load_checkpoint
from focusvit_hf.hub.folder import TRAINING_LOG_FILE
from focusvit_hf.images import decode_image
from focusvit_hf.utils.environment import environment
from focusvit_hf.utils.files import read_json


_BATCH_SIZE = 50


@torch.inference_mode()
def ranked(model: Any, processor: Any, examples: datasets.Dataset) -> np.ndarray:
    """
    The five likeliest classes of each image, the best first, `(count, at most 5)` int64.

    Args:
        model, processor: An image classifier in evaluation mode and its image processor.
        examples (`datasets.Dataset`): Column `image`.
    """
    parts = []
    for rows in examples.iter(_BATCH_SIZE):
        logits = model(**processor([decode_image(image) for image in rows["image"]], return_tensors="pt")).logits
        parts.append(logits.topk(min(5, logits.shape[-1])).indices.numpy())
    return np.concatenate(parts)


def measure(folder: str, examples: datasets.Dataset, counts: Sequence[int]) -> Iterator[tuple[dict[str, Any], Any]]:
    """
    Rows of one checkpoint, its own number of superpixels first, and whether each image was right, `(count,)` bool.

    Args:
        folder (`str`): The checkpoint.
        examples (`datasets.Dataset`): Columns `image` and `label`.
        counts (sequence of `int`): Further numbers of superpixels; a checkpoint that does not pool knows none.

    Raises:
        ValueError: when the checkpoint's classes are not those of the images.
    """
    labels, names = np.asarray(examples["label"])[:, None], examples.features["label"].names
    model, processor = load_checkpoint(folder)
    own = model.config
    classes = list((own.id2label or {}).values())
    if classes != names:
        raise ValueError(f"Expected a checkpoint of the classes {names}, got {folder} of {classes}.")
    others = [] if own.patch_pooling == "none" else [count for count in counts if count != own.superpixel_count]
    for count in (None, *others):
        if count is not None:
            model, processor = load_checkpoint(folder, count)
        hits = ranked(model, processor, examples) == labels
        yield (
            {
                "checkpoint": Path(folder).name,
                "own": count is None,
                "tokens": model.config.num_tokens,
                "parameters": model.num_parameters(),
                **trained(Path(folder)),
                "accuracy": float(hits[:, 0].mean()),
                "top_5_accuracy": float(hits.any(axis=1).mean()),
                "correct": packed(hits[:, 0]),
            },
            hits[:, 0],
        )


def trained(folder: Path) -> dict[str, Any]:
    """How long the checkpoint was trained, as its log says: `epochs`; empty where there is no log."""
    log = folder / TRAINING_LOG_FILE
    return {"epochs": read_json(log)["figures"]["epoch"]} if log.is_file() else {}


def compare(
    folders: Sequence[str],
    examples: datasets.Dataset,
    counts: Sequence[int] = (),
    margin: float = MARGINS["imagenette"],
) -> list[dict[str, Any]]:
    """
    One row for each checkpoint and number of superpixels.

    Args:
        folders (sequence of `str`): Checkpoints; the first is the control.
        examples (`datasets.Dataset`), counts (sequence of `int`): See [`measure`].
        margin (`float`): See `Difference.verdict`.

    Returns:
        `list[dict]`: What [`measure`] gives; `difference` to the control at its own number and `verdict`; `change`
        from the checkpoint's own number at another one.
    """
    rows: list[dict[str, Any]] = []
    owns: list[np.ndarray] = []
    for folder in folders:
        for row, right in measure(folder, examples, counts):
            if row["own"]:
                owns.append(right)
            else:
                row["change"] = asdict(paired_bootstrap(right[None], owns[-1][None]))
            if len(owns) > 1:
                difference = paired_bootstrap(right[None], owns[0][None])
                row |= {"difference": asdict(difference), "verdict": difference.verdict(margin)}
            rows.append(row)
            print(f"{row['checkpoint']}, {row['tokens']} tokens: {row['accuracy']:.4f}", flush=True)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table to read."""
    control = rows[0]["checkpoint"]
    lines = [
        "| checkpoint | epochs | tokens | parameters | accuracy | top five | change from its own tokens (95 %) "
        f"| difference to {control} (95 %) | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row["checkpoint"],
            f"{row['epochs']:g}" if "epochs" in row else "",
            row["tokens"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{100 * row['accuracy']:.2f}",
            f"{100 * row['top_5_accuracy']:.2f}",
            interval_text(row.get("change")),
            interval_text(row.get("difference")),
            row.get("verdict", "control" if row["checkpoint"] == control and row["own"] else ""),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the checkpoints and writes the table."""
    parser = parser_of(__doc__)
    parser.add_argument("folders", nargs="+", help="Checkpoints, the control first.")
    parser.add_argument("--num-superpixels", type=int, nargs="+", default=[], metavar="K")
    parser.add_argument("--name", required=True, help="Of the table.")
    add_options(parser, "data", "tables")
    arguments = parser.parse_args(argv)
    examples = datasets.load_dataset("parquet", data_dir=str(arguments.data), split="test")
    rows = compare(arguments.folders, examples, arguments.num_superpixels)
    content = {
        "checkpoints": arguments.folders,
        "data": arguments.data.name,
        "margin": MARGINS["imagenette"],
        "environment": environment(torch.device("cpu"), torch.float32),
        "rows": rows,
    }
    write_table(arguments.tables, f"{arguments.name}-checkpoints", content, markdown(rows))


if __name__ == "__main__":
    keep_heap()
    main()
