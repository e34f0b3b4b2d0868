"""The rows of the frontier: what was trained, how often it is right, and how to build it again to be timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from experiments.micro.paired_bootstrap import Difference, paired_bootstrap
from experiments.micro.stems import with_stem
from experiments.micro.tables import collect, outcomes
from experiments.micro.training import BASE, Recipe
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.benchmark.subjects import Subject, find_subject


QUESTIONS = (
    "controls_49",
    "controls_36",
    "controls_16",
    "controls_9",
    "controls_4",
    "controls_36_stem_64",
    "controls_16_stem_64",
    "peers",
)
OURS, LATENT = "FocusViT", "FocusViT, latent attention"
GRID, GRID_LATENT = "grid, same stem", "grid, same stem, latent"
# With more channels in the stem than the default.
WIDER = {
    OURS: "FocusViT, wider stem",
    LATENT: "FocusViT, latent, wider stem",
    GRID: "grid, wider stem",
    GRID_LATENT: "grid, latent, wider stem",
}
DENSE, LARGER, PEERS = "dense ViT", "ViT, larger patches", "others in transformers"
# In the order of a legend.
FAMILIES = (OURS, LATENT, *WIDER.values(), GRID, GRID_LATENT, LARGER, DENSE, PEERS)
# Of the variants of `questions.controls` those that somebody would use.
_VARIANTS = {
    "superpixel": OURS,
    "superpixel_latent": LATENT,
    "grid": GRID,
    "grid_latent": GRID_LATENT,
    "larger_patches": LARGER,
    "larger_patches_unmatched": LARGER,
    "dense_stem": DENSE,
    "dense_linear": DENSE,
}
_LABELS = {"dense_stem": "dense ViT, same stem", "dense_linear": "dense ViT"}
# Fields of a recipe that say what is trained, not how.
_WHAT = ("regions", "stem", "preset", "config_overrides", "seed")


@dataclass(frozen=True)
class Row:
    """
    A point of the plot.

    Args:
        name (`str`): Unique: a variant, with its number of tokens where the variant comes with several, and with the
            channels of its stem where these are more than the default.
        family (`str`): Of [`FAMILIES`].
        label (`str`): What stands beside the point: the number of tokens, or a name.
        runs (`dict`): Its results by seed, all of one configuration.
    """

    name: str
    family: str
    label: str
    runs: dict[int, dict[str, Any]]

    @property
    def first(self) -> dict[str, Any]:
        """The result of the lowest seed."""
        return self.runs[min(self.runs)]

    @property
    def built(self) -> dict[str, Any]:
        """All that decides how long an image takes: the configuration, and a stem in the place of the model's own."""
        return {**self.first["configuration"], "stem": self.first["recipe"].get("stem")}

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return int(self.first["configuration"]["image_size"])

    def accuracy(self) -> Difference:
        """Mean accuracy over images and seeds, with its interval."""
        right = outcomes(self.runs, sorted(self.runs))
        return paired_bootstrap(right, np.zeros_like(right))

    def subject(self) -> Subject:
        """
        The row as something to time, with random weights, fed as it was trained: all rows resize to a square with one
        image processor, which computes superpixels where the model takes them. Transformers' own processors of the
        peers would take longer. The peers are in the memory format that suits convolutions, the others as they load.
        """
        fields = self.first["configuration"]
        if self.family == PEERS:
            own = find_subject(self.name)
            configure = partial(_peer_config, own, fields["num_labels"])
            return Subject(self.name, configure, partial(_convolutional, own.model_class), _processor)
        build = partial(_focusvit, self.first["recipe"].get("stem"))
        return Subject(self.name, partial(_focusvit_config, fields), build, _processor)


