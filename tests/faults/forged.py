"""Files that say that they hold a terabyte: ``python tests/faults/forged.py`` measures refusals."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._utils import _rebuild_tensor_v2

ROOT = Path(__file__).parents[2]
TERA = 2**40
SHAPE = [TERA // 4]


def safetensors_length() -> bytes:
    """The header is said to be that long."""
    return struct.pack("<Q", TERA) + b"{}" + bytes(100)


def safetensors_tensor(size: int = TERA) -> bytes:
    """A tensor is."""
    entry = {"dtype": "F32", "shape": SHAPE, "data_offsets": [0, size]}
    header = json.dumps({"pos_embed": entry}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(100)


class _Storage:
    """Numbers in a file of torch."""


class _Forged:
    """A tensor in a file of torch, of more numbers than the file has."""

    def __reduce__(self) -> Any:
        shape = tuple(SHAPE)
        return _rebuild_tensor_v2, (_Storage(), 0, shape, (1,), False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        kind = torch.FloatStorage
        return ("storage", kind, "0", "cpu", SHAPE[0]) if isinstance(value, _Storage) else None


def ckpt_tensor() -> bytes:
    """A tensor is, of a file of torch with 16 bytes of numbers."""
    text = io.BytesIO()
    _Pickler(text, 2).dump({"state_dict": {"pos_embed": _Forged()}, "hyper_parameters": {}})
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in (("data.pkl", text.getvalue()), ("version", b"3"), ("data/0", bytes(16))):
            archive.writestr(f"archive/{name}", data)
    return content.getvalue()


def _directory_says(content: bytes, entry: bytes) -> bytes:
    """A zip file whose directory gives an entry 4 GB, the most without an extension."""
    place = content.rindex(entry) - 46  # of its record in the directory, whose sizes are at 20
    return content[: place + 20] + struct.pack("<LL", 2**32 - 2, 2**32 - 2) + content[place + 28 :]


def ckpt_directory() -> bytes:
    """The directory of a file of torch."""
    content = io.BytesIO()
    torch.save({"state_dict": {"pos_embed": torch.zeros(4)}, "hyper_parameters": {}}, content)
    return _directory_says(content.getvalue(), b"archive/data/0")


def ckpt_bomb() -> bytes:
    """A file of torch that is compressed a thousandfold: a gigabyte of zeros."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/version", b"3")
        with archive.open("archive/data/0", "w", force_zip64=True) as file:
            for _ in range(64):
                file.write(bytes(2**24))
    return content.getvalue()


def npz_shape() -> bytes:
    """An array is, by its header."""
    content = io.BytesIO()
    np.savez(content, mu=np.zeros(10**5), sigma=np.zeros((2, 2)))
    old = b"(100000,), }          "
    return content.getvalue().replace(old, f"({SHAPE[0]},), }}".encode().ljust(len(old)), 1)


FORGED = {
    "header of a .safetensors file": ("a.safetensors", safetensors_length),
    "tensor of a .safetensors file": ("a.safetensors", safetensors_tensor),
    "tensor of a .ckpt file": ("a.ckpt", ckpt_tensor),
    "directory of a .ckpt file (4 GB)": ("a.ckpt", ckpt_directory),
    "zeros in a .ckpt file (1 GB)": ("a.ckpt", ckpt_bomb),
    "array of an .npz file": ("a.npz", npz_shape),
}
"""What is forged: the name of a file, and its content."""


WATCH = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
"""Runs a command and prints its peak memory, KiB; a process that is started from this one, which
has torch, would count the memory of this one."""


def flat(images: torch.Tensor) -> torch.Tensor:
    """Features that take no network."""
    return images.float().flatten(1)


def arguments(path: Path) -> list[str]:
    """The command that reads a file."""
    if path.suffix == ".npz":
        features = ["--features", "forged:flat", "--metrics", "fid"]
        return ["evaluate", "--stats", str(path), *features, "--n", "2", "--steps", "1"]
    return ["sample", "--ckpt", str(path), "--n", "1", "--steps", "1"]


def main() -> None:
    """Print time and peak memory of a whole process, for missing files and every forged one."""
    missing = {"no .ckpt file": ("a.ckpt", None), "no .npz file": ("a.npz", None)}
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    with tempfile.TemporaryDirectory() as directory:
        for words, (name, make) in {**missing, **FORGED}.items():
            path = Path(directory) / name
            path.unlink(missing_ok=True)
            if make is not None:
                path.write_bytes(make())
            started = time.monotonic()
            command = [sys.executable, "-m", "uvit_lit", *arguments(path), "--out", directory]
            run = subprocess.run(
                [sys.executable, "-c", WATCH, *command],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
            )
            seconds, mega = time.monotonic() - started, int(run.stdout.split()[-1]) / 1024
            line, code = run.stderr.strip(), run.returncode
            print(f"{words}: {seconds:.1f} s, {mega:.0f} MiB, status {code}: {line[-150:]}")


if __name__ == "__main__":
    main()
