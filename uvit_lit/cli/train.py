"""Train a U-ViT, or a U-Net.

``python train.py --filter step`` trains the tiny CIFAR-10 model, with ``--backbone unet`` a U-Net
of its cost; ``--config configs/NAME.yaml`` chooses another recipe, every entry of which is also an
option; ``--ckpt_path last`` resumes.
"""

import argparse
import inspect
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from uvit_lit.cli.options import checked_input, fail
from uvit_lit.data.datamodule import ImageData
from uvit_lit.distributed import keep_memory
from uvit_lit.errors import InputError
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
from uvit_lit.training.saving import Checkpoints
from uvit_lit.weights import BACKBONES, backbone_arguments, load

PACKAGE = Path(__file__).parents[1]
CONFIGS = next(d for d in (PACKAGE / "configs", PACKAGE.parent / "configs") if d.is_dir())
"""The configurations: in the wheel inside the package, in the repository beside it."""

DEFAULT_CONFIGS = {name: CONFIGS / f"cifar10_{name}_tiny.yaml" for name in BACKBONES}
"""What a command line runs that names no configuration, by backbone."""


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
        parser.add_argument("--backbone", type=Literal[tuple(BACKBONES)], default=self.backbone,
                            help="the network")  # fmt: skip
        parser.link_arguments("backbone", "model.backbone")
        parser.add_argument("--filter", type=Literal[FILTERS], default="none",
                            help="low-pass on the long skips during training; of butterworth, "
                            "chebyshev and chebyshev2 s and the cutoff are learned")  # fmt: skip
        parser.add_argument("--s", type=float | None, default=None,
                            help="gain of the filter's passband; null is 0.9")  # fmt: skip
        parser.add_class_arguments(SkipSettings, skip={"filter", "s"}, as_group=False)
        parser.add_argument("--ckpt_path", type=str | None, default=None,
                            help="checkpoint to resume from; 'last' is the newest")  # fmt: skip
        for name in vars(UNCHANGED).keys() - {"s"}:
            parser.link_arguments(name, f"model.skip.{name}")
        parser.link_arguments(("filter", "s"), "model.skip.s", compute_fn=passband_gain)
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("model.img_size", "data.image_size")
        parser.add_lightning_class_args(MovingAverage, "ema")
        parser.add_lightning_class_args(SampleGrid, "samples")
        parser.add_lightning_class_args(SkipReport, "skips")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")

    def before_instantiate_classes(self) -> None:
        """Resolve the checkpoint to resume from; its run continues in its own directory."""
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
        path = find_checkpoint(self.config.ckpt_path, runs)
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
    own = {
        **model.hparams, **backbone_arguments(backbone, model.hparams), **model.hparams["skip"]
    }  # fmt: skip
    decided = ("schedule", "prediction", "lr", "filter_lr", "weight_decay", "betas",
               "optimizer", "train")  # fmt: skip
    network = (arguments.keys() | arguments["skip"].keys()) - {"grad_checkpoint", "skip"}
    for name in (*sorted(network), *decided):
        here, there = (tuple(v) if isinstance(v, list) else v for v in (own[name], saved[name]))
        if here != there:
            raise InputError(f"{name} is {here} here and {there} in the checkpoint")


def check_run(cli: TrainCLI) -> None:
    """Load the data and compare what must agree, before anything is written.

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
        raise InputError("limit_train_batches would repeat the same batches; leave it out, and set "
                         "--trainer.max_steps")  # fmt: skip
    if trainer.accumulate_grad_batches < 1:
        raise InputError(
            f"accumulate_grad_batches is {trainer.accumulate_grad_batches}; accepted: at least 1"
        )
    if trainer.val_check_interval == 0:
        raise InputError("val_check_interval is 0; accepted: at least 1, or limit_val_batches 0")
    if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
        raise InputError("a strategy that cuts the weights leaves no moving average of them; "
                         "accepted: auto, ddp")  # fmt: skip
    if cli.config.ckpt_path:
        saved = load(Path(cli.config.ckpt_path))
        if "hyper_parameters" not in saved:
            raise InputError(f"checkpoint {cli.config.ckpt_path} was not written by train.py")
        check_resume(model, saved["hyper_parameters"])
        there = saved.get("datamodule_hyper_parameters", {}).get("autoencoder")
        if there != data.hparams["autoencoder"]:
            raise InputError(
                f"data.autoencoder is {data.hparams['autoencoder']} here and {there} in the "
                "checkpoint"
            )
    if trainer.precision not in PRECISIONS:
        raise InputError(f"precision is {trainer.precision}; accepted: {', '.join(PRECISIONS)}")
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return  # the first process checks, downloads and encodes; Lightning sets up the others
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


def choose_config() -> str:
    """Find the backbone, and add its default configuration to a command line that names none.

    Returns:
        One of ``BACKBONES``: what the command line says, else the last configuration that does.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--backbone", default="")
    try:
        args = parser.parse_known_args()[0]
    except argparse.ArgumentError as error:
        fail(error, 2)
    backbones = ["uvit"]
    for path in args.config:
        if not Path(path).is_file():
            fail(f"configuration {path} does not exist", 2)
        try:
            backbones.append(yaml.safe_load(Path(path).read_text())["backbone"])
        except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
            continue  # the parser itself says what is wrong
    backbone = args.backbone or backbones[-1]
    if backbone not in BACKBONES:
        fail(f"backbone is {backbone!r}; accepted: {', '.join(BACKBONES)}", 2)
    if not args.config:
        sys.argv[1:1] = ["--config", str(DEFAULT_CONFIGS[backbone])]
    return backbone


def main(args: list[str] | None = None) -> None:
    """Train.

    Args:
        args: The command line; None takes that of the process.
    """
    if args is not None:
        sys.argv[1:] = args
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.* is deprecated")
    backbone = choose_config()
    keep_memory()
    with checked_input():
        try:
            cli = TrainCLI(
                backbone,
                run=False,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                parser_kwargs={"exit_on_error": False, "description": __doc__},
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True},
                trainer_defaults={
                    "plugins": [{"class_path": "uvit_lit.training.saving.AtomicCheckpointIO"}],
                    "callbacks": [LossByTime(), LearningRateMonitor()],
                },
            )
        except (ArgumentError, MisconfigurationException) as error:
            fail(error, 2)
        # First of all callbacks: what the others do at the end of a step is not training time.
        cli.trainer.callbacks.insert(0, ImagesPerSecond())  # type: ignore[attr-defined]
        check_run(cli)
    try:
        cli.trainer.fit(
            cli.model, datamodule=cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True
        )
    except MisconfigurationException as error:
        fail(error, 2)
    except (OSError, FloatingPointError) as error:
        fail(error, 1)
    except torch.OutOfMemoryError:
        fail("out of memory: choose a smaller --data.batch_size", 1)
    finally:
        group = torch.distributed
        if group.is_available() and group.is_initialized() and group.get_backend() == "gloo":
            group.destroy_process_group()  # or its threads may abort the exit
    print(cli.trainer.log_dir)


if __name__ == "__main__":
    main()
