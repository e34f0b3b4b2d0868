"""A checkpoint converted from one folder to another: model, image processor and model card, whole or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCardData

from .conversion import ConversionReport, convert_vit_checkpoint
from .conversion_loading import licence_of
from .conversion_processor import convert_image_processor, load_image_processor
from .files import write_whole
from .image_processing_focusvit import FocusViTImageProcessor
from .modeling_focusvit import FocusViTForImageClassification


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
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"Expected a folder to write that does not exist or is empty, got {target}.")
    model = convert_vit_checkpoint(source, **config_overrides)
    report = cast(ConversionReport, model.conversion_report)
    found = load_image_processor(source)
    if found is None:
        processor = FocusViTImageProcessor.from_model_config(model.config)
        report.notes.append(
            "image processor: the source has none; this one has the image_size, mean and std of its kind"
        )
    else:
        processor = convert_image_processor(found, model.config)
    classifies = isinstance(model, FocusViTForImageClassification)
    metadata = ModelCardData(
        **licence_of(source),
        library_name="transformers",
        pipeline_tag="image-classification" if classifies else "image-feature-extraction",
        tags=["focusvit", "superpixels"],
    )
    if metadata.license is None:
        report.notes.append("licence: none is known from the source; look it up before you share the model")

    staging = target.with_name(f"{target.name}.incomplete-{os.getpid()}")
    staging.mkdir(parents=True)
    try:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        write_whole(staging / "README.md", _card(metadata, report).encode())
        if target.exists():
            target.rmdir()
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def _card(metadata: ModelCardData, report: ConversionReport) -> str:
    return (
        f"---\n{metadata.to_yaml()}\n---\n\n# {report.target} from {report.source}\n\n"
        "Converted by `focusvit convert`, not trained further. Where its tensors come from:\n\n"
        f"```\n{report}\n```\n"
    )
