"""The LightningModule: loss, what is trained, optimiser groups, warm-up."""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from uvit_lit.data.datamodule import derive_seed
from uvit_lit.diffusion import Denoiser
from uvit_lit.errors import InputError, require, require_choice
from uvit_lit.families import LEARNED
from uvit_lit.model import find_checkpoint
from uvit_lit.settings import UNCHANGED, SkipSettings, Window, choose_skips
from uvit_lit.training.optim import Muon
from uvit_lit.training.start import initialise
from uvit_lit.training.steps import is_logged
from uvit_lit.weights import backbone_arguments, build_backbone

OPTIMIZERS = ("adamw", "muon")
"""Optimisers by name."""

LOSS_WEIGHTS = ("plain", "velocity")
"""What the squared error of the prediction is weighted by."""

TRAIN = ("all", "filters")
"""What of the model training moves."""


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed torch's generators of the CPU and of a device; ``torch.manual_seed`` takes 1 ms."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def parameter_groups(
    denoiser: Denoiser, lr: float, weight_decay: float, filter_lr: float, muon: bool = False
) -> list[dict[str, Any]]:
    """Split the parameters that train into groups for AdamW or Muon.

    Args:
        denoiser: A denoiser.
        lr: Learning rate of the network.
        weight_decay: Decay of the weights of its linear and convolution layers.
        filter_lr: Learning rate of what the long skips learn, as a multiple of ``lr``.
        muon: Whether the matrices of the blocks are set apart, with the number that ``Muon`` needs.

    Returns:
        Those of the groups that are not empty, named ``qkv`` and ``matrices`` (of the blocks, for
        Muon), ``decay``, ``no_decay`` (biases, norms, embeddings, positions) and ``filters`` (which
        do not decay either).
    """
    backbone = denoiser.backbone
    matrices = backbone.matrices() if muon else {}
    groups: list[dict[str, Any]] = [
        {
            "name": "filters",
            "params": list(backbone.long_skips.parameters()),
            "weight_decay": 0.0,
            "lr": lr * filter_lr,
        },
        {"name": "qkv", "params": matrices.get(3, []), "weight_decay": weight_decay, "matrices": 3},
        {
            "name": "matrices",
            "params": matrices.get(1, []),
            "weight_decay": weight_decay,
            "matrices": 1,
        },
        {
            "name": "decay",
            "params": [
                m.weight for m in denoiser.modules() if isinstance(m, nn.Linear | nn.Conv2d)
            ],
            "weight_decay": weight_decay,
        },
        {"name": "no_decay", "params": list(denoiser.parameters()), "weight_decay": 0.0},
    ]
    taken: set[int] = set()  # a parameter belongs to the first group that names it
    for group in groups:
        named = [p for p in group["params"] if id(p) not in taken]
        taken |= {id(p) for p in named}
        group["params"] = [p for p in named if p.requires_grad]
        group.setdefault("lr", lr)
    return [group for group in groups[1:] + groups[:1] if group["params"]]


