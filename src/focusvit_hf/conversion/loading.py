"""Loading the checkpoint that is converted: known, in safetensors, and whole."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import metadata_load
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, logging

from ..configuration_focusvit import LARGEST_SIZE, FocusViTConfig
from ..hub.loading import load_model, read_config, shapes_of_weights
from ..utils.messages import told_of
from ..utils.names import is_identifier
from .sources import MODEL_CLASSES, MODEL_TYPES, settings_of_config


logger = logging.get_logger(__name__)

# Of a checkpoint's model card, what a model made of it has to repeat.
LICENCE_KEYS = ("license", "license_name", "license_link")
# Tensors that a checkpoint may have beside those of its class.
_SPARE = {
    "pooler.": "the pooling layer is no part of the class",
    "embeddings.mask_token": "stands for masked patches in pre-training only",
}
# Classes whose pooling layer can be left out.
_WITH_POOLER = ("ViTModel", "DeiTModel")


def load_source_config(name: str | Path, replaced: Mapping[str, Any] | None = None) -> PreTrainedConfig:
    """
    The configuration of a checkpoint that can be converted.

    Args:
        name (`str` or `Path`): A folder, or a name on the Hub.
        replaced (mapping, *optional*): Settings that the caller gives; options that they replace are not looked at.

    Raises:
        ValueError: when there is none, when it is of another class, and when it has options that FocusViT does not
            have or absurd sizes.
    """
    with _told_of(name):
        stored = read_config(name, MODEL_TYPES)
        # The library's configurations build lists as long as their sizes.
        absurd = {key: size for key, size in stored.items() if isinstance(size, int) and size > LARGEST_SIZE}
        if absurd:
            raise ValueError(f"{CONFIG_NAME}: expected sizes up to {LARGEST_SIZE}, got {absurd}")
        with told_of(CONFIG_NAME):
            config = AutoConfig.from_pretrained(str(name), trust_remote_code=False)
            settings = settings_of_config(config, replaced)
            FocusViTConfig(**settings, embedding_type="patch", position_embedding_type="learned", patch_pooling="none")
        architecture = next(iter(config.architectures or ()), None)
        if architecture not in MODEL_CLASSES:
            raise ValueError(
                f"{CONFIG_NAME}: expected one of the classes {', '.join(MODEL_CLASSES)}, got {architecture}"
            )
    return config


def load_source(name: str | Path, replaced: Mapping[str, Any] | None = None) -> tuple[PreTrainedModel, dict[str, str]]:
    """
    Loads a ViT, DeiT or DINOv2 in evaluation mode, from safetensors only.

    Args:
        name (`str` or `Path`): A folder, or a name on the Hub.
        replaced (mapping, *optional*): See [`load_source_config`].

    Returns:
        [`PreTrainedModel`], and the tensors of the checkpoint that it does not use, with the reason.

    Raises:
        ValueError: as [`load_source_config`], and when the weights are a pickle, damaged, or not those of the class.
    """
    config = load_source_config(name, replaced)
    architecture = (config.architectures or [""])[0]
    with _told_of(name):
        options: dict[str, Any] = {}
        if architecture in _WITH_POOLER and not any("pooler." in key for key in shapes_of_weights(name)):
            # The checkpoint of a backbone without the layer that its class has by default.
            options["add_pooling_layer"] = False
        return load_model(getattr(transformers, architecture), name, config, spare=_SPARE, **options)


def _told_of(name: str | Path) -> AbstractContextManager[None]:
    return told_of(f"expected a ViT, DeiT or DINOv2 in safetensors, a folder or a name on the Hub, got {name}")


def licence_of(name: str | Path) -> dict[str, Any]:
    """
    Licence and base model from a checkpoint's model card, where the card lies on this machine, as another card can
    repeat them. What it cannot repeat, such as several licences or base models, is left out with a warning.

    Args:
        name (`str` or `Path`): A folder, or a name on the Hub.

    Returns:
        `dict`: Those of [`LICENCE_KEYS`] and `base_model` that are known.
    """
    folder = Path(name)
    if folder.is_dir():
        card, base = folder / "README.md", {}
    else:
        try:
            cached = try_to_load_from_cache(str(name), "README.md")
        except HFValidationError:
            cached = None
        card, base = Path(cached if isinstance(cached, str) else ""), {"base_model": str(name)}
    if not card.is_file():
        return base
    with told_of(str(card)):
        return _repeatable(metadata_load(card) or {}, card) | base


def _repeatable(metadata: Mapping[str, Any], card: Path) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for key in (*LICENCE_KEYS, "base_model"):
        found = metadata.get(key)
        value = found[0] if isinstance(found, list) and len(found) == 1 else found
        if key == "license" and isinstance(value, str):
            value = value.lower()
        if is_identifier(value) if key == "license" else isinstance(value, str) and value:
            known[key] = value
        elif found is not None:
            form = "as the Hub abbreviates it, such as apache-2.0" if key == "license" else "as text"
            logger.warning(f"Expected {key} in {card} {form}, got {found!r}, which is left out.")
    if known.get("license") == "other" and "license_name" not in known:
        logger.warning(f"Expected a license_name in {card} beside license: other, got none, so it is left out.")
        del known["license"]
    return known
