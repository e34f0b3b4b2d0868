"""
Writes the tables of what was measured into the documentation, from the committed JSON, between comments that mark
the places.

    python benchmarks/tables.py
    python benchmarks/tables.py --check    # says whether they are up to date
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from focusvit_hf.benchmark.report import machine
from focusvit_hf.benchmark.result import memory_of, read_result, times_of
from focusvit_hf.benchmark.user_rows import table as table_of_users
from focusvit_hf.utils.files import read_json, write_whole


ROOT = Path(__file__).resolve().parents[1]
# Each block stands in one of them.
DOCUMENTS = (ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "speed.md", ROOT / "README.md")
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
    """Milliseconds an image at 224 px, times faster than the baseline, and the memory of a training step."""
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
    times, ratios = (result["speed_224px"][name] for name in ("milliseconds_per_image", "ratios"))
    accuracies = [
        f"{scores['torch']:.3f} against {scores['skimage']:.3f} (grid {scores['grid']:.3f}) at "
        f"{scores['segments_skimage']:.0f}"
        for _, scores in sorted(result["asa_bsds500"].items(), key=lambda item: int(item[0]))
    ]
    return (
        f"Superpixels (224 px, K = 49, batch 32): {times['torch, K=49']['median_ms']:.2f} ms an image, "
        f"{ratios['skimage, K=49 / torch, K=49']:.0f} times faster than scikit-image's SLIC. Achievable\n"
        "segmentation accuracy on the 200 test images of BSDS500, at as many segments as scikit-image realises:\n"
        f"{', '.join(accuracies)};\n`python benchmarks/superpixels.py`."
    )


def users(rows: Mapping[str, Any], earlier: Mapping[str, Any]) -> str:
    """The block `users`."""
    place = next(iter(rows.values()))["environment"]
    return (
        f"{table_of_users(rows, earlier)}\n\n"
        f"{machine(place)}, {place['threads']} threads, torch {place['torch']}, transformers {place['transformers']}, "
        f"{place['date'][:10]}; milliseconds an image, medians of interleaved\nrounds, 224 px unless a row says "
        "otherwise; `python benchmarks/users.py --out benchmarks/results/users-cpu.json`."
    )


def with_blocks(texts: Mapping[Path, str], blocks: Mapping[str, str]) -> dict[Path, str]:
    """
    The texts of documents with new blocks between their marks, `<!-- begin: name -->` and `<!-- end: name -->`.

    Raises:
        ValueError: when a block is not marked exactly once in all documents together.
    """
    written = dict(texts)
    for name, block in blocks.items():
        begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
        marks = [(path, text.count(begin), text.count(end)) for path, text in written.items() if begin in text]
        if [counts for _, *counts in marks] != [[1, 1]]:
            places = ", ".join(f"{path.name} ({begins} begin, {ends} end)" for path, begins, ends in marks)
            raise ValueError(f"expected one block {begin.strip()} … {end}, got {places or 'none'}")
        path = marks[0][0]
        before, _, rest = written[path].partition(begin)
        if end not in rest:
            raise ValueError(f"expected {end} after {begin.strip()} in {path.name}, got it before")
        written[path] = f"{before}{begin}{block}\n{end}{rest.partition(end)[2]}"
    return written


def main() -> int:
    """Writes the documents, or with `--check` tells whether that would change one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something would change")
    arguments = parser.parse_args()
    blocks = {
        "measured": measured(read_result(RESULTS / "cpu.json")),
        "others": others_table(read_result(RESULTS / "cpu-others.json")),
        "users": users(
            read_json(RESULTS / "users-cpu.json")["rows"], read_json(RESULTS / "users-cpu-before.json")["rows"]
        ),
        "superpixels": superpixels(read_json(RESULTS / "superpixels-cpu.json")),
    }
    old = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS if path.is_file()}
    changed = {path: text for path, text in with_blocks(old, blocks).items() if text != old[path]}
    for path, text in changed.items():
        if arguments.check:
            print(f"{path.name}: expected what benchmarks/tables.py writes, got something else", file=sys.stderr)
        else:
            write_whole(path, text.encode())
    return int(arguments.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
