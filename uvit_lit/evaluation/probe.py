"""Which class an image looks like: a linear probe on the features of real images.

The probe is a multinomial logistic regression on standardised features. Its share of right answers
on real images that it was not trained on is what generated images can reach.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from uvit_lit.data.folder import Images
from uvit_lit.evaluation.features import Features
from uvit_lit.progress import progress

PENALTY = 0.05
"""Half of this times the sum of the squared weights is added to the mean cross-entropy."""


@dataclass
class Probe:
    """A linear classifier of features, and how often it is right.

    Attributes:
        weight: (classes, features) float32.
        bias: (classes,) float32.
        right: Whether it is right about each real image that was held out, (images,) boolean.
        labels: Labels of these images, (images,) int64.
    """

    weight: Tensor
    bias: Tensor
    right: Tensor
    labels: Tensor

    @classmethod
    def build(cls, extract: Features, train: Images, held_out: Images, batch_size: int) -> "Probe":
        """Train on some images and try on others, ``batch_size`` at once on each device."""
        shown = extract.devices.is_main
        total = len(train.pixels) + len(held_out.pixels)
        with progress(total=total, desc="probe features", unit="img", show=shown) as bar:

            def features(images: Images) -> Tensor:
                parts = []
                for some in images.pixels.split(batch_size * extract.devices.count):
                    parts.append(extract(some))
                    bar.update(len(some))
                return torch.cat(parts)

            weight, bias = fit(features(train), train.labels, len(train.class_names))
            probe = cls(weight, bias, torch.empty(0), held_out.labels)
            probe.right = probe.agrees(features(held_out), held_out.labels)
        return probe

    def agrees(self, features: Tensor, labels: Tensor) -> Tensor:
        """Whether (images, features) are put into the classes of their labels: (images,)."""
        return (features @ self.weight.T + self.bias).argmax(1) == labels


def fit(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Fit a multinomial logistic regression (L-BFGS of scipy).

    Args:
        features: (images, features).
        labels: (images,), below ``classes``.
        classes: Number of classes.

    Returns:
        Weight (classes, features) and bias (classes,), for features that are not standardised.
    """
    features = features.double()
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    standard = (features - mean) / std

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.from_numpy(flat).view(classes, -1).requires_grad_()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        logits = standard @ weight.T + bias
        value = F.cross_entropy(logits, labels) + PENALTY / 2 * weight.square().sum()
        (gradient,) = torch.autograd.grad(value, parameters)
        return value.item(), gradient.numpy().ravel()

    start = np.zeros(classes * (features.shape[1] + 1))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-6}).x
    parameters = torch.from_numpy(found).view(classes, -1)
    weight = parameters[:, :-1] / std
    return weight.float(), (parameters[:, -1] - weight @ mean).float()
