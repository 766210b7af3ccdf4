"""Images in memory: CIFAR-10, CIFAR-100, any folder, or shapes drawn here.

A data set is one uint8 tensor, and a batch is an index, a flip and a scale. Training is an endless
stream counted in optimiser steps: batch n of rank r is a function of (seed, n, r) alone, so a
resumed run continues exactly, with no state to save. Every batch carries the seed of all further
randomness of its step.
"""

import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from uvit_lit import shapes

NAMES = ("cifar10", "cifar100", "folder", "shapes")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


class Images(NamedTuple):
    """A data set in memory.

    Attributes:
        pixels: (images, channels, height, width) uint8.
        labels: (images,) int64; zeros where there are no classes.
        class_names: Names of the labels, empty where there are no classes.
    """

    pixels: Tensor
    labels: Tensor
    class_names: list[str]


def derive_seed(*key: int) -> int:
    """Hash integers into one seed (``numpy.random.SeedSequence``), at least 0, below 2^63."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


@dataclasses.dataclass
class TrainBatches:
    """Endless stream of one rank's training batches.

    The ranks share one sequence of samples: permutation after permutation of the data set, each
    from the seed and its epoch. Batch n of rank r holds the samples from position
    (n * world_size + r) * batch_size on.

    Attributes:
        images: The data set.
        batch_size: Images per batch, on each rank.
        seed: Seed of the order, the flips and the seeds of the batches.
        flip: Whether half of the images are mirrored.
        start: Index n of the first batch.
        rank: This process.
        world_size: Number of processes.
    """

    images: Images
    batch_size: int
    seed: int
    flip: bool = True
    start: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        """Keep the permutations of the current epoch and the one before."""
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 0, epoch))
        return torch.randperm(len(self.images.pixels), generator=generator)

    def __getitem__(self, n: int) -> dict[str, Any]:
        """Batch n: pixels (B, C, H, W) uint8, label (B,), flip (B,) boolean, seed."""
        count = len(self.images.pixels)
        first = (n * self.world_size + self.rank) * self.batch_size
        positions = range(first, first + self.batch_size)
        index = torch.cat(
            [
                self._order(epoch)[max(first - epoch * count, 0) : positions.stop - epoch * count]
                for epoch in range(positions[0] // count, positions[-1] // count + 1)
            ]
        )
        seed = derive_seed(self.seed, 1, n, self.rank)
        # A seed of their own: the step draws its times from the other one.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 3, n, self.rank))
        flip = torch.rand(self.batch_size, generator=generator) < (0.5 if self.flip else 0.0)
        return {
            "pixels": self.images.pixels[index],
            "label": self.images.labels[index],
            "flip": flip,
            "seed": seed,
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches from ``start`` on, without an end."""
        n = self.start
        while True:
            yield self[n]
            n += 1


