"""
Pixels to logits and the training step, against the dense ViT-Ti/16 of transformers, in one interleaved run.

    python benchmarks/whole_path.py --out benchmarks/results/whole-path-cpu.json

Random weights: time and memory do not depend on them. 224 px, superpixels counted. Peak memory of a training step
(forward, backward, AdamW) is the growth of the resident set in a process of its own, less what a forward pass of one
picture and the optimiser's state had taken before.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from focusvit_hf import FocusViTConfig, FocusViTForImageClassification
from focusvit_hf.benchmark import environment, interleaved, summary
from focusvit_hf.files import write_json


SUBJECTS = ("ViT-Ti/16", "FocusViT-tiny, full", "FocusViT-tiny, latent")
BATCH_SIZES = (1, 32)
TRAINING_BATCH = 32


def build(subject: str) -> PreTrainedModel:
    """A model of ViT-Ti's width and depth with random weights."""
    if subject == "ViT-Ti/16":
        shape = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_labels": 1000}
        return ViTForImageClassification(ViTConfig(**shape))
    layers = ["full_attention" if subject.endswith("full") else "latent_attention"] * 12
    return FocusViTForImageClassification(FocusViTConfig(layer_types=layers, num_labels=1000))


def training_step(model: PreTrainedModel, pixel_values: torch.Tensor) -> Callable[[], None]:
    """Forward, backward and AdamW on one batch."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    labels = torch.arange(len(pixel_values))

    def step() -> None:
        model(pixel_values, labels=labels[: len(pixel_values)]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_memory(subject: str) -> float:
    """MiB by which one training step raises the resident set; to be called in a fresh process."""
    torch.manual_seed(0)
    model = build(subject)
    pixel_values = torch.randn(TRAINING_BATCH, 3, 224, 224)
    training_step(model, pixel_values[:1])()
    before = peak_resident_mib()
    training_step(model, pixel_values)()
    return peak_resident_mib() - before


def peak_resident_mib() -> float:
    """The largest resident set so far (Linux). `getrusage` would count the process that started this one, too."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def inference(repeats: int) -> dict:
    """Milliseconds a picture from pixels to logits, and the ratios to the dense ViT."""
    models = {subject: build(subject).eval() for subject in SUBJECTS}
    result: dict[str, dict] = {}
    for size in BATCH_SIZES:
        pixel_values = torch.randn(size, 3, 224, 224)
        with torch.inference_mode():
            seconds = interleaved({name: partial(model, pixel_values) for name, model in models.items()}, repeats)
        times = {name: summary(values, size) for name, values in seconds.items()}
        result[f"batch {size}"] = {"milliseconds_a_picture": times, "times_faster": times_faster(times)}
    return result


def training(repeats: int) -> dict:
    """The same for a training step, with its peak memory."""
    pixel_values = torch.randn(TRAINING_BATCH, 3, 224, 224)
    steps = {subject: training_step(build(subject), pixel_values) for subject in SUBJECTS}
    seconds = interleaved(steps, repeats)
    times = {name: summary(values, TRAINING_BATCH) for name, values in seconds.items()}
    command = [sys.executable, __file__, "--peak-memory"]
    memory = {
        subject: float(json.loads(subprocess.run([*command, subject], check=True, capture_output=True).stdout))
        for subject in SUBJECTS
    }
    return {
        "milliseconds_a_picture": times,
        "times_faster": times_faster(times),
        "peak_memory_mib": memory,
        "peak_memory_share": {name: value / memory[SUBJECTS[0]] for name, value in memory.items()},
    }


def times_faster(times: dict[str, dict[str, float]]) -> dict[str, float]:
    """How many times faster than the dense ViT each subject is, by medians."""
    return {name: times[SUBJECTS[0]]["median_ms"] / values["median_ms"] for name, values in times.items()}


def main() -> None:
    """Runs the measurement and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak-memory", choices=SUBJECTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_memory:
        print(json.dumps(peak_memory(arguments.peak_memory)))
        return
    if arguments.out is None:
        parser.error("expected --out")
    torch.manual_seed(0)
    result = {
        "environment": environment(torch.device("cpu"), torch.float32, seed=0),
        "inference_224px": inference(arguments.repeats),
        "training_224px": training(arguments.repeats),
    }
    write_json(arguments.out, result)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
