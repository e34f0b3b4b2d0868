"""Writes a graph as ONNX, quantises it, and runs it once to see that it answers as the model does."""

from pathlib import Path
from typing import Any

import torch


# Where the exporter says which modules of the model a node comes from.
_SCOPE = "pkg.torch.onnx.class_hierarchy"
# The first with attention as one operation, for which ONNX Runtime has a kernel. Older ones need a dozen nodes, of
# which the graph of a single image is made slower by a sixth.
ONNX_OPSET = 23
# What is quantised: linear layers inside the encoder's layers.
_QUANTIZED_LAYER, _QUANTIZED_MODULE = "FocusViTLayer", "torch.nn.modules.linear.Linear"


def write_onnx(
    program: torch.export.ExportedProgram,
    outputs: list[str],
    file: Path,
    quantization: str | None,
    batch_size: int | None,
) -> None:
    """
    Writes a program as ONNX.

    Args:
        program (`torch.export.ExportedProgram`): What is written.
        outputs (`list[str]`): Names of its outputs, in their order.
        file (`Path`): Where to.
        quantization (`str`, *optional*): `"int8"` for the linear layers of the encoder.
        batch_size (`int`, *optional*): The number of images it takes; by default any.

    Raises:
        RuntimeError: when it is to be quantised and holds no such layer.
    """
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    exported: Any = torch.onnx.export(
        program, (), dynamo=True, verbose=False, output_names=outputs, opset_version=ONNX_OPSET
    )
    model = exported.model_proto
    linear = []
    for node in model.graph.node:
        scope = next((entry.value for entry in node.metadata_props if entry.key == _SCOPE), "")
        if node.op_type in ("MatMul", "Gemm") and _QUANTIZED_LAYER in scope and _QUANTIZED_MODULE in scope:
            linear.append(node.name)
        del node.metadata_props[:]
    # The quantiser turns weights over and would find their old shapes here.
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        if batch_size is None:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    if quantization is None:
        onnx.save(model, file)
        return
    # An empty list would stand for all nodes, those of the superpixels among them.
    if not linear:
        raise RuntimeError("Expected linear layers of the encoder in the graph, found none to quantise.")
    quantize_dynamic(model, file, per_channel=True, reduce_range=True, nodes_to_quantize=linear)


def run_onnx(file: Path, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs of a graph by name, computed on the CPU."""
    from onnxruntime import InferenceSession

    session = InferenceSession(file, providers=["CPUExecutionProvider"])
    values = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}
