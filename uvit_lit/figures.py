"""Figures of the filters: their responses, what was learned, what it does to the features.

``python -m uvit_lit.figures families OUT`` draws the families at one cutoff,
``python -m uvit_lit.figures gains OUT --ckpt PATH`` the filters of a trained model; the suffix of
OUT (png, pdf, svg) chooses the format.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from uvit_lit.checkpoint import load_model
from uvit_lit.cli import Parser, checked_input
from uvit_lit.denoiser import Denoiser
from uvit_lit.files import replacing
from uvit_lit.filters import MAX_FREQUENCY, LowPass, frequencies, radial_power
from uvit_lit.skips import SkipModulation

FREQUENCY_LABEL = "radial frequency (fraction of Nyquist)"


def _curve_points() -> Tensor:
    """Frequencies along an axis from 0 to the corner, (points, 2)."""
    radius = torch.linspace(0, MAX_FREQUENCY, 500)
    return torch.stack([radius, torch.zeros_like(radius)], dim=-1)


def _mark_bins(axes: Any, grid: tuple[int, int]) -> None:
    """Mark the radial frequencies that the grid has with ticks inside the lower edge."""
    rings = torch.hypot(*frequencies(grid).unbind(-1)).unique()
    label = f"bins of {grid[0]} x {grid[1]} tokens"
    axes.plot(rings, torch.zeros_like(rings), "|", color="0.4", markersize=8, clip_on=False,
              transform=axes.get_xaxis_transform(), label=label)  # fmt: skip


def plot_families(cutoff: float) -> Figure:
    """Magnitude and gain (s = 0.3) of every family at one cutoff, with the bins of 16 x 16 tokens.

    Args:
        cutoff: Fraction of Nyquist, in (0, sqrt(2)].

    Returns:
        Figure of two panels: the magnitude in dB, and gain(f) = 1 - (1 - s) |H(f)|.
    """
    s = 0.3
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    decibels, gains = figure.subplots(1, 2)
    points = _curve_points()
    low, high = LowPass("butterworth"), LowPass("butterworth", order=12)
    type_1, type_2 = LowPass("chebyshev"), LowPass("chebyshev2")
    labelled = {
        "step (freeu_box along an axis)": LowPass("step"),
        f"butterworth, order {low.order}": low,
        f"butterworth, order {high.order}": high,
        f"chebyshev, order {type_1.order}, ripple {type_1.ripple:g} dB": type_1,
        f"chebyshev2, order {type_2.order}, attenuation {type_2.attenuation:g} dB": type_2,
    }
    for label, design in labelled.items():
        magnitude = design(points, cutoff)
        decibels.plot(points[:, 0], 20 * magnitude.clamp_min(1e-6).log10(), label=label)
        gains.plot(points[:, 0], 1 - (1 - s) * magnitude)
    decibels.set(ylim=(-70, 3), ylabel="|H| (dB)", title=f"magnitude, cutoff {cutoff:g}")
    gains.set(ylabel="gain", title=f"gain = 1 - (1 - s) |H|, s = {s:g}", ylim=(0, 1.05))
    for axes in (decibels, gains):
        axes.axvline(cutoff, color="0.7", linewidth=0.8, zorder=0)
        _mark_bins(axes, (16, 16))
        axes.set(xlabel=FREQUENCY_LABEL, xlim=(0, MAX_FREQUENCY))
    figure.legend(*decibels.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@torch.no_grad()
def gain_curves(long_skip: SkipModulation) -> tuple[Tensor, Tensor]:
    """Gain of a long skip along an axis, as it is in force.

    Returns:
        Frequencies from 0 to the corner and gains, each (points,).
    """
    points = _curve_points()
    return points[:, 0], long_skip.gain(points)


def plot_gains(long_skips: Sequence[SkipModulation]) -> Figure:
    """Gain over frequency of every long skip, as it is in force.

    Args:
        long_skips: Outermost first, as in ``UViT.long_skips``.

    Returns:
        Figure with one curve per long skip and the bins of the grid.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    for i, long_skip in enumerate(long_skips):
        frequency, gain = gain_curves(long_skip)
        chosen = long_skip.settings
        filtered = chosen.filter != "none"
        numbers = f": s = {chosen.s:.3f}, cutoff = {chosen.cutoff:.3f}" if filtered else ""
        color = colormaps["viridis"](i / len(long_skips))  # from the outermost to the innermost
        axes.plot(frequency, gain, color=color, label=f"skip {i}{numbers}")
    grid = long_skips[0].grid
    assert grid is not None
    _mark_bins(axes, grid)
    axes.set(xlabel=FREQUENCY_LABEL, ylabel="gain", xlim=(0, MAX_FREQUENCY), ylim=(0, None),
             title=f"{long_skips[0].settings.filter}; skip 0 is the outermost")  # fmt: skip
    axes.legend(fontsize=8)
    return figure


