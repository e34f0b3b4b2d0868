"""Trainer with soft labels, averaged weights, a teacher, and checkpoints that survive an interruption."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..hub.model_card import trainer_card
from ..modeling_focusvit import FocusViTPreTrainedModel
from ..utils.files import write_whole
from .averaging import ExponentialMovingAverage
from .checkpoints import (
    TRAINER_STATE,
    begin_checkpoint,
    check_state,
    check_weights,
    checkpoint_folder,
    discard_unfinished,
    discarding_unfinished,
    is_complete,
    last_checkpoint,
    replacing_model,
)
from .data_collator import Collator, FocusViTDataCollator, SeededCollator, view_of
from .distillation import Distillation
from .objective import no_decay, require_finite, require_probabilities, soft_cross_entropy
from .selection import SelectedShare
from .sparsification import with_aux_loss, with_predictor_rate


logger = logging.get_logger(__name__)

# What the files of a checkpoint are called by the base class.
_OPTIMIZER, _SCHEDULER, _SCALER = "optimizer.pt", "scheduler.pt", "scaler.pt"


class FocusViTTrainer(Trainer):
    """
    [`~transformers.Trainer`] with soft labels, averaged weights, a teacher, and checkpoints that survive a full disk.

    The file that is written last tells a whole checkpoint from a half-written one, which is never resumed from: a full
    disk or a killed process leaves the previous checkpoint to go on from, and what was half-written is deleted.

    Args:
        model (`PreTrainedModel`, *optional*): Gives logits under that name, or first. Needed without `model_init`.
        args (`TrainingArguments`, *optional*):
            Its label smoothing is used in training, not in evaluation. Its `logging_nan_inf_filter` is switched off:
            a loss that is not finite ends the training with a ValueError.
        eval_collator (`Callable`, *optional*):
            Makes the batches of evaluation and prediction; by default `data_collator`.
        ema (`ExponentialMovingAverage`, *optional*):
            Its weights are used for evaluation and prediction, and `save_model` writes them; checkpoints keep both.
        distillation (`Distillation`, *optional*): A teacher's part in the loss of training.
        predictor_learning_rate (`float`, *optional*):
            The learning rate of predictors of relevance (`sparsification_relevance="learned"`) and of the gates of
            select-and-pack attention, which start new where the rest was trained before; by default that of the
            others.
        kwargs: All that the base class takes.

    The loss is the cross entropy of one class per image, given as a number or as probabilities, and in training what
    the model itself adds (`aux_loss`). With
    `compute_loss_func`, or another `label_smoother` than the base class makes, or a configuration for regression or
    for several classes per image (`problem_type`, or `num_labels=1`), it is the base class's.

    Raises:
        ValueError: On options that cannot be served together: a moving average of sharded weights, label smoothing
            without classes, a teacher beside another loss, and a collator whose columns would be removed.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        eval_collator: Collator | None = None,
        ema: ExponentialMovingAverage | None = None,
        distillation: Distillation | None = None,
        predictor_learning_rate: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(model, args, **kwargs)
        # The filter would put the mean of the losses before in the place of one that `log` has to see.
        self.args.logging_nan_inf_filter = False
        if ema is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("expected no moving average of the weights where they are sharded, got one")
        for collator in (self.data_collator, eval_collator):
            _require_columns_kept(collator, self.args)
        self.eval_collator = eval_collator
        self.ema = ema
        self.distillation = distillation
        self.predictor_learning_rate = predictor_learning_rate
        self._resumed_step: int | None = None
        self._losses: torch.Tensor | None = None
        self._selected = SelectedShare()
        if distillation is not None and not self._uses_own_loss():
            raise ValueError("expected no teacher beside another loss than the cross entropy of one class, got both")
        if self.args.label_smoothing_factor and self.compute_loss_func is None and not self._has_classes():
            raise ValueError(
                "expected no label_smoothing_factor for regression or several classes per image, got "
                f"{self.args.label_smoothing_factor}"
            )
        if ema is not None:
            self.add_callback(ema)

    def _has_classes(self) -> bool:
        """Whether the model's answer is one of several classes."""
        config = getattr(self._plain_model, "config", None)
        if getattr(config, "num_labels", None) == 1:
            return False
        return getattr(config, "problem_type", None) in (None, "single_label_classification")

    def _uses_own_loss(self) -> bool:
        own_smoother = self.label_smoother is None or type(self.label_smoother) is LabelSmoother
        return self.compute_loss_func is None and own_smoother and self._has_classes()

    @property
    def loss_is_scaled_for_ga(self) -> bool | None:  # type: ignore[override]
        """Whether the loss takes account of accumulated batches: our own, a mean over one batch, does not."""
        return False if self._uses_own_loss() else None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """
        Mean cross entropy of the batch, with hard or soft labels; label smoothing and a teacher in training only. The
        labels are kept from the model, whose own loss takes class numbers only. See the class for the other losses.
        The share of tokens that the model selects is logged beside the loss, and measured in evaluation.

        Raises:
            ValueError: If the rows of soft labels do not sum to one.
        """
        loss, outputs = self._loss_and_outputs(model, inputs, num_items_in_batch)
        if model.training:
            self._selected.add(outputs)
        return (loss, outputs) if return_outputs else loss

    def _loss_and_outputs(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> tuple[torch.Tensor, Any]:
        if not self._uses_own_loss() or "labels" not in inputs:
            return cast(tuple[torch.Tensor, Any], super().compute_loss(model, inputs, True, num_items_in_batch))
        inputs = dict(inputs)
        labels, view = inputs.pop("labels"), view_of(inputs)
        if model.training and self.distillation is not None:
            inputs = self.distillation.with_selection(inputs)
        outputs = model(**inputs)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        smoothing = self.label_smoother.epsilon if model.training and self.label_smoother is not None else 0.0
        loss = soft_cross_entropy(logits, labels, smoothing)
        if labels.is_floating_point():
            require_probabilities(labels)
        if model.training and self.distillation is not None:
            loss = self.distillation.mixed(loss, logits, inputs["pixel_values"], **view, outputs=outputs)
        return with_aux_loss(loss, outputs) if model.training else loss, outputs

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As in the base class. The sum of all losses is kept, since weights are saved only while it is finite."""
        loss = super().training_step(*args, **kwargs)
        self._losses = loss if self._losses is None else self._losses + loss
        return loss

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """
        As in the base class, but it resumes from the last complete checkpoint and none but a sound one, and a run that
        has made all of its steps trains no further: it only takes up the state of its end.

        Raises:
            ValueError: If there is no checkpoint to resume from, if a part of it is missing or damaged, or if training
                diverges.
        """
        run = Path(self.args.output_dir or ".")
        if self.args.should_save:
            discard_unfinished(run, TRAINER_STATE)
        checkpoint = self._checkpoint(run, resume_from_checkpoint)
        self._resumed_step = self._losses = None
        if checkpoint is not None:
            self._resumed_step = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE)).global_step
        if self.ema is not None:
            self.ema.resume_from = checkpoint
        with discarding_unfinished(run, TRAINER_STATE, self.args.should_save):
            result = super().train(str(checkpoint) if checkpoint else None, trial, ignore_keys_for_eval)
        best = self.state.best_model_checkpoint
        if self.ema is not None and self.args.load_best_model_at_end and best is not None:
            self.ema.load(Path(best), self._plain_model)
        if self.args.should_save:
            discard_unfinished(run, TRAINER_STATE)
        return result

    def _checkpoint(self, run: Path, wanted: str | bool | None) -> Path | None:
        """The folder to resume from, if any; ValueError where that is not possible."""
        if not wanted:
            return None
        folder = last_checkpoint(run, TRAINER_STATE) if wanted is True else Path(wanted)
        if folder is None:
            raise ValueError(f"expected a checkpoint to resume from in {run}, got none")
        if not is_complete(folder, TRAINER_STATE):
            raise ValueError(f"expected a checkpoint with {TRAINER_STATE} in {folder}, got none")
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            check_weights(folder, self._plain_model, optional=hasattr(self._plain_model, "peft_config"))
            check_state(folder / _OPTIMIZER)
            check_state(folder / _SCHEDULER)
        if (folder / _SCALER).exists():
            check_state(folder / _SCALER)
        number = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        check_state(folder / f"rng_state{number}.pth", needed=False)
        return folder

    def set_initial_training_values(self, args: TrainingArguments, dataloader: torch.utils.data.DataLoader) -> Any:
        """As in the base class, which would make one step more than all where a run is resumed at its end."""
        epochs, *others = super().set_initial_training_values(args, dataloader)
        if self._resumed_step is not None and self._resumed_step >= (others[-1] or math.inf):
            logger.warning(f"Nothing is left to train: the run has made all of its {others[-1]} steps.")
            epochs = 0
        return epochs, *others

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As in the base class, with the predictors' own learning rate."""
        known = self.optimizer
        optimizer = super().create_optimizer(*args, **kwargs)
        if known is None and self.predictor_learning_rate is not None:
            groups = with_predictor_rate(optimizer.param_groups, self._plain_model, self.predictor_learning_rate)
            optimizer.param_groups[:] = groups
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters with weight decay: no biases, norms, tokens or position tables, as in DeiT."""
        return [name for name, parameter in model.named_parameters() if not no_decay(name, parameter)]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """As in the base class, with `eval_collator`, and every image."""
        with self._evaluating():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        """As in the base class, with `eval_collator`, and every image."""
        with self._evaluating():
            return super().get_test_dataloader(test_dataset)

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As in the base class, with the averaged weights where there are any, and the share of tokens selected."""
        selected = SelectedShare()
        with self._averaged(), selected.counted(self._plain_model):
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        named = {f"{metric_key_prefix}_{name}": share for name, share in selected.taken(self._mean).items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def _mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all processes."""
        return self.accelerator.reduce(value.to(self.args.device), reduction="mean")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in the base class; ValueError for a loss that is not finite, before such weights replace a checkpoint."""
        # The second is the mean of the whole training, logged at its end.
        for name in ("loss", "train_loss"):
            require_finite(logs.get(name, 0.0), self.state.global_step)
        if "loss" in logs:
            logs = {**logs, **self._selected.taken(self._mean)}
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Saves the model (its averaged weights, where there are any) and the image processor.

        The files are written beside the old ones, which they replace when all of them are on the disk. The base class
        calls this for a checkpoint too, which gets the model's own weights and the averaged ones beside them.
        """
        target = Path(output_dir or self.args.output_dir or ".")
        if _internal_call and target == checkpoint_folder(target.parent, self.state.global_step):
            self._save_checkpoint_model(target)
            return
        with replacing_model(target, self.args.should_save) as staging, self._averaged():
            super().save_model(str(staging), _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_checkpoint_model(self, folder: Path) -> None:
        if self._losses is not None:
            # Also the losses that are not logged yet, of all processes.
            require_finite(float(self._mean(self._losses)), self.state.global_step)
        if self.args.should_save:
            begin_checkpoint(folder)
        self.accelerator.wait_for_everyone()
        super().save_model(str(folder), _internal_call=True)
        if self.args.should_save and self.ema is not None:
            self.ema.save(folder)

    def _save_rng_state(self, output_dir: str) -> None:
        # Every process writes its random state, then the first one writes the state that makes the checkpoint complete
        # and deletes older ones. No public method lies between the two, and without a barrier a process that is killed
        # late would leave a checkpoint without its random state as the only one.
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """
        Writes the card of [`~model_card.trainer_card`] to the output folder, instead of the base class's draft, which
        others than FocusViTs get. The language, the task and the arguments of a data set have no place in it.
        """
        if not isinstance(self._plain_model, FocusViTPreTrainedModel):
            about = (language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args)
            super().create_model_card(*about)
        elif self.is_world_process_zero():
            card = trainer_card(self, model_name, license, tags, finetuned_from, dataset, dataset_tags)
            write_whole(Path(self.args.output_dir or ".") / "README.md", str(card).encode())

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        collator, drop_last = self.data_collator, self.args.dataloader_drop_last
        # The base class would also leave out the last images.
        self.args.dataloader_drop_last = False
        if self.eval_collator is not None:
            self.data_collator = self.eval_collator
        try:
            yield
        finally:
            self.data_collator, self.args.dataloader_drop_last = collator, drop_last

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return self.ema.applied(self._plain_model) if self.ema is not None else contextlib.nullcontext()

    @property
    def _plain_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)


def _require_columns_kept(collator: Any, args: TrainingArguments) -> None:
    inner = collator.collator if isinstance(collator, SeededCollator) else collator
    if isinstance(inner, FocusViTDataCollator) and args.remove_unused_columns:
        raise ValueError(
            "expected TrainingArguments(remove_unused_columns=False) with FocusViTDataCollator, which needs columns "
            "that Trainer would remove, got True"
        )
