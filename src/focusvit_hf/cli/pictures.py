"""`focusvit classify` and `focusvit visualize`: the classes of pictures, and what the answers rest on."""

import argparse
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from PIL import Image
from transformers import pipeline

from ..errors import joined
from ..explanation.sheet import draw_sheet, explain
from ..hub.checkpoints import DEFAULT_CHECKPOINT, load_checkpoint
from ..image_processing_focusvit import FocusViTImageProcessor
from ..images import decode_image, naming_image
from ..modeling_focusvit import FocusViTForImageClassification
from ..utils.environment import environment
from ..utils.files import write_json, write_whole
from .arguments import checkpoint_arguments, count


def add_picture_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `focusvit classify` and `focusvit visualize`."""
    command = commands.add_parser("classify", parents=[checkpoint_arguments()], help="print the classes of pictures")
    command.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    command.add_argument("--out", type=Path, metavar="FILE.json", help="write labels and scores there as well")
    command.add_argument("--top-k", type=count, default=5, help="classes a picture, best first; by default 5")
    command.add_argument("--batch-size", type=count, default=1, help="pictures at a time; by default 1")
    command.set_defaults(run=classify)

    command = commands.add_parser(
        "visualize",
        parents=[checkpoint_arguments()],
        help="draw pictures beside their superpixels and what carried the answer",
    )
    command.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("visualization.png"),
        metavar="FILE.png|FOLDER",
        help="one file for all pictures, or a folder with one a picture; by default visualization.png",
    )
    command.set_defaults(run=visualize)


def open_picture(path: Path, index: int = 0) -> Image.Image:
    """
    Reads a picture file as RGB, upright, transparency laid over white, 16 bits scaled to 8.

    Args:
        path (`Path`): The file.
        index (`int`, *optional*, defaults to 0): Its number, for the error.

    Raises:
        ValueError: when it cannot be read, has no pixels or too many to be decoded safely; the file is named.
    """
    with naming_image(index):
        return cast(Image.Image, decode_image(path))


def ranked_classes(
    model: FocusViTForImageClassification,
    image_processor: FocusViTImageProcessor,
    pictures: Iterable[Image.Image],
    top_k: int = 5,
    batch_size: int = 1,
) -> Iterator[dict[str, Any]]:
    """The best `top_k` classes of each picture, `{"labels": [...], "scores": [...]}` with scores in 0..1."""
    classifier: Any = pipeline(
        "image-classification", model=model, image_processor=image_processor, device=model.device
    )
    # Only of a generator the pipeline takes one picture after the other.
    one_by_one = (picture for picture in pictures)
    for ranked in classifier(one_by_one, batch_size=batch_size, top_k=top_k):
        yield {"labels": [item["label"] for item in ranked], "scores": [item["score"] for item in ranked]}


def print_classes(title: str, ranked: dict[str, Any]) -> None:
    print(title)
    width = max(map(len, ranked["labels"]))
    for label, score in zip(ranked["labels"], ranked["scores"], strict=True):
        print(f"  {label:<{width}}  {score:6.1%}")


def classify(arguments: argparse.Namespace) -> None:
    """`focusvit classify`: prints the classes of pictures; `--out` writes them as JSON when all are done."""
    model, image_processor = load_checkpoint(arguments.model, arguments.num_superpixels)
    model.to(arguments.device)
    pictures = (open_picture(path, index) for index, path in enumerate(arguments.pictures))
    results = []
    answers = ranked_classes(model, image_processor, pictures, arguments.top_k, arguments.batch_size)
    for path, ranked in zip(arguments.pictures, answers, strict=True):
        print_classes(str(path), ranked)
        results.append({"picture": str(path), **ranked})
    if arguments.out is not None:
        name = arguments.model or DEFAULT_CHECKPOINT.name
        settings = environment(model.device, model.dtype)
        described = {"model": name, "num_tokens": model.config.num_tokens}
        write_json(arguments.out, {**described, "pictures": results, "environment": settings})


def visualize(arguments: argparse.Namespace) -> None:
    """`focusvit visualize`: one PNG with a row a picture, or a folder with a PNG a picture."""
    paths, out = arguments.pictures, arguments.out
    as_file = out.suffix.lower() == ".png"
    if not as_file and (out.suffix or out.is_file()) and not out.is_dir():
        raise ValueError(f"expected a .png file or a folder for --out, got {out}")
    names = [f"{path.stem}.png" for path in paths]
    if not as_file and len(set(names)) < len(names):
        raise ValueError(f"expected pictures with different names for a folder, got {[path.name for path in paths]}")
    targets = {out.resolve()} if as_file else {(out / name).resolve() for name in names}
    overwritten = sorted(str(path) for path in paths if path.resolve() in targets)
    if overwritten:
        raise ValueError(f"expected an --out that is none of the pictures, got {joined(overwritten)}")
    model, image_processor = load_checkpoint(arguments.model, arguments.num_superpixels)
    model.to(arguments.device)
    rows = []
    for index, (path, name) in enumerate(zip(paths, names, strict=True)):
        rows.append(explain(model, image_processor, open_picture(path, index), path.name))
        if not as_file:
            write_png(out / name, draw_sheet([rows.pop()]))
            print(f"wrote {out / name}")
    if as_file:
        write_png(out, draw_sheet(rows))
        print(f"wrote {out}")


def write_png(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())
