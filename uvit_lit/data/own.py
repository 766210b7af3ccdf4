"""A data set of one's own: any torch ``Dataset`` of (image, label), named as module:attribute."""

import operator
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor

from uvit_lit.data.folder import fit
from uvit_lit.errors import InputError
from uvit_lit.imports import import_attribute


def load_dataset(name: str, option: str = "data.name") -> Any:
    """Import a data set.

    Args:
        name: As ``import_attribute`` takes it: a data set, or what makes one when it is called
            without arguments.
        option: Where the name is from, for the error.

    Raises:
        ValueError: If there is none by that name.
    """
    found = import_attribute(option, name, "module:attribute")
    ready = hasattr(found, "__getitem__") and not isinstance(found, type)
    dataset = found() if callable(found) and not ready else found
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset)):
        raise InputError(
            f"{option} is {name!r}, a {type(dataset).__name__}; accepted: a data set of at least "
            "one item, each of them (image, label)"
        )
    return dataset


@dataclass
class OwnImages:
    """A data set of (image, label) behind the interface of ``Images``.

    Attributes:
        dataset: Its items are an image and a whole number. The image is a PIL image, which is
            resized and cropped to a square, or a tensor (3, size, size): uint8, or float in
            [0, 1], which is rounded to 256 levels.
        size: Height and width of the images.
        name: Of the data set, for errors.
    """

    dataset: Any
    size: int
    name: str

    @property
    def class_names(self) -> list[str]:
        """Names of the labels: the data set's ``classes``; empty where it has none."""
        return [str(name) for name in getattr(self.dataset, "classes", [])]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def take(self, index: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Some of the images and their labels.

        Args:
            index: (batch,) numbers of items.
            seed: Of torch's, NumPy's and Python's random numbers while the items are made, so that
                what the data set does at random is the same in every run.

        Returns:
            (batch, 3, size, size) uint8, and (batch,) int64; zeros without classes.

        Raises:
            ValueError: If an item is something else.
        """
        with isolate_rng(include_cuda=False):
            torch.random.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            items = [self._item(k) for k in index.tolist()]
        return torch.stack([image for image, _ in items]), torch.tensor([k for _, k in items])

    def _item(self, number: int) -> tuple[Tensor, int]:
        """One image as uint8, and its label."""
        item = self.dataset[number]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(f"item {number} of {self.name} is no pair; accepted: (image, label)")
        image, label = item
        count = len(self.class_names)
        if not count:
            return self._pixels(image, number), 0
        try:
            index = operator.index(label)
        except TypeError:
            index = -1
        if not 0 <= index < count:
            raise InputError(
                f"item {number} of {self.name} has the label {label!r}; accepted: a whole number "
                f"from 0 to {count - 1}, for its classes"
            )
        return self._pixels(image, number), index

    def _pixels(self, image: Any, number: int) -> Tensor:
        """An image as (3, size, size) uint8."""
        if isinstance(image, Image.Image):
            return torch.from_numpy(fit(image, self.size).copy())
        shape = (3, self.size, self.size)
        if not isinstance(image, Tensor) or image.shape != shape:
            found = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InputError(
                f"item {number} of {self.name} is {found}; accepted: a PIL image, or a tensor "
                f"{shape}, whose size is model.img_size"
            )
        if image.dtype == torch.uint8:
            return image
        if not (image.is_floating_point() and image.min() >= 0 and image.max() <= 1):
            raise InputError(
                f"item {number} of {self.name} is {image.dtype} from {image.min():g} to "
                f"{image.max():g}; accepted: uint8, or float from 0 to 1"
            )
        return (255 * image).round().to(torch.uint8)
