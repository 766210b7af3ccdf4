"""Files are written whole or not at all; pictures carry their parameters."""

import atexit
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from uvit_lit.errors import InputError

if TYPE_CHECKING:
    import numpy as np


def file_hash(path: Any) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


HOST = f"{zlib.crc32(platform.node().encode()):08x}"
"""Stands for this machine in the names of unfinished files."""


RESERVED = f"reserved by {HOST} "
"""Begins a file that reserves a name; the number of the process follows."""


@cache
def tidy(directory: Path) -> None:
    """Remove what killed processes of this machine have left unfinished, once per process."""
    for path in directory.glob(f"*.{HOST}.*.partial"):
        if not _is_alive(path.name.split(".")[-2]):
            _remove(path)
    for path in directory.glob("*.json"):
        text = _reservation(path)
        if text and text.startswith(RESERVED) and not _is_alive(text.removeprefix(RESERVED)):
            _remove(path)


def _is_alive(pid: str) -> bool:
    """Whether a process of this machine, by its number, runs."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _reservation(path: Path) -> str | None:
    """Text of a file that is as short as one that reserves a name; None of any other."""
    with suppress(OSError):
        if path.stat().st_size < 100:
            return path.read_text(errors="replace")
    return None


def _remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """Name of a file that takes the place of ``path`` in one move when the block ends well.

    No other process writes under that name, and what a killed one has left in the directory goes.

    Args:
        path: The file, or a directory that is not there yet; missing parents are made.

    Raises:
        OSError: If it cannot be written; ``path`` is then as it was, and named.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tidy(path.parent)
    partial = path.with_name(f"{path.name}.{HOST}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename is not None:
            raise
        if error.errno is None:
            raise OSError(f"cannot write {path}: {error}") from None
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
    finally:
        _remove(partial)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` in one move when the block ends well.

    Args:
        path: The file; missing directories are made.

    Raises:
        OSError: If it cannot be written; ``path`` is then as it was.
    """
    with replacing_path(path) as partial, partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write(path: Path, content: bytes) -> None:
    """Write a file.

    Raises:
        OSError: If it cannot be written; ``path`` is then as it was.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Handle SIGINT and SIGTERM at the end of the block."""
    came: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for known in (signal.SIGINT, signal.SIGTERM):
            handlers[known] = signal.signal(known, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for known, handler in handlers.items():
            signal.signal(known, handler)
        for number in came:
            signal.raise_signal(number)


def write_torch(path: Path, content: Any) -> None:
    """Write a file of ``torch.save``.

    Raises:
        OSError: If it cannot be written; ``path`` is then as it was.
    """
    import torch

    with replacing(path) as file, _signals_wait():  # it would make a RuntimeError of theirs
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch failed to end what it cannot write
                raise error.__context__ from None
            raise


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
            image.verify()  # the checksums of the pixels, which decoding does not look at
        with Image.open(path) as image:
            return np.asarray(image), json.loads(image.info["parameters"])
    except Exception:  # a damaged file may end in any
        return None


DEFLATE = 1032
"""How many times its size a compressed entry of a zip file can take, at most (zlib)."""


def read_npz(
    path: Path, names: Sequence[str], optional: Sequence[str] = ()
) -> "dict[str, np.ndarray]":
    """Arrays of an npz file, which takes no more memory than it can hold.

    Args:
        path: The file.
        names: Arrays that it must have.
        optional: Arrays that it may have.

    Raises:
        ValueError: If it cannot be read, or lacks one, or says sizes that cannot be.
    """
    import numpy as np
    from numpy.lib import format as npy

    headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        with zipfile.ZipFile(path) as archive:
            there = {entry.removesuffix(".npy") for entry in archive.namelist()}
            wanted = [*names, *(name for name in optional if name in there)]
            for name in wanted:
                entry = archive.getinfo(f"{name}.npy")
                with archive.open(entry) as file:
                    shape, _, dtype = headers[npy.read_magic(file)](file)
                fits = math.prod(shape) * dtype.itemsize <= entry.file_size
                packed = min(entry.compress_size, path.stat().st_size)
                if not fits or entry.file_size > DEFLATE * packed + 1000:
                    raise ValueError(f"{name} is larger than the file")
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in wanted}
    except Exception as error:  # a damaged file may end in any
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {reason})") from None


def read_stats(path: Path) -> "dict[str, np.ndarray]":
    """mu, sigma and, if there are any, features of an npz file with statistics of images.

    Raises:
        ValueError: As ``read_npz``.
    """
    try:
        return read_npz(path, ("mu", "sigma"), ("features",))
    except InputError as error:
        accepted = "accepted: an npz file with mu and sigma, as pytorch-fid writes"
        raise InputError(f"statistics {error}; {accepted}") from None


def free_stem(directory: Path, stem: str) -> Path:
    """Path without a suffix that no output in the directory has yet; makes the directory.

    It is reserved for this process by a file with the suffix .json, which is to be written over
    with the parameters; one that was not goes when the process ends, or when a later one that
    writes there finds it dead.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tidy(directory)
    existing = [path.name for path in directory.iterdir()]

    def is_taken(name: str) -> bool:
        return any(file.startswith((f"{name}.", f"{name}_image")) for file in existing)

    for name in (stem if k == 1 else f"{stem}-{k}" for k in count(1)):
        reserved = directory / f"{name}.json"
        if not is_taken(name):
            with suppress(FileExistsError):
                with reserved.open("x") as file:
                    atexit.register(_release, reserved)
                    file.write(f"{RESERVED}{os.getpid()}")
                return directory / name
    raise AssertionError


def _release(reserved: Path) -> None:
    """Remove a file that reserved a name and was not written."""
    text = _reservation(reserved)
    if text is not None and f"{RESERVED}{os.getpid()}".startswith(text):  # or part: a full disk
        with suppress(OSError):
            reserved.unlink()
