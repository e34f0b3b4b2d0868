"""The `focusvit` command: classify, visualize, demo."""

import argparse
import io
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image, ImageOps
from safetensors import SafetensorError
from skimage.data import chelsea
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil, pipeline
from transformers.utils import logging

import focusvit_hf

from .benchmark import environment, time_split
from .configuration_focusvit import FocusViTConfig
from .files import write_json, write_whole
from .image_processing_focusvit import FocusViTImageProcessor
from .modeling_focusvit import FocusViTForImageClassification
from .pictures import decode, from_pil, naming_picture
from .sheet import draw_sheet, explain


# Where the source tree keeps the checkpoint that was trained here; a wheel does not bring it.
DEFAULT_CHECKPOINT = Path(__file__).resolve().parents[2] / "model_cards" / "focusvit-nano-cifar10"
DEMO_BATCHES = (1, 32)
DEMO_SEED = 0
COMPARED_PARTS = ("pixels_to_logits", "whole_path")
PART_NAMES = {
    "processor": "processor, without superpixels",
    "superpixels": "superpixels",
    "model": "model, superpixels given",
    "pixels_to_logits": "pixels to logits",
    "whole_path": "picture to logits",
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the command.

    Args:
        argv (sequence of `str`, *optional*): The arguments, by default those of the process.

    Returns:
        `int`: 0, or 2 after an error, which is printed to stderr in one line. No output is left half-written.
    """
    arguments = _parser().parse_args(argv)
    try:
        with _quiet_library():
            arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"focusvit: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="focusvit", description="Classifies pictures with a FocusViT and shows what its answer rests on."
    )
    parser.add_argument("--version", action="version", version=f"focusvit {focusvit_hf.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--model",
        metavar="FOLDER_OR_NAME",
        help="a FocusViT checkpoint: a folder or a name on the Hub; by default the one of this source tree",
    )
    shared.add_argument(
        "--device", type=_device, default=_device(None), help="such as cpu or cuda:1; by default cuda where there is"
    )

    command = commands.add_parser("classify", parents=[shared], help="print the classes of pictures")
    command.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    command.add_argument("--out", type=Path, metavar="FILE.json", help="write labels and scores there as well")
    command.add_argument("--top-k", type=_count, default=5, help="classes a picture, best first; by default 5")
    command.add_argument("--batch-size", type=_count, default=1, help="pictures at a time; by default 1")
    command.set_defaults(run=classify)

    command = commands.add_parser(
        "visualize", parents=[shared], help="draw pictures beside their superpixels and what carried the answer"
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

    command = commands.add_parser(
        "demo", parents=[shared], help="classify and draw a photograph of a cat, and time FocusViT beside a dense ViT"
    )
    command.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE", help="further pictures")
    command.add_argument("--out", type=Path, default=Path("demo"), metavar="FOLDER", help="by default demo")
    command.set_defaults(run=demo)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def _device(text: str | None) -> torch.device:
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # Only a tensor shows whether the device is there.
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"expected a device of this machine, got {text!r}: {error}") from error


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Without progress bars and warnings of Transformers, whose say in errors is ours here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_checkpoint(name: str | None = None) -> tuple[FocusViTForImageClassification, FocusViTImageProcessor]:
    """
    Loads a FocusViT classifier and its processor, in evaluation mode, from safetensors only.

    Args:
        name (`str`, *optional*): A folder, or a name on the Hub; by default the checkpoint of this source tree.

    Raises:
        ValueError: when there is no FocusViT checkpoint, when its weights are a pickle, damaged, or not exactly those
            of the model, and when its processor disagrees with its configuration.
    """
    if name is None:
        if not (DEFAULT_CHECKPOINT / "config.json").is_file():
            raise ValueError(
                f"expected --model FOLDER_OR_NAME: this installation has no {DEFAULT_CHECKPOINT.name} of its own"
            )
        name = str(DEFAULT_CHECKPOINT)
    folder = Path(name)
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        raise ValueError(
            f"expected model.safetensors in {name}, got a pickle ({next(folder.glob('*.bin')).name}), which can run "
            "code when it is loaded; save the model again with save_pretrained"
        )
    try:
        kind = FocusViTConfig.get_config_dict(name)[0].get("model_type")
        if kind != FocusViTConfig.model_type:
            raise ValueError(f"model_type {kind!r} in config.json")
        loaded: Any = FocusViTForImageClassification.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
        image_processor = FocusViTImageProcessor.from_pretrained(name)
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(
            f"expected a FocusViT checkpoint in safetensors, a folder or a name on the Hub, got {name}: {error}"
        ) from error
    model, report = loaded
    _check_weights(name, report)
    image_processor.validate_against_config(model.config)
    return model.eval(), image_processor


def _check_weights(name: str, report: dict[str, Any]) -> None:
    """Raises ValueError unless the checkpoint held each tensor of the model, in its shape, and no other."""
    problems = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    problems += [f"{key} is not of this model" for key in sorted(report["unexpected_keys"])]
    problems += [
        f"{key} has shape {tuple(got)} instead of {tuple(expected)}"
        for key, got, expected in sorted(report["mismatched_keys"])
    ]
    problems += report["error_msgs"]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"expected the weights of the model in {name}, got: {'; '.join(problems[:3])}{more}")


def open_picture(path: Path, index: int = 0) -> Image.Image:
    """
    Reads a picture file as RGB, upright, transparency laid over white, 16 bits scaled to 8.

    Args:
        path (`Path`): The file.
        index (`int`, *optional*, defaults to 0): Its number, for the error.

    Raises:
        ValueError: when it cannot be read, has no pixels or too many to be decoded safely; the file is named.
    """
    with naming_picture(index, f"({path}) cannot be used"), warnings.catch_warnings():
        # The size is checked here, with an error.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            decode(image)
            return from_pil(ImageOps.exif_transpose(image), do_convert_rgb=True)


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


def _print_classes(title: str, ranked: dict[str, Any]) -> None:
    print(title)
    width = max(map(len, ranked["labels"]))
    for label, score in zip(ranked["labels"], ranked["scores"], strict=True):
        print(f"  {label:<{width}}  {score:6.1%}")


def classify(arguments: argparse.Namespace) -> None:
    """`focusvit classify`: prints the classes of pictures; `--out` writes them as JSON when all are done."""
    model, image_processor = load_checkpoint(arguments.model)
    model.to(arguments.device)
    pictures = (open_picture(path, index) for index, path in enumerate(arguments.pictures))
    results = []
    answers = ranked_classes(model, image_processor, pictures, arguments.top_k, arguments.batch_size)
    for path, ranked in zip(arguments.pictures, answers, strict=True):
        _print_classes(str(path), ranked)
        results.append({"picture": str(path), **ranked})
    if arguments.out is not None:
        name = arguments.model or DEFAULT_CHECKPOINT.name
        write_json(arguments.out, {"model": name, "pictures": results, "environment": _environment(model)})


def visualize(arguments: argparse.Namespace) -> None:
    """`focusvit visualize`: one PNG with a row a picture, or a folder with a PNG a picture."""
    paths, out = arguments.pictures, arguments.out
    as_file = out.suffix.lower() == ".png"
    if not as_file and (out.suffix or out.is_file()) and not out.is_dir():
        raise ValueError(f"expected a .png file or a folder for --out, got {out}")
    names = [f"{path.stem}.png" for path in paths]
    if not as_file and len(set(names)) < len(names):
        raise ValueError(f"expected pictures with different names for a folder, got {[path.name for path in paths]}")
    model, image_processor = load_checkpoint(arguments.model)
    model.to(arguments.device)
    rows = []
    for index, (path, name) in enumerate(zip(paths, names, strict=True)):
        rows.append(explain(model, image_processor, open_picture(path, index), path.name))
        if not as_file:
            _write_png(out / name, draw_sheet([rows.pop()]))
            print(f"wrote {out / name}")
    if as_file:
        _write_png(out, draw_sheet(rows))
        print(f"wrote {out}")


def _write_png(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())


def demo(arguments: argparse.Namespace) -> None:
    """`focusvit demo`: a photograph of a cat classified, drawn and timed; writes `result.json` and `result.png`."""
    model, image_processor = load_checkpoint(arguments.model)
    model.to(arguments.device)
    name = Path(arguments.model or DEFAULT_CHECKPOINT).name
    photograph = Image.fromarray(chelsea())
    titles = ["cat (scikit-image)", *(path.name for path in arguments.pictures)]
    pictures = [photograph, *(open_picture(path, index) for index, path in enumerate(arguments.pictures))]
    answers = list(ranked_classes(model, image_processor, pictures))
    for title, ranked in zip(titles, answers, strict=True):
        _print_classes(title, ranked)
    rows = [explain(model, image_processor, *pair) for pair in zip(pictures, titles, strict=True)]

    print("\nmeasuring where the time goes ...", flush=True)
    own_size = _split({name: (model, image_processor)}, photograph)
    compared = _split(_tiny_systems(arguments.device), photograph)
    ratios = {
        batch: {part: dense[part]["median_ms"] / focusvit[part]["median_ms"] for part in COMPARED_PARTS}
        for batch, (focusvit, dense) in ((batch, split.values()) for batch, split in compared.items())
    }
    settings = _environment(model)
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
    _write_png(arguments.out / "result.png", draw_sheet(rows))
    write_json(arguments.out / "result.json", {**result, "model": name, "environment": settings})
    print(f"\nwrote {arguments.out / 'result.png'} and {arguments.out / 'result.json'}")


def _tiny_systems(device: torch.device) -> dict[str, tuple[Any, Any]]:
    """focusvit-tiny, which is the configuration's defaults, and Transformers' ViT of the same width and depth."""
    config = FocusViTConfig()
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


def _environment(model: FocusViTForImageClassification) -> dict[str, Any]:
    return environment(model.device, model.dtype, DEMO_SEED)


if __name__ == "__main__":
    sys.exit(main())
