"""What a user of Transformers would pick for a small segmenter, untrained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)


SEGFORMER, MOBILEVIT, MOBILENET = "SegFormer-B0", "MobileViT-XXS + DeepLabV3", "MobileNetV2 + DeepLabV3+"
PEERS = (SEGFORMER, MOBILEVIT, MOBILENET)
# apple/deeplabv3-mobilevit-xx-small.
_XXS: dict[str, Any] = {
    "hidden_sizes": [64, 80, 96],
    "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320],
    "expand_ratio": 2.0,
}


def build_peer(name: str, id2label: Mapping[int, str]) -> nn.Module:
    """
    Args:
        name (`str`): Of [`PEERS`].
        id2label (mapping): The classes.

    The encoders of both DeepLab stride by 32, as Transformers' configurations have it. 16 is finer, and slower. The
    weights have the channels last, by which convolutions are faster.

    Raises:
        ValueError: If there is no such network.
    """
    labels: dict[str, Any] = {"id2label": dict(id2label)}
    peer: Any
    if name == SEGFORMER:
        peer = SegformerForSemanticSegmentation(SegformerConfig(**labels))
    elif name == MOBILEVIT:
        peer = MobileViTForSemanticSegmentation(MobileViTConfig(**_XXS, **labels))
    elif name == MOBILENET:
        peer = MobileNetV2ForSemanticSegmentation(MobileNetV2Config(**labels))
    else:
        raise ValueError(f"Expected one of {PEERS}, got {name!r}.")
    return peer.to(memory_format=torch.channels_last)


@torch.no_grad()
def settle_batch_norms(model: nn.Module, pixels: torch.Tensor) -> nn.Module:
    """
    Gives the batch norms of an untrained network the statistics of images, and returns it ready to be timed.

    Without them untrained weights make activations smaller layer by layer, in MobileViT down to denormal numbers, at
    which processors are several times as slow. A trained network has none.

    Args:
        model (`nn.Module`): With or without batch norms.
        pixels (`torch.FloatTensor` of shape `(1, 3, height, width)`): An image; its mirror image goes along.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(torch.cat([pixels, pixels.flip(-1)]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
