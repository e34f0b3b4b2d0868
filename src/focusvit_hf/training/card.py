"""The card of a run, which is made before training too: one that the Hub does not take is to be known of then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..conversion.loading import licence_of
from ..hub.model_card import model_card
from ..hub.training_record import TrainingRecord
from ..modeling_focusvit import FocusViTForImageClassification
from ..utils.names import hub_name
from .arguments import DataTrainingArguments, ModelArguments, TrainingArguments


def origin_of(
    model_args: ModelArguments, data_args: DataTrainingArguments, splits: Mapping[str, Any]
) -> dict[str, Any]:
    """What a card tells and cannot be found out later, when the folders of data and model may be elsewhere."""
    return {
        "dataset_id": hub_name(data_args.dataset_name),
        "evaluation_split": "validation" if "validation" in splits else "test",
        "images": {} if data_args.streaming else {name: len(split) for name, split in splits.items()},
        **(licence_of(model_args.model_name_or_path) if model_args.model_name_or_path else {}),
        **({"license": model_args.license} if model_args.license else {}),
    }


def model_name(args: TrainingArguments) -> str:
    """The name of the trained model without an owner: that on the Hub, or the output folder's."""
    return Path(args.hub_model_id or args.folder.resolve()).name


def card_of(model: FocusViTForImageClassification, args: TrainingArguments, log: Mapping[str, Any]) -> ModelCard:
    """The card of a run from its log, as far as that goes; ValueError where it would be none the Hub takes."""
    record = TrainingRecord.from_log(log)
    return model_card(model, model_name(args), location=args.folder.as_posix(), record=record)
