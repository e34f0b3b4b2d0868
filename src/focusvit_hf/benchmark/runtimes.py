"""Any classifier of transformers in ONNX Runtime, from 8-bit images to logits, to be measured beside FocusViT."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..export.onnx import ONNX_OPSET


class ImagesToLogits(nn.Module):
    """A classifier behind the normalisation to -1..1: `(batch_size, 3, side, side)` in uint8 to logits."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.float() / 127.5 - 1).logits


def write_graph(model: PreTrainedModel, file: Path, resolution: int) -> None:
    """[`ImagesToLogits`] as ONNX by torch's exporter alone, for any number of images of `resolution` pixels."""
    images = torch.zeros(2, 3, resolution, resolution, dtype=torch.uint8)
    shapes = {"images": {0: "batch"}}
    file.parent.mkdir(parents=True, exist_ok=True)
    program: Any = torch.onnx.export(
        ImagesToLogits(model).eval(),
        (),
        kwargs={"images": images},
        dynamo=True,
        dynamic_shapes=shapes,
        verbose=False,
        opset_version=ONNX_OPSET,
    )
    program.save(file)
