"""Start a training from the weights of a checkpoint."""

from pathlib import Path
from typing import Any

from uvit_lit.diffusion import Denoiser
from uvit_lit.errors import InputError, note
from uvit_lit.reading import read_weights
from uvit_lit.settings import OF_B, SkipSettings
from uvit_lit.weights import check_tensors, resize_positions

MAY_DIFFER = {"skip", "grad_checkpoint", "img_size"}
"""Arguments of a network that may differ between a model and the weights it starts from."""


def initialise(denoiser: Denoiser, backbone: str, arguments: dict[str, Any], path: Path) -> None:
    """Put the averaged weights of a checkpoint into a denoiser.

    What its long skips have learned is taken over where this denoiser learns the same, s and
    cutoff of the same low-pass. Where the checkpoint's skips did something that this
    denoiser does not start with, a line on stderr says so. Position embeddings of another image
    size are interpolated. What an official file does not say (heads, schedule, prediction) is
    taken to be as here.

    Args:
        denoiser: Of the same architecture, schedule and prediction; its skips may differ.
        backbone: Name of its network.
        arguments: Those of its network, from ``backbone_arguments``.
        path: What ``read_weights`` reads.

    Raises:
        ValueError: If the file is damaged or holds code, or is of another model.
    """
    weights = read_weights(path)
    if weights.backbone != backbone:
        raise InputError(f"backbone is {backbone} here and {weights.backbone} in {path}")
    there = {**weights.arguments, "schedule": weights.schedule, "prediction": weights.prediction}
    here = {**arguments, "schedule": denoiser.schedule.name, "prediction": denoiser.prediction}
    assumed = {"num_heads"} if weights.schedule is None else set()
    for name in sorted(here.keys() - MAY_DIFFER - assumed):
        if there[name] is not None and here[name] != there[name]:
            raise InputError(f"{name} is {here[name]} here and {there[name]} in {path}")
    if assumed:
        weights.arguments["num_heads"] = arguments["num_heads"]
    check_tensors(weights, path)
    if weights.arguments["img_size"] != arguments["img_size"]:
        resize_positions(weights, arguments["img_size"])
    before, now = SkipSettings(**there["skip"]), SkipSettings(**here["skip"])
    tensors = weights.tensors
    if before.low_pass() != now.low_pass():
        tensors = {name: value for name, value in tensors.items() if ".learned." not in name}
    denoiser.backbone.load_state_dict(tensors, strict=False)
    if not _keeps_its_skips(before, now):
        note(
            f"the long skips of {path} had {_in_words(before)}; this run starts with "
            f"{_in_words(now)}, as another function"
        )


def _keeps_its_skips(before: SkipSettings, now: SkipSettings) -> bool:
    """Whether what the skips did is done again, or was nothing."""
    same_numbers = bool(before.learnable) or (before.s, before.cutoff) == (now.s, now.cutoff)
    filter_kept = before.filter == "none" or (before.low_pass() == now.low_pass() and same_numbers)
    b_kept = before.b == 1 or all(getattr(before, name) == getattr(now, name) for name in OF_B)
    return filter_kept and b_kept


def _in_words(skip: SkipSettings) -> str:
    """The filter, and what is done to the backbone."""
    return ", ".join(f"{name} {getattr(skip, name)}" for name in ("filter", *sorted(OF_B)))
