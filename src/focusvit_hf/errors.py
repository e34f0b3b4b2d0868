"""What error messages have in common."""

import difflib
from collections.abc import Container, Iterable, Sequence


_SHOWN = 3
# How near an unknown key must be to a known one to be taken for a misspelling of it.
_MISSPELT = 0.8


def joined(problems: Sequence[str]) -> str:
    """The first problems, and how many more there are."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{'; '.join(problems[:_SHOWN])}{more}"


def refuse_misspelt(keys: Iterable[str], fields: Iterable[str], what: str, known: Container[str] = ()) -> None:
    """
    Raises ValueError for a key that is nearly one of the fields: it would be kept and do nothing.

    Args:
        keys (iterable of `str`): What was given.
        fields (iterable of `str`): What could be meant.
        what (`str`): What the fields are, for the message.
        known (container of `str`, *optional*): Keys that mean something else, beside those that begin with `_`.
    """
    fields = list(fields)
    for key in keys:
        if key.startswith("_") or key in fields or key in known:
            continue
        near = difflib.get_close_matches(key, fields, n=1, cutoff=_MISSPELT)
        if near:
            raise ValueError(f"Unknown {what} {key!r}: expected {near[0]!r}?")
