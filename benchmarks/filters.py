"""What the long skips cost, and which way to filter is the fastest.

First table: all long skips of a model, filter and backbone scale, timed alone on features of the
model's shape, over the time of the whole network without them in the same round; the difference of
two whole networks would drown in the noise of the machine. FreeU is diffusers' code, as it acts in
a Stable Diffusion pipeline, on the same features.

Second table: one filter on a square grid of tokens, at all frequencies (as a learned filter) and at
those that a step at the default cutoff changes; the same as one product with a matrix of the whole
grid, as an FFT, and as diffusers' FreeU filters.

    python benchmarks/filters.py                            # the tiny model
    python benchmarks/filters.py --model small --batch 8    # U-ViT-S/2
    python benchmarks/filters.py --grids 8,16,32            # the second table
"""

import argparse
import statistics

import timing
import torch
from diffusers.utils.torch_utils import apply_freeu, fourier_filter
from torch import nn
from training import MODELS, make_step

from uvit_lit.diffusion import Denoiser
from uvit_lit.distributed import keep_memory
from uvit_lit.families import PROTOTYPES
from uvit_lit.settings import SkipSettings
from uvit_lit.skips import SkipModulation
from uvit_lit.training.module import parameter_groups
from uvit_lit.uvit import UViT

CASES = {
    "step": SkipSettings("step", s=0.5),
    "step, b": SkipSettings("step", s=0.5, b=1.2),
    **{f"{name}, learned": SkipSettings(name, s=0.9) for name in PROTOTYPES},
}


REPEATS = 5
"""Calls of the long skips in a round: they take milliseconds."""


class FreeU(nn.Module):
    """One long skip as diffusers' FreeU would have it."""

    def __init__(self, grid, prefix):
        super().__init__()
        self.grid, self.prefix = grid, prefix

    def forward(self, backbone, skip):
        """Modulate: tokens to maps and back, the prefix tokens left alone."""
        maps = [x[:, self.prefix :].mT.unflatten(-1, self.grid) for x in (backbone, skip)]
        maps[0] = maps[0].clone()  # it is changed in place
        maps = apply_freeu(0, *maps, s1=0.5, b1=1.2, s2=0.5, b2=1.2)
        tokens = [x.flatten(2).mT for x in maps]
        features = zip((backbone, skip), tokens, strict=True)
        return tuple(torch.cat([x[:, : self.prefix], y], dim=1) for x, y in features)


def skips_alone(modules, shape):
    """Functions that run all long skips on random features: forward, and with backward."""
    backbone, skip = torch.randn(2, *shape)

    def forward():
        with torch.inference_mode():
            for module in modules:
                module(backbone, skip)

    inputs = [x.clone().requires_grad_() for x in (backbone, skip)]
    learned = [p for module in modules for p in module.parameters()]

    def both():
        for module in modules:
            sums = sum((x * x).sum() for x in module(*inputs))
            torch.autograd.grad(sums, [*inputs, *learned], allow_unused=True)

    return timing.timed(forward, REPEATS), timing.timed(both, REPEATS)


def measure_models(name, batch, rounds):
    """Print the first table."""
    network = UViT(**MODELS[name])
    shape = (batch, *network.pos_embed.shape[1:])
    x, t = torch.randn(batch, 3, 32, 32), 999 * torch.rand(batch)

    def forward():
        with torch.inference_mode():
            network(x, t)

    denoiser = Denoiser(network)
    step = make_step(denoiser, parameter_groups(denoiser, 2e-4, 0.03, 10.0), batch)
    cases = {("forward", None): timing.timed(forward), ("step", None): timing.timed(step)}
    skips = {n: UViT(**MODELS[name], skip=skip).long_skips for n, skip in CASES.items()}
    skips["FreeU of diffusers"] = [FreeU(network.grid, network.num_prefix)] * len(skips["step"])
    skips["none"] = network.long_skips
    for case, modules in skips.items():
        cases["forward", case], cases["step", case] = skips_alone(modules, shape)
    seconds = timing.alternate(cases, rounds)
    whole = {kind: seconds.pop((kind, None)) for kind in ("forward", "step")}
    none = seconds["step", "none"]  # the squares and their sums, and their backward
    forward, step = (1e3 * statistics.median(whole[kind]) for kind in ("forward", "step"))
    print(
        f"{timing.machine('diffusers')}, {name}, batch {batch}, {rounds} rounds; forward "
        f"{forward:.0f} ms, training step {step:.0f} ms\n"
        "| long skips | % of a forward pass | % of a training step |\n|---|---|---|"
    )
    for case in skips:
        both = [a - b for a, b in zip(seconds["step", case], none, strict=True)]
        of_forward = timing.ratios(seconds["forward", case], whole["forward"])
        of_step = timing.ratios(both, whole["step"])
        parts = (timing.spread([100 * v for v in part]) for part in (of_forward, of_step))
        print(f"| {case} | {' | '.join(parts)} |")


def measure_grids(sides, batch, channels, rounds):
    """Print the second table."""
    cases = {}
    for side in sides:
        skip = torch.randn(batch, side * side, channels)
        for way in ("butterworth", "step"):
            modulation = SkipModulation((side, side), 0, filter=way, s=0.5)
            cases[side, way] = forward_only(modulation, skip, skip)
        matrix = torch.rand(side * side, side * side).expand(batch, -1, -1)
        cases[side, "matrix"] = forward_only(torch.bmm, matrix, skip)
        maps = skip.mT.unflatten(-1, (side, side)).contiguous()
        cases[side, "fft"] = forward_only(real_fft, maps, torch.rand(side, side // 2 + 1))
        cases[side, "diffusers"] = forward_only(fourier_filter, maps, 1, 0.5)
    seconds = timing.alternate(cases, rounds)
    print(
        f"{timing.machine('diffusers')}, {batch} images of {channels} channels, {rounds} rounds\n"
        "| grid | all frequencies, ms | step, ms | one matrix, ms | FFT, ms | fourier_filter of "
        "diffusers, ms |\n|---|---|---|---|---|---|"
    )
    for side in sides:
        ways = ("butterworth", "step", "matrix", "fft", "diffusers")
        times = (timing.spread([1e3 * v for v in seconds[side, way]]) for way in ways)
        print(f"| {side} x {side} | {' | '.join(times)} |")


def real_fft(maps, response):
    """A filter in the Fourier domain at its cheapest: real, on maps that are contiguous."""
    return torch.fft.irfft2(torch.fft.rfft2(maps) * response, s=maps.shape[-2:])


def forward_only(function, *arguments):
    """A case without gradients."""
    return timing.timed(torch.inference_mode()(lambda: function(*arguments)), REPEATS)


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--grids", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--channels", type=int, default=256, help="with --grids")
    args = parser.parse_args()
    keep_memory()
    if args.grids:
        measure_grids(args.grids, args.batch, args.channels, args.rounds)
    else:
        measure_models(args.model, args.batch, args.rounds)


if __name__ == "__main__":
    main()
