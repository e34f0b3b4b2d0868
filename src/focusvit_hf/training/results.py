"""What is left of a run beside its checkpoints: figures, log and card, and the push to the Hub."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader

import focusvit_hf

from ..hub.folder import CARD_FILE, TRAINING_LOG_FILE
from ..hub.push import push_to_hub
from ..modeling_focusvit import FocusViTForImageClassification
from ..utils.files import write_json, write_whole
from .arguments import DataTrainingArguments, TrainingArguments
from .card import card_of, model_name
from .data import as_rows
from .evaluation import measure
from .setup import Setup
from .teacher_report import compare_with_teacher, report_table


def finish(
    data_args: DataTrainingArguments,
    args: TrainingArguments,
    setup: Setup,
    figures: Mapping[str, float],
    log: Mapping[str, Any],
    begin: float,
    measure: Callable[..., dict[str, float]] = measure,
) -> dict[str, float]:
    """
    Measures the saved model on the test split or `--max_eval_samples` of its images, unless that is switched off,
    writes the log of the run and the model's card, and pushes both with the model where that was asked for.

    Args:
        figures (`dict[str, float]`): What was measured so far.
        log (`dict`): More to be written: command and arguments, the history of the run, the checkpoint it began from.
        begin (`float`): `time.time()` at the beginning.
        measure (`Callable`, *optional*): What measures the saved model; by default a classifier's accuracy.

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
        "figures": figures,
        "versions": versions(),
        "wall_time_seconds": round(time.time() - begin, 1),
    }
    if args.do_train and args.final_evaluation and not data_args.streaming:
        content |= teacher_figures(data_args, args, setup)
    if not args.do_train:
        write_json(args.folder / "evaluation_log.json", content)
        return figures
    content |= setup.origin
    write_whole(args.folder / CARD_FILE, str(card_of(setup.model, args, content)).encode())
    # Last, since a run with a log is one that is finished.
    write_json(args.folder / TRAINING_LOG_FILE, content)
    if args.push_to_hub:
        push_to_hub(
            args.folder,
            args.hub_model_id or model_name(args),
            private=args.hub_private_repo,
            revision=args.hub_revision,
            token=args.hub_token,
        )
    return figures


def teacher_figures(data_args: DataTrainingArguments, args: TrainingArguments, setup: Setup) -> dict[str, Any]:
    """Under `"teacher"` the saved model beside its teacher on the test or validation images, which is printed too."""
    split = next((name for name in ("test", "validation") if name in setup.splits), None)
    if setup.distillation is None or split is None:
        return {}
    rows, size = as_rows(setup.splits[split], data_args), args.per_device_eval_batch_size
    batches = DataLoader(rows, batch_size=size, collate_fn=setup.eval_collator)
    model = FocusViTForImageClassification.from_pretrained(args.folder)
    report = compare_with_teacher(model, setup.distillation, batches, args.device)
    print(report_table(report))
    return {"teacher": {"split": split, **report}}


def versions() -> dict[str, str]:
    """Versions of everything a result depends on."""
    modules = (focusvit_hf, torch, transformers, accelerate, datasets, np)
    return {"python": sys.version.split()[0], **{m.__name__: getattr(m, "__version__", "") for m in modules}}