class DiffusionModule(LightningModule):
    """Train a denoiser.

    Args:
        schedule: Noise schedule: vp, linear, cosine or sd.
        prediction: What the network predicts: eps, x0 or v.
        class_dropout: Fraction of the labels, in [0, 1), that training replaces by the null
            class, so that guidance has an unconditional model.
        lr: Learning rate after the warm-up.
        weight_decay: Decay of the weights of linear and convolution layers.
        betas: AdamW's decay rates of the moments; the first is Muon's momentum too.
        optimizer: ``adamw``, or ``muon``: Muon for the matrices of the blocks, AdamW for the rest.
        warmup_steps: Steps over which the learning rate rises linearly.
        cooldown: Share of the run, in [0, 1), at its end, over which it falls linearly towards 0.
            With another ``max_steps`` a resumed run cools down at another time.
        log_ratio: Mean and standard deviation of log(alpha / sigma), which is normal over the
            training images; None draws t evenly from [0, 1], as the validation does.
        loss_weight: ``plain``, the squared error of the prediction, or ``velocity``
            (``Denoiser.velocity_weight``). What is logged by time is not weighted, nor is the
            validation.
        cfg: Weight of classifier-free guidance, at least 1, that the model learns to have without
            guidance (``Denoiser.loss``), which takes one more forward pass a step.
        cfg_range: First and last t in [0, 1] at which it does.
        init_from: Checkpoint whose weights training starts from. What its long skips learned is
            taken over where this model learns the same.
        train: What moves: ``all``, or ``filters``, what the long skips learn, alone.
        filter_lr: Learning rate of what the long skips learn, as a multiple of ``lr``.
        skips: Long skips that s, b and so on act on at sampling when nobody says which: all,
            inner, outer, split or numbers with commas, 0 the outermost. The checkpoints name it;
            training does nothing with it.
        skip: What acts on every long skip during training; of butterworth, chebyshev and chebyshev2
            s and the cutoff are learned, from these settings on.
        backbone: The network, one of ``uvit_lit.weights.BACKBONES``.
        **network: Its other arguments: sizes and classes.

    Raises:
        ValueError: If an argument is outside its range, or the checkpoint does not fit.
    """

    def __init__(
        self,
        schedule: str = "vp",
        prediction: str = "eps",
        class_dropout: float = 0.1,
        lr: float = 2e-4,
        weight_decay: float = 0.03,
        betas: tuple[float, float] = (0.99, 0.999),
        optimizer: str = "adamw",
        warmup_steps: int = 2500,
        cooldown: float = 0.0,
        log_ratio: tuple[float, float] | None = None,
        loss_weight: str = "plain",
        cfg: float = 1.0,
        cfg_range: tuple[float, float] = (0.0, 1.0),
        init_from: str | None = None,
        train: str = "all",
        filter_lr: float = 10.0,
        skips: str = "all",
        skip: SkipSettings = UNCHANGED,
        backbone: str = "uvit",
        **network: Any,
    ) -> None:
        super().__init__()
        require(0 <= class_dropout < 1, "class_dropout", class_dropout, "from 0 to below 1")
        require(lr > 0, "lr", lr, "above 0")
        require(weight_decay >= 0, "weight_decay", weight_decay, "0 or more")
        if not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"betas are {betas}; accepted: two numbers from 0 to below 1")
        require_choice("optimizer", optimizer, OPTIMIZERS)
        require(warmup_steps >= 0, "warmup_steps", warmup_steps, "0 or more")
        require(0 <= cooldown < 1, "cooldown", cooldown, "from 0 to below 1")
        if log_ratio is not None and not (math.isfinite(sum(log_ratio)) and log_ratio[1] > 0):
            raise InputError(
                f"log_ratio is {log_ratio}; accepted: a mean and a standard deviation "
                "above 0, or null"
            )
        require_choice("loss_weight", loss_weight, LOSS_WEIGHTS)
        require(1 <= cfg < math.inf, "cfg", cfg, "1 or more")
        require_choice("train", train, TRAIN)
        require(filter_lr > 0, "filter_lr", filter_lr, "above 0")
        self.save_hyperparameters()
        arguments = {**network, "skip": dataclasses.asdict(skip)}
        self.hparams["skip"] = arguments["skip"]  # a checkpoint holds plain data
        self.denoiser = Denoiser(build_backbone(backbone, arguments), schedule, prediction)
        choose_skips(skips, len(self.denoiser.backbone.long_skips))  # refuses an unknown one
        if init_from is not None:
            arguments = backbone_arguments(backbone, arguments)
            initialise(self.denoiser, backbone, arguments, find_checkpoint(init_from))
        filters = list(self.denoiser.backbone.long_skips.parameters())
        if train != "all" and not filters:
            raise InputError(
                f"train is {train!r}, but the long skips learn nothing; accepted with --filter "
                f"{', '.join(LEARNED)}"
            )
        if train == "filters":
            self.denoiser.requires_grad_(False)
            self.denoiser.backbone.long_skips.requires_grad_(True)
        self.class_dropout = class_dropout
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.optimizer, self.filter_lr = optimizer, filter_lr
        self.warmup_steps, self.cooldown = warmup_steps, cooldown
        self.log_ratio, self.loss_weight = log_ratio, loss_weight
        if cfg > 1 and (self.denoiser.backbone.num_classes == 0 or class_dropout == 0):
            raise InputError(
                f"cfg is {cfg}; accepted: 1, or a model of classes with a class_dropout above 0"
            )
        self.cfg, self.cfg_window = cfg, Window(*cfg_range)

    def on_train_start(self) -> None:
        """No step had a loss that is not finite; ``check_finite`` looks, the steps do not wait."""
        self.first_wrong_step = torch.tensor(-1, device=self.device)

    def _losses(
        self,
        batch: dict[str, Any],
        class_dropout: float,
        log_ratio: tuple[float, float] | None = None,
        cfg: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Per-image losses and their times; all randomness comes from the batch's seed."""
        x0, y = batch["image"], batch["label"]
        generator = torch.Generator(x0.device).manual_seed(batch["seed"])
        uniform = torch.rand(len(x0), generator=generator, device=x0.device)
        t = self.denoiser.schedule.times(uniform)
        if log_ratio is not None:
            normal = np.random.default_rng(batch["seed"]).normal(*log_ratio, len(x0))
            t = self.denoiser.schedule.time_of(torch.from_numpy(-normal).exp())
            t = self.denoiser.schedule.times(t.float().to(x0.device, non_blocking=True))
        eps = torch.randn(x0.shape, generator=generator, device=x0.device)
        drop = torch.rand(len(x0), generator=generator, device=x0.device) < class_dropout
        y = torch.where(drop, self.denoiser.backbone.null_class, y)
        if cfg == 1:
            return self.denoiser.loss(x0, eps, t, y), t
        guided = ~drop & (self.cfg_window.strength(t) > 0)
        return self.denoiser.loss(x0, eps, t, y, torch.where(guided, cfg, 1.0)), t

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Loss of one batch, with what the callbacks log."""
        # For dropout; a seed of its own, as the times and the noise are drawn from the other one.
        seed_generators(batch["image"].device, derive_seed(batch["seed"], 0))
        losses, t = self._losses(batch, self.class_dropout, self.log_ratio, self.cfg)
        weight = 1.0 if self.loss_weight == "plain" else self.denoiser.velocity_weight(t)
        loss = (weight * losses).mean()
        wrong = (self.first_wrong_step < 0) & ~loss.detach().isfinite()
        step = self.trainer.global_step + 1
        self.first_wrong_step = torch.where(wrong, step, self.first_wrong_step)
        self.log("train/loss", loss.detach())
        return {"loss": loss, "losses": losses.detach(), "t": t}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Loss on held-out images with the averaged weights, at the same noise every time."""
        losses, t = self._losses(batch, class_dropout=0.0)
        return {"losses": losses, "t": t}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradient before it is clipped."""
        if is_logged(self.trainer, self.global_step + 1):
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/gradient_norm", nn.utils.get_total_norm(gradients))

    def configure_optimizers(self) -> Any:
        """The learning rates of all groups warm up linearly, and cool down at the end."""
        muon = self.optimizer == "muon"
        groups = parameter_groups(self.denoiser, self.lr, self.weight_decay, self.filter_lr, muon)
        optimizer: torch.optim.Optimizer
        if muon:
            in_bf16 = self.trainer.precision == "bf16-mixed"
            dtype = torch.bfloat16 if in_bf16 else None
            optimizer = Muon(groups, betas=self.betas, dtype=dtype)
        else:
            optimizer = torch.optim.AdamW(groups, betas=self.betas)
        end = self.trainer.max_steps if self.cooldown else 0

        def factor(step: int) -> float:
            warm = (step + 1) / max(self.warmup_steps, 1)
            cool = (end - step) / (self.cooldown * end) if self.cooldown else 1.0
            return max(min(warm, cool, 1.0), 0.0)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
