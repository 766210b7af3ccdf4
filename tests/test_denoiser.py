"""Predictions and loss."""

import pytest
import torch
from torch import nn

from uvit_lit.diffusion import PREDICTIONS, Denoiser


class Recorder(nn.Module):
    """Backbone that answers with a constant per label and remembers its input."""

    null_class = 2

    def forward(self, x, timesteps, y):
        self.x, self.timesteps, self.y = x, timesteps, y
        return torch.zeros_like(x) + y.view(-1, 1, 1, 1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_backbone_gives_the_clean_image(prediction):
    denoiser = Denoiser(nn.Identity(), "vp", prediction)
    x0, eps = torch.randn(2, 3, 3, 4, 4, dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x_t, target = denoiser.add_noise(x0, eps, t), denoiser.target(x0, eps, t)
    denoiser.predict = lambda *_: target
    torch.testing.assert_close(denoiser(x_t, t).double(), x0, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_prediction_has_no_loss_and_a_wrong_one_its_mean_square(prediction):
    x0, eps = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    t = torch.tensor([0.3, 0.8])
    denoiser = Denoiser(nn.Identity(), "vp", prediction)
    target = denoiser.target(x0, eps, t)
    denoiser.predict = lambda *_: target
    assert torch.equal(denoiser.loss(x0, eps, t), torch.zeros(2))
    denoiser.predict = lambda *_: target + torch.tensor([2.0, 3.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(denoiser.loss(x0, eps, t), torch.tensor([4.0, 9.0]))


class Constant(nn.Module):
    """Backbone whose output is a number per label, which it learns."""

    null_class = 2

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(3))

    def forward(self, x, timesteps, y):
        return torch.zeros_like(x) + self.value[y].view(-1, 1, 1, 1)


@pytest.mark.parametrize("w", [1.0, 1.5, 3.0])
def test_a_model_learns_the_guided_prediction(w):
    backbone = Constant()
    denoiser = Denoiser(backbone, "cosine", "x0")
    labels = torch.tensor([0, 1, 2])
    data = torch.tensor([-1.0, 0.4, -0.3])  # mean image of each class, and of all
    x0 = data.view(3, 1, 1, 1).expand(3, 1, 2, 2)
    cfg = torch.tensor([w, w, 1.0])  # the null class is not guided
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        losses = denoiser.loss(x0, torch.zeros_like(x0), torch.full((3,), 0.5), labels, cfg)
        losses.sum().backward()
        optimizer.step()
    torch.testing.assert_close(backbone.value.detach(), data[2] + cfg * (data - data[2]))


def test_guidance_in_the_target_has_no_gradient():
    backbone = Constant()
    x0, t = torch.ones(1, 1, 2, 2), torch.tensor([0.5])
    denoiser = Denoiser(backbone, "cosine", "x0")
    denoiser.loss(x0, x0, t, torch.tensor([0]), torch.tensor([2.0])).sum().backward()
    assert backbone.value.grad[0] != 0
    assert backbone.value.grad[2] == 0


def test_the_backbone_sees_scaled_time():
    backbone = Recorder()
    Denoiser(backbone)(torch.zeros(1, 1, 2, 2), torch.tensor([0.5]), torch.tensor([0]))
    assert backbone.timesteps.item() == 499.5


def test_unknown_prediction():
    with pytest.raises(ValueError, match=r"'score'.*eps"):
        Denoiser(nn.Identity(), prediction="score")


def test_a_window_outside_0_to_1_is_named():
    with (
        pytest.raises(ValueError, match=r"range of t is 0.5,0.2"),
        Denoiser(Recorder()).skips(s=0.5, t_range=(0.5, 0.2)),
    ):
        pass


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_weighted_loss_is_that_of_the_velocity_whatever_is_predicted(prediction):
    """The straight path z = (1 - u) eps + u x0, with u where its noise level is that of t."""
    denoiser, t = Denoiser(nn.Identity(), "cosine", prediction), torch.tensor([0.1, 0.5, 0.8])
    alpha, sigma = denoiser.schedule.alpha_sigma(t)
    x0, eps, error = torch.full((3, 1), 0.2), torch.ones(3, 1), 0.1 * torch.ones(3, 1)
    u = (alpha / (alpha + sigma))[:, None]
    z = (1 - u) * eps + u * x0
    velocity, found = ((image - z) / (1 - u) for image in (x0, x0 + error))
    expected = (found - velocity).square().mean(1)

    x_t = denoiser.add_noise(x0, eps, t)
    off = (x_t - alpha[:, None] * (x0 + error)) / sigma[:, None]  # the noise that x0 + error means
    difference = denoiser.target(x0 + error, off, t) - denoiser.target(x0, eps, t)
    weighed = denoiser.velocity_weight(t) * difference.square().mean(1)
    torch.testing.assert_close(weighed, expected)
    weights = denoiser.velocity_weight(torch.linspace(0, 1, 100))
    assert 0 <= weights.min() <= weights.max() <= 400
