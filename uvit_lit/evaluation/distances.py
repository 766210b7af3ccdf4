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

import importlib.util
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel, poly_mmd

from uvit_lit.errors import InputError, install
from uvit_lit.evaluation.features import Features
from uvit_lit.files import read_stats, replacing
from uvit_lit.progress import progress

ROWS = 500
"""Images of which the kernel to all others is in memory at once."""

LARGEST = 1e10
"""Of the numbers in statistics; products of far larger ones overflow, on which LAPACK crashes."""

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


KEPT = 10_000
"""Feature vectors that are kept, of the reference and of the generated images."""

NEIGHBOURS = 3
"""Whose distance is the radius of a ball (Kynkaanniemi et al. 2019; ``torch-fidelity``)."""


@dataclass
class Reference:
    """Statistics of real images in a feature space.

    Attributes:
        mu: Mean, (features,) float64.
        sigma: Covariance, (features, features) float64.
        features: At most ``KEPT`` feature vectors; none where only mu and sigma are known.
    """

    mu: Tensor
    sigma: Tensor
    features: Tensor

    @classmethod
    def build(cls, extract: Features, images: Tensor, batch_size: int) -> "Reference":
        """Statistics of (images, 3, H, W) uint8, ``batch_size`` at once on each device.

        Raises:
            ValueError: If there are fewer than 2 images, which have no covariance.
        """
        if len(images) < 2:
            raise InputError(f"the reference has {len(images)} images; accepted: at least 2")
        stream = FrechetInceptionDistance(feature=_Given(extract.num_features))
        kept: list[Tensor] = []
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        batches = chosen.split(batch_size * extract.devices.count)
        shown = extract.devices.is_main
        for indices in progress(batches, desc="reference features", unit="batch", show=shown):
            features = extract(images[indices])
            stream.update(features, real=True)
            if sum(map(len, kept)) < KEPT:
                kept.append(features)
        count = stream.real_features_num_samples
        mu = stream.real_features_sum / count
        sigma = (stream.real_features_cov_sum - count * torch.outer(mu, mu)) / (count - 1)
        return cls(mu, sigma, torch.cat(kept)[:KEPT])

    @cached_property
    def kernel(self) -> Tensor:
        """``mean_kernel`` of the kept features: (images,) float64."""
        return mean_kernel(self.features)

    def write(self, path: Path) -> None:
        """Write in the layout of pytorch-fid (mu, sigma), with the kept features beside."""
        with replacing(path) as file:
            np.savez(
                file, mu=self.mu.numpy(), sigma=self.sigma.numpy(), features=self.features.numpy()
            )

    @classmethod
    def read(cls, path: Path) -> "Reference":
        """Read what ``write`` or pytorch-fid wrote.

        Raises:
            ValueError: If the file is missing or damaged, or mu, sigma and features do not fit
                each other, are not finite, or sigma is no covariance.
        """
        arrays = read_stats(path)
        mu, sigma = arrays["mu"], arrays["sigma"]
        features = arrays.get("features", np.empty((0, mu.size)))
        for name, array in {"mu": mu, "sigma": sigma, "features": features}.items():
            if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
                raise InputError(f"statistics {path}: {name} has other than finite real numbers")
            if (np.abs(array) > LARGEST).any():
                raise InputError(f"statistics {path}: {name} has numbers above {LARGEST:g}")
        shapes = [array.shape for array in (mu, sigma, features)]
        fit = mu.ndim == 1 and mu.size > 0 and sigma.shape == (mu.size, mu.size)
        if not fit or features.ndim != 2 or features.shape[1] != mu.size:
            raise InputError(
                f"statistics {path} have mu, sigma and features of shape "
                f"{', '.join(map(str, shapes))}, which do not fit each other"
            )
        sigma = sigma.astype(np.float64)
        largest = np.abs(sigma).max()
        if not np.allclose(sigma, sigma.T, rtol=0, atol=1e-5 * largest):
            raise InputError(f"statistics {path}: sigma is not symmetric, so no covariance")
        lowest = np.linalg.eigvalsh(sigma)[0]
        if lowest < -1e-4 * largest:
            raise InputError(
                f"statistics {path}: sigma has the eigenvalue {lowest:.3g}, so it is no covariance"
            )
        parts = (mu.astype(np.float64), sigma, features.astype(np.float32))
        return cls(*map(torch.from_numpy, parts))


