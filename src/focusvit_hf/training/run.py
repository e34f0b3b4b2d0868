"""The training application, from arguments to a model: `focusvit train` and `examples/run_classification.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .arguments import DataTrainingArguments, TrainingArguments, parse_arguments, public_arguments, public_command
from .averaging import ExponentialMovingAverage
from .checkpoints import TRAINER_STATE
from .data import require_a_batch
from .data_collator import EpochCallback
from .evaluation import accuracy, measure, ranked
from .output_folder import clear_output_dir, finished_figures, prepare_output_dir
from .results import finish
from .setup import Setup, set_up
from .sparsification import FrozenBackbone
from .trainer import FocusViTTrainer


@dataclass(frozen=True)
class Task:
    """
    What training is for.

    Args:
        data_arguments (`type`): The dataclass of the arguments of the data.
        set_up (`Callable`): See [`~setup.set_up`].
        measure (`Callable`): Measures the saved model on the test split, see [`~evaluation.measure`].
    """

    data_arguments: type[DataTrainingArguments]
    set_up: Callable[..., Setup]
    measure: Callable[..., dict[str, float]]


CLASSIFICATION = Task(DataTrainingArguments, set_up, measure)


@dataclass
class Outcome:
    """
    What a training tells.

    Args:
        steps (`int`): How many steps the model has made.
        history (`list[dict]`): What was logged on the way.
        figures (`dict[str, float]`): What was measured at the end, with the prefix `eval_`.
    """

    steps: int
    history: list[dict[str, Any]]
    figures: dict[str, float] = field(default_factory=dict)


def run(
    argv: Sequence[str],
    program: str,
    train: Callable[[TrainingArguments, Setup, str | None], Outcome],
    state_file: str = TRAINER_STATE,
    task: Task = CLASSIFICATION,
) -> dict[str, float]:
    """
    Runs a training script. A run that was interrupted goes on from its last complete checkpoint; one that is finished
    is left as it is.

    Args:
        argv (sequence of `str`): The command line without the program's name.
        program (`str`): What was called, as it is written in a shell; for the log.
        train (`Callable`): Takes the arguments, what was set up and the checkpoint to resume from, if any. It trains
            and saves the model with `--do_train`, and evaluates it with `--do_eval`.
        state_file (`str`, *optional*, defaults to `"trainer_state.json"`): The file that its checkpoints end with.
        task ([`Task`], *optional*): What is trained; a classifier by default.

    Returns:
        `dict[str, float]`: The figures of the last evaluation, and of the final one with the prefix `test_`.

    Raises:
        ValueError: On arguments or data that do not fit, before training begins.
    """
    begin = time.time()
    model_args, data_args, args = parse_arguments(argv, program, task.data_arguments)
    # As they were given: Trainer changes some.
    arguments = public_arguments(model_args, data_args, args)
    finished = finished_figures(args, arguments, state_file)
    if finished is not None:
        return finished
    checkpoint = prepare_output_dir(args, state_file)
    setup = task.set_up(model_args, data_args, args, checkpoint)
    outcome = train(args, setup, checkpoint)
    figures = outcome.figures
    if args.should_save:
        log = {
            "arguments": arguments,
            "command": public_command(program, argv, model_args, args),
            "log_history": outcome.history,
            "resumed_from": checkpoint,
            "steps": outcome.steps,
        }
        figures = finish(data_args, args, setup, figures, log, begin, task.measure)
    return figures


def train_with_trainer(args: TrainingArguments, setup: Setup, checkpoint: str | None) -> Outcome:
    """
    Trains with [`FocusViTTrainer`], see [`run`].

    Raises:
        ValueError: If an epoch has no batch, if the checkpoint cannot be resumed from, or if training diverges.
    """
    if args.do_train:
        require_a_batch(setup.train_rows, args.train_batch_size * args.world_size, args)
    trainer = FocusViTTrainer(
        **trainer_options(args, setup),
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=ranked,
        callbacks=[
            EpochCallback(setup.train_collator),
            *([setup.elastic] if setup.elastic else []),
            *([FrozenBackbone(args.frozen_epochs)] if args.frozen_epochs else []),
        ],
        distillation=setup.distillation,
        predictor_learning_rate=args.predictor_learning_rate,
    )
    return carried_out(trainer, args, checkpoint)


def trainer_options(args: TrainingArguments, setup: Setup) -> dict[str, Any]:
    """The options of a [`FocusViTTrainer`] that are the same for every task."""
    return {
        "model": setup.model,
        "args": args,
        "data_collator": setup.train_collator,
        "eval_collator": setup.eval_collator,
        "train_dataset": setup.train_rows,
        "eval_dataset": setup.eval_rows,
        "processing_class": setup.processor,
        "ema": ExponentialMovingAverage(args.ema_decay) if args.ema_decay else None,
    }


def carried_out(trainer: FocusViTTrainer, args: TrainingArguments, checkpoint: str | None) -> Outcome:
    """Has a trainer train and save its model with `--do_train`, and evaluate it with `--do_eval`."""
    if args.do_train:
        clear_output_dir(args, checkpoint)
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_metrics("train", result.metrics, combined=False)
        trainer.save_model()
        trainer.save_state()
    figures: dict[str, float] = trainer.evaluate() if args.do_eval else {}
    if figures:
        trainer.log_metrics("eval", figures)
    return Outcome(trainer.state.global_step, trainer.state.log_history, figures)
