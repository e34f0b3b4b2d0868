"""What a training script needs before it trains: data, model and collators, made and checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
import transformers
from transformers import enable_full_determinism, set_seed

from ..image_processing_focusvit import FocusViTImageProcessor
from ..selection_options import SELECT_PACK, selects_tokens
from ..utils.names import check_identifier
from .arguments import DataTrainingArguments, ModelArguments, TrainingArguments, json_object, public_arguments
from .augmentation import AugmentationConfig
from .card import card_of, origin_of
from .data import as_rows, class_names, load_images
from .data_collator import FocusViTDataCollator, SeededCollator
from .distillation import Distillation
from .elastic import ElasticKeepRatio, ElasticSuperpixels
from .labels import fitted_to_checkpoint
from .model import checkpoint_classes, load_model, refuse_other_configuration
from .selection import SelectionColumn
from .sparsification import require_predictors
from .teaching import make_distillation


@dataclass
class Setup:
    """
    What training needs.

    Args:
        splits (`dict`): The images as loaded: `"train"`, `"validation"`, `"test"`, as far as there are any.
        train_rows, eval_rows: What the data loaders read, or None where there is nothing to do with it.
        train_collator, eval_collator (`SeededCollator`): Make batches of rows, with and without augmentation.
        model (`FocusViTPreTrainedModel`), processor (`FocusViTImageProcessor`): They match.
        distillation (`Distillation`, *optional*): The teacher to learn from.
        elastic (`ElasticSuperpixels` or `ElasticKeepRatio`, *optional*):
            What draws the number of superpixels, or of tokens that stay, of each step.
        origin (`dict`): What the card tells of the data and of the model that training began from.
        class_weights (`torch.FloatTensor`, *optional*), overlap_weight (`float`): Of the loss of segmentation.
    """

    splits: dict[str, Any]
    train_rows: Any
    eval_rows: Any
    train_collator: SeededCollator
    eval_collator: SeededCollator
    model: Any
    processor: FocusViTImageProcessor
    distillation: Distillation | None = None
    elastic: ElasticSuperpixels | ElasticKeepRatio | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    class_weights: torch.Tensor | None = None
    overlap_weight: float = 0.0


def set_up(
    model_args: ModelArguments, data_args: DataTrainingArguments, args: TrainingArguments, checkpoint: str | None
) -> Setup:
    """
    Loads the data, makes the model, and refuses what does not fit before anything is trained.

    Args:
        checkpoint (`str`, *optional*): The checkpoint that training resumes from.

    Raises:
        ValueError: On arguments, images or labels that do not fit.
    """
    begin(model_args, args)
    with args.main_process_first(desc="loading the data"):
        splits = load_images(data_args, model_args, args.seed, args.do_train)
    evaluation = evaluation_split(splits, data_args, args)
    seed_everything(args)
    image, label = data_args.image_column_name, data_args.label_column_name
    splits = fitted_to_checkpoint(splits, label, checkpoint_classes(model_args), args.do_train)
    names = class_names(next(iter(splits.values())), data_args)
    model, processor = load_model(model_args, names)
    refuse_other_configuration(checkpoint, model.config)
    require_predictors(model, args.predictor_learning_rate, args.frozen_epochs)
    selection = selection_column(data_args, model.config, args)
    origin = origin_of(model_args, data_args, splits) if args.do_train else {}
    if args.do_train:
        # A card that the Hub does not take is to be known of before hours of training.
        card_of(model, args, {**origin, "arguments": public_arguments(model_args, data_args, args)})
    augmentation = augmentation_config(data_args)
    options: dict[str, Any] = {"num_labels": len(names), "image_column": image, "label_column": label}
    elastic: ElasticSuperpixels | ElasticKeepRatio | None = None
    train_processor = processor
    if args.train_num_superpixels:
        elastic = ElasticSuperpixels(model.config, args.train_num_superpixels, args.seed)
        train_processor = FocusViTImageProcessor.from_dict({**processor.to_dict(), "do_superpixels": False})
    if args.train_keep_ratio:
        if elastic is not None:
            raise ValueError("expected one of --train_num_superpixels and --train_keep_ratio, got both")
        elastic = ElasticKeepRatio(model.config, args.train_keep_ratio, args.seed)
    train_collator = FocusViTDataCollator(train_processor, augmentation, **options, selection=selection)
    eval_collator = FocusViTDataCollator(processor, **options)
    with args.main_process_first(desc="decoding the images"):
        train_rows = as_rows(splits["train"], data_args, args.seed, train_collator.needed) if args.do_train else None
        eval_rows = as_rows(splits[evaluation], data_args, needed=eval_collator.needed) if evaluation else None
    teacher = (model_args, data_args, args, model.config, processor, augmentation)
    return Setup(
        splits=splits,
        train_rows=train_rows,
        eval_rows=eval_rows,
        train_collator=SeededCollator(train_collator, args.seed, args.teacher_views if args.teacher_bank else None),
        eval_collator=SeededCollator(eval_collator, args.seed),
        model=model,
        processor=processor,
        distillation=make_distillation(*teacher, splits["train"]) if args.do_train else None,
        elastic=elastic,
        origin=origin,
    )


def selection_column(data_args: DataTrainingArguments, config: Any, args: TrainingArguments) -> SelectionColumn | None:
    """
    Where the masks of what matters come from in training, or None; ValueError where there are some for a model that
    selects nothing, and where there are none for one that learns from nothing else.
    """
    name = data_args.selection_column_name
    given = name is not None or getattr(data_args, "selection_from_labels", False)
    if given and not selects_tokens(config):
        raise ValueError(
            f"expected a model with layers of {SELECT_PACK!r} for --selection_column_name and "
            "--selection_from_labels, got one that selects nothing"
        )
    taught = given or args.teacher is not None or args.teacher_model_name_or_path is not None
    if args.do_train and config.select_supervision == "teacher" and not taught:
        raise ValueError(
            "expected --teacher_model_name_or_path, or --selection_column_name with a teacher's relevance of each "
            "pixel, with select_supervision='teacher', got neither"
        )
    return None if name is None else SelectionColumn(name, data_args.selection_format)


def begin(model_args: ModelArguments, args: TrainingArguments) -> None:
    """What a run begins with: a look at the licence, and how much is logged."""
    check_identifier("--license", model_args.license)
    level = args.get_process_log_level()
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s")
    transformers.utils.logging.set_verbosity(level)
    datasets.utils.logging.set_verbosity(level)


def seed_everything(args: TrainingArguments) -> None:
    """Seeds all generators, once the data are there and before the model is made."""
    if args.full_determinism:
        enable_full_determinism(args.seed)
    else:
        set_seed(args.seed)


def evaluation_split(
    splits: Mapping[str, Any], data_args: DataTrainingArguments, args: TrainingArguments
) -> str | None:
    """The split to evaluate on, None for none; ValueError where a split is missing that the arguments ask for."""
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
    return evaluation if evaluating else None


def augmentation_config(data_args: DataTrainingArguments) -> AugmentationConfig | None:
    """The augmentation asked for, or none; ValueError for options that do not exist."""
    options = json_object("--augmentation", data_args.augmentation)
    return AugmentationConfig.from_dict(options) if options else None
