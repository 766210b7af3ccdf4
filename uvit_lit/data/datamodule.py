"""Batches of images: CIFAR, any folder, shapes drawn here, or a data set of one's own.

All but the last are in memory: one tensor, of pixels or of the moments of latents, and a batch is
an index, a flip and a scale. Training is an endless stream counted in optimiser steps: batch n of
rank r is a function of (seed, n, r) alone, so a resumed run continues exactly, with no state to
save. Every batch carries the seed of all further randomness of its step.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from uvit_lit.data import shapes
from uvit_lit.data.encoded import draw_latents, load_latents
from uvit_lit.data.folder import Images, load_folder
from uvit_lit.data.own import OwnImages, load_dataset
from uvit_lit.errors import InputError, require
from uvit_lit.latents import Autoencoder, load_autoencoder
from uvit_lit.options import DataName

NAMES: tuple[str, ...] = get_args(DataName)


def derive_seed(*key: int) -> int:
    """Hash integers into one seed (``numpy.random.SeedSequence``), at least 0, below 2^63.

    A generator of torch on the CPU uses its last 32 bits: of 100,000 batches, one pair on average
    shares its random numbers.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1


@lru_cache(maxsize=2)
def permutation(count: int, *key: int) -> Tensor:
    """Numbers from 0 to below ``count`` in an order at random, a function of the key."""
    generator = torch.Generator().manual_seed(derive_seed(*key))
    return torch.randperm(count, generator=generator)


def stream(batches: Any, numbers: Iterable[int], workers: int) -> Iterator[dict[str, Any]]:
    """Yield ``batches[n]`` for each number n, in their order.

    Args:
        batches: Where a batch is a function of its number, so that it does not matter who makes it.
        numbers: Numbers of the batches, without an end or with one.
        workers: Processes that make batches ahead of time; 0 makes each when it is asked for.
    """
    if not workers:
        for n in numbers:
            yield batches[n]
        return
    own: Any = torch.Generator()  # or it would draw from the generator of the process
    yield from DataLoader(
        batches, batch_size=None, sampler=numbers, num_workers=workers, generator=own
    )


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
        workers: Processes that make batches ahead of time.
    """

    images: Images | OwnImages
    batch_size: int
    seed: int
    flip: bool = True
    start: int = 0
    rank: int = 0
    world_size: int = 1
    workers: int = 0

    def __getitem__(self, n: int) -> dict[str, Any]:
        """Batch n: pixels (B, C, H, W) uint8, label (B,), flip (B,) boolean, seed."""
        count = len(self.images)
        first = (n * self.world_size + self.rank) * self.batch_size
        positions = range(first, first + self.batch_size)
        index = torch.cat(
            [
                permutation(count, self.seed, 0, epoch)[
                    max(first - epoch * count, 0) : positions.stop - epoch * count
                ]
                for epoch in range(positions[0] // count, positions[-1] // count + 1)
            ]
        )
        seed = derive_seed(self.seed, 1, n, self.rank)
        # A seed of their own: the step draws its times from the other one.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 3, n, self.rank))
        flip = torch.rand(self.batch_size, generator=generator) < (0.5 if self.flip else 0.0)
        pixels, label = self.images.take(index, derive_seed(self.seed, 4, n, self.rank))
        return {"pixels": pixels, "label": label, "flip": flip, "seed": seed}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches from ``start`` on, without an end."""
        return stream(self, itertools.count(self.start), self.workers)


