"""
Trains the variants of a question at micro scale: Imagenette at 96 px, 20 epochs, a few minutes a run.

    python -m experiments.micro.run controls_36 --seeds 0 1 2
    python -m experiments.micro.run attention --variants full latent_8 --epochs 1

Each run writes `experiments/results/<question>/<variant>-seed<n>.json`, with every test image's outcome, and its
weights beside the cached images; a run whose JSON is there is left out, so the same command goes on after a stop.
`--split validation` trains on four fifths of the training images and measures on the rest, for everything that is
chosen; its results lie in `experiments/results/<question>-validation`. `tables.py` makes the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.micro.arguments import add_options, parser_of
from experiments.micro.data import CACHE, DATA, Examples, evaluation_examples, training_and_evaluation
from experiments.micro.processes import keep_heap, side_by_side
from experiments.micro.questions import QUESTIONS
from experiments.micro.results import (
    RESULTS,
    Beginning,
    folder_of,
    runs_left,
    unpacked,
    write_result,
)
from experiments.micro.training import Recipe, intended, load_model, outcomes, predict, save_model, settings, train
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification
from focusvit_hf.utils.files import read_json


# Share of the images whose outcome may turn by keeping weights in fp16, and by another processor's sums.
_ROUNDED = 0.01


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
        variant (mapping), seed (`int`), recipe: See `micro.training.train`.
        split (`str`): What it is measured on, see `micro.data.training_and_evaluation`.

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


def load_run(
    question: str,
    variant: str,
    seed: int,
    data: Path = DATA,
    cache: Path = CACHE,
    results: Path = RESULTS,
    limit: int | None = None,
    split: str = "test",
) -> tuple[FocusViTForImageClassification, Examples] | None:
    """
    The model of a run and the images it was measured on, or None where its weights are not there.

    Args:
        question, variant, seed, data, cache, results, split: See [`run`].
        limit (`int`, *optional*): Take the first so many images.

    Raises:
        ValueError: when there is no result of the run, or the weights are those of another one: they do not give what
            the result says, image by image.
    """
    folder, stem = folder_of(question, split), f"{variant}-seed{seed}"
    weights, path = cache / "weights" / folder / stem, results / folder / f"{stem}.json"
    if not weights.is_dir():
        return None
    if not path.is_file():
        raise ValueError(f"Expected {path} beside the weights of the run, got none.")
    model, result = load_model(weights), read_json(path)
    examples = evaluation_examples(data, model.config.image_height_and_width[0], split, cache)[slice(limit)]
    right = (predict(model, examples.images, result["recipe"]["regions"]).argmax(dim=1) == examples.labels).numpy()
    differing = int((right != unpacked(result["correct"], result["images"])[: len(right)]).sum())
    if differing > max(1, _ROUNDED * len(right)):
        raise ValueError(
            f"Expected the weights of {path}, got others: {differing} of {len(right)} images differ in {weights}."
        )
    return model, examples


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


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is not finished, in as many processes as asked for."""
    parser = parser_of(__doc__)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--variants", nargs="+", help="Names of variants; by default all of the question.")
    add_options(parser, "seeds", "split", "epochs", "workers", "data", "cache", "results")
    arguments = parser.parse_args(argv)
    question, split, results = arguments.question, arguments.split, arguments.results
    variants = QUESTIONS[question]().variants
    names = arguments.variants or list(variants)
    unknown = sorted(set(names) - set(variants))
    if unknown:
        raise ValueError(f"Expected variants from {list(variants)}, got {unknown}.")
    recipe = {"epochs": arguments.epochs}
    todo = unfinished(question, names, arguments.seeds, split, results, **recipe)
    options = {"data": arguments.data, "cache": arguments.cache, "results": results, **recipe}

    def prepare() -> None:
        for size in {settings(variants[name])[0].image_height_and_width[0] for name, _ in todo}:
            training_and_evaluation(arguments.data, size, split, arguments.cache)

    def job_of(name: str, seed: int) -> Callable[[], dict[str, Any]]:
        return partial(run, question, name, variants[name], seed, split, **options)

    side_by_side(todo, len(names) * len(arguments.seeds) - len(todo), job_of, prepare, arguments.workers)


if __name__ == "__main__":
    keep_heap()
    main()
