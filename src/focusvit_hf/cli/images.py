"""`focusvit classify` and `focusvit visualize`: the classes of images, and what the answers rest on."""

import argparse
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from PIL import Image
from transformers.image_utils import SizeDict

from ..errors import joined
from ..explanation import draw_sheet, explain, predict
from ..explanation.overlays import require_matplotlib
from ..explanation.sheet import HIGHEST_PANEL
from ..hub.checkpoints import DEFAULT_CHECKPOINT, load_checkpoint
from ..image_processing_focusvit import FocusViTImageProcessor
from ..image_sizes import Needed, needed_by
from ..images import decode_image, naming_image
from ..utils.environment import environment
from ..utils.files import check_file, check_folder, write_json, write_whole
from ..utils.messages import one_line, printable, told_of
from .arguments import add_images, add_runtime, checkpoint_arguments, count, new_command


Answer = TypeVar("Answer")
Exported = TypeVar("Exported")
Classify = Callable[[list[Image.Image]], list[dict[str, Any]]]

# What the commands return where they did their work for some of the images only.
SOME_FAILED = 1


def add_image_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `focusvit classify` and `focusvit visualize`."""
    command = new_command(
        commands, classify, parents=[checkpoint_arguments()], help="print the most probable classes of images"
    )
    add_images(command)
    command.add_argument("--out", type=Path, metavar="FILE.json", help="also write the classes to this file")
    command.add_argument("--top-k", type=count, default=5, help="how many classes to show for each image (default: 5)")
    add_runtime(command)
    command.add_argument(
        "--batch-size", type=count, default=1, help="how many images go through the model at once (default: 1)"
    )

    command = new_command(
        commands,
        visualize,
        parents=[checkpoint_arguments()],
        help="draw images with their superpixels and a heat map of the answer",
    )
    add_images(command)
    command.add_argument(
        "--out",
        type=Path,
        default=Path("visualization.png"),
        metavar="FILE.png|FOLDER",
        help="a PNG file for all images, or a folder for one PNG file per image (default: visualization.png)",
    )


def read_image(path: Path, index: int = 0, needed: Needed | None = None) -> Image.Image:
    """
    Reads an image file as RGB, upright, transparency laid over white, 16 bits scaled to 8.

    Args:
        path (`Path`): The file.
        index (`int`, *optional*, defaults to 0): Its number, for the error.
        needed ([`~image_sizes.Needed`], *optional*): What of it is needed; by default all.

    Raises:
        ValueError: when it cannot be read, has no pixels or too many to be decoded safely; the file is named.
    """
    with naming_image(index), warnings.catch_warnings():
        # Decoders warn of what they can do without; a file that cannot be used is an error.
        warnings.simplefilter("ignore")
        return cast(Image.Image, decode_image(path, needed=needed))


class Failures(dict[Path, str]):
    """The images that could not be used, each with the reason, which is printed to stderr as soon as it is known."""

    def add(self, path: Path, error: Exception) -> None:
        self[path] = one_line(error)
        print(f"focusvit: error: {self[path]}", file=sys.stderr)

    def described(self) -> list[dict[str, str]]:
        return [{"image": str(path), "error": reason} for path, reason in self.items()]


def opened(
    paths: Sequence[Path], failures: Failures, needed: Needed | None = None
) -> Iterator[tuple[Path, Image.Image]]:
    """The images of these files, one after the other; a file that cannot be read is kept in `failures`."""
    for index, path in enumerate(paths):
        try:
            image = read_image(path, index, needed)
        except ValueError as error:
            failures.add(path, error)
        else:
            yield path, image


def answers(
    paths: Sequence[Path], failures: Failures, answer: Callable[[Image.Image], Answer], needed: Needed | None = None
) -> Iterator[tuple[Path, Answer]]:
    """What `answer` makes of each image; one that cannot be read or that it refuses is kept in `failures`."""
    for path, image in opened(paths, failures, needed):
        try:
            with told_of(str(path)):
                found = answer(image)
        except ValueError as error:
            failures.add(path, error)
        else:
            yield path, found


def in_batches(
    images: Iterator[tuple[Path, Image.Image]],
    batch_size: int,
    failures: Failures,
    answer: Callable[[list[Image.Image]], Sequence[Answer]],
) -> Iterator[tuple[Path, Answer]]:
    """What `answer` makes of each image, in batches; an image that it refuses is kept in `failures`."""
    while batch := [pair for _, pair in zip(range(batch_size), images, strict=False)]:
        try:
            # Of options that no image can be prepared with, the libraries raise whatever they stumble over.
            with told_of(str(batch[0][0])):
                found = answer([image for _, image in batch])
        except ValueError as error:
            if len(batch) > 1:
                # One by one, to find out which of them it was.
                yield from in_batches(iter(batch), 1, failures, answer)
            else:
                failures.add(batch[0][0], error)
        else:
            yield from zip([path for path, _ in batch], found, strict=True)


def print_classes(title: str, ranked: dict[str, Any]) -> None:
    print(printable(title))
    labels = [printable(label) for label in ranked["labels"]]
    width = max(map(len, labels))
    for label, score in zip(labels, ranked["scores"], strict=True):
        print(f"  {label:<{width}}  {score:6.1%}")


def classify(arguments: argparse.Namespace) -> int:
    """
    Prints the most probable classes of each image. An image that cannot be read is named, the others are classified
    all the same, and the exit status is 1.

    Returns:
        `int`: 0, or 1 where some of the images could not be used.

    Raises:
        ValueError: on a checkpoint that cannot be used and an `--out` that is one of the images or cannot be written,
            before anything is classified.
    """
    if arguments.out is not None:
        check_file(arguments.out, arguments.images)
    settings, image_processor, answer = (_by_onnx_runtime if arguments.runtime == "onnx" else _by_torch)(arguments)
    failures, results = Failures(), []
    # Of the answer only classes are shown, so nobody misses the pixels that the model does not see.
    images = opened(arguments.images, failures, needed_by(image_processor))
    try:
        for path, ranked in in_batches(images, arguments.batch_size, failures, answer):
            results.append({"image": str(path), **ranked})
            print_classes(str(path), ranked)
    finally:
        # What was found survives an interruption and a closed pipe.
        if arguments.out is not None and results:
            name = arguments.model or DEFAULT_CHECKPOINT.name
            described = {"model": name, **settings, "images": results, "failures": failures.described()}
            write_json(arguments.out, described)
    return SOME_FAILED if failures else 0


def _by_torch(arguments: argparse.Namespace) -> tuple[dict[str, Any], FocusViTImageProcessor, Classify]:
    """What is told of a checkpoint's settings, its image processor, and the classes of a batch."""
    model, image_processor = load_checkpoint(arguments.model, arguments.num_superpixels)
    model.to(arguments.device)

    def classes(images: list[Image.Image]) -> list[dict[str, Any]]:
        return [prediction.ranked(arguments.top_k) for prediction in predict(model, image_processor, images)]

    settings = {"num_tokens": model.config.num_tokens, "environment": environment(model.device, model.dtype)}
    return settings, image_processor, classes


