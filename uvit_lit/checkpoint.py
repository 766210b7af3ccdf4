"""From a file of weights to a model that samples, and to the start of a training run."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uvit_lit.classes import class_names
from uvit_lit.denoiser import Denoiser
from uvit_lit.filters import PROTOTYPES
from uvit_lit.uvit import UViT
from uvit_lit.weights import Weights, check_tensors, read_weights, resize_positions

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
        step: Optimiser steps of its training; None where the file does not say.
        path: The file that it came from.
        data: Arguments of the ``ImageData`` that it was trained on.
    """

    denoiser: Denoiser
    class_names: list[str]
    can_guide: bool
    step: int | None
    path: Path
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the run that trained it, or of the file."""
        path = self.path.resolve()
        in_a_run = path.parent.name == "checkpoints" and len(path.parents) > 2
        return path.parents[2].name if in_a_run else path.stem

    @property
    def training(self) -> str:
        """How long it was trained, in words."""
        return "training steps unknown" if self.step is None else f"{self.step} training steps"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        backbone = self.denoiser.backbone
        assert isinstance(backbone, UViT)
        return backbone.in_chans, backbone.img_size, backbone.img_size


def find_checkpoint(path: str, runs: Path = Path("runs")) -> Path:
    """Resolve what a user types for a checkpoint.

    Args:
        path: A file, a directory with ``nnet_ema.pth``, or ``last`` for the newest checkpoint
            below ``runs``.
        runs: Directory of the training runs.

    Returns:
        Path of an existing file.

    Raises:
        ValueError: If there is no such file, or no checkpoint yet.
    """
    if path != "last":
        if not (Path(path).is_file() or (Path(path) / "nnet_ema.pth").is_file()):
            state = "is a directory" if Path(path).is_dir() else "does not exist"
            raise ValueError(f"checkpoint {path} {state}; accepted: a file, or last")
        return Path(path)
    found = sorted(runs.glob("*/version_*/checkpoints/*.ckpt"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise ValueError(f"no checkpoint below {runs}/: train a model first, or name a file")
    return found[-1]


def initialise(denoiser: Denoiser, arguments: dict[str, Any], path: Path) -> None:
    """Put the averaged weights of a checkpoint into a denoiser.

    What its long skips have learned is taken over where this denoiser learns the same: s and
    cutoff of the same low-pass, and b. Cosines in t that the checkpoint lacks start at 0. Where
    the checkpoint's skips did something that this denoiser does not start with, a line on stderr
    says so. Position embeddings of another image size are interpolated. What an official file
    does not say (heads, schedule, prediction) is taken to be as here.

    Args:
        denoiser: Of the same architecture, schedule and prediction; its skips may differ.
        arguments: Those of its ``UViT``, from ``uvit_arguments``.
        path: What ``read_weights`` reads.

    Raises:
        ValueError: If the file is damaged or holds code, or is of another model.
    """
    weights = read_weights(path)
    if weights.arguments["img_size"] != arguments["img_size"]:
        resize_positions(weights, arguments["img_size"])
    there = {
        **weights.arguments, "schedule": weights.schedule, "prediction": weights.prediction
    }  # fmt: skip
    here = {
        **arguments, "schedule": denoiser.schedule.name, "prediction": denoiser.prediction
    }  # fmt: skip
    for name in sorted(here.keys() - SKIP_ARGUMENTS):
        if there[name] is not None and here[name] != there[name]:
            raise ValueError(f"{name} is {here[name]} here and {there[name]} in {path}")
    weights.arguments["num_heads"] = arguments["num_heads"]
    check_tensors(weights, path)
    same_design = all(here[n] == there[n] for n in ("filter", "order", "ripple", "attenuation"))
    own, tensors = denoiser.backbone.state_dict(), weights.tensors
    for name in [name for name in tensors if ".learned." in name]:
        value = tensors.pop(name)
        if name in own and (same_design or name.endswith(".b.raw")):
            if len(value) > len(own[name]):
                raise ValueError(f"t_coefficients is {here['t_coefficients']} here and "
                                 f"{there['t_coefficients']} in {path}")  # fmt: skip
            tensors[name] = torch.zeros_like(own[name])
            tensors[name][: len(value)] = value
    denoiser.backbone.load_state_dict(tensors, strict=False)
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


def load_model(
    path: Path | str = "last",
    device: torch.device | str = "cpu",
    *,
    img_size: int | None = None,
    num_heads: int | None = None,
    schedule: str | None = None,
) -> Model:
    """Build the denoiser of a file of weights.

    Args:
        path: A checkpoint of train.py, a safetensors file, an official U-ViT state dict or
            training directory; or ``last`` for the newest checkpoint below runs/.
        device: Where to put the weights.
        img_size: Another image size than the trained one; the positions are interpolated.
        num_heads: Attention heads of official weights that are no published model's.
        schedule: Noise schedule of such weights; by default that of the published model.

    Returns:
        The model, with the averaged weights, as trained; ``Denoiser.set_skips`` overrides s and b.

    Raises:
        ValueError: If the file is damaged, holds code, or its tensors do not fit.
    """
    path = find_checkpoint(str(path))
    weights = read_weights(path)
    complete(weights, path, num_heads, schedule)
    check_tensors(weights, path)
    if img_size is not None:
        resize_positions(weights, img_size)
    return build(weights, path, device)


def complete(
    weights: Weights, path: Path, num_heads: int | None = None, schedule: str | None = None
) -> None:
    """Fill in what the official layout does not say: heads, schedule, prediction, class names.

    The published models predict the noise, on the VP-SDE, but those with 1,152 channels, which
    have the table of Stable Diffusion.

    Args:
        weights: Changed in place.
        path: Where they are from.
        num_heads: Attention heads, where the file does not say.
        schedule: Noise schedule, where the file does not say.

    Raises:
        ValueError: If something stays unknown, or the file says otherwise.
    """
    arguments = weights.arguments
    dim = arguments["embed_dim"]
    for name, given, said in (
        ("num_heads", num_heads, None if weights.schedule is None else arguments["num_heads"]),
        ("schedule", schedule, weights.schedule),
    ):
        if given is not None and said not in (None, given):
            raise ValueError(f"{name} is {given}, but {path} has {said}")
    arguments["num_heads"] = num_heads or arguments["num_heads"]
    if arguments["num_heads"] is None:
        raise ValueError(
            f"{path} does not say its number of heads, and no published model has {dim} channels: "
            "give --num_heads"
        )
    table = "sd" if dim == 1152 else "vp"
    weights.schedule = weights.schedule or schedule or table
    weights.prediction = weights.prediction or "eps"
    if not weights.class_names:
        weights.class_names = class_names(arguments["num_classes"])


def build(weights: Weights, path: Path, device: torch.device | str = "cpu") -> Model:
    """Build the model of complete weights.

    Raises:
        ValueError: If an argument or a tensor does not fit.
    """
    assert weights.schedule is not None
    assert weights.prediction is not None
    denoiser = Denoiser(UViT(**weights.arguments), weights.schedule, weights.prediction)
    denoiser.backbone.load_state_dict(weights.tensors)
    guide = weights.can_guide and weights.arguments["num_classes"] > 0
    names = weights.class_names if weights.arguments["num_classes"] else []
    denoiser = denoiser.eval().to(device)
    return Model(denoiser, names, guide, weights.step, path, weights.data)
