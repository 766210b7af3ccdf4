"""Noise to images: one seed per image, the solvers of diffusers, a progress bar."""

import importlib
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from uvit_lit.diffusion import STEPS, Denoiser, Schedule
from uvit_lit.errors import require
from uvit_lit.guidance import Guided
from uvit_lit.imports import import_attribute
from uvit_lit.options import check_seeds

Denoise = Callable[[Tensor, Tensor], Tensor]
"""The clean images of noisy images (batch, channels, height, width) at a time, a scalar tensor."""

Solver = Callable[[Denoise, Tensor, Schedule, int, list[torch.Generator]], Tensor]
"""``solver(denoise, noise, schedule, steps, generators)`` gives the images of standard normal noise
in float32; a stochastic solver draws from the generators, one per image."""

_LOG_SNR = {"use_exponential_sigmas": True}  # steps of equal size in log(sigma / alpha)
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "ddim": ("DPMSolverMultistepScheduler", {"solver_order": 1, "timestep_spacing": "trailing"}),
    "dpmpp": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_LOG_SNR}),
    "sde-dpmpp": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **_LOG_SNR}),
    "unipc": ("UniPCMultistepScheduler", _LOG_SNR),
    "heun": ("HeunDiscreteScheduler", _LOG_SNR),
}
"""Our name of each solver, the scheduler class of diffusers, and its options.

The solvers of higher order step evenly in the logarithm of the signal-to-noise ratio (Lu et al.,
"DPM-Solver", 2022, section 3.3): even steps in t leave the last one far too long. Those of ddpm and
ddim are even in t, as published. DDIM is DPM-Solver of order 1 (section 3.1 there); diffusers' own
``DDIMScheduler`` steps to the wrong time where the number of steps does not divide 1000.
"""

PURE_NOISE = 160.0
"""Noise, sigma / alpha, where steps that are even in log-SNR begin at the latest: next to nothing
of an image is left there. The VP-SDE ends at 152; the cosine schedule at 20,000, and without this
bound 10 of 25 steps would be spent beyond t = 0.99."""

STOCHASTIC = ("ddpm", "sde-dpmpp")
"""Solvers that add noise on the way; the others are deterministic given the first noise."""

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Lightning's names of the precisions: the products and convolutions of the network are in that
type, the rest in float32."""


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Context in which a network computes in one of ``PRECISIONS``.

    Raises:
        ValueError: If the precision is unknown.
    """
    require(precision in PRECISIONS, "precision", precision, ", ".join(PRECISIONS))
    dtype = PRECISIONS[precision]
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None)


def find_solver(name: str | Solver) -> Solver:
    """The solver of a name of ``SOLVERS``, or a function of one's own as ``module:function``.

    Raises:
        ValueError: If there is none.
    """
    if callable(name):
        return name
    if name in SOLVERS:
        return partial(diffusers_solver, name)
    accepted = f"{', '.join(SOLVERS)}, or module:function of your own"
    found = import_attribute("solver", name, accepted)
    require(callable(found), "solver", f"{name!r}, a {type(found).__name__}", accepted)
    return found


def check_steps(steps: int) -> None:
    """Raise a ``ValueError`` unless the number of steps is in 1 to 1000."""
    require(1 <= steps <= STEPS, "steps", steps, f"1 to {STEPS}")


def make_scheduler(name: str, schedule: Schedule, steps: int) -> Any:
    """Set up a scheduler of diffusers on a noise schedule.

    Args:
        name: One of ``SOLVERS``.
        schedule: The noise schedule of the denoiser.
        steps: Number of steps, 1 to 1000 (Heun calls the network twice in each but the last).

    Returns:
        The scheduler, with its time steps set; it takes clean images.
    """
    class_name, options = SOLVERS[name]
    betas = schedule.betas()
    if options.items() >= _LOG_SNR.items():
        remains = (-betas).log1p().cumsum(0).exp()  # alpha^2 = 1 / (1 + (sigma / alpha)^2)
        betas = betas[remains > 1 / (1 + PURE_NOISE**2)]
    scheduler = getattr(importlib.import_module("diffusers"), class_name)(
        num_train_timesteps=len(betas),
        trained_betas=betas.numpy(),
        prediction_type="sample",
        **options,
    )
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # by its time it is ambiguous: two steps may round to one
    return scheduler


def diffusers_solver(
    name: str,
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    steps: int,
    generators: list[torch.Generator],
) -> Tensor:
    """Solve with a scheduler of diffusers: a ``Solver`` for every name of ``SOLVERS``."""
    scheduler = make_scheduler(name, schedule, steps)
    extra = {"generator": generators} if name in STOCHASTIC else {}
    x = noise * scheduler.init_noise_sigma
    for n, t in zip(scheduler.timesteps, call_times(scheduler, schedule), strict=True):
        clean = denoise(scheduler.scale_model_input(x, n), t)
        x = scheduler.step(clean, n, x, **extra).prev_sample
    return x


def call_times(scheduler: Any, schedule: Schedule) -> Tensor:
    """Time of every call of the network, float32."""
    steps = scheduler.timesteps
    if not hasattr(scheduler, "sigmas"):
        return (steps.float() + 1) / STEPS  # index n of the table
    return schedule.time_of(scheduler.sigmas[: len(steps)]).float()  # not rounded to an index


def call_times_of(schedule: Schedule, solver: str | Solver, steps: int) -> Tensor | None:
    """Times at which a solver calls the network for an image; None for a solver of your own."""
    if solver not in SOLVERS:
        return None
    return call_times(make_scheduler(str(solver), schedule, steps), schedule)


