"""Variance-preserving noise schedules: x_t = alpha(t) x_0 + sigma(t) eps, t in [0, 1].

t = 0 is the clean image, t = 1 (almost) pure noise, and alpha^2 + sigma^2 = 1. A schedule is
either continuous (the VP-SDE) or a table of 1000 steps, of which step n = 1..1000 stands at
t = n / 1000. ``Schedule.betas`` is the bridge to the schedulers of diffusers, which see every
schedule as such a table.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

STEPS = 1000
"""Number of steps of a discrete schedule, and of every schedule as diffusers sees it."""


def _vp_log_alpha(t: Tensor) -> Tensor:
    """Log alpha of the VP-SDE (Song et al. 2021, equation 29; half the integral of beta)."""
    beta_min, beta_max = 0.1, 20.0
    return -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min


def _linear_betas() -> Tensor:
    """Betas of DDPM (Ho et al. 2020, section 4)."""
    return torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)


def _cosine_betas() -> Tensor:
    """Betas of the cosine schedule, clipped at 0.999 (Nichol and Dhariwal 2021, equation 17)."""
    n = torch.arange(STEPS + 1, dtype=torch.float64)
    f = torch.cos((n / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def _sd_betas() -> Tensor:
    """Betas of Stable Diffusion, linear in their square root (Rombach et al. 2022)."""
    return torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2


TABLES: dict[str, Callable[[], Tensor]] = {
    "linear": _linear_betas,
    "cosine": _cosine_betas,
    "sd": _sd_betas,
}
SCHEDULES = ("vp", *TABLES)
"""Names of the schedules: the VP-SDE, and DDPM's linear, the cosine, Stable Diffusion's table."""


class Schedule:
    """How noise is added.

    Args:
        name: ``vp`` (VP-SDE, beta 0.1..20, the official CIFAR-10 model's), ``linear`` (DDPM),
            ``cosine`` or ``sd`` (Stable Diffusion).

    Raises:
        ValueError: If there is no schedule by that name.

    >>> alpha, sigma = Schedule("vp").alpha_sigma(torch.tensor([0.0, 1.0]))
    >>> [round(a, 4) for a in alpha.tolist()], [round(a, 4) for a in sigma.tolist()]
    ([1.0, 0.0066], [0.0, 1.0])
    """

    def __init__(self, name: str = "vp") -> None:
        if name not in SCHEDULES:
            raise ValueError(f"schedule is {name!r}; accepted: {', '.join(SCHEDULES)}")
        self.name = name
        self._table = None
        if name in TABLES:
            log_alpha = 0.5 * torch.log1p(-TABLES[name]()).cumsum(0)
            self._table = torch.cat([log_alpha.new_zeros(1), log_alpha])  # n = 0..1000
        self.time_scale = STEPS if self._table is not None else STEPS - 1
        """The network is called at ``time_scale * t``: 999 t, or the step n of a table."""

    def times(self, uniform: Tensor) -> Tensor:
        """Training times from uniform numbers in [0, 1): themselves, or one of the 1000 steps."""
        if self._table is None:
            return uniform
        return (uniform * STEPS).floor().add(1).clamp(max=STEPS) / STEPS

    def log_alpha(self, t: Tensor) -> Tensor:
        """Log of alpha(t), float64; between the steps of a table it is interpolated linearly."""
        t = t.double()
        if self._table is None:
            return _vp_log_alpha(t)
        table = self._table.to(t.device)
        position = t * STEPS
        below = position.floor().clamp(0, STEPS - 1).long()
        return torch.lerp(table[below], table[below + 1], position - below)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Scale of the image and of the noise at time t.

        Args:
            t: Times in [0, 1], any shape.

        Returns:
            alpha and sigma, of the shape and dtype of ``t``.
        """
        log_alpha = self.log_alpha(t.cpu() if t.device.type == "mps" else t)  # MPS has no float64
        sigma = (-torch.expm1(2 * log_alpha)).sqrt()
        return log_alpha.exp().to(t.dtype).to(t.device), sigma.to(t.dtype).to(t.device)

    def time_of(self, ratio: Tensor) -> Tensor:
        """Time at which sigma / alpha is ``ratio``, float64, interpolated between 1000 steps."""
        steps = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
        decay = 0.5 * torch.log1p(ratio.double().square())  # -log alpha
        return torch.from_numpy(np.interp(decay.numpy(), -self.log_alpha(steps).numpy(), steps))

    def betas(self) -> Tensor:
        """Variance added by each of the 1000 steps, float64: ``trained_betas`` of diffusers.

        Index i of a diffusers table stands at t = (i + 1) / 1000.
        """
        steps = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
        return -torch.expm1(2 * self.log_alpha(steps).diff())
