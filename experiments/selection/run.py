"""
Does the gate of select-and-pack attention find what matters, and what does selecting cost in accuracy?

    python -m experiments.selection.run --workers 2
    python -m experiments.selection.run --split validation --variants dense masks masks_10

Images of Imagenette are pasted small, at 20 to 55 % of the side, on a plain or a textured ground; the rectangles are
the masks (`selection/composites.py`). All models are micro models: 64 pixels, 64 patches of 8, width 96, 6 layers, of
which the first two are dense. "masks" is taught by the rectangles, "masks_10" with ten times the weight, "budget" has
only a share of FLOPs to keep, "free" nothing; "top" selects the same number of tokens of each image, without labels,
and "random" so many at random. A model with a threshold is measured at others, too. Nothing is chosen on the test
composites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.micro.arguments import add_options, parser_of
from experiments.micro.data import Examples, evaluation_examples, training_and_evaluation
from experiments.micro.processes import keep_heap, side_by_side
from experiments.micro.results import Beginning, folder_of, runs_left, write_result
from experiments.selection.composites import composites
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification
from focusvit_hf.select_pack_attention import FocusViTSelectPackLayer
from focusvit_hf.token_choice import largest
from focusvit_hf.token_selection import cost_share


SIZE, PATCH, DEPTH, FIRST = 64, 8, 6, 2
SHARES = (10, 20, 30, 50, 75)
THRESHOLDS = (0.05, 0.2, 0.5)
_WARM_UP, _WEIGHT_DECAY, _TEST_SEED = 0.1, 0.05, 1
# Fields of the configuration by variant; a share of 100 % is the dense model.
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "masks": {"select_threshold": 0.1, "select_alpha": 0.01},
    "masks_10": {"select_threshold": 0.1, "select_alpha": 0.1},
    "free": {"select_threshold": 0.5},
    **{
        f"budget_{share}": {
            "select_threshold": 0.5,
            "select_budget": share / 100,
            "select_supervision": "budget",
        }
        for share in SHARES
    },
    **{f"top_{share}": {"select_budget": share / 100} for share in SHARES},
    **{f"random_{share}": {"select_budget": share / 100} for share in SHARES},
}


def make_model(fields: Mapping[str, Any], seed: int) -> FocusViTForImageClassification:
    """A micro model, with select-and-pack attention behind the first layers where it has fields of it."""
    torch.manual_seed(seed)
    kind = "select_pack_attention" if fields else "full_attention"
    config = FocusViTConfig(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=96,
        num_hidden_layers=DEPTH,
        num_attention_heads=3,
        intermediate_size=192,
        patch_pooling="none",
        layer_types=["full_attention"] * FIRST + [kind] * (DEPTH - FIRST),
        initializer_range=0.04,
        **{"num_labels": 10, "attn_implementation": "eager", **fields},
    )
    return FocusViTForImageClassification(config)


def select_at_random(model: FocusViTForImageClassification) -> None:
    """The control: as many tokens of each image, drawn anew in each pass, the same ones in all layers of it."""
    drawn: dict[str, torch.Tensor] = {}

    def choose(index: int, scores: torch.Tensor, kept: torch.Tensor | None, count: int | None) -> torch.Tensor:
        if index == FIRST:
            drawn["choice"] = largest(torch.rand(scores.shape), count or 1)
        return drawn["choice"] + 0 * scores

    for index in range(FIRST, DEPTH):
        model.focusvit.layers[index]._choice = partial(choose, index)  # type: ignore[assignment]


def set_threshold(model: FocusViTForImageClassification, threshold: float) -> None:
    """The threshold of all layers that select."""
    for layer in model.focusvit.layers:
        if isinstance(layer, FocusViTSelectPackLayer):
            layer.threshold = threshold


def normalised(images: torch.Tensor) -> torch.Tensor:
    """8-bit levels to -1..1."""
    return images.float() / 127.5 - 1


def train(model: nn.Module, examples: Examples, taught: bool, recipe: Mapping[str, Any], seed: int) -> None:
    """AdamW with a warm-up and a cosine over batches of composites that never come again."""
    generator = torch.Generator().manual_seed(seed)
    rate, steps, batch = recipe["learning_rate"], recipe["steps"], recipe["batch_size"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=_WARM_UP)
    model.train()
    for _ in range(steps):
        rows = torch.randint(0, len(examples), (batch,), generator=generator)
        images, masks = composites(examples, rows, SIZE, generator)
        with torch.autocast("cpu", torch.bfloat16):
            given = masks if taught else None
            loss = model(normalised(images), labels=examples.labels[rows], selection_masks=given).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def outcomes(
    model: FocusViTForImageClassification, images: torch.Tensor, masks: torch.Tensor, labels: torch.Tensor
) -> tuple[np.ndarray, dict[str, float]]:
    """Whether each image is right, and what is selected: shares of tokens and FLOPs, recall of tokens of objects."""
    inside = nn.functional.avg_pool2d(masks[:, None], model.config.patch_size).flatten(1)
    objects = inside >= 0.5
    right, shares, recalls, costs = [], [], [], []
    config = model.config
    model.eval()
    for rows in torch.arange(len(labels)).split(100):
        outputs = model(normalised(images[rows]))
        right.append(outputs.logits.argmax(dim=1) == labels[rows])
        if outputs.selected_tokens is not None:
            selected = torch.stack(outputs.selected_tokens).float()
            shares.append(selected.mean(dim=(0, 2)))
            recalls.append((selected * objects[rows]).sum(dim=(1, 2)))
            counts = selected.sum(dim=2)
            costs.append(cost_share(counts, objects.shape[1], 1, config.hidden_size, config.intermediate_size).mean(0))
    about = {"object_share": float(inside.mean()), "object_tokens": float(objects.float().mean())}
    if shares:
        whole = torch.cat(shares)
        # Recall layer by layer: the first has seen the least, and each inherits from the one before.
        by_layer = torch.stack(recalls).sum(dim=0) / objects.sum()
        about |= {"selected_share": float(whole.mean()), "recall": float(by_layer.mean())}
        about |= {"cost_share": float(torch.cat(costs).mean())}
        about |= {"spread": float(whole.std()), "first_layer_recall": float(by_layer[0])}
    return torch.cat(right).numpy(), about


def run(name: str, seed: int, fields: dict[str, Any], recipe: dict[str, Any], options: dict[str, Any]) -> Any:
    """Trains and measures a variant, and writes its result."""
    torch.set_num_threads(1)
    beginning = Beginning("bfloat16", seed)
    training, evaluation = training_and_evaluation(options["data"], SIZE, options["split"], options["cache"])
    model = make_model(fields, seed)
    if name.startswith("random"):
        select_at_random(model)
    train(model, training, name.startswith("masks"), recipe, seed)
    which = torch.arange(len(evaluation))
    images, masks = composites(evaluation, which, SIZE, torch.Generator().manual_seed(_TEST_SEED))
    right, found = outcomes(model, images, masks, evaluation.labels)
    about: dict[str, Any] = {
        "variant": name,
        "seed": seed,
        "configuration": fields,
        "recipe": recipe,
        "selection": found,
    }
    if "select_threshold" in fields:
        about["thresholds"] = {}
        for threshold in THRESHOLDS:
            set_threshold(model, threshold)
            others, found = outcomes(model, images, masks, evaluation.labels)
            about["thresholds"][str(threshold)] = {"accuracy": float(others.mean()), **found}
    return write_result(options["folder"] / f"{name}-seed{seed}.json", about, right, beginning)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what has no result yet."""
    parser = parser_of(__doc__)
    add_options(parser, "seeds", "split", "workers", "data", "cache", "results")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    arguments = parser.parse_args(argv)
    recipe = {name: getattr(arguments, name) for name in ("steps", "batch_size", "learning_rate")}
    wanted = {name: {"configuration": VARIANTS[name], "recipe": recipe} for name in arguments.variants}
    folder = arguments.results / folder_of("selection", arguments.split)
    options = {name: getattr(arguments, name) for name in ("data", "cache", "split")} | {"folder": folder}
    todo = runs_left(wanted, arguments.seeds, folder, {"configuration": {}, "recipe": {}})

    def job_of(name: str, seed: int) -> Any:
        return partial(run, name, seed, wanted[name]["configuration"], recipe, options)

    def prepare() -> None:
        evaluation_examples(Path(arguments.data), SIZE, arguments.split, arguments.cache)
        training_and_evaluation(Path(arguments.data), SIZE, arguments.split, arguments.cache)

    side_by_side(todo, len(arguments.seeds) * len(wanted) - len(todo), job_of, prepare, arguments.workers)


if __name__ == "__main__":
    keep_heap()
    main()
