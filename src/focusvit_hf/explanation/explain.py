"""What a model says about an image and what its answer rests on, found once and drawn by whoever wants to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from PIL import Image

from ..image_processing_focusvit import FocusViTImageProcessor
from ..images import decode_image
from ..lay_back import Box, cells_to_pixels
from ..modeling_focusvit import FocusViTForImageClassification
from ..selection_options import SELECT_PACK
from ..utils.tensors import first_not_finite
from .overlays import covered_box
from .relevance import cell_relevance, evaluating, scores


# The share of the cells below the strongest colour, and what counts as no relevance at all, in nats.
_STRONGEST, _SMALLEST = 0.98, 1e-6
_REGION_NAMES = {"superpixel": "superpixels", "grid": "tiles of a grid", "none": "patches"}


@dataclass(frozen=True, eq=False)
class Prediction:
    """
    What a model says about an image.

    Args:
        image (`PIL.Image.Image`): The image as the model takes it: upright, 8-bit RGB, transparency laid over white.
        labels (`list[str]`): The names of the classes, in the order of their numbers.
        probabilities (`torch.FloatTensor` of shape `(num_labels,)`): In 0..1.
        region_ids (`torch.LongTensor` of shape `(rows, columns)`): The region of each cell, in [0, num_regions).
        num_regions (`int`): How many regions the model sees, which is how many tokens it works on.
        region_name (`str`): What they are: superpixels, tiles of a grid or patches.
        box ([`~lay_back.Box`]): The part of the image that the map covers, in its pixels.
        layers (`tuple` of `int`): The layers before which tokens leave; none for a model in which all stay.
        kept (`tuple` of `torch.LongTensor` of shape `(k,)`): The regions whose tokens are left at each of them.
        selecting_layers (`tuple` of `int`): The layers of select-and-pack attention that work on regions.
        selected (`tuple` of `torch.LongTensor` of shape `(k,)`): The regions whose tokens each of them selected.
    """

    image: Image.Image
    labels: list[str]
    probabilities: torch.Tensor
    region_ids: torch.Tensor
    num_regions: int
    region_name: str
    box: Box
    layers: tuple[int, ...] = field(default=(), kw_only=True)
    kept: tuple[torch.Tensor, ...] = field(default=(), kw_only=True)
    selecting_layers: tuple[int, ...] = field(default=(), kw_only=True)
    selected: tuple[torch.Tensor, ...] = field(default=(), kw_only=True)

    @property
    def answer(self) -> int:
        """The number of the most probable class."""
        return int(self.probabilities.argmax())

    def ranked(self, top_k: int = 5) -> dict[str, list[Any]]:
        """The most probable classes, best first: `{"labels": [...], "scores": [...]}` with scores in 0..1."""
        best = self.probabilities.topk(min(top_k, len(self.labels)))
        return {"labels": [self.labels[number] for number in best.indices.tolist()], "scores": best.values.tolist()}

    def region_map(self) -> torch.Tensor:
        """(height, width) int64: the region of each pixel of the image, -1 outside the box."""
        return cells_to_pixels(self.region_ids, (self.image.height, self.image.width), self.box, fill=-1)

    def stages_passed(self) -> torch.Tensor:
        """
        (height, width) int64: before how many of the `layers` the token of each pixel was still there, from 0 for one
        that left first to all of them for one that stayed to the end; 0 outside the box.
        """
        return self._times(self.kept)

    def times_selected(self) -> torch.Tensor:
        """(height, width) int64: by how many of the `selecting_layers` the token of each pixel was selected."""
        return self._times(self.selected)

    def _times(self, stages: Sequence[torch.Tensor]) -> torch.Tensor:
        """In how many of the stages the region of each pixel is; 0 outside the box."""
        counts = torch.zeros(self.num_regions, dtype=torch.int64)
        for places in stages:
            counts[places] += 1
        return cells_to_pixels(counts[self.region_ids], (self.image.height, self.image.width), self.box)


@dataclass(frozen=True, eq=False)
class Explanation(Prediction):
    """
    A [`Prediction`] with what it rests on.

    Args:
        target (`int`): The class in question.
        relevance (`torch.FloatTensor` of shape `(rows, columns)`):
            How much of the target's score rests on each cell, in nats for the area of the image, see
            [`~explanation.relevance.cell_relevance`]. Negative where a cell speaks against the target.
    """

    target: int
    relevance: torch.Tensor

    def heat(self) -> torch.Tensor:
        """
        (height, width) float32 in 0..1: the positive relevance of each pixel, 0 outside the box. The one cell in fifty
        that has the most gets 1, so that a single cell does not darken all others.
        """
        positive = self.relevance.clamp(min=0)
        largest = positive.quantile(_STRONGEST) if positive.quantile(_STRONGEST) > 0 else positive.max()
        levels = (positive / largest.clamp(min=_SMALLEST)).clamp(max=1)
        return cells_to_pixels(levels, (self.image.height, self.image.width), self.box, mode="bilinear")


def predict(
    model: FocusViTForImageClassification, image_processor: FocusViTImageProcessor, images: Sequence[Image.Image]
) -> list[Prediction]:
    """
    What a model says about images. Each is prepared once, and all go through the model together where they have one
    size afterwards.

    Args:
        model ([`FocusViTForImageClassification`]): It runs in evaluation mode, and is left as it was.
        image_processor ([`FocusViTImageProcessor`]): The processor that belongs to it.
        images (sequence of `PIL.Image.Image`): Of any size and mode.

    Returns:
        `list[Prediction]`: One for each image, its tensors on the CPU.

    Raises:
        ValueError: on an image that the processor or the model refuses, on a model that is no classifier, and on
            logits that are not finite.
    """
    return [prediction for prediction, *_ in _looked_at(model, image_processor, images)]


def explain(
    model: FocusViTForImageClassification,
    image_processor: FocusViTImageProcessor,
    image: Image.Image,
    target: int | None = None,
    batch_size: int = 64,
) -> Explanation:
    """
    What a model says about an image, and how much of the answer rests on each part of it. The image is prepared once
    and goes through the model once, and then once for each part that is hidden (190 for most models).

        >>> explanation = explain(model, image_processor, Image.open("temple.jpg"))
        >>> explanation.ranked(1)
        {'labels': ['church'], 'scores': [0.67]}

    Args:
        model, image_processor: As in [`predict`].
        image (`PIL.Image.Image`): Of any size and mode.
        target (`int`, *optional*): The class in question, by default the model's answer.
        batch_size (`int`, *optional*, defaults to 64): How many partly hidden images go through the model at a time.

    Returns:
        [`Explanation`], its tensors on the CPU.

    Raises:
        ValueError: as [`predict`], and on a `target` that is no class and a `batch_size` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"Expected batch_size >= 1, got {batch_size}.")
    if target is not None and not 0 <= target < len(_labels(model)):
        raise ValueError(f"Expected a target in [0, {model.config.num_labels}), got {target}.")
    [(prediction, inputs, log_probabilities)] = _looked_at(model, image_processor, [image])
    number = prediction.answer if target is None else target
    relevance = cell_relevance(
        model,
        inputs["pixel_values"],
        inputs.get("superpixel_ids"),
        log_probabilities[None],
        torch.tensor([number], device=model.device),
        batch_size,
    )
    return Explanation(**vars(prediction), target=number, relevance=relevance[0].cpu())


