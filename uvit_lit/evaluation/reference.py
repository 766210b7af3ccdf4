"""The real images that samples are measured against: pixels, spectrum, features and classes."""

import hashlib
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from uvit_lit.data.datamodule import ImageData
from uvit_lit.data.folder import Images
from uvit_lit.detail import band_decibels
from uvit_lit.errors import InputError, note
from uvit_lit.evaluation.distances import KEPT, Reference
from uvit_lit.evaluation.features import Features
from uvit_lit.evaluation.probe import Probe
from uvit_lit.files import file_hash, write_torch
from uvit_lit.generation import Generation
from uvit_lit.imports import source_hash
from uvit_lit.options import ReferenceOptions
from uvit_lit.reading import difference, load

SPECTRUM_IMAGES = 10_000
"""Real images of which the spectrum is measured, at most."""

PROBE_IMAGES, HELD_OUT_IMAGES = 10_000, 5_000
"""Real images that a probe is trained on, and that it is tried on, at most."""

CACHE = Path("data/cache")
"""Where features and probes of real images are kept."""


def open_data(options: ReferenceOptions, generation: Generation, download: bool) -> ImageData:
    """The data, all splits in memory.

    Args:
        options: Which data; by default the model's.
        generation: Says the image size and what the model was trained on.
        download: Whether data that are missing may be downloaded.

    Raises:
        ValueError: If nothing says the data, or they lack the split.
        OSError: If they cannot be read or downloaded.
    """
    known = generation.model.data
    name = options.data or known.get("name")
    root = options.data_root or (known.get("root") if name == known.get("name") else None)
    if name is None or (name == "folder" and root is None):
        raise InputError("the checkpoint does not say its data: give --data and --data_root")
    if ":" in name:  # no code is run because a file names it
        raise InputError(
            f"the data are {name}, code of one's own; accepted: a folder of such images, with "
            "--data folder --data_root PATH"
        )
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
    if options.split == "test" and data.validation is None:
        raise InputError("the data has no test split; accepted: --split train")
    return data


def find_data(
    options: ReferenceOptions, generation: Generation, metrics: set[str]
) -> ImageData | None:
    """The data; None with --stats, and where the detail can do without.

    Raises:
        ValueError: As ``open_data``, if one of the metrics needs them.
        OSError: Likewise.
    """
    if options.stats is not None:
        return None
    needed = metrics != {"detail"} or bool(options.data or options.data_root)
    try:
        return open_data(options, generation, download=needed)
    except (ValueError, OSError) as error:
        if needed:
            raise
        if generation.devices.is_main:
            note(f"no distance to the spectrum of the data ({error})")
        return None


def split_pixels(data: ImageData, split: str) -> Tensor:
    """Pixels of a split, ``train`` or ``test``: (images, 3, height, width) uint8."""
    images = data.train if split == "train" else data.validation
    assert isinstance(images, Images)
    return images.pixels


