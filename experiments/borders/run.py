"""
Superpixels' own reason: outputs that have borders. Who finds a figure better, superpixels or a grid?

    python -m experiments.borders.run train --tokens 36 16 --seeds 0 1 2
    python -m experiments.borders.run table

A blob cut out of one image lies on the enlarged patch of another; a model with few tokens says of each token, or of
each cell from its token and its own feature, whether it is figure. All runs of a seed have the same stem, recipe and
composites. `train` writes `experiments/results/borders/<variant>-seed<n>.json` with the scores of every test
composite, of Imagenette's and of BSDS500's segments, and leaves out what is there; `table` makes
`experiments/tables/borders.json` and `.md`.

Variants: `superpixel_<K>` and `grid_<K>`; `_own`: each cell has its own feature, too; `_smooth`: tokens are
interpolated in training, too, as they are in the measurement; `_cells_2`: cells of 2 px.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from experiments.borders.data import BSDS500, fixed_composites, human_segments, segment_composites, shares_of_cells
from experiments.borders.models import Head, find_figures, measure, tile_map
from experiments.borders.scores import boundary_f, majority, packed_scores, region_ceilings
from experiments.borders.tables import comparisons, markdown, rows_of, tokens_of
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.data import CACHE, DATA, load_examples
from experiments.micro.paired_bootstrap import paired_bootstrap
from experiments.micro.processes import keep_heap, side_by_side
from experiments.micro.results import RESULTS, Beginning, runs_left, write_table
from experiments.micro.tables import collect
from experiments.micro.training import Recipe, intended, model_inputs, settings
from focusvit_hf import FocusViTConfig
from focusvit_hf.utils.files import write_json


QUESTION = "borders"
# Images are as they are but for the mirror: what is augmented is what they are made into.
RECIPE: dict[str, Any] = {
    "epochs": 6,
    "batch_size": 64,
    "precision": "float32",
    "label_smoothing": 0.0,
    "crop_scale": (1.0, 1.0),
    "jitter": 0.0,
}


def variants(num_superpixels: int) -> dict[str, tuple[dict[str, Any], Head]]:
    """By name what is changed in the configuration, and the head, those that matter most first."""
    superpixel: dict[str, Any] = {"num_superpixels": num_superpixels}
    grid, finer = {**superpixel, "patch_pooling": "grid"}, {"superpixel_cell_size": 2}
    own, smooth, both = Head(own_feature=True), Head(laid="bilinear"), Head(True, "bilinear")
    return {
        f"superpixel_{num_superpixels}": (superpixel, Head()),
        f"grid_{num_superpixels}": (grid, Head()),
        f"superpixel_{num_superpixels}_own": (superpixel, own),
        f"grid_{num_superpixels}_own": (grid, own),
        f"grid_{num_superpixels}_smooth": (grid, smooth),
        f"grid_{num_superpixels}_own_smooth": (grid, both),
        f"superpixel_{num_superpixels}_cells_2": ({**superpixel, **finer}, Head()),
        f"grid_{num_superpixels}_cells_2": ({**grid, **finer}, Head()),
    }


def run(
    name: str,
    variant: tuple[Mapping[str, Any], Head],
    seed: int,
    data: Path = DATA,
    bsds500: Path = BSDS500,
    cache: Path = CACHE,
    results: Path = RESULTS,
    **recipe: Any,
) -> dict[str, Any]:
    """
    Trains and measures one variant with one seed, and saves its result below `results`.

    Args:
        name (`str`), variant (pair): See [`variants`].
        seed (`int`): Of weights and training composites; those of the test are always the same.
        data, bsds500 (`Path`): Data sets, see `borders.data`.
        recipe: Fields of `micro.training.Recipe` beside [`RECIPE`].

    Returns:
        `dict`: What the JSON holds.
    """
    changes, head = variant
    config, plan = settings(changes, **{**RECIPE, **recipe})
    size = config.image_height_and_width[0]
    training, evaluation = (load_examples(data, split, size, cache) for split in ("train", "test"))
    beginning = Beginning(plan.precision, seed)
    model, history = find_figures(config, head, plan, seed, training)
    tests = {"imagenette": fixed_composites(evaluation), "bsds500": segment_composites(bsds500, size)}
    measured = {name: _stored(measure(model, composites)) for name, composites in tests.items()}
    result = {
        "question": QUESTION,
        "variant": name,
        "changes": dict(changes),
        "head": asdict(head),
        **intended(config, plan),
        "seed": seed,
        "tokens": config.num_tokens,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "images": {name: len(composites) for name, composites in tests.items()},
        "scores": measured,
        # Of the pixels.
        "accuracy": measured["imagenette"]["nearest"]["accuracy"]["mean"],
        "history": history,
        **beginning.about(),
    }
    write_json(results / QUESTION / f"{name}-seed{seed}.json", result)
    return result


def _stored(scores: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, dict[str, Any]]:
    """Means, and of all but the pixels' accuracy every image's score, see `borders.scores.packed_scores`."""
    return {
        how: {
            kind: {"mean": round(float(values.mean()), 5)}
            | ({} if kind == "accuracy" else {"images": packed_scores(values)})
            for kind, values in kinds.items()
        }
        for how, kinds in scores.items()
    }


def unfinished(
    named: Mapping[str, tuple[Mapping[str, Any], Head]], seeds: Sequence[int], results: Path = RESULTS, **recipe: Any
) -> list[tuple[str, int]]:
    """
    The runs whose result is not there, seed by seed: `(name, seed)`.

    Raises:
        ValueError: when a result that is there is one of another configuration, recipe or head.
    """
    wanted = {
        name: intended(*settings(changes, **{**RECIPE, **recipe})) | {"head": asdict(head)}
        for name, (changes, head) in named.items()
    }
    before = intended(FocusViTConfig(), Recipe()) | {"head": asdict(Head())}
    return runs_left(wanted, seeds, results / QUESTION, before)


def train(arguments: argparse.Namespace) -> None:
    """
    Runs what is not finished, in as many processes as asked for.

    Raises:
        ValueError: on a variant that does not exist at these tokens.
    """
    everything = {name: variant for count in arguments.tokens for name, variant in variants(count).items()}
    names = arguments.variants or list(everything)
    unknown = sorted(set(names) - set(everything))
    if unknown:
        raise ValueError(f"Expected variants from {list(everything)}, got {unknown}.")
    named = {name: everything[name] for name in names}
    recipe = {"epochs": arguments.epochs}
    todo = unfinished(named, arguments.seeds, arguments.results, **recipe)
    places = {name: getattr(arguments, name) for name in ("data", "bsds500", "cache", "results")}

    def prepare() -> None:
        for split in ("train", "test"):
            load_examples(arguments.data, split, settings({})[0].image_height_and_width[0], arguments.cache)

    def job_of(name: str, seed: int) -> Callable[[], dict[str, Any]]:
        return partial(run, name, named[name], seed, **places, **recipe)

    side_by_side(todo, len(named) * len(arguments.seeds) - len(todo), job_of, prepare, arguments.workers)


def photographs(folder: Path, counts: Sequence[int]) -> list[dict[str, Any]]:
    """
    How well whole regions can follow the borders of BSDS500's segments in their own photographs, without any model.

    Returns:
        `list[dict]`: `tokens`, `kind` (`iou`: the best there is; `boundary_f`: of the answer with the most pixels
        right), means of `superpixel` and `grid`, and their `difference`, over photographs, of whose segments the mean
        is taken first.
    """
    size = settings({})[0].image_height_and_width[0]
    images, masks, owners = human_segments(folder, size)
    _, numbers = owners.unique(return_inverse=True)
    means = F.one_hot(numbers).float() / F.one_hot(numbers).sum(dim=0)
    rows = []
    for count in counts:
        config, _ = settings({"num_superpixels": count})
        maps = {"superpixel": model_inputs(config, images)["superpixel_ids"][owners], "grid": tile_map(config)}
        scores: dict[str, dict[str, np.ndarray]] = {"iou": {}, "boundary_f": {}}
        for name, ids in maps.items():
            shares = shares_of_cells(masks, (ids.shape[1], ids.shape[2]))
            answer = majority(masks, shares, ids, count)
            scores["iou"][name] = (region_ceilings(shares, ids, count)[0] @ means).numpy()
            scores["boundary_f"][name] = (boundary_f(answer, masks) @ means).numpy()
        for kind, found in scores.items():
            difference = paired_bootstrap(found["superpixel"][None], found["grid"][None])
            average = {name: round(float(values.mean()), 4) for name, values in found.items()}
            rows.append({"tokens": count, "kind": kind, **average, "difference": asdict(difference)})
    return rows


def table(arguments: argparse.Namespace) -> None:
    """
    Writes and prints the tables.

    Raises:
        ValueError: when there are no results.
    """
    found = collect(arguments.results / QUESTION)
    if not found:
        raise ValueError(f"Expected results in {arguments.results / QUESTION}, got none: run 'train' first.")
    first = next(iter(next(iter(found.values())).values()))
    content = {
        "question": QUESTION,
        "asks": (__doc__ or "").strip().splitlines()[0],
        "recipe": first["recipe"],
        "images": first["images"],
        "environment": first["environment"],
        "rows": rows_of(found),
        "comparisons": comparisons(found),
        "photographs": photographs(arguments.bsds500, tokens_of(found)),
    }
    text = markdown(content["rows"], content["comparisons"], content["photographs"])
    write_table(arguments.tables, QUESTION, content, text)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = parser_of(__doc__)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="Train and measure what is not there yet.")
    training.set_defaults(call=train)
    training.add_argument("--tokens", type=int, nargs="+", default=[36, 16])
    training.add_argument("--variants", nargs="+", help="Names of variants; by default all at these tokens.")
    add_options(training, "seeds", "epochs", "workers", "data", "cache", epochs=RECIPE["epochs"])
    tabling = commands.add_parser("table", help="Make the tables.")
    tabling.set_defaults(call=table)
    add_options(tabling, "tables")
    for command in (training, tabling):
        command.add_argument("--bsds500", type=Path, default=BSDS500)
        add_options(command, "results")
    arguments = parser.parse_args(argv)
    arguments.call(arguments)


if __name__ == "__main__":
    keep_heap()
    main()
