"""A folder of images as latents, encoded once."""

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uvit_lit.data.folder import Images, arrange, folder_key, list_images, try_decode
from uvit_lit.distributed import choose_device
from uvit_lit.files import replacing, write
from uvit_lit.latents import Autoencoder
from uvit_lit.progress import progress

Shape = tuple[int, int, int, int, int, int]
"""Images, as it is and mirrored, mean and deviation, channels, height, width."""


def load_latents(
    root: Path, size: int, autoencoder: Autoencoder, cache: Path, batch_size: int = 16
) -> Images:
    """Load the latents of a directory of images, encoding every file once.

    What is kept below ``cache``, on disk and not in memory, is the mean and the standard deviation
    of the latent of every image and of its mirror image, in float16. Files that cannot be decoded
    are named on stderr and left out.

    Args:
        root: The directory. Its sub-directories are the classes.
        size: Height and width in pixels: the shorter side is resized, the centre cut out.
        autoencoder: What encodes; its weights are in the key of the cache.
        cache: Directory of the cache.
        batch_size: Images encoded at once.

    Returns:
        ``pixels`` are the moments, (images, 2, 2, channels, h, w) float16: as it is and mirrored;
        mean and standard deviation.

    Raises:
        ValueError: If no file can be decoded.
    """
    files = list_images(root)
    path = cache / f"latents_{folder_key(root, files, size, autoencoder.fingerprint)}.npy"
    errors = path.with_suffix(".json")
    side = size // autoencoder.factor
    shape = (len(files), 2, 2, autoencoder.channels, side, side)
    stored = _read(path, errors, shape)
    if stored is None:
        told = _encode(files, size, autoencoder, path, shape, batch_size)
        write(errors, json.dumps(told).encode())  # last
        stored = _read(path, errors, shape)
        if stored is None:
            raise OSError(f"{path} changed while it was read")
    moments, told = stored
    kept = len(files) - sum(map(bool, told))
    labels, names = arrange(root, files, told)
    return Images(torch.from_numpy(moments)[:kept], labels, names)


def _read(path: Path, errors: Path, shape: Shape) -> tuple[np.ndarray, list[str]] | None:
    """Moments and error texts of ``_encode``; None where they are missing or damaged."""
    try:
        told = json.loads(errors.read_text())
        moments = np.load(path, mmap_mode="c")  # pages are read when a batch needs them
    except (OSError, ValueError, EOFError, RecursionError):
        return None
    texts = isinstance(told, list) and all(isinstance(text, str) for text in told)
    whole = isinstance(moments, np.ndarray) and moments.dtype == np.float16
    fits = whole and moments.shape == shape
    return (moments, told) if texts and len(told) == shape[0] and fits else None


def draw_latents(moments: Tensor, flip: Tensor, seed: int) -> Tensor:
    """Sample latents from their distributions.

    Args:
        moments: (batch, 2, 2, channels, h, w): as it is and mirrored; mean and standard deviation.
        flip: (batch,) boolean: whether the image is the mirrored one.
        seed: Of the noise.

    Returns:
        (batch, channels, h, w) float32.
    """
    chosen = moments[torch.arange(len(flip), device=flip.device), flip.long()].float()
    mean, std = chosen.unbind(1)
    generator = torch.Generator(mean.device).manual_seed(seed ^ 1)  # not that of the step
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return mean + std * noise


def _encode(
    files: list[Path],
    size: int,
    autoencoder: Autoencoder,
    path: Path,
    shape: Shape,
    batch_size: int,
) -> list[str]:
    """Encode image files into ``path``; an error text for every file, empty for the good ones."""
    errors: list[str] = []
    autoencoder.to(choose_device("auto"))
    try:
        with (
            replacing(path) as output,  # a full disk would end a process that maps the file
            ThreadPoolExecutor(os.cpu_count()) as pool,
            progress(total=len(files), desc="encoding latents", unit="img") as bar,
        ):
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(output, header)
            size_of_all = output.tell() + 2 * math.prod(shape)
            for start in range(0, len(files), batch_size):
                chunk = files[start : start + batch_size]
                decoded = list(pool.map(lambda file: try_decode(file, size), chunk))
                errors += [error for _, error in decoded]
                images = [pixels for pixels, error in decoded if not error]
                if images:
                    pixels = torch.from_numpy(np.stack(images))
                    both = [autoencoder.encode(p) for p in (pixels, pixels.flip(-1))]
                    stacked = torch.stack(both, dim=1).half().numpy()
                    output.write(stacked.astype("<f2").tobytes())
                bar.update(len(chunk))
            output.truncate(size_of_all)  # nothing for those that were left out
    finally:
        autoencoder.to("cpu")
    return errors
