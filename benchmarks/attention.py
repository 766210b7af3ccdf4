"""Attention on a CPU: the fused kernel of torch beside two products, forward and with backward.

    python benchmarks/attention.py

The shapes are those of the tiny model with a batch of 64 and of U-ViT-S/2 with one of 16.
"""

import argparse
import statistics

import timing
import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = {"tiny": (64, 4, 66, 64), "small": (16, 8, 257, 64)}
"""Images, heads, tokens, channels of a head."""


def products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as two products, as ``uvit_lit.uvit.attend`` writes it."""
    scores = query * query.shape[-1] ** -0.5 @ key.mT
    return scores.softmax(dim=-1).to(value.dtype) @ value


def make_case(attend, shape, dtype, backward):
    """A function that attends, and goes back if asked to."""
    images, heads, tokens, channels = shape
    qkv = torch.randn(images, tokens, 3, heads, channels, dtype=dtype, requires_grad=backward)

    def call():
        with (
            torch.set_grad_enabled(backward),
            torch.autocast("cpu", enabled=dtype != torch.float32),
        ):
            output = attend(*qkv.permute(2, 0, 3, 1, 4))
        if backward:
            output.sum().backward()

    return call


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    kernels = {"fused": F.scaled_dot_product_attention, "products": products}
    keys = [
        (model, dtype, backward)
        for model in SHAPES
        for dtype in (torch.float32, torch.bfloat16)
        for backward in (False, True)
    ]
    cases = {
        (*key, kernel): timing.timed(make_case(attend, SHAPES[key[0]], *key[1:]), repeats=5)
        for key in keys
        for kernel, attend in kernels.items()
    }
    seconds = timing.alternate(cases, args.rounds)
    print(
        f"{timing.machine()}, {args.rounds} rounds\n"
        "| model | precision | | fused, ms | products, ms | fused / products |\n"
        "|---|---|---|---|---|---|"
    )
    for model, dtype, backward in keys:
        fused, split = (seconds[model, dtype, backward, kernel] for kernel in kernels)
        columns = (
            model,
            str(dtype).removeprefix("torch."),
            "with backward" if backward else "forward",
            *(f"{1e3 * statistics.median(values):.2f}" for values in (fused, split)),
            timing.spread(timing.ratios(fused, split)),
        )
        print(f"| {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
