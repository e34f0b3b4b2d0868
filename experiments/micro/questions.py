"""The questions asked at micro scale: for each the variants that answer it, as plain dicts of what they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.micro.stems import STEMS
from experiments.micro.training import BASE, num_parameters, settings


Variant = dict[str, Any]
# Controls have as many parameters as the variant they are compared with, within this share.
PARAMETER_TOLERANCE = 0.05
LATENT = {"layer_types": "latent_attention"}


@dataclass(frozen=True)
class Question:
    """
    Args:
        asks (`str`): What is asked.
        control (`str`): The variant that the others are compared with.
        variants (`dict`): By name what each changes, see `micro.training.settings`.
    """

    asks: str
    control: str
    variants: dict[str, Variant]


def parameters_matched(variant: Mapping[str, Any], reference: Mapping[str, Any]) -> Variant:
    """
    The variant with an MLP as wide as it takes to own as many parameters as `reference` (or of width 1 where all else
    owns more); as it is where the numbers are within [`PARAMETER_TOLERANCE`] already.
    """
    wanted, config = num_parameters(settings(reference)[0]), settings(variant)[0]
    excess = num_parameters(config) - wanted
    if abs(excess) <= PARAMETER_TOLERANCE * wanted:
        return dict(variant)
    a_unit = config.num_hidden_layers * (2 * config.hidden_size + 1)
    return {**variant, "intermediate_size": max(1, config.intermediate_size - round(excess / a_unit))}


def controls(num_superpixels: int, **changes: Any) -> Question:
    """
    FocusViT at K tokens against everything that could take its place: a grid, random regions, another image's
    superpixels, tiles that are small where the detail is, larger patches, and the dense ViTs, linear and with the same
    stem, which have more tokens.
    """
    superpixel: Variant = {"num_superpixels": num_superpixels, **changes}
    size, cell = BASE["image_size"], BASE["superpixel_cell_size"]
    # The largest patches that give no fewer tokens.
    side = max(s for s in range(cell, size + 1, cell) if size % s == 0 and (size // s) ** 2 >= num_superpixels)
    linear = {**changes, "patch_pooling": "none", "embedding_type": "patch"}
    variants = {
        "superpixel": superpixel,
        "grid": {**superpixel, "patch_pooling": "grid"},
        "random": {**superpixel, "regions": "random"},
        "other_image": {**superpixel, "regions": "other_image"},
        "detail_tiles": {**superpixel, "regions": "detail_tiles"},
        "dense_linear": linear,
        "dense_stem": {**changes, "patch_pooling": "none"},
        "superpixel_latent": {**superpixel, **LATENT},
        "superpixel_latent_16": {**superpixel, **LATENT, "num_latents": 16},
        "grid_latent": {**superpixel, **LATENT, "patch_pooling": "grid"},
    }
    variants = {name: parameters_matched(variant, superpixel) for name, variant in variants.items()}
    larger = {**linear, "patch_size": side}
    matched = parameters_matched(larger, superpixel)
    # At four tokens the embedding alone owns more parameters than the whole of FocusViT.
    if matched.get("intermediate_size") != 1:
        variants["larger_patches"] = matched
    if matched != larger:
        variants["larger_patches_unmatched"] = larger
    return Question("What could take the place of FocusViT at these tokens?", "grid", variants)


def tokens() -> Question:
    """Few tokens and fewer, pooled over superpixels and over a grid."""
    variants: dict[str, Variant] = {}
    for count in (64, 49, 36, 25, 16, 9, 4):
        variants[f"superpixel_{count}"] = {"num_superpixels": count}
        variants[f"grid_{count}"] = {"num_superpixels": count, "patch_pooling": "grid"}
    return Question("How few tokens are enough?", "grid_36", variants)


def attention() -> Question:
    """Latent attention against full attention on the same superpixels, and the stacks between."""
    variants: dict[str, Variant] = {"full": {}}
    variants |= {f"latent_{count}": {**LATENT, "num_latents": count} for count in (4, 8, 16)}
    kinds = ["full_attention"] * 2 + ["latent_attention"] * 2
    variants["one_full_then_latent"] = {"layer_types": kinds[1:] + kinds[-1:]}
    variants["full_then_latent"] = {"layer_types": kinds}
    variants["latent_then_full"] = {"layer_types": kinds[::-1]}
    variants["latent_8_area_bias"] = {**LATENT, "attention_area_bias": True}
    variants["full_area_bias"] = {"attention_area_bias": True}
    return Question("What does latent attention cost?", "full", variants)


def position() -> Question:
    """Position from a token's geometry against a table pooled like the patches."""
    kinds: dict[str, Variant] = {
        "superpixel": {},
        "grid": {"patch_pooling": "grid"},
        "larger_patches": {"patch_pooling": "none", "embedding_type": "patch", "patch_size": 16},
        "dense_stem": {"patch_pooling": "none"},
    }
    variants = dict(kinds)
    variants |= {f"{name}_learned": {**kind, "position_embedding_type": "learned"} for name, kind in kinds.items()}
    return Question(
        "Is a position from geometry as good as a table?",
        "superpixel",
        {name: parameters_matched(variant, {}) for name, variant in variants.items()},
    )


