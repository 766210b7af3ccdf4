"""Seeds, solvers and rounding."""

import math

import pytest
import torch
from torch import nn

from uvit_lit.diffusion import PREDICTIONS, SCHEDULES, Denoiser
from uvit_lit.sampling import SOLVERS, STOCHASTIC, sample, to_uint8
from uvit_lit.uvit import UViT

SHAPE = (3, 8, 8)


class ExactGaussian(nn.Module):
    """Backbone of the perfect eps prediction when the data are normal(0.3, 0.4^2)."""

    mean, std = 0.3, 0.4

    def forward(self, x, timesteps, y):
        t = timesteps.double() / self.schedule.time_scale
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in self.schedule.alpha_sigma(t))
        variance = alpha**2 * self.std**2 + sigma**2
        return (sigma * (x - alpha * self.mean) / variance).float()


def exact(schedule="vp"):
    denoiser = Denoiser(ExactGaussian(), schedule)
    denoiser.backbone.schedule = denoiser.schedule
    return denoiser


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    backbone = UViT(img_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    return Denoiser(backbone).eval()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_recover_a_gaussian(solver, schedule):
    steps = 250 if solver in ("ddpm", "ddim") else 50  # first order needs more
    x = sample(exact(schedule), (1, 16, 16), list(range(64)), solver=solver, steps=steps)
    assert x.mean() == pytest.approx(0.3, abs=0.02)
    assert x.std() == pytest.approx(0.4, abs=0.02)


def distance(solver, schedule, steps, first=1.0):
    """Largest distance to the end of the exact path from the noise at time ``first``."""
    denoiser, seeds, shape = exact(schedule), list(range(16)), (1, 4, 4)
    noise = torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    alpha, sigma = (float(v) for v in denoiser.schedule.alpha_sigma(torch.tensor(first)))
    end = 0.3 + 0.4 * (noise - 0.3 * alpha) / math.hypot(0.4 * alpha, sigma)
    x = sample(denoiser, shape, seeds, solver=solver, steps=steps)
    return float((x - end).abs().max())


@pytest.mark.parametrize("schedule", ["vp", "linear", "cosine"])
@pytest.mark.parametrize(
    ("solver", "order"), [("ddim", 1), ("dpmpp", 2), ("unipc", 3), ("heun", 2)]
)
def test_deterministic_solvers_converge_at_least_at_their_order(solver, order, schedule):
    """To the end of the exact path, from 20 to 80 steps; the table of 1,000 ends it near 3e-4.

    The corrector of UniPC-2 raises the order of its predictor by one (Zhao et al. 2023).
    """
    first = 0.995 if schedule == "cosine" and solver != "ddim" else 1.0  # noise of 128 or more
    few, some, many = (distance(solver, schedule, steps, first) for steps in (20, 80, 200))
    assert math.log(few / some) / math.log(4) > order - 0.3
    assert many < (0.025 if order == 1 else 0.001)


@pytest.mark.parametrize(
    ("solver", "bound"), [("ddim", 0.07), ("dpmpp", 0.006), ("unipc", 0.006), ("heun", 0.006)]
)
def test_the_sd_schedule_ends_near_the_exact_path(solver, bound):
    """Its table ends at a noise of 0.03, three times that of the others."""
    assert distance(solver, "sd", 80) < bound


@pytest.mark.parametrize("solver", ["dpmpp", "sde-dpmpp", "unipc", "heun"])
def test_the_cosine_schedule_spends_its_steps_on_the_image(solver):
    """Steps that are even in log-SNR begin where an image begins to show, not at pure noise."""
    denoiser, times = exact("cosine"), []
    denoiser.backbone.register_forward_pre_hook(lambda _, inputs: times.append(inputs[1][0]))
    sample(denoiser, (1, 2, 2), [0], solver=solver, steps=25)
    times = torch.stack(times) / 1000
    assert 0.99 < times.max() < 0.997
    assert (times > 0.99).float().mean() < 0.15


def test_ddim_is_that_of_diffusers(network):
    """Where the number of steps divides 1000, at the same times."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        trained_betas=network.schedule.betas().numpy(),
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(20)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))[None]
    with torch.inference_mode():
        for n in scheduler.timesteps:
            output = network.predict(x, (n.float()[None] + 1) / 1000)
            x = scheduler.step(output, n, x).prev_sample
    own = sample(network, SHAPE, [7], solver="ddim", steps=20)
    torch.testing.assert_close(own, x, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_image_depends_on_its_seed_and_label_alone(network, solver):
    options = {"solver": solver, "steps": 5}
    seven = sample(network, SHAPE, list(range(7)), [0, 1, 2] * 2 + [0], batch_size=3, **options)
    alone = sample(network, SHAPE, [5], [2], batch_size=1, **options)
    torch.testing.assert_close(seven[5], alone[0], atol=1e-4, rtol=1e-4)
    other_label = sample(network, SHAPE, [5], [1], **options)
    other_seed = sample(network, SHAPE, [6], [2], **options)
    assert (alone - other_label).abs().max() > 1e-3
    assert (alone - other_seed).abs().max() > 1e-1


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_stochastic_solvers_add_their_own_noise(solver):
    """From the same first noise a stochastic and a deterministic path end apart."""
    options = {"steps": 20}
    noisy = sample(exact(), SHAPE, [0], solver=solver, **options)
    straight = sample(exact(), SHAPE, [0], solver="dpmpp", **options)
    assert (noisy - straight).abs().mean() > 0.05
    assert torch.equal(noisy, sample(exact(), SHAPE, [0], solver=solver, **options))


class Converted(nn.Module):
    """Backbone that predicts something else from the eps of another."""

    def __init__(self, denoiser, prediction):
        super().__init__()
        self.denoiser, self.prediction = denoiser, prediction

    def forward(self, x, timesteps, y):
        schedule = self.denoiser.schedule
        alpha, sigma = schedule.alpha_sigma(timesteps.double() / schedule.time_scale)
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in (alpha, sigma))
        eps = self.denoiser.backbone(x, timesteps, y).double()
        x0 = (x - sigma * eps) / alpha
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[self.prediction].float()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_knows_what_is_predicted(solver, schedule):
    """The same perfect denoiser, expressed three ways, makes the same images."""
    options = {"solver": solver, "steps": 10}
    images = {
        prediction: sample(
            Denoiser(Converted(exact(schedule), prediction), schedule, prediction),
            (1, 4, 4),
            list(range(8)),
            **options,
        )
        for prediction in PREDICTIONS
    }
    for prediction in ("x0", "v"):
        torch.testing.assert_close(images[prediction], images["eps"], atol=5e-3, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_thousand_steps_are_finite(solver):
    x = sample(exact(), (1, 2, 2), list(range(50)), solver=solver, steps=1000)
    assert x.isfinite().all()
    assert x.mean() == pytest.approx(0.3, abs=0.1)


def test_rounding():
    values = torch.tensor([-2.0, -1.0, -1 + 1.4 / 127.5, 0.0, 1.0, 3.0])
    assert to_uint8(values).tolist() == [0, 0, 1, 128, 255, 255]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"solver": "euler"}, "euler.*dpmpp"),
        ({"solver": "math:pi"}, "'math:pi', a float; accepted: ddpm"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "1001"),
    ],
)
def test_wrong_solvers_and_steps(network, wrong, message):
    with pytest.raises(ValueError, match=message):
        sample(network, SHAPE, [0], **wrong)
