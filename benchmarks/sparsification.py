"""
How much faster models are whose tokens leave between the layers, beside the same models without.

    python benchmarks/sparsification.py --out benchmarks/results

Three tables, each with its JSON `sparsification-<table>-cpu.json`: the shapes of ViT-Ti and ViT-S at 224 px, with a
token for each patch, and FocusViT-tiny with full attention at 448 px, whose 784 units become 196 superpixels. Tokens
leave at layers 3, 6 and 9 of 12, and seven of ten stay each time; "merge" comes to as many by the last layer, in equal
steps. All from normalised pixels to logits, superpixels included, with random weights.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from focusvit_hf import FocusViTConfig
from focusvit_hf.benchmark.report import report
from focusvit_hf.benchmark.run import Plan, Setting, measure
from focusvit_hf.benchmark.subjects import FOCUSVIT_SPARSE, Subject, find_subject, sample_images
from focusvit_hf.utils.files import write_json


# Name: what tokens leave from, pixels, fields that are changed, timed rounds.
TABLES: dict[str, tuple[str, int, dict[str, int], int]] = {
    "vit-tiny": ("focusvit-tiny-dense", 224, {}, 9),
    "vit-small": ("focusvit-small-dense", 224, {}, 5),
    "focusvit-448": ("focusvit-tiny-full", 448, {"num_superpixels": 196}, 7),
}


def subjects_of(table: str) -> list[Subject]:
    """The model of a table without and with tokens that leave, the former first."""
    base, _, fields, _ = TABLES[table]

    def changed(subject: Subject) -> Subject:
        def configure(resolution: int) -> FocusViTConfig:
            return FocusViTConfig.from_dict(subject.configure(resolution).to_dict(), **fields)

        return replace(subject, configure=configure)

    return [changed(find_subject(name)) for name in (base, *(f"{base}-{way}" for way in FOCUSVIT_SPARSE))]


def plan_of(table: str, batch_sizes: list[int], repeats: int | None = None) -> Plan:
    """What is measured for a table; `repeats` by default its own."""
    base, resolution, _, own = TABLES[table]
    settings = [Setting("inference", resolution, size) for size in batch_sizes]
    return Plan(subjects_of(table), settings, base, ("pixels_to_logits",), memory=False, repeats=repeats or own)


def main() -> None:
    """Measures the tables one after the other; each is written as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, help="timed rounds; by default the table's own")
    parser.add_argument("--out", type=Path, help="folder of the JSON files")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for table in args.tables:
        result = measure(plan_of(table, args.batch_sizes, args.repeats), sample_images())
        print(table, report(result), sep="\n", flush=True)
        if args.out:
            write_json(args.out / f"sparsification-{table}-cpu.json", result)


if __name__ == "__main__":
    main()
