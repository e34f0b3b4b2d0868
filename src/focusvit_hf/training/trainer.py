"""What the training scripts share: loss, averaged weights, repeatable augmentation, checkpoints that survive."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import load_fsdp_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import _is_peft_model, rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from ..hub.model_card import trainer_card
from ..modeling_focusvit import FocusViTPreTrainedModel
from ..utils.files import discarded_on_error, replace_files, write_whole
from .averaging import ExponentialMovingAverage
from .data_collator import Collator
from .distillation import Distillation
from .objective import no_decay, require_finite, soft_cross_entropy


STAGING_FOLDER = ".incomplete"


class FocusViTTrainer(Trainer):
    """
    [`~transformers.Trainer`] with soft labels, averaged weights, and checkpoints that appear whole or not at all.

    A checkpoint is written into a folder of its own and moved to `checkpoint-N` when every file of it is on the disk;
    older ones are deleted after that. A full disk or a killed process leaves the previous checkpoint as it was.

    Args:
        model (`PreTrainedModel`): Gives logits under that name and gets no labels.
        args (`TrainingArguments`):
            Its label smoothing is used in training, not in evaluation. Its `logging_nan_inf_filter` is switched off:
            a loss that is not finite ends the training with a ValueError.
        eval_collator (`Callable`, *optional*):
            Makes the batches of evaluation and prediction; by default `data_collator`.
        ema (`ExponentialMovingAverage`, *optional*):
            Its weights are used for evaluation and prediction, and `save_model` writes them; checkpoints keep both.
        distillation (`Distillation`, *optional*): A teacher's part in the loss of training.
    """

    # `compute_loss` returns a mean over the batch.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        eval_collator: Collator | None = None,
        ema: ExponentialMovingAverage | None = None,
        distillation: Distillation | None = None,
        **kwargs: Any,
    ):
        super().__init__(model, args, **kwargs)
        # The filter would put the mean of the losses before in the place of one that `log` has to see.
        self.args.logging_nan_inf_filter = False
        if ema is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("expected no moving average of the weights where they are sharded, got one")
        self.eval_collator = eval_collator
        self.ema = ema
        self.distillation = distillation
        self._run_folder: str | None = None
        self._pending_push = False
        if ema is not None:
            self.add_callback(ema)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """
        Mean cross entropy of the batch, with hard or soft labels; label smoothing and a teacher in training only.

        The labels are kept from the model, whose own loss takes class numbers only.
        """
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        loss = soft_cross_entropy(outputs["logits"], labels, smoothing)
        if model.training and self.distillation is not None:
            loss = self.distillation.mixed(loss, outputs["logits"], inputs["pixel_values"])
        return (loss, outputs) if return_outputs else loss

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters with weight decay: no biases, norms, tokens or position tables, as in DeiT."""
        return [name for name, parameter in model.named_parameters() if not no_decay(name, parameter)]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """As in the base class, with `eval_collator`, and every picture."""
        with self._evaluating():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        """As in the base class, with `eval_collator`, and every picture."""
        with self._evaluating():
            return super().get_test_dataloader(test_dataset)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in the base class, with the averaged weights where there are any."""
        with self._averaged():
            return super().evaluation_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in the base class; ValueError for a loss that is not finite, before such weights replace a checkpoint."""
        # The second is the mean of the whole training, logged at its end.
        for name in ("loss", "train_loss"):
            require_finite(logs.get(name, 0.0), self.state.global_step)
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Saves the model (its averaged weights, where there are any) and the image processor.

        The files are written beside the old ones, which they replace when all of them are on the disk.
        """
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        target = Path(output_dir or super()._get_output_dir(trial=None))
        staging = target / STAGING_FOLDER
        if self.args.should_save:
            # What a killed process left. No barrier: a model that is not sharded may be saved by one process alone.
            shutil.rmtree(staging, ignore_errors=True)
        with self._averaged(), discarded_on_error(staging if self.args.should_save else None):
            super().save_model(str(staging), _internal_call=True)
        if self.args.should_save:
            replace_files(staging, target)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

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
        # The base class would also leave out the last pictures.
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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        weights = folder / SAFE_WEIGHTS_NAME
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            load_fsdp_model(plugin, self.accelerator, model, str(folder))
            return
        try:
            if _is_peft_model(self._plain_model) and not weights.exists():
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                # The base class only warns of missing tensors.
                (model or self._plain_model).load_state_dict(load_file(weights))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"expected the weights of this model in {folder}, got: {error}") from error

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.ema is not None:
            self.ema.load(Path(checkpoint), self._plain_model)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = self.state.best_model_checkpoint
        if self.ema is not None and best is not None:
            self.ema.load(Path(best), self._plain_model)

    def _get_output_dir(self, trial: Any) -> str:
        return self._run_folder or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Pushing reads the folder in the background: not before it has its final name.
        self._pending_push = True

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # The losses that are not logged yet, of all processes.
        require_finite(float(self.accelerator.reduce(self._tr_loss, reduction="mean")), self.state.global_step)
        run_folder = Path(super()._get_output_dir(trial))
        staging = run_folder / STAGING_FOLDER
        name = f"checkpoint-{self.state.global_step}"
        best = self.state.best_model_checkpoint
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._run_folder = str(staging)
        try:
            with discarded_on_error(staging if self.args.should_save else None):
                super()._save_checkpoint(model, trial)
                if self.args.should_save:
                    self.state.best_model_checkpoint = best
                    if self.state.best_global_step:
                        best_folder = run_folder / f"checkpoint-{self.state.best_global_step}"
                        if best_folder.is_dir() or best_folder.name == name:
                            self.state.best_model_checkpoint = str(best_folder)
                    self.state.save_to_json(str(staging / name / "trainer_state.json"))
                    if self.ema is not None:
                        self.ema.save(staging / name)
        finally:
            self._run_folder = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            final = run_folder / name
            shutil.rmtree(final, ignore_errors=True)
            os.replace(staging / name, final)
            shutil.rmtree(staging, ignore_errors=True)
            rotate_checkpoints(
                output_dir=str(run_folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()
        if self._pending_push:
            self._pending_push = False
            super()._push_from_checkpoint(str(run_folder / name))
