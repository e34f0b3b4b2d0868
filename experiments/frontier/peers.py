"""
Trains at micro scale what a user would pick instead: LeViT-128S, MobileNetV2, ConvNeXtV2-atto, ResNet-18.

    python -m experiments.frontier.peers --seeds 0 1 2
    python -m experiments.frontier.peers --peers LeViT-128S --epochs 1

From scratch, with the recipe and the images of the rows of `controls_36`; the models are transformers' own as in
`focusvit benchmark`, with a head of as many classes. Each run writes `experiments/results/peers/<peer>-seed<n>.json`
as `micro/run.py` does, and weights in fp32 beside the cached images; a run whose JSON is there is left out.
`frontier/run.py` shows them beside FocusViT.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig

from experiments.micro.arguments import add_options, parser_of
from experiments.micro.data import CACHE, DATA, training_and_evaluation
from experiments.micro.processes import keep_heap, side_by_side
from experiments.micro.questions import QUESTIONS
from experiments.micro.results import (
    RESULTS,
    Beginning,
    folder_of,
    runs_left,
    write_result,
)
from experiments.micro.training import Recipe, fit, predict, settings
from focusvit_hf import FocusViTConfig
from focusvit_hf.benchmark.subjects import find_subject


QUESTION = "peers"
PEERS = ("LeViT-128S", "MobileNetV2", "ConvNeXtV2-atto", "ResNet-18")
# Written by transformers, whatever the model.
_NOT_COMPARED = ("transformers_version", "id2label", "label2id")


def fed_and_recipe(**recipe: Any) -> tuple[FocusViTConfig, Recipe]:
    """
    What the peers are fed with, as the configuration of a FocusViT that takes pixels alone, and how they are trained:
    as the dense ViT of `controls_36`.
    """
    fed, plan = settings(QUESTIONS["controls_36"]().variants["dense_stem"], **recipe)
    # A stem takes the place of a FocusViT's own.
    return fed, replace(plan, stem=None)


def configuration(peer: str, fed: FocusViTConfig) -> PreTrainedConfig:
    """
    The configuration of a peer for the images and the classes of `fed`.

    Raises:
        ValueError: when there is no such peer, or it does not work at this size.
    """
    height, width = fed.image_height_and_width
    if peer not in PEERS or height != width:
        raise ValueError(f"Expected one of {PEERS} at a square size, got {peer!r} at {height} x {width} pixels.")
    config = find_subject(peer).configure(height)
    config.num_labels = fed.num_labels or 0
    return config


def steady_batch_norms(model: nn.Module) -> None:
    """
    Gives all batch norms PyTorch's own momentum. Transformers' MobileNetV2 has 0.997, which in TensorFlow is the share
    of the old statistics, but in PyTorch that of the new: what it uses in evaluation is that of the last batch alone.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1


def intended(config: PreTrainedConfig, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """All that decides what a run is, `configuration` and `recipe`, as JSON gives it back."""
    own = {name: value for name, value in config.to_diff_dict().items() if name not in _NOT_COMPARED}
    everything = {"configuration": {**own, "num_labels": config.num_labels}, "recipe": asdict(recipe)}
    return json.loads(json.dumps(everything))


def run(
    peer: str,
    seed: int,
    split: str,
    data: Path = DATA,
    cache: Path = CACHE,
    results: Path = RESULTS,
    **recipe: Any,
) -> dict[str, Any]:
    """
    Trains and measures one peer with one seed, saves its weights below `cache` and its result below `results`.

    Args:
        peer (`str`): Of [`PEERS`].
        seed (`int`): Of the weights and of the images.
        split (`str`): What it is measured on, see `micro.data.training_and_evaluation`.
        recipe: Fields of [`Recipe`].

    Returns:
        `dict`: What the JSON holds, see `micro.run.run`; `tokens` is None.
    """
    fed, plan = fed_and_recipe(**recipe)
    config = configuration(peer, fed)
    # LeViT adds to its configuration when it is built.
    described = intended(config, plan)
    training, evaluation = training_and_evaluation(data, fed.image_height_and_width[0], split, cache)
    beginning = Beginning(plan.precision, seed)
    torch.manual_seed(seed)
    # As the stem of a FocusViT: convolutions are faster so, and none of the peers is slower.
    model = find_subject(peer).model_class(config).to(memory_format=torch.channels_last)
    steady_batch_norms(model)
    history = fit(model, fed, plan, seed, training)
    logits = predict(model, evaluation.images, config=fed)
    outcome = (logits.argmax(dim=1) == evaluation.labels).numpy()
    folder = folder_of(QUESTION, split)
    # In full: running variances of a batch normalisation need not fit into fp16.
    model.save_pretrained(cache / "weights" / folder / f"{peer}-seed{seed}")
    about = {
        "question": QUESTION,
        "variant": peer,
        "changes": {},
        **described,
        "split": split,
        "seed": seed,
        "tokens": None,
        "parameters": model.num_parameters(),
        "loss": float(cross_entropy(logits, evaluation.labels)),
        "history": history,
    }
    return write_result(results / folder / f"{peer}-seed{seed}.json", about, outcome, beginning)


def unfinished(
    peers: Sequence[str], seeds: Sequence[int], split: str, results: Path = RESULTS, **recipe: Any
) -> list[tuple[str, int]]:
    """
    The runs whose result is not there, seed by seed: `(peer, seed)`.

    Raises:
        ValueError: when a result that is there is one of another configuration or recipe.
    """
    fed, plan = fed_and_recipe(**recipe)
    wanted = {peer: intended(configuration(peer, fed), plan) for peer in peers}
    before = {"configuration": {}, "recipe": asdict(Recipe())}
    return runs_left(wanted, seeds, results / folder_of(QUESTION, split), before)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is not finished, in as many processes as asked for."""
    parser = parser_of(__doc__)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    add_options(parser, "seeds", "split", "epochs", "workers", "data", "cache", "results")
    arguments = parser.parse_args(argv)
    split, recipe = arguments.split, {"epochs": arguments.epochs}
    todo = unfinished(arguments.peers, arguments.seeds, split, arguments.results, **recipe)
    options = {"data": arguments.data, "cache": arguments.cache, "results": arguments.results, **recipe}

    def prepare() -> None:
        training_and_evaluation(arguments.data, fed_and_recipe()[0].image_height_and_width[0], split, arguments.cache)

    def job_of(peer: str, seed: int) -> Callable[[], dict[str, Any]]:
        return partial(run, peer, seed, split, **options)

    finished = len(arguments.peers) * len(arguments.seeds) - len(todo)
    side_by_side(todo, finished, job_of, prepare, arguments.workers)


if __name__ == "__main__":
    keep_heap()
    main()
