"""Folders for the Hub, which load with this package and without it, and pushing them there."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..configuration_focusvit import FocusViTConfig
from ..image_processing_focusvit import FocusViTImageProcessor
from ..modeling_focusvit import FocusViTForImageClassification, FocusViTModel, FocusViTPreTrainedModel
from ..modeling_focusvit_dense import FocusViTBackbone, FocusViTForSemanticSegmentation
from ..utils.files import new_folder, read_json, write_json, write_whole
from ..utils.messages import told_of
from ..utils.tensors import first_not_finite
from .contents import CARD_FILE, TRAINING_LOG_FILE, code_files
from .model_card import model_card, relocated
from .training_record import TrainingRecord


# What a folder's code is entered by.
AUTO_CLASSES: dict[str, type] = {
    "AutoConfig": FocusViTConfig,
    "AutoImageProcessor": FocusViTImageProcessor,
    "AutoModel": FocusViTModel,
    "AutoModelForImageClassification": FocusViTForImageClassification,
    "AutoModelForSemanticSegmentation": FocusViTForSemanticSegmentation,
    "AutoBackbone": FocusViTBackbone,
}


def save_for_hub(
    model: FocusViTPreTrainedModel,
    image_processor: FocusViTImageProcessor,
    folder: str | Path,
    *,
    location: str | None = None,
    training_log: Mapping[str, Any] | None = None,
    license: str | None = None,
    card: str | None = None,
    weights_dtype: torch.dtype | None = None,
) -> Path:
    """
    Saves a model with its processor, its code and its card in a folder that loads in two ways: after `import
    focusvit_hf`, with the package's code and without a question asked, and without the package through
    `trust_remote_code=True`, with the code in the folder. The folder appears whole or not at all.

    Args:
        model ([`FocusViTPreTrainedModel`]): Any of this package's models. Saved as safetensors.
        image_processor ([`FocusViTImageProcessor`]): The one that prepares the model's images.
        folder (`str` or `Path`): A new folder, or an empty one.
        location (`str`, *optional*): What the card's code loads it by, its name on the Hub; `folder` by default.
        training_log (`Mapping`, *optional*):
            Log of the training, `training_log.json` of the training scripts. Goes into the card and beside it.
        license (`str`, *optional*): Licence of the weights as the Hub abbreviates it, such as `"apache-2.0"`.
        card (`str`, *optional*):
            Text of a card to be kept, but for its section "Use", instead of one written from the training log.
        weights_dtype (`torch.dtype`, *optional*):
            What the weights are stored in, such as `torch.float16` for half the size. A plain `from_pretrained`
            computes in float32 whatever they are stored in.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: when the folder holds something already, model and processor disagree, they are none of this
            package, a weight is not finite in the type it is stored in, or the card is none the Hub takes.

    Example:

    ```python
    >>> from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor
    >>> from focusvit_hf.hub import save_for_hub

    >>> model = FocusViTForImageClassification(FocusViTConfig())
    >>> folder = save_for_hub(model, FocusViTImageProcessor.from_model_config(model.config), "my-focusvit")
    ```"""
    if not isinstance(model, PreTrainedModel) or type(model) not in AUTO_CLASSES.values():
        raise ValueError(
            "expected a FocusViTForImageClassification or another model of this package, its adapters merged, got "
            f"{type(model).__name__}"
        )
    if not isinstance(image_processor, FocusViTImageProcessor):
        raise ValueError(f"expected a FocusViTImageProcessor, got {type(image_processor).__name__}")
    image_processor.validate_against_config(model.config)
    weights = _weights(model, weights_dtype)
    location = location or Path(folder).as_posix()
    if card is None:
        with told_of("the training log"):
            record = TrainingRecord.from_log(training_log or {})
        record = replace(record, license=license or record.license)
        name = Path(location).resolve().name
        with told_of("the card"):
            card = str(model_card(model, name, location=location, record=record, remote_code=True))
    else:
        card = relocated(card, location)
    with new_folder(Path(folder)) as staging:
        model.save_pretrained(staging, state_dict=weights)
        image_processor.save_pretrained(staging)
        _enter_code(staging)
        for file in code_files():
            write_whole(staging / file.name, file.read_bytes())
        if training_log is not None:
            write_json(staging / TRAINING_LOG_FILE, training_log)
        write_whole(staging / CARD_FILE, card.encode())
    return Path(folder)


def _module(kind: type) -> str:
    return kind.__module__.rpartition(".")[2]


def _weights(model: FocusViTPreTrainedModel, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """The weights in the type they are stored in; ValueError for one that is not finite there."""
    weights = {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    name = first_not_finite(weights)
    if name is not None:
        raise ValueError(f"expected finite weights in {weights[name].dtype}, got NaN or infinity in {name}")
    return weights


def _enter_code(folder: Path) -> None:
    """Tells the library which files of a saved model's folder hold its classes."""
    entries = {auto: f"{_module(kind)}.{kind.__name__}" for auto, kind in AUTO_CLASSES.items()}
    config = read_json(folder / CONFIG_NAME)
    # The library computes in the type that stands here, and half precision is slow and coarse on a CPU.
    write_json(folder / CONFIG_NAME, {**config, "auto_map": entries, "dtype": "float32"})
    # The processor's class stands in config.json as well. Were it named here, `AutoImageProcessor` would not look
    # there; were its code named here, `pipeline` would ask whether to run it although the package is imported.
    processor = read_json(folder / IMAGE_PROCESSOR_NAME)
    del processor["image_processor_type"]
    write_json(folder / IMAGE_PROCESSOR_NAME, processor)
