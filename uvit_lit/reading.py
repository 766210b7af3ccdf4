"""Files of weights, which may be damaged or made to do harm, read and checked."""

import inspect
import json
import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from uvit_lit.diffusion import PREDICTIONS, SCHEDULES
from uvit_lit.errors import InputError, note, shorten
from uvit_lit.options import RECOMMENDABLE, fits, is_recommendable
from uvit_lit.settings import SkipSettings
from uvit_lit.skips import MAX_SCALE
from uvit_lit.weights import (
    BACKBONES,
    PUBLISHED_HEADS,
    WITHOUT_NULL_CLASS,
    Weights,
    backbone_arguments,
    digest_of,
)


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
    for name, value, is_true, accepted in _claims(weights, path):
        if not is_true:
            raise InputError(f"{path} is refused: {name} is {shorten(value)}; accepted: {accepted}")
    _make_constant(weights)
    return weights


def _claims(weights: Weights, path: Path) -> Iterator[tuple[str, Any, bool, str]]:
    """What a file says of its tensors: name, value, whether it is accepted, and what is.

    All sizes are those of the tensors, so nothing larger is built than the file holds. The types
    come first: what follows a claim that does not fit is not to be asked for.
    """
    schedule, prediction = weights.schedule, weights.prediction
    may_lack = weights.backbone == "uvit"  # the official layout says neither
    known = fits(schedule, str) and schedule in SCHEDULES
    known = known or (may_lack and schedule is None)
    yield "schedule", schedule, known, ", ".join(SCHEDULES)
    known = fits(prediction, str) and prediction in PREDICTIONS
    known = known or (may_lack and prediction is None)
    yield "prediction", prediction, known, ", ".join(PREDICTIONS)
    names, step, data = weights.class_names, weights.step, weights.data
    texts = fits(names, list) and all(fits(name, str) for name in names)
    yield "class_names", names, texts, "a list of texts"
    yield "can_guide", weights.can_guide, fits(weights.can_guide, bool), "true or false"
    counted = step is None or (fits(step, int) and 0 <= step < 2**63)
    yield "step", step, counted, "a number of steps"
    yield "data", data, fits(data, dict), "names and values"
    for name in ("name", "root", "autoencoder"):
        value = data.get(name)
        yield f"data.{name}", value, fits(value, str | None), "a text"
    yield "licence", weights.licence, fits(weights.licence, str | None), "a text"
    yield "skips", weights.default_skips, fits(weights.default_skips, str), "a text"
    advice = weights.recommended
    yield "recommended", advice, is_recommendable(advice), f"of {', '.join(RECOMMENDABLE)}"

    arguments = weights.arguments
    for name, kind in _kinds(SkipSettings).items():
        value = arguments["skip"][name]
        yield f"skip.{name}", value, fits(value, kind), _accepted(kind)
    sizes_of = {"uvit": _sizes, "unet": _unet_sizes}.get(weights.backbone)
    if sizes_of is None:
        return  # a network of somebody's own is built on the meta device, where it takes no memory
    for name, kind in _kinds(BACKBONES[weights.backbone]).items():
        if name == "skip" or (name == "num_heads" and arguments[name] is schedule is None):
            continue
        yield name, arguments[name], fits(arguments[name], kind), _accepted(kind)
    sizes = sizes_of(weights.tensors, path)
    ratio = sizes.pop("mlp_ratio", None)
    for name, value in sizes.items():
        there = arguments[name]
        yield name, there, there == value, f"{value}, as the tensors have it"
    if ratio is None:
        return
    there, dim = arguments["mlp_ratio"], sizes["embed_dim"]
    alike = 0 < there < 2**31 and int(dim * there) == round(dim * ratio)
    yield "mlp_ratio", there, alike, f"{ratio:g}, as the tensors have it"


INTEGERS = tuple[int, ...]
"""Type of an argument that is several numbers; plain data has it as a list."""


def _kinds(made: type) -> dict[str, Any]:
    """Types of the arguments of a class."""
    return {name: p.annotation for name, p in inspect.signature(made).parameters.items()}


def _accepted(kind: Any) -> str:
    """Which values are of a type, in words."""
    return "a list of int" if kind == INTEGERS else f"of type {kind.__name__}"


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
    is_number = type(saved) is int or (type(saved) is float and type(own) is float)
    return None if is_number and 0 <= saved < 2**63 else f"{name} is {shorten(saved)}"


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


def _lightning(content: dict[str, Any], path: Path) -> Weights:
    """Weights of a checkpoint of train.py."""
    hyper_parameters, state = content["hyper_parameters"], content["state_dict"]
    prefix = "denoiser.backbone."
    try:
        backbone = hyper_parameters.get("backbone", "uvit")
        tensors = _tensors(state, path)
        return Weights(
            tensors={name.removeprefix(prefix): tensor for name, tensor in tensors.items()},
            arguments=backbone_arguments(backbone, hyper_parameters),
            schedule=hyper_parameters["schedule"],
            prediction=hyper_parameters["prediction"],
            class_names=content.get("ImageData", {}).get("class_names", []),
            can_guide=hyper_parameters["class_dropout"] > 0,
            step=content["global_step"],
            data=content.get("datamodule_hyper_parameters", {}),
            default_skips=hyper_parameters.get("skips", "all"),
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
    if digest is not None and digest != digest_of(text or "", tensors):
        raise InputError(f"checkpoint {path} is refused: it is damaged (its checksum is another)")
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    if text is None:
        return _official(tensors, path)
    try:
        card = json.loads(text)
        backbone = card.get("backbone", "uvit")
        card["arguments"] = backbone_arguments(backbone, card["arguments"])
        card["default_skips"] = card.pop("skips", "all")
        return Weights(tensors=tensors, **card)
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
    return Weights(
        tensors=tensors,
        arguments=arguments,
        schedule=None,
        prediction=None,
        class_names=[],
        can_guide=has_null,
    )


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


def _unet_sizes(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Arguments of ``UNet`` that the shapes of its tensors say.

    Raises:
        ValueError: If a tensor that says one is missing, or has another number of axes, or none
            of a size.
    """

    def is_there(name: str, axes: int = 4) -> bool:
        return name in tensors and tensors[name].ndim == axes and tensors[name].numel() > 0

    levels = (f"unet.down_blocks.{number}.resnets.0.conv1.weight" for number in count())
    blocks = (f"unet.down_blocks.0.resnets.{number}.conv1.weight" for number in count())
    first, classes = "unet.conv_in.weight", "unet.class_embedding.weight"
    channels = [len(tensors[name]) for name in takewhile(is_there, levels)]
    if not channels or not is_there(first):
        some = ", ".join(map(shorten, list(tensors)[:3]))
        raise InputError(f"{path} is no U-Net: it lacks its first convolutions and has {some}, ...")
    return {
        "channels": channels,
        "layers": len(list(takewhile(is_there, blocks))),
        "in_chans": tensors[first].shape[1],
        "num_classes": len(tensors[classes]) - 1 if is_there(classes, 2) else 0,
    }