class _Given(nn.Module):
    """Stands for the network where the features are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """Return the features."""
        return features


class Distances:
    """Distances of a stream of generated images to a reference.

    Args:
        reference: Statistics of real images.
        metrics: Which of ``fid``, ``kid``, ``precision_recall``.

    Raises:
        ValueError: If the reference lacks features that KID or precision and recall need, or a
            package is missing.
    """

    def __init__(self, reference: Reference, metrics: set[str]) -> None:
        if metrics & {"kid", "precision_recall"} and len(reference.features) < 2:
            raise InputError(
                "kid and precision_recall need the features of the reference, which statistics "
                "in the layout of pytorch-fid lack; accepted with them: fid"
            )
        if "precision_recall" in metrics:
            if len(reference.features) <= NEIGHBOURS:
                raise InputError(
                    f"the reference has {len(reference.features)} images; accepted "
                    f"with precision_recall: more than {NEIGHBOURS}"
                )
            if importlib.util.find_spec("torch_fidelity") is None:
                raise InputError(f"precision_recall needs a package: {install('metrics')}")
        self.reference = reference
        self.metrics = metrics
        self.frechet = FrechetInceptionDistance(
            feature=_Given(len(reference.mu)),
            sync_on_compute=False,  # one process has all of the features
        )
        self.frechet.orig_dtype = torch.float32  # of its value; an update would say it
        two = torch.tensor(2)  # any number of samples gives back the same mean and covariance
        self.frechet.real_features_num_samples = two
        self.frechet.real_features_sum = two * reference.mu
        self.frechet.real_features_cov_sum = reference.sigma + two * torch.outer(
            reference.mu, reference.mu
        )
        self.kept = torch.empty(0, len(reference.mu))
        self.count = 0

    def update(self, features: Tensor) -> None:
        """Take the (images, features) of a batch of generated images.

        Raises:
            ValueError: If they are not finite.
        """
        if not features.isfinite().all():
            raise InputError("the features of a generated image are not finite")
        self.count += len(features)
        if "fid" in self.metrics:
            self.frechet.update(features, real=False)
        if self.metrics & {"kid", "precision_recall"} and len(self.kept) < KEPT:
            self.kept = torch.cat([self.kept, features])[:KEPT]

    def compute(self) -> dict[str, Any]:
        """Values of the metrics by name.

        Returns:
            Numbers; for ``kid`` the two samples of the function ``kid``, the generated images in
            the order of their seeds, so that two settings can be paired; ``kid_blocks`` where
            there are enough images for it.
        """
        values: dict[str, Any] = {}
        if "fid" in self.metrics:
            with warnings.catch_warnings(action="ignore"):  # none was updated since it went on
                values["fid"] = float(self.frechet.compute()) if self.count > 1 else math.nan
        if "kid" in self.metrics:
            real = self.reference.features
            values["kid"] = kid(self.kept, real, self.reference.kernel)
            blocks = kid_of_blocks(self.kept, real)
            if blocks is not None:
                values["kid_blocks"] = blocks
        if "precision_recall" in self.metrics:
            from torch_fidelity.metric_prc import calculate_precision_recall_full

            values["precision"], values["recall"] = map(
                float,
                calculate_precision_recall_full(
                    self.kept, self.reference.features, NEIGHBOURS, 10_000
                ),
            )
        return values

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted evaluation goes on from."""
        return {
            "frechet": {name: getattr(self.frechet, name) for name in FAKE},
            "kept": self.kept,
            "count": self.count,
        }

    def example_state(self, images: int) -> dict[str, Any]:
        """What ``state_dict`` is like after some images: its kinds and shapes, and their number."""
        frechet = {name: getattr(self.frechet, name) for name in FAKE}
        kept = min(images, KEPT) if self.metrics & {"kid", "precision_recall"} else 0
        kept_features = self.kept.new_zeros(kept, len(self.reference.mu))
        return {"frechet": frechet, "kept": kept_features, "count": images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        for name in FAKE:
            setattr(self.frechet, name, state["frechet"][name])
        self.kept, self.count = state["kept"], state["count"]


FAKE = ("fake_features_sum", "fake_features_cov_sum", "fake_features_num_samples")