@dataclasses.dataclass
class ValidationBatches:
    """One rank's share of the validation set, in order, the same every time.

    Attributes:
        images: The data set.
        batch_size: Images per batch.
        seed: Seed of the batches, from which the module draws noise and times.
        rank: This process; it has every ``world_size``-th batch.
        world_size: Number of processes.
    """

    images: Images
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    @cached_property
    def _starts(self) -> list[int]:
        starts = range(0, len(self.images.pixels), self.batch_size)
        return list(starts)[self.rank :: self.world_size]

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._starts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches like those of ``TrainBatches``, not flipped."""
        for start in self._starts:
            pixels = self.images.pixels[start : start + self.batch_size]
            yield {
                "pixels": pixels,
                "label": self.images.labels[start : start + self.batch_size],
                "flip": torch.zeros(len(pixels), dtype=torch.bool),
                "seed": derive_seed(self.seed, 2, start),
            }


class ImageData(LightningDataModule):
    """CIFAR-10, CIFAR-100, a folder of images, or generated shapes.

    Args:
        name: ``cifar10`` or ``cifar100`` (downloaded by torchvision into ``root``, checksum
            verified), ``folder`` (the images below ``root``; sub-folders are classes; ``train``
            and ``test`` or ``val`` inside it are the splits) or ``shapes`` (drawn here: 10,000
            images of ten classes).
        root: Directory of the data.
        batch_size: Images per batch on each device, at least 1.
        flip: Whether half of the training images are mirrored.
        image_size: Height and width in pixels; a folder's images are resized and centre-cropped.
        seed: Seed of order, flips, noise and times.
        cache: Directory for decoded folders.

    Raises:
        ValueError: If an argument is outside its range, or the folder holds no image.
        OSError: If a download fails.
    """

    def __init__(
        self,
        name: str = "cifar10",
        root: str = "data",
        batch_size: int = 128,
        flip: bool = True,
        image_size: int = 32,
        seed: int = 0,
        cache: str = "data/cache",
    ) -> None:
        super().__init__()
        if name not in NAMES:
            raise ValueError(f"data.name is {name!r}; accepted: {', '.join(NAMES)}")
        if batch_size < 1:
            raise ValueError(f"data.batch_size is {batch_size}; accepted: at least 1")
        if name.startswith("cifar") and image_size != 32:
            raise ValueError(f"{name} images are 32 pixels wide, model.img_size is {image_size}")
        self.save_hyperparameters()
        self.name, self.root, self.image_size = name, Path(root), image_size
        self.batch_size, self.flip, self.seed = batch_size, flip, seed
        self.cache = Path(cache)
        self.train: Images | None = None
        self.validation: Images | None = None

    def prepare_data(self) -> None:
        """Download, once per machine."""
        if self.name in ("cifar10", "cifar100") and self.train is None:
            self._cifar(train=True, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Load both splits into memory, once; a folder is decoded here if it is not cached."""
        if self.train is not None:
            return
        if self.name in ("cifar10", "cifar100"):
            self.train, self.validation = self._cifar(train=True), self._cifar(train=False)
        elif self.name == "shapes":
            names = list(shapes.CLASSES)
            self.train = Images(*shapes.draw_shapes(10_000, self.image_size, seed=0), names)
            self.validation = Images(*shapes.draw_shapes(1_000, self.image_size, seed=1), names)
        else:
            train, held_out = self._splits()
            self.train = load_folder(train, self.image_size, self.cache)
            if held_out is not None:
                self.validation = load_folder(held_out, self.image_size, self.cache)
                if self.validation.class_names != self.train.class_names:
                    raise ValueError(f"{train} and {held_out} have different class folders")

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; empty without classes."""
        assert self.train is not None
        return self.train.class_names

    def state_dict(self) -> dict[str, Any]:
        """Put the class names into the checkpoint, so that sampling knows them."""
        return {"class_names": self.class_names}

    def train_dataloader(self) -> TrainBatches:
        """Batches from the current step of the trainer on."""
        assert self.train is not None
        assert self.trainer is not None
        return TrainBatches(
            self.train,
            self.batch_size,
            self.seed,
            self.flip,
            start=self.trainer.global_step * self.trainer.accumulate_grad_batches,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    def val_dataloader(self) -> ValidationBatches | list:
        """Validation batches; none where the data set has no second split."""
        if self.validation is None:
            return []
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return ValidationBatches(self.validation, self.batch_size, self.seed, rank, world_size)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Mirror and scale on the device: adds ``image``, float32 in [-1, 1]."""
        pixels, flip = batch.pop("pixels"), batch.pop("flip")
        pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
        return {"image": pixels / 127.5 - 1, **batch}

    def _splits(self) -> tuple[Path, Path | None]:
        """Directories of the training and of the validation images of a folder."""
        if not self.root.is_dir():
            raise ValueError(f"data.root {self.root} is not a directory")
        train = self.root / "train"
        if not train.is_dir():
            return self.root, None
        held_out = (self.root / name for name in ("test", "val"))
        return train, next((path for path in held_out if path.is_dir()), None)

    def _cifar(self, train: bool, download: bool = False) -> Images:
        """CIFAR through torchvision."""
        from torchvision import datasets

        cls = datasets.CIFAR10 if self.name == "cifar10" else datasets.CIFAR100
        try:
            data = cls(self.root, train=train, download=download)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"cannot download {self.name} ({error}): check the network, put the archive "
                f"{cls.filename} into {self.root}, or train on --data.name shapes or on a "
                "directory of images with --data.name folder --data.root PATH"
            ) from None
        pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return Images(pixels, torch.tensor(data.targets), list(data.classes))


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
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise ValueError(f"no images below {root}; accepted: {', '.join(sorted(SUFFIXES))}")
    names = [str(path.relative_to(root)) for path in files]
    stats = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(repr((str(root.resolve()), size, names, stats)).encode()).hexdigest()
    path = cache / f"{key[:32]}.npz"
    if not path.exists():
        _decode(root, files, size, path)
    with np.load(path, allow_pickle=False) as stored:
        pixels, errors = stored["pixels"], stored["errors"]
    kept = [name for name, error in zip(names, errors, strict=True) if not error]
    for name, error in zip(names, errors, strict=True):
        if error:
            print(f"left out {root / name}: {error}", file=sys.stderr)
    if len(kept) < len(names):
        print(f"{len(names) - len(kept)} of {len(names)} files left out", file=sys.stderr)
    if not kept:
        raise ValueError(f"no file below {root} can be decoded as an image")
    folders = [Path(name).parts[0] if len(Path(name).parts) > 1 else "" for name in kept]
    if any(folders) and not all(folders):
        loose = kept[folders.index("")]
        raise ValueError(f"{root} holds class folders and also loose images such as {loose}")
    classes = sorted(set(folders) - {""})
    labels = torch.tensor([classes.index(folder) if folder else 0 for folder in folders])
    return Images(torch.from_numpy(pixels), labels, classes)


def _decode(root: Path, files: list[Path], size: int, path: Path) -> None:
    """Decode image files into ``path``: pixels of the good ones, an error text for every one."""
    pixels, errors = [], []
    for file in tqdm(files, desc=f"decoding {root}", unit="img"):
        try:
            pixels.append(_decode_one(file, size))
            errors.append("")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            errors.append(f"not a readable image ({type(error).__name__})")
    path.parent.mkdir(parents=True, exist_ok=True)
    stacked = np.stack(pixels) if pixels else np.empty((0, 3, size, size), np.uint8)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as output:
            np.savez(output, pixels=stacked, errors=np.array(errors))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _decode_one(path: Path, size: int) -> np.ndarray:
    """Read one image as (3, size, size) uint8."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).transpose(2, 0, 1)
