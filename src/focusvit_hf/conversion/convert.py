"""ViT, DeiT and DINOv2 checkpoints to FocusViT: nothing is lost or left at random without being told."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..configuration_focusvit import FocusViTConfig
from ..errors import joined
from ..image_sizes import fixed_size
from ..modeling_focusvit import FocusViTForImageClassification, FocusViTModel, FocusViTPreTrainedModel
from ..positions import FocusViTLearnedPosition
from ..selection_options import SELECT_PACK
from ..utils.messages import told_of
from .loading import load_source
from .processor import load_image_processor, processor_settings
from .sources import POSITION_TABLE, Source, source_of_model
from .timm import source_of_timm


logger = logging.get_logger(__name__)

# What keeps most of the source's accuracy: its own patches and positions, pooled, and its own attention.
_DEFAULTS = {
    "embedding_type": "patch",
    "position_embedding_type": "learned",
    "patch_pooling": "superpixel",
}
# A model with other values is not the source's any more.
_FIXED = (
    "patch_size",
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "mlp_type",
    "hidden_act",
    "layer_norm_eps",
    "qkv_bias",
    "layer_scale",
    "use_distillation_token",
    "num_register_tokens",
    "classifier_pooling",
)
_LABELS = ("num_labels", "id2label", "label2id")
_HEADS = ("classifier.", "distillation_classifier.")


@dataclass
class ConversionReport:
    """
    Where each tensor of a converted model comes from, and where each tensor of the source went.

    Attributes:
        source (`str`), target (`str`): Names of the classes.
        mapped (`dict[str, str]`): Tensors that were copied, and their names in the source.
        derived (`dict[str, str]`): Tensors that follow from the source's, and how.
        fresh (`dict[str, str]`): Tensors that start as in a new model, and why.
        dropped (`dict[str, str]`): Tensors of the source that have no place, by its names, and why.
        notes (`list[str]`): What else was decided.
    """

    source: str
    target: str
    mapped: dict[str, str] = field(default_factory=dict)
    derived: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.source} -> {self.target}", f"  copied: {len(self.mapped)} tensors"]
        for kind in ("derived", "fresh", "dropped"):
            # Layers are told together.
            told: dict[tuple[str, str], int] = {}
            for name, how in getattr(self, kind).items():
                key = (_without_numbers(name), _without_numbers(how))
                told[key] = told.get(key, 0) + 1
            for (name, how), count in told.items():
                lines.append(f"  {kind}: {name}{f' ({count})' if count > 1 else ''}: {how}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def _without_numbers(text: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", text)


def convert_vit_checkpoint(
    model_or_name: PreTrainedModel | Mapping[str, torch.Tensor] | str | Path, **config_overrides: Any
) -> FocusViTPreTrainedModel:
    r"""
    Makes a FocusViT of a ViT, a DeiT, a DINOv2 or a DINOv2 with registers.

    By default the patches and positions of the source are pooled over superpixels, one for each 2 x 2 patches, and all
    layers keep full attention. With `patch_pooling="none"` the model computes what the source computes. What `forward`
    of the source does with other resolutions, FocusViT does too.

    With `sparsification_layers` tokens leave between the layers, and layers of select-and-pack attention
    (`layer_types`) select some. Patches are not pooled then unless that is asked for: the layers see every patch
    first, which keeps far more of what the source can. A patch belongs to the superpixel that covers most of it
    (`superpixel_assignment="hard"`), since mixtures of patches are foreign to the source.

    With latent layers (`layer_types`) queries, keys, values, output projection and MLP come from the source's layer of
    the same index, and so does the norm of the context, which is that of the queries. The latents start as the tokens
    of an empty image, one of the mean colour, in the state in which the source's first layers leave them where the
    latents join, read at the centres of `num_latents` tiles: tokens that the layers above know, each with a place of
    its own, from which attention fills them with what the image shows there.

    Args:
        model_or_name ([`PreTrainedModel`], `str`, `Path` or mapping from `str` to `torch.Tensor`):
            A model, which is not changed and shares no memory with the result; a folder or a name on the Hub, with
            safetensors; or a state dict with the names of timm's `VisionTransformer`, to which `num_attention_heads`
            has to be given, and `image_mean` and `image_std` where they are not 0.5.
        config_overrides:
            Fields of [`FocusViTConfig`]. What the source computes with cannot be changed. `num_labels` can (the
            classifier is then new), and `image_size` (the table of positions is interpolated), `add_pooling_layer`,
            and all that matters in training only.

    Returns:
        [`FocusViTForImageClassification`] of a classifier, [`FocusViTModel`] of a backbone, in the source's dtype, on
        its device, in its mode and with its implementation of attention. Its attribute `conversion_report`, a
        [`ConversionReport`], accounts for every tensor.

    Raises:
        ValueError: when the source is of another architecture, has an option that FocusViT does not have, tensors that
            are missing or unexpected, or no safetensors; and on overrides that are at odds with it.

    Example:

    ```python
    >>> from focusvit_hf import convert_vit_checkpoint
    >>> from transformers import ViTConfig, ViTForImageClassification

    >>> vit = ViTForImageClassification(ViTConfig(num_hidden_layers=2))
    >>> model = convert_vit_checkpoint(vit, num_superpixels=36)
    >>> print(model.conversion_report)
    ViTForImageClassification -> FocusViTForImageClassification
      copied: 40 tensors
    ```"""
    if isinstance(model_or_name, (str, Path)):
        model, spare = load_source(model_or_name, config_overrides)
        source = source_of_model(model, config_overrides)
        source.dropped |= spare
        processor = load_image_processor(model_or_name)
        with told_of(f"the image processor in {model_or_name}"):
            options = {} if processor is None else processor_settings(processor)
            size = fixed_size(options)
        source.settings |= {name: options[name] for name in ("image_mean", "image_std") if name in options}
        return _convert(source, config_overrides, size)
    if isinstance(model_or_name, PreTrainedModel):
        return _convert(source_of_model(model_or_name, config_overrides), config_overrides)
    if isinstance(model_or_name, Mapping):
        return _convert(source_of_timm(model_or_name, config_overrides), config_overrides)
    raise ValueError(f"Expected a model, a name or a state dict, got {type(model_or_name).__name__}.")


def _convert(
    source: Source, overrides: Mapping[str, Any], images: tuple[int, int] | None = None
) -> FocusViTPreTrainedModel:
    """`images` is the height and width that the source's processor gives, where it is known."""
    exact = {**source.settings, **_DEFAULTS, "patch_pooling": "none", "layer_types": _full(source.settings)}
    own = FocusViTConfig(**exact)
    _check_tensors(source, _without_weights(own, source.classifies))
    config = _target_config(own, source, overrides, images)
    model: Any = (FocusViTForImageClassification if source.classifies else FocusViTModel)(config)
    # Wide enough for all on the way.
    model.to(torch.promote_types(source.dtype, torch.float32))
    report = _fill(model, source, *_target_tensors(source, own, config))
    model.to(device=source.device, dtype=source.dtype).train(source.training)
    implementation = overrides.get("attn_implementation", source.attn_implementation)
    if implementation is not None:
        model.set_attn_implementation(implementation)
    model.conversion_report = report
    if report.fresh or len(report.dropped) > len(source.dropped):
        logger.warning(f"Not all of the source was kept:\n{report}")
    return model


