"""The image processor of a ViT, DeiT or DINOv2 checkpoint as the processor of the FocusViT made of it."""

import math
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from ..hub.loading import find_file, read_settings
from ..image_processing_focusvit import FocusViTImageProcessor
from ..image_sizes import fixed_size
from ..utils.messages import told_of


_SAME_OPTIONS = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_convert_rgb")
_READ_OPTIONS = (*_SAME_OPTIONS, "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
# Names of classes, and options of a call that do not change the values.
_IDLE_OPTIONS = (
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "auto_map",
    "default_to_square",
    "device",
    "data_format",
    "input_data_format",
    "disable_grouping",
    "return_tensors",
)


def load_image_processor(
    name: str | Path, kind: Any = AutoImageProcessor, **options: Any
) -> BaseImageProcessor | None:
    """
    The image processor of a checkpoint.

    Args:
        name (`str` or `Path`): A folder, or a name on the Hub.
        kind (`type`, *optional*, defaults to `AutoImageProcessor`): The class to load it by.
        options: Of its `from_pretrained`, such as `revision`.

    Returns:
        [`BaseImageProcessor`], or `None` where the checkpoint is known to have none.

    Raises:
        ValueError: when there is one that cannot be read, and when it is not known whether there is one.
    """
    with told_of(f"expected an image processor in {name}"):
        # A file that cannot be one is told apart from one that is not there.
        for file in (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME) if Path(name).is_dir() else ():
            if find_file(name, file) is not None:
                read_settings(name, file, BaseImageProcessor)
        try:
            return kind.from_pretrained(str(name), trust_remote_code=False, **options)
        except (OSError, ValueError):
            if _has_none(name, options.get("cache_dir"), options.get("revision")):
                return None
            raise


def _has_none(name: str | Path, cache_dir: str | Path | None, revision: str | None) -> bool:
    """Whether a checkpoint has no image processor: seen in a folder, and of the Hub remembered in the cache."""
    files = (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)
    if Path(name).is_dir():
        return not any((Path(name) / file).exists() for file in files)
    try:
        own, shared = (try_to_load_from_cache(str(name), file, cache_dir, revision) for file in files)
    except HFValidationError:
        return False
    # By its documentation try_to_load_from_cache is compared with this object, though its name has an underscore: only
    # so a file that is known to be absent differs from one that was never looked for, which needs a network.
    return own is _CACHED_NO_EXIST and not isinstance(shared, str)


def processor_settings(processor: BaseImageProcessor) -> dict[str, Any]:
    """
    Options of [`FocusViTImageProcessor`] that give the `pixel_values` of another processor.

    Rescaling is that of 8-bit images to 0..1, where FocusViT computes superpixels; another factor moves into
    `image_mean` and `image_std`.

    Args:
        processor ([`BaseImageProcessor`]): That of a ViT, DeiT or DINOv2.

    Raises:
        ValueError: naming options that change the pixels and that [`FocusViTImageProcessor`] does not have.
    """
    options = processor.to_dict()
    strange = {
        name: value
        for name, value in options.items()
        if value not in (None, False) and name.removeprefix("_") not in (*_READ_OPTIONS, *_IDLE_OPTIONS)
    }
    if not options.get("do_rescale"):
        strange["do_rescale"] = options.get("do_rescale")
    if strange:
        raise ValueError(f"Expected an image processor without options that FocusViT's does not have, got {strange}.")
    settings = {name: options[name] for name in _SAME_OPTIONS if options.get(name) is not None}
    for length in (length for name in ("size", "crop_size") for length in dict(settings.get(name) or {}).values()):
        if not isinstance(length, int) or length < 1:
            raise ValueError(f"expected sizes in whole pixels, got {length!r}")
    mean, std = (options["image_mean"], options["image_std"]) if options.get("do_normalize") else (0.0, 1.0)
    # (x·f - mean) / std = (x / 255 - mean / 255f) / (std / 255f)
    divisor = 255 * options["rescale_factor"]
    for name, values in (("image_mean", mean), ("image_std", std)):
        listed = [values] if isinstance(values, (int, float)) else list(values)
        if not all(isinstance(value, (int, float)) for value in listed):
            raise ValueError(f"expected {name} as numbers, got {values!r}")
        scaled = listed if math.isclose(divisor, 1) else [value / divisor for value in listed]
        settings[name] = scaled if len(scaled) > 1 else scaled[0]
    return settings


def convert_image_processor(
    processor_or_name: BaseImageProcessor | str | Path, config: PreTrainedConfig, **overrides: Any
) -> FocusViTImageProcessor:
    """
    Makes a FocusViT's image processor of that of a ViT, DeiT or DINOv2: the same `pixel_values` up to rounding of
    resized grey levels, with superpixels where the model pools over them.

    Args:
        processor_or_name ([`BaseImageProcessor`], `str` or `Path`): A processor, a folder or a name on the Hub.
        config ([`FocusViTConfig`]): The configuration of the converted model.
        overrides: Options of [`FocusViTImageProcessor`] instead of what follows.

    Returns:
        [`FocusViTImageProcessor`].

    Raises:
        ValueError: when there is no processor, when it cannot be read or has an option that FocusViT's does not have,
            when it makes images that the patch does not divide, or when it disagrees with the configuration, such as
            in `image_mean`, which [`convert_vit_checkpoint`] takes from the folder or else from its overrides.
    """
    if isinstance(processor_or_name, (str, Path)):
        processor = load_image_processor(processor_or_name)
        if processor is None:
            raise ValueError(f"Expected an image processor in {processor_or_name}, got none.")
    else:
        processor = processor_or_name
    settings = {**processor_settings(processor), **overrides}
    size = fixed_size(settings)
    if size is not None and not config.takes_size(*size):
        raise ValueError(
            f"Expected an image processor of images that {config.size_step} divides, got "
            f"{size[0]} x {size[1]}. Give another size or crop_size."
        )
    converted = FocusViTImageProcessor.from_model_config(config, **settings)
    converted.validate_against_config(config)
    return converted
