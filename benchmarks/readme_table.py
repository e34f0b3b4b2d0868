"""
Writes what was measured into the README, from the committed JSON, between comments that mark the places.

    python benchmarks/readme_table.py
    python benchmarks/readme_table.py --check    # says whether it is up to date
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from focusvit_hf.benchmark.report import machine, memory_of, read_result, times_of
from focusvit_hf.utils.files import read_json, write_whole


ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
TITLES = {"focusvit-tiny-full": "**FocusViT-tiny, full**", "focusvit-tiny-latent": "**FocusViT-tiny, latent**"}
BATCH = 32
COLUMNS = {
    f"pixels → logits, batch {BATCH}": (("inference", 224, BATCH), "pixels_to_logits"),
    "batch 1": (("inference", 224, 1), "pixels_to_logits"),
    f"JPEG → class, batch {BATCH}": (("inference", 224, BATCH), "whole_path"),
    f"training step, batch {BATCH}": (("training", 224, BATCH), "training_step"),
}
RESOLUTIONS = ((224, BATCH), (448, 8), (896, 2))


def speed_table(result: Mapping[str, Any]) -> str:
    """Milliseconds a picture at 224 px, times faster than the baseline, and the memory of a training step."""
    lines = [row("224 px", *COLUMNS, "its memory"), rule(len(COLUMNS) + 2)]
    memory = memory_of(result, ("training", 224, BATCH))
    for subject in result["settings"]["subjects"]:
        cells = [time_cell(result, setting, subject, part) for setting, part in COLUMNS.values()]
        share = memory.get(subject, {}).get("share")
        lines.append(row(TITLES.get(subject, subject), *cells, "–" if share is None else f"{share:.0%}"))
    return "\n".join(lines)


def others_table(result: Mapping[str, Any]) -> str:
    """Inference only, of further subjects."""
    columns = {head: column for head, column in COLUMNS.items() if column[0][0] == "inference"}
    lines = [row("224 px", *columns), rule(len(columns) + 1)]
    for subject in result["settings"]["subjects"]:
        lines.append(row(subject, *(time_cell(result, at, subject, part) for at, part in columns.values())))
    return "\n".join((*lines, "", provenance(result)))


def resolution_table(result: Mapping[str, Any]) -> str:
    """The same from pixels to logits, by resolution."""
    heads = [f"{resolution} px, batch {size}" for resolution, size in RESOLUTIONS]
    lines = [row("pixels → logits", *heads), rule(len(heads) + 1)]
    for subject in result["settings"]["subjects"]:
        cells = [
            time_cell(result, ("inference", resolution, size), subject, "pixels_to_logits")
            for resolution, size in RESOLUTIONS
        ]
        lines.append(row(TITLES.get(subject, subject), *cells))
    return "\n".join(lines)


def time_cell(result: Mapping[str, Any], setting: tuple[str, int, int], subject: str, part: str) -> str:
    """Such as `3.4 ms, 3.6×`; a dash for what was not measured."""
    figures = times_of(result, setting).get(subject, {}).get(part)
    return "–" if figures is None else f"{figures['median_ms']:.1f} ms, {figures['times_faster']:.1f}×"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def rule(columns: int) -> str:
    return "|---" * columns + "|"


def provenance(result: Mapping[str, Any]) -> str:
    """With what, and by which command."""
    place, settings = result["environment"], result["settings"]
    return (
        f"{machine(place)}, {place['threads']} threads, {place['dtype']}, torch {place['torch']}, transformers "
        f"{place['transformers']}, {place['date'][:10]}; medians of {settings['repeats']} interleaved rounds;\n"
        f"`{place['command']}`"
    )


def measured(result: Mapping[str, Any]) -> str:
    """The block `measured`."""
    return "\n\n".join((speed_table(result), resolution_table(result), provenance(result)))


def superpixels(result: Mapping[str, Any]) -> str:
    """The block `superpixels`."""
    times, ratios = (result["speed_224px"][name] for name in ("milliseconds_a_picture", "ratios"))
    accuracies = [
        f"{scores['torch']:.3f} against {scores['skimage']:.3f} (grid {scores['grid']:.3f}) at "
        f"{scores['segments_skimage']:.0f}"
        for _, scores in sorted(result["asa_bsds500"].items(), key=lambda item: int(item[0]))
    ]
    return (
        f"Superpixels (224 px, K = 49, batch 32): {times['torch, K=49']['median_ms']:.2f} ms a picture, "
        f"{ratios['skimage, K=49 / torch, K=49']:.0f} times faster than scikit-image's SLIC. Achievable\n"
        "segmentation accuracy on the 200 test pictures of BSDS500, at as many segments as scikit-image realises:\n"
        f"{', '.join(accuracies)};\n`python benchmarks/superpixels.py`."
    )


def with_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """
    The text with new blocks between their marks, `<!-- begin: name -->` and `<!-- end: name -->`.

    Raises:
        ValueError: when a block is not marked exactly once.
    """
    for name, block in blocks.items():
        begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
        before, *after = text.split(begin)
        if len(after) != 1 or after[0].count(end) != 1:
            raise ValueError(f"expected one block {begin.strip()} … {end}")
        text = f"{before}{begin}{block}\n{end}{after[0].partition(end)[2]}"
    return text


def main() -> int:
    """Writes the README, or with `--check` tells whether that would change it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something would change")
    arguments = parser.parse_args()
    blocks = {
        "measured": measured(read_result(RESULTS / "cpu.json")),
        "others": others_table(read_result(RESULTS / "cpu-others.json")),
        "superpixels": superpixels(read_json(RESULTS / "superpixels-cpu.json")),
    }
    old = README.read_text(encoding="utf-8")
    new = with_blocks(old, blocks)
    if arguments.check:
        if new != old:
            print("README.md: expected what benchmarks/readme_table.py writes, got something else", file=sys.stderr)
        return int(new != old)
    write_whole(README, new.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
