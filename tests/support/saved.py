"""Checkpoints that tests write, spoil and load again."""

from pathlib import Path
from typing import Any

from focusvit_hf import FocusViTForImageClassification, FocusViTImageProcessor, FocusViTPreTrainedModel


def save_with_processor(model: FocusViTPreTrainedModel, folder: Path) -> Path:
    """Saves a model and the image processor that matches it; gives the folder back."""
    model.save_pretrained(folder)
    FocusViTImageProcessor.from_model_config(model.config).save_pretrained(folder)
    return folder


def saved_and_loaded(model: FocusViTForImageClassification, folder: Path, **options: Any) -> Any:
    """A model after a trip through a folder, of which nothing is missing and nothing is left over."""
    model.save_pretrained(folder)
    loaded, info = FocusViTForImageClassification.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values())
    return loaded
