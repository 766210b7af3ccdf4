"""Figures of the filters: their responses, what was learned, what it does to the features.

``uvit-lit plot families OUT`` draws the families at one cutoff,
``uvit-lit plot gains OUT --ckpt PATH`` the filters of a trained model; the suffix of
OUT (png, pdf, svg) chooses the format.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from uvit_lit.detail import estimate, radial_power_spectrum
from uvit_lit.diffusion import Denoiser
from uvit_lit.errors import require
from uvit_lit.files import replacing
from uvit_lit.filters import MAX_FREQUENCY, LowPass, axis, frequencies, radial_power
from uvit_lit.options import Cell
from uvit_lit.skips import SkipModulation

FREQUENCY_LABEL = "radial frequency (fraction of Nyquist)"


def _mark_bins(axes: Any, grid: tuple[int, int]) -> None:
    """Mark the radial frequencies that the grid has with ticks inside the lower edge."""
    rings = torch.hypot(*frequencies(grid).unbind(-1)).unique()
    label = f"bins of {grid[0]} x {grid[1]} tokens"
    axes.plot(
        rings,
        torch.zeros_like(rings),
        "|",
        color="0.4",
        markersize=8,
        clip_on=False,
        transform=axes.get_xaxis_transform(),
        label=label,
    )


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
    points = axis(500)
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
        frequency, gain = long_skip.gain_curve()
        chosen = long_skip.settings
        filtered = chosen.filter != "none"
        numbers = f": s = {chosen.s:.3f}, cutoff = {chosen.cutoff:.3f}" if filtered else ""
        color = colormaps["viridis"](i / len(long_skips))  # from the outermost to the innermost
        axes.plot(frequency, gain, color=color, label=f"skip {i}{numbers}")
    grid = long_skips[0].grid
    assert grid is not None
    _mark_bins(axes, grid)
    axes.set(
        xlabel=FREQUENCY_LABEL,
        ylabel="gain",
        xlim=(0, MAX_FREQUENCY),
        ylim=(0, None),
        title=f"{long_skips[0].settings.filter}; skip 0 is the outermost",
    )
    axes.legend(fontsize=8)
    return figure


@torch.no_grad()
def plot_spectra(denoiser: Denoiser, x0: Tensor, y: Tensor | None) -> Figure:
    """Radial power spectrum of skip and backbone features, before and after what acts on them.

    The images are noised to t = 0.5, with the same noise every time.

    Args:
        denoiser: A denoiser.
        x0: (batch, channels, height, width) images in [-1, 1].
        y: (batch,) labels or None.

    Returns:
        Figure with one panel per long skip, power in dB.
    """
    backbone = denoiser.backbone
    spectra: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}

    def measure(module: SkipModulation, inputs: tuple, outputs: tuple) -> None:
        index = list(backbone.long_skips).index(module)
        grid = module.grid
        assert grid is not None

        def patches(x: Tensor) -> Tensor:  # of maps or of tokens
            return x.flatten(2).mT if x.ndim == 4 else x[:, module.prefix :]

        features = {
            "backbone before": inputs[0],
            "backbone after": outputs[0],
            "skip before": inputs[1],
            "skip after": outputs[1],
        }
        spectra[index] = {name: radial_power(patches(x), grid) for name, x in features.items()}

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
    styles = {
        "backbone before": "C1:",
        "backbone after": "C1",
        "skip before": "C0:",
        "skip after": "C0",
    }
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
    require(suffix in ("png", "pdf", "svg"), "out", path, "a file that ends in .png, .pdf or .svg")
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


def _two_axes(cells: Iterable[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Rows and columns of a grid over at most two options: as trained first, then rising."""
    halves = []
    for half in (slice(0, 1), slice(1, 2)):
        values = {Cell(cell.values[half]) for cell in cells}
        halves.append(sorted(values, key=_order))
    return halves[0], halves[1]


def _order(cell: Cell) -> tuple:
    """Sort key of the value of one option."""
    return tuple(
        (v is not None, v if isinstance(v, float | int) else str(v or "")) for _, v in cell.values
    )


def plot_cells(cells: dict[Cell, Tensor], note: str) -> Figure:
    """Images over one or two options, as Figure 4 of the paper: the same seeds in every cell.

    Args:
        cells: Cells of two options, the rows' first, to (images, 3, H, W) uint8, equally many.
        note: Line below the figure: what made the images.
    """
    rows, columns = _two_axes(cells)
    count = len(next(iter(cells.values())))
    height = math.ceil(count / math.ceil(math.sqrt(2 * count)))  # about twice as wide as high
    width = math.ceil(count / height)
    size = (1.5 + 3.2 * len(columns), 1 + 3.2 * height / width * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            grid = make_grid(
                cells[Cell(row.values + column.values)], nrow=width, padding=1, pad_value=255
            )
            panels[i, j].imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
            panels[i, j].set(xticks=[], yticks=[])
            panels[i, j].spines[:].set_visible(False)
            if i == 0 and column.values:
                panels[i, j].set_title(column.title())
            if j == 0:
                panels[i, j].set_ylabel(row.title(), size="large")
    figure.supxlabel(note, fontsize=8)
    return figure


def plot_cell_spectra(cells: dict[Cell, Tensor], note: str) -> Figure:
    """Radial power spectrum of the images of every cell: one panel a column, one curve a row.

    Where the grid has s = 1, b = 1 (else one with either as trained), the curves are the difference
    to it in dB, with the 95 % interval over the images, paired by seed; else the power itself.

    Args:
        cells: As for ``plot_cells``.
        note: Line below the figure.
    """
    rows, columns = _two_axes(cells)
    spectra = {}
    for cell, images in cells.items():
        rings, power = radial_power_spectrum(images)
        spectra[cell] = 10 * power.clamp_min(1e-6).log10()
    unchanged = next(iter(cells)).unchanged(cells)
    figure = Figure(figsize=(1 + 3.6 * len(columns), 3.6), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, column in zip(panels, columns, strict=True):
        for i, row in enumerate(rows):
            decibels = spectra[Cell(row.values + column.values)]
            if unchanged is not None:
                decibels = decibels - spectra[unchanged]
            middle, low, high = zip(*map(estimate, decibels.T), strict=True)
            color = colormaps["viridis"](i / len(rows))
            panel.plot(rings, middle, color=color, label=row.title())
            panel.fill_between(rings, low, high, color=color, alpha=0.2, linewidth=0)
        panel.set(title=column.title(), xlabel="frequency (fraction of the pixels' Nyquist)")
    label = "power (dB)"
    if unchanged is not None:
        label = f"power against {unchanged.title()} (dB)"
    panels[0].set_ylabel(label)
    panels[0].legend(fontsize=8)
    figure.supxlabel(note, fontsize=8)
    return figure
