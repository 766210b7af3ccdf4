"""The moving average, which a model samples with, and what a run shows: bar, logs and pictures."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar, WeightAveraging
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from torchvision.utils import make_grid
from tqdm import tqdm

from uvit_lit.errors import InputError, require
from uvit_lit.files import write
from uvit_lit.options import check_seeds
from uvit_lit.plots import plot_gains, plot_spectra
from uvit_lit.sampling import check_steps, find_solver, sample, to_uint8
from uvit_lit.skips import SkipModulation
from uvit_lit.training.module import DiffusionModule
from uvit_lit.training.steps import StepCallback, check_finite, is_due, is_logged


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights, updated after every optimiser step.

    It is where the model is, and its count on the CPU, so that no step waits for a device.

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
        require(0 <= decay < 1, "decay", decay, "from 0 to below 1")
        super().__init__(device="cpu", use_buffers=False)
        self.decay, self.warmup = decay, warmup

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the model to its device."""
        assert self._average_model is not None
        self._average_model.module.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """Update after the last batch of an optimiser step."""
        if trainer.global_step > self._latest_update_step:
            self.update(pl_module)
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def update(self, pl_module: LightningModule) -> None:
        """Take the weights of a module into the average; the first ones are the average.

        ``AveragedModel.update_parameters`` would ask the device for the count in every step.
        """
        average = self._average_model
        assert average is not None
        n = int(average.n_averaged)
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        averages: list[Tensor] = list(average.module.parameters())
        weights: list[Tensor] = list(pl_module.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay if n else 1.0)
        average.n_averaged += 1


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


@contextmanager
def evaluating(module: LightningModule) -> Iterator[None]:
    """Put a module into evaluation mode, without dropout, for a while."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _writer(trainer: Trainer) -> Any:
    """TensorBoard's writer on the first process, None elsewhere or with another logger."""
    logger = trainer.logger
    if trainer.is_global_zero and isinstance(logger, TensorBoardLogger):
        return logger.experiment
    return None


class RunProgressBar(TQDMProgressBar):
    """One bar over the whole run, with rate and time left, also after a resume.

    Its loss is that of the last logged step: a device is not asked for more.
    """

    @property
    def total_train_batches(self) -> int | float:
        """Batches of the whole run."""
        if self.trainer.max_steps < 0:
            return float("inf")
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        """Start the bar where the run stands."""
        super().on_train_start(trainer, *args)
        bar = self.train_progress_bar
        bar.total = self.total_train_batches
        bar.n = bar.initial = trainer.global_step * trainer.accumulate_grad_batches

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands beside the bar."""
        if is_logged(trainer, trainer.global_step) or not hasattr(self, "_shown"):
            losses = {k: v for k, v in trainer.callback_metrics.items() if k == "train/loss"}
            loss = {name: f"{float(value):.3g}" for name, value in losses.items()}
            self._shown = {**super().get_metrics(trainer, pl_module), **loss}
        return self._shown

    def on_train_epoch_start(self, *_: Any) -> None:
        """Keep the bar: the run is one endless epoch."""


class LossByTime(StepCallback):
    """Loss in each quarter of t: in training since the last logged step, and of a validation.

    A validation has its loss over all t too, ``val/loss``, as the mean over the images of all
    processes. Lightning's own mean would cut the mean number of images per process to an integer.

    ``train/loss_max`` is the largest loss of a batch since the last logged step, so that a spike
    between two of them shows. All of them are means of the squared error without the weight of
    ``train/loss``.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with empty sums."""
        super().on_train_start(trainer, pl_module)
        self.training = torch.zeros(2, 4, device=pl_module.device)
        self.largest = torch.zeros((), device=pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Add the batch to the sums."""
        self._add(self.training, outputs)
        self.largest = torch.maximum(self.largest, outputs["losses"].mean())
        super().on_train_batch_end(trainer, pl_module, outputs, *args)

    def after_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Log the means and empty the sums on the steps that are logged.

        Raises:
            FloatingPointError: If the losses or the weights are not finite.
        """
        if is_logged(trainer, trainer.global_step):
            check_finite(trainer, pl_module)
            self._log(pl_module, "train", self.training)
            pl_module.log("train/loss_max", self.largest)
            self.training.zero_()
            self.largest = torch.zeros_like(self.largest)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with empty sums."""
        self.validation = torch.zeros(2, 4, device=pl_module.device)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Add the batch to the sums."""
        self._add(self.validation, outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means over all processes."""
        sums = trainer.strategy.reduce(self.validation, reduce_op="sum")
        total, count = sums.sum(1)
        pl_module.log("val/loss", total / count, prog_bar=True, sync_dist=True)
        self._log(pl_module, "val", sums)

    @staticmethod
    def _add(sums: Tensor, outputs: Any) -> None:
        losses, t = outputs["losses"], outputs["t"]
        quarter = (t * 4).long().clamp(max=3)
        sums.index_add_(1, quarter, torch.stack([losses, torch.ones_like(losses)]))

    @staticmethod
    def _log(pl_module: LightningModule, stage: str, sums: Tensor) -> None:
        names = ("t_0.00-0.25", "t_0.25-0.50", "t_0.50-0.75", "t_0.75-1.00")
        for name, mean in zip(names, (sums[0] / sums[1]).tolist(), strict=True):
            if mean == mean:  # a quarter without images has no mean
                pl_module.log(f"{stage}/loss_{name}", mean, sync_dist=stage == "val")


