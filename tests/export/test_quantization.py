"""Accuracy on CIFAR-10 that the shipped checkpoint keeps in 8 bits by ONNX Runtime's dynamic quantisation."""

import onnx
import onnxruntime
import torch
from torch import nn

from focusvit_hf.export import export_model
from quantization import UNQUANTIZED_SIZE, check_accuracy, checkpoint, reference


__all__ = ["checkpoint", "reference"]


def test_onnx_in_8_bits(checkpoint, reference, tmp_path):
    model, processor = checkpoint
    file = export_model(model, processor, tmp_path / "out", quantization="int8") / "model.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    logits, ids = session.run(None, {"images": reference[0].numpy()})
    check_accuracy(torch.from_numpy(logits), reference)
    # Nothing of the superpixels was quantised.
    assert torch.equal(torch.from_numpy(ids), reference[2]["superpixel_ids"])

    # Of weights that are matrices, those of the encoder's layers and no others.
    quantized = [node for node in onnx.load(file).graph.node if node.op_type == "MatMulInteger"]
    linear = [module for module in model.focusvit.layers.modules() if isinstance(module, nn.Linear)]
    assert len(quantized) == len(linear)
    assert file.stat().st_size < 0.4 * UNQUANTIZED_SIZE
