"""`focusvit demo`: an image classified, drawn and timed beside a dense ViT."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..benchmark.parts import time_split
from ..benchmark.report import machine
from ..benchmark.subjects import find_subject
from ..explanation import draw_sheet, explain
from ..explanation.overlays import require_matplotlib
from ..hub.checkpoints import DEFAULT_CHECKPOINT, load_checkpoint
from ..utils.environment import environment
from ..utils.files import check_file, check_folder, write_json
from ..utils.messages import printable
from .arguments import add_images, checkpoint_arguments, new_command
from .images import print_classes, read_image, write_png


# LICENSE.txt beside it names who took it. A temple is none of the checkpoint's ten classes: no photograph of one of
# them could be had under a licence to ship it.
SAMPLE = Path(__file__).with_name("samples") / "temple.jpg"
SAMPLE_TITLE = "temple (danielbuechele, CC BY 2.0)"
SAMPLE_NOTE = (
    "\nThe photograph shows a Chinese temple, which is none of the ten classes that the checkpoint knows: its answer\n"
    "says little, and the drawing shows what the answer rests on. Name your own: focusvit demo IMAGE ..."
)
DEMO_BATCHES = (1, 32)
DEMO_SEED = 0
DEMO_RESOLUTION = 224
COMPARED_PARTS = ("pixels_to_logits", "whole_path")
PART_NAMES = {
    "processor": "processor, without superpixels",
    "superpixels": "superpixels",
    "model": "model, superpixels given",
    "pixels_to_logits": "pixels to logits",
    "whole_path": "image to class",
}


def add_demo_command(commands: argparse._SubParsersAction) -> None:
    """Adds `focusvit demo`."""
    command = new_command(
        commands,
        demo,
        parents=[checkpoint_arguments()],
        help="classify and draw a photograph, and time FocusViT beside a dense ViT",
    )
    add_images(command, "your own images, shown as well", nargs="*")
    command.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="FOLDER", help="where the results go (default: demo)"
    )


def demo(arguments: argparse.Namespace) -> None:
    """
    Classifies a photograph of a temple, draws its superpixels and a heat map of the answer, and measures how long
    each step takes beside a dense ViT. Writes result.json and result.png.

    Raises:
        ValueError: on an image or a checkpoint that cannot be used, before anything is measured.
        OSError: likewise, where `--out` cannot be written to.
    """
    require_matplotlib()
    check_folder(arguments.out)
    drawing, result_file = arguments.out / "result.png", arguments.out / "result.json"
    for path in (drawing, result_file):
        check_file(path, arguments.images)
    model, image_processor = load_checkpoint(arguments.model, arguments.num_superpixels)
    model.to(arguments.device)
    name = Path(arguments.model or DEFAULT_CHECKPOINT).name
    images = [read_image(path, index) for index, path in enumerate([SAMPLE, *arguments.images])]
    titles = [SAMPLE_TITLE, *(path.name for path in arguments.images)]
    print("classifying, drawing and measuring where the time goes ...", file=sys.stderr)
    explanations = [explain(model, image_processor, image) for image in images]
    answers = [explanation.ranked() for explanation in explanations]
    own_size = _split({name: (model, image_processor)}, images[0])
    compared = _split(_tiny_systems(arguments.device), images[0])
    ratios = {
        batch: {part: dense[part]["median_ms"] / focusvit[part]["median_ms"] for part in COMPARED_PARTS}
        for batch, (focusvit, dense) in ((batch, split.values()) for batch, split in compared.items())
    }
    settings = environment(model.device, model.dtype, DEMO_SEED)
    splits = {"own_size": own_size, "at_224_pixels": compared}
    described: list[dict[str, Any]] = [
        {"image": title, **ranked} for title, ranked in zip(titles, answers, strict=True)
    ]
    result: dict[str, Any] = {**answers[0], "images": described, "splits": splits, "ratios": ratios}
    result |= {"model": name, "num_tokens": model.config.num_tokens, "environment": settings}
    # What was measured survives both a full disk and a closed pipe.
    try:
        write_png(drawing, draw_sheet(explanations, titles))
        write_json(result_file, result)
    finally:
        _print_result(result)
        if arguments.model is None:
            print(SAMPLE_NOTE)
    print(f"\nwrote {printable(str(drawing))} and {printable(str(result_file))}")


def _tiny_systems(device: torch.device) -> dict[str, tuple[Any, Any]]:
    """focusvit-tiny and Transformers' ViT of the same width and depth, as `focusvit benchmark` measures them."""
    systems = {}
    with torch.random.fork_rng():
        torch.manual_seed(DEMO_SEED)
        for name, subject in {"focusvit-tiny": "focusvit-tiny-latent", "ViT-Ti/16": "ViT-Ti/16"}.items():
            model, image_processor = find_subject(subject).build(DEMO_RESOLUTION)
            systems[name] = (model.to(device).eval(), image_processor)
    return systems


def _split(systems: dict[str, tuple[Any, Any]], image: Image.Image) -> dict[str, Any]:
    """[`time_split`] at each of the demo's batch sizes."""
    return {f"batch_{size}": time_split(systems, [image] * size) for size in DEMO_BATCHES}


def _print_result(result: dict[str, Any]) -> None:
    """The classes of each image, then where the time goes."""
    for ranked in result["images"]:
        print_classes(ranked["image"], ranked)
    settings, ratios = result["environment"], result["ratios"]
    print(
        "\n"
        f"milliseconds per image, medians; {machine(settings)}, {settings['threads']} threads, {settings['dtype']}\n"
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
