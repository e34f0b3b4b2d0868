"""The model to train, the image processor that matches it, and the teacher that it learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from ..configuration_focusvit import FocusViTConfig
from ..conversion.processor import load_image_processor
from ..image_processing_focusvit import FocusViTImageProcessor
from ..modeling_focusvit import FocusViTForImageClassification
from .arguments import ModelArguments, json_object


def load_model(
    model_args: ModelArguments,
    names: Sequence[str],
    auto: Any = AutoModelForImageClassification,
    kind: Any = FocusViTForImageClassification,
) -> tuple[Any, FocusViTImageProcessor]:
    """
    Makes the model and the image processor that matches it: the one that is named, the checkpoint's own, or the one of
    the configuration.

    Args:
        auto, kind (`type`, *optional*): The Auto class and the class of the model; those of a classifier by default.

    Raises:
        ValueError: If not exactly one of checkpoint, configuration and preset is given, if the checkpoint is no
            FocusViT, or if the processor cannot be read or disagrees with the model.
    """
    chosen = [model_args.model_name_or_path, model_args.config_name, model_args.preset]
    if sum(choice is not None for choice in chosen) != 1:
        raise ValueError(
            "expected one of --model_name_or_path, --config_name, --preset, "
            f"got {[choice for choice in chosen if choice is not None]}"
        )
    hub = {
        "cache_dir": model_args.cache_dir,
        "revision": model_args.model_revision,
        "token": model_args.token,
        "trust_remote_code": model_args.trust_remote_code,
    }
    classes = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    source = str(model_args.model_name_or_path or model_args.config_name)
    overrides = json_object("--config_overrides", model_args.config_overrides)
    require_fields(overrides)
    if model_args.preset is not None:
        config = FocusViTConfig.from_preset(model_args.preset, **overrides, **classes)
    else:
        config = AutoConfig.from_pretrained(source, **hub, **overrides, **classes)
    if config.model_type != FocusViTConfig.model_type:
        raise ValueError(f"expected a FocusViT configuration, got one of {config.model_type!r}")
    if model_args.model_name_or_path is not None:
        model = auto.from_pretrained(
            source,
            config=config,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            dtype=torch.float32,
            **hub,
        )
    else:
        model = kind(config)
    processor: Any = None
    if model_args.image_processor_name is not None:
        processor = AutoImageProcessor.from_pretrained(model_args.image_processor_name, **hub)
    elif model_args.model_name_or_path is not None:
        place = {name: hub[name] for name in ("cache_dir", "revision", "token")}
        processor = load_image_processor(source, FocusViTImageProcessor, **place)
        if processor is not None and overrides:
            stored = AutoConfig.from_pretrained(source, **hub)
            processor = adapted(processor, stored, config, overrides)
    if processor is None:
        processor = FocusViTImageProcessor.from_model_config(config)
    processor.validate_against_config(config)
    return model, processor


def checkpoint_classes(model_args: ModelArguments) -> list[str] | None:
    """The classes of the checkpoint that a run begins with, in their order; None where it names none."""
    if model_args.model_name_or_path is None:
        return None
    hub = {name: getattr(model_args, name) for name in ("cache_dir", "token", "trust_remote_code")}
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision, **hub)
    names = [config.id2label[number] for number in sorted(config.id2label or {})]
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names


def require_fields(overrides: Mapping[str, Any]) -> None:
    """ValueError for what is no field of a configuration, and for the classes, which are those of the data."""
    known = {item.name for item in fields(FocusViTConfig)} - {"id2label", "label2id"} | {"attn_implementation"}
    unknown = sorted(overrides.keys() - known)
    if unknown:
        raise ValueError(f"expected fields of a configuration in --config_overrides, got {unknown}")


def adapted(
    processor: FocusViTImageProcessor, stored: FocusViTConfig, config: FocusViTConfig, overrides: Mapping[str, Any]
) -> FocusViTImageProcessor:
    """
    A checkpoint's image processor for a configuration that was changed: what follows from the changes follows them,
    sizes in the ratio of the models' images; all else is kept.

    Args:
        stored ([`FocusViTConfig`]), config ([`FocusViTConfig`]): The configuration before and after the changes.
        overrides (`dict`): The fields that were given, changed or not.
    """
    options = processor.to_dict()
    before, after = (FocusViTImageProcessor.from_model_config(each).to_dict() for each in (stored, config))
    for name in (before.keys() | after.keys()) - {"size"}:
        if name in overrides or before.get(name) != after.get(name):
            options[name] = after.get(name)
    pairs = zip(config.image_height_and_width, stored.image_height_and_width, strict=True)
    vertical, horizontal = (new / old for new, old in pairs)
    # One edge for both stands for the larger of the two, so that a crop never reaches beyond the image.
    ratios = {"height": vertical, "width": horizontal}
    for name in ("size", "crop_size"):
        if options.get(name):
            edges = options[name].items()
            options[name] = {edge: round(ratios.get(edge, max(ratios.values())) * length) for edge, length in edges}
    return FocusViTImageProcessor.from_dict(options)


def refuse_other_configuration(checkpoint: str | None, config: FocusViTConfig) -> None:
    """ValueError where the checkpoint to resume from was made by another model than the one asked for."""
    if checkpoint is None:
        return
    saved = FocusViTConfig.from_pretrained(checkpoint)
    names = [*FocusViTConfig.__annotations__, "id2label"]
    different = [name for name in names if getattr(saved, name, None) != getattr(config, name, None)]
    if different:
        raise ValueError(
            f"expected the model of {checkpoint}, got other values of {different}; choose another --output_dir"
        )
