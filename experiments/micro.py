"""
Trains the variants of a question at micro scale: Imagenette at 96 px, 20 epochs, a few minutes a run.

    python experiments/micro.py controls_36 --seeds 0 1 2
    python experiments/micro.py attention --variants full latent_8 --epochs 1

Each run writes `experiments/results/<question>/<variant>-seed<n>.json`, with every test picture's outcome, and its
weights beside the cached pictures; a run whose JSON is there is left out, so the same command goes on after a stop.
`--split validation` trains on four fifths of the training pictures and measures on the rest, for everything that is
chosen; its results lie in `experiments/results/<question>-validation`. `tables.py` makes the tables.
"""

from __future__ import annotations

import argparse
import base64
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from focusvit_hf import FocusViTConfig, FocusViTForImageClassification
from focusvit_hf.benchmark import environment
from focusvit_hf.files import read_json, write_json
from heap import keep_heap
from micro_data import CACHE, DATA, SPLITS, Pictures, evaluation_pictures, training_and_evaluation
from micro_training import Recipe, intended, load_model, outcomes, predict, save_model, settings, train
from questions import QUESTIONS


RESULTS = Path(__file__).resolve().parent / "results"
# Share of the pictures whose outcome may turn by keeping weights in fp16, and by another processor's sums.
_ROUNDED = 0.01


def packed(outcome: np.ndarray) -> str:
    """Outcomes `(count,)` bool as text: bits, first picture first, in base 64."""
    return base64.b64encode(np.packbits(outcome).tobytes()).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """The inverse of [`packed`]."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)


def folder_of(question: str, split: str) -> str:
    """Name of the folder that holds a question's results on a split."""
    return question if split == "test" else f"{question}-{split}"


def run(
    question: str,
    name: str,
    variant: Mapping[str, Any],
    seed: int,
    split: str,
    data: Path = DATA,
    cache: Path = CACHE,
    results: Path = RESULTS,
    **recipe: Any,
) -> dict[str, Any]:
    """
    Trains and measures one variant with one seed, saves its weights below `cache` and its result below `results`.

    Args:
        question (`str`), name (`str`): Where the files belong.
        variant (mapping), seed (`int`), recipe: See `micro_training.train`.
        split (`str`): What it is measured on, see `micro_data.training_and_evaluation`.

    Returns:
        `dict`: What the JSON holds.
    """
    config, plan = settings(variant, **recipe)
    if plan.teacher and split != "test":
        raise ValueError(f"Expected a run on the test split, got {split!r}: the teacher has seen what is held out.")
    training, evaluation = training_and_evaluation(data, config.image_height_and_width[0], split, cache)
    beginning = Beginning(plan.precision, seed)
    trained = train(variant, seed, training, cache / "weights", **recipe)
    outcome, loss = outcomes(trained, evaluation)
    folder = folder_of(question, split)
    stem = f"{name}-seed{seed}"
    save_model(trained.model, cache / "weights" / folder / stem)
    about = {
        "question": question,
        "variant": name,
        "changes": dict(variant),
        **intended(config, trained.recipe),
        "split": split,
        "seed": seed,
        "tokens": config.num_tokens,
        "parameters": trained.model.num_parameters(),
        "loss": loss,
        "history": trained.history,
    }
    return write_result(results / folder / f"{stem}.json", about, outcome, beginning)


class Beginning:
    """
    When a run began and with what code, which may change while it runs.

    Args:
        precision (`str`), seed (`int`): Of the run.
    """

    def __init__(self, precision: str, seed: int) -> None:
        self.environment = environment(torch.device("cpu"), getattr(torch, precision), seed)
        self._time = time.perf_counter()

    def about(self) -> dict[str, Any]:
        """For the JSON of the run: `seconds` since then, and the `environment`."""
        return {"seconds": round(time.perf_counter() - self._time, 1), "environment": self.environment}


def write_result(path: Path, about: Mapping[str, Any], outcome: np.ndarray, beginning: Beginning) -> dict[str, Any]:
    """
    Writes the JSON of a run.

    Args:
        path (`Path`): The file.
        about (mapping): What was run.
        outcome (`np.ndarray` of shape `(pictures,)`): Whether each picture was right.
        beginning ([`Beginning`]): Of the run.

    Returns:
        `dict`: What the JSON holds: `about`, and what follows from the others.
    """
    result = {
        **about,
        "pictures": len(outcome),
        "accuracy": float(outcome.mean()),
        "correct": packed(outcome),
        **beginning.about(),
    }
    write_json(path, result)
    return result


