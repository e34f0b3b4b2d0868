"""
Trains a FocusViT for image classification with the Trainer.

    python examples/run_classification.py configuration/recipes/cifar10-nano.json --output_dir runs/cifar10-nano
    python examples/run_classification.py --preset focusvit-tiny --train_dir pictures/train \
        --validation_dir pictures/val --output_dir runs/mine --do_train --do_eval

A run that was interrupted goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import datasets
import torch
import transformers
from transformers import EvalPrediction, enable_full_determinism, set_seed

from focusvit_hf.augmentation import FocusViTDataCollator
from focusvit_hf.metrics import TopKAccuracy
from focusvit_hf.training import (
    EpochCallback,
    ExponentialMovingAverage,
    FocusViTTrainer,
    SeededCollator,
    write_json,
)
from training_arguments import parse_arguments, prepare_output_dir, public_arguments
from training_data import as_rows, class_names, load_pictures
from training_model import augmentation_config, load_model, measure, refuse_other_configuration, versions


logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """
    Runs the script.

    Args:
        argv (`list[str]`, *optional*): The command line without the program's name; `sys.argv[1:]` by default.

    Returns:
        `dict[str, float]`: The figures of the last evaluation, and of the final one with the prefix `test_`.

    Raises:
        ValueError: On arguments or data that do not fit, before training begins.
    """
    begin = time.time()
    argv = sys.argv[1:] if argv is None else argv
    model_args, data_args, args = parse_arguments(argv)
    logging.basicConfig(level=args.get_process_log_level(), format="%(asctime)s %(name)s: %(message)s")
    transformers.utils.logging.set_verbosity(args.get_process_log_level())
    datasets.utils.logging.set_verbosity(args.get_process_log_level())
    checkpoint = prepare_output_dir(args)

    with args.main_process_first(desc="loading the data"):
        splits = load_pictures(data_args, model_args, args.seed)
    if args.do_train and "train" not in splits:
        raise ValueError(f"expected a split 'train', got {sorted(splits)}")
    if args.do_train and data_args.streaming and args.max_steps <= 0:
        raise ValueError("expected --max_steps with --streaming, since a stream has no length")
    names = class_names(next(iter(splits.values())), data_args)
    evaluation = next((name for name in ("validation", "test") if name in splits), None)
    if evaluation is None and (args.do_eval or args.eval_strategy != "no"):
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
    model, processor = load_model(model_args, names)

    columns = {"image_column": data_args.image_column_name, "label_column": data_args.label_column_name}
    rows = {}
    with args.main_process_first(desc="decoding the pictures"):
        if args.do_train:
            rows["train"] = as_rows(splits["train"], data_args, shuffle_seed=args.seed)
        if evaluation is not None and (args.do_eval or args.eval_strategy != "no"):
            rows[evaluation] = as_rows(splits[evaluation], data_args)
    train_collator = SeededCollator(
        FocusViTDataCollator(processor, augmentation_config(data_args, args), num_labels=len(names), **columns),
        args.seed,
    )
    ema = ExponentialMovingAverage(args.ema_decay) if args.ema_decay else None
    metric = TopKAccuracy(keep_in_memory=True)

    def ranked(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.topk(min(5, logits.shape[-1])).indices

    def accuracy(prediction: EvalPrediction) -> dict[str, float]:
        return metric.compute(predictions=prediction.predictions, references=prediction.label_ids)

    trainer = FocusViTTrainer(
        model=model,
        args=args,
        data_collator=train_collator,
        eval_collator=SeededCollator(FocusViTDataCollator(processor, num_labels=len(names), **columns), args.seed),
        train_dataset=rows.get("train"),
        eval_dataset=rows.get(evaluation),
        processing_class=processor,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=ranked,
        callbacks=[EpochCallback(train_collator)],
        ema=ema,
    )
    if args.do_train:
        refuse_other_configuration(checkpoint, model.config)
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_metrics("train", result.metrics, combined=False)
        trainer.save_model()
        trainer.save_state()
    figures: dict[str, float] = {}
    if args.do_eval:
        figures = trainer.evaluate()
        trainer.log_metrics("eval", figures)
    if args.should_save:
        output_dir = Path(args.output_dir)
        if args.do_train and args.final_evaluation and "test" in splits and not data_args.streaming:
            test = measure(output_dir, splits["test"], data_args, args.per_device_eval_batch_size, args.device)
            figures.update({f"test_{key}": value for key, value in test.items()})
            trainer.log_metrics("test", {key: value for key, value in figures.items() if key.startswith("test_")})
        write_json(
            output_dir / ("training_log.json" if args.do_train else "evaluation_log.json"),
            {
                "arguments": public_arguments(model_args, data_args, args),
                "figures": figures,
                "log_history": trainer.state.log_history,
                "resumed_from": checkpoint,
                "versions": versions(),
                "wall_time_seconds": round(time.time() - begin, 1),
            },
        )
    return figures


if __name__ == "__main__":
    main()
