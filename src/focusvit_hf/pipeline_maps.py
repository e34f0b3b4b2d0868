"""Whether a processor that a pipeline loads may leave superpixels to the model, which computes those of a batch."""

from collections.abc import Mapping
from typing import Any

import torch

from .cielab import levels_of_pixels
from .configuration_focusvit import FocusViTConfig


# What tells where a file of a checkpoint lies.
_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def left_to_model(image_processor: Any, source: Any, options: Mapping[str, Any]) -> bool:
    """
    Whether the model beside an image processor computes the maps that the processor would, bit for bit.

    Args:
        image_processor ([`FocusViTImageProcessor`]): As it was loaded.
        source (`str` or `os.PathLike`): The checkpoint that it was loaded from.
        options (mapping): Those of `from_pretrained`, such as `revision`.

    Returns:
        `bool`: True where the checkpoint's configuration is that of a FocusViT that agrees with the processor in
        everything the maps depend on, and computes superpixels in torch; and where whole levels survive a
        normalisation in bfloat16, since a pipeline casts pixels to the type of its model.
    """
    if not image_processor.do_superpixels:
        return False
    try:
        place = {name: options[name] for name in _OF_THE_HUB if name in options}
        fields, _ = FocusViTConfig.get_config_dict(source, **place)
        if fields.get("model_type") != FocusViTConfig.model_type:
            return False
        config: FocusViTConfig = FocusViTConfig.from_dict(fields)
        image_processor.validate_against_config(config)
    except (OSError, ValueError):
        # A checkpoint without a configuration, or with another one: then the processor's own options count.
        return False
    return config.superpixel_method == "torch" and _levels_survive(image_processor)


def _levels_survive(image_processor: Any) -> bool:
    """Whether each of the 256 levels of each channel can be told from its normalised value in bfloat16."""
    mean, std = image_processor.image_mean, image_processor.image_std
    channels = 1 if isinstance(mean, (int, float)) else len(mean)
    mean, std = ([values] * channels if isinstance(values, (int, float)) else values for values in (mean, std))
    levels = torch.arange(256.0).view(1, 1, 16, 16).repeat(1, channels, 1, 1)
    pixels = image_processor.process_levels(levels, do_superpixels=False)["pixel_values"]
    return torch.equal(levels_of_pixels(pixels.to(torch.bfloat16), mean, std), levels)
