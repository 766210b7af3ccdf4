"""Train a U-ViT, or a U-Net.

``python train.py --filter step`` trains the tiny CIFAR-10 model, with ``--backbone unet`` a U-Net
of its cost; ``--config configs/NAME.yaml`` chooses another recipe, every entry of which is also an
option; ``--ckpt_path last`` resumes.
"""

import inspect
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import torch
from jsonargparse import ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from uvit_lit.cli.config import STRICT, choose_config, flatten, read_config, read_yaml
from uvit_lit.cli.options import checked_input, fail
from uvit_lit.data.datamodule import ImageData
from uvit_lit.distributed import keep_memory
from uvit_lit.errors import InputError, shorten
from uvit_lit.families import FILTERS
from uvit_lit.latents import check_latents
from uvit_lit.model import find_checkpoint
from uvit_lit.sampling import PRECISIONS
from uvit_lit.skips import UNCHANGED, SkipSettings
from uvit_lit.training.callbacks import (
    ImagesPerSecond,
    LossByTime,
    MovingAverage,
    RunProgressBar,
    SampleGrid,
    SaveConfig,
    SkipReport,
)
from uvit_lit.training.module import DiffusionModule
from uvit_lit.training.saving import Checkpoints, check_checkpoint
from uvit_lit.weights import BACKBONES, backbone_arguments, load


def passband_gain(filter: str, s: float | None) -> float:
    """The s of a run: as given, or 0.9 with a filter, where the cutoff has a gradient, else 1."""
    if s is not None:
        return s
    return 1.0 if filter == "none" else 0.9


