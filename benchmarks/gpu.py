"""
Every figure of a GPU in one call: eager and compiled on both sides, batch 1 and large, 224 to 896 px, training, and a
single image through CUDA graphs.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

Subjects take turns, as in `focusvit benchmark`, whose results the file holds one beside the other; `--tiny` runs the
same on small images, to see that everything works. Beside them stands what the device reaches: the rate of a large
product and of a large copy, from which the floor of each model follows.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from focusvit_hf.benchmark.floor import check_plausible, measure_machine, model_floor
from focusvit_hf.benchmark.report import report
from focusvit_hf.benchmark.run import Plan, Setting, measure
from focusvit_hf.benchmark.subjects import find_subject, sample_images
from focusvit_hf.benchmark.timing import interleaved, summary
from focusvit_hf.cli.arguments import count, device
from focusvit_hf.utils.environment import environment
from focusvit_hf.utils.files import check_file, write_json


SUBJECTS = ("ViT-Ti/16", "LeViT-128S", "focusvit-tiny-full", "focusvit-tiny-latent")
PARTS = ("superpixels", "model", "pixels_to_logits", "whole_path")
# Resolution and batch size.
INFERENCE, TRAINING = ((224, 1), (224, 256), (448, 64), (896, 16)), ((224, 128), (448, 32))
TINY_INFERENCE, TINY_TRAINING = ((32, 1), (32, 2), (64, 2)), ((32, 2),)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def runs(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The results of `focusvit benchmark`, by type and by whether models are compiled."""
    inference, training = (TINY_INFERENCE, TINY_TRAINING) if options.tiny else (INFERENCE, TRAINING)
    settings = [Setting("inference", *size) for size in inference] + [Setting("training", *size) for size in training]
    found = {}
    for name in options.dtypes:
        for compiled in (False, True):
            plan = Plan(
                subjects=[find_subject(subject) for subject in SUBJECTS],
                settings=settings,
                baseline=SUBJECTS[0],
                parts=PARTS,
                device=options.device,
                dtype=DTYPES[name],
                compiled=compiled,
                memory=options.device.type != "cpu",
                repeats=options.repeats,
                warmup=2,
            )
            title = f"{name}, {'compiled' if compiled else 'eager'}"
            found[title] = measure(plan, sample_images())
            print(f"## {title}\n\n{report(found[title])}\n", flush=True)
    return found


def graphs(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """One image, pixels to logits, through CUDA graphs, which torch makes with the mode "reduce-overhead"."""
    side = 32 if options.tiny else 224
    pixels = torch.randn(1, 3, side, side, device=options.device).clamp(-1, 1).to(dtype)
    calls: dict[str, Callable[[], Any]] = {}
    for name in SUBJECTS:
        torch.manual_seed(0)
        model = find_subject(name).build(side)[0].eval().to(options.device, dtype)
        calls[name] = partial(torch.compile(model, dynamic=False, mode="reduce-overhead"), pixels)
    alone = {name: interleaved({name: call}, 3, 3, device=options.device)[name] for name, call in calls.items()}
    seconds = interleaved(calls, options.repeats, 3, device=options.device)
    check_plausible(seconds, alone)
    return {name: summary(values) for name, values in seconds.items()}


def floors(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """What the device reaches, and the floor of each model at each size."""
    machine = measure_machine(options.device, dtype)
    found: dict[str, Any] = {"machine": asdict(machine)}
    for side, batch in TINY_INFERENCE if options.tiny else INFERENCE:
        pixels = torch.zeros(batch, 3, side, side, device=options.device, dtype=dtype)
        models = {name: find_subject(name).build(side)[0].eval().to(options.device, dtype) for name in SUBJECTS}
        found[f"{side} px, batch {batch}"] = {
            name: model_floor(model, pixels, machine) for name, model in models.items()
        }
    return found


@torch.no_grad()
def one_image(options: argparse.Namespace) -> dict[str, Any]:
    """CUDA graphs and floors by type."""
    return {
        name: {"graphs, batch 1": graphs(options, DTYPES[name]), "floors": floors(options, DTYPES[name])}
        for name in options.dtypes
    }


def main() -> None:
    """Measures and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", type=device, default=device(None), help="by default the GPU")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16"])
    parser.add_argument("--repeats", type=count, default=15)
    parser.add_argument("--tiny", action="store_true", help="small images, to try the script on any machine")
    options = parser.parse_args()
    check_file(options.out, [])
    if options.device.type == "cpu" and not options.tiny:
        parser.error("expected a GPU, got a CPU: python benchmarks/users.py measures there, --tiny tries this script")
    result: dict[str, Any] = {"runs": runs(options)}
    # What took long is not lost where the rest fails.
    write_json(options.out, result)
    settings = environment(options.device, DTYPES[options.dtypes[0]], seed=0)
    result |= {"environment": settings, "one image": one_image(options)}
    write_json(options.out, result)


if __name__ == "__main__":
    main()
