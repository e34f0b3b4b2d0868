"""`focusvit export`: a checkpoint as one graph, for ONNX Runtime or as a `torch.export` program."""

import argparse

from ..export.folder import EXPORT_FILES, QUANTIZATIONS, export_model
from ..export.graph import GRAPH_INPUTS, ExportedModel
from ..hub.checkpoints import DEFAULT_CHECKPOINT, load_with_superpixels
from ..utils.files import read_json
from .arguments import add_new_folder, add_num_superpixels, count, new_command


def add_export_command(commands: argparse._SubParsersAction) -> None:
    """Adds `focusvit export`."""
    command = new_command(commands, export, help="export a checkpoint to ONNX or to a torch.export program")
    command.add_argument(
        "checkpoint", metavar="FOLDER_OR_NAME", help="a FocusViT checkpoint: a folder or a name on the Hub"
    )
    add_new_folder(command, "out")
    command.add_argument(
        "--format",
        choices=EXPORT_FILES,
        default="onnx",
        help="the format (default: onnx, which needs pip install focusvit-hf[onnx])",
    )
    command.add_argument(
        "--input",
        choices=GRAPH_INPUTS,
        default="images",
        help="what the graph takes: images in uint8 or normalised pixel_values, for both of which it computes the "
        "superpixels, or pixel_values with their superpixel_ids (default: images)",
    )
    add_num_superpixels(command)
    command.add_argument("--quantize", choices=QUANTIZATIONS, help="store weights in 8 bits (onnx only)")
    command.add_argument(
        "--batch",
        type=_batch,
        metavar="N|dynamic",
        help="how many images the graph takes at once (default: dynamic, any number)",
    )


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else count(text)


def export(arguments: argparse.Namespace) -> None:
    """Writes a folder that holds a checkpoint as one graph, its labels, and how images are prepared."""
    model: ExportedModel
    model, image_processor = load_with_superpixels(
        arguments.checkpoint, DEFAULT_CHECKPOINT, None, arguments.num_superpixels
    )
    # Half precision is a way to store weights; a graph computes in float32.
    model.float()
    try:
        folder = export_model(
            model,
            image_processor,
            arguments.out,
            export_format=arguments.format,
            graph_input=arguments.input,
            quantization=arguments.quantize,
            batch_size=arguments.batch,
        )
    except (ImportError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    description = read_json(folder / "export.json")
    for part in ("inputs", "outputs"):
        for name, tensor in description[part].items():
            print(f"{part.removesuffix('s'):<6}  {name} {tensor['dtype']} {tensor['shape']}")
    size = (folder / description["file"]).stat().st_size
    print(f"wrote {folder / description['file']} ({size:,} bytes), its settings and labels beside it")
