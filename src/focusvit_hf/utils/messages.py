"""What errors say to a person: one line, whatever a broken file or a library put into it."""

from collections.abc import Iterator
from contextlib import contextmanager


_LONGEST = 600


def one_line(error: BaseException | str) -> str:
    """
    An error in one line of at most 600 characters, all of them printable.

    Args:
        error (exception or `str`): Its kind is named too where its text alone does not tell what was wrong, such as
            that of a `KeyError`.
    """
    text = str(error)
    if isinstance(error, BaseException) and not isinstance(error, (ValueError, OSError)):
        text = f"{type(error).__name__}: {text}"
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def printable(text: str) -> str:
    """A text for a terminal: characters that could move its cursor or change its colours are written as `\\x1b`."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def printable_lines(text: str) -> str:
    """[`printable`] of a text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


@contextmanager
def told_of(place: str) -> Iterator[None]:
    """
    Turns what is raised over a file into a ValueError of one line that begins with `place`.

    Every exception is meant: of a broken file the libraries raise whatever they stumble over, such as AttributeError,
    TypeError or RecursionError. The first exception stays its cause, for whoever needs the traceback.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{place}: {one_line(error)}") from error
