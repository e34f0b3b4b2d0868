"""What a converted model costs beside its source: FLOPs of one image."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..configuration_focusvit import FocusViTConfig
from ..modeling_focusvit import FocusViTForImageClassification


def flops_of_an_image(config: FocusViTConfig) -> int:
    """
    FLOPs of one image of the configuration's size, from pixels and a map of superpixels to logits: matrix products and
    convolutions on a CPU, a multiplication and an addition counting as two. Where layers select by a threshold, as
    many tokens count as `select_budget` says, or all of them without one.
    """
    # Computing superpixels costs no matrix products.
    changes: dict[str, Any] = {"patch_pooling": _without_map(config), "attn_implementation": "eager"}
    if config.select_budget is not None:
        changes |= {"select_threshold": None, "select_supervision": None}
    fed = FocusViTConfig.from_dict(config.to_dict(), **changes)
    with torch.device("meta"):
        model = FocusViTForImageClassification(fed).eval().requires_grad_(False)
    # On no device but a CPU the sums over regions are products with a one-hot matrix, which nobody pays for here.
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.zero_()
    pixel_values = torch.zeros(1, config.num_channels, *config.image_height_and_width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixel_values)
    return counter.get_total_flops()


def _without_map(config: FocusViTConfig) -> str:
    """Tiles of a grid cost what as many superpixels cost."""
    return "grid" if config.patch_pooling == "superpixel" else config.patch_pooling


def cost_note(config: FocusViTConfig) -> str:
    """One line on the FLOPs of a converted model beside those of its source, for a report."""
    dense = FocusViTConfig.from_dict(
        config.to_dict(),
        patch_pooling="none",
        pooling_layer=0,
        sparsification_layers=None,
        keep_ratio=1.0,
        layer_types=["full_attention"] * config.num_hidden_layers,
        select_threshold=None,
        select_budget=None,
        select_supervision=None,
    )
    before, after = flops_of_an_image(dense), flops_of_an_image(config)
    if before == after:
        return f"cost: {after / 1e9:.2f} GFLOPs for an image, as the source"
    return (
        f"cost: {after / 1e9:.2f} GFLOPs for an image, {abs(1 - after / before):.0%} "
        f"{'less' if after < before else 'more'} than the source's {before / 1e9:.2f}"
    )
