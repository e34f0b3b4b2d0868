"""Writes a classifier or segmenter as a folder with one graph, which has been seen to answer as the model does."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..configuration_focusvit import FocusViTConfig
from ..image_processing_focusvit import FocusViTImageProcessor
from ..utils.files import new_folder, write_json
from .graph import GRAPH_INPUTS, TRIED_BATCH, ExportedModel, ImageGraph, example_inputs, traced_program
from .onnx import run_onnx, write_onnx


EXPORT_FILES = {"onnx": "model.onnx", "torch-export": "model.pt2"}
_PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "torch-export": ()}
QUANTIZATIONS = ("int8",)
# Of logits, relative to the largest where that is above 1.
_TOLERANCE = 1e-4
# Of a label map: where two classes are as likely, a rounding decides.
_SAME_PIXELS = 0.995


def export_model(
    model: ExportedModel,
    image_processor: FocusViTImageProcessor,
    folder: str | Path,
    *,
    export_format: str = "onnx",
    graph_input: str = "images",
    quantization: str | None = None,
    batch_size: int | None = None,
) -> Path:
    """
    Writes a classifier or segmenter as one graph, with its configuration (labels), its processor's settings and
    `export.json` (inputs, outputs, versions). The graph is run before the folder appears: its maps must equal the
    model's exactly and, unless it is quantised, its logits to 1e-4. A segmenter's graph also gives `label_map`
    `(batch_size, height, width)`, the class of each pixel of what the graph takes. The folder appears whole or not at
    all.

    Args:
        model ([`FocusViTForImageClassification`] or [`FocusViTForSemanticSegmentation`]):
            In float32 and on the CPU; it is set to evaluation mode.
        image_processor ([`FocusViTImageProcessor`]): The one that prepares the model's images.
        folder (`str` or `Path`): A new folder, or an empty one.
        export_format (`str`, *optional*, defaults to `"onnx"`):
            `"onnx"`: `model.onnx`; needs the extra `focusvit-hf[onnx]`. `"torch-export"`: `model.pt2`, for
            `torch.export.load`.
        graph_input (`str`, *optional*, defaults to `"images"`):
            What the graph takes, at the size that the processor makes images. `"images"`: sRGB images
            `(batch_size, 3, height, width)` in uint8, rescaled, normalised and cut into superpixels in the graph.
            `"pixel_values"`: normalised float32, cut into superpixels in the graph. `"superpixel_ids"`:
            `pixel_values`, and the map beside them as the processor gives it.
        quantization (`str`, *optional*):
            `"int8"`: weights of the encoder's linear layers in 8 bits (7 used, for processors without VNNI), their
            inputs quantised as they come, over the batch. For ONNX; superpixels stay exact.
        batch_size (`int`, *optional*): The only number of images a graph shall take; any number by default.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: on options that are unknown or do not fit each other, the model or the processor; on a folder that
            holds something.
        ImportError: when a package for ONNX is missing.
        RuntimeError: when the graph does not do what the model does.

    Example:

    ```python
    >>> from focusvit_hf.hub.checkpoints import load_checkpoint
    >>> from focusvit_hf.export import export_model

    >>> export_model(*load_checkpoint("model_cards/focusvit-nano-cifar10"), "exported")
    ```"""
    _check_options(model.config, export_format, graph_input, quantization, batch_size)
    _check_model(model)
    image_processor.validate_against_config(model.config)
    with new_folder(Path(folder)) as staging, torch.no_grad(), _quiet():
        images_graph = ImageGraph(model, image_processor).eval()
        graph = images_graph if graph_input == "images" else images_graph.inner
        inputs = example_inputs(images_graph, image_processor, graph_input, batch_size or TRIED_BATCH)
        # Before anything is traced, since the model says more clearly what does not fit.
        expected = graph(**inputs)
        program = traced_program(graph, inputs, batch_size)
        file = staging / EXPORT_FILES[export_format]
        if export_format == "onnx":
            write_onnx(program, list(expected), file, quantization, batch_size)
            found = run_onnx(file, inputs)
        else:
            torch.export.save(program, file)
            found = torch.export.load(file).module()(**inputs)
        difference = _compare(expected, found, quantization)
        model.config.save_pretrained(staging)
        image_processor.save_pretrained(staging)
        packages = ("torch", "transformers", *_PACKAGES[export_format])
        description = {
            "file": file.name,
            "inputs": _signature(inputs, batch_size),
            "outputs": _signature(expected, batch_size),
            "quantization": quantization,
            "largest_difference_of_logits": difference,
            "versions": {package: version(package) for package in packages},
        }
        write_json(staging / "export.json", description)
    return Path(folder)


def _check_options(
    config: FocusViTConfig, export_format: str, graph_input: str, quantization: str | None, batch_size: int | None
) -> None:
    if export_format not in EXPORT_FILES:
        raise ValueError(f"Expected export_format to be one of {tuple(EXPORT_FILES)}, got {export_format!r}.")
    if graph_input not in GRAPH_INPUTS:
        raise ValueError(f"Expected graph_input to be one of {GRAPH_INPUTS}, got {graph_input!r}.")
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise ValueError(f"Expected quantization to be one of {QUANTIZATIONS} or None, got {quantization!r}.")
    if quantization is not None and export_format != "onnx":
        raise ValueError(
            f"Expected export_format='onnx' with quantization={quantization!r}, got {export_format!r}; a model in "
            "torch is quantised by torchao."
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"Expected batch_size >= 1, or None for any, got {batch_size}.")
    if graph_input == "images" and config.num_channels != 3:
        raise ValueError(
            f"Expected a model of three channels with graph_input='images', got num_channels={config.num_channels}."
        )
    if graph_input == "superpixel_ids" and config.patch_pooling != "superpixel":
        raise ValueError(
            f"Expected a model that takes superpixels with graph_input='superpixel_ids', got "
            f"patch_pooling={config.patch_pooling!r}."
        )
    in_graph = graph_input != "superpixel_ids" and config.patch_pooling == "superpixel"
    if in_graph and config.superpixel_method != "torch":
        raise ValueError(
            f"Expected superpixel_method='torch' with superpixels in the graph, got {config.superpixel_method!r}; "
            "graph_input='superpixel_ids' takes any map."
        )
    missing = [name for name in _PACKAGES[export_format] if find_spec(name) is None]
    if missing:
        raise ImportError(f"Export to ONNX needs {', '.join(missing)}: pip install focusvit-hf[onnx]")


def _check_model(model: ExportedModel) -> None:
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise ValueError(
            f"Expected a model in float32 on the CPU, got {model.dtype} on {model.device}: model.float().cpu()."
        )
    attention = model.config._attn_implementation
    if attention not in ("eager", "sdpa"):
        raise ValueError(f"Expected attn_implementation 'eager' or 'sdpa', got {attention!r}.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of packages that nothing here needs and of what they deprecate themselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _compare(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], quantization: str | None) -> float:
    """The largest difference of the logits; RuntimeError where the graph does not do what the model does."""
    if "superpixel_ids" in expected and not torch.equal(expected["superpixel_ids"], found["superpixel_ids"]):
        raise RuntimeError("Expected the superpixels of the model from the exported graph, got others.")
    logits = expected["logits"]
    difference = (found["logits"] - logits).abs().max().item()
    limit = _TOLERANCE * max(1.0, logits.abs().max().item())
    if quantization is None and not difference <= limit:
        raise RuntimeError(
            f"Expected the logits of the model to {limit:.1e} from the exported graph, got {difference:.1e}."
        )
    if quantization is None and "label_map" in expected:
        same = (expected["label_map"] == found["label_map"]).double().mean().item()
        if not same >= _SAME_PIXELS:
            raise RuntimeError(
                f"Expected the class of at least {_SAME_PIXELS:.2%} of the pixels to be the model's, got {same:.2%}."
            )
    return difference


def _signature(tensors: dict[str, torch.Tensor], batch_size: int | None) -> dict[str, Any]:
    """Type and shape of each tensor."""
    return {
        name: {
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": [batch_size or "batch", *value.shape[1:]],
        }
        for name, value in tensors.items()
    }
