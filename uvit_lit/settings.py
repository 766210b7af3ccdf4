"""The numbers of a long skip: fixed, or learned inside their bounds."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uvit_lit.filters import MAX_FREQUENCY, LowPass

MAX_SCALE = 2.0
"""A learned s or b stays between 0 and this: 1, no change, is in the middle."""


@dataclass(frozen=True)
class SkipSettings:
    """What one long skip does to the features that meet there.

    Attributes:
        filter: Name of the low-pass, one of ``uvit_lit.filters.FILTERS``.
        s: Skip scale: the gain of the low-pass's passband, at least 0. 1 is no change, 0 removes
            the passband. Without a filter nothing is scaled, so ``s`` is 1.
        cutoff: Edge of the low-pass as a fraction of Nyquist, in (0, sqrt(2)]; ``LowPass`` says
            what it means in each family.
        b: Backbone scale, at least 0: the largest factor of equation 4. 1 is no change.
        b_channels: Fraction of the channels, in (0, 1], that ``b`` amplifies; the first ones.
            The paper scales all, FreeU the first half.
        order: Order of butterworth, chebyshev and chebyshev2, 1 to 12.
        ripple: Passband ripple of chebyshev, 0.05 to 6 dB.
        attenuation: Stopband attenuation of chebyshev2, 10 to 80 dB.

    Raises:
        ValueError: If a value is outside its range.
    """

    filter: str = "none"
    s: float = 1.0
    cutoff: float = 0.3
    b: float = 1.0
    b_channels: float = 1.0
    order: int = LowPass.order
    ripple: float = LowPass.ripple
    attenuation: float = LowPass.attenuation

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        self.low_pass()
        for name in ("s", "b"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}; accepted: a number of at least 0")
        if self.filter == "none" and self.s != 1:
            raise ValueError(f"s is {self.s} without a filter; accepted: 1, or choose a filter")
        if not 0 < self.cutoff <= MAX_FREQUENCY:
            raise ValueError(
                f"cutoff is {self.cutoff}; accepted: a fraction of Nyquist above 0 and at most "
                f"sqrt(2) = {MAX_FREQUENCY:.4f}"
            )
        if not 0 < self.b_channels <= 1:
            raise ValueError(
                f"b_channels is {self.b_channels}; accepted: a fraction above 0 and at most 1"
            )

    def low_pass(self) -> LowPass | None:
        """The low-pass, or None without a filter."""
        design = LowPass(
            "step" if self.filter == "none" else self.filter,
            self.order,
            self.ripple,
            self.attenuation,
        )
        return None if self.filter == "none" else design


class Learned(nn.Module):
    """A number that training moves inside (low, high), constant or a smooth function of t.

    The number is low + (high - low) * sigmoid(raw), with raw a cosine series in t:
    raw[0] + sum over k of raw[k] cos(pi k t). It starts constant.

    Args:
        name: What it is, for the error.
        value: Where it starts.
        low: Lower bound.
        high: Upper bound.
        t_coefficients: Number of cosines; 0 makes it constant.

    Raises:
        ValueError: If it does not start inside its bounds.
    """

    def __init__(
        self, name: str, value: float, low: float, high: float, t_coefficients: int = 0
    ) -> None:
        super().__init__()
        if not low < value < high:
            raise ValueError(
                f"{name} is {value}; accepted where it is learned: between {low:g} and {high:.4f}"
            )
        self.low, self.high = low, high
        self.raw = nn.Parameter(torch.zeros(1 + t_coefficients))
        with torch.no_grad():
            self.raw[0] = math.log((value - low) / (high - value))

    def forward(self, t: Tensor) -> Tensor:
        """Value at the times t, (batch,) in [0, 1]: () where it is constant, else (batch,)."""
        raw = self.raw.to(torch.promote_types(self.raw.dtype, torch.float32))
        if len(raw) == 1:
            raw = raw[0]
        else:
            k = torch.arange(len(raw), dtype=raw.dtype, device=raw.device)
            raw = torch.cos(math.pi * t.to(raw.dtype)[:, None] * k) @ raw
        return self.low + (self.high - self.low) * torch.sigmoid(raw)

    @torch.no_grad()
    def over_time(self) -> Tensor:
        """Values at 65 times from t = 0 to 1, on the CPU.

        Raises:
            FloatingPointError: If one is not finite, since training diverged.
        """
        values = self(torch.linspace(0, 1, 65, device=self.raw.device)).expand(65).cpu()
        if not values.isfinite().all():
            raise FloatingPointError("training diverged: what a long skip learns is not finite")
        return values

    def average(self) -> float:
        """Mean value over t, as a number inside the bounds."""
        return min(max(float(self.over_time().double().mean()), self.low), self.high)
