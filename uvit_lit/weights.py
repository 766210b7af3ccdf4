"""Files of weights: the layouts that are read, and the two that are written.

Read are checkpoints of train.py, safetensors files, and what the official U-ViT code releases
(a bare state dict) and writes while it trains (``N.ckpt/nnet_ema.pth``). Files from outside are
data: they are opened with ``weights_only=True`` or as safetensors, and never unpickled.
"""

import inspect
import json
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from uvit_lit.files import replacing, write
from uvit_lit.uvit import UViT

PUBLISHED_HEADS = {512: 8, 768: 12, 1024: 16, 1152: 16}
"""Attention heads of the published models by ``embed_dim``; the official layout lacks them."""

WITHOUT_NULL_CLASS = (10, 100, 1000)
"""Rows of a class embedding that are all classes; of any other number the last is "no class"."""


@dataclass
class Weights:
    """The averaged weights of a U-ViT and what is known about them.

    Attributes:
        tensors: By the names of ``UViT``.
        arguments: Those of ``UViT``, all of them.
        schedule: Noise schedule; None where the file does not say.
        prediction: What the network predicts; None where the file does not say.
        class_names: Names of the labels; empty where there are none, or none are known.
        can_guide: Whether the null class was trained, as classifier-free guidance needs.
        step: Optimiser steps of the training; None where the file does not say.
        data: Arguments of the ``ImageData`` of the training.
        licence: Licence of the weights, as an SPDX identifier or in words.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    arguments: dict[str, Any]
    schedule: str | None
    prediction: str | None
    class_names: list[str]
    can_guide: bool
    step: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None

    def card(self) -> dict[str, Any]:
        """Everything but the tensors, as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tensors"}


def read_weights(path: Path) -> Weights:
    """Read a file of weights, or an official training directory.

    Args:
        path: A checkpoint of train.py, a .safetensors file, an official state dict, or a
            directory with ``nnet_ema.pth``.

    Returns:
        The averaged weights. Of an official file the architecture is read from the shapes.

    Raises:
        ValueError: If the file is damaged, holds code, or is of another model.
    """
    if path.is_dir():
        return _official(path / "nnet_ema.pth")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    content = load(path)
    if {"state_dict", "hyper_parameters"} <= content.keys():
        return _lightning(content, path)
    return _official(path, content)


def load(path: Path) -> dict[str, Any]:
    """Open a file of torch as plain data.

    Raises:
        ValueError: If it is damaged, holds code, or is no dictionary.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        raise ValueError(
            f"checkpoint {path} is refused: it is damaged, no checkpoint, or has code inside"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} has no weights: it is a {type(content).__name__}")
    return content


def uvit_arguments(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of ``UViT`` from hyper-parameters; what they do not name has its default."""
    parameters = inspect.signature(UViT).parameters
    return {name: hyper_parameters.get(name, p.default) for name, p in parameters.items()}


def resize_positions(weights: Weights, img_size: int) -> None:
    """Make the weights those of a model of another image size.

    The position embeddings of the patches are interpolated (bicubic) on their grid.

    Args:
        weights: Changed in place.
        img_size: Height and width of the images, or of the latents.

    Raises:
        ValueError: If it is no multiple of the patch size.
    """
    patch = weights.arguments["patch_size"]
    if img_size < patch or img_size % patch:
        raise ValueError(f"img_size is {img_size}; accepted: a positive multiple of {patch}")
    old, new = weights.arguments["img_size"] // patch, img_size // patch
    positions = weights.tensors["pos_embed"]
    prefix, patches = positions[:, : -(old**2)], positions[:, -(old**2) :]
    grid = patches.float().transpose(1, 2).unflatten(2, (old, old))
    grid = F.interpolate(grid, size=(new, new), mode="bicubic")
    patches = grid.flatten(2).transpose(1, 2).to(positions.dtype)
    weights.tensors["pos_embed"] = torch.cat([prefix, patches], dim=1)
    weights.arguments["img_size"] = img_size


def check_tensors(weights: Weights, path: Path) -> None:
    """Compare names and shapes with those of the U-ViT of the arguments.

    Raises:
        ValueError: If some differ; it names them.
    """
    try:
        with torch.device("meta"):
            expected = {k: v.shape for k, v in UViT(**weights.arguments).state_dict().items()}
    except TypeError as error:
        raise ValueError(f"the arguments of {path} do not fit this version: {error}") from None
    found = {name: tensor.shape for name, tensor in weights.tensors.items()}
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is too much" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(found[name])} instead of {tuple(expected[name])}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"the tensors of {path} are no U-ViT: {', '.join(sorted(problems)[:3])}{more}"
        )