def load_rows(results: Path, questions: Sequence[str] = QUESTIONS) -> list[Row]:
    """
    The rows of questions, family by family, many tokens first.

    Args:
        results (`Path`): The folder that holds a folder for each question.
        questions (sequence of `str`): Those without results are left out, and so are variants that nobody would use,
            such as random regions. The same run in two of them counts once.

    Raises:
        ValueError: when there is no row, when rows were trained with different recipes or tested on different
            numbers of images, or one name stands for two configurations.
    """
    rows: dict[str, Row] = {}
    for question in questions:
        for runs in collect(results / question).values():
            for seed, result in sorted(runs.items()):
                row = _row(result)
                if row is None:
                    continue
                known = rows.setdefault(row.name, row)
                if known.built != row.built:
                    raise ValueError(f"Expected one configuration of {row.name}, got another one in {question}.")
                known.runs.setdefault(seed, result)
    if not rows:
        raise ValueError(f"Expected results of {', '.join(questions)} in {results}, got none.")
    _require_one_recipe(list(rows.values()))
    chosen = [row for row in rows.values() if not _is_doubled(row, rows)]
    return sorted(chosen, key=lambda row: (FAMILIES.index(row.family), -(row.first["tokens"] or 0), row.name))


def _row(result: dict[str, Any]) -> Row | None:
    variant, tokens = result["variant"], result["tokens"]
    family = family_of(result)
    if family is None:
        return None
    has_several = variant in _VARIANTS and family != DENSE
    name = f"{variant}_{tokens}" if has_several else variant
    if family in WIDER.values():
        name += f"_stem_{result['configuration']['stem_channels']}"
    return Row(name, family, str(tokens) if has_several else _LABELS.get(variant, variant), {result["seed"]: result})


def family_of(result: Mapping[str, Any]) -> str | None:
    """The family of a result; None where nobody would use its variant."""
    kind = result["configuration"].get("model_type", FocusViTConfig.model_type)
    if kind != FocusViTConfig.model_type:
        return PEERS
    if result.get("family"):
        return result["family"]
    family = _VARIANTS.get(result["variant"])
    is_wider = result["configuration"]["stem_channels"] > FocusViTConfig.stem_channels
    return WIDER.get(family, family) if family and is_wider else family


def _is_doubled(row: Row, rows: Mapping[str, Row]) -> bool:
    """Whether the same tokens are there with as many parameters as the other rows own."""
    variant, _, parameters = row.name.partition("_unmatched")
    return bool(parameters) and variant + parameters in rows


def _require_one_recipe(rows: Sequence[Row]) -> None:
    # A field that came later than a result was its default before.
    first, *others = (
        {**asdict(Recipe()), **run["recipe"], "images": run["images"]} for row in rows for run in row.runs.values()
    )
    for other in others:
        differing = {
            key: (first.get(key), other.get(key))
            for key in {**first, **other}
            if key not in _WHAT and _plain(first.get(key)) != _plain(other.get(key))
        }
        if differing:
            raise ValueError(f"Expected rows of one recipe, tested on the same images, got {differing}.")


def _plain(value: Any) -> Any:
    """JSON knows no tuples."""
    return list(value) if isinstance(value, tuple) else value


def _focusvit_config(fields: Mapping[str, Any], resolution: int) -> FocusViTConfig:
    return FocusViTConfig(**{"num_labels": BASE["num_labels"], **fields, "image_size": resolution})


def _focusvit(stem: str | None, config: FocusViTConfig) -> FocusViTForImageClassification:
    model = FocusViTForImageClassification(config)
    return with_stem(model, stem) if stem else model


def _peer_config(peer: Subject, num_labels: int, resolution: int) -> PreTrainedConfig:
    config = peer.configure(resolution)
    config.num_labels = num_labels
    return config


def _convolutional(model_class: Any, config: PreTrainedConfig) -> Any:
    return model_class(config).to(memory_format=torch.channels_last)


def _processor(config: PreTrainedConfig, resolution: int) -> FocusViTImageProcessor:
    if isinstance(config, FocusViTConfig):
        return FocusViTImageProcessor.from_model_config(config)
    return FocusViTImageProcessor(size={"height": resolution, "width": resolution}, do_superpixels=False)
