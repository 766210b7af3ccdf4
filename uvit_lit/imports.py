"""What a user names as ``module:attribute``: a solver, a data set, features."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from uvit_lit.errors import InputError
from uvit_lit.files import file_hash


def import_attribute(option: str, name: str, accepted: str) -> Any:
    """Import what a user has named.

    What the module itself raises while it is imported keeps its traceback.

    Args:
        option: Where the name is from, for the error.
        name: ``module:attribute``, importable from here or from the working directory.
        accepted: What else the option accepts, for the error.

    Raises:
        ValueError: If there is none by that name.
    """
    module, _, attribute = name.partition(":")
    if not all((*module.split("."), attribute)):  # none, empty, or relative to nothing
        raise InputError(f"{option} is {name!r}; accepted: {accepted}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # what the module itself imports is missing
        raise InputError(
            f"{option} is {name!r}: there is no module {error.name}; accepted: {accepted}"
        ) from None
    if not hasattr(imported, attribute):
        raise InputError(f"{option} is {name!r}: {module} has no {attribute}; accepted: {accepted}")
    return getattr(imported, attribute)


def source_hash(name: str) -> str | None:
    """SHA-256 of the file of the module of a ``module:attribute``; None of another name.

    What was computed with an earlier state of that file is then not taken for the result of it.
    """
    module, _, attribute = name.partition(":")
    file = getattr(sys.modules.get(module), "__file__", None) if attribute else None
    return None if file is None else file_hash(Path(file))
