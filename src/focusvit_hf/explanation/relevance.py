"""How much of an answer rests on each region, and whether that is so."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch

from ..lay_back import cells_to_pixels
from ..modeling_focusvit import FocusViTForImageClassification
from ..superpixels import geometry, slic


_SMALLEST_AREA = 1e-6
# Tiles in a row and in a column of the superpixels that a heat map hides; how much smaller its blur makes an image.
_HIDDEN_TILES = (4, 5, 7, 10)
_BLUR = 12


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

    Region by region, the pixels are replaced by the image's mean colour while the map stays as it is. The relevance
    is the drop in the target's log-probability.

    Args:
        model ([`FocusViTForImageClassification`]): Any `patch_pooling`; runs in evaluation mode without dropout.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): Normalised images.
        superpixel_ids (`torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`, *optional*):
            The superpixels; by default the model computes them.
        target (`int` or `torch.LongTensor` of shape `(batch_size,)`, *optional*):
            The class in question, by default the model's answer for each image.
        batch_size (`int`, *optional*, defaults to 64): How many occluded images go through the model at a time.

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
    with evaluating(model):
        before = scores(model, pixel_values, given, batch_size)
        target = _targets(before, target)
        after = _occluded(model, pixel_values, given, ids, count, fill, target, batch_size)
    return before.gather(1, target[:, None]) - after


@torch.no_grad()
def cell_relevance(
    model: FocusViTForImageClassification,
    pixel_values: torch.Tensor,
    superpixel_ids: torch.Tensor | None,
    before: torch.Tensor,
    target: torch.Tensor,
    batch_size: int = 64,
) -> torch.Tensor:
    """
    How much of an answer rests on each cell: what heat maps show. Occlusion as in [`region_relevance`], with three
    changes that make the map finer and steadier. Regions of several sizes are hidden, SLIC's superpixels in 4 x 4,
    5 x 5, 7 x 7 and 10 x 10 tiles, since one size misses what is smaller and splits what is larger. What is hidden is
    replaced by a strong blur of its surroundings, since a patch of one colour is an object of its own. The drop of a
    region is divided by the share of the image that the region covers, and a cell gets the mean over the sizes.

    Args:
        model, pixel_values, superpixel_ids, batch_size: As in [`region_relevance`]; the map that the model pools over
            stays as it is throughout.
        before (`torch.FloatTensor` of shape `(batch_size, num_labels)`): [`scores`] of the whole images.
        target (`torch.LongTensor` of shape `(batch_size,)`): The class in question for each image.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, rows, columns)`: nats for all of the image's area, negative where a
        cell speaks against the target.

    Raises:
        ValueError: on what `forward` refuses.
    """
    given = _given_map(model, pixel_values, superpixel_ids)
    cell = model.config.cell_size
    height, width = pixel_values.shape[2:]
    cells = height // cell, width // cell
    levels = _levels(model, pixel_values)
    fill = _blurred(pixel_values)
    answer = before.gather(1, target[:, None])
    total = pixel_values.new_zeros(len(pixel_values), *cells, dtype=torch.float32)
    layouts = sorted({(min(side, cells[0]), min(side, cells[1])) for side in _HIDDEN_TILES})
    with evaluating(model):
        for rows, columns in layouts:
            hidden = slic(levels, (rows, columns), cell_size=cell)
            after = _occluded(model, pixel_values, given, hidden, rows * columns, fill, target, batch_size)
            density = relevance_per_area(answer - after, hidden)
            total += density.gather(1, hidden.flatten(1)).view_as(total)
    return total / len(layouts)


def _levels(model: FocusViTForImageClassification, pixel_values: torch.Tensor) -> torch.Tensor:
    """(batch_size, 3, height, width) in 0..1: three channels of the images before they were normalised."""
    config = model.config
    channels = 3 if config.num_channels >= 3 else 1
    mean, std = (
        torch.tensor(cast(list[float], values)[:channels], device=pixel_values.device)[:, None, None]
        for values in (config.image_mean, config.image_std)
    )
    return (pixel_values[:, :channels].float() * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)


def _blurred(pixel_values: torch.Tensor) -> torch.Tensor:
    """The images at a twelfth of their size, enlarged again."""
    size = pixel_values.shape[2:]
    small = [max(1, side // _BLUR) for side in size]
    values = torch.nn.functional.interpolate(pixel_values.float(), small, mode="bilinear", antialias=True)
    return torch.nn.functional.interpolate(values, tuple(size), mode="bilinear").to(pixel_values.dtype)


def _occluded(
    model: FocusViTForImageClassification,
    pixel_values: torch.Tensor,
    given: torch.Tensor | None,
    hidden_ids: torch.Tensor,
    count: int,
    fill: torch.Tensor,
    target: torch.Tensor,
    batch_size: int,
) -> torch.Tensor:
    """(images, count): the target's score when each of the `count` regions of `hidden_ids` is replaced by `fill`."""
    pixel_ids = cells_to_pixels(hidden_ids, (pixel_values.shape[2], pixel_values.shape[3]))
    after = []
    for numbers in torch.arange(len(pixel_values) * count, device=pixel_values.device).split(batch_size):
        image, region = numbers // count, numbers % count
        hidden = (pixel_ids[image] == region[:, None, None])[:, None]
        occluded = torch.where(hidden, fill[image], pixel_values[image])
        kept = None if given is None else given[image]
        after.append(scores(model, occluded, kept, batch_size).gather(1, target[image, None])[:, 0])
    return torch.cat(after).view(-1, count)


def relevance_per_area(relevance: torch.Tensor, superpixel_ids: torch.Tensor) -> torch.Tensor:
    """
    Relevance divided by the share of the image that a region covers: what a heat map shows, and what ranks area.

    Args:
        relevance (`torch.FloatTensor` of shape `(batch_size, K)`): As [`region_relevance`] returns it.
        superpixel_ids (`torch.LongTensor` of shape `(batch_size or 1, rows, columns)`): The map of the regions.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, K)`; 0 for a region without cells.
    """
    area = geometry(superpixel_ids, relevance.shape[1])[..., 2]
    return torch.where(area > 0, relevance / area.clamp(min=_SMALLEST_AREA), 0.0)


class DeletionDrop(NamedTuple):
    """What deleting a part of each image takes from the probability of its answer; two `(batch_size,)` tensors."""

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
    takes the regions in a random order. Deleted pixels get the image's mean colour; the map stays as it is.

    Args:
        model, pixel_values, superpixel_ids, target, batch_size: As in [`region_relevance`].
        relevance (`torch.FloatTensor` of shape `(batch_size, K)`):
            What regions are ranked by, such as [`relevance_per_area`].
        area (`float`, *optional*, defaults to 0.2): Share of the image to delete, in 0..1.
        draws (`int`, *optional*, defaults to 10): Random orders a image, over which its drop is averaged.
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
        before = scores(model, pixel_values, given, batch_size)
        answer = _targets(before, target)[:, None]

        def drop(order_by: torch.Tensor) -> torch.Tensor:
            deleted = _without_regions(pixel_values, ids, order_by, area)
            after = scores(model, deleted, given, batch_size)
            return (before.gather(1, answer).exp() - after.gather(1, answer).exp())[:, 0]

        ranked = drop(relevance)
        random = [drop(torch.rand(expected, generator=generator).to(relevance)) for _ in range(draws)]
    return DeletionDrop(ranked, torch.stack(random).mean(dim=0))


def _without_regions(
    pixel_values: torch.Tensor, ids: torch.Tensor, relevance: torch.Tensor, area: float
) -> torch.Tensor:
    """The images without the first `area` of their cells, by falling relevance of their regions."""
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


def scores(
    model: FocusViTForImageClassification,
    pixel_values: torch.Tensor,
    superpixel_ids: torch.Tensor | None,
    batch_size: int = 64,
) -> torch.Tensor:
    """
    Logarithms of the classes' probabilities, in float32: of a softmax, or of a sigmoid for each class where the
    configuration's `problem_type` says that an image may have several.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_labels)`.
    """
    logits = []
    for start in range(0, len(pixel_values), batch_size):
        part = slice(start, start + batch_size)
        ids = None if superpixel_ids is None else superpixel_ids[part]
        logits.append(model(pixel_values[part], superpixel_ids=ids).logits)
    values = torch.cat(logits).float()
    if model.config.problem_type == "multi_label_classification":
        return torch.nn.functional.logsigmoid(values)
    return values.log_softmax(dim=1)


def _targets(log_probabilities: torch.Tensor, target: torch.Tensor | int | None) -> torch.Tensor:
    """(batch_size,) class numbers; the best of `log_probabilities` (batch_size, num_labels) when none are given."""
    if target is None:
        return log_probabilities.argmax(dim=1)
    targets = torch.as_tensor(target, device=log_probabilities.device).expand(len(log_probabilities))
    if targets.min() < 0 or targets.max() >= log_probabilities.shape[1]:
        raise ValueError(f"Expected a target in [0, {log_probabilities.shape[1]}), got {targets.unique().tolist()}.")
    return targets
