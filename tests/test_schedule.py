"""The schedules against their formulas and against diffusers."""

import diffusers
import pytest
import torch

from uvit_lit.diffusion import SCHEDULES, STEPS, Schedule

DIFFUSERS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sd": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_tables_equal_those_of_diffusers(name):
    theirs = diffusers.DDPMScheduler(**DIFFUSERS[name]).alphas_cumprod.double()
    t = torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS
    ours = (2 * Schedule(name).log_alpha(t)).exp()
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=1e-9)


def test_vp_is_the_integral_of_beta():
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    beta = 0.1 + t * (20 - 0.1)
    integral = torch.cumulative_trapezoid(beta, t)
    torch.testing.assert_close(
        Schedule("vp").log_alpha(t[1:]), -0.5 * integral, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_variance_is_preserved_and_noise_grows(name):
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    alpha, sigma = Schedule(name).alpha_sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    assert (sigma.diff() > 0).all() or name == "cosine"
    assert (alpha.diff() < 0).all()
    assert (alpha[0], sigma[0]) == (1, 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_betas_carry_the_schedule_to_diffusers(name):
    scheduler = diffusers.DDPMScheduler(trained_betas=Schedule(name).betas().numpy())
    t = torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS
    ours = (2 * Schedule(name).log_alpha(t)).exp()
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), ours, rtol=1e-3, atol=1e-9)


def test_training_times():
    uniform = torch.tensor([0.0, 0.4999, 1 - 2**-24])
    assert torch.equal(Schedule("vp").times(uniform), uniform)
    steps = Schedule("sd").times(uniform) * STEPS
    torch.testing.assert_close(steps, torch.tensor([1.0, 500.0, 1000.0]))


def test_the_network_is_called_at_999_t_or_at_the_step():
    assert Schedule("vp").time_scale == 999
    assert all(Schedule(name).time_scale == 1000 for name in DIFFUSERS)


def test_unknown_schedule():
    with pytest.raises(ValueError, match=r"'exp'.*vp"):
        Schedule("exp")


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_time_of_a_noise_level_is_its_inverse(name):
    schedule, t = Schedule(name), torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(schedule.time_of(sigma / alpha), t, atol=1e-5, rtol=0)