def load_run(
    question: str,
    variant: str,
    seed: int,
    data: Path = DATA,
    cache: Path = CACHE,
    results: Path = RESULTS,
    limit: int | None = None,
    split: str = "test",
) -> tuple[FocusViTForImageClassification, Pictures] | None:
    """
    The model of a run and the pictures it was measured on, or None where its weights are not there.

    Args:
        question, variant, seed, data, cache, results, split: See [`run`].
        limit (`int`, *optional*): Take the first so many pictures.

    Raises:
        ValueError: when there is no result of the run, or the weights are those of another one: they do not give what
            the result says, picture by picture.
    """
    folder, stem = folder_of(question, split), f"{variant}-seed{seed}"
    weights, path = cache / "weights" / folder / stem, results / folder / f"{stem}.json"
    if not weights.is_dir():
        return None
    if not path.is_file():
        raise ValueError(f"Expected {path} beside the weights of the run, got none.")
    model, result = load_model(weights), read_json(path)
    pictures = evaluation_pictures(data, model.config.image_height_and_width[0], split, cache)[slice(limit)]
    right = (predict(model, pictures.images, result["recipe"]["regions"]).argmax(dim=1) == pictures.labels).numpy()
    differing = int((right != unpacked(result["correct"], result["pictures"])[: len(right)]).sum())
    if differing > max(1, _ROUNDED * len(right)):
        raise ValueError(
            f"Expected the weights of {path}, got others: {differing} of {len(right)} pictures differ in {weights}."
        )
    return model, pictures


def unfinished(
    question: str, names: Sequence[str], seeds: Sequence[int], split: str, results: Path = RESULTS, **recipe: Any
) -> list[tuple[str, int]]:
    """
    The runs whose result is not there, seed by seed: `(name, seed)`.

    Raises:
        ValueError: when a result that is there is one of another configuration or recipe.
    """
    variants = QUESTIONS[question]().variants
    wanted = {name: intended(*settings(variants[name], **recipe)) for name in names}
    return runs_left(wanted, seeds, results / folder_of(question, split), intended(FocusViTConfig(), Recipe()))


def runs_left(
    wanted: Mapping[str, Mapping[str, Mapping[str, Any]]],
    seeds: Sequence[int],
    folder: Path,
    before: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, int]]:
    """
    The runs whose result is not in a folder, seed by seed: `(name, seed)`.

    Args:
        wanted (mapping): By name the `configuration` and the `recipe` that a result has to have.
        before (mapping): What fields of these were that came later than a result: their defaults.

    Raises:
        ValueError: when a result that is there is one of another configuration or recipe.
    """
    todo = []
    for seed in seeds:
        for name in wanted:
            path = folder / f"{name}-seed{seed}.json"
            if not path.is_file():
                todo.append((name, seed))
                continue
            there = read_json(path)
            for part, values in wanted[name].items():
                require_settings(path, {**before[part], **there[part]}, values)
    return todo


def require_settings(path: Path, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ValueError where what is known of a result that is there differs from what is wanted of it."""
    other = {key: known.get(key) for key in wanted if known.get(key) != wanted[key]}
    if other:
        raise ValueError(
            f"Expected {path} with { ({key: wanted[key] for key in other}) }, got {other}; choose another --results."
        )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what all programs ask that train at micro scale."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="Runs side by side, one thread each.")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=CACHE, help="Pictures and weights; outside the repository.")
    parser.add_argument("--results", type=Path, default=RESULTS)


def side_by_side(jobs: Mapping[str, Callable[[], dict[str, Any]]], workers: int) -> None:
    """Runs jobs, each of which gives the JSON of a run, in so many processes; prints by name what comes of them."""
    # One thread each: two runs side by side cost less than one on two threads, and other work slows them less.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running = {pool.submit(job): name for name, job in jobs.items()}
        for job in as_completed(running):
            result = job.result()
            print(f"{running[job]}: {result['accuracy']:.4f} in {result['seconds']:.0f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is not finished, in as many processes as asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--variants", nargs="+", help="Names of variants; by default all of the question.")
    add_run_arguments(parser)
    arguments = parser.parse_args(argv)
    question, split, results = arguments.question, arguments.split, arguments.results
    variants = QUESTIONS[question]().variants
    names = arguments.variants or list(variants)
    unknown = sorted(set(names) - set(variants))
    if unknown:
        raise ValueError(f"Expected variants from {list(variants)}, got {unknown}.")
    recipe = {"epochs": arguments.epochs}
    todo = unfinished(question, names, arguments.seeds, split, results, **recipe)
    print(f"{len(todo)} runs, {len(names) * len(arguments.seeds) - len(todo)} finished before", flush=True)
    if not todo:
        return
    # Once, before the processes that read the cache.
    sizes = {settings(variants[name])[0].image_height_and_width[0] for name, _ in todo}
    for size in sizes:
        training_and_evaluation(arguments.data, size, split, arguments.cache)
    options = {"data": arguments.data, "cache": arguments.cache, "results": results, **recipe}
    jobs = {f"{n}, seed {s}": partial(run, question, n, variants[n], s, split, **options) for n, s in todo}
    side_by_side(jobs, arguments.workers)


if __name__ == "__main__":
    keep_heap()
    main()
