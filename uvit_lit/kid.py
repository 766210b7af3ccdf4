"""KID, the squared maximum mean discrepancy, of all generated images and all real ones.

The kernel of d features is k(x, y) = (x . y / d + 1)^3, and the estimate of m generated images x
and n real images y the U-statistic

    KID = mean of k(x_i, x_j) over i != j + mean of k(y_i, y_j) over i != j
          - 2 times the mean of k(x_i, y_j),

which is unbiased for any m and n. Up to terms of second order it is a sum of one number per image,
its projections, from which its variance follows. Those terms are counted twice, so that an interval
is too wide where the two distributions are nearly the same.

References:
    Binkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4.
    Hoeffding, "A class of statistics with asymptotically normal distribution", 1948.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.image.kid import poly_kernel, poly_mmd

ROWS = 500
"""Images of which the kernel to all others is in memory at once."""

BLOCK = 1000
"""Images in a block of KID as papers print it."""


class Blocks(NamedTuple):
    """KID as papers print it.

    Attributes:
        mean: Mean over blocks of ``BLOCK`` generated and as many real images.
        std: Standard deviation over the blocks; nan for a single one.
    """

    mean: float
    std: float


def mean_kernel(features: Tensor) -> Tensor:
    """Mean kernel of each image to all the others.

    Args:
        features: (images, features).

    Returns:
        (images,) float64; nan for a single image.
    """
    features = features.double()
    own = (features.square().mean(1) + 1) ** 3
    sums = [poly_kernel(some, features).sum(1) for some in features.split(ROWS)]
    return (torch.cat(sums) - own) / (len(features) - 1)


def kid(generated: Tensor, real: Tensor, real_kernel: Tensor) -> list[Tensor]:
    """KID as one number per image: it is the sum of the means of both.

    The numbers are the pseudo-values of the jackknife to first order: with h_i the mean kernel of
    image i to the others of its kind minus that to the other kind, 2 h_i - mean(h). The variance of
    each mean is that of its images divided by their number.

    Args:
        generated: (m, features).
        real: (n, features).
        real_kernel: ``mean_kernel`` of the real images.

    Returns:
        Two samples, (m,) and (n,) float64; nan where there is a single image.
    """
    real = real.double()
    rows, columns = [], torch.zeros(len(real), dtype=torch.float64)
    for some in generated.double().split(ROWS):
        kernel = poly_kernel(some, real)
        rows.append(kernel.mean(1))
        columns += kernel.sum(0)
    own, other = mean_kernel(generated) - torch.cat(rows), real_kernel - columns / len(generated)
    return [2 * own - own.mean(), 2 * other - other.mean()]


def kid_of_blocks(generated: Tensor, real: Tensor) -> Blocks | None:
    """KID in blocks of ``BLOCK`` images of (images, features); None where one kind has fewer."""
    pairs = zip(generated.double().split(BLOCK), real.double().split(BLOCK), strict=False)
    values = [poly_mmd(y, x) for x, y in pairs if len(x) == len(y) == BLOCK]
    if not values:
        return None
    stacked = torch.stack(values)
    return Blocks(float(stacked.mean()), float(stacked.std()) if len(values) > 1 else math.nan)