@torch.no_grad()
def _looked_at(
    model: FocusViTForImageClassification, image_processor: FocusViTImageProcessor, images: Sequence[Image.Image]
) -> list[tuple[Prediction, dict[str, torch.Tensor], torch.Tensor]]:
    """Each image's prediction, with what the model was given for it and the logarithms of its probabilities."""
    labels = _labels(model)
    if not images:
        return []
    upright = [cast(Image.Image, decode_image(image)) for image in images]
    inputs = [dict(image_processor(image, return_tensors="pt").to(model.device)) for image in images]
    sizes = {item["pixel_values"].shape for item in inputs}
    groups = [inputs] if len(sizes) == 1 else [[item] for item in inputs]
    with evaluating(model), _chosen_tokens(model) as (kept, selected):
        log_probabilities = torch.cat([_scores(model, group) for group in groups])
    if not log_probabilities.isfinite().all():
        raise ValueError(f"expected finite logits of the model, got {_not_finite(model)}")
    config = model.config
    found = []
    # Stage by stage, the images of all groups behind one another; a group has one size, and so has its tokens.
    stayed, chosen = (
        [stages for group in groups for stages in zip(*group, strict=True)] or [()] * len(images)
        for groups in (kept, selected)
    )
    # Before the tokens are pooled, a layer selects patches.
    first = config.pooling_layer
    selecting = [index for index, kind in enumerate(config.layer_types or ()) if kind == SELECT_PACK]
    for image, item, values, places, masks in zip(upright, inputs, log_probabilities, stayed, chosen, strict=True):
        pixel_values = item["pixel_values"]
        prediction = Prediction(
            image=image,
            labels=labels,
            probabilities=values.exp().cpu(),
            region_ids=model.focusvit.region_ids(pixel_values, item.get("superpixel_ids"))[0].cpu(),
            num_regions=config.num_regions(*pixel_values.shape[2:]),
            region_name=_REGION_NAMES[config.patch_pooling],
            box=covered_box(image_processor, image.height, image.width),
            layers=tuple(config.sparsification_layers or ()),
            kept=tuple(stage.cpu() for stage in places),
            selecting_layers=tuple(index for index in selecting if index >= first),
            selected=tuple(
                mask.nonzero().squeeze(1).cpu() for index, mask in zip(selecting, masks, strict=True) if index >= first
            ),
        )
        found.append((prediction, item, values))
    return found


