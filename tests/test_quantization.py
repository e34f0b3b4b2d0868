"""Accuracy on CIFAR-10 that the shipped checkpoint keeps in 8 bits: ONNX Runtime's dynamic quantisation, torchao."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from transformers import TorchAoConfig

from focusvit_hf import FocusViTForImageClassification
from focusvit_hf.checkpoints import DEFAULT_CHECKPOINT, load_checkpoint
from focusvit_hf.export import export_model


PICTURES = 1000
# Of 1,000 pictures a handful changes its answer; on all 10,000 the loss is below 0.1 points (benchmarks/export.py).
LARGEST_LOSS = 0.01
SMALLEST_AGREEMENT = 0.98
UNQUANTIZED_SIZE = (DEFAULT_CHECKPOINT / "model.safetensors").stat().st_size


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(str(DEFAULT_CHECKPOINT))


@pytest.fixture(scope="module")
def reference(checkpoint, cifar10_test):
    """Pictures, classes, pixels, maps, and the classes that the model in float32 finds."""
    images, classes = cifar10_test(PICTURES)
    model, processor = checkpoint
    prepared = processor(list(images), return_tensors="pt")
    with torch.no_grad():
        found = model(**prepared).logits.argmax(dim=1)
    return images, classes, prepared, found


def check_accuracy(logits, reference):
    _, classes, _, unquantized = reference
    found = logits.argmax(dim=1)
    assert (found == unquantized).float().mean() >= SMALLEST_AGREEMENT
    accuracies = [(answer == classes).float().mean() for answer in (found, unquantized)]
    assert accuracies[0] >= accuracies[1] - LARGEST_LOSS


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


@pytest.mark.parametrize("scheme", [Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig])
def test_torchao_in_8_bits(reference, scheme):
    model, _ = load_checkpoint(str(DEFAULT_CHECKPOINT))
    quantize_(model, scheme())
    assert type(model.focusvit.layers[0].attention.q_proj.weight) is not nn.Parameter
    with torch.no_grad():
        check_accuracy(model(**reference[2]).logits, reference)
        pixels = reference[2]["pixel_values"][:8]
        assert torch.equal(model.focusvit.compute_superpixel_ids(pixels), reference[2]["superpixel_ids"][:8])


def test_torchao_through_from_pretrained_saves_and_loads(reference, tmp_path):
    options = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    model = FocusViTForImageClassification.from_pretrained(DEFAULT_CHECKPOINT, **options).eval()
    model.save_pretrained(tmp_path)
    again = FocusViTForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(**reference[2]).logits
        check_accuracy(expected, reference)
        assert torch.equal(again(**reference[2]).logits, expected)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.4 * UNQUANTIZED_SIZE
