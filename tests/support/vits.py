"""Dense ViTs of Transformers to convert, at full width and two layers, and a plain ViT on timm's names."""

import torch
import transformers
from torch.nn import functional as F


TINY_WIDTH = {"hidden_size": 192, "num_attention_heads": 3}
BASE_WIDTH = {"hidden_size": 768, "num_attention_heads": 12}
# By name: class, options of its configuration.
VITS = {
    "vit-base": ("ViTForImageClassification", {**BASE_WIDTH, "intermediate_size": 3072}),
    "vit-tiny": ("ViTForImageClassification", {**TINY_WIDTH, "intermediate_size": 768}),
    "vit-other": (
        "ViTForImageClassification",
        {
            **TINY_WIDTH,
            "intermediate_size": 100,
            "image_size": (64, 96),
            "patch_size": (8, 8),
            "num_channels": 1,
            "qkv_bias": False,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-3,
            "num_labels": 1,
            "problem_type": "regression",
        },
    ),
    "deit-tiny": ("DeiTForImageClassification", {**TINY_WIDTH, "intermediate_size": 768}),
    "deit-base-distilled": ("DeiTForImageClassificationWithTeacher", {**BASE_WIDTH, "intermediate_size": 3072}),
    "dinov2-base": ("Dinov2ForImageClassification", {**BASE_WIDTH, "image_size": 224, "patch_size": 14}),
    "dinov2-tiny": ("Dinov2ForImageClassification", {**TINY_WIDTH, "image_size": 518, "patch_size": 14}),
    "dinov2-swiglu": (
        "Dinov2ForImageClassification",
        {**TINY_WIDTH, "image_size": 140, "patch_size": 14, "use_swiglu_ffn": True, "layerscale_value": 0.5},
    ),
    "dinov2-registers": (
        "Dinov2WithRegistersForImageClassification",
        {**TINY_WIDTH, "image_size": 518, "patch_size": 14},
    ),
}
BACKBONES = {
    "vit-backbone": ("ViTModel", {**TINY_WIDTH, "intermediate_size": 768}),
    "deit-backbone": ("DeiTModel", {**TINY_WIDTH, "intermediate_size": 768}),
    "dinov2-backbone": ("Dinov2Model", {**TINY_WIDTH, "image_size": 140}),
    "dinov2-registers-backbone": ("Dinov2WithRegistersModel", {**TINY_WIDTH, "image_size": 140, "patch_size": 14}),
}


def make_vit(name, perturbed=True, num_hidden_layers=2, model_options=None, **options):
    """
    One of [`VITS`] or [`BACKBONES`] in evaluation mode, always the same. New weights hold zeros, which hide errors:
    perturbed ones do not.
    """
    kind, defaults = {**VITS, **BACKBONES}[name] if isinstance(name, str) else name
    model_class = getattr(transformers, kind)
    torch.manual_seed(0)
    settings = {**({} if "id2label" in options else {"num_labels": 7}), **defaults, **options}
    settings["num_hidden_layers"] = num_hidden_layers
    model = model_class(model_class.config_class(**settings), **(model_options or {})).eval()
    if perturbed:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def timm_weights(
    width=48,
    layers=2,
    labels=5,
    side=4,
    bare_table=False,
    distilled=False,
    registers=0,
    scale=False,
    gate=None,
):
    """Random tensors with the names and shapes of timm's `VisionTransformer`."""
    torch.manual_seed(0)
    inner = 2 * width
    prefix = 0 if bare_table else 1 + distilled
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, prefix + side**2, width),
        "patch_embed.proj.weight": (width, 3, 8, 8),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    shapes |= {"head.weight": (labels, width), "head.bias": (labels,)} if labels else {}
    shapes |= {"dist_token": (1, 1, width)} if distilled else {}
    shapes |= {"head_dist.weight": (labels, width), "head_dist.bias": (labels,)} if distilled and labels else {}
    shapes |= {"reg_token": (1, registers, width)} if registers else {}
    first = {None: {"fc1": inner}, "packed": {"fc1": 2 * inner}, "split": {"fc1_g": inner, "fc1_x": inner}}[gate]
    for layer in range(layers):
        linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc2": (width, inner)}
        linear |= {f"mlp.{name}": (rows, width) for name, rows in first.items()}
        for name, shape in linear.items():
            shapes |= {f"blocks.{layer}.{name}.weight": shape, f"blocks.{layer}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"blocks.{layer}.{name}"] = (width,)
        shapes |= {f"blocks.{layer}.{name}.gamma": (width,) for name in ("ls1", "ls2")} if scale else {}
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


def timm_logits(weights, pixels, heads):
    """What timm's `VisionTransformer` computes, written plainly; without a head the final state of the class token."""

    def linear(states, name):
        return F.linear(states, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(states, name):
        return F.layer_norm(states, states.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    patch = weights["patch_embed.proj.weight"].shape[-1]
    patches = F.conv2d(pixels, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=patch)
    states = patches.flatten(2).transpose(1, 2)
    tokens = [weights[name] for name in ("cls_token", "dist_token") if name in weights]
    bare = weights["pos_embed"].shape[1] == states.shape[1]
    states = states + weights["pos_embed"] if bare else states
    states = torch.cat([*(token.expand(len(states), -1, -1) for token in tokens), states], dim=1)
    states = states if bare else states + weights["pos_embed"]
    if "reg_token" in weights:
        registers = weights["reg_token"].expand(len(states), -1, -1)
        states = torch.cat((states[:, : len(tokens)], registers, states[:, len(tokens) :]), dim=1)
    layer = 0
    while f"blocks.{layer}.norm1.weight" in weights:
        block = f"blocks.{layer}"
        query, key, value = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in linear(norm(states, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        )
        attention = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(dim=-1)
        attended = linear((attention @ value).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        states = states + attended * weights.get(f"{block}.ls1.gamma", 1)
        inputs = norm(states, f"{block}.norm2")
        if f"{block}.mlp.fc1_g.weight" in weights:
            hidden = F.silu(linear(inputs, f"{block}.mlp.fc1_g")) * linear(inputs, f"{block}.mlp.fc1_x")
        else:
            hidden = linear(inputs, f"{block}.mlp.fc1")
            if hidden.shape[-1] == 2 * weights[f"{block}.mlp.fc2.weight"].shape[1]:
                gate, up = hidden.chunk(2, dim=-1)
                hidden = F.silu(gate) * up
            else:
                hidden = F.gelu(hidden)
        states = states + linear(hidden, f"{block}.mlp.fc2") * weights.get(f"{block}.ls2.gamma", 1)
        layer += 1
    states = norm(states, "norm")
    if "head.weight" not in weights:
        return states[:, 0]
    scores = linear(states[:, 0], "head")
    return (scores + linear(states[:, 1], "head_dist")) / 2 if "head_dist.weight" in weights else scores