def data_spectrum(pixels: Tensor) -> dict[str, Tensor]:
    """Power of each band in dB of at most ``SPECTRUM_IMAGES`` of the real images: (images,)."""
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    parts = [band_decibels(pixels[some]) for some in chosen[:SPECTRUM_IMAGES].split(256)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def content_key(options: ReferenceOptions, extract: Features, *tensors: Tensor) -> str:
    """Hash of some images, or labels, and of the network that sees them."""
    weights = options.inception_weights and file_hash(options.inception_weights)
    network = f"{extract.name} {extract.num_features} {weights}"
    content = hashlib.sha256(f"{network}{source_hash(extract.name) or ''}".encode())
    for tensor in tensors:
        content.update(str(tensor.shape).encode())
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def load_reference(
    options: ReferenceOptions, extract: Features, pixels: Tensor | None, batch_size: int
) -> tuple[Reference, str]:
    """The reference, from a file, from the cache, or built now.

    Args:
        options: Which file or network.
        extract: The network of the features.
        pixels: Of the real images; None takes the file.
        batch_size: Images that go through the network at once.

    Returns:
        The reference, and a hash of what it is of.

    Raises:
        ValueError: If the file does not fit the features, or there are fewer than 2 images.
    """
    if pixels is None:
        assert options.stats is not None
        reference = Reference.read(options.stats)
        if len(reference.mu) != extract.num_features:
            raise InputError(
                f"statistics {options.stats} have {len(reference.mu)} features, "
                f"{extract.name} has {extract.num_features}"
            )
        return reference, file_hash(options.stats)
    key = content_key(options, extract, pixels)
    path = CACHE / f"reference_{extract.name.replace(':', '.')}_{key[:24]}.npz"
    if extract.devices.decide(path.exists()):
        with suppress(ValueError):  # a damaged file is built anew
            stored = Reference.read(path)
            if len(stored.mu) == extract.num_features and len(stored.features) == min(
                len(pixels), KEPT
            ):
                return stored, key
    reference = Reference.build(extract, pixels, batch_size)
    if extract.devices.is_main:
        reference.write(path)
    return reference, key


def labelled_images(data: ImageData, names: list[str]) -> tuple[Images, Images, str]:
    """Real images for a probe of the classes of a model.

    Args:
        data: Which data.
        names: The model's classes.

    Returns:
        Images to train on, of the train split; images to try it on, of the test split or, where
        the data has none, a fifth of the train split; and what these are, in words.

    Raises:
        ValueError: If the data has no classes, or other ones.
    """
    if not data.class_names:
        raise InputError("the data has no classes; accepted: other metrics than classes")
    if data.class_names != names:
        ours, theirs = (
            ", ".join(some[:4]) + ", ..." * (len(some) > 4) for some in (names, data.class_names)
        )
        raise InputError(
            f"the model has the classes {ours}, the data {theirs}; accepted with classes: the same"
        )
    assert isinstance(data.train, Images)
    order, source = _shuffled(data.train), "test split"
    if isinstance(data.validation, Images):
        images, held_out = data.validation, _shuffled(data.validation)
    else:
        fifth = -(-len(order) // 5)
        images, held_out, order = data.train, order[:fifth], order[fifth:]
        source = "a fifth of the train split, held out from the probe: there is no test split"
    train = _part(data.train, order[:PROBE_IMAGES])
    return train, _part(images, held_out[:HELD_OUT_IMAGES]), source


def _shuffled(images: Images) -> Tensor:
    """Indices of the images in an order at random, the same every time."""
    return torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(0))


def _part(images: Images, chosen: Tensor) -> Images:
    """Some images of a data set."""
    return Images(images.pixels[chosen], images.labels[chosen], images.class_names)


def load_probe(
    options: ReferenceOptions,
    extract: Features,
    train: Images,
    held_out: Images,
    batch_size: int,
) -> tuple[Probe, str]:
    """The probe, from the cache, or trained now.

    Args:
        options: Which network.
        extract: The network of the features.
        train: Images to train on.
        held_out: Images to try it on.
        batch_size: Images that go through the network at once.

    Returns:
        The probe, and a hash of what it is of.
    """
    tensors = train.pixels, train.labels, held_out.pixels, held_out.labels
    key = content_key(options, extract, *tensors)
    path = CACHE / f"probe_{extract.name.replace(':', '.')}_{key[:24]}.pt"
    if extract.devices.decide(path.exists()):
        with suppress(ValueError):  # a damaged file is built anew
            stored = load(path)
            count, features = len(train.class_names), extract.num_features
            like = {
                "weight": torch.zeros(count, features),
                "bias": torch.zeros(count),
                "right": torch.zeros(len(held_out.labels), dtype=torch.bool),
                "labels": held_out.labels,
            }
            if difference(stored, like) is None and torch.equal(stored["labels"], held_out.labels):
                return Probe(**{name: stored[name] for name in like}), key
    probe = Probe.build(extract, train, held_out, batch_size)
    if extract.devices.is_main:
        write_torch(path, vars(probe))
    return probe, key
