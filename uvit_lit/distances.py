"""Distances between generated and real images in a feature space, as a stream.

The formulas are those of ``torchmetrics`` (Frechet distance), ``uvit_lit.kid`` and
``torch-fidelity`` (precision and recall). Images go by in batches; what is kept is sums, and for
all but the Frechet distance the first ``KEPT`` feature vectors.
"""

import importlib.util
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from uvit_lit.features import Features
from uvit_lit.files import replacing
from uvit_lit.kid import kid, kid_of_blocks, mean_kernel

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
            raise ValueError(f"the reference has {len(images)} images; accepted: at least 2")
        stream = FrechetInceptionDistance(feature=_Given(extract.num_features))
        kept: list[Tensor] = []
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        batches = chosen.split(batch_size * extract.devices.count)
        hidden = not extract.devices.is_main
        for indices in tqdm(batches, desc="reference features", unit="batch", disable=hidden):
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
            np.savez(file, mu=self.mu.numpy(), sigma=self.sigma.numpy(),
                     features=self.features.numpy())  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> "Reference":
        """Read what ``write`` or pytorch-fid wrote.

        Raises:
            ValueError: If the file is missing or has no mu and sigma that fit each other.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                mu, sigma = (torch.from_numpy(stored[name]).double() for name in ("mu", "sigma"))
                features = (
                    torch.from_numpy(stored["features"]).float()
                    if "features" in stored
                    else torch.empty(0, len(mu))
                )
        except (OSError, KeyError, ValueError, EOFError, TypeError, BadZipFile) as error:
            raise ValueError(
                f"statistics {path} cannot be read ({error}); accepted: an npz file with mu and "
                "sigma, as pytorch-fid writes"
            ) from None
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise ValueError(f"statistics {path} have mu {tuple(mu.shape)}, sigma "
                             f"{tuple(sigma.shape)}, which do not fit each other")  # fmt: skip
        return cls(mu, sigma, features)


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
            raise ValueError(
                "kid and precision_recall need the features of the reference, which statistics "
                "in the layout of pytorch-fid lack; accepted with them: fid"
            )
        if "precision_recall" in metrics:
            if len(reference.features) <= NEIGHBOURS:
                raise ValueError(f"the reference has {len(reference.features)} images; accepted "
                                 f"with precision_recall: more than {NEIGHBOURS}")  # fmt: skip
            if importlib.util.find_spec("torch_fidelity") is None:
                raise ValueError("precision_recall needs a package: pip install -e '.[metrics]'")
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
        """Take the (images, features) of a batch of generated images."""
        self.count += len(features)
        if "fid" in self.metrics:
            self.frechet.update(features, real=False)
        if self.metrics & {"kid", "precision_recall"} and len(self.kept) < KEPT:
            self.kept = torch.cat([self.kept, features])[:KEPT]

    def compute(self) -> dict[str, Any]:
        """Values of the metrics by name.

        Returns:
            Numbers; for ``kid`` the two samples of ``uvit_lit.kid.kid``, the generated images in
            the order of their seeds, so that two settings can be paired; ``kid_blocks`` where
            there are enough images for it.
        """
        values: dict[str, Any] = {}
        if "fid" in self.metrics:
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

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        for name in FAKE:
            setattr(self.frechet, name, state["frechet"][name])
        self.kept, self.count = state["kept"], state["count"]


FAKE = ("fake_features_sum", "fake_features_cov_sum", "fake_features_num_samples")
