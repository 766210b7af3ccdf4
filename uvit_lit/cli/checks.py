"""What a training is refused for, before anything is written."""

import inspect
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from uvit_lit.cli.config import flatten, read_config, read_yaml
from uvit_lit.data.datamodule import ImageData
from uvit_lit.errors import InputError, require, shorten
from uvit_lit.latents import check_latents
from uvit_lit.reading import load
from uvit_lit.sampling import PRECISIONS
from uvit_lit.settings import UNCHANGED
from uvit_lit.training.callbacks import MovingAverage, SampleGrid, SkipReport
from uvit_lit.training.module import DiffusionModule
from uvit_lit.training.saving import Checkpoints, check_checkpoint
from uvit_lit.weights import BACKBONES, backbone_arguments

if TYPE_CHECKING:
    from uvit_lit.cli.train import TrainCLI

SECTIONS = {
    "model": (DiffusionModule, *BACKBONES.values()),
    "data": (ImageData,),
    "ema": (MovingAverage,),
    "samples": (SampleGrid,),
    "skips": (SkipReport,),
    "checkpoints": (Checkpoints,),
}
"""Parts of a configuration and whose arguments they are."""


def check_nulls(config: Any) -> None:
    """Refuse null where a value is needed, which jsonargparse lets through.

    Raises:
        ValueError: If there is one.
    """
    if "enable_progress_bar" not in (config.get("trainer") or {}):
        raise InputError("trainer is null; accepted: its entries")
    for section, classes in SECTIONS.items():
        if config.get(section) is None:
            raise InputError(f"{section} is null; accepted: its entries")
        parameters = [p for cls in classes for p in inspect.signature(cls).parameters.items()]
        for name, parameter in parameters:
            needed = type(None) not in get_args(parameter.annotation)
            if needed and config[section].get(name, parameter) is None:
                kind = getattr(parameter.annotation, "__name__", parameter.annotation)
                raise InputError(f"{section}.{name} is null; accepted: of type {kind}")


def check_trainer(options: Any) -> None:
    """Refuse options that Lightning takes, or fails on with a traceback.

    Raises:
        ValueError: If there is one.
    """
    if options.accumulate_grad_batches is None:
        raise InputError("trainer.accumulate_grad_batches is null; accepted: at least 1")
    for name, least in (("gradient_clip_val", 0), ("log_every_n_steps", 1)):
        value = options[name]
        if value is not None and not least <= value < float("inf"):
            raise InputError(f"trainer.{name} is {value}; accepted: at least {least}")
    devices = options.devices
    numbers = str(devices).split(",") if isinstance(devices, str | int) else map(str, devices)
    is_count = isinstance(devices, int) and (devices > 0 or devices == -1)
    is_list = not isinstance(devices, int) and all(n.strip().isdecimal() for n in numbers)
    if not (is_count or is_list or devices in ("auto", "-1")):
        raise InputError(
            f"trainer.devices is {devices}; accepted: a number of at least 1, -1 (all "
            "of them), auto, or numbers of devices with commas"
        )
    limit = options.limit_val_batches
    if limit is not None and (limit < 0 or (isinstance(limit, float) and limit not in (0, 1))):
        raise InputError(
            f"trainer.limit_val_batches is {limit}; accepted: a number of batches, "
            "of all devices together"
        )


def check_newest(path: Path, runs: Path) -> None:
    """Refuse to go on from the newest checkpoint where a newer run has none yet.

    Raises:
        ValueError: If there is one.
    """
    versions = [directory for directory in runs.glob("*/version_*") if directory.is_dir()]
    started = {directory: directory.stat().st_mtime for directory in versions}
    newest = max(started, key=lambda d: started[d])
    if path.stat().st_mtime < started[newest] and not any(newest.glob("checkpoints/*.ckpt")):
        raise InputError(
            f"the newest run {newest} has no checkpoint yet: start it anew, without --ckpt_path; "
            f"or go on with an older one by its name: --ckpt_path {path}"
        )


MAY_DIFFER = {
    "model.grad_checkpoint",
    "model.init_from",
    "model.skips",
    "data.cache",
    "data.workers",
}
"""Options of model and data that may change while a run goes on."""

DECIDING_SECTIONS = {*vars(UNCHANGED), "backbone", "seed_everything", "model", "data", "ema"}
"""Options and groups of them that decide the weights of a run."""

DECIDES = {"precision", "accumulate_grad_batches", "gradient_clip_val", "devices", "num_nodes"}
"""Options of the trainer that decide the weights of a run; ``max_steps`` may grow."""


def check_settings(cli: "TrainCLI", path: Path) -> None:
    """Compare the options with those of the run of a checkpoint that nobody has named.

    Raises:
        ValueError: If one that decides the weights differs, or the run does not tell its own.
    """
    config, by_name = path.parents[1] / "config.yaml", f"name it: --ckpt_path {path}"
    if not config.is_file():
        raise InputError(f"the newest run lacks its {config}; to go on with it, {by_name}")
    there = flatten(read_config(config))
    here = flatten(read_yaml(cli.parser.dump(cli.config)))
    for name, value in here.items():
        section, _, option = name.partition(".")
        decides = section in DECIDING_SECTIONS
        if section == "trainer":
            decides = option in DECIDES
        if decides and name not in MAY_DIFFER and there.get(name, value) != value:
            raise InputError(
                f"{name} is {value} here and {shorten(there[name])} in the newest run "
                f"{path.parents[1]}; to go on with it nevertheless, {by_name}"
            )