@dataclasses.dataclass
class ValidationBatches:
    """One rank's share of the validation set, the same every time.

    The images come in one fixed order at random, so that a part of a folder, which is sorted by
    class, has all classes.

    Attributes:
        images: The data set.
        batch_size: Images per batch.
        seed: Seed of the batches, from which the module draws noise and times.
        rank: This process; it has every ``world_size``-th batch.
        world_size: Number of processes.
        workers: Processes that make batches ahead of time.
        limit: Batches of all processes together; None is all that there are.
    """

    images: Images | OwnImages
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    workers: int = 0
    limit: int | None = None

    @cached_property
    def _order(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randperm(len(self.images), generator=generator)

    @cached_property
    def _starts(self) -> list[int]:
        starts = range(0, len(self.images), self.batch_size)
        return list(starts)[: self.limit][self.rank :: self.world_size]

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._starts)

    def __getitem__(self, n: int) -> dict[str, Any]:
        """Batch n of this rank, like those of ``TrainBatches``, not flipped."""
        start = self._starts[n]
        index = self._order[start : start + self.batch_size]
        pixels, label = self.images.take(index, derive_seed(0, 5, start))
        flip = torch.zeros(len(index), dtype=torch.bool)
        seed = derive_seed(self.seed, 2, start)
        return {"pixels": pixels, "label": label, "flip": flip, "seed": seed}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield all batches."""
        return stream(self, range(len(self)), self.workers)


class ImageData(LightningDataModule):
    """CIFAR-10, CIFAR-100, a folder of images, generated shapes, or a data set of one's own.

    Args:
        name: ``cifar10`` or ``cifar100`` (downloaded by torchvision into ``root``, checksum
            verified), ``folder`` (the images below ``root``; sub-folders are classes; ``train``
            and ``test`` or ``val`` inside it are the splits), ``shapes`` (drawn here: 10,000
            images of ten classes), or ``module:attribute``, importable from the working directory:
            a torch data set of (image, label), as ``OwnImages`` takes it, or what returns one. The
            classes are its attribute ``classes``; without it there are none.
        root: Directory of the data.
        batch_size: Images per batch on each device, at least 1.
        flip: Whether half of the training images are mirrored.
        image_size: Height and width of what the network sees, pixels or latents; a folder's
            images are resized and centre-cropped.
        seed: Seed of order, flips, noise and times.
        cache: Directory for decoded folders and for latents.
        autoencoder: Directory or Hub name of a diffusers ``AutoencoderKL``: the images of a
            folder become latents of ``image_size``, encoded once.
        validation: ``module:attribute`` of the held-out images of a data set of one's own; without
            it nothing is validated.
        workers: Processes that make batches ahead of time; worth it where the items of a data set
            of one's own take long. The batches are the same for any number.

    Raises:
        ValueError: If an argument is outside its range, the folder holds no image, or the data set
            is something else.
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
        autoencoder: str | None = None,
        validation: str | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        is_own = ":" in name
        if name not in NAMES and not is_own:
            raise InputError(
                f"data.name is {name!r}; accepted: {', '.join(NAMES)}, or module:attribute"
            )
        if validation is not None and not (is_own and ":" in validation):
            raise InputError(
                f"data.validation is {validation!r}; accepted: module:attribute, where data.name "
                "is one too"
            )
        require(workers >= 0, "data.workers", workers, "0 or more")
        require(batch_size >= 1, "data.batch_size", batch_size, "at least 1")
        if name.startswith("cifar") and image_size != 32:
            raise InputError(f"{name} images are 32 pixels wide, model.img_size is {image_size}")
        if autoencoder is not None and name != "folder":
            raise InputError(f"data.autoencoder needs data.name folder; data.name is {name}")
        self.save_hyperparameters()
        self.autoencoder_name = autoencoder
        self.name, self.root, self.image_size = name, Path(root), image_size
        self.batch_size, self.flip, self.seed = batch_size, flip, seed
        self.cache, self.workers = Path(cache), workers
        self.train: Images | OwnImages | None = None
        self.validation: Images | OwnImages | None = None

    @cached_property
    def autoencoder(self) -> Autoencoder | None:
        """What makes images of the latents, on the CPU; None where the data are pixels."""
        if self.autoencoder_name is None:
            return None
        return load_autoencoder(self.autoencoder_name)

    def prepare_data(self) -> None:
        """Download, or encode latents, once per machine."""
        if self.name in ("cifar10", "cifar100") and self.train is None:
            self._cifar(train=True, download=True)
        if self.autoencoder_name is not None:
            self.setup()

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
        elif self.name == "folder":
            train, held_out = self._splits()
            self.train = self._folder(train)
            if held_out is not None:
                self.validation = self._folder(held_out)
                if self.validation.class_names != self.train.class_names:
                    raise InputError(f"{train} and {held_out} have different class folders")
        else:
            self.train = self._own("name")
            if self.hparams["validation"] is not None:
                self.validation = self._own("validation")
                if self.validation.class_names != self.train.class_names:
                    raise InputError("data.name and data.validation have different classes")

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
            workers=self.workers,
        )

    def val_dataloader(self) -> ValidationBatches | list:
        """Validation batches; none where the data set has no second split."""
        if self.validation is None:
            return []
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        given = self.trainer.limit_val_batches
        limit = given if isinstance(given, int) else None  # a float is 1.0, all of them
        return ValidationBatches(
            self.validation, self.batch_size, self.seed, rank, world_size, self.workers, limit
        )

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Any:
        """Pin the pixels for a CUDA device, so that their copy waits for nothing."""
        if self.trainer is None or self.trainer.strategy.root_device.type != "cuda":
            return batch
        return {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()}

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Mirror and scale on the device: adds ``image``, float32 in [-1, 1], or a latent."""
        pixels, flip = batch.pop("pixels"), batch.pop("flip")
        if self.autoencoder_name is not None:
            return {"image": draw_latents(pixels, flip, batch["seed"]), **batch}
        # uint8 wraps around, so this is exact; torch.where takes several times as long on bytes
        pixels = pixels + flip[:, None, None, None] * (pixels.flip(-1) - pixels)
        return {"image": pixels / 127.5 - 1, **batch}

    def _splits(self) -> tuple[Path, Path | None]:
        """Directories of the training and of the validation images of a folder."""
        if not self.root.is_dir():
            raise InputError(f"data.root {self.root} is not a directory")
        train = self.root / "train"
        if not train.is_dir():
            return self.root, None
        held_out = (self.root / name for name in ("test", "val"))
        return train, next((path for path in held_out if path.is_dir()), None)

    def _own(self, option: str) -> OwnImages:
        """A data set of one's own, of which the first item has been tried."""
        name = self.hparams[option]
        images = OwnImages(load_dataset(name, f"data.{option}"), self.image_size, name)
        images.take(torch.tensor([0]), seed=0)
        return images

    def _folder(self, root: Path) -> Images:
        """A directory as pixels, or as latents."""
        if self.autoencoder is None:
            return load_folder(root, self.image_size, self.cache)
        size = self.image_size * self.autoencoder.factor
        return load_latents(root, size, self.autoencoder, self.cache)

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
