"""A stand-in for the ImageNet teacher, a data set of noise, and recipes of pupils that train in a second."""

import torch
from torch import nn

from experiments.micro.data import Examples


CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "embedding_type": "patch",
    "patch_pooling": "none",
    "position_embedding_type": "learned",
    "layer_types": ["full_attention"] * 2,
}
RECIPE = {"config": CONFIG, "stages": [[112, 1], [224, 1]], "batch_size": 6, "warmup_epochs": 0.5, "views": 1}
RECIPE |= {"guided_layer": 1}
MIXED = {**RECIPE, "stages": [[112, 2]], "views": 0, "mix": 0.5, "teacher_size": 96, "guidance": 0}
POOLED = {**CONFIG, "embedding_type": "conv", "patch_pooling": "superpixel", "position_embedding_type": "dynamic"}
POOLED |= {"num_superpixels": 9}
PEER = {**MIXED, "config": {}, "peer": "MobileNetV2"}


class StandIn(nn.Module):
    """Brightness of 7 × 7 places in 96 channels, and 1,000 logits of their means."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("channels", torch.randn(3, 96, generator=generator))
        self.register_buffer("weight", torch.randn(96, 1000, generator=generator) / 96)

    def feature_map(self, images):
        return torch.einsum("bchw,cd->bdhw", nn.functional.adaptive_avg_pool2d(images, 7), self.channels)

    def classify(self, maps):
        return maps.mean(dim=(2, 3)) @ self.weight

    def forward(self, images):
        return self.classify(self.feature_map(images))


def examples(folder, split, size):
    generator = torch.Generator().manual_seed(len(split))
    count = 15 if split == "train" else 7
    return Examples(
        torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator),
        torch.arange(count) % 10,
    )