def _target_tensors(
    source: Source, own: FocusViTConfig, config: FocusViTConfig
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The source's tensors as the target takes them, and how those follow that are not the source's as they are."""
    tensors, derived = dict(source.tensors), dict(source.derived)
    _place_positions(tensors, derived, own, config)
    latent = [index for index, kind in enumerate(config.layer_types or ()) if kind == "latent_attention"]
    for index in latent:
        for part in ("weight", "bias"):
            name, norm = f"layers.{index}.layernorm_context.{part}", f"layers.{index}.layernorm_before.{part}"
            tensors[name], derived[name] = tensors[norm], f"copy of {norm}"
    if latent and config.embedding_type == "patch" and config.position_embedding_type == "learned":
        tensors["latents"] = _tokens_of_an_empty_image(source, own, config, latent[0])
        derived["latents"] = f"tokens of an empty image before layer {latent[0]}, at the centres of tiles"
    if config.num_labels != own.num_labels:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEADS)}
    return tensors, derived


@torch.no_grad()
def _fill(
    model: FocusViTPreTrainedModel, source: Source, tensors: Mapping[str, torch.Tensor], derived: Mapping[str, str]
) -> ConversionReport:
    """Copies the tensors that the model has a place for, and accounts for all others on both sides."""
    report = ConversionReport(source.name, type(model).__name__, dropped=dict(source.dropped))
    targets = {_backbone_name(name): tensor for name, tensor in model.state_dict().items()}
    for name, target in targets.items():
        if name not in tensors:
            report.fresh[name] = _cause(name, model.config)
            continue
        target.copy_(tensors[name])
        if name in derived:
            report.derived[name] = derived[name]
        else:
            report.mapped[name] = source.origins[name]
    for name, origin in source.origins.items():
        if name not in targets or name not in tensors:
            report.dropped[origin] = _cause(name, model.config)
    return report


def _full(settings: Mapping[str, Any]) -> list[str]:
    return ["full_attention"] * settings["num_hidden_layers"]


def _backbone_name(name: str) -> str:
    return name.removeprefix("focusvit.")


def _without_weights(config: FocusViTConfig, classifies: bool) -> FocusViTPreTrainedModel:
    with torch.device("meta"):
        return FocusViTForImageClassification(config) if classifies else FocusViTModel(config)


def _check_tensors(source: Source, model: FocusViTPreTrainedModel) -> None:
    """Raises ValueError unless the source holds each tensor of `model`, in its shape, and no other."""
    expected = {_backbone_name(name): tensor.shape for name, tensor in model.state_dict().items()}
    problems = [f"{name} is missing" for name in expected if name not in source.tensors]
    for name, tensor in source.tensors.items():
        origin = source.origins[name]
        if name not in expected:
            problems.append(f"{origin} is unexpected")
        elif tensor.shape != expected[name]:
            problems.append(f"{origin} has shape {tuple(tensor.shape)} instead of {tuple(expected[name])}")
        elif not tensor.is_floating_point() or tensor.is_meta:
            problems.append(f"{origin} holds no floating-point numbers")
        elif not torch.isfinite(tensor).all():
            problems.append(f"{origin} holds NaN or infinity")
    if problems:
        raise ValueError(f"Expected the tensors of a plain {source.name}, got: {joined(problems)}.")


def _target_config(
    own: FocusViTConfig, source: Source, overrides: Mapping[str, Any], images: tuple[int, int] | None
) -> FocusViTConfig:
    """The configuration asked for; ValueError where it changes what the source determines."""
    for name in _FIXED:
        if name in overrides and overrides[name] != getattr(own, name):
            raise ValueError(f"Expected {name}={getattr(own, name)!r} as the source has it, got {overrides[name]!r}.")
    settings = {**source.settings, **_DEFAULTS, "layer_types": _full(source.settings), **overrides}
    leaves_out = overrides.get("sparsification_layers") or SELECT_PACK in (overrides.get("layer_types") or ())
    if leaves_out and not {"patch_pooling", "num_superpixels"} & overrides.keys():
        settings["patch_pooling"] = "none"
    if settings["patch_pooling"] == "superpixel" and settings["embedding_type"] == "patch":
        settings.setdefault("superpixel_assignment", "hard")
    if overrides.get("num_labels", own.num_labels) != own.num_labels or "id2label" in overrides:
        settings = {name: settings[name] for name in settings if name in overrides or name not in _LABELS}
    if "num_superpixels" not in overrides:
        size = overrides.get("image_size", images or own.image_height_and_width)
        height, width = (size, size) if isinstance(size, int) else size
        patch = 2 * own.patch_size
        settings["num_superpixels"] = max(height // patch, 1) * max(width // patch, 1)
    return FocusViTConfig(**settings)


def _place_positions(
    tensors: dict[str, torch.Tensor], derived: dict[str, str], own: FocusViTConfig, config: FocusViTConfig
) -> None:
    """Brings the source's table to the target's grid; without a table each token keeps its own entry."""
    table = tensors[POSITION_TABLE]
    if config.position_embedding_type != "learned":
        for index, name in enumerate(["cls_token", "distillation_token"][: 1 + own.use_distillation_token]):
            key = f"embeddings.{name}"
            tensors[key] = tensors[key] + table[:, index, None]
            derived[key] = "with its entry in the table of positions"
        return
    with torch.device("meta"):
        old, new = FocusViTLearnedPosition(own), FocusViTLearnedPosition(config)
    if old.grid == new.grid:
        return
    old.table = nn.Parameter(table, requires_grad=False)
    tensors[POSITION_TABLE] = torch.cat((table[:, : old.num_prefix], old.patch_positions(new.grid)), dim=1)
    grids = " to ".join(f"{rows} x {columns}" for rows, columns in (old.grid, new.grid))
    derived[POSITION_TABLE] = f"interpolated from {grids} patches"


@torch.no_grad()
def _tokens_of_an_empty_image(
    source: Source, own: FocusViTConfig, config: FocusViTConfig, num_layers: int
) -> torch.Tensor:
    """The source's states behind `num_layers` layers at the centres of tiles, `(1, num_latents, hidden_size)`."""
    backbone = _without_weights(own, classifies=False).eval()
    names = backbone.state_dict()
    weights = {name: tensor.to(source.dtype) for name, tensor in source.tensors.items() if name in names}
    # The source's own memory: nothing is copied, and nothing is written.
    backbone.load_state_dict(weights, assign=True)
    height, width = config.image_height_and_width
    image = torch.zeros(1, config.num_channels, height, width, dtype=source.dtype, device=source.device)
    states = backbone(image, output_hidden_states=True).hidden_states[num_layers]
    grid = (height // config.patch_size, width // config.patch_size)
    # Interpolation knows no half precision on some devices.
    places = states[:, config.num_prefix_tokens :].float().transpose(1, 2).unflatten(2, grid)
    centres = _tile_centres(config.num_latents, height / width).to(source.device)
    return (
        nn.functional.grid_sample(places, centres[None, None], padding_mode="border", align_corners=False)
        .squeeze(2)
        .transpose(1, 2)
    )


def _tile_centres(count: int, aspect: float) -> torch.Tensor:
    """`(count, 2)`, (x, y) in -1..1: centres of rows of tiles on an image of height / width = `aspect`."""
    rows = min(max(round(math.sqrt(count * aspect)), 1), count)
    borders = [row * count // rows for row in range(rows + 1)]
    centres = [
        ((2 * column + 1) / (end - start) - 1, (2 * row + 1) / rows - 1)
        for row, (start, end) in enumerate(pairwise(borders))
        for column in range(end - start)
    ]
    return torch.tensor(centres, dtype=torch.float32)


def _cause(name: str, config: FocusViTConfig) -> str:
    """The setting for which a tensor is new in the target, or has no place in it."""
    if name.startswith(_HEADS):
        return f"num_labels={config.num_labels}"
    if name.startswith("pooler."):
        return f"add_pooling_layer={config.add_pooling_layer}"
    if name.startswith("embeddings.position."):
        return f"position_embedding_type={config.position_embedding_type!r}"
    if name.startswith("sparsification."):
        return "sparsification_relevance='learned'"
    if ".gate." in name:
        return "layer_types has 'select_pack_attention'"
    if name == "latents":
        return "latents start from the source's tokens only with its patches and positions"
    return f"embedding_type={config.embedding_type!r}"
