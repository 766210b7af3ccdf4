"""What happens once after an optimiser step."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


def is_logged(trainer: Trainer, step: int) -> bool:
    """Whether the trainer writes what is logged at this optimiser step."""
    return is_due(step, trainer.log_every_n_steps)  # type: ignore[attr-defined]


def is_due(step: int, every: int) -> bool:
    """Whether a step is one of every so many; of every 0 none is."""
    return every > 0 and step % every == 0


def check_finite(trainer: Trainer, module: LightningModule) -> None:
    """Look whether the losses so far and the weights are finite; this waits for the device.

    Raises:
        FloatingPointError: If they are not.
    """
    step = trainer.global_step
    wrong = int(module.first_wrong_step)  # type: ignore[arg-type]
    if wrong >= 0:
        raise FloatingPointError(f"training diverged: the loss is not finite at step {wrong}")
    if not torch.stack([p.isfinite().all() for p in module.parameters()]).all():
        raise FloatingPointError(f"training diverged: the weights are not finite at step {step}")


class StepCallback(Callback):
    """Acts once after every optimiser step: not for each accumulated batch, nor on resuming."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not repeat what the run did at the step that it goes on from."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Call ``after_step`` if the batch ended a step."""
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self.after_step(trainer, pl_module, batch)

    def after_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """What is to happen after step ``trainer.global_step``, whose last batch this is."""
        raise NotImplementedError