class ImagesPerSecond(StepCallback):
    """Training speed over all devices between two logged steps.

    The clock stops at a logged step and starts with the next batch. Validation, sampling and saving
    are not counted if they fall on logged steps and this callback comes before those that do them.
    The device is not synchronised: over many steps the queue evens out.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with nothing counted."""
        super().on_train_start(trainer, pl_module)
        self.images = 0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock with the first batch after a logged step."""
        if self.images == 0:
            self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Count."""
        self.images += len(outputs["t"]) * trainer.world_size
        super().on_train_batch_end(trainer, pl_module, outputs, *args)

    def after_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Log on the steps that are logged."""
        if is_logged(trainer, trainer.global_step):
            rate = self.images / (time.perf_counter() - self.started)
            pl_module.log("train/images_per_second", rate)
            self.images = 0


class SampleGrid(StepCallback):
    """Log a grid of samples of the averaged weights, from the same seeds every time.

    Args:
        every_n_steps: Optimiser steps between two grids, at least 1; the last step has one too.
        count: Number of images; the classes take turns.
        seed: Seed of the first image; the next have the next ones, all below 2^32.
        solver: As ``uvit_lit.sampling.find_solver`` takes it, such as dpmpp or module:function.
        steps: Steps of the solver.
        columns: Images per row of the grid.

    Raises:
        ValueError: If a value is outside its range.
    """

    def __init__(
        self,
        every_n_steps: int = 5000,
        count: int = 50,
        seed: int = 0,
        solver: str = "dpmpp",
        steps: int = 25,
        columns: int = 10,
    ) -> None:
        if min(every_n_steps, count, columns) < 1:
            raise InputError(
                f"every_n_steps is {every_n_steps}, count {count}, columns {columns}; "
                "accepted: at least 1"
            )
        check_seeds(range(seed, seed + count))
        find_solver(solver)
        check_steps(steps)
        self.every_n_steps, self.columns = every_n_steps, columns
        self.count, self.seed, self.solver, self.steps = count, seed, solver, steps

    def after_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Draw the grid when it is due."""
        step, writer = trainer.global_step, _writer(trainer)
        due = is_due(step, self.every_n_steps) or step == trainer.max_steps
        if not due or writer is None:
            return
        check_finite(trainer, pl_module)
        assert isinstance(pl_module, DiffusionModule)
        with averaged_weights(trainer, pl_module), evaluating(pl_module):
            images = self._sample(trainer, pl_module)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data.autoencoder is not None:
            images = data.autoencoder.to(pl_module.device).decode(images)
        grid = make_grid(to_uint8(images), nrow=self.columns)
        writer.add_image("samples", grid.repeat_interleave(2, 1).repeat_interleave(2, 2), step)

    def _sample(self, trainer: Trainer, pl_module: DiffusionModule) -> Tensor:
        backbone = pl_module.denoiser.backbone
        classes = backbone.num_classes
        return sample(
            pl_module.denoiser,
            (backbone.in_chans, backbone.img_size, backbone.img_size),
            [self.seed + k for k in range(self.count)],
            [k % classes for k in range(self.count)] if classes else None,
            solver=self.solver,
            steps=self.steps,
            precision=trainer.precision,
            device=pl_module.device,
        )


