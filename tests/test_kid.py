"""KID as a U-statistic, and whether its intervals cover the truth."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchmetrics.image.kid import poly_mmd

from uvit_lit.detail import estimate
from uvit_lit.evaluation.distances import BLOCK, kid, kid_of_blocks, mean_kernel


@pytest.fixture(autouse=True)
def one_thread():
    """Many small products take longer on several."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def vectors(count, shift=0.0, seed=0, size=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) + shift


def samples(generated, real):
    return kid(generated, real, mean_kernel(real))


def value(generated, real):
    return sum(float(sample.mean()) for sample in samples(generated, real))


def test_it_is_the_mean_over_all_pairs():
    x, y = vectors(7, 0.3), vectors(5, seed=1)

    def mean(one, other, same):
        pairs = [
            (float(a @ b) / 6 + 1) ** 3
            for i, a in enumerate(one)
            for j, b in enumerate(other)
            if not (same and i == j)
        ]
        return sum(pairs) / len(pairs)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert value(x, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [2, 300, 1200])
def test_of_equally_many_images_it_is_that_of_torchmetrics(count):
    """Whose unbiased estimate leaves out no more than the diagonals, as ours."""
    x, y = vectors(count, 0.3), vectors(count, seed=1)
    assert value(x, y) == pytest.approx(float(poly_mmd(y, x)), rel=1e-9)


def test_the_order_of_the_images_does_not_matter():
    x, y = vectors(1100, 0.3), vectors(700, seed=1)
    order = torch.randperm(1100, generator=torch.Generator().manual_seed(0))
    assert value(x[order], y.flip(0)) == pytest.approx(value(x, y), rel=1e-12)
    there, here = samples(x, y)[0][order], samples(x[order], y)[0]
    torch.testing.assert_close(here, there)


def test_a_single_image_has_none():
    assert math.isnan(value(vectors(1), vectors(9)))


def test_blocks_are_those_of_papers():
    x, y = vectors(2 * BLOCK + 7, 0.3), vectors(3 * BLOCK, seed=1)
    each = [float(poly_mmd(y[k : k + BLOCK], x[k : k + BLOCK])) for k in (0, BLOCK)]
    blocks = kid_of_blocks(x, y)
    assert blocks == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    assert math.isnan(kid_of_blocks(x[:BLOCK], y).std)
    assert kid_of_blocks(x, y[: BLOCK - 1]) is None


def true_kid(*gaussians):
    """KID of two normal distributions, each a mean (d,) and a covariance (d, d).

    The kernel is 1 + 3 u + 3 u^2 + u^3 with u = x . y / d, so that KID is made of the squared
    distances of the first three moments.
    """
    moments = []
    for mean, covariance in gaussians:
        mixed = torch.einsum("i,jk->ijk", mean, covariance)
        third = torch.einsum("i,j,k->ijk", mean, mean, mean)
        third += mixed + mixed.permute(1, 0, 2) + mixed.permute(2, 1, 0)
        moments.append((mean, covariance + torch.outer(mean, mean), third))
    size = len(gaussians[0][0])
    distances = [float((one - other).square().sum()) for one, other in zip(*moments, strict=True)]
    return sum(weight * distances[k - 1] / size**k for k, weight in ((1, 3), (2, 3), (3, 1)))


@pytest.mark.parametrize(
    ("generated", "real", "size"), [(200, 200, 16), (400, 60, 8), (60, 400, 8)]
)
def test_intervals_of_kid_cover_the_truth(generated, real, size):
    """Of the KID, and of its difference to one of other images of the same seeds.

    The bounds hold what chance does to 95 % in so many repetitions, at one in a thousand.
    """
    repetitions = 400
    unit, shift = torch.eye(size, dtype=torch.float64), torch.full((size,), 0.3).double()
    near = true_kid((shift, unit), (0 * shift, unit))
    far = true_kid((2 * shift, 1.21 * unit), (0 * shift, unit))
    generator = torch.Generator().manual_seed(0)
    means, covered, differences = [], [], []
    for _ in range(repetitions):
        x, y = (
            torch.randn(n, size, generator=generator, dtype=torch.float64)
            for n in (generated, real)
        )
        one, other = samples(x + shift, y), samples(1.1 * x + 2 * shift, y)
        mean, low, high = estimate(*one)
        means.append(mean)
        covered.append(low < near < high)
        _, low, high = estimate(*(b - a for a, b in zip(one, other, strict=True)))
        differences.append(low < far - near < high)
    low, high = stats.binom.interval(0.999, repetitions, 0.95)
    assert low <= sum(covered) <= high
    assert low <= sum(differences) <= high
    assert abs(np.mean(means) - near) < 3.3 * np.std(means) / repetitions**0.5


def test_near_zero_the_interval_is_wide_rather_than_narrow():
    inside = [
        estimate(*samples(vectors(100, seed=k), vectors(100, seed=999 + k))) for k in range(200)
    ]
    assert sum(low < 0 < high for _, low, high in inside) >= 0.95 * 200
