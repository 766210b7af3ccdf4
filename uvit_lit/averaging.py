"""The moving average of the weights, which is what a model samples with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights, updated after every optimiser step.

    Args:
        decay: Share of the old average in the new one, in [0, 1): an average over about
            1 / (1 - decay) steps.
        warmup: Whether the decay is at most (1 + n) / (10 + n) after n steps, an average over a
            tenth of the run so far, so that the first weights are forgotten. The official U-ViT
            code has none.

    Raises:
        ValueError: If the decay is outside its range.
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; accepted: from 0 to below 1")

        def update(averages: Any, weights: Any, count: Any) -> None:
            n = int(count)
            now = min(decay, (1 + n) / (10 + n)) if warmup else decay
            get_ema_multi_avg_fn(now)(averages, weights, count)

        super().__init__(use_buffers=False, multi_avg_fn=update)


@contextmanager
def averaged_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Put the averaged weights of a ``WeightAveraging`` callback into the module for a while."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    averages = [c for c in callbacks if isinstance(c, WeightAveraging)]
    for average in averages:
        average._swap_models(module)
    try:
        yield
    finally:
        for average in averages:
            average._swap_models(module)
