"""What happens once after an optimiser step."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


def is_logged(trainer: Trainer, step: int) -> bool:
    """Whether the trainer writes what is logged at this optimiser step."""
    return is_due(step, trainer.log_every_n_steps)  # type: ignore[attr-defined]


def is_due(step: int, every: int) -> bool:
    """Whether a step is one of every so many; of every 0 none is."""
    return every > 0 and step % every == 0


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
