"""The training application for semantic segmentation: what it needs beside that for classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation, pipeline
from transformers.trainer_pt_utils import LabelSmoother

from ..errors import joined
from ..images import decode_image
from ..modeling_focusvit_dense import FocusViTForSemanticSegmentation
from ..segmentation_maps import IGNORED, decode_mask, reduced_labels, segmentation_maps_of
from .arguments import ModelArguments, TrainingArguments, public_arguments
from .card import card_of, origin_of
from .data import as_rows, require_a_batch
from .data_collator import EpochCallback, SeededCollator
from .model import load_model, refuse_other_configuration
from .run import Outcome, Task, carried_out, trainer_options
from .segmentation_collator import SegmentationDataCollator
from .segmentation_data import SegmentationDataArguments, class_weights, load_masks
from .segmentation_metrics import SegmentationMetrics
from .setup import Setup, augmentation_config, begin, evaluation_split, seed_everything, selection_column
from .sparsification import require_predictors, with_aux_loss
from .trainer import FocusViTTrainer


# Arguments that change the training of classifiers alone.
_NOT_FOR_MASKS = ("teacher", "teacher_model_name_or_path", "teacher_bank", "train_num_superpixels")


class SegmentationTrainer(FocusViTTrainer):
    """
    [`FocusViTTrainer`] for masks. The loss is the cross entropy of the labelled pixels, at their resolution; label
    smoothing, the weights of classes and the overlap have a part in training only.

    Args:
        class_weights (`torch.FloatTensor` of shape `(num_labels,)`, *optional*): Weight of each class.
        overlap_weight (`float`, *optional*, defaults to 0): Weight of [`overlap_loss`] beside the cross entropy.
        kwargs: All that the base class takes.
    """

    def __init__(
        self, *args: Any, class_weights: torch.Tensor | None = None, overlap_weight: float = 0.0, **kwargs: Any
    ):
        super().__init__(*args, compute_loss_func=self._loss, **kwargs)
        self.class_weights = class_weights
        self.overlap_weight = overlap_weight

    @property
    def loss_is_scaled_for_ga(self) -> bool | None:  # type: ignore[override]
        """Never: the loss is a mean over one batch."""
        return False

    def _loss_and_outputs(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> tuple[torch.Tensor, Any]:
        """As in the base class; in training with what the gates and predictors of the model add to the loss."""
        loss, outputs = super()._loss_and_outputs(model, inputs, num_items_in_batch)
        return with_aux_loss(loss, outputs) if model.training else loss, outputs

    def _loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        wide = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
        options: dict[str, Any] = {}
        overlap: torch.Tensor | float = 0.0
        if logits.requires_grad:
            if self.overlap_weight:
                overlap = self.overlap_weight * overlap_loss(wide, labels, IGNORED)
            if self.class_weights is not None:
                options["weight"] = self.class_weights.to(wide)
            if isinstance(self.label_smoother, LabelSmoother):
                options["label_smoothing"] = self.label_smoother.epsilon
        return F.cross_entropy(wide, labels, ignore_index=IGNORED, **options) + overlap


def overlap_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """
    How far probabilities are from overlapping with the classes, 1 − Σ p·t / Σ (p + t − p·t) over the labelled pixels
    of an image, the mean over the classes that each image has (Rahman and Wang 2016, "Optimizing Intersection-Over-
    Union in Deep Neural Networks for Image Segmentation").

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels, height, width)`): Scores of the classes.
        labels (`torch.LongTensor` of shape `(batch_size, height, width)`): Classes, or `ignore_index`.

    Returns:
        `torch.FloatTensor`: The mean over images and classes, in 0..1; 0 where nothing is labelled.
    """
    counted = labels != ignore_index
    # What does not count gets a class of its own, behind the others, so that no map of a number per class is made.
    places = labels.where(counted, logits.shape[1]).flatten(1)
    found = (logits.softmax(dim=1) * counted[:, None]).flatten(2)
    empty = found.new_zeros(len(logits), logits.shape[1] + 1)
    own = found.gather(1, labels.where(counted, 0).flatten(1)[:, None])[:, 0]
    both = empty.scatter_add(1, places, own)[:, :-1]
    sizes = empty.scatter_add(1, places, torch.ones_like(own))[:, :-1]
    either = found.sum(dim=2) + sizes - both
    there = sizes > 0
    # Where a class is not there, the quotient has no part, and must not be one by zero.
    shares = 1 - both / either.where(there, 1)
    return (shares * there).sum() / there.sum().clamp(min=1)


def set_up_segmentation(
    model_args: ModelArguments, data_args: Any, args: TrainingArguments, checkpoint: str | None
) -> Setup:
    """
    Loads the images and masks, makes the model, and refuses what does not fit before anything is trained; see
    [`~setup.set_up`].
    """
    begin(model_args, args)
    unused = [name for name in _NOT_FOR_MASKS if getattr(args, name)]
    if unused:
        raise ValueError(f"expected none of the options for classifiers alone, got {joined(unused)}")
    with args.main_process_first(desc="loading the data"):
        masks = load_masks(data_args, model_args, args.seed, args.do_train)
    splits, names = masks.splits, masks.names
    evaluation = evaluation_split(splits, data_args, args)
    seed_everything(args)
    weights = class_weights(data_args, masks)
    kind = (AutoModelForSemanticSegmentation, FocusViTForSemanticSegmentation)
    model, processor = load_model(model_args, names, *kind)
    require_predictors(model, args.predictor_learning_rate, args.frozen_epochs)
    refuse_other_configuration(checkpoint, model.config)
    processor.do_reduce_labels = data_args.do_reduce_labels
    origin = origin_of(model_args, data_args, splits) if args.do_train else {}
    if args.do_train:
        # A card that the Hub does not take is to be known of before hours of training.
        card_of(model, args, {**origin, "arguments": public_arguments(model_args, data_args, args)})
    columns = (len(names), data_args.image_column_name, data_args.label_column_name)
    selection = (selection_column(data_args, model.config, args), data_args.selection_from_labels)
    augmented = SegmentationDataCollator(processor, augmentation_config(data_args), *columns, *selection)
    return Setup(
        splits=splits,
        train_rows=as_rows(splits["train"], data_args, shuffle_seed=args.seed) if args.do_train else None,
        eval_rows=as_rows(splits[evaluation], data_args) if evaluation else None,
        train_collator=SeededCollator(augmented, args.seed),
        eval_collator=SeededCollator(SegmentationDataCollator(processor, None, *columns), args.seed),
        model=model,
        processor=processor,
        origin=origin,
        class_weights=weights,
        overlap_weight=data_args.overlap_loss_weight,
    )


def best_maps(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The class of each pixel at the resolution of the labels, `(batch_size, height, width)`."""
    size = (labels.shape[-2], labels.shape[-1])
    return torch.stack(segmentation_maps_of(logits, [size] * len(logits)))


def train_segmentation(args: TrainingArguments, setup: Setup, checkpoint: str | None) -> Outcome:
    """
    Trains with [`SegmentationTrainer`], see [`~run.run`]. Figures are summed up batch by batch, so that evaluation
    holds no more than one batch of maps.
    """
    if args.do_train:
        require_a_batch(setup.train_rows, args.train_batch_size * args.world_size, args)
    args.batch_eval_metrics = True
    trainer = SegmentationTrainer(
        **trainer_options(args, setup),
        compute_metrics=SegmentationMetrics(list(setup.model.config.id2label.values()), IGNORED),
        preprocess_logits_for_metrics=best_maps,
        callbacks=[EpochCallback(setup.train_collator)],
        class_weights=setup.class_weights,
        overlap_weight=setup.overlap_weight,
    )
    return carried_out(trainer, args, checkpoint)


def measure_segmentation(
    folder: str | Path, split: Any, data_args: SegmentationDataArguments, batch_size: int, device: torch.device
) -> dict[str, float]:
    """
    Measures a saved model as its users run it: images through `pipeline`, at the size that each one has.

    Args:
        folder (`str`): Folder of the model and its image processor.
        split (`datasets.Dataset`): The images and masks.
        batch_size (`int`): Images in a forward pass.
        device (`torch.device`): Where the model runs, in fp32.

    Returns:
        `dict[str, float]`: The figures of [`SegmentationMetrics`].
    """
    segment: Any = pipeline(
        "image-segmentation", model=str(folder), batch_size=batch_size, device=device, dtype=torch.float32
    )
    numbers = segment.model.config.label2id
    metrics = SegmentationMetrics(list(segment.model.config.id2label.values()), IGNORED)
    image, mask = data_args.image_column_name, data_args.label_column_name
    # A generator, so that no more than a batch is held.
    images = (as_image(row[image]) for row in split)
    for row, answer in zip(split, segment(images, batch_size=batch_size), strict=True):
        truth = decode_mask(row[mask])
        truth = reduced_labels(truth) if data_args.do_reduce_labels else truth
        found = torch.zeros(truth.shape, dtype=torch.int64)
        for part in answer:
            found[torch.from_numpy(decode_mask(part["mask"]) > 0)] = numbers[part["label"]]
        metrics.update(found, torch.from_numpy(truth.astype("int64")))
    return metrics.figures()


def as_image(source: Any) -> Image.Image:
    """An image as the package decodes it, for a pipeline."""
    image: Any = decode_image(source)
    return image


SEGMENTATION = Task(SegmentationDataArguments, set_up_segmentation, measure_segmentation)
