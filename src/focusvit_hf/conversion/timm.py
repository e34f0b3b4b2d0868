"""State dicts of timm's `VisionTransformer`, their settings read from the shapes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .sources import POSITION_TABLE, Source, one_side, renamed


# See [`renamed`].
_NAMES = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": POSITION_TABLE,
    "patch_embed.proj": "embeddings.units.projection",
    "blocks.*.norm1": "layers.*.layernorm_before",
    # Queries, keys and values in one, cut apart below.
    "blocks.*.attn.qkv": "layers.*.attention.qkv",
    "blocks.*.attn.proj": "layers.*.attention.o_proj",
    "blocks.*.ls1.gamma": "layers.*.attention_scale.factor",
    "blocks.*.norm2": "layers.*.layernorm_after",
    "blocks.*.mlp.fc1": "layers.*.mlp.fc1",
    "blocks.*.mlp.fc2": "layers.*.mlp.fc2",
    "blocks.*.ls2.gamma": "layers.*.mlp_scale.factor",
    "norm": "layernorm",
    "head": "classifier",
    "head_dist": "distillation_classifier",
}
# Of SwiGLU, whose gate and whose other half are apart here or packed in fc1, which is cut below.
_GATED_NAMES = {
    "blocks.*.mlp.fc1_g": "layers.*.mlp.gate_proj",
    "blocks.*.mlp.fc1_x": "layers.*.mlp.up_proj",
    "blocks.*.mlp.fc2": "layers.*.mlp.down_proj",
}
_NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.weight")


def source_of_timm(state_dict: Mapping[str, torch.Tensor], replaced: Mapping[str, Any]) -> Source:
    """
    Reads a state dict with the names of timm's `VisionTransformer`: ViT, DeiT, DINOv2, with registers or SwiGLU.

    Sizes follow from the shapes, for square images. The number of heads does not: it has to be given. The activation
    is GELU and the epsilon of the layer norms 1e-6, as timm has them, unless given.

    Args:
        state_dict (mapping from `str` to `torch.Tensor`): The tensors; not changed.
        replaced (mapping): Settings that the caller gives.

    Raises:
        ValueError: when it is no such state dict, or without `num_attention_heads`.
    """
    absent = [name for name in _NEEDED if name not in state_dict]
    if absent:
        raise ValueError(
            "Expected a model, a name, or a state dict of timm's VisionTransformer with a class token, got "
            f"{len(state_dict)} entries without {', '.join(absent)}."
        )
    if "num_attention_heads" not in replaced:
        raise ValueError("Expected num_attention_heads beside a state dict, in which it does not show, got none.")
    width = state_dict["blocks.0.mlp.fc2.weight"].shape[1]
    packed = "blocks.0.mlp.fc1.weight" in state_dict and len(state_dict["blocks.0.mlp.fc1.weight"]) == 2 * width
    gated = packed or "blocks.0.mlp.fc1_g.weight" in state_dict
    tensors, origins = renamed(state_dict, {**_NAMES, **_GATED_NAMES} if gated else _NAMES)
    device = state_dict["cls_token"].device
    source = Source("timm's VisionTransformer", {}, "classifier.weight" in tensors, tensors, origins, device)
    _split(source, ".attention.qkv.", (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj."))
    if packed:
        _split(source, ".mlp.fc1.", (".mlp.gate_proj.", ".mlp.up_proj."))
    projection = tensors["embeddings.units.projection.weight"]
    registers = tensors.get("embeddings.register_tokens")
    layers = {name.split(".")[1] for name in tensors if name.startswith("layers.")}
    source.settings |= {
        "num_channels": projection.shape[1],
        "hidden_size": projection.shape[0],
        "patch_size": one_side("patch_size", projection.shape[2:]),
        "num_hidden_layers": len(layers),
        "num_attention_heads": replaced["num_attention_heads"],
        "intermediate_size": width,
        "mlp_type": "swiglu" if gated else "mlp",
        "hidden_act": replaced.get("hidden_act", "gelu"),
        "layer_norm_eps": replaced.get("layer_norm_eps", 1e-6),
        "qkv_bias": "layers.0.attention.q_proj.bias" in tensors,
        "layer_scale": 1.0 if "layers.0.attention_scale.factor" in tensors else None,
        "use_distillation_token": "embeddings.distillation_token" in tensors,
        "num_register_tokens": 0 if registers is None else registers.shape[1],
        "position_antialias": True,
        "classifier_pooling": "cls_dist_mean" if "distillation_classifier.weight" in tensors else "cls",
        "add_pooling_layer": False,
    }
    source.settings["image_size"] = source.settings["patch_size"] * _place_table(source)
    if source.classifies:
        source.settings["num_labels"] = len(tensors["classifier.weight"])
    return source


def _split(source: Source, packed: str, parts: Sequence[str]) -> None:
    """Cuts each tensor with `packed` in its name into equal parts, named with `parts` instead."""
    for name in [name for name in source.tensors if packed in name]:
        origin = source.origins.pop(name)
        pieces = source.tensors.pop(name).tensor_split(len(parts))
        for index, (part, piece) in enumerate(zip(parts, pieces, strict=True)):
            new = name.replace(packed, part)
            source.tensors[new], source.origins[new] = piece, origin
            source.derived[new] = f"part {index + 1} of {len(parts)} of {origin}"


def _place_table(source: Source) -> int:
    """Completes the table of positions where it has entries for patches only. Returns the patches on a side."""
    table = source.tensors[POSITION_TABLE]
    prefix = 2 if source.settings["use_distillation_token"] else 1
    # No square is one or two more than another, but for 0 and 1.
    bare = math.isqrt(table.shape[1]) ** 2 == table.shape[1]
    side = math.isqrt(table.shape[1] - (0 if bare else prefix))
    if side**2 + (0 if bare else prefix) != table.shape[1]:
        raise ValueError(
            f"Expected pos_embed with an entry for each patch of a square image, alone or behind {prefix} for the "
            f"class token and its like, got {table.shape[1]} entries."
        )
    if bare:
        empty = table.new_zeros(1, prefix, table.shape[2])
        source.tensors[POSITION_TABLE] = torch.cat((empty, table), dim=1)
        source.derived[POSITION_TABLE] = "pos_embed behind zeros for the class and distillation token"
    return side
