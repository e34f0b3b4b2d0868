"""
How much of a dense ViT's accuracy is left when it does less: tokens that leave, are fused, merged or pooled.

    python -m experiments.conversion.curve model_cards/vit-tiny-imagenette
    python -m experiments.conversion.curve model_cards/vit-tiny-imagenette --families merge learned --learning tuned

Each way is brought to three quarters, a half and a third of the dense ViT's FLOPs as far as it can be, and measured
on the test images: at once, after a short fine-tune (`tuned`), and after one with the dense ViT as teacher
(`distilled`). Beside accuracy stands throughput from normalised pixels to logits, superpixels included, as a ratio to
the dense ViT in the same run. Each row is a JSON in `experiments/results/conversion_224/`; what is there is not made
again. `table.py` makes table and plot.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from experiments.conversion.rows import BUDGETS, FAMILIES, UNTRAINED, Row, all_rows
from experiments.conversion.tuning import Plan, moved, on_device, tune
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.data import Examples, training_and_evaluation
from experiments.micro.processes import keep_heap
from experiments.micro.results import RESULTS, Beginning, require_settings, write_result
from experiments.micro.training import model_inputs
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, convert_vit_checkpoint
from focusvit_hf.benchmark.timing import interleaved
from focusvit_hf.conversion.cost import flops_of_an_image
from focusvit_hf.training.sparsification import is_predictor
from focusvit_hf.utils.files import read_json, write_json


QUESTION = "conversion_224"
LEARNING = ("at_once", "tuned", "distilled")
DENSE = "dense"
_BATCH = 100


def load_folder(folder: Path) -> FocusViTForImageClassification:
    """The FocusViT of a folder, or its ViT as the dense FocusViT that it is, in float32 and evaluation mode."""
    if AutoConfig.from_pretrained(folder).model_type == FocusViTConfig.model_type:
        return FocusViTForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    return convert_vit_checkpoint(folder, patch_pooling="none").float().eval()


def load_dense(folder: Path) -> FocusViTForImageClassification:
    """
    The dense model of a folder, see [`load_folder`].

    Raises:
        ValueError: when it is not dense.
    """
    model = load_folder(folder)
    config = model.config
    if (
        config.patch_pooling != "none"
        or config.sparsification_layers
        or "latent_attention" in (config.layer_types or ())
    ):
        raise ValueError(f"Expected a dense ViT in {folder}, got one that pools, drops tokens or has latents.")
    return model


def made(dense: FocusViTForImageClassification, row: Row | None) -> FocusViTForImageClassification:
    """The dense model's weights in a model that does less, or as much; what a row adds of its own starts new."""
    row = row or Row(DENSE, 1.0, 1.0)
    config = FocusViTConfig.from_dict(dense.config.to_dict(), **row.overrides)
    torch.manual_seed(0)
    model = FocusViTForImageClassification(config)
    missing, unexpected = model.load_state_dict(dense.state_dict(), strict=False)
    if unexpected or not all(is_predictor(name) for name in missing):
        raise ValueError(f"Expected the dense model's weights to fit {row.name}, got {missing} and {unexpected}.")
    return model.eval()


@torch.no_grad()
def outcomes(model: FocusViTForImageClassification, examples: Examples, device: torch.device) -> np.ndarray:
    """Whether each image is classified correctly, `(count,)` bool."""
    on_device(model, device).eval()
    found = [
        model(**moved(model_inputs(model.config, part), device)).logits.argmax(dim=1).cpu()
        for part in examples.images.split(_BATCH)
    ]
    return (torch.cat(found) == examples.labels).numpy()


@torch.no_grad()
def throughput(
    model: FocusViTForImageClassification,
    dense: FocusViTForImageClassification,
    images: torch.Tensor,
    repeats: int,
    device: torch.device,
) -> dict[str, float]:
    """Images a second from normalised pixels to logits, and the ratio to the dense model in turn with it."""
    pixels = model_inputs(dense.config, images)["pixel_values"].to(device)
    subjects = {"row": lambda: model(pixels), DENSE: lambda: dense(pixels)}
    seconds = {name: median(times) for name, times in interleaved(subjects, repeats, device=device).items()}
    return {"images_per_second": len(images) / seconds["row"], "to_dense": seconds[DENSE] / seconds["row"]}


