"""A checkpoint converted from one folder to another: model, image processor and model card, whole or not at all."""

from pathlib import Path
from typing import Any, cast

from ..configuration_focusvit import FocusViTConfig
from ..hub.model_card import model_card
from ..hub.training_record import TrainingRecord
from ..image_processing_focusvit import FocusViTImageProcessor
from ..selection_options import selects_tokens
from ..utils.files import new_folder, write_whole
from ..utils.messages import told_of
from .convert import ConversionReport, convert_vit_checkpoint
from .cost import cost_note
from .loading import licence_of
from .processor import convert_image_processor, load_image_processor


def convert_to_folder(source: str | Path, target: str | Path, **config_overrides: Any) -> ConversionReport:
    """
    Converts a checkpoint with its image processor, labels and licence.

    Args:
        source (`str` or `Path`): A ViT, DeiT or DINOv2: a folder, or a name on the Hub.
        target (`str` or `Path`): The folder to write; it must not exist or be empty.
        config_overrides: See [`convert_vit_checkpoint`].

    Returns:
        [`ConversionReport`]: that of the model, with notes on the rest.

    Raises:
        ValueError: when `target` holds something, or `source` cannot be converted; nothing is written then.
        OSError: when it cannot be written; nothing is left then.
    """
    target = Path(target)
    with new_folder(target) as staging:
        model = convert_vit_checkpoint(source, **config_overrides)
        report = cast(ConversionReport, model.conversion_report)
        report.notes.append(cost_note(model.config))
        if _loses(model.config):
            report.notes.append(
                f"fine-tune: focusvit train --model_name_or_path {target} --teacher_model_name_or_path {source} gives "
                "back part of the accuracy that fewer tokens cost; docs/guides/sparsify.md has the figures"
            )
        found = load_image_processor(source)
        if found is None:
            processor = FocusViTImageProcessor.from_model_config(model.config)
            report.notes.append(
                "image processor: the source has none; this one has the image_size, mean and std of its kind"
            )
        else:
            with told_of(f"the image processor in {source}"):
                processor = convert_image_processor(found, model.config)
        known = licence_of(source)
        if "license" not in known:
            report.notes.append("licence: none is known from the source; look it up before you share the model")
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        card = model_card(model, target.name, location=target.as_posix(), record=TrainingRecord(**known))
        section = (
            "## Conversion\n\nConverted by `focusvit convert`, not trained further. Where its tensors come from:\n\n"
            f"```\n{report}\n```\n"
        )
        write_whole(staging / "README.md", f"{str(card).rstrip()}\n\n{section}".encode())
    return report


def _loses(config: FocusViTConfig) -> bool:
    """Whether the model sees fewer tokens than its source."""
    return config.patch_pooling != "none" or bool(config.sparsification_layers) or selects_tokens(config)
