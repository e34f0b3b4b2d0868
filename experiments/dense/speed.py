"""
How fast segmenters are on this machine, from the tensor of an image to its label map, beside those of Transformers.

    python -m experiments.dense.speed
    python -m experiments.dense.speed --onnx graphs

Untrained networks, float32, SDPA where there is any, eager for all: focusvit-tiny with latent and with full layers,
dense regular grids behind the same stem, SegFormer-B0, MobileViT-XXS with DeepLabV3 and MobileNetV2 with DeepLabV3+.
Everyone sees the photograph of `focusvit demo`, since the superpixels and the borders of noise are none of images.
FocusViT computes its superpixels inside the timed region. Everyone's label map has the size of the image; ours comes
from the image processor, theirs from an interpolation of all classes, as their own processors do it. What ours costs
grows with the share of the cells that lie at a border, which each row states.
Two sizes, 224 x 224 with 2 classes and 352 x 480 with 11, each with 1 and with 8 images; in turn, 9 rounds.
`experiments/tables/dense-speed.json` and `.md` hold what was measured; `--threads N` writes `dense-speed-threads-N`.

With `--onnx` all are graphs in ONNX Runtime, from normalised pixels to label maps that are interpolated from all
classes, ours with the encoder in 8 bits, too (`dense-speed-onnx`). In each round one session after the other is alone
in the process, as in a server of one model. The graphs stay in the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from experiments.dense.peers import PEERS, SEGFORMER, build_peer, settle_batch_norms
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.processes import keep_heap
from experiments.micro.results import write_table
from focusvit_hf import FocusViTConfig, FocusViTForSemanticSegmentation, FocusViTImageProcessor
from focusvit_hf.benchmark.runtimes import one_session_at_a_time, write_module
from focusvit_hf.benchmark.timing import interleaved, summary
from focusvit_hf.cli.demo import SAMPLE
from focusvit_hf.export.folder import EXPORT_FILES, export_model
from focusvit_hf.segmentation_maps import segmentation_maps_of
from focusvit_hf.utils.environment import environment


# (height, width), classes, tokens of FocusViT.
SETTINGS = (((224, 224), 2, (49, 196)), ((352, 480), 11, (49, 196)))
BATCHES = (1, 8)
REPEATS, WARMUP = 9, 2
# How many batches a session gets, by the number of images in each.
RUNS = {1: 20, 8: 4}
# Whom all others are compared with.
REFERENCE = SEGFORMER


def networks(size: tuple[int, int], classes: int, tokens: Sequence[int]) -> dict[str, nn.Module]:
    """By name, in evaluation mode."""
    labels: dict[str, Any] = {"id2label": {index: str(index) for index in range(classes)}}
    tiny: dict[str, Any] = {
        "image_size": list(size),
        "num_hidden_layers": 12,
        "embedding_type": "conv",
        "superpixel_cell_size": 4,
        "segmentation_kernel_size": 3,
        **labels,
    }
    made: dict[str, nn.Module] = {}
    for count in tokens:
        for layers in ("latent", "full"):
            options = {**tiny, "num_superpixels": count, "layer_types": [f"{layers}_attention"] * 12}
            if layers == "latent":
                options["num_latents"] = 16
            made[f"FocusViT, {count} superpixels, {layers}"] = FocusViTForSemanticSegmentation(
                FocusViTConfig(**options)
            )
    grid = {**tiny, "num_superpixels": 400, "patch_pooling": "grid", "segmentation_lay_back": "bilinear"}
    made["the same stem, grid of 400 tiles, full"] = FocusViTForSemanticSegmentation(
        FocusViTConfig(**grid, layer_types=["full_attention"] * 12)
    )
    made |= {name: settle_batch_norms(build_peer(name, labels["id2label"]), photograph(size)) for name in PEERS}
    return {name: model.eval() for name, model in made.items()}


def call_of(model: nn.Module, pixels: torch.Tensor) -> Callable[[], Any]:
    """From the tensor of the images to their label maps."""
    size = (pixels.shape[-2], pixels.shape[-1])

    def ours() -> Any:
        return segmentation_maps_of(model(pixels).logits, [size] * len(pixels))

    def theirs() -> Any:
        logits = model(pixels).logits
        return [F.interpolate(one[None], size, mode="bilinear").argmax(dim=1) for one in logits]

    return ours if isinstance(model, FocusViTForSemanticSegmentation) else theirs


def photograph(size: tuple[int, int]) -> torch.Tensor:
    """The photograph of `focusvit demo` at this height and width, in -1..1: `(1, 3, height, width)`."""
    with Image.open(SAMPLE) as image:
        levels = np.array(image.convert("RGB").resize((size[1], size[0])))
    return torch.from_numpy(levels).permute(2, 0, 1)[None] / 127.5 - 1


def border_share(model: nn.Module, pixels: torch.Tensor) -> float:
    """The share of the cells of the label map whose right or lower neighbour is of another class."""
    classes = model(pixels).logits.argmax(dim=1)
    own, right, below = classes[:, :-1, :-1], classes[:, :-1, 1:], classes[:, 1:, :-1]
    return float(((own != right) | (own != below)).float().mean())


class LabelMaps(nn.Module):
    """A segmenter of Transformers, from normalised pixels to the class of each pixel."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See the class."""
        logits = self.model(pixel_values).logits
        return F.interpolate(logits, pixel_values.shape[-2:], mode="bilinear").argmax(dim=1)


