"""The path of an image, split into parts that can be timed, and the training step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..cielab import levels_of_pixels
from ..image_processing_focusvit import FocusViTImageProcessor
from ..images import decode_image
from ..modeling_focusvit import FocusViTPreTrainedModel
from ..superpixel_maps import superpixel_map
from ..superpixel_options import SuperpixelOptions
from .timing import interleaved, summary


# In the order of the path; the last two hold the others.
PARTS = ("decode", "processor", "superpixels", "model", "pixels_to_logits", "whole_path")


def split_subjects(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    images: Sequence[Image.Image | bytes],
    compiled: bool = False,
) -> dict[str, Callable[[], Any]]:
    """
    The whole path of a batch of images and its parts, each as something to time.

    Args:
        model ([`PreTrainedModel`]): A classifier, FocusViT or another; it is set to evaluation mode.
        image_processor ([`BaseImageProcessor`]): The processor that belongs to it.
        images (sequence of `PIL.Image.Image` or `bytes`): One batch; bytes are those of encoded files.
        compiled (`bool`, *optional*, defaults to `False`): Whether `torch.compile` runs the model.

    Returns:
        `dict[str, Callable]`: `decode` where the images are encoded; `processor` (without superpixels); where there
        are superpixels, `superpixels` alone and `model` (given the map); `pixels_to_logits` (superpixels counted);
        `whole_path` (image to the number of its class). On an accelerator the whole path leaves the superpixels to
        the model, which computes them there.
    """
    without = {"do_superpixels": False} if isinstance(image_processor, FocusViTImageProcessor) else {}

    def process(batch: list[Image.Image], options: Mapping[str, Any]) -> Any:
        return image_processor(batch, return_tensors="pt", **options).to(model.device)

    run = _forward(model, compiled)
    decoded = _decoded(images)
    pixel_values = process(decoded, without)["pixel_values"]
    options_of_path: Mapping[str, Any] = {}
    subjects: dict[str, Callable[[], Any]] = {
        "decode": lambda: _decoded(images),
        "processor": lambda: process(decoded, without),
        "pixels_to_logits": forward_pass(model, image_processor, pixel_values, compiled),
        "whole_path": lambda: run(**process(_decoded(images), options_of_path)).argmax(-1),
    }
    if not any(isinstance(image, bytes) for image in images):
        del subjects["decode"]
    superpixels = _superpixels(image_processor, pixel_values, compiled)
    if superpixels is not None:
        ids = superpixels()
        subjects["superpixels"] = superpixels
        subjects["model"] = lambda: run(pixel_values, superpixel_ids=ids)
        if _model_computes_them(image_processor) and model.device.type != "cpu":
            options_of_path = without
    return {part: subjects[part] for part in PARTS if part in subjects}


def forward_pass(
    model: PreTrainedModel, image_processor: BaseImageProcessor, pixel_values: torch.Tensor, compiled: bool = False
) -> Callable[[], torch.Tensor]:
    """Pixels to logits, superpixels counted, as something to time; arguments as in [`training_step`]."""
    run = _forward(model, compiled)
    if _model_computes_them(image_processor):
        return lambda: run(pixel_values)
    superpixels = _superpixels(image_processor, pixel_values, compiled)
    assert superpixels is not None
    return lambda: run(pixel_values, superpixel_ids=superpixels())


def time_split(
    systems: Mapping[str, tuple[PreTrainedModel, BaseImageProcessor]],
    images: Sequence[Image.Image | bytes],
    repeats: int = 7,
    warmup: int = 2,
) -> dict[str, dict[str, dict[str, float]]]:
    """
    Where the time of an image goes, for several systems in the same run.

    Args:
        systems (mapping from `str` to pairs of model and image processor): What to compare, all on one device.
        images (sequence of `PIL.Image.Image` or `bytes`): One batch, the same for all.
        repeats (`int`, *optional*, defaults to 7), warmup (`int`, *optional*, defaults to 2): See [`interleaved`].

    Returns:
        `dict`: By system and part (see [`split_subjects`]) the [`summary`], in milliseconds an image.
    """
    subjects = {
        (system, part): subject
        for system, (model, image_processor) in systems.items()
        for part, subject in split_subjects(model, image_processor, images).items()
    }
    device = next((model.device for model, _ in systems.values()), None)
    result: dict[str, dict[str, dict[str, float]]] = {system: {} for system in systems}
    for (system, part), seconds in interleaved(subjects, repeats, warmup, device=device).items():
        result[system][part] = summary(seconds, len(images))
    return result


def training_step(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    pixel_values: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Callable[[], None]:
    """
    Forward, backward and AdamW on one batch, superpixels counted, as something to time.

    Args:
        model ([`PreTrainedModel`]): A classifier; it is set to training mode.
        image_processor ([`BaseImageProcessor`]): The processor that belongs to it.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
            Normalised, on the model's device.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Others run under autocast, on float32 weights.
        compiled (`bool`, *optional*, defaults to `False`): Whether `torch.compile` runs the model.

    Returns:
        `Callable`: One step.
    """
    model.train()
    forward = torch.compile(model, dynamic=False) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    # The optimiser's state and gradients are there from the first step on, as in the middle of a training.
    zero_gradients(model)
    optimizer.step()
    labels = torch.arange(len(pixel_values), device=model.device) % (model.config.num_labels or 1)
    superpixels = (
        None if _model_computes_them(image_processor) else _superpixels(image_processor, pixel_values, compiled)
    )

    def step() -> None:
        given = {} if superpixels is None else {"superpixel_ids": superpixels()}
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            loss = forward(pixel_values=pixel_values, labels=labels, **given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def zero_gradients(model: PreTrainedModel) -> None:
    """Gives every parameter a gradient of zeros."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def _decoded(images: Sequence[Image.Image | bytes]) -> list[Any]:
    """Upright, in 8-bit RGB: what all processors are handed, those of other libraries too."""
    return [decode_image(image) for image in images]


def _forward(model: PreTrainedModel, compiled: bool) -> Callable[..., torch.Tensor]:
    """The logits of a model, without gradients."""
    model.eval()
    forward = torch.compile(model, dynamic=False) if compiled else model
    # FocusViT casts pixels itself, after it has computed superpixels in float32.
    dtype = None if isinstance(model, FocusViTPreTrainedModel) else model.dtype

    @torch.no_grad()
    def run(pixel_values: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        return forward(pixel_values=pixel_values if dtype is None else pixel_values.to(dtype), **inputs).logits

    return run


def _model_computes_them(image_processor: Any) -> bool:
    """Whether a model given pixels alone computes the superpixels that its processor would."""
    return getattr(image_processor, "superpixel_method", "torch") == "torch"


def _superpixels(
    image_processor: Any, pixel_values: torch.Tensor, compiled: bool
) -> Callable[[], torch.Tensor] | None:
    """Computes the maps of normalised pixels, from 8-bit levels like the processor; None where that computes none."""
    if not getattr(image_processor, "do_superpixels", False):
        return None
    mean, std = image_processor.image_mean, image_processor.image_std
    levels = levels_of_pixels(pixel_values, mean, std).to(torch.uint8)
    options = SuperpixelOptions.of(image_processor)
    segment = (
        torch.compile(superpixel_map, dynamic=False) if compiled and options.method == "torch" else superpixel_map
    )
    return lambda: segment(levels, options)
