"""Accuracy on CIFAR-10 that the shipped checkpoint keeps in 8 bits by torchao, which `make test` keeps apart."""

import pytest
import torch
from torch import nn
from transformers import TorchAoConfig

from blobs import NANO_CHECKPOINT
from focusvit_hf import FocusViTForImageClassification
from focusvit_hf.hub.checkpoints import load_checkpoint
from quantization import UNQUANTIZED_SIZE, check_accuracy, checkpoint, reference


torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")

__all__ = ["checkpoint", "reference"]


@pytest.mark.parametrize("scheme", ["Int8DynamicActivationInt8WeightConfig", "Int8WeightOnlyConfig"])
def test_torchao_in_8_bits(reference, scheme):
    model, _ = load_checkpoint(str(NANO_CHECKPOINT))
    torchao.quantize_(model, getattr(torchao, scheme)())
    assert type(model.focusvit.layers[0].attention.q_proj.weight) is not nn.Parameter
    with torch.no_grad():
        check_accuracy(model(**reference[2]).logits, reference)
        pixels = reference[2]["pixel_values"][:8]
        assert torch.equal(model.focusvit.compute_superpixel_ids(pixels), reference[2]["superpixel_ids"][:8])


def test_torchao_through_from_pretrained_saves_and_loads(reference, tmp_path):
    options = {"quantization_config": TorchAoConfig(torchao.Int8WeightOnlyConfig())}
    model = FocusViTForImageClassification.from_pretrained(NANO_CHECKPOINT, **options).eval()
    model.save_pretrained(tmp_path)
    again = FocusViTForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(**reference[2]).logits
        check_accuracy(expected, reference)
        assert torch.equal(again(**reference[2]).logits, expected)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.4 * UNQUANTIZED_SIZE
