"""Loading a FocusViT with its processor, checked against each other and against what a safe checkpoint is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..configuration_focusvit import FocusViTConfig
from ..image_processing_focusvit import FocusViTImageProcessor
from ..modeling_focusvit import FocusViTForImageClassification, FocusViTPreTrainedModel
from ..utils.messages import told_of
from .folder import AUTO_CLASSES
from .loading import load_model, read_config, read_settings


Model = TypeVar("Model", bound=FocusViTPreTrainedModel)

# Of an image that is prepared: what no model comes near, and a machine can still hold.
_LONGEST_SIDE = 8192
# Where the source tree keeps the checkpoint that the commands take by default; a wheel does not bring it. It was
# trained with several numbers of superpixels, since the commands take any.
DEFAULT_CHECKPOINT = Path(__file__).resolve().parents[3] / "model_cards" / "focusvit-tiny-imagenette"


def load_checkpoint(
    name: str | None = None, num_superpixels: int | None = None
) -> tuple[FocusViTForImageClassification, FocusViTImageProcessor]:
    """
    Loads a FocusViT classifier and its processor, in evaluation mode, from safetensors only.

    Args:
        name (`str`, *optional*): A folder, or a name on the Hub; by default the checkpoint of this source tree.
        num_superpixels (`int`, *optional*): Another K than the checkpoint's own, see [`ElasticSuperpixels`].

    Raises:
        ValueError: when there is no FocusViT checkpoint, when its weights are a pickle, damaged, not finite, or not
            exactly those of the model, when its processor disagrees with its configuration, and when its images cannot
            be pooled to `num_superpixels`. The message names the file.
    """
    return load_with_superpixels(name, DEFAULT_CHECKPOINT, FocusViTForImageClassification, num_superpixels)


def load_with_superpixels(
    name: str | None, default: Path, kind: type[Model] | None, num_superpixels: int | None
) -> tuple[Model, FocusViTImageProcessor]:
    """
    What [`load_checkpoint`] does, for a model of any class.

    Args:
        name (`str`, *optional*), num_superpixels (`int`, *optional*): As of [`load_checkpoint`].
        default (`Path`): The folder that is loaded without a name.
        kind (`type`, *optional*): The class of the model, such as [`FocusViTForSemanticSegmentation`]; by default the
            one that the checkpoint was saved from.

    Raises:
        ValueError: as [`load_checkpoint`].
    """
    if name is None:
        if not (default / "config.json").is_file():
            raise ValueError(f"expected --model FOLDER_OR_NAME: this installation has no {default.name} of its own")
        name = str(default)
    model, image_processor = load_checked(name, kind)
    if num_superpixels is not None:
        model.config.require_num_superpixels(num_superpixels)
        model.config.num_superpixels = image_processor.num_superpixels = num_superpixels
    return model, image_processor


def load_checked(name: str, kind: type[FocusViTPreTrainedModel] | None = None) -> tuple[Any, FocusViTImageProcessor]:
    """
    Loads a model of any class of this package and its processor, see [`load_checkpoint`].

    Args:
        name (`str`): A folder, or a name on the Hub.
        kind (`type`, *optional*): The class of the model, by default the one that the checkpoint was saved from.

    Raises:
        ValueError: as [`load_checkpoint`].
    """
    with told_of(f"expected a FocusViT checkpoint in safetensors, a folder or a name on the Hub, got {name}"):
        stored = read_config(name, [FocusViTConfig.model_type], FocusViTConfig)
        with told_of(CONFIG_NAME):
            config = FocusViTConfig.from_pretrained(name)
        model, _ = load_model(kind or _saved_class(stored), name, config)
        read_settings(name, IMAGE_PROCESSOR_NAME, FocusViTImageProcessor)
        with told_of(IMAGE_PROCESSOR_NAME):
            image_processor = FocusViTImageProcessor.from_pretrained(name)
            image_processor.validate_against_config(model.config)
            _try_out(image_processor, model.config)
    return model, image_processor


def _saved_class(stored: Mapping[str, Any]) -> type:
    """The class that a config.json names; a classifier where it names none of this package's models."""
    named = stored.get("architectures")
    models = (kind for kind in AUTO_CLASSES.values() if issubclass(kind, FocusViTPreTrainedModel))
    return next((kind for kind in models if [kind.__name__] == named), FocusViTForImageClassification)


def _try_out(image_processor: FocusViTImageProcessor, config: FocusViTConfig) -> None:
    """
    Prepares an empty image of the model's height and width, so that options that no image can be prepared with are
    told from bad images.
    """
    options = image_processor.to_dict()
    sizes = [options.get(name) or {} for name in ("size", "crop_size")]
    for length in (length for size in sizes for length in dict(size).values() if length is not None):
        if not 0 < length <= _LONGEST_SIDE:
            raise ValueError(f"expected sizes in 1..{_LONGEST_SIDE} pixels, got {length!r}")
    mode = {1: "L", 3: "RGB"}.get(config.num_channels)
    if mode is not None:
        image_processor(Image.new(mode, config.image_height_and_width[::-1]), return_tensors="pt")
