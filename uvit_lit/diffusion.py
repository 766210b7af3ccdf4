"""Variance-preserving noise schedules: x_t = alpha(t) x_0 + sigma(t) eps, t in [0, 1].

t = 0 is the clean image, t = 1 (almost) pure noise, and alpha^2 + sigma^2 = 1. A schedule is
either continuous (the VP-SDE) or a table of 1000 steps, of which step n = 1..1000 stands at
t = n / 1000. ``Schedule.betas`` is the bridge to the schedulers of diffusers, which see every
schedule as such a table.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from uvit_lit.errors import require_choice
from uvit_lit.settings import Window
from uvit_lit.skips import skip_settings

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
        require_choice("schedule", name, SCHEDULES)
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
        table = self._table.to(t.device, non_blocking=True)  # 8 kB; the device is not waited for
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


PREDICTIONS = ("eps", "x0", "v")
"""What the network predicts: the noise, the image, or alpha eps - sigma x_0 (Salimans and Ho)."""


class Backbone(Protocol):
    """A network that can be trained: ``uvit_lit.uvit.UViT``, ``uvit_lit.unet.UNet``.

    Attributes:
        img_size: Height and width of its images.
        in_chans: Their channels.
        num_classes: Number of classes; 0 of an unconditional network.
        long_skips: Its ``SkipModulation`` modules, outermost first.
    """

    img_size: int
    in_chans: int
    num_classes: int
    long_skips: Any

    @property
    def null_class(self) -> int:
        """Label that stands for "no class"."""

    def matrices(self) -> dict[int, list[Tensor]]:
        """Weights that Muon takes, by the number of matrices stacked in each."""

    def __call__(self, x_t: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """The prediction, of the shape of ``x_t``; timesteps in [0, 1000], y labels or None."""


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    """Shape (batch,) values so that they multiply images."""
    return values.view(-1, *[1] * (like.ndim - 1))


class Denoiser(nn.Module):
    """A backbone with its noise schedule: noisy image in, clean image out.

    Args:
        backbone: The network, a module.
        schedule: Name of the noise schedule, one of ``uvit_lit.diffusion.SCHEDULES``.
        prediction: Output of the backbone, one of ``PREDICTIONS``.

    Raises:
        ValueError: If the schedule or the prediction is unknown.
    """

    def __init__(self, backbone: Backbone, schedule: str = "vp", prediction: str = "eps") -> None:
        super().__init__()
        require_choice("prediction", prediction, PREDICTIONS)
        self.backbone: Any = backbone
        self.schedule = Schedule(schedule)
        self.prediction = prediction

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Estimate the clean image.

        Args:
            x_t: (batch, channels, height, width) noisy images.
            t: (batch,) times in [0, 1].
            y: (batch,) labels, or None for no class.

        Returns:
            The estimate of x_0, of the shape of ``x_t``, float32.
        """
        output = self.predict(x_t, t, y).float()
        if self.prediction == "x0":
            return output
        alpha, sigma = (_per_image(v, x_t) for v in self.schedule.alpha_sigma(t))
        if self.prediction == "v":
            return alpha * x_t - sigma * output
        return (x_t - sigma * output) / alpha

    def predict(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Output of the backbone, which the loss compares with ``target``; arguments as above."""
        return self.backbone(x_t, t * self.schedule.time_scale, y)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Noisy image at time t: alpha x0 + sigma eps, with t of shape (batch,)."""
        alpha, sigma = (_per_image(v, x0) for v in self.schedule.alpha_sigma(t))
        return alpha * x0 + sigma * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The output of a perfect backbone for this image, noise and time."""
        if self.prediction == "eps":
            return eps
        if self.prediction == "x0":
            return x0
        alpha, sigma = (_per_image(v, x0) for v in self.schedule.alpha_sigma(t))
        return alpha * eps - sigma * x0

    def loss(
        self,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        cfg: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the prediction, per image.

        Args:
            x0: (batch, channels, height, width) images in [-1, 1].
            eps: Standard normal noise of the same shape.
            t: (batch,) times in [0, 1].
            y: (batch,) labels, or None.
            cfg: (batch,) weights w of guidance, at least 1, that the prediction learns, with
                labels; None is 1. The target moves away from the prediction without a class by
                1 - 1 / w of the difference, so that the best prediction with a class is the
                guided one, D_null + w (D - D_null) of the D that 1 would teach.

        Returns:
            (batch,) float32.

        References:
            Tang et al., "Diffusion Models without Classifier-free Guidance", 2025 (``cfg``; there
            the factor is called w).
        """
        x_t = self.add_noise(x0, eps, t)
        prediction = self.predict(x_t, t, y).float()
        target = self.target(x0, eps, t)
        if cfg is not None and y is not None:
            with torch.no_grad():
                null = self.predict(x_t, t, torch.full_like(y, self.backbone.null_class)).float()
            target = target + _per_image(1 - 1 / cfg, x0) * (prediction.detach() - null)
        return (prediction - target).square().flatten(1).mean(1)

    def velocity_weight(self, t: Tensor) -> Tensor:
        """Weight that makes the loss that of the velocity of a straight path from noise to image.

        On the path z = (1 - u) eps + u x_0 the network's x_0 implies the velocity
        (x_0 - z) / (1 - u); its squared error is that of x_0 times 1 / (1 - u)^2, which is
        (1 + alpha / sigma)^2 at the noise level of ``t``. It is bounded by 400.

        Args:
            t: (batch,) times in [0, 1].

        Returns:
            (batch,), of the dtype of ``t``: what multiplies the squared error of the prediction.

        References:
            Li and He, "Back to Basics: Let Denoising Generative Models Denoise", 2025 (JiT),
            section 4 and its bound of 0.05 on 1 - u.
        """
        alpha, sigma = self.schedule.alpha_sigma(t)
        on_x0 = (1 + alpha / sigma.clamp_min(1e-6)).square().clamp(max=400)
        if self.prediction == "x0":
            return on_x0
        if self.prediction == "v":
            return on_x0 * sigma.square()
        return (on_x0 * (sigma / alpha.clamp_min(1e-6)).square()).clamp(max=400)

    @contextmanager
    def skips(
        self, t_range: tuple[float, float] | None = None, t_fade: float = 0.0, **settings: Any
    ) -> Iterator[None]:
        """Override s, b and the filter inside a ``with`` block, without touching the weights.

        Args:
            t_range: First and last t in [0, 1] at which the settings act (1 is pure noise, where
                sampling begins). None means always.
            t_fade: Width in t, in [0, 1], over which they go from off to on on either side of that
                range, as half a cosine; 0 switches.
            **settings: skips, s, b, filter, cutoff, order, ripple, attenuation, b_channels, b_map,
                keep_mean, as ``uvit_lit.skips.override_skips`` takes them. None means as trained.
                Without ``skips`` they act on all; ``Model.skips`` knows the default of a model.

        Raises:
            ValueError: If a value is outside its range or a list has the wrong length.
        """
        scale = self.schedule.time_scale / STEPS  # of t as the long skips see it
        window = Window.of(t_range, t_fade, scale)
        with skip_settings(self.backbone.long_skips, window=window, **settings):
            yield