def slic_settings(num_superpixels: int) -> Question:
    """Compactness and iterations of SLIC, alike in training and in the test; a grid is infinitely compact."""
    changes: dict[str, Variant] = {"base": {}, "grid": {"patch_pooling": "grid"}}
    changes |= {f"compactness_{value}": {"superpixel_compactness": float(value)} for value in (3, 5, 20, 40)}
    changes |= {f"iterations_{value}": {"superpixel_iterations": value} for value in (1, 2, 10)}
    variants = {name: {"num_superpixels": num_superpixels, **change} for name, change in changes.items()}
    return Question("Which compactness, and how many iterations?", "base", variants)


def stem() -> Question:
    """Depth, width and cells of the stem, and what is pooled of its cells."""
    small: Variant = {"num_superpixels": 16}
    changes: dict[str, Variant] = {"base": {}}
    changes |= {f"channels_{value}": {"stem_channels": value} for value in (16, 48, 64)}
    changes |= {f"cells_{value}": {"superpixel_cell_size": value} for value in (2, 8)}
    changes |= {name: {"stem": name} for name in STEMS}
    variants = {name: {**small, **change} for name, change in changes.items()}
    return Question("What has to be known of a cell, and pooled of a region?", "base", variants)


def cells() -> Question:
    """Cells of 4 and of 8 px in images of 224 px, where 8 make as many cells a superpixel as 4 do at 96 px."""
    whole: Variant = {"image_size": 224, "patch_size": 16, "num_superpixels": 49}
    coarse: Variant = {**whole, "superpixel_cell_size": 8}
    variants: dict[str, Variant] = {
        "cells_4": {**whole, "superpixel_cell_size": 4},
        "cells_8": coarse,
        "cells_8_stem_64": {**coarse, "stem_channels": 64},
    }
    return Question("How large may the cells be at 224 px?", "cells_4", variants)


def sizes() -> Question:
    """Wider, deeper, and more spent in the stem: what accuracy a slower FocusViT buys."""
    wide: Variant = {"hidden_size": 192, "num_attention_heads": 6, "intermediate_size": 768, "stem_channels": 64}
    early: Variant = {"stem": "norm_early"}
    variants: dict[str, Variant] = {
        "base": {},
        "wide": wide,
        "stem_64": {"stem_channels": 64},
        "stem_128": {"stem_channels": 128},
        "early": early,
        "strided_32_64": {"stem": "strided_32_64"},
        "strided_16_64": {"stem": "strided_16_64"},
        "early_wide": {**early, **wide},
    }
    return Question("What does a larger FocusViT bring?", "base", variants)


def head() -> Question:
    """What the classifier reads."""
    small: Variant = {"num_superpixels": 16}
    changes: dict[str, Variant] = {"base": {}, "class_token": {"classifier_pooling": "cls"}}
    changes |= {f"{name}_latent": {**change, **LATENT} for name, change in changes.items()}
    return Question("What should the classifier read?", "base", {n: {**small, **c} for n, c in changes.items()})


