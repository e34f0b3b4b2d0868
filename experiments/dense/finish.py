"""
What is chosen of a segmenter after its training, on the images that it held out: which runs' weights are averaged, and
how sure it has to be of its last class.

    python -m experiments.dense.finish runs/one runs/two runs/three --data ../shared/data/ecssd --out runs/done

Runs that began from the same checkpoint are added the best first, and stay where the figure of the mean of their
weights does not fall: the greedy soup of Wortsman et al. 2022 ("Model soups: averaging weights of multiple fine-tuned
models improves accuracy without increasing inference time", arXiv 2203.05482, recipe 1). Then each of `--shifts` is
added to the bias of the last class: crops of the training show more of the figure than whole images do, and shift what
is to be expected of it. The figure is the IoU of the last class, a mean over the held-out images, each at its own size
through the pipeline. `--out` is a folder like that of a run, for `experiments.dense.keep`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save
from transformers import pipeline
from transformers.utils import SAFE_WEIGHTS_NAME

from experiments.dense.keep import measured
from experiments.micro.arguments import parser_of
from focusvit_hf.explanation.segmentation import class_names
from focusvit_hf.hub.contents import TRAINING_LOG_FILE
from focusvit_hf.training.arguments import ModelArguments
from focusvit_hf.training.segmentation_data import SegmentationDataArguments, load_masks
from focusvit_hf.utils.files import new_folder, read_json, write_json, write_whole


Weights = dict[str, torch.Tensor]
BIAS = "segmentation_head.classifier.bias"
# Of the logits of the last class; none comes first, so that it stays where the others are no better.
SHIFTS = (0.0, -0.3, -0.6, -0.9, -1.2, -1.5, 0.3)


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


def shifted(weights: Weights, shift: float) -> Weights:
    """With `shift` added to the logits of the last class."""
    bias = weights[BIAS].clone()
    bias[-1] += shift
    return {**weights, BIAS: bias}


def command_of(runs: Sequence[Path], shift: float, data: str, target: Path) -> str:
    """The command that repeats the outcome, without the places of this machine."""
    names = " ".join(f"runs/{run.name}" for run in runs)
    return f"python -m experiments.dense.finish {names} --shifts {shift:g} --data {data} --out runs/{target.name}"


def finish(runs: Sequence[Path], target: Path, data: Path, shifts: Sequence[float] = SHIFTS) -> list[dict[str, Any]]:
    """
    Writes the folder `target`, which must not be there yet.

    Returns:
        list of `runs` (names), `shift` and `figure` (in 0..1): each run alone, the best first, then each mean that was
        tried, then each shift.
    """
    logs = {run: read_json(run / TRAINING_LOG_FILE) for run in runs}
    weights = {run: load_file(run / SAFE_WEIGHTS_NAME) for run in runs}
    mean_of(list(weights.values()))
    rows = held_out(list(logs.values()), data)
    tried: list[dict[str, Any]] = []

    def mixed(names: Sequence[Path], shift: float) -> Weights:
        return shifted(mean_of([weights[name] for name in names]), shift)

    @cache
    def measured_of(names: tuple[Path, ...], shift: float) -> dict[str, float]:
        find: Any = pipeline("image-segmentation", model=str(names[0]), dtype=torch.float32)
        find.model.load_state_dict(mixed(names, shift))
        figures = measured(find, rows)
        return {**figures, "figure": figures[f"image_iou_{class_names(find.model.config)[-1]}"]}

    def figures_of(names: Sequence[Path], shift: float = 0.0) -> dict[str, float]:
        figures = measured_of(tuple(names), shift)
        tried.append({"runs": [name.name for name in names], "shift": shift, "figure": figures["figure"]})
        return figures

    alone = {run: figures_of([run]) for run in runs}
    tried.sort(key=lambda entry: -entry["figure"])
    best, *others = sorted(runs, key=lambda run: -alone[run]["figure"])
    kept, figure = [best], alone[best]["figure"]
    for run in others:
        found = figures_of([*kept, run])["figure"]
        if found >= figure:
            kept, figure = [*kept, run], found
    by_shift = {shift: figures_of(kept, shift) for shift in shifts}
    chosen = max(by_shift, key=lambda shift: by_shift[shift]["figure"])
    log = logs[best] | {"tried": tried}
    # The learning of the mean is that of all its runs.
    last = command_of(kept, chosen, log["arguments"]["data_dir"], target)
    log["command"] = "\n".join([*(logs[run]["command"] for run in kept), last])
    log["wall_time_seconds"] = sum(logs[run]["wall_time_seconds"] for run in kept)
    log["figures"] = {f"eval_{name}": value for name, value in by_shift[chosen].items() if name != "figure"}
    with new_folder(target) as folder:
        write_whole(folder / SAFE_WEIGHTS_NAME, save(mixed(kept, chosen), {"format": "pt"}))
        for name in ("config.json", "preprocessor_config.json"):
            shutil.copy(best / name, folder / name)
        write_json(folder / TRAINING_LOG_FILE, log)
    return tried


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that `focusvit train --task segmentation` wrote")
    parser.add_argument("--data", type=Path, required=True, help="folder of parquet files that they were trained on")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--shifts", type=float, nargs="+", default=list(SHIFTS), help="of the last class, in logits")
    args = parser.parse_args(argv)
    for entry in finish(args.runs, args.out, args.data, args.shifts):
        print(f"{entry['figure']:.4f}  {entry['shift']:+.1f}  {' + '.join(entry['runs'])}")


if __name__ == "__main__":
    main()
