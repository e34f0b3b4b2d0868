"""
Measures trained models on images they were not trained for: corrupted, stretched, larger, with other K.

    python -m experiments.robustness.run controls_36 --variants superpixel dense_linear --control dense_linear \\
        --seeds 0 1

Reads the weights that `micro/run.py` left in its cache, measures each variant of the question on the images of the
split as they are and under every change, and writes `experiments/tables/<question>-robustness.json` and `.md`. What
counts is the change from the clean images; a variant's is compared with the control's, paired over images and seeds.
A variant of another question is named with it: `elastic/drawn_k`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import torch

from experiments.micro.arguments import add_options, parser_of
from experiments.micro.data import Examples, evaluation_examples
from experiments.micro.paired_bootstrap import MARGINS, interval_text, paired_bootstrap
from experiments.micro.processes import keep_heap
from experiments.micro.questions import QUESTIONS, Question
from experiments.micro.results import folder_of, write_table
from experiments.micro.run import load_run
from experiments.micro.training import predict, settings
from experiments.robustness.corruptions import CORRUPTIONS
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification
from focusvit_hf.utils.environment import environment


# Of the number of superpixels in training.
K_RATIOS = (0.5, 0.75, 1.5, 2.0)
Outcomes = dict[str, np.ndarray]
# Images that are changed at once.
_CHUNK = 200


def realisable(count: float, config: FocusViTConfig) -> int:
    """The number nearest to `count` that can be laid out on an image of the configuration's size."""
    for candidate in sorted(range(1, 2 * round(count) + 2), key=lambda k: abs(k - count)):
        try:
            config.require_num_superpixels(candidate)
        except ValueError:
            continue
        return candidate
    raise AssertionError("a square image takes one superpixel")


@contextmanager
def num_superpixels(model: FocusViTForImageClassification, count: int) -> Iterator[None]:
    """Within this context the model pools to `count` tokens."""
    kept = model.config.num_superpixels
    model.config.num_superpixels = count
    try:
        yield
    finally:
        model.config.num_superpixels = kept


def measure(
    model: FocusViTForImageClassification,
    examples: Examples,
    larger: Examples | None = None,
    regions: str = "superpixel",
    corruptions: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = CORRUPTIONS,
) -> Outcomes:
    """
    Whether each image is right, by condition: `"clean"`, each corruption, `"larger"`, and `"k_<number>"`.

    Args:
        model (`FocusViTForImageClassification`): A dense model is measured at its own number of tokens only.
        examples ([`Examples`]): Those to measure on, at the size of training.
        larger ([`Examples`], *optional*): The same images with more pixels.
        regions (`str`): What the model was trained with, see `micro.regions.region_ids`.
        corruptions (mapping): What is done to the images.
    """

    def right(images: torch.Tensor) -> np.ndarray:
        return (predict(model, images, regions).argmax(dim=1) == examples.labels).numpy()

    result = {"clean": right(examples.images)}

    def add(name: str, images: torch.Tensor) -> None:
        # Very large patches do not divide every stretched image.
        if model.config.takes_size(*images.shape[2:]):
            result[name] = right(images)

    for name, corrupt in corruptions.items():
        add(name, _changed(examples.images, corrupt))
    if larger is not None:
        add("larger", larger.images)
    if model.config.patch_pooling != "none":
        for ratio in K_RATIOS:
            count = realisable(ratio * model.config.superpixel_count, model.config)
            with num_superpixels(model, count):
                result[f"k_{count}"] = right(examples.images)
    return result