@torch.no_grad()
def plot_spectra(denoiser: Denoiser, x0: Tensor, y: Tensor | None) -> Figure:
    """Radial power spectrum of skip and backbone features, before and after what acts on them.

    The images are noised to t = 0.5, with the same noise every time.

    Args:
        denoiser: A denoiser with a U-ViT.
        x0: (batch, channels, height, width) images in [-1, 1].
        y: (batch,) labels or None.

    Returns:
        Figure with one panel per long skip, power in dB.
    """
    backbone = denoiser.backbone
    spectra: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}

    def measure(module: SkipModulation, inputs: tuple, outputs: tuple) -> None:
        index = list(backbone.long_skips).index(module)
        assert module.grid is not None
        features = {
            "backbone before": inputs[0], "backbone after": outputs[0],
            "skip before": inputs[1], "skip after": outputs[1],
        }  # fmt: skip
        spectra[index] = {
            name: radial_power(x[:, module.prefix :], module.grid) for name, x in features.items()
        }

    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(x0.shape, generator=generator).to(x0.device)
    times = torch.full((len(x0),), 0.5, device=x0.device)
    hooks = [long_skip.register_forward_hook(measure) for long_skip in backbone.long_skips]
    try:
        denoiser(denoiser.add_noise(x0, eps, times), times, y)
    finally:
        for hook in hooks:
            hook.remove()

    columns = min(4, len(spectra))
    rows = math.ceil(len(spectra) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    styles = {"backbone before": "C1:", "backbone after": "C1", "skip before": "C0:",
              "skip after": "C0"}  # fmt: skip
    for index, powers in sorted(spectra.items()):
        for name, (rings, power) in powers.items():
            decibels = 10 * power.clamp_min(1e-12).log10()
            panels[index].plot(rings, decibels, styles[name], label=name)
        panels[index].set_title(f"skip {index}", fontsize=9)
    for panel in panels[len(spectra) :]:
        panel.set_axis_off()
    panels[0].legend(fontsize=7)
    figure.supxlabel(FREQUENCY_LABEL, fontsize=9)
    figure.supylabel("power (dB) at t = 0.5", fontsize=9)
    return figure


def figure_format(path: Path) -> str:
    """Format that the name of a figure's file asks for.

    Raises:
        ValueError: If it is none of .png, .pdf and .svg.
    """
    suffix = path.suffix.removeprefix(".")
    if suffix not in ("png", "pdf", "svg"):
        raise ValueError(f"out is {path}; accepted: a file that ends in .png, .pdf or .svg")
    return suffix


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the name of its file asks for.

    Raises:
        ValueError: If it is none of .png, .pdf and .svg.
        OSError: If it cannot be written.
    """
    suffix = figure_format(path)
    with replacing(path) as file:
        figure.savefig(file, format=suffix, dpi=110)


def build_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = Parser(prog="python -m uvit_lit.figures", description=__doc__)
    figures = parser.add_subparsers(dest="figure", required=True)
    for name, summary in (("families", "the responses"), ("gains", "the filters of a model")):
        figure = figures.add_parser(name, help=summary)
        figure.add_argument("out", type=Path, help="file to write: .png, .pdf or .svg")
        if name == "families":
            figure.add_argument("--cutoff", type=float, default=0.5, help="default: 0.5")
        else:
            figure.add_argument("--ckpt", default="last", help="default: the newest under runs/")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Write one figure to a file.

    Args:
        arguments: The command line; None takes that of the process.
    """
    args = build_parser().parse_args(arguments)
    with checked_input():
        figure_format(args.out)  # refused before the work
        if args.figure == "families":
            if not 0 < args.cutoff <= MAX_FREQUENCY:
                raise ValueError(f"cutoff is {args.cutoff}; accepted: above 0, at most sqrt(2)")
            figure = plot_families(args.cutoff)
        else:
            figure = plot_gains(list(load_model(args.ckpt).denoiser.backbone.long_skips))
        save_figure(figure, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
