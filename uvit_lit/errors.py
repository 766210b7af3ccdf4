"""The one error class for a user's mistake, and how its message shows a value."""

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """A value or a file that was given is not accepted; the message says what is.

    The commands print it as one line and leave with status 2. Every other exception but an
    ``OSError`` (a failed operation: disk, network; status 1) keeps its traceback.
    """


def require(fits: object, name: str, value: object, accepted: str) -> None:
    """Raise an ``InputError`` that names a value and what is accepted, unless it fits."""
    if not fits:
        raise InputError(f"{name} is {value}; accepted: {accepted}")


def require_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise an ``InputError`` that names a value and the choices, unless it is one of them."""
    require(value in choices, name, repr(value), ", ".join(choices))


def install(extra: str) -> str:
    """The command that installs an extra, in a clone or not."""
    in_clone = (Path(__file__).parents[1] / "pyproject.toml").is_file()
    return f"pip install -e '.[{extra}]'" if in_clone else f"pip install 'uvit-lit[{extra}]'"


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
