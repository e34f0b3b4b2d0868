"""`focusvit demo`: a photograph classified, drawn and timed beside a dense ViT."""

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from skimage.data import chelsea
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from .benchmark import environment
from .benchmark_parts import time_split
from .benchmark_subjects import FOCUSVIT_SIZES
from .checkpoints import DEFAULT_CHECKPOINT, load_checkpoint
from .cli_arguments import checkpoint_arguments
from .cli_pictures import open_picture, print_classes, ranked_classes, write_png
from .configuration_focusvit import FocusViTConfig
from .files import write_json
from .image_processing_focusvit import FocusViTImageProcessor
from .modeling_focusvit import FocusViTForImageClassification
from .sheet import draw_sheet, explain


DEMO_BATCHES = (1, 32)
DEMO_SEED = 0
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
    """`focusvit demo`: a photograph of a cat classified, drawn and timed; writes `result.json` and `result.png`."""
    model, image_processor = load_checkpoint(arguments.model, arguments.num_superpixels)
    model.to(arguments.device)
    name = Path(arguments.model or DEFAULT_CHECKPOINT).name
    photograph = Image.fromarray(chelsea())
    titles = ["cat (scikit-image)", *(path.name for path in arguments.pictures)]
    pictures = [photograph, *(open_picture(path, index) for index, path in enumerate(arguments.pictures))]
    answers = list(ranked_classes(model, image_processor, pictures))
    for title, ranked in zip(titles, answers, strict=True):
        print_classes(title, ranked)
    rows = [explain(model, image_processor, *pair) for pair in zip(pictures, titles, strict=True)]

    print("\nmeasuring where the time goes ...", flush=True)
    own_size = _split({name: (model, image_processor)}, photograph)
    compared = _split(_tiny_systems(arguments.device), photograph)
    ratios = {
        batch: {part: dense[part]["median_ms"] / focusvit[part]["median_ms"] for part in COMPARED_PARTS}
        for batch, (focusvit, dense) in ((batch, split.values()) for batch, split in compared.items())
    }
    settings = environment(model.device, model.dtype, DEMO_SEED)
    print(
        f"milliseconds a picture, medians; {settings['device']}, {settings['threads']} threads, {settings['dtype']}\n"
        "focusvit-tiny and a dense ViT of its width and depth, both with random weights, at 224 pixels"
    )
    for split_of_batch in (own_size, compared):
        for batch, split in split_of_batch.items():
            _print_split(batch, split, ratios[batch] if split_of_batch is compared else {})
    splits = {"own_size": own_size, "at_224_pixels": compared}
    described = [{"picture": title, **ranked} for title, ranked in zip(titles, answers, strict=True)]
    result = {**answers[0], "pictures": described, "splits": splits, "ratios": ratios}
    write_png(arguments.out / "result.png", draw_sheet(rows))
    result |= {"model": name, "num_tokens": model.config.num_tokens, "environment": settings}
    write_json(arguments.out / "result.json", result)
    print(f"\nwrote {arguments.out / 'result.png'} and {arguments.out / 'result.json'}")


def _tiny_systems(device: torch.device) -> dict[str, tuple[Any, Any]]:
    """focusvit-tiny, and Transformers' ViT of the same width and depth."""
    config = FocusViTConfig(**FOCUSVIT_SIZES["tiny"])
    dense = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    with torch.random.fork_rng():
        torch.manual_seed(DEMO_SEED)
        models: list[Any] = [FocusViTForImageClassification(config), ViTForImageClassification(dense)]
    processors = [FocusViTImageProcessor.from_model_config(config), ViTImageProcessorPil()]
    systems = zip([model.to(device) for model in models], processors, strict=True)
    return dict(zip(("focusvit-tiny", "ViT-Ti/16"), systems, strict=True))


def _split(systems: dict[str, tuple[Any, Any]], photograph: Image.Image) -> dict[str, Any]:
    """[`time_split`] at each of the demo's batch sizes."""
    return {f"batch_{size}": time_split(systems, [photograph] * size) for size in DEMO_BATCHES}


def _print_split(batch: str, split: dict[str, Any], ratios: dict[str, float]) -> None:
    """A line for each part of the path, a column for each system, and one for the ratio of the two."""
    heads = [*split, *(["ratio"] if ratios else [])]
    print(f"\n{batch.replace('_', ' '):<32}" + "".join(f"{head:>24}" for head in heads))
    for part, name in PART_NAMES.items():
        values = [f"{parts[part]['median_ms']:.2f}" if part in parts else "" for parts in split.values()]
        values += [f"{ratios[part]:.2f}"] if part in ratios else []
        print((f"  {name:<30}" + "".join(f"{value:>24}" for value in values)).rstrip())
