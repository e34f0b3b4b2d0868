"""
Trains a FocusViT for image classification with the Trainer.

    python examples/run_classification.py configuration/recipes/cifar10-nano.json --output_dir runs/cifar10-nano
    python examples/run_classification.py --preset focusvit-tiny --train_dir pictures/train \
        --validation_dir pictures/val --output_dir runs/mine --do_train --do_eval

A run that was interrupted goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import sys
import time

import torch
from transformers import EvalPrediction

from focusvit_hf.training.arguments import clear_output_dir, parse_arguments, prepare_output_dir, public_command
from focusvit_hf.training.averaging import ExponentialMovingAverage
from focusvit_hf.training.data import require_a_batch
from focusvit_hf.training.data_collator import EpochCallback
from focusvit_hf.training.metrics import TopKAccuracy
from focusvit_hf.training.setup import finish, set_up
from focusvit_hf.training.trainer import FocusViTTrainer


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
    checkpoint = prepare_output_dir(args)
    setup = set_up(model_args, data_args, args, checkpoint)
    if args.do_train:
        require_a_batch(setup.train_rows, args.train_batch_size * args.world_size, args)
    metric = TopKAccuracy(keep_in_memory=True)

    def ranked(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.topk(min(5, logits.shape[-1])).indices

    def accuracy(prediction: EvalPrediction) -> dict[str, float]:
        return metric.compute(predictions=prediction.predictions, references=prediction.label_ids)

    trainer = FocusViTTrainer(
        model=setup.model,
        args=args,
        data_collator=setup.train_collator,
        eval_collator=setup.eval_collator,
        train_dataset=setup.train_rows,
        eval_dataset=setup.eval_rows,
        processing_class=setup.processor,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=ranked,
        callbacks=[EpochCallback(setup.train_collator), *([setup.elastic] if setup.elastic else [])],
        ema=ExponentialMovingAverage(args.ema_decay) if args.ema_decay else None,
        distillation=setup.distillation,
    )
    if args.do_train:
        clear_output_dir(args, checkpoint)
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_metrics("train", result.metrics, combined=False)
        trainer.save_model()
        trainer.save_state()
    figures: dict[str, float] = {}
    if args.do_eval:
        figures = trainer.evaluate()
    if args.should_save:
        command = public_command(__file__, argv, model_args, args)
        log = {"command": command, "log_history": trainer.state.log_history, "resumed_from": checkpoint}
        figures = finish(model_args, data_args, args, setup, figures, log, begin)
        if figures:
            trainer.log_metrics("final", figures)
    return figures


if __name__ == "__main__":
    main()
