"""Any directory of images, decoded once."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from uvit_lit.errors import InputError, note
from uvit_lit.files import read_npz, replacing
from uvit_lit.progress import progress

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused below

MAX_PIXELS = 89_478_485
"""Of an image, as Pillow has it for a warning: a quarter of a gigabyte."""

DECODER = 2
"""Part of the key of what was decoded; another number decodes all anew."""

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


@dataclass(eq=False)
class Images:
    """A data set in memory.

    Attributes:
        pixels: (images, channels, height, width) uint8; of latents see ``data.encoded``.
        labels: (images,) int64; zeros where there are no classes.
        class_names: Names of the labels, empty where there are no classes.
    """

    pixels: Tensor
    labels: Tensor
    class_names: list[str]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def take(self, index: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Pixels and labels of some images; nothing about them is random."""
        return self.pixels[index], self.labels[index]


def load_folder(root: Path, size: int, cache: Path) -> Images:
    """Load a directory of images, or of class folders, decoding every file once.

    The decoded pixels are kept below ``cache`` under a key made of the names, sizes and times of
    the files. Files that cannot be decoded are named on stderr and left out, every time.

    Args:
        root: The directory. Its sub-directories are the classes; without any there are none.
        size: Height and width of the result: the shorter side is resized, the centre cut out.
        cache: Directory for the decoded pixels.

    Returns:
        The images that could be decoded, in the order of their names.

    Raises:
        ValueError: If no file can be decoded.
    """
    files = list_images(root)
    path = cache / f"{folder_key(root, files, size)}.npz"
    stored = _read(path, len(files), size)
    if stored is None:
        _decode(root, files, size, path)
        stored = _read(path, len(files), size)
        if stored is None:
            raise OSError(f"{path} changed while it was read")
    pixels, errors = stored
    return Images(torch.from_numpy(pixels), *arrange(root, files, errors))


def _read(path: Path, count: int, size: int) -> tuple[np.ndarray, list[str]] | None:
    """Pixels and error texts of ``_decode``; None where they are missing or damaged."""
    try:
        arrays = read_npz(path, ("pixels", "errors"))
    except InputError:
        return None
    pixels, errors = arrays["pixels"], arrays["errors"].tolist()
    kept = count - sum(map(bool, errors)) if isinstance(errors, list) else -1
    whole = pixels.dtype == np.uint8 and pixels.shape == (kept, 3, size, size)
    return (pixels, errors) if whole and len(errors) == count else None


def list_images(root: Path) -> list[Path]:
    """Image files below a directory, in the order of their names.

    Raises:
        ValueError: If there are none.
    """
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise InputError(f"no images below {root}; accepted: {', '.join(sorted(SUFFIXES))}")
    return files


def folder_key(root: Path, files: list[Path], *more: object) -> str:
    """Key of what is made from image files: their names, sizes and times, and ``more``."""
    names = [str(path.relative_to(root)) for path in files]
    stats = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    content = repr((DECODER, str(root.resolve()), *more, names, stats))
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def arrange(root: Path, files: list[Path], errors: list[str]) -> tuple[Tensor, list[str]]:
    """Labels and class names of the files that could be decoded; names the others on stderr.

    Raises:
        ValueError: If no file could be decoded, or some are in class folders and some are not.
    """
    names = [str(path.relative_to(root)) for path in files]
    kept = [name for name, error in zip(names, errors, strict=True) if not error]
    for name, error in zip(names, errors, strict=True):
        if error:
            note(f"left out {root / name}: {error}")
    if len(kept) < len(names):
        note(f"{len(names) - len(kept)} of {len(names)} files left out")
    if not kept:
        raise InputError(f"no file below {root} can be decoded as an image")
    folders = [Path(name).parts[0] if len(Path(name).parts) > 1 else "" for name in kept]
    if any(folders) and not all(folders):
        loose = kept[folders.index("")]
        raise InputError(f"{root} holds class folders and also loose images such as {loose}")
    classes = sorted(set(folders) - {""})
    labels = torch.tensor([classes.index(folder) if folder else 0 for folder in folders])
    return labels, classes


def _decode(root: Path, files: list[Path], size: int, path: Path) -> None:
    """Decode image files into ``path``: pixels of the good ones, an error text for every one."""
    decoded = [
        try_decode(file, size) for file in progress(files, desc=f"decoding {root}", unit="img")
    ]
    pixels = [image for image, error in decoded if not error]
    errors = [error for _, error in decoded]
    stacked = np.stack(pixels) if pixels else np.empty((0, 3, size, size), np.uint8)
    with replacing(path) as output:  # every rank decodes
        np.savez(output, pixels=stacked, errors=np.array(errors))


def try_decode(path: Path, size: int) -> tuple[np.ndarray, str]:
    """Image of a file by ``decode``, and an error text that is empty where it could be read."""
    try:
        return decode(path, size), ""
    except Exception as error:  # a damaged file may end in any
        return np.empty(0), f"not a readable image ({type(error).__name__}: {error})"


def decode(path: Path, size: int) -> np.ndarray:
    """Read one image as (3, size, size) uint8: upright, the shorter side resized, the centre cut.

    Raises:
        ValueError: If it has more than ``MAX_PIXELS`` pixels, or numbers outside its range.
        OSError: If it is no image, or no file: a named pipe would be waited for.
    """
    if not path.is_file():
        raise OSError("no file")
    with Image.open(path) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels; accepted: {MAX_PIXELS:,}")
        return fit(opened, size)


def fit(image: Image.Image, size: int) -> np.ndarray:
    """An image as (3, size, size) uint8: upright, the shorter side resized, the centre cut out."""
    image = _rgb(ImageOps.exif_transpose(image))
    image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    """An image with 8 bits per channel; of 16 bits all are used, real numbers are from 0 to 1.

    Raises:
        ValueError: If a number is outside its range.
    """
    largest = {"I": 65535, "F": 1}.get(image.mode, 65535 if image.mode.startswith("I;16") else None)
    if largest is None:
        return image.convert("RGB")
    numbers = np.asarray(image).astype(np.float64)
    if not ((numbers >= 0) & (numbers <= largest)).all():
        raise ValueError(f"numbers outside 0 to {largest}")
    return Image.fromarray((numbers * (255 / largest)).round().astype(np.uint8)).convert("RGB")
