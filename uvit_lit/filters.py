r"""What acts on a long skip: a filter on the skip features, a scale on the backbone features.

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
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FILTERS = ("none", "step")
"""Names of the filters that ``magnitude_response`` knows; ``none`` leaves the skip as it is."""

MAX_FREQUENCY = math.sqrt(2)
"""Radial frequency of the corner of the spectrum, as a fraction of Nyquist."""


@dataclass(frozen=True)
class SkipSettings:
    """What one long skip does to the features that meet there.

    Attributes:
        filter: Name of the low-pass, one of ``FILTERS``.
        s: Skip scale: the gain of the low-pass's passband, at least 0. 1 is no change, 0 removes
            the passband. Without a filter nothing is scaled, so ``s`` is 1.
        cutoff: Where the passband ends, as a fraction of Nyquist, in (0, sqrt(2)]. The step
            scales frequencies strictly below it.
        b: Backbone scale, at least 0: the largest factor of equation 4. 1 is no change.
        b_channels: Fraction of the channels, in (0, 1], that ``b`` amplifies; the first ones.
            The paper scales all, FreeU the first half.

    Raises:
        ValueError: If a value is outside its range.
    """

    filter: str = "none"
    s: float = 1.0
    cutoff: float = 0.3
    b: float = 1.0
    b_channels: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.filter not in FILTERS:
            raise ValueError(f"filter is {self.filter!r}; accepted: {', '.join(FILTERS)}")
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


def radial_frequency(grid: tuple[int, int]) -> Tensor:
    """Radial frequency of every bin of the 2-D discrete Fourier transform of a token grid.

    Args:
        grid: Height and width in tokens.

    Returns:
        (height, width) float64, fraction of Nyquist in [0, sqrt(2)], in the order of
        ``torch.fft.fft2`` (the mean at [0, 0]).

    >>> radial_frequency((1, 8))[0].tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25]
    """
    rows, columns = (2 * torch.fft.fftfreq(n, dtype=torch.float64) for n in grid)
    return torch.hypot(rows[:, None], columns[None, :])


def magnitude_response(filter: str, frequency: Tensor, cutoff: float) -> Tensor:
    """Magnitude |H| of a low-pass.

    Args:
        filter: ``step``: 1 below the cutoff, 0 from there on (equation 2).
        frequency: Radial frequencies, fraction of Nyquist, any shape.
        cutoff: Fraction of Nyquist, in (0, sqrt(2)].

    Returns:
        |H| in [0, 1], of the shape and dtype of ``frequency``.

    Raises:
        ValueError: If the filter has no response by that name.

    >>> magnitude_response("step", torch.tensor([0.0, 0.25, 0.5]), cutoff=0.5).tolist()
    [1.0, 1.0, 0.0]
    """
    if filter == "step":
        return (frequency < cutoff).to(frequency.dtype)
    raise ValueError(f"no magnitude response is known for filter {filter!r}")


def filter_matrix(response: Tensor) -> Tensor:
    """Matrix over the tokens that does what a symmetric response does in the Fourier domain.

    ``filter_matrix(H) @ x`` is ``ifft2(H * fft2(x))`` for every channel of x: the entry for two
    tokens is the impulse response at their (circular) distance, so the matrix is real, symmetric
    and block circulant. On the token grids of a U-ViT it beats the FFT, needs no complex numbers
    and so works in bfloat16.

    Args:
        response: (height, width), real, equal at opposite frequencies, in ``fft2`` order.

    Returns:
        (height * width, height * width), of the dtype of ``response``.
    """
    height, width = response.shape
    impulse = torch.fft.ifft2(response).real
    rows, columns = torch.arange(height), torch.arange(width)
    dy = (rows[:, None] - rows) % height
    dx = (columns[:, None] - columns) % width
    return impulse[dy[:, None, :, None], dx[None, :, None, :]].reshape(
        height * width, height * width
    )


def scale_backbone(x: Tensor, b: float, num_prefix: int = 0, channels: float = 1.0) -> Tensor:
    """Amplify the backbone features where they are strong (equations 3 to 5).

    The mean over the channels gives one value per patch token (3); min-max normalised over the
    tokens of its image it becomes alpha = (b - 1) * normalised + 1 (4), which multiplies the
    features (5). Each image has statistics of its own. A constant map has no largest token:
    there alpha is 1.

    Args:
        x: (batch, tokens, channels), prefix tokens first. Not changed.
        b: Backbone scale, at least 0; 1 returns ``x`` itself.
        num_prefix: How many leading tokens (time, class) are left alone.
        channels: Fraction of the channels, in (0, 1], that is amplified; the first ones.

    Returns:
        (batch, tokens, channels), of the dtype of ``x``.
    """
    if b == 1:
        return x
    accurate = torch.promote_types(x.dtype, torch.float32)
    mean = x[:, num_prefix:].mean(dim=-1, keepdim=True, dtype=accurate)
    low, high = mean.amin(dim=1, keepdim=True), mean.amax(dim=1, keepdim=True)
    normalised = (mean - low) / (high - low).clamp_min(1e-6)
    alpha = (b - 1) * normalised + 1
    alpha = F.pad(alpha, (0, 0, num_prefix, 0), value=1.0)
    if channels < 1:
        amplified = torch.arange(x.shape[-1], device=x.device) < round(channels * x.shape[-1])
        alpha = torch.where(amplified, alpha, 1.0)
    return x * alpha.to(x.dtype)


class Modulation(nn.Module):
    """The paper's two modulating factors: filter the skip features, scale the backbone features.

    Args:
        settings: What to do.
        grid: Height and width in patch tokens.
        num_prefix: Leading tokens (time, class) that are neither filtered nor scaled.
    """

    def __init__(self, settings: SkipSettings, grid: tuple[int, int], num_prefix: int) -> None:
        super().__init__()
        self.settings = settings
        self.num_prefix = num_prefix
        if settings.filter != "none":
            response = magnitude_response(settings.filter, radial_frequency(grid), settings.cutoff)
            # Zero rows and columns for the prefix: it is left alone without cutting and joining.
            lowpass = F.pad(filter_matrix(response), (num_prefix, 0, num_prefix, 0))
            self.register_buffer("lowpass", lowpass.float(), persistent=False)

    def forward(self, backbone: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled backbone features and the filtered skip features.

        Args:
            backbone: (batch, prefix + patch tokens, channels).
            skip: The same shape.
        """
        chosen = self.settings
        backbone = scale_backbone(backbone, chosen.b, self.num_prefix, chosen.b_channels)
        if chosen.s != 1:
            lowpass = self.get_buffer("lowpass").to(skip.dtype)
            skip = skip + (chosen.s - 1) * (lowpass @ skip)  # gain = 1 - (1 - s) |H|
        return backbone, skip


