"""How much of an answer rests on each region, and whether that is so."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from ..lay_back import cells_to_pixels
from ..modeling_focusvit import FocusViTForImageClassification
from ..superpixels import geometry


_SMALLEST_AREA = 1e-6


@torch.no_grad()
def region_relevance(
    model: FocusViTForImageClassification,
    pixel_values: torch.Tensor,
    superpixel_ids: torch.Tensor | None = None,
    target: torch.Tensor | int | None = None,
    batch_size: int = 64,
) -> torch.Tensor:
    r"""
    How much of an answer rests on each region: occlusion sensitivity (Zeiler and Fergus, "Visualizing and
    Understanding Convolutional Networks", 2014) with the model's own regions in the place of a sliding square.

    Region by region, the pixels are replaced by the picture's mean colour while the map stays as it is. The relevance
    is the drop in the target's log-probability.

    Args:
        model ([`FocusViTForImageClassification`]): Any `patch_pooling`; runs in evaluation mode without dropout.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): Normalised pictures.
        superpixel_ids (`torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`, *optional*):
            The superpixels; by default the model computes them.
        target (`int` or `torch.LongTensor` of shape `(batch_size,)`, *optional*):
            The class in question, by default the model's answer for each picture.
        batch_size (`int`, *optional*, defaults to 64): How many occluded pictures go through the model at a time.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, K)`, in nats. Negative where a region speaks against the target.

    Raises:
        ValueError: on a `target` outside the classes, a `batch_size` below 1, and what `forward` refuses.
    """
    if batch_size < 1:
        raise ValueError(f"Expected batch_size >= 1, got {batch_size}.")
    given = _given_map(model, pixel_values, superpixel_ids)
    ids = model.focusvit.region_ids(pixel_values, given)
    count = model.config.num_regions(*pixel_values.shape[2:])
    fill = pixel_values.mean(dim=(2, 3), keepdim=True)
    pixel_ids = cells_to_pixels(ids, (pixel_values.shape[2], pixel_values.shape[3]))
    with evaluating(model):
        before = _log_probabilities(model, pixel_values, given, batch_size)
        target = _targets(before, target)
        after = []
        for numbers in torch.arange(len(pixel_values) * count, device=pixel_values.device).split(batch_size):
            picture, region = numbers // count, numbers % count
            hidden = (pixel_ids[picture] == region[:, None, None])[:, None]
            occluded = torch.where(hidden, fill[picture], pixel_values[picture])
            kept = None if given is None else given[picture]
            scores = _log_probabilities(model, occluded, kept, batch_size)
            after.append(scores.gather(1, target[picture, None])[:, 0])
    return before.gather(1, target[:, None]) - torch.cat(after).view(-1, count)


def relevance_per_area(relevance: torch.Tensor, superpixel_ids: torch.Tensor) -> torch.Tensor:
    """
    Relevance divided by the share of the picture that a region covers: what a heat map shows, and what ranks area.

    Args:
        relevance (`torch.FloatTensor` of shape `(batch_size, K)`): As [`region_relevance`] returns it.
        superpixel_ids (`torch.LongTensor` of shape `(batch_size or 1, rows, columns)`): The map of the regions.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, K)`; 0 for a region without cells.
    """
    area = geometry(superpixel_ids, relevance.shape[1])[..., 2]
    return torch.where(area > 0, relevance / area.clamp(min=_SMALLEST_AREA), 0.0)


class DeletionDrop(NamedTuple):
    """What deleting a part of each picture takes from the probability of its answer; two `(batch_size,)` tensors."""

    ranked: torch.Tensor
    random: torch.Tensor


@torch.no_grad()
def deletion_drop(
    model: FocusViTForImageClassification,
    pixel_values: torch.Tensor,
    superpixel_ids: torch.Tensor | None,
    relevance: torch.Tensor,
    area: float = 0.2,
    target: torch.Tensor | int | None = None,
    draws: int = 10,
    seed: int = 0,
    batch_size: int = 64,
) -> DeletionDrop:
    """
    Whether relevance is faithful: deletes the area ranked highest, and random regions of the same area beside it (the
    deletion test of Petsiuk et al., "RISE", 2018, at one area).

    Regions are deleted in order until ⌊area · cells + 1/2⌋ cells are gone; of the last region only so many cells, in
    reading order, as are wanted. Both arms follow this rule, so both delete the same number of pixels; the random one
    takes the regions in a random order. Deleted pixels get the picture's mean colour; the map stays as it is.

    Args:
        model, pixel_values, superpixel_ids, target, batch_size: As in [`region_relevance`].
        relevance (`torch.FloatTensor` of shape `(batch_size, K)`):
            What regions are ranked by, such as [`relevance_per_area`].
        area (`float`, *optional*, defaults to 0.2): Share of the picture to delete, in 0..1.
        draws (`int`, *optional*, defaults to 10): Random orders a picture, over which its drop is averaged.
        seed (`int`, *optional*, defaults to 0): Of the random orders.

    Returns:
        [`DeletionDrop`]: Drops of the target's probability, in -1..1, on the device of `pixel_values`.

    Raises:
        ValueError: when `area` is outside 0..1, `draws` is below 1 or `relevance` does not fit the regions.
    """
    expected = (len(pixel_values), model.config.num_regions(*pixel_values.shape[2:]))
    if not 0 <= area <= 1 or draws < 1:
        raise ValueError(f"Expected area in 0..1 and draws >= 1, got {area} and {draws}.")
    if tuple(relevance.shape) != expected:
        raise ValueError(f"Expected relevance of shape {expected}, got {tuple(relevance.shape)}.")
    given = _given_map(model, pixel_values, superpixel_ids)
    ids = model.focusvit.region_ids(pixel_values, given)
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model):
        before = _log_probabilities(model, pixel_values, given, batch_size)
        answer = _targets(before, target)[:, None]

        def drop(order_by: torch.Tensor) -> torch.Tensor:
            deleted = _without_regions(pixel_values, ids, order_by, area)
            after = _log_probabilities(model, deleted, given, batch_size)
            return (before.gather(1, answer).exp() - after.gather(1, answer).exp())[:, 0]

        ranked = drop(relevance)
        random = [drop(torch.rand(expected, generator=generator).to(relevance)) for _ in range(draws)]
    return DeletionDrop(ranked, torch.stack(random).mean(dim=0))


def _without_regions(
    pixel_values: torch.Tensor, ids: torch.Tensor, relevance: torch.Tensor, area: float
) -> torch.Tensor:
    """The pictures without the first `area` of their cells, by falling relevance of their regions."""
    rank = relevance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    # A stable sort keeps the reading order within a region.
    order = rank.gather(1, ids.flatten(1)).argsort(dim=1, stable=True)
    deleted = torch.zeros_like(order, dtype=torch.bool)
    deleted.scatter_(1, order[:, : int(area * order.shape[1] + 0.5)], True)
    hidden = cells_to_pixels(deleted.view_as(ids), (pixel_values.shape[2], pixel_values.shape[3]))
    return torch.where(hidden[:, None], pixel_values.mean(dim=(2, 3), keepdim=True), pixel_values)


def _given_map(
    model: FocusViTForImageClassification, pixel_values: torch.Tensor, superpixel_ids: torch.Tensor | None
) -> torch.Tensor | None:
    """The map to pass to `forward` with changed pixels; None for the controls, which take none."""
    if superpixel_ids is None and model.config.patch_pooling == "superpixel":
        return model.focusvit.compute_superpixel_ids(pixel_values)
    return superpixel_ids


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards each of its modules as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


def _log_probabilities(
    model: FocusViTForImageClassification, pixel_values: torch.Tensor, given: torch.Tensor | None, batch_size: int
) -> torch.Tensor:
    """Log-probabilities in float32, `(batch_size, num_labels)`."""
    logits = []
    for start in range(0, len(pixel_values), batch_size):
        part = slice(start, start + batch_size)
        ids = None if given is None else given[part]
        logits.append(model(pixel_values[part], superpixel_ids=ids).logits)
    return torch.cat(logits).float().log_softmax(dim=1)


def _targets(scores: torch.Tensor, target: torch.Tensor | int | None) -> torch.Tensor:
    """(batch_size,) class numbers; the best of `scores` (batch_size, num_labels) when none are given."""
    if target is None:
        return scores.argmax(dim=1)
    targets = torch.as_tensor(target, device=scores.device).expand(len(scores))
    if targets.min() < 0 or targets.max() >= scores.shape[1]:
        raise ValueError(f"Expected a target in [0, {scores.shape[1]}), got {targets.unique().tolist()}.")
    return targets
