"""When a run saves, and how a save survives a kill."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from uvit_lit.files import write_torch


class Checkpoints(Checkpoint):
    """Write ``last.ckpt`` now and then and at the end of the run, and keep some for good.

    Args:
        every_n_steps: Optimiser steps between two saves of ``last.ckpt``, at least 1.
        keep_every_n_steps: Steps between checkpoints that stay, as ``step=N.ckpt``; 0 keeps none.

    Raises:
        ValueError: If one is outside its range.
    """

    def __init__(self, every_n_steps: int = 1000, keep_every_n_steps: int = 0) -> None:
        if every_n_steps < 1 or keep_every_n_steps < 0:
            raise ValueError(
                f"every_n_steps is {every_n_steps}, keep_every_n_steps {keep_every_n_steps}; "
                "accepted: at least 1 and at least 0"
            )
        self.every_n_steps, self.keep_every_n_steps = every_n_steps, keep_every_n_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not repeat the save that a resumed run starts from."""
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save what is due; Lightning runs this after the weights were averaged."""
        step = trainer.global_step
        if step == self._last_step or trainer.log_dir is None:
            return
        self._last_step = step
        directory = Path(trainer.log_dir) / "checkpoints"
        ending = step == trainer.max_steps or trainer.should_stop
        if step % self.every_n_steps == 0 or ending:
            trainer.save_checkpoint(directory / "last.ckpt", weights_only=False)
        if self.keep_every_n_steps and step % self.keep_every_n_steps == 0:
            trainer.save_checkpoint(directory / f"step={step}.ckpt", weights_only=False)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replace a checkpoint in one move, so that a killed process leaves the old one or the new."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, *_: Any, **__: Any) -> None:
        """Write beside ``path``, then rename; an ``OSError`` leaves ``path`` as it was."""
        write_torch(Path(path), checkpoint)
