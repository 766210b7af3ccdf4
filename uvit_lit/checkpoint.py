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
        data: Arguments of the ``ImageData`` that it was trained on.
    """

    denoiser: Denoiser
    class_names: list[str]
    can_guide: bool
    step: int
    path: Path
    data: dict[str, Any]

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
            state = "is a directory" if Path(path).is_dir() else "does not exist"
            raise ValueError(f"checkpoint {path} {state}; accepted: a file, or last")
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


def model_arguments(content: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``UViT`` that a checkpoint was trained with; a newer one has its default."""
    saved = content["hyper_parameters"]
    parameters = inspect.signature(UViT).parameters
    return {name: saved.get(name, p.default) for name, p in parameters.items()}


def _weights(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The averaged weights under the names of a ``Denoiser``."""
    return {k.removeprefix("denoiser."): v for k, v in content["state_dict"].items()}


def initialise(denoiser: Denoiser, path: Path) -> None:
    """Put the averaged weights of a checkpoint into a denoiser.

    Args:
        denoiser: Of the same architecture, schedule and prediction. What its long skips learn is
            taken over where the checkpoint has learned the same, and else stays as it is.
        path: A file that training wrote.

    Raises:
        ValueError: If the file is damaged or holds code, or is of another model.
    """
    content = read_checkpoint(path)
    saved = content["hyper_parameters"]
    for name, value in (
        ("schedule", denoiser.schedule.name),
        ("prediction", denoiser.prediction),
    ):
        if saved.get(name) != value:
            raise ValueError(f"{name} is {value} here and {saved.get(name)} in {path}")
    own, weights = denoiser.state_dict(), _weights(content)
    shapes = [{name: tuple(v.shape) for name, v in state.items()} for state in (own, weights)]
    same_filter = saved.get("filter") == denoiser.backbone.long_skips[0].trained.settings.filter
    for name in sorted(own.keys() | weights.keys()):
        here, there = (shape.get(name, "missing") for shape in shapes)
        if not name.startswith("backbone.long_skips."):
            if here != there:
                raise ValueError(f"{name} is {here} here and {there} in {path}")
        elif (here != there or not same_filter) and name in weights:
            del weights[name]
    denoiser.load_state_dict(weights, strict=False)


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
    try:
        backbone = UViT(**model_arguments(content))
        denoiser = Denoiser(backbone, arguments["schedule"], arguments["prediction"])
        denoiser.load_state_dict(_weights(content))
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"checkpoint {path} does not fit this version: {reason}") from None
    classes = content.get("ImageData", {}).get("class_names", [])
    classes = classes if backbone.num_classes else []
    can_guide = backbone.num_classes > 0 and arguments["class_dropout"] > 0
    step = int(content["global_step"])
    data = content.get("datamodule_hyper_parameters", {})
    return Model(denoiser.eval().to(device), classes, can_guide, step, path, data)
