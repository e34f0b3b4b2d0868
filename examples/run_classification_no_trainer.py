"""
Trains a FocusViT for image classification in a plain loop with Accelerate, to be changed at will.

    python examples/run_classification_no_trainer.py configuration/recipes/cifar10-nano.json --output_dir runs/cifar10
    accelerate launch --config_file configuration/accelerate/fsdp.yaml examples/run_classification_no_trainer.py \
        --preset focusvit-base --train_dir images/train --output_dir runs/mine --do_train

Flags, recipes, data and results are those of `run_classification.py`, as far as they concern the data, the model, the
optimiser, its schedule and precision, and when to log, evaluate and save. A run that was interrupted goes on from its
last checkpoint when the same command is given again.
"""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm
from transformers import Trainer, TrainerState, get_scheduler

from focusvit_hf.training.accelerate_checkpoints import is_sharded, read_checkpoint, write_checkpoint
from focusvit_hf.training.arguments import TrainingArguments, json_object
from focusvit_hf.training.averaging import ExponentialMovingAverage
from focusvit_hf.training.checkpoints import PROGRESS_FILE, checkpoint_folder, replacing_model
from focusvit_hf.training.data import require_a_batch
from focusvit_hf.training.data_collator import view_of
from focusvit_hf.training.evaluation import TopKAccuracy, ranked
from focusvit_hf.training.objective import parameter_groups, require_finite, soft_cross_entropy
from focusvit_hf.training.output_folder import clear_output_dir
from focusvit_hf.training.run import Outcome, run
from focusvit_hf.training.selection import SelectedShare
from focusvit_hf.training.setup import Setup
from focusvit_hf.training.sparsification import rest_backbone, with_aux_loss, with_predictor_rate


