"""The weights of a network, what is known about them, and the files that they are written to."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from uvit_lit.classes import class_names
from uvit_lit.diffusion import Backbone
from uvit_lit.errors import InputError, note, require_choice
from uvit_lit.files import write, write_torch
from uvit_lit.filters import MAX_FREQUENCY
from uvit_lit.settings import UNCHANGED, SkipSettings
from uvit_lit.unet import UNet
from uvit_lit.uvit import UViT, check_memory

BACKBONES: dict[str, Any] = {"uvit": UViT, "unet": UNet}
"""The networks that can be trained, by name."""


def build_backbone(name: str, arguments: Mapping[str, Any]) -> Backbone:
    """A new network from its name and its arguments as plain data.

    Raises:
        ValueError: If there is none by that name, or an argument is outside its range.
    """
    require_choice("backbone", name, BACKBONES)
    return BACKBONES[name](**{**arguments, "skip": SkipSettings(**arguments["skip"])})


def backbone_arguments(name: str, hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a network as plain data; what is not named has its default.

    Args:
        name: One of ``BACKBONES``.
        hyper_parameters: What was given, among other things. Older files have the settings of the
            skips beside the other arguments instead of in ``skip``.
    """
    parameters = inspect.signature(BACKBONES[name]).parameters
    arguments = {name: hyper_parameters.get(name, p.default) for name, p in parameters.items()}
    arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    given = hyper_parameters.get("skip")
    if given is None:
        given = {"s": 0.9, **hyper_parameters}  # their default
        if given.get("filter", "none") == "none":
            given["s"] = 1.0
    names = vars(UNCHANGED)
    return arguments | {"skip": names | {name: given[name] for name in names if name in given}}


PUBLISHED_HEADS = {512: 8, 768: 12, 1024: 16, 1152: 16}
"""Attention heads of the published models by ``embed_dim``; the official layout lacks them."""

WITHOUT_NULL_CLASS = (10, 100, 1000)
"""Rows of a class embedding that are all classes; of any other number the last is "no class"."""


@dataclass(kw_only=True)
class Card:
    """What is known about the averaged weights of a network.

    Attributes:
        arguments: Those of the network, all of them, as plain data; ``skip`` is a dictionary.
        schedule: Noise schedule; None where the file does not say.
        prediction: What the network predicts; None where the file does not say.
        class_names: Names of the labels; empty where there are none, or none are known.
        can_guide: Whether the null class was trained, as classifier-free guidance needs.
        step: Optimiser steps of the training; None where the file does not say.
        data: Arguments of the ``ImageData`` of the training.
        licence: Licence of the weights, as an SPDX identifier or in words.
        default_skips: Long skips that a single s or b acts on at sampling when nobody says which:
            ``all``, ``inner``, ``outer``, ``split`` (s on the innermost, b on all) or numbers with
            commas, 0 the outermost.
        backbone: Which network, one of ``BACKBONES``.
        recommended: Options of the preset ``best`` by name, of ``uvit_lit.options.RECOMMENDABLE``.
    """

    arguments: dict[str, Any]
    schedule: str | None
    prediction: str | None
    class_names: list[str]
    can_guide: bool
    step: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None
    default_skips: str = "all"
    backbone: str = "uvit"
    recommended: dict[str, Any] = field(default_factory=dict)

    def card(self) -> dict[str, Any]:
        """The fields above by name."""
        return {f.name: getattr(self, f.name) for f in fields(Card)}


@dataclass(kw_only=True)
class Weights(Card):
    """The averaged weights of a network and what is known about them.

    Attributes:
        tensors: By the names of the network.
    """

    tensors: dict[str, Tensor] = field(repr=False)

    def build(self) -> Backbone:
        """A new network of this architecture, which does not have these tensors yet."""
        return build_backbone(self.backbone, self.arguments)


