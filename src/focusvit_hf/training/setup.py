"""What the two training scripts do before and after training: data, model and collators made, the result measured."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
import transformers
from huggingface_hub import ModelCard
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    enable_full_determinism,
    pipeline,
    set_seed,
)

import focusvit_hf
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor

from ..conversion.loading import licence_of
from ..conversion.processor import load_image_processor
from ..hub.folder import CARD_FILE, TRAINING_LOG_FILE
from ..hub.model_card import model_card
from ..hub.push import push_to_hub
from ..hub.training_record import TrainingRecord
from ..utils.files import read_json, write_json, write_whole
from ..utils.names import check_identifier, hub_name
from .arguments import DataTrainingArguments, ModelArguments, TrainingArguments, json_object, public_arguments
from .augmentation import AugmentationConfig
from .data import as_rows, class_names, load_pictures
from .data_collator import FocusViTDataCollator, SeededCollator
from .distillation import Distillation, load_distillation
from .elastic import ElasticSuperpixels
from .metrics import RankedImageClassificationEvaluator, TopKAccuracy


PRESETS = Path(__file__).resolve().parents[1] / "presets"


@dataclass
class Setup:
    """
    What training needs.

    Args:
        splits (`dict`): The pictures as loaded: `"train"`, `"validation"`, `"test"`, as far as there are any.
        train_rows, eval_rows: What the data loaders read, or None where there is nothing to do with it.
        train_collator, eval_collator (`SeededCollator`): Make batches of rows, with and without augmentation.
        model (`FocusViTForImageClassification`), processor (`FocusViTImageProcessor`): They match.
        distillation (`Distillation`, *optional*): The teacher to learn from.
        elastic (`ElasticSuperpixels`, *optional*): What draws the number of superpixels of each step.
        origin (`dict`): What the card tells of the data and of the model that training began from.
    """

    splits: dict[str, Any]
    train_rows: Any
    eval_rows: Any
    train_collator: SeededCollator
    eval_collator: SeededCollator
    model: FocusViTForImageClassification
    processor: FocusViTImageProcessor
    distillation: Distillation | None = None
    elastic: ElasticSuperpixels | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)


def set_up(
    model_args: ModelArguments, data_args: DataTrainingArguments, args: TrainingArguments, checkpoint: str | None
) -> Setup:
    """
    Loads the data, makes the model, and refuses what does not fit before anything is trained.

    Args:
        checkpoint (`str`, *optional*): The checkpoint that training resumes from.

    Raises:
        ValueError: On arguments, pictures or labels that do not fit.
    """
    check_identifier("--license", model_args.license)
    level = args.get_process_log_level()
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s")
    transformers.utils.logging.set_verbosity(level)
    datasets.utils.logging.set_verbosity(level)
    with args.main_process_first(desc="loading the data"):
        splits = load_pictures(data_args, model_args, args.seed)
    if args.do_train and "train" not in splits:
        raise ValueError(f"expected a split 'train', got {sorted(splits)}")
    if args.do_train and data_args.streaming and args.max_steps <= 0:
        raise ValueError("expected --max_steps with --streaming, since a stream has no length")
    evaluating = args.do_eval or args.eval_strategy != "no"
    evaluation = next((name for name in ("validation", "test") if name in splits), None)
    if evaluating and evaluation is None:
        raise ValueError(f"expected a split 'validation' or 'test' to evaluate on, got {sorted(splits)}")
    if evaluation == "test" and args.load_best_model_at_end:
        raise ValueError(
            "expected a validation split or --train_val_split with --load_best_model_at_end: "
            "the test split is not to be chosen on"
        )
    if args.full_determinism:
        enable_full_determinism(args.seed)
    else:
        set_seed(args.seed)
    names = class_names(next(iter(splits.values())), data_args)
    model, processor = load_model(model_args, names)
    refuse_other_configuration(checkpoint, model.config)
    origin = origin_of(model_args, data_args, splits) if args.do_train else {}
    if args.do_train:
        # A card that the Hub does not take is to be known of before hours of training.
        card_of(model, args, {**origin, "arguments": public_arguments(model_args, data_args, args)})
    with args.main_process_first(desc="decoding the pictures"):
        train_rows = as_rows(splits["train"], data_args, shuffle_seed=args.seed) if args.do_train else None
        eval_rows = as_rows(splits[evaluation], data_args) if evaluating and evaluation else None
    image, label = data_args.image_column_name, data_args.label_column_name
    options: dict[str, Any] = {"num_labels": len(names), "image_column": image, "label_column": label}
    elastic, train_processor = None, processor
    if args.train_num_superpixels:
        elastic = ElasticSuperpixels(model.config, args.train_num_superpixels, args.seed)
        train_processor = FocusViTImageProcessor.from_dict({**processor.to_dict(), "do_superpixels": False})
    train_collator = FocusViTDataCollator(train_processor, augmentation_config(data_args, args), **options)
    return Setup(
        splits=splits,
        train_rows=train_rows,
        eval_rows=eval_rows,
        train_collator=SeededCollator(train_collator, args.seed),
        eval_collator=SeededCollator(FocusViTDataCollator(processor, **options), args.seed),
        model=model,
        processor=processor,
        distillation=load_teacher(model_args, args, model.config) if args.do_train else None,
        elastic=elastic,
        origin=origin,
    )


def load_model(
    model_args: ModelArguments, names: Sequence[str]
) -> tuple[FocusViTForImageClassification, FocusViTImageProcessor]:
    """
    Makes the model and the image processor that matches it: the one that is named, the checkpoint's own, or the one of
    the configuration.

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
    if model_args.preset is not None:
        config = FocusViTConfig(**{**read_json(find_preset(model_args.preset)), **overrides, **classes})
    else:
        config = AutoConfig.from_pretrained(source, **hub, **overrides, **classes)
    if config.model_type != FocusViTConfig.model_type:
        raise ValueError(f"expected a FocusViT configuration, got one of {config.model_type!r}")
    if model_args.model_name_or_path is not None:
        model = AutoModelForImageClassification.from_pretrained(
            source,
            config=config,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            dtype=torch.float32,
            **hub,
        )
    else:
        model = FocusViTForImageClassification(config)
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


