"""A figure found by FocusViT: one logit for each token, or for each cell from its token and its own feature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from experiments.borders.data import Composites, shares_of_cells, training_batches
from experiments.borders.scores import boundary_f, intersection_over_union, pixel_accuracy, region_ceilings
from experiments.micro.data import Examples
from experiments.micro.training import Recipe, model_inputs, optimise
from focusvit_hf import FocusViTConfig
from focusvit_hf.lay_back import lay_back
from focusvit_hf.modeling_focusvit import FocusViTModel


# "bilinear" and "bicubic" interpolate the map that the values stand on: the tiles of a grid, the cells of superpixels.
# "bilinear_cells" interpolates what was laid back onto cells, of a grid too.
UPSAMPLINGS = ("nearest", "bilinear", "bilinear_cells", "bicubic")
_OWN_FEATURE_WIDTH = 64
_CHUNK = 100


@dataclass(frozen=True)
class Head:
    """
    What stands on the tokens.

    Args:
        own_feature (`bool`):
            A logit for each cell, from its region's token and from its own feature of the stem, through an MLP with
            one hidden layer; otherwise one for each token.
        laid (`str`): How tokens are laid onto the cells in training, see `focusvit_hf.lay_back`.
    """

    own_feature: bool = False
    laid: str = "nearest"


class Answer(NamedTuple):
    """Logits `(batch_size, n)`, and the map `(batch_size or 1, rows, columns)` of the places they stand for."""

    logits: torch.Tensor
    ids: torch.Tensor


def tile_map(config: FocusViTConfig) -> torch.Tensor:
    """
    The map of a grid with one cell for each tile, so that what is laid back on it can be interpolated between tiles;
    for superpixels that of the tiles they start from.

    Args:
        config ([`FocusViTConfig`]): `patch_pooling` may be `"none"`, too: then tiles are patches.

    Returns:
        `torch.LongTensor` of shape `(1, rows, columns)`.

    Raises:
        ValueError: on tiles of a grid that differ in size.
    """
    height, width = config.image_height_and_width
    cells = (height // config.cell_size, width // config.cell_size)
    layout = config.region_layout(height, width)
    if config.patch_pooling == "grid" and any(c % n for c, n in zip(cells, layout, strict=True)):
        raise ValueError(f"Expected tiles alike, got {layout} of them over {cells} cells.")
    return torch.arange(layout[0] * layout[1]).view(1, *layout)


class FigureFinder(nn.Module):
    """
    FocusViT with a head that says what is figure and what is ground.

    Args:
        config ([`FocusViTConfig`]): With a stem (`embedding_type="conv"`), full attention, superpixels or a grid.
        head ([`Head`]): What stands on the tokens.

    Raises:
        ValueError: on a configuration without cells or without tokens at the end, and on tiles of several sizes.
    """

    # The map of a grid's tiles, and that of the cells.
    tiles: torch.Tensor
    places: torch.Tensor

    def __init__(self, config: FocusViTConfig, head: Head):
        super().__init__()
        if config.embedding_type != "conv" or config.patch_pooling == "none":
            raise ValueError(
                "Expected embedding_type 'conv' and patch_pooling 'superpixel' or 'grid', "
                f"got {config.embedding_type!r} and {config.patch_pooling!r}."
            )
        if set(config.layer_types or ()) != {"full_attention"}:
            raise ValueError(f"Expected full attention in all layers, got {config.layer_types}.")
        height, width = config.image_height_and_width
        self.cells = (height // config.cell_size, width // config.cell_size)
        self.head = head
        self.focusvit = FocusViTModel(config, add_pooling_layer=False)
        self.from_token = nn.Linear(config.hidden_size, _OWN_FEATURE_WIDTH if head.own_feature else 1)
        if head.own_feature:
            self.from_cell = nn.Linear(config.stem_channels, _OWN_FEATURE_WIDTH)
            self.out = nn.Linear(_OWN_FEATURE_WIDTH, 1)
        self.register_buffer("tiles", tile_map(config), persistent=False)
        self.register_buffer("places", torch.arange(self.cells[0] * self.cells[1]).view(1, *self.cells), False)

    def forward(self, pixel_values: torch.Tensor, superpixel_ids: torch.Tensor | None = None) -> Answer:
        """`pixel_values` `(batch_size, 3, height, width)` and, with superpixels, their map, to an [`Answer`]."""
        ids = self.tiles if superpixel_ids is None else superpixel_ids
        states = self.focusvit(pixel_values, superpixel_ids=superpixel_ids).last_hidden_state
        values = self.from_token(states[:, -self.focusvit.config.superpixel_count :])
        if not self.head.own_feature:
            return Answer(values[..., 0], ids)
        # What is linear is the same before it is laid back, and dearer after.
        laid = lay_back(values, ids, self.cells, mode=self.head.laid).flatten(2).transpose(1, 2)
        own = self.from_cell(self.focusvit.embeddings.units(pixel_values))
        return Answer(self.out(F.gelu(laid + own))[..., 0], self.places)

    def loss(self, answer: Answer, masks: torch.Tensor) -> torch.Tensor:
        """
        Binary cross entropy of each cell against its share of figure: where a cell has one logit, it differs from that
        of its pixels by nothing.
        """
        logits = lay_back(answer.logits, answer.ids, self.cells, mode=self.head.laid)
        return F.binary_cross_entropy_with_logits(logits, shares_of_cells(masks, self.cells))


def upsampled(answer: Answer, size: tuple[int, int], cells: tuple[int, int], how: str) -> torch.Tensor:
    """Logits of pixels, `(batch_size, *size)`, by one of [`UPSAMPLINGS`]."""
    if how in ("nearest", "bilinear"):
        return lay_back(answer.logits, answer.ids, size, mode=how)
    onto = cells if how == "bilinear_cells" else (answer.ids.shape[1], answer.ids.shape[2])
    laid = lay_back(answer.logits, answer.ids, onto)[:, None]
    return F.interpolate(laid, size, mode=how.removesuffix("_cells"), align_corners=False)[:, 0]


def fit(model: FigureFinder, plan: Recipe, seed: int, examples: Examples) -> list[dict[str, float]]:
    """
    Trains a model where it stands, and leaves it in evaluation mode.

    Args:
        model ([`FigureFinder`]): To train.
        plan (`Recipe`): Epochs, batches, AdamW and its rates; in float32.
        seed (`int`): Of the composites: runs of the same seed see the same ones in the same order.
        examples ([`Examples`]): What the composites are made of.

    Returns:
        `list[dict]`: For each epoch its mean loss, and seconds since the beginning.

    Raises:
        ValueError: where the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)

    def losses() -> Iterator[torch.Tensor]:
        for batch in training_batches(examples, plan.batch_size, generator):
            answer = model(**model_inputs(model.focusvit.config, batch.images))
            yield model.loss(answer, batch.masks)

    return optimise(model, plan, len(examples), losses)