class LongSkip(nn.Module):
    """The modulation of one long skip, as trained, with an optional override for sampling.

    Args:
        settings: What acts during training.
        grid: Height and width in patch tokens.
        num_prefix: Leading tokens that are left alone.
    """

    def __init__(self, settings: SkipSettings, grid: tuple[int, int], num_prefix: int) -> None:
        super().__init__()
        self.grid = grid
        self.num_prefix = num_prefix
        self.trained = Modulation(settings, grid, num_prefix)
        self.override: Modulation | None = None

    @property
    def settings(self) -> SkipSettings:
        """What is in force: the override where there is one, else what was trained."""
        return (self.override or self.trained).settings

    def set_override(self, settings: SkipSettings, device: torch.device) -> None:
        """Use other settings from now on; those equal to the trained ones lift the override."""
        if settings == self.trained.settings:
            self.override = None
        else:
            self.override = Modulation(settings, self.grid, self.num_prefix).to(device)

    def forward(
        self, backbone: Tensor, skip: Tensor, active: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Modulate the backbone and the skip features.

        Args:
            backbone: (batch, prefix + patch tokens, channels).
            skip: The same shape.
            active: (batch, 1, 1) boolean, the images on which the override acts; None means all.

        Returns:
            Scaled backbone features and filtered skip features, each of the same shape.
        """
        if self.override is None:
            return self.trained(backbone, skip)
        inside = self.override(backbone, skip)
        if active is None:
            return inside
        outside = self.trained(backbone, skip)
        return torch.where(active, inside[0], outside[0]), torch.where(
            active, inside[1], outside[1]
        )
