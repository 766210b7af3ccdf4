"""Draw a grid over s and b with the same seeds in every cell, and measure the detail in each.

--s 0.2,0.6,1.0 are the rows, --b 1.0,1.2,1.4 the columns; several values of --cutoff or --filter
make one figure each. The directory below --out holds the figures, the cells as images, and
detail.csv with the mean of every detail metric and its 95 % interval over the images; where the
sweep has s = 1, b = 1 (else one with either as trained) also the difference to it, paired by seed.
A cell that is there already is not computed again, so an interrupted sweep goes on, and more values
can be added later.
"""

import argparse
import csv
import io
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from uvit_lit.cli.options import Parser, add_cell_options, add_sampling_options, checked_input
from uvit_lit.files import read_png, write, write_png

if TYPE_CHECKING:  # heavy: imported after the arguments are parsed
    from torch import Tensor
    from tqdm import tqdm

    from uvit_lit.generation import Cell, Generation


def build_parser() -> argparse.ArgumentParser:
    """Options of sweep.py."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_cell_options(parser, s="0.2,0.6,1", b="1,1.2,1.4")
    add_sampling_options(parser, n=8)
    return parser


def draw(
    cell: "Cell",
    path: Path,
    generation: "Generation",
    args: argparse.Namespace,
    bar: "tqdm",
) -> "Tensor":
    """Images of a cell, (images, 3, H, W) uint8: those at ``path`` if made alike, else new ones."""
    import torch

    from uvit_lit.generation import set_skips

    set_skips(generation.model, args, **cell._asdict())
    parameters = generation.parameters(args)
    parameters["ckpt"] = generation.model.path.name  # the directory's name knows its content
    stored = generation.devices.decide(read_png(path))
    if stored is not None and stored[1] == parameters:
        bar.update(generation.devices.share(len(generation.seeds)) * generation.calls)
        row = torch.from_numpy(stored[0].copy())
        return row.unflatten(1, (-1, generation.image_size)).permute(1, 3, 0, 2)
    images = generation.run(bar)
    row = images.permute(2, 0, 3, 1).flatten(1, 2)  # side by side
    if generation.devices.is_main:
        write_png(path, row.numpy(), parameters)
    return images


def table(values: "dict[Cell, dict[str, Tensor]]") -> str:
    """CSV: one row per cell and metric."""
    from uvit_lit.detail import estimate
    from uvit_lit.generation import Cell

    text = io.StringIO()
    writer = csv.writer(text)
    ends = ("mean", "low", "high")
    writer.writerow([*Cell._fields, "metric", "images", *ends, *(f"difference_{e}" for e in ends)])
    for cell, metrics in values.items():
        unchanged = cell.unchanged(values)
        for name, numbers in metrics.items():
            row = [*cell, name, len(numbers), *(f"{x:.6g}" for x in estimate(numbers))]
            if unchanged is not None:
                row += [f"{x:.6g}" for x in estimate(numbers - values[unchanged][name])]
            writer.writerow(row)
    return text.getvalue()


def main(arguments: list[str] | None = None) -> None:
    """Sweep.

    Args:
        arguments: The command line; None takes that of the process.
    """
    args = build_parser().parse_args(arguments)

    from torch.utils.tensorboard import SummaryWriter

    from uvit_lit.detail import measure_detail
    from uvit_lit.generation import Cell, Generation
    from uvit_lit.plots import plot_cell_spectra, plot_cells, save_figure

    with checked_input():
        generation = Generation.from_options(args)
        cells = generation.cells(args)
        out = generation.directory(args.out, "sweep", [
            generation.identity(), args.seed, args.n, generation.labels, args.t_range, args.t_fade,
            generation.model.choose_skips(args.skips), args.order, args.ripple, args.attenuation,
            args.b_channels,
        ])  # fmt: skip
        generation.launch()

    with checked_input(), generation.bar(len(cells), desc="sweep") as bar:
        images = {
            cell: draw(cell, out / "cells" / f"{cell.stem()}.png", generation, args, bar)
            for cell in cells
        }
    if not generation.devices.is_main:
        return
    values = {cell: measure_detail(pixels) for cell, pixels in images.items()}
    with checked_input():
        write(out / "detail.csv", table(values).encode())
        model = generation.model
        note = (
            f"{model.name}, {model.training}; seeds {args.seed} to {args.seed + args.n - 1}; "
            f"{args.solver}, {args.steps} steps, {args.precision}"
        )
        writer = SummaryWriter(str(out))
        for low_pass, cutoff in product(args.filter, args.cutoff):
            chosen = {(c.s, c.b): images[c] for c in cells if c[:2] == (low_pass, cutoff)}
            suffix = Cell(low_pass, cutoff, 1, 1).stem().removesuffix("s1_b1").rstrip("_")
            text = f"{suffix}; {note}" if suffix else note
            unchanged = Cell(low_pass, cutoff, None, None).unchanged(images)
            scales = unchanged and (unchanged.s, unchanged.b)
            for name, figure in (
                ("grid", plot_cells(chosen, text)),
                ("spectra", plot_cell_spectra(chosen, text, scales)),
            ):
                save_figure(figure, out / ("_".join(filter(None, [name, suffix])) + ".png"))
                writer.add_figure(f"sweep/{name} {suffix}".strip(), figure)
        writer.close()
    print(out)


if __name__ == "__main__":
    main()
