"""The teacher that the training scripts are told of: found, fitted to the student, and given its bank."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset

from ..configuration_focusvit import FocusViTConfig
from ..image_processing_focusvit import FocusViTImageProcessor
from .arguments import DataTrainingArguments, ModelArguments, TrainingArguments
from .augmentation import AugmentationConfig
from .data import decoded
from .distillation import Distillation, load_distillation, load_teacher_function
from .teacher_bank import TeacherBank


# What an image's view depends on beside the augmentation.
_VIEW_OPTIONS = ("do_resize", "size", "resample", "do_center_crop", "crop_size")
_IMAGES_READ = 16


def make_distillation(
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    args: TrainingArguments,
    config: FocusViTConfig,
    processor: FocusViTImageProcessor,
    augmentation: AugmentationConfig | None,
    split: Any,
) -> Distillation | None:
    """
    The teacher asked for, with its bank where one is asked for; none where there is no teacher.

    Args:
        config ([`FocusViTConfig`]): The student's.
        processor ([`FocusViTImageProcessor`]): The student's.
        augmentation ([`AugmentationConfig`]): Of training; None where there is none.
        split (`datasets.Dataset`): The training images.

    Raises:
        ValueError: If arguments contradict each other, if the teacher does not fit the student, or if the bank was
            made for another teacher, augmentation, data set or seed.
    """
    if args.teacher is None and args.teacher_model_name_or_path is None:
        if args.teacher_classes is not None or args.teacher_bank is not None:
            raise ValueError(
                "expected --teacher or --teacher_model_name_or_path with --teacher_classes, --teacher_bank"
            )
        return None
    if args.teacher is not None and args.teacher_model_name_or_path is not None:
        raise ValueError(
            "expected one of --teacher, --teacher_model_name_or_path, got "
            f"{args.teacher} and {args.teacher_model_name_or_path}"
        )
    if args.teacher_bank is not None and args.distillation_token_weight:
        raise ValueError("expected no --teacher_bank with --distillation_token_weight, since it keeps logits alone")
    if args.teacher_bank is not None:
        _refuse_without_views(args, augmentation, split)
    options: dict[str, Any] = {
        "alpha": args.distillation_alpha,
        "temperature": args.distillation_temperature,
        "kind": args.distillation_type,
        "classes": args.teacher_classes,
        "token_weight": args.distillation_token_weight,
    }
    if args.teacher is not None:
        distillation = load_teacher_function(args.teacher, config, **options)
    else:
        distillation = load_distillation(
            str(args.teacher_model_name_or_path),
            config,
            dtype=torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32,
            cache_dir=model_args.cache_dir,
            token=model_args.token,
            trust_remote_code=model_args.trust_remote_code,
            **options,
        )
    if args.teacher_bank is not None:
        header = {
            "teacher": args.teacher or args.teacher_model_name_or_path,
            "teacher_classes": args.teacher_classes,
            "teacher_size": None if distillation.size is None else list(distillation.size),
            "augmentation": None if augmentation is None else augmentation.to_dict(),
            "image_processor": {name: processor.to_dict().get(name) for name in _VIEW_OPTIONS},
            "data": digest(split, data_args),
            "seed": args.seed,
        }
        # The processes of a run share the files, so that one of them has to make them.
        with args.main_process_first(desc="opening the teacher's bank"):
            distillation.bank = TeacherBank(
                args.teacher_bank, header, len(split), args.teacher_views, distillation.num_labels
            )
    return distillation


def _refuse_without_views(args: TrainingArguments, augmentation: AugmentationConfig | None, split: Any) -> None:
    """ValueError where no view comes again, so that a bank would be of no use."""
    if isinstance(split, IterableDataset):
        raise ValueError("expected no --teacher_bank with --streaming, whose images have no lasting numbers")
    if args.teacher_views < 1:
        raise ValueError(f"expected --teacher_views of at least 1, got {args.teacher_views}")
    if augmentation is not None and augmentation.makes_soft_targets:
        raise ValueError(
            "expected no mixup and no cutmix with --teacher_bank, since a mixed image depends on its batch and never "
            f"comes again, got mixup_alpha={augmentation.mixup_alpha} and cutmix_alpha={augmentation.cutmix_alpha}"
        )


def digest(split: Any, data_args: DataTrainingArguments) -> str:
    """
    What a set of training images is told from others by: SHA-256 of all labels in their order and of the pixels of 16
    images spread evenly over it. Another copy of the same data has the same digest.
    """
    image, label = data_args.image_column_name, data_args.label_column_name
    found = hashlib.sha256(np.asarray(split[label], dtype=np.int64).tobytes())
    for index in np.unique(np.linspace(0, len(split) - 1, _IMAGES_READ).astype(int)).tolist():
        found.update(np.asarray(decoded(split[index][image], index)).tobytes())
    return found.hexdigest()
