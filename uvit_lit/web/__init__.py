"""A static page that draws with a model in the browser: the page, the model, the runtime.

The page needs no server of its own, asks no other host for anything, and works from any static
host. Its solver and its noise are those of ``uvit_lit.sampling`` (sampler.js).
"""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import torch

from uvit_lit.errors import InputError
from uvit_lit.files import replacing_path
from uvit_lit.model import Model
from uvit_lit.onnx import NUMBERS, export_onnx, missing_packages

PAGE = (
    *("index.html", "style.css", "app.js", "settings.js"),
    *("worker.js", "sampler.js", "service.js"),
)

RUNTIME = "onnxruntime-web@1.30.0"
"""The npm package whose files the page carries, MIT licence."""

RUNTIME_FILES = (
    "package.json",  # names the version and the licence
    "dist/ort.wasm.min.mjs",
    "dist/ort-wasm-simd-threaded.mjs",
    "dist/ort-wasm-simd-threaded.wasm",
    "dist/ort.webgpu.min.mjs",  # these three are loaded with the switch alone
    "dist/ort-wasm-simd-threaded.asyncify.mjs",
    "dist/ort-wasm-simd-threaded.asyncify.wasm",
)


def export_web(
    model: Model, out: Path, dtype: str = "float32", runtime: Path | None = None
) -> Path:
    """Write a directory that a static host can serve.

    Args:
        model: Of pixels, from ``load_model``.
        out: The directory, which must not exist.
        dtype: How the matrices are stored, one of ``uvit_lit.onnx.DTYPES``.
        runtime: The npm package onnxruntime-web, as a directory or a .tgz; None has npm fetch
            ``RUNTIME``.

    Returns:
        ``out``.

    Raises:
        ValueError: If the model makes latents, or ``runtime`` is not that package.
        OSError: If npm or a Python package is missing, or something cannot be written.
    """
    channels, height, width = model.image_shape
    if channels not in (1, 3) or model.data.get("autoencoder"):
        raise InputError(f"{model.name} makes latents; accepted for a page: a model of pixels")
    if channels * height * width % 16:
        raise InputError(f"images of {height} x {width}; accepted for a page: a multiple of 4")
    with replacing_path(out) as page:
        scratch = page / "scratch"
        for directory in (page / "ort", scratch):
            directory.mkdir(parents=True)
        for name, content in _runtime(runtime, scratch).items():
            (page / "ort" / Path(name).name).write_bytes(content)
        shutil.rmtree(scratch)
        for name in PAGE:
            shutil.copy(Path(__file__).parent / name, page)
        file = page / "model.onnx"
        card = export_onnx(model, file, dtype)
        card = {**card, "bytes": file.stat().st_size, "test": _self_test(file, card)}
        (page / "model.json").write_text(json.dumps(card))
    return out


def _runtime(path: Path | None, scratch: Path) -> dict[str, bytes]:
    """Contents of ``RUNTIME_FILES``."""
    if path is None:
        path = _npm_pack(scratch)
    try:
        if path.is_dir():
            return {name: (path / name).read_bytes() for name in RUNTIME_FILES}
        contents = {}
        with tarfile.open(path) as archive:
            for name in RUNTIME_FILES:
                member = archive.extractfile(f"package/{name}")
                assert member is not None
                contents[name] = member.read()
        return contents
    except (OSError, tarfile.TarError, KeyError, AssertionError):
        raise InputError(
            f"onnxruntime_web is {path}; accepted: a directory or .tgz of the npm package {RUNTIME}"
        ) from None


def _npm_pack(directory: Path) -> Path:
    """Download ``RUNTIME`` with npm; its .tgz in ``directory``."""
    command = ["npm", "pack", RUNTIME, "--silent"]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise OSError(
            f"npm is not installed: install Node.js, or give the package {RUNTIME} with "
            "--onnxruntime_web"
        ) from None
    packed = list(directory.glob("*.tgz"))
    if done.returncode or not packed:
        raise OSError(f"npm cannot fetch {RUNTIME}: {done.stderr.strip() or done.returncode}")
    return packed[0]


def _self_test(file: Path, card: dict[str, Any]) -> dict[str, Any]:
    """What onnxruntime gives on this machine, for the page to compare with.

    Returns:
        seed, t, labels, s, b, cutoff: The inputs: the noise of that seed as the noisy image, twice.
        x0: Every so many of the numbers of the output.
        every: How many.
        tolerance: Difference that rounding may make; a wrong operator makes a larger one.
    """
    with missing_packages():
        from onnxruntime import InferenceSession
    count, every = len(card["long_skips"]), 61
    test: dict[str, Any] = {
        "seed": 2**32 - 1,
        "t": 0.5,
        "labels": [0, len(card["class_names"])],
        "s": [0.5] * count,
        "b": [1.3] * count,
        "cutoff": [0.4] * count,
    }
    one = torch.randn(card["image_shape"], generator=torch.Generator().manual_seed(test["seed"]))
    feeds: dict[str, Any] = {
        "x_t": torch.stack([one, one]).numpy(),
        "t": torch.full((2,), test["t"]).numpy(),
        **({"label": torch.tensor(test["labels"]).numpy()} if card["class_names"] else {}),
        **{name: torch.tensor(test[name]).numpy() for name in NUMBERS},
    }
    (clean,) = InferenceSession(str(file)).run(["x0"], feeds)
    x0 = clean.flatten()[::every].tolist()
    return {**test, "x0": x0, "every": every, "tolerance": 2e-3}
