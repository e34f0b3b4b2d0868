"""Model of the two training scripts: made, and measured when it is trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

import focusvit_hf
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.augmentation import AugmentationConfig
from focusvit_hf.metrics import RankedImageClassificationEvaluator, TopKAccuracy
from focusvit_hf.training import read_json
from training_arguments import DataTrainingArguments, ModelArguments, TrainingArguments


PRESETS = Path(__file__).resolve().parents[1] / "configuration" / "presets"


def load_model(
    model_args: ModelArguments, names: Sequence[str]
) -> tuple[FocusViTForImageClassification, FocusViTImageProcessor]:
    """
    Makes the model and the image processor that matches it.

    Raises:
        ValueError: If not exactly one of checkpoint, configuration and preset is given, if the checkpoint is no
            FocusViT, or if model and processor disagree.
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
    overrides = model_args.config_overrides or {}
    if model_args.preset is not None:
        config = FocusViTConfig(**{**read_json(find_preset(model_args.preset)), **overrides, **classes})
    else:
        source = model_args.model_name_or_path or model_args.config_name
        config = AutoConfig.from_pretrained(source, **hub, **overrides, **classes)
    if config.model_type != FocusViTConfig.model_type:
        raise ValueError(f"expected a FocusViT configuration, got one of {config.model_type!r}")
    if model_args.model_name_or_path is not None:
        model = AutoModelForImageClassification.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            dtype=torch.float32,
            **hub,
        )
    else:
        model = FocusViTForImageClassification(config)
    if model_args.image_processor_name is not None:
        processor = AutoImageProcessor.from_pretrained(model_args.image_processor_name, **hub)
        processor.validate_against_config(config)
    else:
        processor = FocusViTImageProcessor.from_model_config(config)
    return model, processor


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


def find_preset(name: str) -> Path:
    """The JSON file of a preset, by its name in `configuration/presets` or its path; ValueError if there is none."""
    path = Path(name) if name.endswith(".json") else PRESETS / f"{name}.json"
    if not path.is_file():
        known = sorted(preset.stem for preset in PRESETS.glob("*.json"))
        raise ValueError(f"expected a JSON file or one of the presets {known}, got {name!r}")
    return path


def augmentation_config(
    data_args: DataTrainingArguments, training_args: TrainingArguments
) -> AugmentationConfig | None:
    """The augmentation asked for, or none; ValueError for options that do not exist or smooth the labels twice."""
    if not data_args.augmentation:
        return None
    augmentation = AugmentationConfig.from_dict(data_args.augmentation)
    if augmentation.label_smoothing and training_args.label_smoothing_factor:
        raise ValueError(
            "expected either --label_smoothing_factor or the augmentation's label_smoothing, got "
            f"{training_args.label_smoothing_factor} and {augmentation.label_smoothing}"
        )
    return augmentation


def measure(
    folder: str | Path, split: Any, data_args: DataTrainingArguments, batch_size: int, device: torch.device
) -> dict[str, float]:
    """
    Measures a saved model as its users run it: pictures through `pipeline`, scored by `evaluate`'s evaluator.

    Args:
        folder (`str`): Folder of the model and its image processor.
        split (`datasets.Dataset`): The pictures and labels.
        batch_size (`int`): Pictures a forward pass.
        device (`torch.device`): Where the model runs, in fp32.

    Returns:
        `dict[str, float]`: accuracy and top_5_accuracy in 0..1, and the evaluator's times in seconds.
    """
    classifier = pipeline(
        "image-classification", model=str(folder), batch_size=batch_size, device=device, dtype=torch.float32
    )
    return RankedImageClassificationEvaluator().compute(
        model_or_pipeline=classifier,
        data=split,
        metric=TopKAccuracy(),
        input_column=data_args.image_column_name,
        label_column=data_args.label_column_name,
        label_mapping=classifier.model.config.label2id,
    )


def versions() -> dict[str, str]:
    """Versions of everything a result depends on."""
    modules = (focusvit_hf, torch, transformers, accelerate, datasets, np)
    return {"python": sys.version.split()[0], **{m.__name__: getattr(m, "__version__", "") for m in modules}}
