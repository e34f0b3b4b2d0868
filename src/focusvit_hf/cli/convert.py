"""`focusvit convert`: a FocusViT made of a ViT, DeiT or DINOv2 checkpoint."""

import argparse
import logging
from typing import Any

from ..conversion.convert import logger as conversion_logger
from ..conversion.folder import convert_to_folder
from ..conversion.loading import load_source_config
from ..selection_options import SELECT_PACK, SUPERVISIONS
from ..sparsification_options import MODES, RELEVANCES
from ..utils.messages import printable_lines
from .arguments import add_new_folder, count, new_command


_SPARSIFICATION = ("sparsification_mode", "sparsification_relevance")
_SELECTION = ("select_budget", "select_threshold", "select_supervision")


def add_convert_command(commands: argparse._SubParsersAction) -> None:
    """Adds `focusvit convert`."""
    command = new_command(commands, convert, help="turn a ViT, DeiT or DINOv2 checkpoint into a FocusViT")
    command.add_argument(
        "source", metavar="SOURCE", help="the checkpoint: a folder or a name on the Hub, with weights in safetensors"
    )
    add_new_folder(command, "target")
    command.add_argument(
        "--num-superpixels",
        type=superpixels,
        metavar="K",
        help="how many superpixels: a number, or ROWSxCOLUMNS (default: one for each 2 x 2 patches)",
    )
    command.add_argument(
        "--patch-pooling",
        choices=("superpixel", "grid", "none"),
        help="what patches are pooled over (default: superpixel); none keeps every patch, and the source's answers",
    )
    command.add_argument(
        "--latent-layers",
        type=count,
        metavar="N",
        help="turn the last N layers into latent-attention layers (default: none)",
    )
    command.add_argument(
        "--num-latents", type=count, metavar="M", help="how many latents those layers have (default: 16)"
    )
    command.add_argument(
        "--keep-ratio",
        type=float,
        nargs="+",
        metavar="RATIO",
        help="the share of the tokens that stays at each sparsification layer, or for each of them the share of all "
        "tokens (default: 0.7)",
    )
    command.add_argument(
        "--sparsification-layers",
        type=int,
        nargs="+",
        metavar="LAYER",
        help="layers, counted from 0, before which tokens leave (default: none; with --keep-ratio three of them, at a "
        "quarter, a half and three quarters of the way)",
    )
    command.add_argument(
        "--sparsification-mode",
        choices=MODES,
        help="drop the least relevant tokens, fuse them into one, or merge the most alike (default: drop)",
    )
    command.add_argument(
        "--sparsification-relevance",
        choices=RELEVANCES,
        help="which tokens stay: those with the most attention (default), those that a new predictor chooses, which "
        "has to be trained, or some at random",
    )
    command.add_argument(
        "--select-layers",
        type=count,
        metavar="N",
        help="turn the last N layers into layers of select-and-pack attention, whose gates have to be trained "
        "(default: none; with another --select option a quarter of the layers)",
    )
    command.add_argument(
        "--select-budget",
        type=float,
        metavar="SHARE",
        help="the share of the tokens that those layers select; with --select-supervision budget the share of their "
        "FLOPs that they spend on the average",
    )
    command.add_argument(
        "--select-threshold", type=float, metavar="P", help="the sigmoid of a score from which on a token is selected"
    )
    command.add_argument(
        "--select-supervision", choices=SUPERVISIONS, help="what the gates learn from where there are no masks"
    )
    command.add_argument(
        "--pooling-layer",
        type=count,
        metavar="LAYER",
        help="pool the patches before this layer, counted from 0, instead of before the encoder",
    )


def superpixels(text: str) -> int | tuple[int, int]:
    rows, cross, columns = text.lower().partition("x")
    return (count(rows), count(columns)) if cross else count(text)


def convert(arguments: argparse.Namespace) -> None:
    """
    Turns a ViT, DeiT or DINOv2 checkpoint into a FocusViT with the same weights, and prints which weights were taken
    over and which are new.
    """
    names = ("num_superpixels", "patch_pooling", "num_latents", "pooling_layer", *_SPARSIFICATION, *_SELECTION)
    given: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    overrides = {name: value for name, value in given.items() if value is not None}
    overrides |= layer_types(arguments) | sparsification(arguments)
    level = conversion_logger.level
    # The report is printed, and the warning of what was not kept would say it twice.
    conversion_logger.setLevel(logging.ERROR)
    try:
        report = convert_to_folder(arguments.source, arguments.target, **overrides)
    finally:
        conversion_logger.setLevel(level)
    print(printable_lines(f"{report}\n\nwrote {arguments.target}"))


def layer_types(arguments: argparse.Namespace) -> dict[str, Any]:
    """The layers of another kind than the source's, the last ones; none where nobody asks for them."""
    latent, selecting = arguments.latent_layers, arguments.select_layers
    selects = selecting is not None or any(getattr(arguments, name) is not None for name in _SELECTION)
    if latent is None and not selects:
        return {}
    if latent is not None and selects:
        raise ValueError("expected --latent-layers or --select options, got both; Python takes any layer_types")
    layers = load_source_config(arguments.source).num_hidden_layers
    if selects:
        kind, option, last = SELECT_PACK, "--select-layers", selecting or max(1, layers // 4)
    else:
        kind, option, last = "latent_attention", "--latent-layers", latent
    if last > layers:
        raise ValueError(f"expected {option} up to the source's {layers}, got {last}")
    return {"layer_types": ["full_attention"] * (layers - last) + [kind] * last}


def sparsification(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of the configuration that let tokens leave between the layers; none where nobody asks for it."""
    layers, ratio = arguments.sparsification_layers, arguments.keep_ratio
    asked = ratio is not None or any(getattr(arguments, name) is not None for name in _SPARSIFICATION)
    if layers is None and asked:
        depth = load_source_config(arguments.source).num_hidden_layers
        layers = sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3)})
    if layers is None:
        return {}
    if ratio is None:
        return {"sparsification_layers": layers}
    return {"sparsification_layers": layers, "keep_ratio": ratio[0] if len(ratio) == 1 else ratio}