class SkipReport(StepCallback):
    """Log what acts on the long skips: numbers at every logged step, figures now and then.

    The numbers are s, b and cutoff of each long skip. The figures are the gain of each over
    frequency, and the radial power spectra of skip and backbone features before and after, on the
    images of the step at t = 0.5. A learned cutoff within a hundredth of its range from a bound
    gets one line on stderr.

    Args:
        every_n_steps: Optimiser steps between two sets of figures, at least 1; the last step has
            one too. They show the averaged weights.

    Raises:
        ValueError: If it is below 1.
    """

    def __init__(self, every_n_steps: int = 1000) -> None:
        require(every_n_steps >= 1, "every_n_steps", every_n_steps, "at least 1")
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing has been warned of."""
        super().on_train_start(trainer, pl_module)
        self._warned: set[tuple[int, str]] = set()

    def after_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Log what is due."""
        step = trainer.global_step
        assert isinstance(pl_module, DiffusionModule)
        denoiser = pl_module.denoiser
        long_skips = list(denoiser.backbone.long_skips)
        if is_logged(trainer, step):
            for i, long_skip in enumerate(long_skips):
                chosen = long_skip.settings
                names = ("s", "b") if chosen.filter == "none" else ("s", "b", "cutoff")
                pl_module.log_dict({f"skips/{name}_{i}": getattr(chosen, name) for name in names})
                if trainer.is_global_zero:
                    self._warn(i, long_skip)
        due = is_due(step, self.every_n_steps) or step == trainer.max_steps
        writer = _writer(trainer)
        if not due or writer is None:
            return
        check_finite(trainer, pl_module)
        y = batch["label"] if denoiser.backbone.num_classes else None
        with averaged_weights(trainer, pl_module), evaluating(pl_module):
            writer.add_figure("skips/gain", plot_gains(long_skips), step)
            with trainer.precision_plugin.forward_context():
                spectra = plot_spectra(denoiser, batch["image"], y)
            writer.add_figure("skips/spectra", spectra, step)

    def _warn(self, index: int, long_skip: SkipModulation) -> None:
        """Say once that a cutoff sits at its bound."""
        if "cutoff" not in long_skip.learned:
            return
        cutoff: Any = long_skip.learned["cutoff"]
        value, margin = cutoff.number(), 0.01 * (cutoff.high - cutoff.low)
        for bound, end, sits in (
            ("lower", cutoff.low, value < cutoff.low + margin),
            ("upper", cutoff.high, value > cutoff.high - margin),
        ):
            if sits and (index, bound) not in self._warned:
                self._warned.add((index, bound))
                tqdm.write(
                    f"warning: the cutoff of long skip {index} sits at its {bound} bound {end:.3f}",
                    file=sys.stderr,
                )


class SaveConfig(SaveConfigCallback):
    """Save the configuration beside the checkpoints and show it in TensorBoard."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the directory, on which all processes agree."""
        self.directory = trainer.log_dir
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration, also as text, and the hyper-parameters with their metrics."""
        text = self.parser.dump(self.config, skip_none=False)
        if self.directory is not None:  # Lightning would truncate a file that is there already
            write(Path(self.directory) / "config.yaml", text.encode())
        writer = _writer(trainer)
        if writer is None:
            return
        indented = "\n".join(f"    {line}" for line in text.splitlines())
        writer.add_text("config", indented, trainer.global_step)
        values = {
            k: v if isinstance(v, int | float | str) else str(v)
            for k, v in pl_module.hparams.items()
            if not k.startswith("_")
        }
        for summary in hparams(values, {"val/loss": None, "train/loss": None}):
            writer.file_writer.add_summary(summary)
