"""
One segmenter of several: the mean of the weights of runs that began from the same checkpoint.

    python -m experiments.dense.soup runs/ecssd-1 runs/ecssd-2 runs/ecssd-3 --data ../shared/data/ecssd --out runs/soup

Runs are added the best first, and stay where the figure of the mean does not fall: the greedy soup of Wortsman et al.
2022 ("Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference
time", arXiv 2203.05482, recipe 1). The figure is the IoU of the last class, a mean over the images that all runs held
out, each at its own size through the pipeline. `--out` is a folder like that of a run, for `experiments.dense.keep`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save
from transformers import pipeline
from transformers.utils import SAFE_WEIGHTS_NAME

from experiments.dense.keep import LOG_FILE, measured
from experiments.micro.arguments import parser_of
from focusvit_hf.explanation.segmentation import class_names
from focusvit_hf.training.arguments import ModelArguments
from focusvit_hf.training.segmentation_data import SegmentationDataArguments, load_masks
from focusvit_hf.utils.files import new_folder, read_json, write_json, write_whole


Weights = dict[str, torch.Tensor]


def mean_of(weights: Sequence[Weights]) -> Weights:
    """
    The mean of each tensor; of whole numbers, such as counters, the first.

    Raises:
        ValueError: If they are not of one model.
    """
    first, *others = weights
    shapes = {name: tensor.shape for name, tensor in first.items()}
    if any({name: tensor.shape for name, tensor in other.items()} != shapes for other in others):
        raise ValueError("Expected runs of one model, got weights of other names or shapes.")
    return {
        name: torch.stack([each[name] for each in weights]).mean(dim=0) if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }


def held_out(logs: Sequence[dict[str, Any]], data: Path) -> Any:
    """
    The rows that every run held out.

    Raises:
        ValueError: If one held out others, or none.
    """
    plans = {(log["arguments"]["seed"], log["arguments"].get("train_val_split")) for log in logs}
    if len(plans) > 1 or None in next(iter(plans)):
        raise ValueError(f"Expected runs of one --seed and one --train_val_split, got {sorted(plans, key=str)}.")
    ((seed, share),) = plans
    options = SegmentationDataArguments(data_dir=str(data), train_val_split=share)
    rows = load_masks(options, ModelArguments(), seed).splits["validation"]
    return rows.cast_column(options.image_column_name, datasets.Image())


def command_of(runs: Sequence[Path], data: str, target: Path) -> str:
    """The command that repeats the mean of these runs, without the places of this machine."""
    names = " ".join(f"runs/{run.name}" for run in runs)
    return f"python -m experiments.dense.soup {names} --data {data} --out runs/{target.name}"


def soup(runs: Sequence[Path], target: Path, data: Path) -> list[tuple[list[str], float]]:
    """
    Writes the folder `target`, which must not be there yet.

    Returns:
        list of (names of the runs, figure in 0..1): each run alone, the best first, then each mean that was tried.
    """
    logs = {run: read_json(run / LOG_FILE) for run in runs}
    weights = {run: load_file(run / SAFE_WEIGHTS_NAME) for run in runs}
    mean_of(list(weights.values()))
    rows = held_out(list(logs.values()), data)

    def figures_of(run: Path, chosen: Weights) -> dict[str, float]:
        find: Any = pipeline("image-segmentation", model=str(run), dtype=torch.float32)
        find.model.load_state_dict(chosen)
        figures = measured(find, rows)
        return {"figure": figures[f"image_iou_{class_names(find.model.config)[-1]}"], **figures}

    alone = {run: figures_of(run, weights[run])["figure"] for run in runs}
    order = sorted(runs, key=lambda run: -alone[run])
    tried = [([run.name], alone[run]) for run in order]
    best, *others = order
    kept, figures = [best], figures_of(best, weights[best])
    for run in others:
        found = figures_of(best, mean_of([weights[each] for each in [*kept, run]]))
        tried.append(([each.name for each in [*kept, run]], found["figure"]))
        if found["figure"] >= figures["figure"]:
            kept, figures = [*kept, run], found
    log = logs[best] | {"soup": [{"runs": names, "figure": figure} for names, figure in tried]}
    # The learning of the mean is that of all its runs.
    mixing = command_of(kept, log["arguments"]["data_dir"], target)
    log["command"] = "\n".join([*(logs[run]["command"] for run in kept), mixing])
    log["wall_time_seconds"] = sum(logs[run]["wall_time_seconds"] for run in kept)
    log["figures"] = {f"eval_{name}": value for name, value in figures.items() if name != "figure"}
    with new_folder(target) as folder:
        write_whole(folder / SAFE_WEIGHTS_NAME, save(mean_of([weights[run] for run in kept]), {"format": "pt"}))
        for name in ("config.json", "preprocessor_config.json"):
            shutil.copy(best / name, folder / name)
        write_json(folder / LOG_FILE, log)
    return tried


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that `focusvit train --task segmentation` wrote")
    parser.add_argument("--data", type=Path, required=True, help="folder of parquet files that they were trained on")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    for names, figure in soup(args.runs, args.out, args.data):
        print(f"{figure:.4f}  {' + '.join(names)}")


if __name__ == "__main__":
    main()
