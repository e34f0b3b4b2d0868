"""
Heat maps of classifiers: do they lie where the object lies, and does the answer rest on what they show?

    python -m experiments.borders.explanations controls_36 --variants superpixel grid --seeds 0 1 2

Reads the weights that `micro/run.py` left in its cache and writes `experiments/tables/<question>-explanations.json`
and `.md`. A heat map is the relevance of regions for their area, laid back onto the pixels (`focusvit_hf.lay_back`):
by nearest, or interpolated between the cells of superpixels and the tiles of a grid.

- `deletion`, `insertion`: area under the probability of the model's answer while the pixels ranked highest are taken
  away for the image's mean colour, or put into the blurred image (Petsiuk et al., "RISE", 2018); low and high are
  good. `…_gain`: how much better they are than regions in a random order, since models differ in how sure they are.
  The model sees nothing but the changed images: superpixels are those of the changed one.
- `pointing` (Zhang et al., "Top-down neural attention by excitation backprop", 2016): the middle of a test image is
  cut out as a blob and lies on the enlarged patch of another; a hit where the pixel ranked highest for the true class
  is in the blob, the share of hits where several are. `energy`: the share of positive relevance that lies there.
  `iou`: of the blob with as many pixels, those ranked highest. `accuracy`: how often the class is found at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from experiments.borders.data import GROUNDS, SMOOTH_GROUNDS, Composites, fixed_composites
from experiments.borders.models import tile_map
from experiments.borders.scores import intersection_over_union
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.data import Examples
from experiments.micro.paired_bootstrap import interval_text, paired_bootstrap
from experiments.micro.processes import keep_heap
from experiments.micro.questions import QUESTIONS
from experiments.micro.results import write_table
from experiments.micro.run import load_run
from experiments.micro.training import model_inputs, predict
from experiments.robustness.corruptions import blur
from focusvit_hf import FocusViTForImageClassification
from focusvit_hf.explanation.relevance import region_relevance, relevance_per_area
from focusvit_hf.lay_back import lay_back
from focusvit_hf.utils.environment import environment


STEPS = 16
MODES = ("nearest", "bilinear")
CHANCE = "chance"
# Where the score does not depend on how a map is laid back.
_ANY = "any"
_LOWER_IS_BETTER = ("deletion",)
# Share of the image that an object to point at covers.
_OBJECTS = (0.15, 0.35)
_KINDS_OF_GROUND = {"textured": GROUNDS, "smooth": SMOOTH_GROUNDS}
# Standard deviation of the blur in sides of the image: RISE's 5 of 224 pixels.
_BLUR = 5 / 224
# By name and way to lay back the scores of the images, `(images,)`.
Scores = dict[str, dict[str, np.ndarray]]


def heat_maps(
    model: FocusViTForImageClassification, images: torch.Tensor, target: torch.Tensor, seed: int = 0
) -> dict[str, torch.Tensor]:
    """
    Relevance of the pixels for a class, by [`MODES`], and under [`CHANCE`] the model's regions in a random order.

    Args:
        model (`FocusViTForImageClassification`): Any `patch_pooling`.
        images (`torch.ByteTensor` of shape `(count, 3, height, width)`): 8-bit levels.
        target (`torch.LongTensor` of shape `(count,)`): The class of each that is asked for.
        seed (`int`, *optional*, defaults to 0): Of the random order.

    Returns:
        `dict`: To each a `torch.FloatTensor` of shape `(count, height, width)`.
    """
    inputs = model_inputs(model.config, images)
    pixel_values, given = inputs["pixel_values"], inputs.get("superpixel_ids")
    ids = model.focusvit.region_ids(pixel_values, given)
    relevance = relevance_per_area(region_relevance(model, pixel_values, given, target), ids)
    chance = torch.rand(relevance.shape, generator=torch.Generator().manual_seed(seed))
    size = (images.shape[2], images.shape[3])
    finest = ids if model.config.patch_pooling == "superpixel" else tile_map(model.config)
    return {mode: lay_back(relevance, finest, size, mode=mode) for mode in MODES} | {
        CHANCE: lay_back(chance, ids, size)
    }


def ranks(heat: torch.Tensor) -> torch.Tensor:
    """Place of each pixel, `(count, height, width)`, from the hottest, 0; equal ones in reading order."""
    order = heat.flatten(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).view_as(heat)


def area_under_curve(
    model: FocusViTForImageClassification,
    heat: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    target: torch.Tensor,
    steps: int = STEPS,
) -> torch.Tensor:
    """
    Mean probability of a class while images turn from one into another, the hottest pixels first, in equal steps.

    Args:
        heat (`torch.FloatTensor` of shape `(count, height, width)`): What the pixels are ranked by.
        start, end (`torch.ByteTensor` of shape `(count, 3, height, width)`): The images before and after.
        target (`torch.LongTensor` of shape `(count,)`): The class.

    Returns:
        `torch.FloatTensor` of shape `(count,)`, in 0..1, by the trapezoidal rule.
    """
    place = ranks(heat)[:, None] / heat[0].numel()
    curve = []
    for step in range(steps + 1):
        probabilities = predict(model, torch.where(place < step / steps, end, start)).softmax(dim=1)
        curve.append(probabilities.gather(1, target[:, None])[:, 0])
    return torch.trapezoid(torch.stack(curve), dx=1 / steps, dim=0)


def faithfulness(model: FocusViTForImageClassification, images: torch.Tensor, steps: int = STEPS) -> Scores:
    """`deletion`, `insertion` and their gains over chance, for the model's own answers."""
    answers = predict(model, images).argmax(dim=1)
    mean = images.float().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8).expand_as(images)
    blurred = blur(images, _BLUR * images.shape[-1])
    scores: Scores = {"deletion": {}, "insertion": {}, "deletion_gain": {}, "insertion_gain": {}}
    for mode, heat in heat_maps(model, images, answers).items():
        scores["deletion"][mode] = area_under_curve(model, heat, images, mean, answers, steps).numpy()
        scores["insertion"][mode] = area_under_curve(model, heat, blurred, images, answers, steps).numpy()
    for mode in MODES:
        for score, sign in (("deletion", -1), ("insertion", 1)):
            scores[f"{score}_gain"][mode] = sign * (scores[score][mode] - scores[score][CHANCE])
    return scores


