"""Names on the Hub: which are valid, and what is left of a path or an address."""

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id


_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def is_identifier(value: Any) -> bool:
    """Whether a card's value is written as the Hub's identifiers are."""
    return isinstance(value, str) and _IDENTIFIER.fullmatch(value) is not None


def check_identifier(name: str, value: Any) -> None:
    """ValueError unless a card's `value` under `name` is written as the Hub's identifiers are, or is None."""
    if value is not None and not is_identifier(value):
        raise ValueError(f"expected {name} as the Hub abbreviates it, such as apache-2.0, got {value!r}")


def hub_name(name: str | None) -> str | None:
    """A name if it can be one on the Hub and is none of a local file or folder, else None."""
    if not name or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def last_part(path: str | None) -> str | None:
    """The name of a file or folder without those above it, for people; of a name on the Hub without its owner."""
    return Path(path).name or None if path else None
