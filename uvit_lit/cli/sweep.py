"""Draw a grid over two settings with the same seeds in every cell, and measure the detail in each.

    uvit-lit sweep --s 0.2,0.6,1.0 --b 1.0,1.2,1.4

The first two options with several values are the rows and the columns (s and b come first); every
value of a further option gives a figure of its own. The command prints a directory below --out,
with the figures, the cells as images, and detail.csv: the mean of every detail metric with its
95 % interval over the images. If the grid has the cell s = 1, b = 1 (or trained instead of 1), the
table also has the difference from it, paired by seed. A repeated command computes only the missing
cells.
"""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvit_lit.cli.options import Parser, checked_input
from uvit_lit.errors import note
from uvit_lit.files import read_png, write, write_png
from uvit_lit.options import (
    Cell,
    DirectoryOptions,
    GridOptions,
    ModelOptions,
    SamplingOptions,
    SkipOptions,
)

if TYPE_CHECKING:  # heavy: imported after the options are read
    from torch import Tensor
    from tqdm import tqdm

    from uvit_lit.generation import Generation


def build_parser() -> Parser:
    """Options of the command."""
    groups = (GridOptions, SkipOptions, SamplingOptions, ModelOptions, DirectoryOptions)
    return Parser("sweep", __doc__, *groups, s=[0.2, 0.6, 1.0], b=[1.0, 1.2, 1.4], n=8)


def draw(generation: "Generation", skips: SkipOptions, path: Path, bar: "tqdm") -> "Tensor":
    """Images of a cell, (images, 3, H, W) uint8: those at ``path`` if made alike, else new ones."""
    import numpy as np
    import torch

    parameters = generation.parameters(skips)
    parameters["ckpt"] = generation.model.path.name  # its content is in the hash
    stored = generation.devices.decide(read_png(path))
    size = generation.image_size
    shape = size, size * len(generation.seeds), 3
    whole = stored is not None and (stored[0].dtype, stored[0].shape) == (np.uint8, shape)
    if stored is not None and whole and stored[1] == parameters:
        bar.update(generation.devices.share(len(generation.seeds)) * generation.calls)
        row = torch.from_numpy(stored[0].copy())
        return row.unflatten(1, (-1, size)).permute(1, 3, 0, 2)
    if generation.devices.is_main and path.exists():
        note(f"{path} is drawn anew: it is damaged, or of other settings")
    images = generation.run(bar)
    row = images.permute(2, 0, 3, 1).flatten(1, 2)  # side by side
    if generation.devices.is_main:
        write_png(path, row.numpy(), parameters)
    return images


def table(values: "dict[Cell, dict[str, Tensor]]") -> str:
    """CSV: one row per cell and metric."""
    from uvit_lit.detail import estimate

    names = [name for name, _ in next(iter(values)).values]
    text = io.StringIO()
    writer = csv.writer(text)
    ends = ("mean", "low", "high")
    writer.writerow([*names, "metric", "images", *ends, *(f"difference_{e}" for e in ends)])
    for cell, metrics in values.items():
        unchanged = cell.unchanged(values)
        for name, numbers in metrics.items():
            row: list[Any] = [value for _, value in cell.values]
            row += [name, len(numbers), *(f"{x:.6g}" for x in estimate(numbers))]
            if unchanged is not None:
                row += [f"{x:.6g}" for x in estimate(numbers - values[unchanged][name])]
            writer.writerow(row)
    return text.getvalue()


def figures(images: "dict[Cell, Tensor]", words: str) -> "dict[str, Any]":
    """Figures by name: a grid and the spectra, one pair for every value of further axes."""
    from uvit_lit.plots import plot_cell_spectra, plot_cells

    axes = {
        name: dict.fromkeys(dict(cell.values)[name] for cell in images)
        for name, _ in next(iter(images)).values
    }
    several = [name for name, values in axes.items() if len(values) > 1]
    rest = [name for name in axes if name not in several]
    shown = (several + rest)[:2]
    panels: dict[Cell, dict[Cell, Any]] = {}
    for cell, pixels in images.items():
        other = Cell(tuple(pair for pair in cell.values if pair[0] not in shown))
        own = Cell(tuple(pair for pair in cell.values if pair[0] in shown))
        panels.setdefault(other, {})[own] = pixels
    drawn = {}
    for other, cells in panels.items():
        suffix = f"_{other.stem()}" if other.values else ""
        text = f"{other.title()}; {words}" if other.values else words
        drawn[f"grid{suffix}"] = plot_cells(cells, text)
        drawn[f"spectra{suffix}"] = plot_cell_spectra(cells, text)
    return drawn


def main(arguments: list[str] | None = None) -> None:
    """Sweep.

    Args:
        arguments: The command line; None takes that of the process.
    """
    parser = build_parser()
    grid, skips, sampling, options, files = parser.read(arguments)

    from dataclasses import asdict

    from torch.utils.tensorboard import SummaryWriter

    from uvit_lit.detail import measure_detail
    from uvit_lit.generation import Generation
    from uvit_lit.plots import save_figure

    skips, sampling = grid.fixed(skips), grid.fixed(sampling)
    with checked_input(parser.values.debug):
        generation = Generation.load(options, sampling)
        model, drawn = generation.model, generation.over(grid.cells(), skips)
        out = generation.directory(
            files.out,
            "sweep",
            [generation.identity(), asdict(skips), model.default_skips, model.recommended],
        )
        generation.launch()
        images = {}
        calls = sum(at_cell.calls for at_cell, _ in drawn.values())
        with generation.bar(calls, desc="sweep") as bar:
            for cell, (at_cell, chosen) in drawn.items():
                with model.skips(chosen):
                    path = out / "cells" / f"{cell.stem()}.png"
                    images[cell] = draw(at_cell, chosen, path, bar)
        if not generation.devices.is_main:
            return
        values = {cell: measure_detail(pixels) for cell, pixels in images.items()}
        write(out / "detail.csv", table(values).encode())
        solvers = {
            f"{at_cell.options.solver}, {at_cell.options.steps} steps, "
            for at_cell, _ in drawn.values()
        }
        words = (
            f"{model.name}, {model.training}; seeds {sampling.seed} to "
            f"{sampling.seed + sampling.n - 1}; {solvers.pop() if len(solvers) == 1 else ''}"
            f"{sampling.precision}"
        )
        writer = SummaryWriter(str(out))
        for name, figure in figures(images, words).items():
            save_figure(figure, out / f"{name}.png")
            writer.add_figure(f"sweep/{name}", figure)
        writer.close()
    print(out)
