r"""Low-pass filters over the spatial frequencies of a token grid.

**Unit of frequency**: radial frequency as a fraction of Nyquist on the token grid, the
convention of scipy's ``Wn``. 0 is the mean of the map, 1 the Nyquist frequency of an axis,
sqrt(2) the corner. The bins of an N x N grid are 2 / N apart: 0.125 on the 16 x 16 tokens of
U-ViT-S/2, 0.25 on the 8 x 8 tokens of a patch-4 model. A step whose cutoff is at most the bin
spacing touches the mean alone.

One equation covers every filter. With \|H(f)\| in [0, 1] the magnitude response of a low-pass,

    gain(f) = 1 - (1 - s) \|H(f)\|

so the passband is scaled by ``s`` and the rest is left alone (equation 2 of the paper), and
``s = 1`` is the identity, whatever the filter.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from uvit_lit.errors import InputError
from uvit_lit.families import FILTERS, PROTOTYPES

MAX_FREQUENCY = math.sqrt(2)
"""Radial frequency of the corner of the spectrum, as a fraction of Nyquist."""

RANGES = {"order": (1, 12), "ripple": (0.05, 6.0), "attenuation": (10.0, 80.0)}
"""Accepted values of the numbers of a design, both ends included."""


Roots = tuple[tuple[float, ...], tuple[float, ...]]
"""Real parts and imaginary parts of zeros or poles."""


@dataclass(frozen=True)
class LowPass:
    """Magnitude response of a low-pass.

    Attributes:
        name: ``step`` (1 below the cutoff, 0 from there on; equation 2), ``butterworth``,
            ``chebyshev`` (type I, equal ripple in the passband), ``chebyshev2`` (type II, equal
            ripple in the stopband), ``freeu_box`` (the box of FreeU's code), or ``flat`` (1
            everywhere, whatever the cutoff: ``s`` scales the whole skip).
        order: Number of poles of the analog families, 1 to 12; -6.02 dB per octave for each far
            above the cutoff (not of type II, whose stopband has a floor).
        ripple: Of ``chebyshev``, in dB, 0.05 to 6: how far the passband dips below 1.
        attenuation: Of ``chebyshev2``, in dB, 10 to 80: how far the stopband stays below 1.
        keep_mean: Whether the response at frequency 0 is 0, so that the mean is never scaled.

    Raises:
        ValueError: If there is no filter by that name, or a number is outside its range.

    >>> at = torch.tensor([[0.0, 0.0], [0.3, 0.4], [0.0, 1.0]])  # radius 0, the cutoff, 1
    >>> for name in ("step", "butterworth", "chebyshev", "chebyshev2"):
    ...     print(name, [round(h, 4) for h in LowPass(name)(at, cutoff=0.5).tolist()])
    step [1.0, 0.0, 0.0]
    butterworth [1.0, 0.7071, 0.124]
    chebyshev [1.0, 0.8913, 0.0754]
    chebyshev2 [1.0, 0.01, 0.01]
    """

    name: str
    order: int = 3
    ripple: float = 1.0
    attenuation: float = 40.0
    keep_mean: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no design."""
        if self.name not in FILTERS[1:]:
            raise InputError(f"filter is {self.name!r}; accepted: {', '.join(FILTERS)}")
        for field, (least, most) in RANGES.items():
            value = getattr(self, field)
            if not least <= value <= most or (field == "order" and value != int(value)):
                kind = "a whole number" if field == "order" else "dB"
                raise InputError(f"{field} is {value}; accepted: {least} to {most}, {kind}")

    def __call__(self, frequency: Tensor, cutoff: Tensor | float) -> Tensor:
        r"""Evaluate \|H\|.

        Args:
            frequency: (..., 2) vertical and horizontal frequency, fraction of Nyquist.
            cutoff: Above 0, fraction of Nyquist; a tensor must broadcast with (...). Where
                Butterworth falls to 1 / sqrt(2), type I leaves its ripple, type II reaches its
                attenuation; half the side of the box, which holds -cutoff but not +cutoff.

        Returns:
            (...) in [0, 1]. Differentiable in the cutoff for the analog families.
        """
        response = self._response(frequency, cutoff)
        return response * (frequency != 0).any(-1) if self.keep_mean else response

    def _response(self, frequency: Tensor, cutoff: Tensor | float) -> Tensor:
        """|H| of the family, at frequency 0 too."""
        if self.name == "freeu_box":
            # Not symmetric: on real features its effect is the mean of its values at +f and -f.
            mirrored = torch.where(frequency == -1, frequency, -frequency)  # -1 and +1 are one bin
            edge = cutoff[..., None] if isinstance(cutoff, Tensor) else cutoff
            box, mirrored_box = (
                ((f >= -edge) & (f < edge)).all(-1).to(f.dtype) for f in (frequency, mirrored)
            )
            return (box + mirrored_box) / 2
        radius = torch.hypot(*frequency.unbind(-1))
        if self.name == "flat":
            return torch.ones_like(radius)
        if self.name == "step":
            return (radius < cutoff).to(frequency.dtype)
        return self._magnitude(radius / cutoff)

    @cached_property
    def _prototype(self) -> tuple[Roots, Roots, float]:
        """Real and imaginary parts of the zeros and of the poles, and log(gain^2)."""
        zeros, poles, gain = PROTOTYPES[self.name](self)
        parts = [
            (tuple(roots.real.tolist()), tuple(roots.imag.tolist()))
            for roots in (zeros + 0j, poles + 0j)
        ]
        return parts[0], parts[1], 2 * math.log(gain)

    def _magnitude(self, w: Tensor) -> Tensor:
        """|H(jw)| from zeros, poles and gain, in the log domain: finite, and so its gradient."""
        zeros, poles, log_gain = self._prototype

        def log_distance(roots: Roots) -> Tensor:
            on_cpu = torch.tensor(roots, dtype=w.dtype, device="cpu")
            real, imaginary = on_cpu.to(w.device, non_blocking=True)  # the device is not waited for
            square = real**2 + (w[..., None] - imaginary) ** 2
            return square.clamp_min(torch.finfo(w.dtype).tiny).log().sum(-1)  # 0 at a zero

        return torch.exp((log_gain + log_distance(zeros) - log_distance(poles)) / 2)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Context in which the precision is that of the numbers, on the device of ``x``."""
    device = x.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def frequencies(grid: tuple[int, int]) -> Tensor:
    """Frequency of every bin of a token grid.

    Args:
        grid: Height and width in tokens.

    Returns:
        (height, width, 2) float64: vertical and horizontal frequency, fraction of Nyquist in
        [-1, 1), in the order of ``torch.fft.fft2`` (the mean at [0, 0]).

    >>> frequencies((1, 8))[0, :, 1].tolist()
    [0.0, 0.25, 0.5, 0.75, -1.0, -0.75, -0.5, -0.25]
    """
    rows, columns = (2 * torch.fft.fftfreq(n, dtype=torch.float64) for n in grid)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)


def check_cutoff(cutoff: float) -> None:
    """Refuse a cutoff outside (0, sqrt(2)].

    Raises:
        ValueError: If it is.
    """
    if not 0 < cutoff <= MAX_FREQUENCY:
        raise InputError(
            f"cutoff is {cutoff}; accepted: a fraction of Nyquist above 0 and at most "
            f"sqrt(2) = {MAX_FREQUENCY:.4f}"
        )


def axis(points: int) -> Tensor:
    """Frequencies along an axis, from 0 to the radius of the corner: (points, 2)."""
    radius = torch.linspace(0, MAX_FREQUENCY, points)
    return torch.stack([radius, torch.zeros_like(radius)], dim=-1)


def hartley_matrix(n: int) -> Tensor:
    """Matrix Q of the orthonormal discrete Hartley transform along an axis.

    Its entry for a token at x and a bin k is cas(2 pi k x / n) / sqrt(n), with cas = cos + sin
    (Bracewell 1983). Q is real, symmetric and its own inverse. A response over a grid that is the
    same at opposite frequencies of either axis is diagonal in Q along the rows and Q along the
    columns: ``ifft2(H * fft2(x))`` is ``Q @ (H * (Q @ x @ Q)) @ Q``. No complex numbers, so it
    works in bfloat16, under ``torch.compile`` and on every device.

    Args:
        n: Tokens along the axis.

    Returns:
        (n, n) float64, tokens by bins, in the order of ``torch.fft``.
    """
    x = torch.arange(n, dtype=torch.float64)
    angle = 2 * math.pi * (torch.outer(x, x) / n).remainder(1)
    return (angle.cos() + angle.sin()) / math.sqrt(n)


def radial_power(features: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Radially averaged power spectrum of token features.

    Args:
        features: (batch, tokens, channels), without prefix tokens.
        grid: Height and width in tokens.

    Returns:
        Radial frequencies (rings,), ascending, fraction of Nyquist; and (rings,) the mean over
        batch, channels and the bins of the ring of |X|^2 / tokens, with X the Fourier transform.
        Summed over the bins it is the mean square of the features times the number of tokens.
    """
    radius = torch.hypot(*frequencies(grid).unbind(-1)).flatten()
    rings, ring = torch.unique(radius.float(), return_inverse=True)
    rows, columns = (hartley_matrix(n).to(features.device, torch.float32) for n in grid)
    with without_autocast(features):
        maps = features.float().mT.unflatten(2, grid)
        power = (rows @ maps @ columns).square().mean(dim=(0, 1)).flatten().cpu()
    count = torch.bincount(ring)
    return rings, torch.zeros(len(rings)).index_add(0, ring, power) / count
