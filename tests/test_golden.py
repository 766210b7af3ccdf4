"""What the weights in the package give, as numbers: a change of the mathematics shows here.

After the weights are replaced, ``python tests/test_golden.py`` prints the new numbers.
"""

import numpy as np
import pytest
import torch

from uvit_lit import generate, load_model

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)

LOSSES = [0.00479831, 0.0155312, 0.0400585, 0.143788, 0.444839]
"""Mean loss of the eight images at each of ``TIMES``."""

MEANS = [133.924, 132.057, 153.385, 67.1006, 72.4183, 116.853, 121.76, 123.73]
STDS = [65.5356, 85.1804, 41.0704, 34.4922, 25.0888, 58.7928, 30.0984, 58.6048]
"""Mean and standard deviation of each sample, in grey levels."""


def waves():
    """Eight images of plane waves, one a class."""
    y, x = np.mgrid[0:32, 0:32] / 32
    phase = np.arange(3)[:, None, None]
    images = [np.cos(2 * np.pi * (k * x + (7 - k) * y) / 3 + phase) for k in range(8)]
    return torch.tensor(np.stack(images), dtype=torch.float32)


@torch.no_grad()
def losses(model):
    x0, labels = waves(), torch.arange(8)
    noise = np.random.default_rng(0).standard_normal(x0.shape)
    eps = torch.tensor(noise, dtype=torch.float32)
    return [float(model.denoiser.loss(x0, eps, torch.full((8,), t), labels).mean()) for t in TIMES]


def sample(model):
    images = generate(model, 8, seed=0, steps=8, progress=False).double().flatten(1)
    return images.mean(1).tolist(), images.std(1).tolist()


def test_the_loss_of_the_weights_in_the_package():
    """To 1e-4: noise of 1e-6 on every weight changes it by 1e-6, a factor of 0.999 by 2e-3.

    The last is the smallest change of a loss below t = 0.9.
    """
    assert losses(load_model()) == pytest.approx(LOSSES, rel=1e-4)


def test_samples_of_the_weights_in_the_package():
    """To 0.05 grey levels: noise of 1e-6 on every weight changes them by 0.001, s = 0.98 by 0.2."""
    means, stds = sample(load_model())
    assert means == pytest.approx(MEANS, abs=0.05)
    assert stds == pytest.approx(STDS, abs=0.05)


if __name__ == "__main__":
    model = load_model()
    means, stds = sample(model)
    for name, values in (("LOSSES", losses(model)), ("MEANS", means), ("STDS", stds)):
        print(f"{name} = {[float(f'{value:.6g}') for value in values]}")
