"""Ways in which weights come in and go out.

Files from outside are data: they are opened with ``weights_only=True`` and never unpickled.
"""

import inspect
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uvit_lit.denoiser import Denoiser
from uvit_lit.filters import PROTOTYPES
from uvit_lit.uvit import UViT

SKIP_ARGUMENTS = {
    "filter", "s", "cutoff", "order", "ripple", "attenuation", "t_coefficients",
    "b", "b_channels", "learn_b", "grad_checkpoint",
}  # fmt: skip
"""Arguments of ``UViT`` that may differ between a model and the weights it starts from."""


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
    def name(self) -> str:
        """Name of the run that trained it, or of the file."""
        path = self.path.resolve()
        in_a_run = path.parent.name == "checkpoints" and len(path.parents) > 2
        return path.parents[2].name if in_a_run else path.stem

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


def uvit_arguments(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of ``UViT`` from hyper-parameters; what they do not name has its default."""
    parameters = inspect.signature(UViT).parameters
    return {name: hyper_parameters.get(name, p.default) for name, p in parameters.items()}


def _weights(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The averaged weights under the names of a ``Denoiser``."""
    return {k.removeprefix("denoiser."): v for k, v in content["state_dict"].items()}


def initialise(denoiser: Denoiser, arguments: dict[str, Any], path: Path) -> None:
    """Put the averaged weights of a checkpoint into a denoiser.

    What its long skips have learned is taken over where this denoiser learns the same: s and
    cutoff of the same low-pass, and b. Cosines in t that the checkpoint lacks start at 0. Where
    the checkpoint's skips did something that this denoiser does not start with, a line on stderr
    says so.

    Args:
        denoiser: Of the same architecture, schedule and prediction; its skips may differ.
        arguments: Those of its ``UViT``, from ``uvit_arguments``.
        path: A file that training wrote.

    Raises:
        ValueError: If the file is damaged or holds code, or is of another model.
    """
    content = read_checkpoint(path)
    there = {**content["hyper_parameters"], **uvit_arguments(content["hyper_parameters"])}
    here = {
        **arguments, "schedule": denoiser.schedule.name, "prediction": denoiser.prediction
    }  # fmt: skip
    for name in sorted(here.keys() - SKIP_ARGUMENTS):
        if here[name] != there[name]:
            raise ValueError(f"{name} is {here[name]} here and {there[name]} in {path}")
    same_design = all(here[n] == there[n] for n in ("filter", "order", "ripple", "attenuation"))
    own, weights = denoiser.state_dict(), _weights(content)
    for name in [name for name in weights if ".learned." in name]:
        value = weights.pop(name)
        if name in own and (same_design or name.endswith(".b.raw")):
            if len(value) > len(own[name]):
                raise ValueError(f"t_coefficients is {here['t_coefficients']} here and "
                                 f"{there['t_coefficients']} in {path}")  # fmt: skip
            weights[name] = torch.zeros_like(own[name])
            weights[name][: len(value)] = value
    denoiser.load_state_dict(weights, strict=False)
    if not _keeps_its_skips(there, here, same_design):
        print(
            f"note: the long skips of {path} had filter {there['filter']}, b {there['b']}; this "
            f"run starts with filter {here['filter']}, b {here['b']}, as another function",
            file=sys.stderr,
        )


def _keeps_its_skips(there: dict[str, Any], here: dict[str, Any], same_design: bool) -> bool:
    """Whether what the skips did is done again, or was nothing."""
    filter_kept = there["filter"] == "none" or (
        same_design
        and (there["filter"] in PROTOTYPES or all(here[n] == there[n] for n in ("s", "cutoff")))
    )
    b_was_1 = there["b"] == 1 and not there["learn_b"]
    b_kept = b_was_1 or (
        here["b_channels"] == there["b_channels"]
        and here["learn_b"] == there["learn_b"]
        and (here["learn_b"] or here["b"] == there["b"])
    )
    return filter_kept and b_kept


def load_model(path: Path | str = "last", device: torch.device | str = "cpu") -> Model:
    """Build the denoiser of a checkpoint.

    Args:
        path: A file that training wrote, or ``last`` for the newest below runs/.
        device: Where to put the weights.

    Returns:
        The model, with the averaged weights, as trained; ``Denoiser.set_skips`` overrides s and b.

    Raises:
        ValueError: If the file is damaged, holds code, or its tensors do not fit.
    """
    path = find_checkpoint(str(path))
    content = read_checkpoint(path)
    arguments = content["hyper_parameters"]
    try:
        backbone = UViT(**uvit_arguments(content["hyper_parameters"]))
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
