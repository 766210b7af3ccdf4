"""Names of classes: CIFAR-10's and ImageNet's for weights that do not say theirs."""

import hashlib
import inspect
import json
import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from uvit_lit.diffusion import PREDICTIONS, SCHEDULES, Backbone, Denoiser
from uvit_lit.errors import InputError, note, shorten
from uvit_lit.files import write, write_torch
from uvit_lit.filters import MAX_FREQUENCY
from uvit_lit.skips import MAX_SCALE, UNCHANGED, SkipSettings
from uvit_lit.unet import UNet
from uvit_lit.uvit import UViT, check_memory

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def class_names(count: int) -> list[str]:
    """Names for a number of classes.

    Args:
        count: Number of classes.

    Returns:
        CIFAR-10's for 10, ImageNet's for 1000 (those of torchvision, in its order); else the
        numbers themselves.
    """
    if count == len(CIFAR10):
        return CIFAR10
    if count == 1000:
        from torchvision.models import ResNet18_Weights

        return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
    return [str(k) for k in range(count)]


def find_class(name: str | int, known: list[str]) -> int:
    """Label of a class by its name, then by its name in any case, or by its number.

    Raises:
        ValueError: If there is none; it names those that are close, or all where they are few.
    """
    name = str(name)
    if name in known:
        return known.index(name)
    names = [other.lower() for other in known]
    if name.lower() in names:
        return names.index(name.lower())
    if name.isdecimal() and int(name) < len(known):
        return int(name)
    accepted = known if len(known) <= 20 else get_close_matches(name.lower(), names, 5, 0.5)
    raise InputError(
        f"no class {name!r}; accepted: {', '.join(accepted) or 'names of ImageNet'}, or a number "
        f"from 0 to {len(known) - 1}"
    )


BACKBONES: dict[str, Any] = {"uvit": UViT, "unet": UNet}
"""The networks that can be trained, by name."""


def build_backbone(name: str, arguments: Mapping[str, Any]) -> Backbone:
    """A new network from its name and its arguments as plain data.

    Raises:
        ValueError: If there is none by that name, or an argument is outside its range.
    """
    if name not in BACKBONES:
        raise InputError(f"backbone is {name!r}; accepted: {', '.join(BACKBONES)}")
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


@dataclass
class Weights:
    """The averaged weights of a network and what is known about them.

    Attributes:
        tensors: By the names of the network.
        arguments: Those of the network, all of them, as plain data; ``skip`` is a dictionary.
        schedule: Noise schedule; None where the file does not say.
        prediction: What the network predicts; None where the file does not say.
        class_names: Names of the labels; empty where there are none, or none are known.
        can_guide: Whether the null class was trained, as classifier-free guidance needs.
        step: Optimiser steps of the training; None where the file does not say.
        data: Arguments of the ``ImageData`` of the training.
        licence: Licence of the weights, as an SPDX identifier or in words.
        skips: Long skips that s, b and so on act on at sampling when nobody says which, as
            ``uvit_lit.skips.choose_skips`` takes them.
        backbone: Which network, one of ``BACKBONES``.
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
    skips: str = "all"
    backbone: str = "uvit"

    def build(self) -> Backbone:
        """A new network of this architecture, which does not have these tensors yet."""
        return build_backbone(self.backbone, self.arguments)

    def metadata(self) -> dict[str, Any]:
        """Everything but the tensors, as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tensors"}


def read_weights(path: Path) -> Weights:
    """Read a file of weights.

    Args:
        path: A checkpoint of train.py, a .safetensors file, or an official state dict.

    Returns:
        The averaged weights. Of a file that says nothing but tensors the architecture is read
        from their shapes.

    Raises:
        ValueError: If the file is damaged, holds code, or is of another model.
    """
    if path.suffix == ".safetensors":
        weights = _safetensors(path)
    else:
        content = load(path)
        ours = {"state_dict", "hyper_parameters"} <= content.keys()
        weights = (_lightning if ours else _official)(content, path)
    for name, value, fits, accepted in _claims(weights, path):
        if not fits:
            raise InputError(f"{path} is refused: {name} is {shorten(value)}; accepted: {accepted}")
    _make_constant(weights)
    return weights