@torch.no_grad()
def measure(model: FigureFinder, composites: Composites) -> dict[str, dict[str, torch.Tensor]]:
    """
    Scores of each composite, `(count,)` in 0..1: by upsampling and kind (`iou`, `accuracy`, `boundary_f`), and under
    `"ceiling"` (`iou`, `accuracy`) the best that any logits for the same regions can do.
    """
    model.eval()
    size = (composites.images.shape[2], composites.images.shape[3])
    parts: dict[str, dict[str, list[torch.Tensor]]] = {}

    def add(how: str, **scores: torch.Tensor) -> None:
        for kind, values in scores.items():
            parts.setdefault(how, {}).setdefault(kind, []).append(values)

    for images, masks in zip(composites.images.split(_CHUNK), composites.masks.split(_CHUNK), strict=True):
        answer = model(**model_inputs(model.focusvit.config, images))
        for how in UPSAMPLINGS:
            found = upsampled(answer, size, model.cells, how) > 0
            iou, accuracy = intersection_over_union(found, masks), pixel_accuracy(found, masks)
            add(how, iou=iou, accuracy=accuracy, boundary_f=boundary_f(found, masks))
        places = (answer.ids.shape[1], answer.ids.shape[2])
        iou, accuracy = region_ceilings(shares_of_cells(masks, places), answer.ids, answer.logits.shape[1])
        add("ceiling", iou=iou, accuracy=accuracy)
    return {how: {kind: torch.cat(values) for kind, values in kinds.items()} for how, kinds in parts.items()}


def find_figures(
    config: FocusViTConfig, head: Head, plan: Recipe, seed: int, examples: Examples
) -> tuple[FigureFinder, list[dict[str, float]]]:
    """A [`FigureFinder`] trained from scratch, and its history; see [`fit`]. The seed is the weights' too."""
    torch.manual_seed(seed)
    # The convolutions of the stem are faster so.
    model: Any = FigureFinder(config, head)
    model = model.to(memory_format=torch.channels_last)
    return model, fit(model, plan, seed, examples)
