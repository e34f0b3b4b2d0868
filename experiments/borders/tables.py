"""Tables of the figure finders: scores, and superpixels against the grid with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments.borders.models import UPSAMPLINGS
from experiments.borders.scores import unpacked_scores
from experiments.micro.paired_bootstrap import interval_text, paired_bootstrap
from experiments.micro.tables import Results


KINDS = ("iou", "boundary_f")
# What superpixels are measured by where a grid has its best upsampling: chosen before any result.
OURS = "bilinear"
# What is compared, with {} for the number of tokens and for finer cells: superpixels and how their answer is laid
# back, the grid and how (none: whatever is best for it on these very images), and the difference asked for in IoU.
PAIRS = (
    ("a logit a token, nearest", "superpixel_{}", "nearest", "grid_{}", "nearest", 0.07),
    ("a logit a token, against the grid's best upsampling", "superpixel_{}", OURS, "grid_{}", None, 0.04),
    ("the same, the grid trained through it", "superpixel_{}", OURS, "grid_{}_smooth", None, None),
    ("a logit a cell, nearest", "superpixel_{}_own", "nearest", "grid_{}_own", "nearest", 0.04),
    ("a logit a cell, against the grid's best upsampling", "superpixel_{}_own", OURS, "grid_{}_own", None, 0.04),
    ("the same, the grid's tokens interpolated", "superpixel_{}_own", OURS, "grid_{}_own_smooth", None, None),
    ("cells of 2 px, nearest", "superpixel_{}_cells_2", "nearest", "grid_{}_cells_2", "nearest", 0.07),
    ("cells of 2 px, against the best upsampling", "superpixel_{}_cells_2", OURS, "grid_{}_cells_2", None, 0.04),
)


def tokens_of(found: Results) -> list[int]:
    """The numbers of tokens there are results for, the largest first."""
    return sorted({run["tokens"] for runs in found.values() for run in runs.values()}, reverse=True)


def scores_of(
    runs: Mapping[int, Mapping[str, Any]], seeds: Sequence[int], test: str, how: str, kind: str
) -> np.ndarray:
    """Score of each image in each run, `(seeds, images)`."""
    return np.stack([unpacked_scores(runs[seed]["scores"][test][how][kind]["images"]) for seed in seeds])


def best_upsampling(runs: Mapping[int, Mapping[str, Any]], seeds: Sequence[int], test: str, kind: str) -> str:
    """The upsampling with the largest mean on the test's own images: in favour of whom it is chosen for."""
    means = {how: np.mean([runs[seed]["scores"][test][how][kind]["mean"] for seed in seeds]) for how in UPSAMPLINGS}
    return max(UPSAMPLINGS, key=lambda how: means[how])


def rows_of(found: Results) -> list[dict[str, Any]]:
    """
    One row for each variant, test and way to lay back, means over seeds.

    Args:
        found (`dict`): By variant and seed the results of `borders/run.py`.

    Returns:
        `list[dict]`: `variant, test, upsampling, tokens, parameters, seeds, minutes`, and by kind of score its mean.
    """
    rows = []
    for variant, runs in found.items():
        seeds = sorted(runs)
        first = runs[seeds[0]]
        for test, ways in first["scores"].items():
            for how, kinds in ways.items():
                values = {kind: [runs[seed]["scores"][test][how][kind]["mean"] for seed in seeds] for kind in kinds}
                rows.append(
                    {
                        "variant": variant,
                        "test": test,
                        "upsampling": how,
                        "tokens": first["tokens"],
                        "parameters": first["parameters"],
                        "seeds": seeds,
                        "minutes": round(float(np.mean([runs[seed]["seconds"] for seed in seeds])) / 60, 1),
                        **{kind: round(float(np.mean(seen)), 4) for kind, seen in values.items()},
                    }
                )
    return rows