def _claims(weights: Weights, path: Path) -> Iterator[tuple[str, Any, bool, str]]:
    """What a file says of its tensors: name, value, whether it is accepted, and what is.

    All sizes are those of the tensors, so nothing larger is built than the file holds. The types
    come first: what follows a claim that does not fit is not to be asked for.
    """
    schedule, prediction = weights.schedule, weights.prediction
    known = schedule is None or (_is(schedule, str) and schedule in SCHEDULES)
    yield "schedule", schedule, known, ", ".join(SCHEDULES)
    known = prediction is None or (_is(prediction, str) and prediction in PREDICTIONS)
    yield "prediction", prediction, known, ", ".join(PREDICTIONS)
    names, step, data = weights.class_names, weights.step, weights.data
    texts = _is(names, list) and all(_is(name, str) for name in names)
    yield "class_names", names, texts, "a list of texts"
    yield "can_guide", weights.can_guide, _is(weights.can_guide, bool), "true or false"
    counted = step is None or (_is(step, int) and 0 <= step < 2**63)
    yield "step", step, counted, "a number of steps"
    yield "data", data, _is(data, dict), "names and values"
    for name in ("name", "root", "autoencoder"):
        value = data.get(name)
        yield f"data.{name}", value, value is None or _is(value, str), "a text"
    yield "licence", weights.licence, weights.licence is None or _is(weights.licence, str), "a text"
    yield "skips", weights.skips, _is(weights.skips, str), "a text"

    arguments = weights.arguments
    for name, kind in _kinds(SkipSettings).items():
        value = arguments["skip"][name]
        yield f"skip.{name}", value, _is(value, kind), f"of type {kind.__name__}"
    if weights.backbone != "uvit":
        return  # its network is built on the meta device, where it takes no memory
    for name, kind in _kinds(UViT).items():
        if name == "skip" or (name == "num_heads" and arguments[name] is schedule is None):
            continue
        yield name, arguments[name], _is(arguments[name], kind), f"of type {kind.__name__}"
    sizes = _sizes(weights.tensors, path)
    ratio = sizes.pop("mlp_ratio")
    for name, value in sizes.items():
        there = arguments[name]
        yield name, there, there == value, f"{value}, as the tensors have it"
    there, dim = arguments["mlp_ratio"], sizes["embed_dim"]
    fits = 0 < there < 2**31 and int(dim * there) == round(dim * ratio)
    yield "mlp_ratio", there, fits, f"{ratio:g}, as the tensors have it"


