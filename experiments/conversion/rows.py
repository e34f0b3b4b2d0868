"""The rows of the conversion curve: ways to let a dense ViT do less, each brought to a share of its FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from focusvit_hf import FocusViTConfig
from focusvit_hf.conversion.cost import flops_of_an_image
from focusvit_hf.sparsification_options import most_merged


BUDGETS = (0.75, 0.5, 0.33)
# How far from its budget a row may be: numbers of tokens are whole.
TOLERANCE = 0.03
_STEPS = 1000


@dataclass(frozen=True)
class Row:
    """
    What the dense ViT is made into.

    Args:
        family (`str`): Of [`FAMILIES`].
        budget (`float`): The share of the dense ViT's FLOPs that was asked for.
        share (`float`): The share that it is.
        overrides (`dict`): Of `convert_vit_checkpoint`.
    """

    family: str
    budget: float
    share: float
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique: the family and the budget in per cent."""
        return f"{self.family}_{round(100 * self.budget)}"


def _quarters(config: FocusViTConfig) -> list[int]:
    return sorted({max(1, config.num_hidden_layers * quarter // 4) for quarter in (1, 2, 3)})


def _leaving(relevance: str, mode: str, config: FocusViTConfig) -> list[dict[str, Any]]:
    """Every number of tokens that can be reached with one ratio at a quarter, a half and three quarters of the way."""
    options = {"patch_pooling": "none", "sparsification_layers": _quarters(config)}
    options |= {"sparsification_relevance": relevance, "sparsification_mode": mode}
    return [{**options, "keep_ratio": step / _STEPS} for step in range(_STEPS, 0, -1)]


def _merging(config: FocusViTConfig) -> list[dict[str, Any]]:
    """As many tokens less at each layer but the first, as far as they can be merged, from none on."""
    layers, number = list(range(1, config.num_hidden_layers)), config.num_tokens
    options = {"patch_pooling": "none", "sparsification_layers": layers, "sparsification_mode": "merge"}
    found: list[dict[str, Any]] = []
    for quarters in range(4 * number):
        left, shares = number, []
        for layer in layers:
            left = max(number - quarters * layer // 4, left - most_merged(left), 1)
            shares.append(left / number)
        if not found or shares != found[-1]["keep_ratio"]:
            found.append({**options, "keep_ratio": shares})
    return found


def _pooling(pooling: str, assignment: str, layer: int, config: FocusViTConfig) -> list[dict[str, Any]]:
    """Every layout of tiles no flatter than 2 to 1, many first."""
    height, width = config.image_height_and_width
    patches = (height // config.patch_size, width // config.patch_size)
    layouts = [
        (rows, columns)
        for rows in range(1, patches[0] + 1)
        for columns in range(rows, patches[1] + 1)
        if columns <= 2 * rows
    ]
    options = {"patch_pooling": pooling, "superpixel_assignment": assignment, "pooling_layer": layer}
    return [
        {**options, "num_superpixels": list(layout)} for layout in sorted(layouts, key=lambda pair: -pair[0] * pair[1])
    ]


def _selecting(part: int, config: FocusViTConfig, **options: Any) -> list[dict[str, Any]]:
    """Select-and-pack attention in the last half (`part` = 2) or quarter (4) of the layers, whose gates start new."""
    last = config.num_hidden_layers // part
    kinds = ["full_attention"] * (config.num_hidden_layers - last) + ["select_pack_attention"] * last
    options = {"patch_pooling": "none", "layer_types": kinds, **options}
    return [{**options, "select_budget": step / _STEPS} for step in range(_STEPS, 0, -1)]


# From the dense configuration to overrides, the dearest first.
FAMILIES: dict[str, Callable[[FocusViTConfig], list[dict[str, Any]]]] = {
    "attention_drop": partial(_leaving, "attention", "drop"),
    "attention_fuse": partial(_leaving, "attention", "fuse"),
    "learned": partial(_leaving, "learned", "drop"),
    "learned_fuse": partial(_leaving, "learned", "fuse"),
    "merge": _merging,
    "random": partial(_leaving, "random", "drop"),
    "selected": partial(_selecting, 2),
    "selected_by_score": partial(_selecting, 2, select_threshold=0.5, select_supervision="budget"),
    "selected_late": partial(_selecting, 4),
    "before_superpixel_soft": partial(_pooling, "superpixel", "soft", 0),
    "before_superpixel_hard": partial(_pooling, "superpixel", "hard", 0),
    "before_grid": partial(_pooling, "grid", "soft", 0),
    **{
        f"layer{layer}_{name}": partial(_pooling, pooling, assignment, layer)
        for layer in (2, 4, 6)
        for name, pooling, assignment in (("superpixel", "superpixel", "hard"), ("grid", "grid", "soft"))
    },
}
# What nobody would use before it is trained.
UNTRAINED = ("learned", "learned_fuse", "selected", "selected_by_score", "selected_late")


def at_budget(family: str, dense: FocusViTConfig, budget: float) -> Row | None:
    """
    The row of a family whose FLOPs are nearest to a share of the dense ViT's; None where none is within
    [`TOLERANCE`], as where pooling at depth comes too late.

    Args:
        family (`str`): Of [`FAMILIES`].
        dense ([`FocusViTConfig`]): Without pooling or sparsification.
        budget (`float`): The share, in 0..1.
    """
    choices, whole = FAMILIES[family](dense), flops_of_an_image(dense)

    def share(overrides: Mapping[str, Any]) -> float:
        return flops_of_an_image(FocusViTConfig.from_dict(dense.to_dict(), **overrides)) / whole

    # Costs fall along the choices.
    low, high = 0, len(choices) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if share(choices[middle]) > budget else (low, middle)
    found = min(choices[low : high + 1], key=lambda overrides: abs(share(overrides) - budget))
    if abs(share(found) - budget) > TOLERANCE:
        return None
    return Row(family, budget, share(found), found)


def all_rows(dense: FocusViTConfig, families: Sequence[str], budgets: Sequence[float]) -> list[Row]:
    """The rows of families at budgets, those left out that cannot be brought there."""
    rows = (at_budget(family, dense, budget) for family in families for budget in budgets)
    return [row for row in rows if row is not None]
