"""Pictures and messages of the page, as HTML."""

import base64
from dataclasses import asdict
from html import escape
from typing import Any

from torch import Tensor

from uvit_lit.files import png
from uvit_lit.generation import picture
from uvit_lit.options import SkipOptions
from uvit_lit.playground import Drawn

COLUMNS = 4
"""Images in a row."""


def data_uri(content: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def figure(images: Tensor | None, caption: str, parameters: dict[str, Any] | None = None) -> str:
    """Images with a caption, as HTML; the picture carries its parameters."""
    if images is None:
        return f"<figure><div class='waiting'></div><figcaption>{caption}</figcaption></figure>"
    address = data_uri(png(picture(images, columns=COLUMNS), parameters))
    return (
        f"<figure><img src='{address}' alt='{caption}'><figcaption>{caption}</figcaption></figure>"
    )


def words(skips: SkipOptions) -> str:
    """The settings of a picture, to read."""
    parts = []
    for name, value in asdict(skips).items():
        if value == getattr(SkipOptions, name):  # the default
            continue
        values = value if isinstance(value, list | tuple) else [value]
        shown = ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
        parts.append(f"{name} {shown}")
    return escape("; ".join(parts)) or "as trained"


def pair(drawn: Drawn, skips: SkipOptions) -> str:
    """The images as trained beside those as set."""
    note = "" if drawn.parameters else f" &middot; preview, {drawn.steps} steps"
    return (
        f"<div class='pair'>{figure(drawn.trained, 'as trained' + note)}"
        f"{figure(drawn.chosen, 'as set: ' + words(skips) + note, drawn.parameters)}</div>"
    )


def flicker(drawn: Drawn) -> str:
    """The two in one place, in turn."""
    return (
        f"<div class='flicker'>{figure(drawn.trained, 'as trained')}"
        f"{figure(drawn.chosen, 'as set')}</div>"
    )


def download(drawn: Drawn, name: str) -> str:
    """A link that saves the picture with its parameters."""
    address = data_uri(png(picture(drawn.chosen, columns=COLUMNS), drawn.parameters))
    return f"<a class='save' download='{escape(name)}.png' href='{address}'>Download PNG</a>"


def status(message: str, is_error: bool = False) -> str:
    """The line below the pictures."""
    return f"<p class='status{' error' if is_error else ''}' role='status'>{escape(message)}</p>"
