"""Loading a FocusViT with its processor, checked against each other and against what a safe checkpoint is."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..configuration_focusvit import FocusViTConfig
from ..errors import joined
from ..image_processing_focusvit import FocusViTImageProcessor
from ..modeling_focusvit import FocusViTForImageClassification


# Where the source tree keeps the checkpoint that was trained here; a wheel does not bring it.
DEFAULT_CHECKPOINT = Path(__file__).resolve().parents[3] / "model_cards" / "focusvit-nano-cifar10"


def load_checkpoint(
    name: str | None = None, num_superpixels: int | None = None
) -> tuple[FocusViTForImageClassification, FocusViTImageProcessor]:
    """
    Loads a FocusViT classifier and its processor, in evaluation mode, from safetensors only.

    Args:
        name (`str`, *optional*): A folder, or a name on the Hub; by default the checkpoint of this source tree.
        num_superpixels (`int`, *optional*): Another K than the checkpoint's own, see [`ElasticSuperpixels`].

    Raises:
        ValueError: when there is no FocusViT checkpoint, when its weights are a pickle, damaged, or not exactly those
            of the model, when its processor disagrees with its configuration, and when its pictures cannot be pooled
            to `num_superpixels`.
    """
    if name is None:
        if not (DEFAULT_CHECKPOINT / "config.json").is_file():
            raise ValueError(
                f"expected --model FOLDER_OR_NAME: this installation has no {DEFAULT_CHECKPOINT.name} of its own"
            )
        name = str(DEFAULT_CHECKPOINT)
    folder = Path(name)
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        raise ValueError(
            f"expected model.safetensors in {name}, got a pickle ({next(folder.glob('*.bin')).name}), which can run "
            "code when it is loaded; save the model again with save_pretrained"
        )
    try:
        kind = FocusViTConfig.get_config_dict(name)[0].get("model_type")
        if kind != FocusViTConfig.model_type:
            raise ValueError(f"model_type {kind!r} in config.json")
        loaded: Any = FocusViTForImageClassification.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
        image_processor = FocusViTImageProcessor.from_pretrained(name)
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(
            f"expected a FocusViT checkpoint in safetensors, a folder or a name on the Hub, got {name}: {error}"
        ) from error
    model, report = loaded
    _check_weights(name, report)
    image_processor.validate_against_config(model.config)
    if num_superpixels is not None:
        model.config.require_num_superpixels(num_superpixels)
        model.config.num_superpixels = image_processor.num_superpixels = num_superpixels
    return model.eval(), image_processor


def _check_weights(name: str, report: dict[str, Any]) -> None:
    """Raises ValueError unless the checkpoint held each tensor of the model, in its shape, and no other."""
    problems = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    problems += [f"{key} is not of this model" for key in sorted(report["unexpected_keys"])]
    problems += [
        f"{key} has shape {tuple(got)} instead of {tuple(expected)}"
        for key, got, expected in sorted(report["mismatched_keys"])
    ]
    problems += report["error_msgs"]
    if problems:
        raise ValueError(f"expected the weights of the model in {name}, got: {joined(problems)}")
