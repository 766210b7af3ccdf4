"""The real images that samples are measured against: pixels, spectrum, and features.

``args`` are the options of evaluate.py: data, data_root, split, stats, batch_size,
inception_weights.
"""

import argparse
import hashlib
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from uvit_lit.data import ImageData
from uvit_lit.distances import Reference
from uvit_lit.features import Features
from uvit_lit.files import file_hash
from uvit_lit.generation import Generation
from uvit_lit.metrics import band_decibels

SPECTRUM_IMAGES = 10_000
"""Real images of which the spectrum is the mean, at most."""


def reference_images(args: argparse.Namespace, generation: Generation, download: bool) -> Tensor:
    """Pixels of the reference data.

    Args:
        args: Which data; by default the model's.
        generation: Says the image size and what the model was trained on.
        download: Whether data that are missing may be downloaded.

    Returns:
        (images, 3, height, width) uint8.

    Raises:
        ValueError: If nothing says the data, or they lack the split.
        OSError: If they cannot be read or downloaded.
    """
    known = generation.model.data
    name = args.data or known.get("name")
    root = args.data_root or (known.get("root") if name == known.get("name") else None)
    if name is None or (name == "folder" and root is None):
        raise ValueError("the checkpoint does not say its data: give --data and --data_root")
    data = ImageData(name, root or "data", image_size=generation.image_size)
    error = None
    if download and generation.devices.is_main:
        try:
            data.prepare_data()
        except OSError as failure:
            error = str(failure)
    error = generation.devices.decide(error)  # the others wait for a download
    if error is not None:
        raise OSError(error)
    data.setup()
    images = data.train if args.split == "train" else data.validation
    if images is None:
        raise ValueError("the data has no test split; accepted: --split train")
    return images.pixels


def find_pixels(
    args: argparse.Namespace, generation: Generation, metrics: set[str]
) -> Tensor | None:
    """Pixels of the reference data; None with --stats, and where the detail can do without.

    Raises:
        ValueError: As ``reference_images``, if one of the metrics needs them.
        OSError: Likewise.
    """
    if args.stats is not None:
        return None
    needed = metrics != {"detail"} or bool(args.data or args.data_root)
    try:
        return reference_images(args, generation, download=needed)
    except (ValueError, OSError) as error:
        if needed:
            raise
        if generation.devices.is_main:
            print(f"note: no distance to the spectrum of the data ({error})", file=sys.stderr)
        return None


def data_spectrum(pixels: Tensor) -> dict[str, float]:
    """Mean power of each band in dB of at most ``SPECTRUM_IMAGES`` of the real images."""
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    parts = [band_decibels(pixels[some]) for some in chosen[:SPECTRUM_IMAGES].split(256)]
    return {name: float(torch.cat([part[name] for part in parts]).mean()) for name in parts[0]}


def load_reference(
    args: argparse.Namespace,
    extract: Features,
    generation: Generation,
    pixels: Tensor | None,
) -> tuple[Reference, str]:
    """The reference, from a file, from the cache, or built now.

    Args:
        args: Which file or network.
        extract: The network of the features.
        generation: What will be measured.
        pixels: Of ``find_pixels``.

    Returns:
        The reference, and a hash of what it is of.

    Raises:
        ValueError: If the file does not fit the features, or there are fewer than 2 images.
    """
    if pixels is None:
        reference = Reference.read(args.stats)
        if len(reference.mu) != extract.num_features:
            raise ValueError(
                f"statistics {args.stats} have {len(reference.mu)} features, "
                f"{extract.name} has {extract.num_features}"
            )
        return reference, file_hash(args.stats)
    content = hashlib.sha256(pixels.numpy().tobytes())
    weights = args.inception_weights and file_hash(args.inception_weights)
    content.update(f"{extract.name} {extract.num_features} {weights} {pixels.shape}".encode())
    key = content.hexdigest()
    path = Path("data/cache") / f"reference_{extract.name.replace(':', '.')}_{key[:24]}.npz"
    if extract.devices.decide(path.exists()):
        with suppress(ValueError):  # a damaged file is built anew
            return Reference.read(path), key
    reference = Reference.build(extract, pixels, args.batch_size)
    if extract.devices.is_main:
        reference.write(path)
    return reference, key
