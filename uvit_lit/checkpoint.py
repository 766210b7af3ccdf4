"""Ways in which weights come in and go out.

Files from outside are data: they are opened with ``weights_only=True`` and never unpickled.
"""

import inspect
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uvit_lit.denoiser import Denoiser
from uvit_lit.uvit import UViT


@dataclass
class Model:
    """A trained denoiser and what is known about it.

    Attributes:
        denoiser: In evaluation mode, with the averaged weights.
        class_names: Names of the labels; empty for an unconditional model.
        can_guide: Whether it knows the null class, as classifier-free guidance needs.
        step: Optimiser steps of its training.
        path: The file that it came from.
    """

    denoiser: Denoiser
    class_names: list[str]
    can_guide: bool
    step: int
    path: Path

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        backbone = self.denoiser.backbone
        assert isinstance(backbone, UViT)
        return backbone.in_chans, backbone.img_size, backbone.img_size


def find_checkpoint(path: str, runs: Path = Path("runs")) -> Path:
    """Resolve what a user types for a checkpoint.

    Args:
        path: A file, or ``last`` for the newest checkpoint below ``runs``.
        runs: Directory of the training runs.

    Returns:
        Path of an existing file.

    Raises:
        ValueError: If there is no such file, or no checkpoint yet.
    """
    if path != "last":
        if not Path(path).is_file():
            raise ValueError(f"checkpoint {path} does not exist")
        return Path(path)
    found = sorted(runs.glob("*/version_*/checkpoints/*.ckpt"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise ValueError(f"no checkpoint below {runs}/: train a model first, or name a file")
    return found[-1]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one of our checkpoints as plain data.

    Args:
        path: A file that training wrote.

    Returns:
        Its content: ``state_dict`` (the averaged weights), ``hyper_parameters`` and more.

    Raises:
        ValueError: If the file is damaged, holds code, or is not one of our checkpoints.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        raise ValueError(
            f"checkpoint {path} is refused: it is damaged, no checkpoint, or has code inside"
        ) from None
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise ValueError(f"checkpoint {path} was not written by train.py")
    return content


def load_model(path: Path, device: torch.device | str = "cpu") -> Model:
    """Build the denoiser of a checkpoint.

    Args:
        path: A file that training wrote.
        device: Where to put the weights.

    Returns:
        The model, with the averaged weights, as trained; ``Denoiser.set_skips`` overrides s and b.

    Raises:
        ValueError: If the file is damaged, holds code, or its tensors do not fit.
    """
    content = read_checkpoint(path)
    arguments = content["hyper_parameters"]
    names = inspect.signature(UViT).parameters
    try:
        backbone = UViT(**{name: arguments[name] for name in names})
        denoiser = Denoiser(backbone, arguments["schedule"], arguments["prediction"])
        weights = {k.removeprefix("denoiser."): v for k, v in content["state_dict"].items()}
        denoiser.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"checkpoint {path} does not fit this version: {reason}") from None
    classes = content.get("ImageData", {}).get("class_names", [])
    classes = classes if backbone.num_classes else []
    can_guide = backbone.num_classes > 0 and arguments["class_dropout"] > 0
    step = int(content["global_step"])
    return Model(denoiser.eval().to(device), classes, can_guide, step, path)