def _lightning(content: dict[str, Any], path: Path) -> Weights:
    """Weights of a checkpoint of train.py."""
    hyper_parameters = content["hyper_parameters"]
    prefix = "denoiser.backbone."
    try:
        return Weights(
            {k.removeprefix(prefix): v for k, v in content["state_dict"].items()},
            uvit_arguments(hyper_parameters),
            hyper_parameters["schedule"],
            hyper_parameters["prediction"],
            list(content.get("ImageData", {}).get("class_names", [])),
            hyper_parameters["class_dropout"] > 0,
            int(content["global_step"]),
            dict(content.get("datamodule_hyper_parameters", {})),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {path} was not written by train.py ({error})") from None


def _safetensors(path: Path) -> Weights:
    """Weights of a file of ``write_safetensors``."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint {path} is refused: it is damaged ({error})") from None
    try:
        card = json.loads(metadata["uvit_lit"])
        card["arguments"] = uvit_arguments(card["arguments"])
        return Weights({name: t.float() for name, t in tensors.items()}, **card)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path} does not say its architecture ({type(error).__name__}); accepted: "
            "safetensors files that this project wrote"
        ) from None


def _official(path: Path, content: dict[str, Any] | None = None) -> Weights:
    """Weights of the official code, the architecture from the shapes."""
    tensors = load(path) if content is None else content
    needed = ("patch_embed.proj.weight", "pos_embed", "in_blocks.0.mlp.fc1.weight",
              "decoder_pred.weight")  # fmt: skip
    missing = [n for n in needed if not (isinstance(tensors.get(n), Tensor) and tensors[n].ndim)]
    if missing:
        some = ", ".join(map(str, list(tensors)[:3]))
        raise ValueError(f"{path} is no U-ViT: it lacks {', '.join(missing)} and has {some}, ...")
    dim, channels, patch = tensors["patch_embed.proj.weight"].shape[:3]
    rows = len(tensors["label_emb.weight"]) if "label_emb.weight" in tensors else 0
    has_null = rows > 0 and rows not in WITHOUT_NULL_CLASS
    prefix = 2 if rows else 1
    arguments = uvit_arguments({
        "img_size": patch * round((tensors["pos_embed"].shape[1] - prefix) ** 0.5),
        "patch_size": patch,
        "in_chans": channels,
        "embed_dim": dim,
        "depth": 2 * len({name.split(".")[1] for name in tensors if name.startswith("in_blocks")}),
        "num_heads": PUBLISHED_HEADS.get(dim),
        "mlp_ratio": len(tensors["in_blocks.0.mlp.fc1.weight"]) / dim,
        "qkv_bias": "in_blocks.0.attn.qkv.bias" in tensors,
        "num_classes": rows - has_null,
        "mlp_time_embed": "time_embed.0.weight" in tensors,
        "conv": "final_layer.weight" in tensors,
    })  # fmt: skip
    tensors = dict(tensors)
    if rows and not has_null:  # the row is there, and nothing uses it
        labels = tensors["label_emb.weight"]
        tensors["label_emb.weight"] = torch.cat([labels, torch.zeros_like(labels[:1])])
    return Weights(tensors, arguments, None, None, [], has_null)


def write_safetensors(weights: Weights, path: Path) -> None:
    """Write tensors, architecture, filters, schedule, classes and licence into one file.

    Raises:
        OSError: If it cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in weights.tensors.items()}
    write(path, save(tensors, {"format": "pt", "uvit_lit": json.dumps(weights.card())}))


def write_official(weights: Weights, path: Path) -> None:
    """Write a state dict that the official code loads.

    It has no place for what acts on the long skips, and none for the number of heads; a line on
    stderr says what is lost.

    Raises:
        OSError: If it cannot be written.
    """
    arguments = weights.arguments
    if arguments["filter"] != "none" or arguments["b"] != 1 or arguments["learn_b"]:
        print(f"note: the official layout has no place for filter {arguments['filter']}, "
              f"b {arguments['b']}: it becomes another function", file=sys.stderr)  # fmt: skip
    heads, dim = arguments["num_heads"], arguments["embed_dim"]
    if heads != PUBLISHED_HEADS.get(dim):
        print(f"note: the official layout does not record the {heads} heads", file=sys.stderr)
    tensors = {k: v.clone() for k, v in weights.tensors.items() if ".learned." not in k}
    if not weights.can_guide and arguments["num_classes"] in WITHOUT_NULL_CLASS:
        tensors["label_emb.weight"] = tensors["label_emb.weight"][:-1].clone()
    with replacing(path) as file:
        torch.save(tensors, file)