def comparisons(found: Results) -> list[dict[str, Any]]:
    """
    [`PAIRS`] at every number of tokens there is, over the seeds that both sides have.

    Returns:
        `list[dict]`: `compared, tokens, test, kind, superpixel` and `grid` (variant and upsampling), `difference` (see
        `Difference`), and where one is asked for `wanted` and `reached`: whether the mean is at least
        that.
    """
    rows = []
    for count in tokens_of(found):
        for label, ours, our_way, theirs, their_way, wanted in PAIRS:
            ours_runs, their_runs = (found.get(name.format(count), {}) for name in (ours, theirs))
            seeds = sorted(set(ours_runs) & set(their_runs))
            if not seeds:
                continue
            for test in ours_runs[seeds[0]]["scores"]:
                for kind in KINDS:
                    way = their_way or best_upsampling(their_runs, seeds, test, kind)
                    difference = paired_bootstrap(
                        scores_of(ours_runs, seeds, test, our_way, kind), scores_of(their_runs, seeds, test, way, kind)
                    )
                    row = {
                        "compared": label,
                        "tokens": count,
                        "test": test,
                        "kind": kind,
                        "superpixel": {"variant": ours.format(count), "upsampling": our_way},
                        "grid": {"variant": theirs.format(count), "upsampling": way},
                        "difference": asdict(difference),
                    }
                    if wanted is not None and kind == "iou" and test == "imagenette":
                        row |= {"wanted": wanted, "reached": difference.mean >= wanted and difference.low > 0}
                    rows.append(row)
    return rows


def markdown(
    rows: Sequence[Mapping[str, Any]],
    compared: Sequence[Mapping[str, Any]],
    photographs: Sequence[Mapping[str, Any]] = (),
) -> str:
    """All as tables to read."""
    lines = [
        "IoU of the figure / border's F within 2 px, means over test composites and seeds; last the IoU and the share",
        "of pixels that the best answer for these regions or cells would have.",
        "",
        f"| variant | test | parameters | seeds | {' | '.join(UPSAMPLINGS)} | ceiling |",
        "|---" * (5 + len(UPSAMPLINGS)) + "|",
    ]
    grouped: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["variant"], row["test"]), {})[row["upsampling"]] = row
    for (variant, test), ways in grouped.items():
        first = next(iter(ways.values()))
        cells = [variant, test, f"{first['parameters'] / 1000:.0f} k", str(len(first["seeds"]))]
        cells += [f"{100 * ways[how]['iou']:.1f} / {100 * ways[how]['boundary_f']:.1f}" for how in UPSAMPLINGS]
        ceiling = ways["ceiling"]
        lines.append(f"| {' | '.join(cells)} | {100 * ceiling['iou']:.1f}, {100 * ceiling['accuracy']:.1f} |")
    lines += [
        "",
        "| superpixels against a grid | K | test | upsampling | IoU (95 %) | F of the border (95 %) | wanted |",
        "|---|---|---|---|---|---|---|",
    ]
    paired: dict[tuple[str, int, str], dict[str, Mapping[str, Any]]] = {}
    for row in compared:
        paired.setdefault((row["compared"], row["tokens"], row["test"]), {})[row["kind"]] = row
    for (label, count, test), kinds in paired.items():
        overlap = kinds["iou"]
        intervals = [interval_text(kinds[kind]["difference"]) for kind in KINDS]
        verdict = ""
        if "wanted" in overlap:
            verdict = f"{100 * overlap['wanted']:+.0f}, {'reached' if overlap['reached'] else 'missed'}"
        cells = [label, str(count), test, overlap["grid"]["upsampling"], *intervals, verdict]
        lines.append(f"| {' | '.join(cells)} |")
    if photographs:
        lines += [
            "",
            "What whole regions can do at best for the segments people drew, in the photographs themselves, no model:",
            "",
            "| K | score | superpixels | grid | difference (95 %) |",
            "|---|---|---|---|---|",
        ]
    for row in photographs:
        interval = interval_text(row["difference"])
        means = f"{100 * row['superpixel']:.1f} | {100 * row['grid']:.1f}"
        lines.append(f"| {row['tokens']} | {row['kind']} | {means} | {interval} |")
    return "\n".join(lines) + "\n"
