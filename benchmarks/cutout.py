"""
From a photograph of 12 megapixels to its figure cut out: JPEG file to PNG file, in time and memory.

    python benchmarks/cutout.py --out benchmarks/results/cutout-cpu.json

The photograph is that of `focusvit demo`, enlarged to 4032 x 3024 and given the noise of a camera, since what is
smooth would be read and written too quickly. Time is that of what `focusvit cutout` does for one image, part by part,
behind the start of Python: the file decoded, segmented by `focusvit-tiny-ecssd`, cut out at its own size, and written.
Memory is the largest resident set of a process of its own that runs the command, PyTorch included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from focusvit_hf import FocusViTForSemanticSegmentation
from focusvit_hf.benchmark.timing import summary
from focusvit_hf.cli.demo import SAMPLE
from focusvit_hf.cli.images import read_image, write_png
from focusvit_hf.cli.segment import DEFAULT_SEGMENTER, QUICK_PNG
from focusvit_hf.explanation import segment
from focusvit_hf.hub.checkpoints import load_checked
from focusvit_hf.utils.environment import environment
from focusvit_hf.utils.files import write_json


WIDTH, HEIGHT = 4032, 3024
NOISE, QUALITY = 3.0, 90
UPSAMPLINGS = ("guided", "bilinear")
PARTS = ("decode", "segment", "cut_out", "write")


def write_photograph(path: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Writes the photograph at this size as JPEG."""
    with Image.open(SAMPLE) as image:
        levels = np.array(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    levels += np.random.default_rng(0).normal(0, NOISE, levels.shape).astype(np.float32)
    Image.fromarray(levels.clip(0, 255).round().astype(np.uint8)).save(path, quality=QUALITY)


def seconds_of_parts(model: Any, processor: Any, source: Path, target: Path, upsampling: str) -> dict[str, float]:
    """Seconds of each part of one cut-out, and of all."""
    marks = [time.perf_counter()]
    image = read_image(source)
    marks.append(time.perf_counter())
    found = segment(model, processor, image, upsampling)
    marks.append(time.perf_counter())
    cut = found.cutout()
    marks.append(time.perf_counter())
    write_png(target, cut, **QUICK_PNG)
    marks.append(time.perf_counter())
    parts = {name: end - start for name, start, end in zip(PARTS, marks[:-1], marks[1:], strict=True)}
    return {**parts, "all": marks[-1] - marks[0]}


def peak_mebibytes(source: Path, folder: Path, upsampling: str) -> float:
    """The largest resident set of a process that runs the command."""
    command = [sys.executable, "-m", "focusvit_hf.cli", "cutout", str(source), "--out", str(folder)]
    process = subprocess.Popen([*command, "--upsampling", upsampling], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"expected {' '.join(command)} to end well, got status {status}")
    # Linux counts in KiB.
    return usage.ru_maxrss / 1024


def measured(folder: Path, repeats: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> dict[str, Any]:
    """By way of upsampling: milliseconds of each part, the peak of memory, and the size of the file."""
    source, target = folder / "photograph.jpg", folder / "cutout.png"
    write_photograph(source, *size)
    model, processor = load_checked(str(DEFAULT_SEGMENTER), FocusViTForSemanticSegmentation)
    seconds: dict[str, list[dict[str, float]]] = {upsampling: [] for upsampling in UPSAMPLINGS}
    for turn in range(repeats + 1):
        for upsampling in UPSAMPLINGS:
            one = seconds_of_parts(model, processor, source, target, upsampling)
            # The first round warms up.
            if turn:
                seconds[upsampling].append(one)
    return {
        upsampling: {
            "parts": {name: summary([one[name] for one in times]) for name in (*PARTS, "all")},
            "peak_memory_mib": peak_mebibytes(source, folder / "cutouts", upsampling),
            "jpeg_bytes": source.stat().st_size,
            "png_bytes": target.stat().st_size,
        }
        for upsampling, times in seconds.items()
    }


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder), arguments.repeats)
    content = {"size": [WIDTH, HEIGHT], "rows": rows}
    write_json(arguments.out, {**content, "environment": environment(torch.device("cpu"), torch.float32)})
    for upsampling, row in rows.items():
        times = ", ".join(f"{name} {row['parts'][name]['median_ms']:.0f}" for name in (*PARTS, "all"))
        print(f"{upsampling}: {times} ms, {row['peak_memory_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
