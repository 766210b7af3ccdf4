"""Start a training run from the weights of another."""

import sys
from pathlib import Path
from typing import Any

from uvit_lit.denoiser import Denoiser
from uvit_lit.filters import PROTOTYPES
from uvit_lit.layouts import check_tensors, read_weights, resize_positions

SKIP_ARGUMENTS = {
    "filter", "s", "cutoff", "order", "ripple", "attenuation",
    "b", "b_channels", "learn_b", "grad_checkpoint", "img_size",
}  # fmt: skip
"""Arguments of ``UViT`` that may differ between a model and the weights it starts from."""


def initialise(denoiser: Denoiser, arguments: dict[str, Any], path: Path) -> None:
    """Put the averaged weights of a checkpoint into a denoiser.

    What its long skips have learned is taken over where this denoiser learns the same: s and
    cutoff of the same low-pass, and b. Where the checkpoint's skips did something that this
    denoiser does not start with, a line on stderr says so. Position embeddings of another image
    size are interpolated. What an official file does not say (heads, schedule, prediction) is
    taken to be as here.

    Args:
        denoiser: Of the same architecture, schedule and prediction; its skips may differ.
        arguments: Those of its ``UViT``, from ``uvit_arguments``.
        path: What ``read_weights`` reads.

    Raises:
        ValueError: If the file is damaged or holds code, or is of another model.
    """
    weights = read_weights(path)
    there = {
        **weights.arguments, "schedule": weights.schedule, "prediction": weights.prediction
    }  # fmt: skip
    here = {
        **arguments, "schedule": denoiser.schedule.name, "prediction": denoiser.prediction
    }  # fmt: skip
    assumed = {"num_heads"} if weights.schedule is None else set()
    for name in sorted(here.keys() - SKIP_ARGUMENTS - assumed):
        if there[name] is not None and here[name] != there[name]:
            raise ValueError(f"{name} is {here[name]} here and {there[name]} in {path}")
    weights.arguments["num_heads"] = arguments["num_heads"]
    check_tensors(weights, path)
    if weights.arguments["img_size"] != arguments["img_size"]:
        resize_positions(weights, arguments["img_size"])
    same_design = all(here[n] == there[n] for n in ("filter", "order", "ripple", "attenuation"))
    own, tensors = denoiser.backbone.state_dict(), weights.tensors
    for name in [name for name in tensors if ".learned." in name]:
        value = tensors.pop(name)
        if name in own and (same_design or name.endswith(".b.raw")):
            tensors[name] = value
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
