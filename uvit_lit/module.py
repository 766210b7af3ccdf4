"""The LightningModule: loss, optimiser groups, warm-up."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from uvit_lit.denoiser import Denoiser
from uvit_lit.uvit import UViT


def is_logged(trainer: Trainer, step: int) -> bool:
    """Whether the trainer writes what is logged at this optimiser step."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and step % every == 0


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters for AdamW: weights of linear and convolution layers decay, the rest not.

    Args:
        model: Any module.
        weight_decay: Decay of the first group.

    Returns:
        Two parameter groups; biases, norms, embeddings and positions are in the second.
    """
    decay = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.requires_grad
    ]
    decayed = {id(parameter) for parameter in decay}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in decayed]
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


class DiffusionModule(LightningModule):
    """Train a U-ViT denoiser.

    Args:
        schedule: Noise schedule: vp, linear, cosine or sd.
        prediction: What the network predicts: eps, x0 or v.
        class_dropout: Fraction of the labels, in [0, 1), that training replaces by the null
            class, so that guidance has an unconditional model.
        lr: Learning rate after the warm-up.
        weight_decay: Decay of the weights of linear and convolution layers.
        betas: AdamW's decay rates of the moments.
        warmup_steps: Steps over which the learning rate rises linearly.
        **uvit: Arguments of ``UViT``: sizes, classes, and what acts on the long skips.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        schedule: str = "vp",
        prediction: str = "eps",
        class_dropout: float = 0.1,
        lr: float = 2e-4,
        weight_decay: float = 0.03,
        betas: tuple[float, float] = (0.99, 0.999),
        warmup_steps: int = 2500,
        **uvit: Any,
    ) -> None:
        super().__init__()
        if not 0 <= class_dropout < 1:
            raise ValueError(f"class_dropout is {class_dropout}; accepted: from 0 to below 1")
        if not lr > 0:
            raise ValueError(f"lr is {lr}; accepted: above 0")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay is {weight_decay}; accepted: 0 or more")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; accepted: two numbers from 0 to below 1")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps is {warmup_steps}; accepted: 0 or more")
        self.save_hyperparameters()
        self.denoiser = Denoiser(UViT(**uvit), schedule, prediction)
        self.class_dropout = class_dropout
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.warmup_steps = warmup_steps

    def _losses(self, batch: dict[str, Any], class_dropout: float) -> tuple[Tensor, Tensor]:
        """Per-image losses and their times; all randomness comes from the batch's seed."""
        x0, y = batch["image"], batch["label"]
        generator = torch.Generator(x0.device).manual_seed(batch["seed"])
        uniform = torch.rand(len(x0), generator=generator, device=x0.device)
        t = self.denoiser.schedule.times(uniform)
        eps = torch.randn(x0.shape, generator=generator, device=x0.device)
        drop = torch.rand(len(x0), generator=generator, device=x0.device) < class_dropout
        y = torch.where(drop, self.denoiser.backbone.null_class, y)
        return self.denoiser.loss(x0, eps, t, y), t

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Loss of one batch, with what the callbacks log."""
        losses, t = self._losses(batch, self.class_dropout)
        loss = losses.mean()
        self.log("train/loss", loss.detach(), prog_bar=True)
        return {"loss": loss, "losses": losses.detach(), "t": t}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss on held-out images with the averaged weights, at the same noise every time."""
        losses, _ = self._losses(batch, class_dropout=0.0)
        self.log("val/loss", losses.mean(), prog_bar=True, sync_dist=True, batch_size=len(losses))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient norm before clipping, on the steps that are logged."""
        if is_logged(self.trainer, self.global_step + 1):
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/gradient_norm", nn.utils.get_total_norm(gradients))

    def configure_optimizers(self) -> Any:
        """AdamW with a linear warm-up, then a constant rate."""
        groups = decay_groups(self.denoiser, self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)
        warmup = max(self.warmup_steps, 1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, 1.0)
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
