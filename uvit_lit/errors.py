"""The one error class for a user's mistake, and how its message shows a value."""

import warnings
from typing import Any


class InputError(ValueError):
    """A value or a file that was given is not accepted; the message says what is.

    The commands print it as one line and leave with status 2. Every other exception but an
    ``OSError`` (a failed operation: disk, network; status 1) keeps its traceback.
    """


class Note(UserWarning):
    """Something that the user should know, such as files that were left out."""


def note(text: str) -> None:
    """Warn with a ``Note``; the commands print it as one line."""
    warnings.warn(text, Note, stacklevel=3)


def shorten(value: Any) -> str:
    """A value from a file in a message: its type alone, where it is no text or short number."""
    if type(value) is int and abs(value) >= 10**20:
        return "a huge number"
    if value is not None and type(value) not in (str, int, float, bool):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