@contextmanager
def _chosen_tokens(model: FocusViTForImageClassification) -> Iterator[tuple[list[Any], list[Any]]]:
    """
    `kept_tokens` and `selected_tokens` of each pass through the model within this context; none of a model in which
    all tokens stay, or are used by all layers.
    """
    told: tuple[list[Any], list[Any]] = ([], [])

    def tell(module: torch.nn.Module, arguments: Any, outputs: Any) -> None:
        for passes, stages in zip(told, (outputs.kept_tokens, outputs.selected_tokens), strict=True):
            if stages is not None:
                passes.append(stages)

    handle = model.register_forward_hook(tell)
    try:
        yield told
    finally:
        handle.remove()


def _scores(model: FocusViTForImageClassification, group: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
    """[`scores`] of prepared images of one size."""
    pixel_values = torch.cat([item["pixel_values"] for item in group])
    maps = [item["superpixel_ids"] for item in group if "superpixel_ids" in item]
    return scores(model, pixel_values, torch.cat(maps) if maps else None)


def _labels(model: FocusViTForImageClassification) -> list[str]:
    config = model.config
    number = cast(int, config.num_labels)
    if config.problem_type == "regression" or number < 2:
        raise ValueError(
            f"expected a model that tells at least two classes apart, got num_labels={number} and "
            f"problem_type={config.problem_type!r}"
        )
    names = cast(dict[int, str], config.id2label)
    return [str(names.get(label, f"LABEL_{label}")) for label in range(number)]


def _not_finite(model: torch.nn.Module) -> str:
    """Which of the weights is to blame for logits that are not finite."""
    name = first_not_finite(model.state_dict())
    if name is not None:
        return f"NaN or infinity, as in its weights {name}"
    return f"NaN or infinity from finite weights in {next(model.parameters()).dtype}"
