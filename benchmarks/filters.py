"""What a filter costs in a training step: every filter against none, in one run.

The step is forward, backward and AdamW on random images. A filter's step stands between two of
``none``, so that a change of the machine's speed hits both; the ratio is the median over the rounds
of its time over their mean, with the quartiles beside it.

    python benchmarks/filters.py                   # the tiny model
    python benchmarks/filters.py --model small     # U-ViT-S/2
"""

import argparse
import platform
import statistics
import time

import torch
from tqdm import tqdm

from uvit_lit.denoiser import Denoiser
from uvit_lit.filters import FILTERS, PROTOTYPES
from uvit_lit.module import parameter_groups
from uvit_lit.uvit import UViT

MODELS = {
    "tiny": {"patch_size": 4, "embed_dim": 192, "depth": 8, "num_heads": 4, "num_classes": 10},
    "small": {},
}
CASES = {
    **{name: {"filter": name} for name in FILTERS[1:]},
    **{f"{name}, 3 cosines in t": {"filter": name, "t_coefficients": 3} for name in PROTOTYPES},
    "butterworth, b learned": {"filter": "butterworth", "learn_b": True},
}


def make_step(arguments, batch, device):
    """A function that takes one training step of a model."""
    torch.manual_seed(0)
    denoiser = Denoiser(UViT(**arguments)).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(denoiser, 2e-4, 0.03, 10.0))
    x0, eps = torch.randn(2, batch, 3, 32, 32, device=device)
    t = torch.rand(batch, device=device)

    def step():
        optimizer.zero_grad()
        denoiser.loss(x0, eps, t).mean().backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def timed(step):
    """Seconds of a call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--cases", default=list(CASES), type=lambda text: text.split(","),
                        help=f"any of {', '.join(CASES)} (default: all)")  # fmt: skip
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = MODELS[args.model]
    none = make_step(sizes, args.batch, device)
    if unknown := set(args.cases) - CASES.keys():
        parser.error(f"no case {', '.join(unknown)}; accepted: {', '.join(CASES)}")
    steps = {n: make_step({**sizes, **CASES[n]}, args.batch, device) for n in args.cases}
    for step in (none, *steps.values()):
        step()
    ratios = {name: [] for name in args.cases}
    seconds = []
    for _ in tqdm(range(args.rounds), unit="round"):
        for name, step in steps.items():
            before, filtered, after = timed(none), timed(step), timed(none)
            ratios[name].append(2 * filtered / (before + after))
            seconds += [before, after]
    print(f"{platform.processor() or platform.machine()}, {device}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, float32, {args.model}, batch {args.batch}, "
          f"{args.rounds} rounds; none: {statistics.median(seconds):.3f} s a step")  # fmt: skip
    print("| filter | step time / none | quartiles |\n|---|---|---|")
    for name, values in ratios.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
