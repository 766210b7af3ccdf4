"""Figures of a sweep over s and b: the images of its cells, and their spectra."""

import math
from collections.abc import Iterable

from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from uvit_lit.metrics import estimate, radial_power_spectrum

Scales = tuple[float | None, float | None]
"""s and b of a cell; None is as trained."""


def _axes(cells: Iterable[Scales]) -> list[dict[float | None, str]]:
    """The values of s and of b in some cells and how they read: as trained first, then rising."""
    return [
        {
            value: f"{name} as trained" if value is None else f"{name} = {value:g}"
            for value in sorted(set(values), key=lambda v: -1 if v is None else v)
        }
        for name, values in zip("sb", zip(*cells, strict=True), strict=True)
    ]


def plot_cells(cells: dict[Scales, Tensor], note: str) -> Figure:
    """Images over s and b, as Figure 4 of the paper: rows s, columns b, the same seeds in each.

    Args:
        cells: s and b to (images, 3, H, W) uint8, equally many in each.
        note: Line below the figure: what made the images.
    """
    rows, columns = _axes(cells)
    count = len(next(iter(cells.values())))
    height = math.ceil(count / math.ceil(math.sqrt(2 * count)))  # about twice as wide as high
    width = math.ceil(count / height)
    size = (1.5 + 3.2 * len(columns), 1 + 3.2 * height / width * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, s in enumerate(rows):
        for j, b in enumerate(columns):
            grid = make_grid(cells[s, b], nrow=width, padding=1, pad_value=255)
            panels[i, j].imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
            panels[i, j].set(xticks=[], yticks=[])
            panels[i, j].spines[:].set_visible(False)
            if i == 0:
                panels[i, j].set_title(columns[b])
            if j == 0:
                panels[i, j].set_ylabel(rows[s], size="large")
    figure.supxlabel(note, fontsize=8)
    return figure


def plot_cell_spectra(
    cells: dict[Scales, Tensor], note: str, unchanged: Scales | None = None
) -> Figure:
    """Radial power spectrum of the images of every cell: one panel per b, one curve per s.

    Args:
        cells: s and b to (images, 3, H, W) uint8, the same seeds in each.
        note: Line below the figure.
        unchanged: The cell to which the curves are the difference in dB, with the 95 % interval
            over the images, paired by seed; None is the power itself.
    """
    rows, columns = _axes(cells)
    spectra = {}
    for key, images in cells.items():
        rings, power = radial_power_spectrum(images)
        spectra[key] = 10 * power.clamp_min(1e-6).log10()
    figure = Figure(figsize=(1 + 3.6 * len(columns), 3.6), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, b in zip(panels, columns, strict=True):
        for i, s in enumerate(rows):
            decibels = spectra[s, b] - (0 if unchanged is None else spectra[unchanged])
            middle, low, high = zip(*map(estimate, decibels.T), strict=True)
            color = colormaps["viridis"](i / len(rows))
            panel.plot(rings, middle, color=color, label=rows[s])
            panel.fill_between(rings, low, high, color=color, alpha=0.2, linewidth=0)
        panel.set(title=columns[b], xlabel="frequency (fraction of the pixels' Nyquist)")
    label = "power (dB)"
    if unchanged is not None:
        label = f"power against {rows[unchanged[0]]}, {columns[unchanged[1]]} (dB)"
    panels[0].set_ylabel(label)
    panels[0].legend(fontsize=8)
    figure.supxlabel(note, fontsize=8)
    return figure
