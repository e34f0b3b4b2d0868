"""What ViT checkpoints of Transformers are made of: their settings, and their tensors under FocusViT's names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
)


MODEL_TYPES = ("vit", "deit", "dinov2", "dinov2_with_registers")
# The class's classifier_pooling; None for a backbone.
MODEL_CLASSES = {
    "ViTModel": None,
    "ViTForImageClassification": "cls",
    "DeiTModel": None,
    "DeiTForImageClassification": "cls",
    "DeiTForImageClassificationWithTeacher": "cls_dist_mean",
    "Dinov2Model": None,
    "Dinov2ForImageClassification": "cls_patch_mean",
    "Dinov2WithRegistersModel": None,
    "Dinov2WithRegistersForImageClassification": "cls_patch_mean",
}
POSITION_TABLE = "embeddings.position.table"

_SAME_FIELDS = (
    "image_size",
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "qkv_bias",
    "problem_type",
)
_OTHER_FIELDS = {
    "patch_size",
    "intermediate_size",
    "pooler_output_size",
    "pooler_act",
    "mlp_ratio",
    "layerscale_value",
    "drop_path_rate",
    "use_swiglu_ffn",
    "num_register_tokens",
    # Of heads that are not converted: reconstruction, feature maps for detectors, masked images.
    "encoder_stride",
    "_out_features",
    "_out_indices",
    "apply_layernorm",
    "reshape_hidden_states",
    "use_mask_token",
}
_MASK_TOKEN = "embeddings.mask_token"
# What has another name than in FocusViT, see [`renamed`]; DINOv2 has those of an encoder.
_NAMES = {
    "embeddings.patch_embeddings": "embeddings.units",
    "embeddings.position_embeddings": POSITION_TABLE,
    "encoder.layer.*": "layers.*",
    "encoder.layer.*.norm1": "layers.*.layernorm_before",
    "encoder.layer.*.layer_scale1.lambda1": "layers.*.attention_scale.factor",
    "encoder.layer.*.norm2": "layers.*.layernorm_after",
    "encoder.layer.*.layer_scale2.lambda1": "layers.*.mlp_scale.factor",
    "cls_classifier": "classifier",
}


@dataclass
class Source:
    """
    A checkpoint under FocusViT's names; those of the backbone are without its prefix.

    Attributes:
        name (`str`): Its class, or what else it is.
        settings (`dict`): Fields of [`FocusViTConfig`] that follow from it.
        classifies (`bool`): Whether it is a classifier rather than a backbone.
        tensors (`dict[str, torch.Tensor]`): By FocusViT's name; the source's own, not copies.
        origins (`dict[str, str]`): The name in the source of what each of them comes from.
        device (`torch.device`), training (`bool`), attn_implementation (`str`, *optional*): The source's state.
        derived (`dict[str, str]`): Which of them are not the source's as they are, and how they follow.
        dropped (`dict[str, str]`): The source's other tensors, by its own names, and why they have no place.
    """

    name: str
    settings: dict[str, Any]
    classifies: bool
    tensors: dict[str, torch.Tensor]
    origins: dict[str, str]
    device: torch.device
    training: bool = False
    attn_implementation: str | None = None
    derived: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds all tensors."""
        return reduce(torch.promote_types, (tensor.dtype for tensor in self.tensors.values()))


def source_of_model(model: PreTrainedModel, replaced: Mapping[str, Any]) -> Source:
    """
    Reads a model of Transformers.

    Args:
        model ([`PreTrainedModel`]): Of one of [`MODEL_CLASSES`].
        replaced (mapping): Settings that the caller gives; options of the source that they replace are not looked at.

    Raises:
        ValueError: on other classes, and on options of the source that FocusViT does not have.
    """
    name = type(model).__name__
    if name not in MODEL_CLASSES:
        raise ValueError(f"Expected a model of one of the classes {', '.join(MODEL_CLASSES)}, got {name}.")
    settings = settings_of_config(model.config, replaced, getattr(model, "pooler", None) is not None)
    pooling = MODEL_CLASSES[name]
    # A backbone does not need it, but a classifier that is put on the backbone shall read what its family's reads.
    settings["classifier_pooling"] = pooling or ("cls_patch_mean" if "dinov2" in model.config.model_type else "cls")
    tensors, origins = renamed(model.state_dict(), _NAMES, MODEL_TYPES)
    dropped = {}
    if tensors.pop(_MASK_TOKEN, None) is not None:
        dropped[origins.pop(_MASK_TOKEN)] = "stands for masked patches in pre-training only"
    return Source(
        name=name,
        settings=settings,
        classifies=pooling is not None,
        tensors=tensors,
        origins=origins,
        dropped=dropped,
        device=model.device,
        training=model.training,
        attn_implementation=model.config._attn_implementation,
    )


