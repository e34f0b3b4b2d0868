"""What the training scripts share: loss, averaged weights, repeatable augmentation, checkpoints that survive."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import load_fsdp_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import _is_peft_model, rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from .distillation import Distillation
from .files import discarded_on_error, replace_files, write_whole
from .model_card import trainer_card
from .modeling_focusvit import FocusViTPreTrainedModel


Collator = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]

EMA_FILE = "ema.safetensors"
STAGING_FOLDER = ".incomplete"

# Learned vectors and tables, which DeiT trains without weight decay: tokens, latents, position table.
NO_DECAY_NAMES = ("cls_token", "distillation_token", "register_tokens", "latents", "position.table")


def soft_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0, reduction: str = "mean"
) -> torch.Tensor:
    """
    Cross entropy for class numbers and for class probabilities (mixup, cutmix), in fp32.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Scores before the softmax.
        labels (`torch.LongTensor` of shape `(batch_size,)` or `torch.FloatTensor` like `logits`):
            Class numbers, or probabilities that sum to one in each row.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of the target, in 0..1, spread evenly over all classes (Szegedy et al. 2016, section 7).
        reduction (`str`, *optional*, defaults to `"mean"`): As in `torch.nn.functional.cross_entropy`.

    Returns:
        `torch.FloatTensor`: The mean over the batch (a scalar), or one value a picture for `reduction="none"`.

    Raises:
        ValueError: If the labels fit neither form.
    """
    hard = labels.ndim == 1 and not labels.is_floating_point()
    soft = labels.shape == logits.shape and labels.is_floating_point()
    if not hard and not soft:
        raise ValueError(
            f"expected integer labels of shape {(logits.shape[0],)} or floating point labels of shape "
            f"{tuple(logits.shape)}, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    target = labels.float() if soft else labels
    return F.cross_entropy(logits.float(), target, label_smoothing=label_smoothing, reduction=reduction)


def require_finite(loss: float, step: int) -> None:
    """ValueError where training has diverged."""
    if not math.isfinite(loss):
        raise ValueError(f"expected a finite loss, got {loss} at step {step}; a lower --learning_rate may help")


class SeededCollator:
    """
    Makes the randomness of a collator a function of the seed, the epoch and the pictures of the batch alone.

    The draws then depend neither on the number of workers, nor on prefetching, nor on where a run was interrupted: a
    resumed run sees the pictures the uninterrupted one sees.

    Args:
        collator (`Callable`): Takes a list of dicts, returns the batch; draws from torch's global generator.
        seed (`int`): Seed of the run.
    """

    def __init__(self, collator: Collator, seed: int):
        self.collator = collator
        self.seed = seed
        # Shared, so that workers that live on from epoch to epoch see it change.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            features (`list[dict]`): Pictures, each with its number in the data set under `"index"`.

        Returns:
            `dict[str, torch.Tensor]`: What the wrapped collator returns.
        """
        indices = [int(feature["index"]) for feature in features]
        features = [{key: value for key, value in feature.items() if key != "index"} for feature in features]
        entropy = np.random.SeedSequence([self.seed, int(self.epoch), *indices])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(entropy.generate_state(1, np.uint32)[0]))
            return self.collator(features)


class EpochCallback(TrainerCallback):
    """Tells a [`SeededCollator`] which epoch has begun."""

    def __init__(self, collator: SeededCollator):
        self.collator = collator

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts counting at the epoch that training resumes in, or at 0."""
        self.collator.epoch.fill_(int(state.epoch or 0) - 1)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts on. The trainer's own count is of no use here: it stands still over a stream read again."""
        self.collator.epoch.add_(1)


class ExponentialMovingAverage(TrainerCallback):
    """
    An exponential moving average of the weights, from `torch.optim.swa_utils`, updated after each optimiser step.

    After n updates the decay is `min(decay, (1 + n) / (10 + n))`: a short run is not ruled by its random start.

    Args:
        decay (`float`): Between 0 and 1; 0.999 averages over about a thousand steps.

    Raises:
        ValueError: If `decay` is outside (0, 1).
    """

    def __init__(self, decay: float):
        if not 0.0 < decay < 1.0:
            raise ValueError(f"expected 0 < ema_decay < 1, got {decay}")
        self.decay = decay
        self.average: AveragedModel | None = None

    def update(self, model: nn.Module) -> None:
        """Takes in the weights of `model`; begins with them where nothing was taken in yet."""
        average = self.average
        if average is None:
            average = self.average = AveragedModel(model, use_buffers=True).requires_grad_(False)
        updates = int(average.n_averaged)
        average.multi_avg_fn = get_ema_multi_avg_fn(min(self.decay, (1 + updates) / (10 + updates)))
        average.update_parameters(model)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within this context `model` holds the averaged weights; before the first update nothing changes."""
        if self.average is None:
            yield
            return
        own = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            model.load_state_dict(self.average.module.state_dict())
            yield
        finally:
            model.load_state_dict(own)

    def save(self, folder: Path) -> None:
        """Writes the average and its number of updates to `folder / "ema.safetensors"`."""
        if self.average is None:
            return
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.average.module.state_dict().items()}
        tensors["n_averaged"] = self.average.n_averaged.cpu()
        save_file(tensors, folder / EMA_FILE)

    def load(self, folder: Path, model: nn.Module) -> None:
        """
        Continues the average saved in `folder`, for `model`.

        Raises:
            ValueError: If the folder holds none, a damaged one, or one of another model.
        """
        path = folder / EMA_FILE
        if not path.is_file():
            raise ValueError(f"expected a moving average of the weights in {path}, got no such file; drop --ema_decay")
        average = AveragedModel(model, use_buffers=True).requires_grad_(False)
        names = {*average.module.state_dict(), "n_averaged"}
        try:
            tensors = load_file(path)
            if names != tensors.keys():
                raise ValueError(f"expected the weights {sorted(names)} in {path}, got {sorted(tensors)}")
            average.n_averaged.copy_(tensors.pop("n_averaged"))
            average.module.load_state_dict(tensors)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"expected the moving average of this model in {path}, got: {error}") from error
        self.average = average

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after each optimiser step."""
        self.update(kwargs["model"])


def no_decay(name: str, parameter: torch.Tensor) -> bool:
    """Whether DeiT (Touvron et al. 2021) keeps weight decay off a parameter: vectors, tokens and position tables."""
    return parameter.ndim <= 1 or name.endswith(NO_DECAY_NAMES)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of `model` for an optimiser: those with weight decay, and those without, see [`no_decay`]."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[no_decay(name, parameter)]["params"].append(parameter)
    return groups


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