def _kinds(made: type) -> dict[str, Any]:
    """Types of the arguments of a class."""
    return {name: p.annotation for name, p in inspect.signature(made).parameters.items()}


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; a finite number of any kind is a ``float``."""
    if kind is float:
        return type(value) in (int, float) and abs(value) < math.inf
    return type(value) is kind


def _make_constant(weights: Weights) -> None:
    """Replace what older versions learned and this one does not by its mean.

    Numbers of long skips were functions of t, cosine series inside the sigmoid: raw[0] + sum over
    k of raw[k] cos(pi k t). And every long skip could have a b of its own.
    """
    for name, raw in weights.tensors.items():
        if name.endswith(".raw") and ".learned." in name and raw.ndim == 1 and len(raw) > 1:
            t = torch.linspace(0, 1, 65, dtype=torch.float64)
            series = torch.cos(math.pi * t[:, None] * torch.arange(len(raw))) @ raw.double()
            mean = torch.logit(torch.trapezoid(series.sigmoid(), t), eps=1e-6)
            weights.tensors[name] = mean.to(raw.dtype)[None]
            note(f"{name} was a function of t; its mean is used")
    scales = [name for name in weights.tensors if name.endswith(".learned.b.raw")]
    if scales:
        values = [MAX_SCALE * float(weights.tensors.pop(name).sigmoid()) for name in scales]
        b = weights.arguments["skip"]["b"] = sum(values) / len(values)
        note(f"each long skip had learned its own b; their mean {b:.3f} is used")


def load(path: Path) -> dict[str, Any]:
    """Open a file of torch as plain data.

    Raises:
        ValueError: If it is damaged, holds code, or is no dictionary.
        OSError: If it cannot be read.
    """
    path.open("rb").close()  # below, an OSError is what torch makes of some damaged files
    try:
        mmap = zipfile.is_zipfile(path)  # files of before torch 1.6 are none
        if mmap:
            _check_sums(path)
        with warnings.catch_warnings(action="ignore"):  # the error says it in one line
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception:  # a damaged file may end in any
        raise InputError(
            f"checkpoint {path} is refused: it is damaged, no checkpoint, or has code inside"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"checkpoint {path} has no weights: it is a {type(content).__name__}")
    return content


def difference(saved: Any, own: Any, name: str = "") -> str | None:
    """Say where data from a file is not like data of this program, which tells kinds and shapes.

    Args:
        saved: From the file; it may have more entries.
        own: Of the same structure: its tensors give shape and type, its numbers their type.
        name: Of the place, in the answer.

    Returns:
        The first place with another kind, shape or range, or with what is not finite, and what
        is wrong there; None if there is none.
    """
    if isinstance(own, dict):
        if not isinstance(saved, dict):
            return f"{name} is {shorten(saved)}"
        for key, value in own.items():
            place = f"{name}.{key}" if name else str(key)
            if key not in saved:
                return f"{place} is missing"
            if problem := difference(saved[key], value, place):
                return problem
        return None
    if isinstance(own, list | tuple):
        if not isinstance(saved, list | tuple) or len(saved) != len(own):
            return f"{name} is {shorten(saved)}"
        pairs = enumerate(zip(saved, own, strict=True))
        problems = (difference(one, other, f"{name}.{i}") for i, (one, other) in pairs)
        return next(filter(None, problems), None)
    if isinstance(own, Tensor):
        if not isinstance(saved, Tensor) or saved.shape != own.shape or saved.dtype != own.dtype:
            return f"{name} is {shorten(saved)}, not of {own.dtype} and shape {tuple(own.shape)}"
        return None if saved.isfinite().all() else f"{name} is not finite"
    if own is None or isinstance(own, bool | str):
        return None if type(saved) is type(own) else f"{name} is {shorten(saved)}"
    is_number = type(saved) in (int, float) and abs(saved) < 2**63
    return (
        None
        if is_number and (type(saved) is int or type(own) is float) and saved >= 0
        else (f"{name} is {shorten(saved)}")
    )


def _check_sums(path: Path) -> None:
    """Compare the checksums in a file of torch, which torch does not read.

    Raises:
        BadZipFile: If one is wrong, or an entry takes more room than it has in the file.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        whole = sum(entry.file_size for entry in entries) <= path.stat().st_size
        if not (plain and whole) or archive.testzip() is not None:
            raise zipfile.BadZipFile


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


def _lightning(content: dict[str, Any], path: Path) -> Weights:
    """Weights of a checkpoint of train.py."""
    hyper_parameters, state = content["hyper_parameters"], content["state_dict"]
    prefix = "denoiser.backbone."
    try:
        backbone = hyper_parameters.get("backbone", "uvit")
        tensors = _tensors(state, path)
        return Weights(
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items()},
            backbone_arguments(backbone, hyper_parameters),
            hyper_parameters["schedule"],
            hyper_parameters["prediction"],
            content.get("ImageData", {}).get("class_names", []),
            hyper_parameters["class_dropout"] > 0,
            content["global_step"],
            content.get("datamodule_hyper_parameters", {}),
            skips=hyper_parameters.get("skips", "all"),
            backbone=backbone,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"checkpoint {path} was not written by train.py ({type(error).__name__})"
        ) from None


DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of weights by their names in a .safetensors file."""


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The content itself.

    Raises:
        ValueError: If it is not names and tensors of real numbers, all of which the file holds.
    """
    if not isinstance(content, dict):
        raise InputError(f"{path} is no state dict: it is a {type(content).__name__}")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            kind = type(value).__name__
            raise InputError(f"{path} is no state dict: {shorten(name)} is a {kind}")
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.dtype not in DTYPES.values():
            raise InputError(
                f"{path} is refused: {shorten(name)} is {value.dtype}, {value.layout}, on "
                f"{value.device}; accepted: plain tensors of {', '.join(DTYPES)}"
            )
        if math.prod(value.shape) * value.itemsize > value.untyped_storage().nbytes():
            raise InputError(f"{path} is refused: {shorten(name)} is larger than its numbers")
    return dict(content)