def adapted(
    processor: FocusViTImageProcessor, stored: FocusViTConfig, config: FocusViTConfig, overrides: Mapping[str, Any]
) -> FocusViTImageProcessor:
    """
    A checkpoint's image processor for a configuration that was changed: what follows from the changes follows them,
    sizes in the ratio of the models' pictures; all else is kept.

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
    # One edge for both stands for the larger of the two, so that a crop never reaches beyond the picture.
    ratios = {"height": vertical, "width": horizontal}
    for name in ("size", "crop_size"):
        if options.get(name):
            edges = options[name].items()
            options[name] = {edge: round(ratios.get(edge, max(ratios.values())) * length) for edge, length in edges}
    return FocusViTImageProcessor.from_dict(options)


def load_teacher(model_args: ModelArguments, args: TrainingArguments, config: FocusViTConfig) -> Distillation | None:
    """The teacher asked for, in the precision of training; ValueError where it does not fit."""
    if args.teacher_model_name_or_path is None:
        return None
    return load_distillation(
        args.teacher_model_name_or_path,
        config,
        args.distillation_alpha,
        args.distillation_temperature,
        args.distillation_type,
        dtype=torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32,
        cache_dir=model_args.cache_dir,
        token=model_args.token,
        trust_remote_code=model_args.trust_remote_code,
    )


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
    """The JSON file of a preset, by its name in `src/focusvit_hf/presets` or its path; ValueError if there is none."""
    path = Path(name) if name.endswith(".json") else PRESETS / f"{name}.json"
    if not path.is_file():
        known = sorted(preset.stem for preset in PRESETS.glob("*.json"))
        raise ValueError(f"expected a JSON file or one of the presets {known}, got {name!r}")
    return path


def augmentation_config(
    data_args: DataTrainingArguments, training_args: TrainingArguments
) -> AugmentationConfig | None:
    """The augmentation asked for, or none; ValueError for options that do not exist or smooth the labels twice."""
    options = json_object("--augmentation", data_args.augmentation)
    if not options:
        return None
    augmentation = AugmentationConfig.from_dict(options)
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
        metric=TopKAccuracy(keep_in_memory=True),
        input_column=data_args.image_column_name,
        label_column=data_args.label_column_name,
        label_mapping=classifier.model.config.label2id,
    )


def finish(
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    args: TrainingArguments,
    setup: Setup,
    figures: Mapping[str, float],
    log: Mapping[str, Any],
    begin: float,
) -> dict[str, float]:
    """
    Measures the saved model on the test split or `--max_eval_samples` of its pictures, unless that is switched off,
    writes the log of the run and the model's card, and pushes both with the model where that was asked for.

    Args:
        figures (`dict[str, float]`): What was measured so far.
        log (`dict`): More to be written: the command, the history of the run, the checkpoint it began from.
        begin (`float`): `time.time()` at the beginning.

    Returns:
        `dict[str, float]`: `figures` and, with the prefix `test_`, those of the test split.
    """
    figures = dict(figures)
    if args.do_train and args.final_evaluation and "test" in setup.splits and not data_args.streaming:
        batch_size = args.per_device_eval_batch_size
        test = measure(args.folder, setup.splits["test"], data_args, batch_size, args.device)
        figures.update({f"test_{key}": value for key, value in test.items()})
    content = {
        **log,
        "arguments": public_arguments(model_args, data_args, args),
        "figures": figures,
        "versions": versions(),
        "wall_time_seconds": round(time.time() - begin, 1),
    }
    if not args.do_train:
        write_json(args.folder / "evaluation_log.json", content)
        return figures
    content |= setup.origin
    write_json(args.folder / TRAINING_LOG_FILE, content)
    write_whole(args.folder / CARD_FILE, str(card_of(setup.model, args, content)).encode())
    if args.push_to_hub:
        push_to_hub(
            args.folder,
            args.hub_model_id or model_name(args),
            private=args.hub_private_repo,
            revision=args.hub_revision,
            token=args.hub_token,
        )
    return figures


def origin_of(
    model_args: ModelArguments, data_args: DataTrainingArguments, splits: Mapping[str, Any]
) -> dict[str, Any]:
    """What a card tells and cannot be found out later, when the folders of data and model may be elsewhere."""
    return {
        "dataset_id": hub_name(data_args.dataset_name),
        "evaluation_split": "validation" if "validation" in splits else "test",
        "pictures": {} if data_args.streaming else {name: len(split) for name, split in splits.items()},
        **(licence_of(model_args.model_name_or_path) if model_args.model_name_or_path else {}),
        **({"license": model_args.license} if model_args.license else {}),
    }


def model_name(args: TrainingArguments) -> str:
    """The name of the trained model without an owner: that on the Hub, or the output folder's."""
    return Path(args.hub_model_id or args.folder.resolve()).name


def card_of(model: FocusViTForImageClassification, args: TrainingArguments, log: Mapping[str, Any]) -> ModelCard:
    """The card of a run from its log, as far as that goes; ValueError where it would be none the Hub takes."""
    record = TrainingRecord.from_log(log)
    return model_card(model, model_name(args), location=args.folder.as_posix(), record=record)


def versions() -> dict[str, str]:
    """Versions of everything a result depends on."""
    modules = (focusvit_hf, torch, transformers, accelerate, datasets, np)
    return {"python": sys.version.split()[0], **{m.__name__: getattr(m, "__version__", "") for m in modules}}