class Loop:
    """
    One training run.

    Args:
        args (`TrainingArguments`): The same as the Trainer's.
        setup (`Setup`): Data, model and collators.

    Raises:
        ValueError: If the arguments ask for what this loop does not do, or for batches larger than the data.
    """

    def __init__(self, args: TrainingArguments, setup: Setup):
        if args.load_best_model_at_end or args.save_strategy == "best":
            raise ValueError("expected no choice of a best model, which only run_classification.py makes")
        self.args = args
        self.setup = setup
        self.accelerator = Accelerator(
            mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else None,
            cpu=args.use_cpu,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=args.gradient_accumulation_steps),
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
        )
        if is_sharded(self.accelerator) and args.ema_decay:
            raise ValueError("expected no --ema_decay where the weights are sharded, got one")
        self.ema = ExponentialMovingAverage(args.ema_decay) if args.ema_decay else None
        self.history: list[dict[str, float]] = []
        self.step = self.logged = 0
        # Sum of the losses of the steps since the last that was logged.
        self.losses = torch.zeros((), device=self.accelerator.device)
        self.selected = SelectedShare()
        self.learning_rate = 0.0
        self.model: Any = setup.model
        self.eval_loader = self.accelerator.prepare(self._loader(training=False)) if setup.eval_rows else None
        if not args.do_train:
            self.model = self.accelerator.prepare(setup.model)
            return
        require_a_batch(setup.train_rows, args.per_device_train_batch_size * self.accelerator.num_processes, args)
        make_optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args)
        groups = parameter_groups(setup.model, args.weight_decay)
        if args.predictor_learning_rate is not None:
            groups = with_predictor_rate(groups, setup.model, args.predictor_learning_rate)
        optimizer = make_optimizer(groups, **options)
        self.model, self.optimizer, self.train_loader = self.accelerator.prepare(
            setup.model, optimizer, self._loader(training=True)
        )
        self.total = args.max_steps
        if self.total <= 0:
            steps_in_epoch = math.ceil(len(self.train_loader) / args.gradient_accumulation_steps)
            self.total = math.ceil(args.num_train_epochs * steps_in_epoch)
        # Intervals below 1 are shares of all steps.
        self.intervals = TrainerState()
        self.intervals.compute_steps(args, self.total)
        # Not prepared: Accelerate would step it once for each process. Not registered for checkpoints either:
        # Accelerate would read its state back as a pickle, which may run any code.
        self.scheduler = get_scheduler(
            args.lr_scheduler_type,
            self.optimizer,
            args.get_warmup_steps(self.total),
            self.total,
            json_object("--lr_scheduler_kwargs", args.lr_scheduler_kwargs) or None,
        )

    def _loader(self, training: bool) -> DataLoader:
        rows = self.setup.train_rows if training else self.setup.eval_rows
        return DataLoader(
            rows,
            batch_size=self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size,
            shuffle=training and not isinstance(rows, IterableDataset),
            collate_fn=self.setup.train_collator if training else self.setup.eval_collator,
            drop_last=training and self.args.dataloader_drop_last,
            num_workers=self.args.dataloader_num_workers,
            # Its own, so that reading data does not move the generator that dropout draws from.
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def train(self, checkpoint: str | None) -> None:
        """Trains to the last step, from `checkpoint` or from the beginning; ValueError where the loss diverges."""
        epoch, done = self._resume(Path(checkpoint)) if checkpoint else (0, 0)
        progress = tqdm(
            total=self.total,
            initial=self.step,
            disable=self.args.disable_tqdm or not self.accelerator.is_local_main_process,
        )
        while self.step < self.total:
            self.setup.train_collator.epoch.fill_(epoch)
            loader = skip_first_batches(self.train_loader, done) if done else self.train_loader
            loader.set_epoch(epoch)
            for batch in loader:
                self._train_on(batch, self._share(done))
                done += 1
                if not self.accelerator.sync_gradients:
                    continue
                self.step += 1
                progress.update()
                if self._due(self.args.logging_strategy, self.intervals.logging_steps):
                    self._log_training()
                if self._due(self.args.eval_strategy, self.intervals.eval_steps):
                    self._log(self.evaluate())
                at_the_end = self.args.save_strategy == "steps" and self.step == self.total
                if self._due(self.args.save_strategy, self.intervals.save_steps) or at_the_end:
                    self.save_checkpoint({"epoch": epoch, "batches": done})
                if self.step == self.total:
                    break
            else:
                if done == 0:
                    raise ValueError("expected at least one batch to train on, got none; see --dataloader_drop_last")
                epoch, done = epoch + 1, 0
            if self.args.logging_strategy == "epoch":
                self._log_training()
            if self.args.eval_strategy == "epoch":
                self._log(self.evaluate())
            if self.args.save_strategy == "epoch":
                self.save_checkpoint({"epoch": epoch, "batches": done})
        progress.close()
        require_finite(self._mean_loss(), self.step)

    def _share(self, number: int) -> float:
        """The share of a batch in its step: the last step of an epoch may have fewer batches, of the same weight."""
        batches = self.args.gradient_accumulation_steps
        if not isinstance(self.setup.train_rows, IterableDataset):
            batches = min(batches, len(self.train_loader) - number // batches * batches)
        return 1 / batches

    def _train_on(self, batch: dict[str, torch.Tensor], share: float) -> None:
        """Adds the gradients of a batch, and makes a step of the optimiser where it is the last of its step."""
        self.model.train()
        with self.accelerator.accumulate(self.model):
            loss = self._loss(batch) * share
            # Accelerate takes every step for one of --gradient_accumulation_steps batches.
            self.accelerator.backward(loss * self.args.gradient_accumulation_steps)
            self.losses += loss.detach()
            if self.accelerator.sync_gradients and self.args.max_grad_norm > 0:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
            self.learning_rate = self.scheduler.get_last_lr()[0]
            if int(self.setup.train_collator.epoch) < self.args.frozen_epochs:
                rest_backbone(self.model)
            self.optimizer.step()
            # A step whose gradients overflow in half precision is not made.
            if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                self.scheduler.step()
                if self.ema is not None:
                    self.ema.update(self.accelerator.unwrap_model(self.model))
            self.optimizer.zero_grad()

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels, view = batch.pop("labels"), view_of(batch)
        if self.setup.distillation is not None:
            batch = self.setup.distillation.with_selection(batch)
        with self.setup.elastic.drawn(self.step) if self.setup.elastic else nullcontext():
            outputs = self.model(**batch)
        self.selected.add(outputs)
        logits = outputs["logits"]
        loss = soft_cross_entropy(logits, labels, self.args.label_smoothing_factor)
        if self.setup.distillation is not None:
            pixels = batch["pixel_values"]
            loss = self.setup.distillation.mixed(loss, logits, pixels, **view, outputs=outputs)
        return with_aux_loss(loss, outputs)

    def _due(self, strategy: str, interval: float) -> bool:
        return strategy == "steps" and interval > 0 and self.step % interval == 0

    def _mean_loss(self) -> float:
        """The mean loss of the steps since the last that was logged, of all processes; 0 where there are none."""
        return float(self._mean(self.losses / max(1, self.step - self.logged)))

    def _mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all processes."""
        return self.accelerator.reduce(value, reduction="mean")

    def _log_training(self) -> None:
        if self.step > self.logged:
            shares = self.selected.taken(self._mean)
            self._log({"loss": self._mean_loss(), "learning_rate": self.learning_rate, **shares})
            self.losses.zero_()
            self.logged = self.step

    def _log(self, figures: dict[str, float]) -> None:
        require_finite(figures.get("loss", 0.0), self.step)
        self.history.append({**figures, "step": self.step})
        self.accelerator.print(self.history[-1])

    def averaged(self) -> Any:
        """A context in which the model holds its averaged weights, where there are any."""
        return self.ema.applied(self.accelerator.unwrap_model(self.model)) if self.ema is not None else nullcontext()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """
        Measures the model on the evaluation split.

        Returns:
            `dict[str, float]`: eval_loss, eval_accuracy and, with five classes or more, eval_top_5_accuracy; for a
            model that selects tokens eval_selected_share.
        """
        if self.eval_loader is None:
            raise ValueError("expected --do_eval or --eval_strategy to evaluate, got neither")
        metric, losses, selected = TopKAccuracy(keep_in_memory=True), [], SelectedShare()
        self.model.eval()
        with self.averaged(), selected.counted(self.accelerator.unwrap_model(self.model)):
            for batch in self.eval_loader:
                labels = batch.pop("labels")
                logits = self.model(**batch)["logits"]
                result = soft_cross_entropy(logits, labels, reduction="none"), ranked(logits), labels
                loss, ranks, truths = self.accelerator.gather_for_metrics(result)
                losses.append(loss)
                metric.add_batch(predictions=ranks.tolist(), references=truths.tolist())
        figures = {**metric.compute(), "loss": float(torch.cat(losses).mean()), **selected.taken(self._mean)}
        return {f"eval_{key}": value for key, value in figures.items()}

    def save_checkpoint(self, place: dict[str, int]) -> None:
        """
        Writes `checkpoint-<step>`, then deletes those beyond --save_total_limit.

        Args:
            place (`dict[str, int]`): The epoch, and how many of its batches are done.

        Raises:
            ValueError: If training has diverged; nothing is written or deleted then.
        """
        require_finite(self._mean_loss(), self.step)
        schedule = self.scheduler.state_dict()
        progress = {**place, "step": self.step, "history": self.history, "scheduler": schedule}
        folder = checkpoint_folder(self.args.folder, self.step)
        main, limit = self.args.should_save, self.args.save_total_limit
        write_checkpoint(self.accelerator, folder, progress, self._save_beside, main, limit)

    def _save_beside(self, folder: Path) -> None:
        self.setup.model.config.save_pretrained(folder)
        if self.ema is not None:
            self.ema.save(folder)

    def _resume(self, checkpoint: Path) -> tuple[int, int]:
        progress = read_checkpoint(self.accelerator, checkpoint, self.model)
        self.scheduler.load_state_dict(progress["scheduler"])
        if self.ema is not None:
            self.ema.load(checkpoint, self.accelerator.unwrap_model(self.model))
        self.step, self.history = progress["step"], progress["history"]
        self.logged = self.step
        return progress["epoch"], progress["batches"]

    def save_model(self) -> None:
        """Writes the model (its averaged weights, where there are any) and the processor over those of an old run."""
        self.accelerator.wait_for_everyone()
        main = self.args.should_save
        with replacing_model(self.args.folder, main) as staging, self.averaged():
            weights = self.accelerator.get_state_dict(self.model)
            if main:
                model = self.accelerator.unwrap_model(self.model)
                model.save_pretrained(staging, state_dict=weights)
                self.setup.processor.save_pretrained(staging)
        self.accelerator.wait_for_everyone()


def train(args: TrainingArguments, setup: Setup, checkpoint: str | None) -> Outcome:
    """Trains and saves the model with `--do_train`, evaluates it with `--do_eval`; see `run`."""
    loop = Loop(args, setup)
    if args.do_train:
        clear_output_dir(args, checkpoint, PROGRESS_FILE)
        loop.train(checkpoint)
        loop.save_model()
    figures = loop.evaluate() if args.do_eval else {}
    # The wrapped model goes before its group of processes. If it went last, Python's lock would be held while the
    # group waits for its threads, which wait for that lock (pytorch/pytorch issue 56297).
    loop.model = None
    loop.accelerator.free_memory()
    loop.accelerator.end_training()
    return Outcome(loop.step, loop.history, figures)


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
    argv = sys.argv[1:] if argv is None else argv
    return run(argv, "python examples/run_classification_no_trainer.py", train, PROGRESS_FILE)


if __name__ == "__main__":
    main()
