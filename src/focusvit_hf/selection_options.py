"""Options of select-and-pack attention: which there are, and which go together."""

from typing import Any


SELECT_PACK = "select_pack_attention"
SUPERVISIONS = ("budget", "teacher", "saliency")
# What `select_threshold=None` stands for where nothing else says how many tokens a layer selects.
DEFAULT_THRESHOLD = 0.5


def selects_tokens(config: Any) -> bool:
    """Whether a layer is one of select-and-pack attention."""
    return SELECT_PACK in (config.layer_types or ())


def selects_statically(config: Any) -> bool:
    """Whether each image selects the same number of tokens, `select_budget` of them, as compiled graphs need it."""
    return config.select_budget is not None and config.select_threshold is None


def selection_threshold(config: Any) -> float:
    """The sigmoid of a score from which on a token is selected, in (0, 1)."""
    return DEFAULT_THRESHOLD if config.select_threshold is None else float(config.select_threshold)


def check_selection(config: Any) -> None:
    """Raises ValueError on options of a [`FocusViTConfig`] that are out of range or at odds with each other."""
    if config.select_threshold is not None and not 0 < config.select_threshold < 1:
        raise ValueError(f"Expected select_threshold in (0, 1) or None, got {config.select_threshold}.")
    if config.select_budget is not None and not 0 < config.select_budget <= 1:
        raise ValueError(f"Expected select_budget in (0, 1] or None, got {config.select_budget}.")
    supervision = config.select_supervision
    if supervision is None:
        return
    if not selects_tokens(config):
        raise ValueError(
            f"Expected a layer of layer_types to be {SELECT_PACK!r} with select_supervision={supervision!r}, got none."
        )
    if config.select_budget is None:
        raise ValueError(
            f"Expected select_budget, the share that is aimed at, with select_supervision={supervision!r}, got None."
        )
    if supervision == "budget" and config.select_threshold is None:
        raise ValueError(
            "Expected select_threshold with select_supervision='budget': with select_budget alone each image selects "
            "the same number of tokens, so that nothing is left to learn; got None."
        )
