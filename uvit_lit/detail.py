"""Level of detail in numbers: what can be measured on pixels alone, with no download.

Every metric takes (images, 3, height, width) uint8 and gives one float64 number per image, so that
differences between two settings can be paired by seed. Luma is 0.299 R + 0.587 G + 0.114 B
(ITU-R BT.601), on the scale 0 to 255.
"""

import math
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from scipy import stats
from torch import Tensor
from torchmetrics.functional.image import total_variation as torchmetrics_total_variation

from uvit_lit.filters import frequencies

BANDS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, math.sqrt(2)))
"""Bands of radial frequency, fraction of the pixel grid's Nyquist; the mean is in none of them."""


def luma(images: Tensor) -> Tensor:
    """Luma of each pixel: (images, 3, H, W) uint8 to (images, H, W) float64 in [0, 255]."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64, device=images.device)
    return torch.einsum("nchw,c->nhw", images.double(), weights)


def _spectrum(images: Tensor) -> tuple[Tensor, Tensor]:
    """Radius of every bin, and power |X|^2 / pixels of the luma, (images, bins), mean left out."""
    gray = luma(images)
    radius = torch.hypot(*frequencies((gray.shape[-2], gray.shape[-1])).unbind(-1))
    radius = radius.flatten().to(images.device)
    power = torch.fft.fft2(gray, norm="ortho").abs().square().flatten(1)
    return radius[1:], power[:, 1:]


def radial_power_spectrum(images: Tensor) -> tuple[Tensor, Tensor]:
    """Radially averaged power spectrum of the luma of each image.

    Args:
        images: (images, 3, H, W) uint8.

    Returns:
        Radial frequencies (rings,), fraction of Nyquist in steps of 2 / max(H, W), without the
        mean; and (images, rings), the mean power of the bins nearest to each.
    """
    radius, power = _spectrum(images)
    spacing = 2 / max(images.shape[-2:])
    last = int(math.sqrt(2) / spacing)  # the ring below the corner has the corner too
    ring = (radius / spacing).round().long().clamp(1, last) - 1
    count = torch.bincount(ring).to(power)
    total = power.new_zeros(len(power), len(count)).index_add(1, ring, power)
    return spacing * torch.arange(1, len(count) + 1).to(power), total / count


def band_power(images: Tensor) -> Tensor:
    """Mean power of the luma in each of ``BANDS``: (images, 4)."""
    radius, power = _spectrum(images)
    inside = torch.stack([(radius >= low) & (radius < high) for low, high in BANDS])
    inside[-1] |= radius >= BANDS[-1][1]  # the corner itself
    weights = inside.double() / inside.sum(dim=1, keepdim=True)
    return power @ weights.T


def band_decibels(images: Tensor) -> dict[str, Tensor]:
    """The power of each band of each image in dB: name of the band to (images,) on the CPU."""
    decibels = 10 * band_power(images).clamp_min(1e-12).log10().cpu()
    return {
        f"power_{low:.2f}-{high:.2f}_db": column
        for (low, high), column in zip(BANDS, decibels.T, strict=True)
    }


def high_frequency_ratio(images: Tensor) -> Tensor:
    """Share of the luma's power above half of Nyquist, the mean left out; in [0, 1]."""
    radius, power = _spectrum(images)
    return power[:, radius > 0.5].sum(1) / power.sum(1).clamp_min(1e-12)


def laplacian_variance(images: Tensor) -> Tensor:
    """Variance of the 4-neighbour Laplacian of the luma inside the border, a measure of focus.

    References:
        Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).to(images.device, torch.float64)
    return F.conv2d(luma(images)[:, None], kernel[None, None]).flatten(1).var(1, correction=0)


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring values, in grey levels.

    The anisotropic total variation of ``torchmetrics`` divided by its number of differences
    (Rudin, Osher and Fatemi 1992).
    """
    _, channels, height, width = images.shape
    differences = channels * ((height - 1) * width + height * (width - 1))
    return torchmetrics_total_variation(images.double(), reduction="none") / differences


def colourfulness(images: Tensor) -> Tensor:
    """Colourfulness of Hasler and Suesstrunk.

    With rg = R - G and yb = (R + G) / 2 - B: the length of their standard deviations plus 0.3
    times the length of their means.

    References:
        "Measuring colourfulness in natural images", SPIE 2003, equation 6 (C(3)).
    """
    red, green, blue = images.double().flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1)
    deviations, means = opponents.std(-1, correction=0), opponents.mean(-1)
    return deviations.norm(dim=1) + 0.3 * means.norm(dim=1)


def saturation(images: Tensor) -> Tensor:
    """Mean saturation (max - min) / max of the HSV model, 0 for black; in [0, 1]."""
    largest, smallest = images.double().amax(1), images.double().amin(1)
    return ((largest - smallest) / largest.clamp_min(1)).flatten(1).mean(1)


def clipped_share(images: Tensor) -> Tensor:
    """Share of the pixels of which a channel is 0 or 255; in [0, 1]."""
    return ((images == 0) | (images == 255)).any(1).double().flatten(1).mean(1)


def png_bytes(images: Tensor) -> Tensor:
    """Size of each image as a PNG of Pillow's default compression, in bytes."""
    sizes = []
    for image in images.cpu():
        buffer = BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
        sizes.append(buffer.tell())
    return torch.tensor(sizes, dtype=torch.float64)


DETAIL: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        high_frequency_ratio,
        laplacian_variance,
        total_variation,
        colourfulness,
        saturation,
        clipped_share,
        png_bytes,
    )
}
"""Detail metrics by name."""


def measure_detail(images: Tensor) -> dict[str, Tensor]:
    """All detail metrics of each image, and the power of each band in dB: name to (images,)."""
    values = {name: function(images).cpu() for name, function in DETAIL.items()}
    return values | band_decibels(images)


class Estimate(NamedTuple):
    """A mean over images and its 95 % confidence interval.

    Attributes:
        mean: Mean.
        low: Lower end; nan for a single image, which has no interval.
        high: Upper end; likewise.
    """

    mean: float
    low: float
    high: float


def estimate(*samples: Tensor) -> Estimate:
    """Sum of the means of independent samples, with its 95 % interval.

    Args:
        samples: (images,) numbers each: one sample for a mean, two for what compares generated
            images with real ones, of which both are drawn at random.

    Returns:
        The interval is that of Student's t distribution, for several samples with the degrees of
        freedom of Welch and Satterthwaite. The mean of booleans, a share, has Wilson's interval.

    References:
        Welch, "The generalization of Student's problem", Biometrika 1947.
        Wilson, "Probable inference", JASA 1927.

    >>> [round(x, 3) for x in estimate(torch.tensor([1.0, 2.0, 3.0]))]
    [2.0, -0.484, 4.484]
    >>> [round(x, 3) for x in estimate(torch.tensor([True, True, True, False]))]
    [0.75, 0.301, 0.954]
    """
    first, *more = samples
    if first.dtype == torch.bool and not more:
        share = stats.binomtest(int(first.sum()), len(first))
        low, high = share.proportion_ci(0.95, "wilson")
        return Estimate(float(share.statistic), float(low), float(high))
    mean = sum(float(sample.double().mean()) for sample in samples)
    if min(map(len, samples)) < 2:
        return Estimate(mean, math.nan, math.nan)
    squares = [float(sample.double().var()) / len(sample) for sample in samples]
    total = sum(squares)
    spread = sum(x**2 / (len(sample) - 1) for x, sample in zip(squares, samples, strict=True))
    freedom = total**2 / spread if spread else 1
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(total)
    return Estimate(mean, mean - half, mean + half)