def count_calls(schedule: Schedule, solver: str | Solver, steps: int) -> int:
    """How often a solver calls the network for one image; once a step for one of your own."""
    times = call_times_of(schedule, solver, steps)
    return steps if times is None else len(times)


@torch.inference_mode()
def sample(
    model: Denoiser | Guided,
    shape: tuple[int, int, int],
    seeds: list[int],
    labels: list[int] | None = None,
    *,
    solver: str | Solver = "dpmpp",
    steps: int = 25,
    precision: str = "32-true",
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    bar: tqdm | None = None,
) -> Tensor:
    """Generate one image per seed.

    An image is a function of its seed and its label alone: neither the other images nor the batch
    size change it beyond rounding, because every image draws its noise from a generator of its
    own, on the CPU whatever the device.

    Args:
        model: A denoiser, or guidance around one, on ``device`` and in evaluation mode.
        shape: Channels, height and width.
        seeds: One per image, 0 to below 2^32.
        labels: One per image; None for no class.
        solver: As ``find_solver`` takes it.
        steps: Steps of the solver, 1 to 1000.
        precision: Of the network, one of ``PRECISIONS``; the solver computes in float32.
        batch_size: Images that go through the network at once.
        device: Where to compute.
        bar: Progress bar, moved by the images of a batch with every call of the network.

    Returns:
        (images, channels, height, width) float32 on the CPU, around [-1, 1], not clipped.

    Raises:
        ValueError: If the seeds, the solver, the steps or the precision are not accepted.
    """
    check_seeds(seeds)
    check_steps(steps)
    solve = find_solver(solver)
    images = []
    for start in range(0, len(seeds), batch_size):
        chosen = slice(start, start + batch_size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[chosen]]
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
        y = None if labels is None else torch.tensor(labels[chosen], device=device)

        def denoise(x_t: Tensor, t: Tensor, y: Tensor | None = y) -> Tensor:
            with autocast(device, precision):
                t = t.to(x_t.device, torch.float32, non_blocking=True)
                clean = model(x_t, t.expand(len(x_t)), y)
            if bar is not None:
                bar.update(len(x_t))
            return clean

        images.append(solve(denoise, noise, model.schedule, steps, generators).cpu())
    return torch.cat(images)


@torch.inference_mode()
def invert(
    model: Denoiser, x0: Tensor, y: Tensor | None, steps: int, t_min: float, bar: tqdm
) -> list[Tensor]:
    """Follow the deterministic DDIM solver from images to the noise that makes them.

    The inverse scheduler of diffusers divides by the noise of a clean image, which is 0; here the
    way begins at ``t_min``, where the image is taken for a noisy one.

    Args:
        model: In evaluation mode, on the device of ``x0``.
        x0: (batch, channels, height, width) images in [-1, 1].
        y: (batch,) labels or None.
        steps: Steps, at least 1.
        t_min: Where the way begins, in (0, 1). Below the noise that the model can see, it finds
            noise where there is none, and the end is far from normal.
        bar: Progress bar, moved by one per step.

    Returns:
        steps + 1 noisy images, at times evenly spaced from ``t_min`` to 1.

    References:
        Song et al., "Denoising Diffusion Implicit Models", ICLR 2021, section 4.3.
    """
    times = torch.linspace(t_min, 1, steps + 1, dtype=torch.float64)
    path = [model.schedule.alpha_sigma(times[0])[0].float().item() * x0]
    for now, then in pairwise(times):
        path.append(_ddim_step(model, path[-1], y, now, then))
        bar.update()
    return path


@torch.inference_mode()
def regenerate(
    model: Denoiser,
    path: list[Tensor],
    y: Tensor | None,
    t_min: float,
    bar: tqdm,
    mask: Tensor | None = None,
) -> Tensor:
    """Go back to images from the noise at the end of a path of ``invert``.

    Args:
        model: As for ``invert``, perhaps with other settings of its long skips.
        path: From ``invert``, with the same ``t_min``.
        y: (batch,) labels or None.
        t_min: Where the way ends.
        bar: Progress bar, moved by one per step.
        mask: Broadcasts with the images: 1 where they may change. Where it is 0 they keep to the
            path, so that they end as they were.

    Returns:
        (batch, channels, height, width), around [-1, 1].
    """
    times = torch.linspace(t_min, 1, len(path), dtype=torch.float64)
    x = path[-1]
    for now, then, original in zip(times.flip(0), times.flip(0)[1:], path[-2::-1], strict=False):
        x = _ddim_step(model, x, y, now, then)
        if mask is not None:
            x = torch.lerp(original, x, mask)
        bar.update()
    return x / model.schedule.alpha_sigma(times[0])[0].item()


def _ddim_step(model: Denoiser, x: Tensor, y: Tensor | None, now: Tensor, then: Tensor) -> Tensor:
    """One deterministic step in either direction (equation 12 of DDIM with sigma = 0).

    The network is asked at the noisier of the two times, so that a step and its inverse agree.
    """
    noisier = torch.maximum(now, then)
    clean = model(x, noisier.float().expand(len(x)).to(x.device), y)
    alpha, sigma = (float(v) for v in model.schedule.alpha_sigma(noisier))
    eps = (x - alpha * clean) / sigma
    (alpha, sigma), (new_alpha, new_sigma) = (
        (float(v) for v in model.schedule.alpha_sigma(t)) for t in (now, then)
    )
    return new_alpha * (x - sigma * eps) / alpha + new_sigma * eps


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [-1, 1] to uint8, clipping what is outside."""
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
