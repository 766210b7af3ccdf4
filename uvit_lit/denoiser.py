"""The denoiser: a backbone and a schedule; what is predicted, the loss, guidance."""

from typing import Any

import torch
from torch import Tensor, nn

from uvit_lit.schedule import STEPS, Schedule
from uvit_lit.skips import Window, override_skips

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
"""What the network predicts: our name and the one that diffusers has for it."""


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    """Shape (batch,) values so that they multiply images."""
    return values.view(-1, *[1] * (like.ndim - 1))


class Denoiser(nn.Module):
    """A network that knows at which time it looks at how much noise.

    Args:
        backbone: Module called as ``backbone(x_t, timesteps, y)``.
        schedule: Name of the noise schedule, one of ``uvit_lit.schedule.SCHEDULES``.
        prediction: What the backbone predicts: ``eps`` (the noise), ``x0`` (the image) or ``v``
            (alpha eps - sigma x_0; Salimans and Ho 2022).

    Raises:
        ValueError: If the schedule or the prediction is unknown.
    """

    def __init__(self, backbone: nn.Module, schedule: str = "vp", prediction: str = "eps") -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction is {prediction!r}; accepted: {', '.join(PREDICTIONS)}")
        self.backbone: Any = backbone
        self.schedule = Schedule(schedule)
        self.prediction = prediction

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict eps, x0 or v.

        Args:
            x_t: (batch, channels, height, width) noisy images.
            t: (batch,) times in [0, 1].
            y: (batch,) labels, or None for no class.

        Returns:
            The prediction, of the shape of ``x_t``.
        """
        return self.backbone(x_t, t * self.schedule.time_scale, y)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Noisy image at time t: alpha x0 + sigma eps, with t of shape (batch,)."""
        alpha, sigma = (_per_image(v, x0) for v in self.schedule.alpha_sigma(t))
        return alpha * x0 + sigma * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What a perfect network would predict for this image, noise and time."""
        if self.prediction == "eps":
            return eps
        if self.prediction == "x0":
            return x0
        alpha, sigma = (_per_image(v, x0) for v in self.schedule.alpha_sigma(t))
        return alpha * eps - sigma * x0

    def loss(self, x0: Tensor, eps: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Mean squared error of the prediction, per image.

        Args:
            x0: (batch, channels, height, width) images in [-1, 1].
            eps: Standard normal noise of the same shape.
            t: (batch,) times in [0, 1].
            y: (batch,) labels, or None.

        Returns:
            (batch,) float32.
        """
        prediction = self(self.add_noise(x0, eps, t), t, y)
        return (prediction.float() - self.target(x0, eps, t)).square().flatten(1).mean(1)

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

    def set_skips(
        self, t_range: tuple[float, float] | None = None, t_fade: float = 0.0, **overrides: Any
    ) -> None:
        """Override s, b and the filter for sampling, without touching the weights.

        Args:
            t_range: First and last t in [0, 1] at which the override acts (1 is pure noise, where
                sampling begins). None means always.
            t_fade: Width in t, in [0, 1], over which the override goes from off to on on either
                side of that range, as half a cosine; 0 switches.
            **overrides: skips, s, b, filter, cutoff, order, ripple, attenuation, b_channels, as
                ``uvit_lit.skips.override_skips`` takes them. None means as trained. Without
                ``skips`` they act on all; ``Model.set_skips`` knows the default of a model.

        Raises:
            ValueError: If a value is outside its range or a list has the wrong length.
        """
        if t_fade and t_range is None:
            raise ValueError(f"t_fade is {t_fade:g}; accepted: only with t_range")
        window = None
        if t_range is not None:
            Window(*t_range, t_fade)  # validates the values as they were given
            scale = self.schedule.time_scale / STEPS  # of t as the long skips see it
            window = Window(t_range[0] * scale, t_range[1] * scale, t_fade * scale)
        override_skips(self.backbone.long_skips, window=window, **overrides)


class Guided(nn.Module):
    """Classifier-free guidance: a denoiser around a denoiser (Ho and Salimans 2022).

    The prediction is uncond + scale * (cond - uncond): 1 is the conditional model, 0 the
    unconditional one. Both are computed in one batch.

    Args:
        denoiser: A conditional denoiser trained with class dropout.
        scale: Guidance scale.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.scale = scale
        self.schedule = denoiser.schedule
        self.prediction = denoiser.prediction

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict with guidance; the arguments and the result are those of ``Denoiser``."""
        null = torch.full_like(y, self.denoiser.backbone.null_class)
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([y, null]))
        conditional, unconditional = both.float().chunk(2)  # rounding would be scaled as well
        return torch.lerp(unconditional, conditional, self.scale)