def renamed(
    tensors: Mapping[str, torch.Tensor], names: Mapping[str, str], prefixes: Sequence[str] = ()
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """
    Tensors under other names, and by their new names the old.

    Args:
        tensors (mapping from `str` to `torch.Tensor`): What is renamed.
        names (mapping from `str` to `str`):
            New names by old ones, of tensors or of modules that hold them, with `*` for the number of a layer. Of
            several that fit the longest counts; a tensor that none fits keeps its name.
        prefixes (sequence of `str`, *optional*): Names of backbones, which are left out before.
    """
    old_names = {}
    for old in tensors:
        name = next((old.removeprefix(f"{prefix}.") for prefix in prefixes if old.startswith(f"{prefix}.")), old)
        # "blocks.3.norm1.weight" is looked up as "blocks.*.norm1.weight".
        layer = re.search(r"\.(\d+)\.", name)
        general = name.replace(layer[0], ".*.", 1) if layer else name
        fitting = [module for module in names if f"{general}.".startswith(f"{module}.")]
        if fitting:
            module = max(fitting, key=len)
            name = names[module] + general.removeprefix(module)
            name = name.replace("*", layer[1]) if layer else name
        old_names[name] = old
    return {name: tensors[old] for name, old in old_names.items()}, old_names


def settings_of_config(
    config: PreTrainedConfig, replaced: Mapping[str, Any] | None = None, has_pooler: bool = False
) -> dict[str, Any]:
    """
    Fields of [`FocusViTConfig`] that follow from a configuration of Transformers.

    Args:
        config ([`PreTrainedConfig`]): Of one of [`MODEL_TYPES`].
        replaced (mapping, *optional*): Settings that the caller gives; options that they replace are not looked at.
        has_pooler (`bool`, *optional*, defaults to `False`): Whether the model has a pooling layer.

    Raises:
        ValueError: on other kinds, and on options that FocusViT does not have, naming them.
    """
    check_model_type(config.model_type)
    options: Any = config
    misfits = _misfits(options, has_pooler)
    given = {name: getattr(options, name) for name in misfits if name not in (replaced or {})}
    if given:
        raise ValueError(f"Expected no options in the source that FocusViT does not have, got {given}.")
    statistics: tuple = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    if options.model_type == "vit" or options.num_channels != 3:
        statistics = (IMAGENET_STANDARD_MEAN[0], IMAGENET_STANDARD_STD[0])
    settings = {name: getattr(options, name) for name in _SAME_FIELDS} | {
        "patch_size": one_side("patch_size", options.patch_size),
        "use_distillation_token": options.model_type == "deit",
        "position_antialias": options.model_type == "dinov2_with_registers",
        "id2label": dict(options.id2label),
        "label2id": dict(options.label2id),
        "add_pooling_layer": has_pooler,
        "image_mean": statistics[0],
        "image_std": statistics[1],
    }
    if "dinov2" not in options.model_type:
        return settings | {"intermediate_size": options.intermediate_size}
    width = int(options.hidden_size * options.mlp_ratio)
    # Two thirds, rounded up to a multiple of eight: three matrices then cost what two did.
    gated = (int(width * 2 / 3) + 7) // 8 * 8
    return settings | {
        # Interpolation takes the table for a square.
        "image_size": one_side("image_size", options.image_size),
        "intermediate_size": gated if options.use_swiglu_ffn else width,
        "mlp_type": "swiglu" if options.use_swiglu_ffn else "mlp",
        "layer_scale": options.layerscale_value,
        "num_register_tokens": getattr(options, "num_register_tokens", 0),
    }


def check_model_type(model_type: str | None) -> None:
    """Raises ValueError for all but [`MODEL_TYPES`]."""
    if model_type not in MODEL_TYPES:
        raise ValueError(f"Expected a model_type of {', '.join(MODEL_TYPES)}, got {model_type!r}.")


def _misfits(config: Any, has_pooler: bool) -> list[str]:
    """Names of the options that FocusViT does not have, where they are not at rest."""
    misfits = []
    if "dinov2" in config.model_type:
        # It drops values behind the embedding only, and branches at one rate in all layers.
        misfits += [name for name in ("hidden_dropout_prob", "drop_path_rate") if getattr(config, name)]
    if has_pooler:
        misfits += ["pooler_output_size"] if config.pooler_output_size != config.hidden_size else []
        misfits += ["pooler_act"] if config.pooler_act != "tanh" else []
    if getattr(config, "head_dim", None) not in (None, config.hidden_size // config.num_attention_heads):
        misfits.append("head_dim")
    known = {*_SAME_FIELDS, *_OTHER_FIELDS, *(entry.name for entry in fields(PreTrainedConfig))}
    # What later versions of Transformers may add.
    strange = [entry for entry in fields(config) if entry.name not in known]
    return misfits + [entry.name for entry in strange if getattr(config, entry.name) != entry.default]


def one_side(name: str, size: int | Sequence[int]) -> int:
    """
    The side of a square.

    Raises:
        ValueError: when `size` is not one number or two that are equal.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"Expected a square {name} in the source, got {size}.")
    return sides.pop()
