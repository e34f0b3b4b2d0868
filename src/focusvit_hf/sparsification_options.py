"""Options of token sparsification and of pooling at depth: which there are, what they mean in numbers of tokens."""

from collections.abc import Sequence
from typing import Any


RELEVANCES = ("learned", "attention", "random")
MODES = ("drop", "fuse", "merge")


def kept_shares(keep_ratio: float | Sequence[float], num_stages: int) -> tuple[float, ...]:
    """
    The share of the tokens that is left after each stage: ρ, ρ², …, or the list itself.

    Args:
        keep_ratio (`float` or sequence of `float`): ρ, or a share for each stage.
        num_stages (`int`): How many stages there are.
    """
    if isinstance(keep_ratio, int | float):
        return tuple(float(keep_ratio) ** (stage + 1) for stage in range(num_stages))
    return tuple(float(share) for share in keep_ratio)


def kept_counts(num_tokens: int, shares: Sequence[float]) -> tuple[int, ...]:
    """How many of N tokens are left after each stage: k_s = ⌊N·share + 1e-6⌋, and at least one."""
    return tuple(max(1, int(num_tokens * share + 1e-6)) for share in shares)


def most_merged(num_tokens: int) -> int:
    """How many of `num_tokens` tokens can be merged in one step: one of the two sets that they are dealt out to."""
    return (num_tokens + 1) // 2 if num_tokens > 1 else 0


def require_mergeable(before: int, after: int) -> None:
    """Raises ValueError unless one step of merging can leave `after` of `before` tokens."""
    if not 0 <= before - after <= most_merged(before):
        raise ValueError(
            f"Expected to merge at most {most_merged(before)} of {before} tokens in one step, got {before - after}; "
            "a larger keep_ratio or more sparsification_layers spread it."
        )


def check_sparsification(config: Any) -> None:
    """
    Raises ValueError on options of a [`FocusViTConfig`] that are out of range or at odds with each other, and makes
    lists of tuples, as JSON has them.
    """
    depth = config.num_hidden_layers
    if not 0 <= config.pooling_layer < depth:
        raise ValueError(f"Expected pooling_layer in [0, {depth}), got {config.pooling_layer}.")
    if config.pooling_layer and config.patch_pooling == "none":
        raise ValueError(
            f"Expected patch_pooling 'superpixel' or 'grid' with pooling_layer={config.pooling_layer}, got 'none'."
        )
    if config.descriptor_window is not None and config.descriptor_window < 1:
        raise ValueError(f"Expected descriptor_window >= 1 or None, got {config.descriptor_window}.")
    if config.sparsification_mode == "merge" and config.sparsification_relevance != "attention":
        raise ValueError(
            "Expected sparsification_relevance='attention' with sparsification_mode='merge', which goes by the keys "
            f"of the last layer, got {config.sparsification_relevance!r}."
        )
    layers = [] if config.sparsification_layers is None else list(config.sparsification_layers)
    if config.sparsification_layers is not None:
        config.sparsification_layers = layers
    first = config.pooling_layer + 1
    outside = [layer for layer in layers if not first <= layer < depth]
    if outside:
        after = f" after pooling_layer={config.pooling_layer}" if config.pooling_layer else ""
        raise ValueError(
            f"Expected sparsification_layers in [{first}, {depth}){after}: the layer before tells which tokens stay; "
            f"got {layers}."
        )
    if layers != sorted(set(layers)):
        raise ValueError(f"Expected sparsification_layers in ascending order, each once, got {layers}.")
    _check_shares(config, layers)
    if config.sparsification_mode == "merge":
        counts = kept_counts(config.num_tokens, kept_shares(config.keep_ratio, len(layers)))
        for then, now in zip((config.num_tokens, *counts), counts, strict=False):
            require_mergeable(then, now)


def _check_shares(config: Any, layers: Sequence[int]) -> None:
    ratio = config.keep_ratio
    if isinstance(ratio, int | float):
        if not 0 < ratio <= 1:
            raise ValueError(f"Expected keep_ratio in (0, 1], got {ratio}.")
        return
    config.keep_ratio = ratio = list(ratio)
    if len(ratio) != len(layers):
        raise ValueError(
            f"Expected keep_ratio as one number or one for each of the {len(layers)} sparsification_layers, "
            f"got {ratio}."
        )
    if not all(0 < share <= 1 for share in ratio) or ratio != sorted(ratio, reverse=True):
        raise ValueError(
            f"Expected keep_ratio as shares of all tokens in (0, 1], none larger than the one before, got {ratio}."
        )