def _by_onnx_runtime(arguments: argparse.Namespace) -> tuple[dict[str, Any], FocusViTImageProcessor, Classify]:
    """What [`_by_torch`] gives, of an exported folder."""
    # Only here, since other commands do without the exporter.
    from ..export.runtime import OnnxImageClassifier

    classifier = exported_as(OnnxImageClassifier, arguments)

    def classes(images: list[Image.Image]) -> list[dict[str, Any]]:
        answers = classifier(images, arguments.top_k, len(images))
        return [{f"{name}s": [entry[name] for entry in answer] for name in ("label", "score")} for answer in answers]

    settings = {"runtime": "onnx", "num_tokens": classifier.config.num_tokens}
    settings["environment"] = environment(torch.device("cpu"), torch.float32)
    return settings, classifier.image_processor, classes


def exported_as(kind: Callable[[str], Exported], arguments: argparse.Namespace) -> Exported:
    """
    The folder `--model` as what ONNX Runtime runs.

    Raises:
        ValueError: on a folder that cannot be used, `--num-superpixels`, and where ONNX Runtime is not installed.
    """
    if arguments.model is None or arguments.num_superpixels is not None:
        raise ValueError(
            "expected --runtime onnx with a --model FOLDER that `focusvit export` wrote, whose graph has its own "
            "number of superpixels, and without --num-superpixels"
        )
    try:
        return kind(arguments.model)
    except ImportError as error:
        raise ValueError(str(error)) from error


def visualize(arguments: argparse.Namespace) -> int:
    """
    Draws each image beside its superpixels and a heat map that shows which parts the answer rests on. An image that
    cannot be read is named, the others are drawn all the same, and the exit status is 1.

    Returns:
        `int`: 0, or 1 where some of the images could not be used.

    Raises:
        ValueError: on a checkpoint that cannot be used and an `--out` that is one of the images or cannot be written,
            before anything is drawn.
    """
    paths, out = arguments.images, arguments.out
    require_matplotlib()
    as_file = out.suffix.lower() == ".png" and not out.is_dir()
    names = {path: f"{path.stem}.png" for path in paths}
    if as_file:
        check_file(out, paths)
    else:
        _check_drawings(out, paths, names)
    model, image_processor = load_checkpoint(arguments.model, arguments.num_superpixels)
    model.to(arguments.device)
    failures, rows, titles = Failures(), [], []
    needed = needed_by_drawing(image_processor)
    for path, explanation in answers(paths, failures, partial(explain, model, image_processor), needed):
        if as_file:
            rows.append(explanation)
            titles.append(path.name)
        else:
            write_png(out / names[path], draw_sheet([explanation], [path.name]))
            print(f"wrote {printable(str(out / names[path]))}")
    if rows:
        write_png(out, draw_sheet(rows, titles))
        print(f"wrote {printable(str(out))}")
    return SOME_FAILED if failures else 0


def needed_by_drawing(image_processor: FocusViTImageProcessor) -> Needed | None:
    """What a sheet shows of an image and the model sees of it, whichever is more; None where all pixels are needed."""
    seen = needed_by(image_processor)
    if seen is None:
        return None
    edges = [edge for edge in dict(seen.size).values() if edge]
    # A decoder leaves twice of what it is told.
    return Needed(SizeDict(shortest_edge=max(HIGHEST_PANEL // 2, *edges)))


def _check_drawings(out: Path, paths: Sequence[Path], names: dict[Path, str]) -> None:
    """Raises ValueError where a PNG file for each image cannot go into the folder `out`."""
    if (out.suffix or out.is_file()) and not out.is_dir():
        raise ValueError(f"expected a .png file or a folder for --out, got {out}")
    if len(set(names.values())) < len(paths):
        raise ValueError(f"expected images with different names for a folder, got {[path.name for path in paths]}")
    targets = {(out / name).resolve() for name in names.values()}
    overwritten = sorted(str(path) for path in paths if path.resolve() in targets)
    if overwritten:
        raise ValueError(f"expected an --out that is none of the images, got {joined(overwritten)}")
    check_folder(out)


def write_png(path: Path, image: Image.Image, **options: Any) -> None:
    """Writes a PNG file, with options of PIL's encoder."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    write_whole(path, buffer.getvalue())
