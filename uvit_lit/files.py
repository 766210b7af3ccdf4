"""Files are written whole or not at all; pictures carry their parameters."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np


def file_hash(path: Any) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path, suffix: str = ".partial") -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` in one move when the block ends well.

    Args:
        path: The file; missing directories are made.
        suffix: Of the name under which it is written; processes that may write the same file at
            the same time need different ones.

    Raises:
        OSError: If it cannot be written; ``path`` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + suffix)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Write a file.

    Raises:
        OSError: If it cannot be written; ``path`` is then as it was.
    """
    with replacing(path) as file:
        file.write(content)


def write_torch(path: Path, content: Any) -> None:
    """Write a file of ``torch.save``.

    Raises:
        OSError: If it cannot be written; ``path`` is then as it was.
    """
    import torch

    with replacing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch makes of a write that failed
            raise OSError(f"cannot write {path}: {error}") from None


def png(pixels: "np.ndarray", parameters: dict[str, Any] | None = None) -> bytes:
    """(height, width, 3) uint8 pixels as a PNG that carries its parameters as text."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if parameters is not None:
        info.add_text("parameters", json.dumps(parameters))
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG", pnginfo=info)
    return content.getvalue()


def write_png(path: Path, pixels: "np.ndarray", parameters: dict[str, Any]) -> None:
    """Write what ``png`` gives.

    Raises:
        OSError: If it cannot be written; ``path`` is then as it was.
    """
    write(path, png(pixels, parameters))


def read_png(path: Path) -> tuple["np.ndarray", dict[str, Any]] | None:
    """Read back what ``write_png`` wrote; None where the file is missing or something else."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image), json.loads(image.info["parameters"])
    except (OSError, KeyError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def free_stem(directory: Path, stem: str) -> Path:
    """Path without a suffix that no output in the directory has yet; makes the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    existing = [path.name for path in directory.iterdir()]

    def is_taken(name: str) -> bool:
        return any(file.startswith((f"{name}.", f"{name}_image")) for file in existing)

    candidates = (stem if k == 1 else f"{stem}-{k}" for k in count(1))
    return directory / next(name for name in candidates if not is_taken(name))