def _digest(card: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a card and of the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256(card.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _safetensors(path: Path) -> Weights:
    """Weights of a file of ``write_safetensors``, or of tensors alone."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            kinds = {name: file.get_slice(name).get_dtype() for name in names}
            if wrong := [name for name in names if kinds[name] not in DTYPES]:
                raise InputError(
                    f"{path} is refused: {shorten(wrong[0])} is {kinds[wrong[0]]}; accepted: "
                    f"{', '.join(DTYPES)}"
                )
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"checkpoint {path} is refused: it is damaged ({reason})") from None
    text, digest = metadata.get("uvit_lit"), metadata.get("sha256")
    if digest is not None and digest != _digest(text or "", tensors):
        raise InputError(f"checkpoint {path} is refused: it is damaged (its checksum is another)")
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    if text is None:
        return _official(tensors, path)
    try:
        card = json.loads(text)
        backbone = card.get("backbone", "uvit")
        card["arguments"] = backbone_arguments(backbone, card["arguments"])
        return Weights(tensors, **card)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"checkpoint {path} does not say its architecture ({type(error).__name__})"
        ) from None


def _official(content: dict[str, Any], path: Path) -> Weights:
    """Weights of the official code, the architecture from the shapes."""
    tensors = _tensors(content, path)
    sizes = _sizes(tensors, path)
    rows = sizes["num_classes"] + 1 if "label_emb.weight" in tensors else 0
    has_null = rows > 0 and rows not in WITHOUT_NULL_CLASS
    sizes["num_classes"] = rows - has_null
    sizes["num_heads"] = PUBLISHED_HEADS.get(sizes["embed_dim"])
    arguments = backbone_arguments("uvit", sizes)
    if rows and not has_null:  # the row is there, and nothing uses it
        labels = tensors["label_emb.weight"]
        tensors["label_emb.weight"] = torch.cat([labels, torch.zeros_like(labels[:1])])
    return Weights(tensors, arguments, None, None, [], has_null)


def _sizes(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Arguments of ``UViT`` that the shapes of its tensors say; the last label is "no class".

    Raises:
        ValueError: If a tensor that says one is missing, or has another number of axes, or none
            of a size.
    """
    needed = {
        "patch_embed.proj.weight": 4,
        "pos_embed": 3,
        "in_blocks.0.mlp.fc1.weight": 2,
        "decoder_pred.weight": 2,
    }
    if "label_emb.weight" in tensors:
        needed["label_emb.weight"] = 2

    def is_there(name: str) -> bool:
        return name in tensors and tensors[name].ndim == needed[name] and tensors[name].numel() > 0

    if missing := [name for name in needed if not is_there(name)]:
        some = ", ".join(map(shorten, list(tensors)[:3]))
        raise InputError(f"{path} is no U-ViT: it lacks {', '.join(missing)} and has {some}, ...")
    dim, channels, patch = tensors["patch_embed.proj.weight"].shape[:3]
    rows = len(tensors["label_emb.weight"]) if "label_emb.weight" in tensors else 0
    patches = tensors["pos_embed"].shape[1] - (2 if rows else 1)
    blocks = {name.split(".")[1] for name in tensors if name.startswith("in_blocks.")}
    return {
        "img_size": patch * math.isqrt(max(patches, 1)),
        "patch_size": patch,
        "in_chans": channels,
        "embed_dim": dim,
        "depth": 2 * len(blocks),
        "mlp_ratio": len(tensors["in_blocks.0.mlp.fc1.weight"]) / dim,
        "qkv_bias": "in_blocks.0.attn.qkv.bias" in tensors,
        "num_classes": max(rows - 1, 0),
        "mlp_time_embed": "time_embed.0.weight" in tensors,
        "conv": "final_layer.weight" in tensors,
    }


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
    card = json.dumps(weights.metadata())
    metadata = {"format": "pt", "uvit_lit": card, "sha256": _digest(card, tensors)}
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
    if weights.skips != "all":
        lost.append(f"skips {weights.skips}")
    if weights.licence:
        lost.append(f"licence {weights.licence}")
    if lost:
        note(f"the official layout has no place for {', '.join(lost)}")
    write_torch(path, tensors)


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
            f"the long skips of {path} had filter {before.filter}, b {before.b}; this run starts "
            f"with filter {now.filter}, b {now.b}, as another function"
        )


def _keeps_its_skips(before: SkipSettings, now: SkipSettings) -> bool:
    """Whether what the skips did is done again, or was nothing."""
    same_numbers = bool(before.learnable) or (before.s, before.cutoff) == (now.s, now.cutoff)
    filter_kept = before.filter == "none" or (before.low_pass() == now.low_pass() and same_numbers)
    b_kept = before.b == 1 or (before.b, before.b_channels) == (now.b, now.b_channels)
    return filter_kept and b_kept