def resize_positions(weights: Weights, img_size: int) -> None:
    """Make the weights of a U-ViT those of a model of another image size.

    The position embeddings of the patches are interpolated (bicubic) on their grid. Learned
    cutoffs keep their value, a fraction of Nyquist, where the new grid has it in its bounds.

    Args:
        weights: Changed in place.
        img_size: Height and width of the images, or of the latents.

    Raises:
        ValueError: If it is no multiple of the patch size, or the network is no U-ViT.
    """
    if weights.backbone != "uvit":
        raise InputError(
            f"img_size is {img_size}; accepted for this network: as it was trained, "
            f"{weights.arguments['img_size']}"
        )
    patch = weights.arguments["patch_size"]
    if img_size < patch or img_size % patch:
        raise InputError(f"img_size is {img_size}; accepted: a positive multiple of {patch}")
    old, new = weights.arguments["img_size"] // patch, img_size // patch
    check_memory(new**2 * weights.arguments["embed_dim"])
    positions = weights.tensors["pos_embed"]
    prefix, patches = positions[:, : -(old**2)], positions[:, -(old**2) :]
    grid = patches.float().transpose(1, 2).unflatten(2, (old, old))
    grid = F.interpolate(grid, size=(new, new), mode="bicubic")
    patches = grid.flatten(2).transpose(1, 2).to(positions.dtype)
    weights.tensors["pos_embed"] = torch.cat([prefix, patches], dim=1)
    weights.arguments["img_size"] = img_size
    for name, raw in weights.tensors.items():
        if name.endswith(".learned.cutoff.raw"):
            low, high = 1 / old, MAX_FREQUENCY  # as SkipModulation bounds it, from half a bin
            cutoff = low + (high - low) * torch.sigmoid(raw)
            share = (cutoff - 1 / new) / (high - 1 / new)
            weights.tensors[name] = torch.logit(share, eps=1e-3)
            skip = weights.arguments["skip"]
            skip["cutoff"] = max(skip["cutoff"], 1.01 / new)


def check_tensors(weights: Weights, path: Path) -> None:
    """Compare names and shapes with those of the network of the arguments, and look for nan.

    Raises:
        ValueError: If some differ, or are not finite; it names them.
    """
    try:
        with torch.device("meta"):
            network: Any = weights.build()
        expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    except TypeError as error:
        raise InputError(f"the arguments of {path} do not fit this version: {error}") from None
    found = {name: tensor.shape for name, tensor in weights.tensors.items()}
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is too much" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(found[name])} instead of {tuple(expected[name])}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    problems += [
        f"{name} is not finite" for name, v in weights.tensors.items() if not v.isfinite().all()
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"the tensors of {path} do not fit its {weights.backbone}: "
            f"{', '.join(sorted(problems)[:3])}{more}"
        )


def digest_of(card: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a card and of the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256(card.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def published_schedule(embed_dim: int) -> str:
    """Schedule of the published model of this width: Stable Diffusion's for H/2, else VP-SDE."""
    return "sd" if embed_dim == 1152 else "vp"


def write_safetensors(weights: Weights, path: Path) -> None:
    """Write tensors, architecture, filters, schedule, classes and licence into one file.

    It carries a checksum of all of these, which reading compares.

    Raises:
        OSError: If it cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in weights.tensors.items()}
    entries = weights.card()
    entries["skips"] = entries.pop("default_skips")
    card = json.dumps(entries)
    metadata = {"format": "pt", "uvit_lit": card, "sha256": digest_of(card, tensors)}
    write(path, save(tensors, metadata))


def write_official(weights: Weights, path: Path) -> None:
    """Write a state dict that the official code loads.

    It holds tensors alone; a line on stderr says what is lost.

    Raises:
        ValueError: If it is no U-ViT, or does not predict the noise, as all official models do.
        OSError: If it cannot be written.
    """
    if weights.backbone != "uvit":
        raise InputError(
            f"the network is a {weights.backbone}; accepted in the official layout: uvit"
        )
    arguments, classes = weights.arguments, weights.arguments["num_classes"]
    dim, heads = arguments["embed_dim"], arguments["num_heads"]
    if weights.prediction != "eps":
        raise InputError(
            f"the network predicts {weights.prediction}; accepted in the official layout: eps"
        )
    lost = []
    skip = SkipSettings(**arguments["skip"])
    if skip.filter != "none" or skip.b != 1:
        lost.append(f"filter {skip.filter}, b {skip.b} (it is another function)")
    if heads != PUBLISHED_HEADS.get(dim):
        lost.append(f"{heads} heads")
    if weights.schedule != published_schedule(dim):
        lost.append(f"schedule {weights.schedule}")
    tensors = {k: v.clone() for k, v in weights.tensors.items() if ".learned." not in k}
    drop_null = bool(classes) and not weights.can_guide and classes in WITHOUT_NULL_CLASS
    if drop_null:
        tensors["label_emb.weight"] = tensors["label_emb.weight"][:-1].clone()
    elif classes and (not weights.can_guide or classes + 1 in WITHOUT_NULL_CLASS):
        lost.append(f"that of {classes + 1} rows the last is no class")
    if classes and weights.class_names != class_names(classes):
        lost.append("class names")
    if weights.default_skips != "all":
        lost.append(f"skips {weights.default_skips}")
    if weights.licence:
        lost.append(f"licence {weights.licence}")
    if lost:
        note(f"the official layout has no place for {', '.join(lost)}")
    write_torch(path, tensors)
