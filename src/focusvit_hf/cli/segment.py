"""`focusvit segment` and `focusvit cutout`: the classes of an image's pixels, and one class cut out of it."""

import argparse
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import joined
from ..explanation.segmentation import Segmentation, class_names
from ..explanation.segmentation import segment as segmented
from ..hub.checkpoints import load_with_superpixels
from ..modeling_focusvit_dense import FocusViTForSemanticSegmentation
from ..segmentation_maps import UPSAMPLINGS
from ..utils.environment import environment
from ..utils.files import check_folder, write_json
from ..utils.messages import printable
from .arguments import add_images, add_runtime, checkpoint_arguments, new_command
from .images import SOME_FAILED, Failures, answers, exported_as, write_png


# Where the source tree keeps the checkpoint for figures; a wheel does not bring it.
DEFAULT_SEGMENTER = Path(__file__).resolve().parents[3] / "model_cards" / "focusvit-tiny-ecssd"
JSON_FILE = "segmentation.json"
Find = Callable[..., Segmentation]
# Most of the time for a photograph of 12 megapixels would go into a file that is a little smaller.
QUICK_PNG = {"compress_level": 1, "compress_type": zlib.Z_RLE}


def add_segmentation_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `focusvit segment` and `focusvit cutout`."""
    command = new_command(
        commands, segment, parents=[checkpoint_arguments()], help="find the class of every pixel of images"
    )
    add_images(command)
    _add_shared(command, "segmentation")
    command = new_command(
        commands, cutout, parents=[checkpoint_arguments()], help="cut the figure out of images, as transparent PNG"
    )
    add_images(command)
    _add_shared(command, "cutouts")
    command.add_argument("--label", metavar="NAME", help="the class to cut out (default: the second one, the figure)")
    command.add_argument(
        "--threshold", type=float, default=0.5, help="probability at which a pixel is half there (default: 0.5)"
    )


def _add_shared(command: argparse.ArgumentParser, default: str) -> None:
    add_runtime(command)
    help = f"the folder to write the PNG files to (default: {default})"
    command.add_argument("--out", type=Path, default=Path(default), metavar="FOLDER", help=help)
    command.add_argument(
        "--upsampling",
        choices=UPSAMPLINGS,
        default="guided",
        help="where borders lie: where the image's colours change (guided), or between its cells (default: guided)",
    )


def segment(arguments: argparse.Namespace) -> int:
    """
    Finds the class of every pixel of each image: writes a label map whose palette has a colour for each class, an
    overlay with a legend, and the shares of the classes as JSON. An image that cannot be read is named, the others are
    done all the same, and the exit status is 1.

    Returns:
        `int`: 0, or 1 where some of the images could not be used.

    Raises:
        ValueError: on a checkpoint that cannot be used and an `--out` that cannot be written, before an image is read.
    """
    results = []

    def write(path: Path, found: Segmentation) -> None:
        drawn = found.label_map()
        shares = found.shares(drawn)
        write_png(arguments.out / f"{path.stem}_labels.png", drawn, **QUICK_PNG)
        write_png(arguments.out / f"{path.stem}_overlay.png", found.overlay(drawn), **QUICK_PNG)
        results.append({"image": str(path), "shares": shares})
        print(printable(str(path)))
        for name, share in shares.items():
            print(f"  {share:6.1%}  {printable(name)}")

    settings, failures = _each(arguments, ("_labels", "_overlay"), write)
    described = {"model": arguments.model or DEFAULT_SEGMENTER.name, "images": results}
    described |= {"failures": failures.described(), **settings}
    if results:
        write_json(arguments.out / JSON_FILE, described)
    return SOME_FAILED if failures else 0


def cutout(arguments: argparse.Namespace) -> int:
    """
    Cuts one class out of each image: writes a PNG file of the image's own size that is transparent elsewhere, with a
    soft border. An image that cannot be read is named, the others are done all the same, and the exit status is 1.

    Returns:
        `int`: 0, or 1 where some of the images could not be used.

    Raises:
        ValueError: on a checkpoint that cannot be used, a class that it does not have, a threshold outside of 0..1 and
            an `--out` that cannot be written, before any image is read.
    """
    if not 0 < arguments.threshold < 1:
        raise ValueError(f"expected a --threshold above 0 and below 1, got {arguments.threshold}")

    def write(path: Path, found: Segmentation) -> None:
        target = arguments.out / f"{path.stem}_cutout.png"
        write_png(target, found.cutout(arguments.label, arguments.threshold), **QUICK_PNG)
        print(f"wrote {printable(str(target))}")

    _, failures = _each(arguments, ("_cutout",), write)
    return SOME_FAILED if failures else 0


def _each(
    arguments: argparse.Namespace, endings: Sequence[str], write: Callable[[Path, Segmentation], None]
) -> tuple[dict[str, Any], Failures]:
    """Writes what is found in each image; gives what is told of the settings, and the images that were no use."""
    _check_out(arguments.out, arguments.images, endings)
    settings, names, find = (_by_onnx_runtime if arguments.runtime == "onnx" else _by_torch)(arguments)
    label = getattr(arguments, "label", None)
    if label is not None and label not in names:
        raise ValueError(f"expected a --label of the model, {joined(names)}, got {label!r}")
    failures = Failures()
    for path, found in answers(arguments.images, failures, partial(find, upsampling=arguments.upsampling)):
        write(path, found)
    return settings, failures


def _by_torch(arguments: argparse.Namespace) -> tuple[dict[str, Any], Sequence[str], Find]:
    """What is told of a checkpoint's settings, its classes, and what it finds in an image."""
    model, image_processor = load_with_superpixels(
        arguments.model, DEFAULT_SEGMENTER, FocusViTForSemanticSegmentation, arguments.num_superpixels
    )
    model.to(arguments.device)
    settings = {"environment": environment(model.device, model.dtype)}
    return settings, class_names(model.config), partial(segmented, model, image_processor)


def _by_onnx_runtime(arguments: argparse.Namespace) -> tuple[dict[str, Any], Sequence[str], Find]:
    """What [`_by_torch`] gives, of an exported folder."""
    # Only here, since other commands do without the exporter.
    from ..export.runtime import OnnxImageSegmenter

    segmenter = exported_as(OnnxImageSegmenter, arguments)
    settings = {"runtime": "onnx", "environment": environment(torch.device("cpu"), torch.float32)}
    return settings, class_names(segmenter.config), segmenter.segment


def _check_out(out: Path, paths: Sequence[Path], endings: Sequence[str]) -> None:
    """Raises ValueError where the files cannot go into the folder `out`, or would lie on each other or on an image."""
    if len({path.stem for path in paths}) < len(paths):
        raise ValueError(f"expected images with different names, got {[path.name for path in paths]}")
    targets = {(out / f"{path.stem}{ending}.png").resolve() for path in paths for ending in endings}
    overwritten = sorted(str(path) for path in paths if path.resolve() in targets)
    if overwritten:
        raise ValueError(f"expected an --out in which none of the images is written over, got {joined(overwritten)}")
    if out.is_file():
        raise ValueError(f"expected a folder for --out, got the file {out}")
    check_folder(out)
