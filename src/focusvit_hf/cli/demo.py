"""`focusvit demo`: a photograph classified, drawn and timed beside a dense ViT."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from skimage.data import chelsea

from ..benchmark.parts import time_split
from ..benchmark.report import machine
from ..benchmark.subjects import find_subject
from ..explanation.sheet import draw_sheet, explain
from ..hub.checkpoints import DEFAULT_CHECKPOINT, load_checkpoint
from ..utils.environment import environment
from ..utils.files import check_folder, write_json
from .arguments import checkpoint_arguments
from .pictures import open_picture, print_classes, ranked_classes, write_png


DEMO_BATCHES = (1, 32)
DEMO_SEED = 0
DEMO_RESOLUTION = 224
COMPARED_PARTS = ("pixels_to_logits", "whole_path")
PART_NAMES = {
    "processor": "processor, without superpixels",
    "superpixels": "superpixels",
    "model": "model, superpixels given",
    "pixels_to_logits": "pixels to logits",
    "whole_path": "picture to class",
}


def add_demo_command(commands: argparse._SubParsersAction) -> None:
    """Adds `focusvit demo`."""
    command = commands.add_parser(
        "demo",
        parents=[checkpoint_arguments()],
        help="classify and draw a photograph of a cat, and time FocusViT beside a dense ViT",
    )
    command.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE", help="further pictures")
    command.add_argument("--out", type=Path, default=Path("demo"), metavar="FOLDER", help="by default demo")
    command.set_defaults(run=demo)


def demo(arguments: argparse.Namespace) -> None:
    """
    `focusvit demo`: a photograph of a cat classified, drawn and timed; writes `result.json` and `result.png`.

    Raises:
        ValueError: on a picture or a checkpoint that cannot be read, before anything is classified.
        OSError: likewise, where `--out` cannot be written to.
    """
    model, image_processor = load_checkpoint(arguments.model, arguments.num_superpixels)
    model.to(arguments.device)
    name = Path(arguments.model or DEFAULT_CHECKPOINT).name
    photograph = Image.fromarray(chelsea())
    titles = ["cat (scikit-image)", *(path.name for path in arguments.pictures)]
    pictures = [photograph, *(open_picture(path, index) for index, path in enumerate(arguments.pictures))]
    check_folder(arguments.out)
    print("classifying, drawing and measuring where the time goes ...", file=sys.stderr)
    answers = list(ranked_classes(model, image_processor, pictures))
    rows = [explain(model, image_processor, *pair) for pair in zip(pictures, titles, strict=True)]
    own_size = _split({name: (model, image_processor)}, photograph)
    compared = _split(_tiny_systems(arguments.device), photograph)
    ratios = {
        batch: {part: dense[part]["median_ms"] / focusvit[part]["median_ms"] for part in COMPARED_PARTS}
        for batch, (focusvit, dense) in ((batch, split.values()) for batch, split in compared.items())
    }
    settings = environment(model.device, model.dtype, DEMO_SEED)
    splits = {"own_size": own_size, "at_224_pixels": compared}
    described = [{"picture": title, **ranked} for title, ranked in zip(titles, answers, strict=True)]
    result = {**answers[0], "pictures": described, "splits": splits, "ratios": ratios}
    result |= {"model": name, "num_tokens": model.config.num_tokens, "environment": settings}
    # What was measured survives both a full disk and a closed pipe.
    try:
        write_png(arguments.out / "result.png", draw_sheet(rows))
        write_json(arguments.out / "result.json", result)
    finally:
        _print_result(result)
    print(f"\nwrote {arguments.out / 'result.png'} and {arguments.out / 'result.json'}")


def _tiny_systems(device: torch.device) -> dict[str, tuple[Any, Any]]:
    """focusvit-tiny and Transformers' ViT of the same width and depth, as `focusvit benchmark` measures them."""
    systems = {}
    with torch.random.fork_rng():
        torch.manual_seed(DEMO_SEED)
        for name, subject in {"focusvit-tiny": "focusvit-tiny-latent", "ViT-Ti/16": "ViT-Ti/16"}.items():
            model, image_processor = find_subject(subject).build(DEMO_RESOLUTION)
            systems[name] = (model.to(device).eval(), image_processor)
    return systems


def _split(systems: dict[str, tuple[Any, Any]], photograph: Image.Image) -> dict[str, Any]:
    """[`time_split`] at each of the demo's batch sizes."""
    return {f"batch_{size}": time_split(systems, [photograph] * size) for size in DEMO_BATCHES}


def _print_result(result: dict[str, Any]) -> None:
    """The classes of each picture, then where the time goes."""
    for ranked in result["pictures"]:
        print_classes(ranked["picture"], ranked)
    settings, ratios = result["environment"], result["ratios"]
    print(
        "\n"
        f"milliseconds a picture, medians; {machine(settings)}, {settings['threads']} threads, {settings['dtype']}\n"
        "focusvit-tiny and a dense ViT of its width and depth, both with random weights, at 224 pixels"
    )
    for size, splits in result["splits"].items():
        for batch, split in splits.items():
            _print_split(batch, split, ratios[batch] if size == "at_224_pixels" else {})


def _print_split(batch: str, split: dict[str, Any], ratios: dict[str, float]) -> None:
    """A line for each part of the path, a column for each system, and one for the ratio of the two."""
    heads = [*split, *(["ratio"] if ratios else [])]
    print(f"\n{batch.replace('_', ' '):<32}" + "".join(f"{head:>24}" for head in heads))
    for part, name in PART_NAMES.items():
        values = [f"{parts[part]['median_ms']:.2f}" if part in parts else "" for parts in split.values()]
        values += [f"{ratios[part]:.2f}"] if part in ratios else []
        print((f"  {name:<30}" + "".join(f"{value:>24}" for value in values)).rstrip())
