"""When a run saves, how a save survives a kill, and from what a run goes on."""

import copy
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from packaging.version import InvalidVersion, Version

from uvit_lit.errors import InputError
from uvit_lit.files import write_torch
from uvit_lit.reading import difference
from uvit_lit.training.steps import StepCallback, check_finite, is_due


class Checkpoints(StepCallback, Checkpoint):
    """Write ``last.ckpt`` now and then and at the end of the run, and keep some for good.

    A run that gets SIGTERM, as a cluster sends it, saves after the step that it is in and ends.
    Weights that are not finite are not saved: the last good checkpoint stays.

    Attributes:
        saved: The newest checkpoint that this run has written, and its step; None at first.
        terminated: Whether SIGTERM came.

    Args:
        every_n_steps: Optimiser steps between two saves of ``last.ckpt``, at least 1.
        keep_every_n_steps: Steps between checkpoints that stay, as ``step=N.ckpt``; 0 keeps none.

    Raises:
        ValueError: If one is outside its range.
    """

    def __init__(self, every_n_steps: int = 1000, keep_every_n_steps: int = 0) -> None:
        if every_n_steps < 1 or keep_every_n_steps < 0:
            raise InputError(
                f"every_n_steps is {every_n_steps}, keep_every_n_steps {keep_every_n_steps}; "
                "accepted: at least 1 and at least 0"
            )
        self.every_n_steps, self.keep_every_n_steps = every_n_steps, keep_every_n_steps
        self.saved: tuple[Path, int] | None = None
        self.terminated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM over from Lightning, which would stop at once and save nothing.

        Lightning puts back what was there before the run.
        """
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, *_: Any) -> None:
        self.terminated = True

    def after_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Save what is due; Lightning runs this after the weights were averaged."""
        step = trainer.global_step
        if trainer.world_size > 1:  # the signal may reach the processes at different steps
            stop = trainer.strategy.reduce_boolean_decision(self.terminated, all=False)
            self.terminated = bool(stop)
        if self.terminated:  # at once: there may be little time, and no validation is due
            trainer.should_stop, trainer.limit_val_batches = True, 0
        if trainer.log_dir is None:
            return
        directory = Path(trainer.log_dir) / "checkpoints"
        names = [f"step={step}"] if is_due(step, self.keep_every_n_steps) else []
        if is_due(step, self.every_n_steps) or step == trainer.max_steps or trainer.should_stop:
            names.append("last")  # the newest file, from which a run goes on
        if names:
            check_finite(trainer, pl_module)
        for name in names:
            path = directory / f"{name}.ckpt"
            trainer.save_checkpoint(path, weights_only=False)
            self.saved = path, step


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replace a checkpoint in one move, so that a killed process leaves the old one or the new."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, *_: Any, **__: Any) -> None:
        """Write beside ``path``, then rename; an ``OSError`` leaves ``path`` as it was."""
        write_torch(Path(path), checkpoint)


def check_checkpoint(saved: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
    """Compare a checkpoint with what this run would save after a step.

    Args:
        saved: The content of a file.
        trainer: Of the run that is to go on.
        module: Of the same architecture as the one that was saved.

    Raises:
        ValueError: If an entry is missing, has another type, shape or range, or is not finite, or
            the counts of the steps contradict each other.
    """
    own = _example(trainer, module)
    if problem := difference(saved, own):
        raise InputError(f"it is no whole checkpoint of this run: {problem}")
    try:
        Version(saved["pytorch-lightning_version"])
    except InvalidVersion:
        raise InputError("it is no checkpoint of Lightning: it names no version") from None
    step = saved["global_step"]
    progress = saved["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    for name, value in (
        ("loops", progress["optimizer"]["step"]["total"]["completed"]),
        ("MovingAverage", saved["callbacks"]["MovingAverage"]["latest_update_step"]),
    ):
        if value != step:
            raise InputError(f"it contradicts itself: it is of step {step}, its {name} of {value}")


def _example(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """A checkpoint of this run, of which the numbers are none: its tensors are on ``meta``."""
    shadow = copy.deepcopy(module).to("meta")
    shadow.trainer = trainer
    optimizers: Any = shadow.configure_optimizers()
    (optimizer,), (schedule,) = optimizers
    for parameter in shadow.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    weights = shadow.state_dict()
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "",
        "state_dict": weights,
        "current_model_state": weights,
        "averaging_state": {"n_averaged": torch.tensor(0)},
        "loops": {"fit_loop": trainer.fit_loop.state_dict()},
        "callbacks": {"MovingAverage": {"latest_update_step": 0}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule["scheduler"].state_dict()],
        "hyper_parameters": {},
        "datamodule_hyper_parameters": {},
    }