def hits(heat: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Share of the hottest pixels of each map that lie in the mask, `(count,)`: all are equally hot."""
    hottest = heat == heat.amax(dim=(1, 2), keepdim=True)
    return (hottest & masks).sum(dim=(1, 2)) / hottest.sum(dim=(1, 2))


def pointing(model: FocusViTForImageClassification, composites: Composites, labels: torch.Tensor) -> Scores:
    """`pointing`, `energy`, `iou` and `accuracy` on composites whose objects have these classes `(count,)`."""
    masks = composites.masks
    maps = heat_maps(model, composites.images, labels)
    maps[CHANCE] = torch.rand(masks.shape, generator=torch.Generator().manual_seed(0))
    scores: Scores = {"pointing": {}, "energy": {}, "iou": {}}
    sizes = masks.sum(dim=(1, 2))[:, None, None]
    for mode, heat in maps.items():
        positive = heat.clamp(min=0)
        inside = (positive * masks).sum(dim=(1, 2)) / positive.sum(dim=(1, 2)).clamp(min=1e-9)
        scores["pointing"][mode] = hits(heat, masks).numpy()
        scores["energy"][mode] = inside.numpy()
        scores["iou"][mode] = intersection_over_union(ranks(heat) < sizes, masks).numpy()
    right = predict(model, composites.images).argmax(dim=1) == labels
    return scores | {"accuracy": {_ANY: right.float().numpy()}}


def measure(model: FocusViTForImageClassification, examples: Examples, steps: int = STEPS) -> Scores:
    """All scores of a classifier: on the images, and on composites with an object from the middle of each."""
    scores = faithfulness(model, examples.images, steps)
    for ground, shares in _KINDS_OF_GROUND.items():
        made = fixed_composites(examples, shares=_OBJECTS, grounds=shares, middle=True)
        found = pointing(model, made, examples.labels[made.figures])
        scores |= {f"{name}_{ground}": values for name, values in found.items()}
    return scores


def rows_of(measured: Mapping[str, Mapping[int, Scores]], control: str) -> list[dict[str, Any]]:
    """
    One row for each score, variant and way to lay back.

    Args:
        measured (mapping): By variant and seed what [`measure`] returned.
        control (`str`): The variant compared with.

    Returns:
        `list[dict]`: `score, variant, upsampling, seeds, mean`, and but for chance and the control, over the seeds
        that both have, `difference` to the control laid back alike and `difference_to_best` to the control laid back
        as suits it best, see `Difference`. A positive difference is always better.
    """
    rows = []
    for variant, runs in measured.items():
        seeds = sorted(runs)
        common = [seed for seed in seeds if seed in measured[control]]
        for score, modes in runs[seeds[0]].items():
            for mode in modes:
                mean = float(_stacked(runs, seeds, score, mode).mean())
                row = {"score": score, "variant": variant, "upsampling": mode, "seeds": seeds, "mean": mean}
                if mode != CHANCE and variant != control and common:
                    sign = -1 if score in _LOWER_IS_BETTER else 1
                    others = {m: _stacked(measured[control], common, score, m) for m in modes if m != CHANCE}
                    best = max(others, key=lambda m: sign * others[m].mean())
                    own = sign * _stacked(runs, common, score, mode)
                    row |= {
                        "difference": asdict(paired_bootstrap(own, sign * others[mode])),
                        "difference_to_best": asdict(paired_bootstrap(own, sign * others[best])),
                    }
                rows.append(row)
    return sorted(rows, key=lambda row: list(measured[control][min(measured[control])]).index(row["score"]))


def _stacked(runs: Mapping[int, Scores], seeds: Sequence[int], score: str, mode: str) -> np.ndarray:
    return np.stack([runs[seed][score][mode] for seed in seeds])


def markdown(rows: Sequence[Mapping[str, Any]], control: str) -> str:
    """The rows as a table to read."""
    lines = [
        f"| score, in % | variant | laid back by | mean | better than {control} by (95 %) | than its best by (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["score"], row["variant"], row["upsampling"], f"{100 * row['mean']:.1f}"]
        for key in ("difference", "difference_to_best"):
            cells.append(interval_text(row.get(key)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures every run asked for whose weights are there."""
    parser = parser_of(__doc__)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--variants", nargs="+", default=["superpixel", "grid"])
    parser.add_argument("--control", default="grid", help="What the others are compared with.")
    add_options(parser, "seeds", "data", "cache", "results", "tables")
    parser.add_argument("--images", type=int, default=300, help="So many of the test split, evenly spaced.")
    parser.add_argument("--steps", type=int, default=STEPS, help="Of deletion and insertion.")
    arguments = parser.parse_args(argv)
    measured: dict[str, dict[int, Scores]] = {}
    for variant in arguments.variants:
        for seed in arguments.seeds:
            run = load_run(arguments.question, variant, seed, arguments.data, arguments.cache, arguments.results)
            if run is None:
                continue
            model, examples = run
            count = min(arguments.images, len(examples))
            scores = measure(model, examples[torch.arange(count) * len(examples) // count], arguments.steps)
            measured.setdefault(variant, {})[seed] = scores
            print(
                variant, seed, {s: {m: round(float(v.mean()), 3) for m, v in by.items()} for s, by in scores.items()}
            )
    if arguments.control not in measured:
        raise ValueError(f"Expected weights of the control {arguments.control!r}, got those of {sorted(measured)}.")
    rows = rows_of(measured, arguments.control)
    content = {
        "question": arguments.question,
        "control": arguments.control,
        "images": arguments.images,
        "steps": arguments.steps,
        "environment": environment(torch.device("cpu"), torch.float32),
        "rows": rows,
    }
    text = markdown(rows, arguments.control)
    write_table(arguments.tables, f"{arguments.question}-explanations", content, text)


if __name__ == "__main__":
    keep_heap()
    main()
