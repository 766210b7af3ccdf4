"""Train a U-ViT, or a U-Net.

``python train.py --filter step`` trains the tiny CIFAR-10 model, and with ``--backbone unet`` a
U-Net of the same cost. ``--config configs/NAME.yaml`` chooses another recipe; every entry of it is
also an option. ``--ckpt_path last`` resumes the newest run.
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
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from uvit_lit.cli import Terminated
from uvit_lit.cli.checks import check_newest, check_nulls, check_run, check_trainer
from uvit_lit.cli.config import STRICT, choose_config
from uvit_lit.cli.options import checked_input, fail
from uvit_lit.data.datamodule import ImageData
from uvit_lit.distributed import keep_memory
from uvit_lit.errors import InputError, require
from uvit_lit.families import FILTERS
from uvit_lit.files import tidy
from uvit_lit.model import find_checkpoint
from uvit_lit.options import SEEDS
from uvit_lit.settings import UNCHANGED, SkipSettings
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
from uvit_lit.weights import BACKBONES

_hints = inspect.unwrap(Trainer.__init__).__annotations__
_hints |= {
    # typing has one object for Union[int, float] and Union[float, int]: that of the library which
    # was imported first. In this order a whole number stays one, as a number of batches must.
    name: int | float | None
    for name, hint in _hints.items()
    if set(get_args(hint)) == {int, float, type(None)}
}


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
            help="low-pass on the long skips during training; butterworth, "
            "chebyshev and chebyshev2 learn s and the cutoff, flat learns s",
        )
        parser.add_argument(
            "--s",
            type=float | None,
            default=None,
            help="gain of the filter's passband; null means 0.9 with a filter",
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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the command line; Lightning has a traceback for a seed that NumPy does not take."""
        super().parse_arguments(parser, args)
        seed = self.config.seed_everything
        require(0 <= seed < SEEDS, "seed_everything", seed, "0 to below 2^32")

    @property
    def saver(self) -> Checkpoints:
        """The callback that saves."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return next(c for c in callbacks if isinstance(c, Checkpoints))

    def before_instantiate_classes(self) -> None:
        """Resolve the checkpoint to resume from; its run continues in its own directory."""
        check_nulls(self.config)
        check_trainer(self.config.trainer)
        if self.config.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(RunProgressBar())
        logger = self.config.trainer.logger
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        self.is_new = first and getattr(logger, "init_args", {}).get("version") is None
        runs = Path(getattr(logger, "init_args", {}).get("save_dir", "runs"))
        for directory in (*runs.glob("*/version_*"), *runs.glob("*/version_*/checkpoints")):
            tidy(directory)
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
        number = re.fullmatch(r"version_(\d+)", version.name)
        siblings = path.parent.glob("*.ckpt")
        newest = path == max(siblings, key=lambda p: p.stat().st_mtime, default=None)
        # From an older checkpoint a new version branches off; the newer ones stay.
        if number and path.parent.name == "checkpoints" and newest and hasattr(logger, "init_args"):
            logger.init_args["save_dir"] = str(version.parent.parent)
            logger.init_args["name"] = version.parent.name
            logger.init_args["version"] = int(number[1])
            self.is_new = False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; what Lightning refuses is a mistake in an option."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"the options of trainer are refused: {error}") from None


def claim_version(logger: Any) -> None:
    """Make the directory of a new run, so that no other process takes its number."""
    while isinstance(logger, TensorBoardLogger):
        try:
            Path(logger.log_dir).mkdir(parents=True)
            return
        except FileExistsError:
            logger._version = int(logger.version) + 1


def explain(message: str) -> str:
    """One line for an error of jsonargparse: the option, its value, and what is accepted."""
    text = " ".join(message.split())
    key = re.search(r'Parser key "([\w.]+)"', text)
    given = re.search(r"(?:Got|Given) value: (.*)$", text)
    kinds = re.findall(
        r"Expected a (?:<class '([\w.]+)'>|typing\.Literal\[(.*?)\]|(tuple) with \d elements)", text
    )
    if not (key and given and kinds):
        return text
    words = {"NoneType": "null", "str": "text", "tuple": "two numbers, such as [0,1]"}
    named = [(kind or pair, choices) for kind, choices, pair in kinds]
    accepted = [words.get(kind, f"of type {kind}") if kind else choices for kind, choices in named]
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
    is_script = not arguments[0].startswith("uvit-lit ")
    program = ["python", arguments[0]] if is_script else arguments[0].split()
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
    typed = list(sys.argv)
    sys.argv = ["--help" if word == "--help_all" else word for word in sys.argv]
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.* is deprecated")
    keep_memory()
    with checked_input(batch_size="--data.batch_size"):
        cli = read_command_line()
        step = check_run(cli)
        if step is None:
            if cli.is_new:
                claim_version(cli.trainer.logger)
            fit(cli, typed)
            print(cli.trainer.log_dir)
            return
    note = f"already at step {step}; trainer.max_steps is {cli.trainer.max_steps}"
    print(f"note: {cli.config.ckpt_path} is {note}", file=sys.stderr)
    print(Path(cli.config.ckpt_path).parents[1])


def read_command_line() -> TrainCLI:
    """The parts of a run, from ``sys.argv``.

    Raises:
        ValueError: If an option is not accepted.
    """
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
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={
                "plugins": [{"class_path": "uvit_lit.training.saving.AtomicCheckpointIO"}],
                "callbacks": [LossByTime(), LearningRateMonitor()],
            },
        )
    except (ArgumentError, MisconfigurationException) as error:
        raise InputError(explain(str(error))) from None
    # First of all callbacks: what the others do at the end of a step is not training time.
    cli.trainer.callbacks.insert(0, ImagesPerSecond())  # type: ignore[attr-defined]
    return cli


def fit(cli: TrainCLI, typed: Sequence[str]) -> None:
    """Train to the end, or say in one line why the run ends, and how it goes on."""
    if cli.config.compile:  # the loss alone: what draws images and figures runs rarely
        cli.model.denoiser.loss = torch.compile(cli.model.denoiser.loss)
    try:
        cli.trainer.fit(
            cli.model, datamodule=cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True
        )
    except MisconfigurationException as error:
        raise InputError(error) from None
    except FloatingPointError as error:
        stop(cli, typed, error, 1)
    except InputError as error:  # an item of a data set of one's own
        stop(cli, typed, error, 2)
    except SystemExit as error:  # Lightning makes one of Ctrl-C
        if not cli.trainer.interrupted:
            raise
        terminated = isinstance(error.__context__, Terminated)
        word, status = ("terminated", 143) if terminated else ("interrupted", 130)
        stop(cli, typed, f"{word} at step {cli.trainer.global_step}", status)
    finally:
        group = torch.distributed
        if group.is_available() and group.is_initialized() and group.get_backend() == "gloo":
            group.destroy_process_group()  # or its threads may abort the exit
    if cli.saver.terminated:
        stop(cli, typed, f"terminated at step {cli.trainer.global_step}", 143)
