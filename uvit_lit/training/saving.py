"""When a run saves, and how a save survives a kill."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from uvit_lit.errors import InputError
from uvit_lit.files import write_torch
from uvit_lit.training.steps import StepCallback, is_due


class Checkpoints(StepCallback, Checkpoint):
    """Write ``last.ckpt`` now and then and at the end of the run, and keep some for good.

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

    def after_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Save what is due; Lightning runs this after the weights were averaged."""
        step = trainer.global_step
        if trainer.log_dir is None:
            return
        directory = Path(trainer.log_dir) / "checkpoints"
        ending = step == trainer.max_steps or trainer.should_stop
        if is_due(step, self.keep_every_n_steps):
            trainer.save_checkpoint(directory / f"step={step}.ckpt", weights_only=False)
        if is_due(step, self.every_n_steps) or ending:  # the newest file, from which a run goes on
            trainer.save_checkpoint(directory / "last.ckpt", weights_only=False)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replace a checkpoint in one move, so that a killed process leaves the old one or the new."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, *_: Any, **__: Any) -> None:
        """Write beside ``path``, then rename; an ``OSError`` leaves ``path`` as it was."""
        write_torch(Path(path), checkpoint)