def check_resume(model: DiffusionModule, saved: dict) -> None:
    """Compare a model with the checkpoint that its run goes on from.

    Raises:
        ValueError: If an argument differs that the checkpoint decides, or the network does.
    """
    for name, learned in (("t_coefficients", "functions of t"), ("learn_b", "a b")):
        if saved.get(name):
            raise InputError(
                f"the checkpoint learned {learned}, which this version does not; accepted: to "
                "start from it, with --model.init_from"
            )
    backbone, there = model.hparams["backbone"], saved.get("backbone", "uvit")
    if backbone != there:
        raise InputError(f"backbone is {backbone} here and {there} in the checkpoint")
    arguments = backbone_arguments(backbone, saved)
    saved = {**saved, **arguments, **arguments["skip"]}
    for name, parameter in inspect.signature(DiffusionModule).parameters.items():
        saved.setdefault(name, parameter.default)
    own = {**model.hparams, **backbone_arguments(backbone, model.hparams), **model.hparams["skip"]}
    decided = (
        "schedule",
        "prediction",
        "lr",
        "filter_lr",
        "weight_decay",
        "betas",
        "optimizer",
        "train",
    )
    network = (arguments.keys() | arguments["skip"].keys()) - {"grad_checkpoint", "skip"}
    for name in (*sorted(network), *decided):
        here, there = (tuple(v) if isinstance(v, list) else v for v in (own[name], saved[name]))
        if type(here) is not type(there) or here != there:
            simple = type(there) is type(here) and not isinstance(there, tuple)
            shown = there if simple else shorten(there)
            raise InputError(f"{name} is {here} here and {shown} in the checkpoint")


def check_run(cli: "TrainCLI") -> int | None:
    """Load the data and compare what must agree, before anything is written.

    Returns:
        The step of the checkpoint to resume from, if nothing remains to be done; else None.

    Raises:
        ValueError: If the data, the trainer's options or the checkpoint do not fit the model.
    """
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    if trainer.max_steps < 1 or trainer.max_epochs not in (None, -1):
        raise InputError(
            f"max_steps is {trainer.max_steps}, max_epochs {trainer.max_epochs}; a run is counted "
            "in optimiser steps: set --trainer.max_steps and leave max_epochs at -1"
        )
    if trainer.limit_train_batches != 1:
        raise InputError(
            "limit_train_batches would repeat the same batches; leave it out, and set "
            "--trainer.max_steps"
        )
    if trainer.accumulate_grad_batches < 1:
        raise InputError(
            f"accumulate_grad_batches is {trainer.accumulate_grad_batches}; accepted: at least 1"
        )
    if trainer.val_check_interval == 0:
        raise InputError("val_check_interval is 0; accepted: at least 1, or limit_val_batches 0")
    if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
        raise InputError(
            "a strategy that cuts the weights leaves no moving average of them; accepted: auto, ddp"
        )
    require(trainer.precision in PRECISIONS, "precision", trainer.precision, ", ".join(PRECISIONS))
    if 0 < trainer.limit_val_batches < trainer.world_size and trainer.limit_val_batches != 1.0:
        raise InputError(
            f"limit_val_batches is {trainer.limit_val_batches}; accepted: 0, or at "
            f"least 1 for each of the {trainer.world_size} devices"
        )
    if cli.config.ckpt_path:
        path = Path(cli.config.ckpt_path)
        saved = load(path)
        known, of_data = (saved.get(f"{kind}hyper_parameters") for kind in ("", "datamodule_"))
        if not (isinstance(known, dict) and isinstance(of_data, dict)):
            raise InputError(f"checkpoint {path} was not written by train.py")
        try:
            check_resume(model, known)
        except InputError as error:
            raise InputError(f"checkpoint {path}: {error}") from None
        here, there = data.hparams["autoencoder"], of_data.get("autoencoder")
        if there != here:
            raise InputError(
                f"data.autoencoder is {here} here and {shorten(there)} in the checkpoint"
            )
        try:
            check_checkpoint(saved, trainer, model)
        except InputError as error:
            raise InputError(f"checkpoint {path} is refused: {error}") from None
        if not cli.is_named:
            check_settings(cli, path)
        if saved["global_step"] >= trainer.max_steps:
            return int(saved["global_step"])
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None  # the first process checks, downloads and encodes; Lightning sets up the others
    check_latents(data.autoencoder, model.denoiser.backbone.in_chans)
    data.prepare_data()
    data.setup()
    classes = model.denoiser.backbone.num_classes
    if classes and classes != len(data.class_names):
        raise InputError(
            f"the data has {len(data.class_names)} classes, the model {classes}: "
            f"set --model.num_classes {len(data.class_names)}"
            + (", or give the data set an attribute classes" if ":" in data.name else "")
        )
    if data.validation is not None and trainer.limit_val_batches != 0:
        count = len(data.validation)
        batches = math.ceil(count / data.batch_size)
        if batches < trainer.world_size:
            raise InputError(
                f"the {count} images of the validation make {batches} batches of "
                f"{data.batch_size}; accepted: at least 1 for each of the {trainer.world_size} "
                "devices, with a smaller data.batch_size, or limit_val_batches 0"
            )
    return None