def _changed(images: torch.Tensor, corrupt: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """
    All images, changed a few at a time: the steps between are floating point, and those of 2,000 images of 224 px
    together do not fit into 24 GiB.
    """
    return torch.cat([corrupt(part) for part in images.split(_CHUNK)])


def rows_of(measured: Mapping[str, Mapping[int, Outcomes]], control: str, margin: float) -> list[dict[str, Any]]:
    """
    One row for each variant and condition: the accuracy, the drop from the clean images with its interval, and how
    much smaller (positive) or larger the drop is than the control's.

    Args:
        measured (mapping): By variant and seed what [`measure`] returned.
        control (`str`): The variant compared with. A condition it does not know is not compared.
        margin (`float`): See `Difference.verdict`.
    """
    rows = []
    for variant, runs in measured.items():
        seeds = sorted(runs)
        for condition in runs[seeds[0]]:
            scores = np.stack([runs[seed][condition] for seed in seeds])
            clean = np.stack([runs[seed]["clean"] for seed in seeds])
            row: dict[str, Any] = {
                "variant": variant,
                "condition": condition,
                "seeds": seeds,
                "accuracy": float(scores.mean()),
            }
            if condition != "clean":
                row["change"] = asdict(paired_bootstrap(scores, clean))
            common = [seed for seed in seeds if seed in measured[control]]
            comparable = all(condition in measured[control][seed] for seed in common)
            if condition != "clean" and variant != control and common and comparable:
                own, others = (_changes(measured[name], condition, common) for name in (variant, control))
                difference = paired_bootstrap(own, others)
                row |= {"difference": asdict(difference), "verdict": difference.verdict(margin)}
            rows.append(row)
    return rows


def _changes(runs: Mapping[int, Outcomes], condition: str, seeds: Sequence[int]) -> np.ndarray:
    return np.stack([runs[seed][condition].astype(float) - runs[seed]["clean"] for seed in seeds])


@cache
def question_named(name: str) -> Question:
    """The question of that name, built once: its variants' parameters are counted to match them."""
    return QUESTIONS[name]()


def question_and_variant(name: str, question: str) -> tuple[str, str]:
    """`"elastic/drawn_k"` to `("elastic", "drawn_k")`, and a name without a question to that of `question`."""
    of, _, variant = name.rpartition("/")
    of = of or question
    if of not in QUESTIONS or variant not in question_named(of).variants:
        raise ValueError(f"Expected a variant of {question!r}, or <question>/<variant>, got {name!r}.")
    return of, variant


def markdown(rows: Sequence[Mapping[str, Any]], control: str) -> str:
    """The rows as a table to read."""
    lines = [
        f"| condition | variant | accuracy | change (95 %) | less lost than {control} (95 %) | |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["condition"] != "clean", row["condition"])):
        cells = [row["condition"], row["variant"], f"{100 * row['accuracy']:.1f}"]
        for key in ("change", "difference"):
            cells.append(interval_text(row.get(key)))
        lines.append("| " + " | ".join([*cells, row.get("verdict", "")]) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures every run of the question whose weights are there."""
    parser = parser_of(__doc__)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--variants", nargs="+", help="By default all whose weights are there.")
    parser.add_argument("--control", help="Whose drop the others' is compared with; by default the question's own.")
    add_options(parser, "seeds", "split", "data", "cache", "results", "tables")
    parser.add_argument("--larger", type=int, default=192, help="Side in pixels of the larger images.")
    parser.add_argument("--limit", type=int, help="Measure on the first so many images.")
    arguments = parser.parse_args(argv)
    question = question_named(arguments.question)
    control = arguments.control or question.control
    places = arguments.data, arguments.cache, arguments.results
    limit, split = arguments.limit, arguments.split
    larger = evaluation_examples(arguments.data, arguments.larger, split, arguments.cache)[slice(limit)]
    measured: dict[str, dict[int, Outcomes]] = {}
    names = arguments.variants or question.variants
    for name, (of, variant) in {name: question_and_variant(name, arguments.question) for name in names}.items():
        _, recipe = settings(question_named(of).variants[variant])
        for seed in arguments.seeds:
            run = load_run(of, variant, seed, *places, limit=limit, split=split)
            if run is None:
                continue
            outcomes = measure(*run, larger, recipe.regions)
            measured.setdefault(name, {})[seed] = outcomes
            print(name, seed, {what: round(float(right.mean()), 3) for what, right in outcomes.items()}, flush=True)
    if control not in measured:
        raise ValueError(f"Expected weights of the control {control!r}, got only those of {sorted(measured)}.")
    rows = rows_of(measured, control, MARGINS["imagenette"])
    content = {
        "question": arguments.question,
        "split": split,
        "control": control,
        "larger": arguments.larger,
        "environment": environment(torch.device("cpu"), torch.float32),
        "rows": rows,
    }
    stem = f"{folder_of(arguments.question, split)}-robustness"
    write_table(arguments.tables, stem, content, markdown(rows, control))


if __name__ == "__main__":
    keep_heap()
    main()
