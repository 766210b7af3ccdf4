"""Guidance: a denoiser around a denoiser, away from a weak model.

One formula on the estimates D of the clean image covers every kind:

    D = D_weak + w (D_strong - D_weak)

w = 1 is the strong model and w = 0 the weak one; above 1 the step leads away from what the weak
model does worse. The weak model is the strong one without its class (classifier-free guidance, Ho
and Salimans 2022), an earlier or smaller model (autoguidance, Karras et al. 2024), or the same
network with other settings of its long skips (``WithSkips``).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uvit_lit.diffusion import Denoiser
from uvit_lit.errors import InputError, require
from uvit_lit.filters import (
    LowPass,
    check_cutoff,
    frequencies,
    hartley_matrix,
    without_autocast,
)
from uvit_lit.settings import Window
from uvit_lit.skips import restored

SPLIT = LowPass("butterworth")
"""The low-pass that parts the low frequencies of an image from the high ones."""


class Guided(nn.Module):
    """A denoiser guided away from a weak one.

    It is a denoiser itself, so guidance goes around guidance. The second estimate is computed in
    the window alone, and not at all at w = 1.

    Args:
        denoiser: The strong model, a ``Denoiser`` or guidance around one.
        weight: w, at least 0; or two, of the low and of the high frequencies of the image, with
            ``cutoff`` (frequency-decoupled guidance).
        weak: The weak model, a ``Denoiser``, guidance or ``WithSkips``, for images of the same
            size and the same classes. It may have another schedule and another prediction. None is
            the strong model without its class, of which both estimates come from one batch.
        cutoff: Where the frequencies part, in (0, sqrt(2)], fraction of the pixel grid's Nyquist:
            the -3 dB point of a Butterworth of order 3.
        rescale: phi in [0, 1]: how much of the way the standard deviation of each estimate goes
            back to that of the strong model. 0 leaves it.
        t_range: First and last t in [0, 1] at which guidance acts; outside it is the strong model.

    Raises:
        ValueError: If a value is outside its range, or the weak model does not fit.

    References:
        Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", WACV 2024,
        equations 15 and 16 (``rescale``); Kynkaanniemi et al., "Applying Guidance in a Limited
        Interval", NeurIPS 2024 (``t_range``); Sadat et al., "Guidance in the Frequency Domain
        Enables High-Fidelity Sampling at Low CFG Scales", 2025 (two weights; there the bands are
        those of a Laplacian pyramid).
    """

    def __init__(
        self,
        denoiser: Any,
        weight: float | Sequence[float],
        weak: Any = None,
        *,
        cutoff: float | None = None,
        rescale: float = 0.0,
        t_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        weights = (weight,) if isinstance(weight, int | float) else tuple(weight)
        if not all(math.isfinite(w) and w >= 0 for w in weights):
            raise InputError(f"cfg is {weight}; accepted: a number of at least 0, or two")
        if len(weights) != (1 if cutoff is None else 2):
            raise InputError(
                f"cfg has {len(weights)} values and cutoff is {cutoff}; accepted: one without a "
                "cutoff, or two with one, of the low and of the high frequencies"
            )
        if cutoff is not None:
            check_cutoff(cutoff)
        require(0 <= rescale <= 1, "rescale", rescale, "0 to 1")
        if weak is not None:
            check_fits(denoiser, weak)
        elif set(weights) != {1} and getattr(denoiser.backbone, "num_classes", None) == 0:
            raise InputError("the model has no classes; accepted without them: another weak model")
        self.denoiser, self.weak = denoiser, weak
        self.schedule = denoiser.schedule
        self.low, self.high = weights[0], weights[-1]
        self.cutoff, self.rescale = cutoff, rescale
        self.window = Window(*t_range)

    @property
    def backbone(self) -> Any:
        """The network of the strong model."""
        return self.denoiser.backbone

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Estimate the clean image; the arguments and the result are those of ``Denoiser``.

        Raises:
            ValueError: If labels are missing where the weak model is the one without them.
        """
        inside = self.window.strength(t) > 0
        if (self.low == 1 and self.high == 1) or not inside.any():
            return self.denoiser(x_t, t, y)
        strong, weak = self._estimates(x_t, t, y)
        guided = torch.lerp(weak, strong, self.high)
        if self.cutoff is not None:
            low = low_frequencies(strong - weak, self.cutoff)
            guided = guided + (self.low - self.high) * low
        if self.rescale:
            per_image = tuple(range(1, guided.ndim))
            ratio = strong.std(per_image, keepdim=True) / guided.std(per_image, keepdim=True)
            guided = guided * torch.lerp(torch.ones_like(ratio), ratio, self.rescale)
        return torch.where(inside.view(-1, *[1] * (guided.ndim - 1)), guided, strong)

    def _estimates(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Clean images of the strong and of the weak model."""
        if self.weak is not None:
            return self.denoiser(x_t, t, y), self.weak(x_t, self._time_of_weak(t), y)
        if y is None:
            raise InputError("y is None; accepted by guidance with the null class: labels")
        null = torch.full_like(y, self.backbone.null_class)
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([y, null]))
        strong, weak = both.chunk(2)
        return strong, weak

    def _time_of_weak(self, t: Tensor) -> Tensor:
        """Where the weak model's schedule has the noise level of ``t``: the same noisy image."""
        if self.weak.schedule.name == self.schedule.name:
            return t
        alpha, sigma = self.schedule.alpha_sigma(t.cpu().double())
        return self.weak.schedule.time_of(sigma / alpha).to(t)


class WithSkips(nn.Module):
    """The same network with other settings of its long skips, which it has for this call alone.

    Args:
        denoiser: Whose network it is. Its own override stays, and does not act here.
        skips: Long skips that the settings act on, as ``override_skips`` takes it.
        **settings: As ``Denoiser.skips`` takes them. What is not named is as trained.

    Raises:
        ValueError: If a value is outside its range.
    """

    def __init__(
        self, denoiser: Denoiser, skips: str | Sequence[int] = "all", **settings: Any
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule, self.backbone = denoiser.schedule, denoiser.backbone
        with denoiser.skips(skips=skips, **settings):
            self.states = [long_skip.state for long_skip in self.backbone.long_skips]

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Estimate the clean image; the arguments and the result are those of ``Denoiser``."""
        with restored(self.backbone.long_skips, self.states):
            return self.denoiser(x_t, t, y)


def check_fits(strong: Any, weak: Any) -> None:
    """Raise a ``ValueError`` unless two models make images of one size, of the same classes."""
    for name in ("in_chans", "img_size", "num_classes"):
        ours, theirs = (getattr(model.backbone, name, None) for model in (strong, weak))
        if ours != theirs:
            raise InputError(
                f"{name} of the weak model is {theirs}; accepted as a guide of this model: {ours}"
            )


def low_frequencies(images: Tensor, cutoff: float) -> Tensor:
    """Keep the low frequencies of images; ``images`` less the result are the high ones.

    Args:
        images: (batch, channels, height, width) floating point.
        cutoff: Of ``SPLIT``, in (0, sqrt(2)], fraction of Nyquist.

    Returns:
        (batch, channels, height, width), of the dtype of ``images``.
    """
    height, width = images.shape[-2:]
    response = SPLIT(frequencies((height, width)), cutoff).to(images)
    rows, columns = (hartley_matrix(n).to(images) for n in (height, width))
    with without_autocast(images):
        return rows @ (response * (rows @ images @ columns)) @ columns