class TrainCLI(LightningCLI):
    """Command line of train.py: model, data, trainer and callbacks, each with its options.

    Args:
        backbone: Whose sizes are options of the model, one of ``BACKBONES``.
        **options: As ``LightningCLI`` takes them.
    """

    def __init__(self, backbone: str, **options: Any) -> None:
        self.backbone = backbone
        super().__init__(DiffusionModule, ImageData, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what a run has beside model, data and trainer."""
        parser.add_class_arguments(BACKBONES[self.backbone], "model", skip={"skip"}, as_group=False)
        parser.add_argument(
            "--backbone", type=Literal[tuple(BACKBONES)], default=self.backbone, help="the network"
        )
        parser.link_arguments("backbone", "model.backbone")
        parser.add_argument(
            "--compile",
            type=bool,
            default=False,
            help="compile the loss and its gradient at the start (torch.compile); takes a minute",
        )
        parser.add_argument(
            "--filter",
            type=Literal[FILTERS],
            default="none",
            help="low-pass on the long skips during training; of butterworth, "
            "chebyshev and chebyshev2 s and the cutoff are learned",
        )
        parser.add_argument(
            "--s",
            type=float | None,
            default=None,
            help="gain of the filter's passband; null is 0.9",
        )
        parser.add_class_arguments(SkipSettings, skip={"filter", "s"}, as_group=False)
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="checkpoint to resume from; 'last' is the newest",
        )
        for name in vars(UNCHANGED).keys() - {"s"}:
            parser.link_arguments(name, f"model.skip.{name}")
        parser.link_arguments(("filter", "s"), "model.skip.s", compute_fn=passband_gain)
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("model.img_size", "data.image_size")
        parser.add_lightning_class_args(MovingAverage, "ema")
        parser.add_lightning_class_args(SampleGrid, "samples")
        parser.add_lightning_class_args(SkipReport, "skips")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")

    @property
    def saver(self) -> Checkpoints:
        """The callback that saves."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return next(c for c in callbacks if isinstance(c, Checkpoints))

    def before_instantiate_classes(self) -> None:
        """Resolve the checkpoint to resume from; its run continues in its own directory."""
        check_nulls(self.config)
        for name in ("limit_val_batches", "val_check_interval"):
            value = self.config.trainer[name]  # 16 is read as 16.0 with some older libraries
            if isinstance(value, float) and value > 1 and value.is_integer():
                self.config.trainer[name] = int(value)
        check_trainer(self.config.trainer)
        if self.config.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(RunProgressBar())
        logger = self.config.trainer.logger
        runs = Path(getattr(logger, "init_args", {}).get("save_dir", "runs"))
        if (start := self.config.model.init_from) is not None:
            # A run that goes on has everything in its own checkpoint; that one may be gone.
            gone = self.config.ckpt_path is not None and not Path(start).exists()
            self.config.model.init_from = None if gone else str(find_checkpoint(start, runs))
        if self.config.ckpt_path is None:
            return
        self.is_named = self.config.ckpt_path != "last"
        path = find_checkpoint(self.config.ckpt_path, runs)
        if not self.is_named:
            check_newest(path, runs)
        self.config.ckpt_path = str(path)
        version = path.parent.parent
        in_a_run = path.parent.name == "checkpoints" and version.name.startswith("version_")
        siblings = path.parent.glob("*.ckpt")
        newest = path == max(siblings, key=lambda p: p.stat().st_mtime, default=None)
        # From an older checkpoint a new version branches off; the newer ones stay.
        if in_a_run and newest and hasattr(logger, "init_args"):
            logger.init_args["save_dir"] = str(version.parent.parent)
            logger.init_args["name"] = version.parent.name
            logger.init_args["version"] = int(version.name.removeprefix("version_"))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; what Lightning refuses is a mistake in an option."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"the options of trainer are refused: {error}") from None


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


def check_settings(cli: TrainCLI, path: Path) -> None:
    """Compare the options with those of the run of a checkpoint that nobody has named.

    Raises:
        ValueError: If one that decides the weights differs, or the run does not tell its own.
    """
    there = flatten(read_config(path.parents[1] / "config.yaml"))
    here = flatten(read_yaml(cli.parser.dump(cli.config)))
    for name, value in here.items():
        section, _, option = name.partition(".")
        decides = section in DECIDING_SECTIONS
        if section == "trainer":
            decides = option in DECIDES
        if decides and name not in MAY_DIFFER and there.get(name, value) != value:
            raise InputError(
                f"{name} is {value} here and {shorten(there[name])} in the newest run "
                f"{path.parents[1]}; to go on with it nevertheless, name it: --ckpt_path {path}"
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


def check_run(cli: TrainCLI) -> int | None:
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
    if trainer.precision not in PRECISIONS:
        raise InputError(f"precision is {trainer.precision}; accepted: {', '.join(PRECISIONS)}")
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
        check_resume(model, known)
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
    return None


def explain(message: str) -> str:
    """One line for an error of jsonargparse: the option, its value, and what is accepted."""
    text = " ".join(message.split())
    key = re.search(r'Parser key "([\w.]+)"', text)
    given = re.search(r"(?:Got|Given) value: (.*)$", text)
    kinds = re.findall(r"Expected a (?:<class '([\w.]+)'>|typing\.Literal\[(.*?)\])", text)
    if not (key and given and kinds):
        return text
    words = {"NoneType": "null", "str": "text"}
    accepted = [words.get(kind, f"of type {kind}") if kind else choices for kind, choices in kinds]
    value = "null" if given[1] == "None" else given[1]
    return f"{key[1]} is {value}; accepted: {' or '.join(accepted).replace(chr(39), '')}"


def resume_command(arguments: Sequence[str], path: Path) -> str:
    """What goes on from a checkpoint: the command that was typed, with the path in it."""
    kept, skip = [], False
    for argument in arguments[1:]:
        if not skip and not argument.startswith("--ckpt_path="):
            kept.append(argument)
        skip = argument == "--ckpt_path"
    kept = [argument for argument in kept if argument != "--ckpt_path"]
    program = arguments[0].split() if " " in arguments[0] else ["python", arguments[0]]
    return shlex.join([*program, *kept, "--ckpt_path", str(path)])


def stop(cli: TrainCLI, typed: Sequence[str], reason: object, status: int) -> NoReturn:
    """Say in one line, once, why the run ends, and how it goes on."""
    if not cli.trainer.is_global_zero:
        sys.exit(status)
    saver = cli.saver
    if saver.saved is None:
        start = cli.config.ckpt_path
        fail(f"{reason}; nothing was saved" + (f" since {start}" if start else ""), status)
    path, step = saver.saved
    fail(f"{reason}; step {step} is saved; to go on: {resume_command(typed, path)}", status)


def main(args: list[str] | None = None) -> None:
    """Train.

    Args:
        args: The command line; None takes that of the process.
    """
    if args is not None:
        sys.argv[1:] = args
    try:
        _train()
    except KeyboardInterrupt:
        fail("interrupted", 130)


def _train() -> None:
    """Train as ``sys.argv`` says."""
    typed = list(sys.argv)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.* is deprecated")
    keep_memory()
    with checked_input():
        backbone = choose_config(tuple(BACKBONES))
        try:
            cli = TrainCLI(
                backbone,
                run=False,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                parser_kwargs={
                    "exit_on_error": False,
                    "description": __doc__,
                    "allow_abbrev": False,
                    "parser_mode": STRICT,
                },
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True},
                trainer_defaults={
                    "plugins": [{"class_path": "uvit_lit.training.saving.AtomicCheckpointIO"}],
                    "callbacks": [LossByTime(), LearningRateMonitor()],
                },
            )
        except (ArgumentError, MisconfigurationException) as error:
            fail(explain(str(error)), 2)
        # First of all callbacks: what the others do at the end of a step is not training time.
        cli.trainer.callbacks.insert(0, ImagesPerSecond())  # type: ignore[attr-defined]
        step = check_run(cli)
    if step is not None:
        note = f"already at step {step}; trainer.max_steps is {cli.trainer.max_steps}"
        print(f"note: {cli.config.ckpt_path} is {note}", file=sys.stderr)
        print(Path(cli.config.ckpt_path).parents[1])
        return
    if cli.config.compile:  # the loss alone: what draws images and figures runs rarely
        cli.model.denoiser.loss = torch.compile(cli.model.denoiser.loss)
    try:
        cli.trainer.fit(
            cli.model, datamodule=cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True
        )
    except MisconfigurationException as error:
        fail(error, 2)
    except FloatingPointError as error:
        stop(cli, typed, error, 1)
    except OSError as error:
        fail(error, 1)
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate" in str(error)):
            raise
        fail("out of memory: choose a smaller --data.batch_size", 1)
    except SystemExit:  # Lightning makes one of Ctrl-C
        if cli.trainer.interrupted:
            stop(cli, typed, f"interrupted at step {cli.trainer.global_step}", 130)
        raise
    finally:
        group = torch.distributed
        if group.is_available() and group.is_initialized() and group.get_backend() == "gloo":
            group.destroy_process_group()  # or its threads may abort the exit
    if cli.saver.terminated:
        stop(cli, typed, f"terminated at step {cli.trainer.global_step}", 143)
    print(cli.trainer.log_dir)


if __name__ == "__main__":
    main()