def graph_files(models: Mapping[str, nn.Module], size: tuple[int, int], folder: Path) -> dict[str, Path]:
    """The graphs of all networks by name, written where they are missing."""
    files = {}
    for name, model in models.items():
        place = folder / f"{name} {size[0]} x {size[1]}".replace(" ", "-")
        if isinstance(model, FocusViTForSemanticSegmentation):
            processor = FocusViTImageProcessor.from_model_config(model.config)
            for quantization in (None, "int8"):
                own = place if quantization is None else place.with_name(f"{place.name}-{quantization}")
                if not own.is_dir():
                    export_model(model, processor, own, graph_input="pixel_values", quantization=quantization)
                files[name if quantization is None else f"{name}, {quantization}"] = own / EXPORT_FILES["onnx"]
            continue
        files[name] = place / EXPORT_FILES["onnx"]
        if not files[name].is_file():
            pixels = {"pixel_values": photograph(size).repeat(2, 1, 1, 1)}
            write_module(LabelMaps(model), pixels, files[name], ["label_map"])
    return files


@torch.no_grad()
def measured(repeats: int = REPEATS, warmup: int = WARMUP, graphs: Path | None = None) -> list[dict[str, Any]]:
    """A row for each network, size and number of images; in ONNX Runtime with a folder for graphs."""
    rows = []
    for size, classes, tokens in SETTINGS:
        torch.manual_seed(0)
        models = networks(size, classes, tokens)
        files = {}
        if graphs is not None:
            # A grid of 400 tiles is a control of quality.
            models = {name: model for name, model in models.items() if "400" not in name}
            files = graph_files(models, size, graphs)
        for batch in BATCHES:
            pixels = photograph(size).repeat(batch, 1, 1, 1)
            if files:
                times = one_session_at_a_time(files, pixels.numpy(), "label_map", repeats, RUNS[batch], warmup)
            else:
                times = interleaved({name: call_of(model, pixels) for name, model in models.items()}, repeats, warmup)
            for name, seconds in times.items():
                model = models[name.removesuffix(", int8")]
                parameters = sum(parameter.numel() for parameter in model.parameters())
                about = {"network": name, "size": list(size), "batch_size": batch, "parameters": parameters}
                about["border_share"] = border_share(model, pixels[:1])
                rows.append({**about, **summary(seconds, batch)})
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Milliseconds an image, and how many times as fast as the reference."""
    columns = list(dict.fromkeys((tuple(row["size"]), row["batch_size"]) for row in rows))
    heads = [f"{size[0]} x {size[1]}, {batch} at once" for size, batch in columns]
    lines = [f"| ms an image (times as fast as {REFERENCE}) | parameters | " + " | ".join(heads) + " |"]
    lines.append("|---|---|" + "---|" * len(heads))
    found = {(row["network"], tuple(row["size"]), row["batch_size"]): row["median_ms"] for row in rows}
    for name in dict.fromkeys(row["network"] for row in rows):
        parameters = next(row["parameters"] for row in rows if row["network"] == name)
        cells = []
        for column in columns:
            ratio = found[REFERENCE, *column] / found[name, *column]
            cells.append(f"{found[name, *column]:.1f} ({ratio:.1f})")
        lines.append(f"| {name} | {parameters / 1e6:.1f} M | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = parser_of(__doc__)
    add_options(parser, "tables")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--threads", type=int, help="threads (default: PyTorch's own choice)")
    parser.add_argument("--onnx", type=Path, metavar="FOLDER", help="measure ONNX Runtime, with graphs kept here")
    arguments = parser.parse_args(argv)
    stem = "dense-speed" if arguments.onnx is None else "dense-speed-onnx"
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
        stem += f"-threads-{arguments.threads}"
    rows = measured(arguments.repeats, graphs=arguments.onnx)
    content = {"rows": rows, "environment": environment(torch.device("cpu"), torch.float32)}
    write_table(arguments.tables, stem, content, markdown(rows))


if __name__ == "__main__":
    keep_heap()
    main()