def measured(
    dense: FocusViTForImageClassification,
    row: Row | None,
    learning: str,
    plan: Plan,
    seed: int,
    data: tuple[Examples, Examples],
    device: torch.device,
    repeats: int = 0,
    path: Path | None = None,
) -> dict[str, Any]:
    """
    Makes a model, lets it learn what there is to learn, measures it, and writes the JSON of the row.

    Args:
        dense ([`FocusViTForImageClassification`]): The dense ViT, which is also the teacher.
        row ([`Row`], *optional*), learning (`str`): What is measured; no row: the dense ViT itself.
        plan ([`Plan`]), seed (`int`): Of the fine-tune.
        data (pair of [`Examples`]): To learn from, and to measure on.
        device (`torch.device`): Where.
        repeats (`int`, *optional*, defaults to 0): Timed rounds; 0: no throughput.
        path (`Path`, *optional*): The file to write.
    """
    beginning = Beginning("float32", seed)
    model = made(dense, row)
    history = []
    if learning != "at_once":
        teacher = on_device(dense, device) if learning == "distilled" else None
        history = tune(model, teacher, plan, seed, data[0], device)
    outcome = outcomes(model, data[1], device)
    about = {
        "variant": DENSE if row is None else row.name,
        "family": DENSE if row is None else row.family,
        "budget": 1.0 if row is None else row.budget,
        "flops": flops_of_an_image(model.config),
        "share": 1.0 if row is None else row.share,
        "overrides": {} if row is None else row.overrides,
        "learning": learning,
        "plan": asdict(plan) if history else None,
        "history": history,
        "seed": seed,
        "device": str(device),
    }
    if repeats:
        about["throughput"] = throughput(model, on_device(dense, device), data[1].images[:32], repeats, device)
    if path is not None:
        return write_result(path, about, outcome, beginning)
    return {**about, "accuracy": float(outcome.mean())}


def _path(results: Path, name: str, learning: str, seed: int) -> Path:
    return results / f"{name}-{learning}-seed{seed}.json"


def is_there(path: Path, row: Row | None, learning: str, plan: Plan) -> bool:
    """Whether a result is there; ValueError where it was made with other settings."""
    if not path.is_file():
        return False
    wanted = {
        "overrides": {} if row is None else row.overrides,
        "plan": None if learning == "at_once" else asdict(plan),
    }
    require_settings(path, read_json(path), json.loads(json.dumps(wanted)))
    return True


def add_throughput(
    path: Path,
    dense: FocusViTForImageClassification,
    row: Row | None,
    images: torch.Tensor,
    repeats: int,
    device: torch.device,
) -> None:
    """Times a row whose result is there without; its speed does not hang on what it has learned."""
    result = read_json(path)
    if "throughput" in result:
        return
    model = on_device(made(dense, row), device)
    result["throughput"] = throughput(model, on_device(dense, device), images, repeats, device)
    write_json(path, result)
    print(f"{path.stem}: {result['throughput']['to_dense']:.2f} times the dense ViT", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Makes what is not there yet."""
    parser = parser_of(__doc__)
    parser.add_argument("vit", type=Path, help="A folder with a dense ViT, of Transformers or a FocusViT.")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="Shares of the dense ViT's FLOPs.")
    parser.add_argument("--learning", nargs="+", choices=LEARNING, default=LEARNING)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5, help="Of a fine-tune.")
    parser.add_argument("--batch_size", type=int, default=64, help="Of a fine-tune.")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="Of a fine-tune.")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="Of a fine-tune.")
    parser.add_argument("--repeats", type=int, default=7, help="Timed rounds of 32 images; 0: no throughput.")
    parser.add_argument("--limit", type=int, help="Use so many images of each split.")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    add_options(parser, "split", "data", "cache", "results", results=RESULTS / QUESTION)
    arguments = parser.parse_args(argv)
    dense = load_dense(arguments.vit)
    plan = Plan(arguments.epochs, arguments.batch_size, arguments.learning_rate, precision=arguments.precision)
    height, width = dense.config.image_height_and_width
    if height != width:
        raise ValueError(f"Expected a ViT of square images, got {height} x {width}.")
    training, evaluation = training_and_evaluation(arguments.data, height, arguments.split, arguments.cache)
    data = (training[: arguments.limit], evaluation[: arguments.limit])
    rows: list[Row | None] = [None, *all_rows(dense.config, arguments.families, arguments.budgets)]
    print(*(f"{row.name}: {row.share:.3f} of the FLOPs, {row.overrides}" for row in rows if row), sep="\n", flush=True)
    for learning in LEARNING:
        for row in rows:
            skipped = row is not None and row.family in UNTRAINED and learning == "at_once"
            name = DENSE if row is None else row.name
            path = _path(arguments.results, name, learning, arguments.seed)
            if learning not in arguments.learning or skipped:
                continue
            if is_there(path, row, learning, plan):
                if arguments.repeats:
                    add_throughput(path, dense, row, data[1].images[:32], arguments.repeats, arguments.device)
                continue
            result = measured(
                dense, row, learning, plan, arguments.seed, data, arguments.device, arguments.repeats, path
            )
            print(f"{name}, {learning}: {result['accuracy']:.4f} in {result['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    keep_heap()
    main()
