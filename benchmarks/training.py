"""How fast a training step is: ours, the official code, other libraries, and the machine's limit.

A step is the loss of random images, backward and AdamW, the same for all. Every network trains in a
process of its own, and they take turns. The share of the limit is the network's own FLOPs
(products, convolutions and attention, as torch.utils.flop_counter counts them) per second over
those of torch.mm in the same round.

    python benchmarks/training.py                            # the tiny model
    python benchmarks/training.py --model small --batch 8    # U-ViT-S/2
    python benchmarks/training.py --official PATH            # a checkout of baofff/U-ViT as well
    python benchmarks/training.py --profile                  # where our step spends its time

What is not installed is left out: pip install -e '.[bench]'.
"""

import argparse
import contextlib
import importlib.util
import io
import statistics
import sys

import timing
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from uvit_lit import uvit
from uvit_lit.diffusion import Denoiser
from uvit_lit.distributed import keep_memory
from uvit_lit.training.module import parameter_groups
from uvit_lit.uvit import UViT

MODELS = {
    "tiny": {"patch_size": 4, "embed_dim": 256, "depth": 8, "num_heads": 4, "num_classes": 10},
    "tiny192": {"patch_size": 4, "embed_dim": 192, "depth": 8, "num_heads": 4, "num_classes": 10},
    "small": {},
}
CHANNELS = {"tiny": (60, 32), "tiny192": (44, 24), "small": (144, 72)}
"""First width of diffusers' and of denoising-diffusion-pytorch's U-Net with about as many
parameters."""

ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""What the flop counter does not know yet."""


def make_step(denoiser, groups, batch, bf16=False, classes=0):
    """A function that takes one training step."""
    optimizer = torch.optim.AdamW(groups, lr=2e-4)
    x0, eps = torch.randn(2, batch, 3, 32, 32)
    t, y = torch.rand(batch), torch.arange(batch) % classes if classes else None

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = denoiser.loss(x0, eps, t, y).mean()
        loss.backward()
        optimizer.step()

    return step


def measured(step, parameters):
    """The step, and its FLOPs and the number of parameters in millions."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        step()
    return step, (counter.get_total_flops(), sum(p.numel() for p in parameters) / 1e6)


def ours(model, batch, keep=True, bf16=False, compiled=False, fused=False):
    """The network of this project; ``fused`` keeps the fused attention where it does not."""
    if fused:
        uvit.attend = F.scaled_dot_product_attention
    if keep:
        keep_memory()
    denoiser = Denoiser(UViT(**MODELS[model]))
    groups = parameter_groups(denoiser, 2e-4, 0.03, 10.0)
    classes = denoiser.backbone.num_classes
    step, told = measured(make_step(denoiser, groups, batch, bf16, classes), denoiser.parameters())
    if compiled:
        denoiser.loss = torch.compile(denoiser.loss, fullgraph=True)
        step()
    return step, told


def official(model, batch, path, bf16=False):
    """The network of baofff/U-ViT, in a checkout at a path."""
    sys.path.insert(0, path)
    with contextlib.redirect_stdout(io.StringIO()):
        module = importlib.import_module("libs.uvit")
    sizes = {"img_size": 32, "patch_size": 2, "embed_dim": 512, "num_heads": 8, **MODELS[model]}
    classes = sizes.pop("num_classes", 0)
    network = module.UViT(**sizes, num_classes=classes + 1 if classes else -1)
    step = make_step(Denoiser(network), network.parameters(), batch, bf16, classes)
    return measured(step, network.parameters())


def diffusers(model, batch):
    """UNet2DModel of diffusers in the form of google/ddpm-cifar10-32."""
    from diffusers import UNet2DModel

    width = CHANNELS[model][0]
    network = UNet2DModel(
        sample_size=32,
        block_out_channels=(width, 2 * width, 2 * width, 2 * width),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    denoiser = Denoiser(lambda x, t, y: network(x, t).sample)
    return measured(make_step(denoiser, network.parameters(), batch), network.parameters())


def denoising_diffusion_pytorch(model, batch):
    """The Unet of denoising-diffusion-pytorch with its defaults."""
    from denoising_diffusion_pytorch import Unet

    network = Unet(dim=CHANNELS[model][1])
    denoiser = Denoiser(lambda x, t, y: network(x, t))
    return measured(make_step(denoiser, network.parameters(), batch), network.parameters())


def print_profile(model, batch, rounds):
    """Print which operators our step spends its time in, without what they call."""
    step, _ = ours(model, batch)
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(rounds):
            step()
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    shown, rest = rows[:14], sum(row.self_cpu_time_total for row in rows[14:])
    print(
        f"{timing.machine()}, {model}, batch {batch}, {rounds} steps\n"
        "| operator | % of the step | calls a step |\n|---|---|---|"
    )
    for row in shown:
        print(
            f"| `{row.key}` | {100 * row.self_cpu_time_total / total:.1f} | "
            f"{row.count / rounds:.0f} |"
        )
    print(f"| {len(rows) - len(shown)} others | {100 * rest / total:.1f} | |")


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--official", help="directory of a checkout of baofff/U-ViT")
    parser.add_argument(
        "--cases", type=lambda text: text.split(";"), help="some of the rows alone, with semicolons"
    )
    parser.add_argument("--profile", action="store_true", help="profile our step instead")
    args = parser.parse_args()
    if args.profile:
        print_profile(args.model, args.batch, args.rounds)
        return
    builders = {
        "ours": (ours,),
        "ours, memory given back": (ours, False),
        "ours, bf16-mixed": (ours, True, True),
        "ours, bf16-mixed, fused attention": (ours, True, True, False, True),
        "ours, compiled": (ours, True, False, True),
        "ours, bf16-mixed, compiled": (ours, True, True, True),
        "official": (official, args.official),
        "official, bf16-mixed": (official, args.official, True),
        "diffusers": (diffusers,),
        "denoising_diffusion_pytorch": (denoising_diffusion_pytorch,),
    }
    if args.official is None:
        builders = {name: b for name, b in builders.items() if b[0] is not official}
    if unknown := set(args.cases or ()) - builders.keys():
        parser.error(f"no case {', '.join(unknown)}; accepted: {'; '.join(builders)}")
    cases, told = {}, {}
    for name, (build, *options) in builders.items():
        if args.cases and name not in args.cases:
            continue
        if build is denoising_diffusion_pytorch and not importlib.util.find_spec(name):
            print(f"{name} is not installed and left out")
            continue
        cases[name] = timing.Process(build, args.model, args.batch, *options)
        told[name] = cases[name].told
    seconds = timing.alternate({**cases, "mm": timing.mm()}, args.rounds)
    limit = timing.mm_rates(seconds.pop("mm"))
    print(
        f"{timing.machine('diffusers')}, {args.model}, batch {args.batch}, {args.rounds} rounds; "
        f"torch.mm {statistics.median(limit) / 1e9:.0f} GFLOP/s"
    )
    print(
        "| network | M parameters | GFLOP a step | s a step | images/s | speed of the first over "
        "it | share of torch.mm |\n|---|---|---|---|---|---|---|"
    )
    first = next(iter(seconds.values()))
    for name, values in seconds.items():
        flops, parameters = told[name]
        share = timing.ratios([flops / value for value in values], limit)
        columns = (
            name,
            f"{parameters:.1f}",
            f"{flops / 1e9:.0f}",
            timing.spread(values),
            f"{args.batch / statistics.median(values):.1f}",
            timing.spread(timing.ratios(values, first)),
            timing.spread(share),
        )
        print(f"| {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