def elastic() -> Question:
    """K and compactness drawn anew for each batch, so that one checkpoint serves several K."""
    drawn = {"train_num_superpixels": (16, 18, 25, 36, 49, 64, 72)}
    variants: dict[str, Variant] = {
        "fixed": {},
        "drawn_k": drawn,
        "drawn_k_latent": {**drawn, **LATENT},
        "drawn_compactness": {"train_compactness": (5.0, 20.0)},
        "drawn_both": {**drawn, "train_compactness": (5.0, 20.0)},
        "grid_fixed": {"patch_pooling": "grid"},
        "grid_drawn_k": {**drawn, "patch_pooling": "grid"},
    }
    return Question("Can one checkpoint serve several K?", "fixed", variants)


def distillation() -> Question:
    """Taught by the more accurate and slower peer."""
    variants: dict[str, Variant] = {
        "superpixel_36": {},
        "superpixel_36_taught": {"teacher": "peers/ResNet-18-seed0"},
    }
    return Question("What does a convolutional teacher bring?", "superpixel_36", variants)


def spot() -> Question:
    """Tokens that leave between the layers, by what a predictor sees, over which layers, and in other ways."""
    half: Variant = {"precision": "bfloat16"}
    drop: Variant = {**half, "sparsification_layers": [1, 2, 3], "keep_ratio": 0.7}
    learned: Variant = {**drop, "sparsification_relevance": "learned"}
    return Question(
        "What does a choice of tokens rest on?",
        "learned",
        {
            "all_tokens": half,
            "learned": learned,
            "embeddings": {**learned, "predictor_inputs": "embeddings"},
            "moments": {**learned, "predictor_inputs": "moments"},
            "window_all": {**learned, "descriptor_window": None},
            "learned_fuse": {**learned, "sparsification_mode": "fuse"},
            "attention_drop": drop,
            "attention_fuse": {**drop, "sparsification_mode": "fuse"},
            "merge": {**drop, "sparsification_mode": "merge"},
            "random": {**drop, "sparsification_relevance": "random"},
        },
    )


def training() -> Question:
    """Whether the harness itself may be as it is: batch, rate, augmentation, the averaged weights, mixed images."""
    small: Variant = {"num_superpixels": 16}
    plain: Variant = {"crop_scale": (0.5, 1.0), "jitter": 0.0}
    changes: dict[str, Variant] = {
        "base": {},
        "batch_128": {"batch_size": 128},
        "batch_32": {"batch_size": 32},
        "rate_2e-3": {"learning_rate": 2e-3},
        "rate_5e-4": {"learning_rate": 5e-4},
        "plain": plain,
        "plain_batch_128": {**plain, "batch_size": 128},
        "no_jitter": {"jitter": 0.0},
        "averaged": {"ema_decay": 0.99},
        "cutmix": {"cutmix_alpha": 1.0},
        "layers_6": {"num_hidden_layers": 6},
        "weights_0.02": {"initializer_range": 0.02},
        "weights_0.09": {"initializer_range": 0.09},
        "rate_3e-3": {"learning_rate": 3e-3},
        "decay_0.3": {"weight_decay": 0.3},
    }
    return Question("Is the harness itself in order?", "base", {n: {**small, **c} for n, c in changes.items()})


QUESTIONS: dict[str, Callable[[], Question]] = {
    "controls_49": lambda: controls(49),
    "controls_36": lambda: controls(36),
    "controls_16": lambda: controls(16),
    "controls_9": lambda: controls(9),
    "controls_4": lambda: controls(4),
    "controls_36_stem_64": lambda: controls(36, stem_channels=64),
    "controls_16_stem_64": lambda: controls(16, stem_channels=64),
    "tokens": tokens,
    "attention": attention,
    "position": position,
    "slic_36": lambda: slic_settings(36),
    "slic_9": lambda: slic_settings(9),
    "stem": stem,
    "sizes": sizes,
    "cells": cells,
    "head": head,
    "elastic": elastic,
    "distillation": distillation,
    "spot": spot,
    "training": training,
}
