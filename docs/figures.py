"""Figures of the README and the pages that no command of the package draws.

python docs/figures.py strip docs/images/strip.png
python docs/figures.py poster docs/images/poster.png
python docs/figures.py speed docs/images/speed.png
python docs/figures.py race docs/images/race.png
python docs/figures.py modulation docs/images/modulation.png

The poster needs CIFAR-10 in data/cifar10-jpeg and the extra "metrics".
"""

import argparse
import re
from itertools import takewhile
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from uvit_lit.plots import save_figure

LEVELS = ((1.4, 0.85), (1.0, 1.0), (0.8, 1.1), (0.5, 1.2), (0.5, 1.3))
"""s and b of the columns of the strip; the second is the model as it was trained."""

ROWS = (("automobile", 1), ("horse", 17), ("ship", 28))
"""Class and seed of its rows."""

POSTER_S = (1.5, 1.0, 0.5, 0.0)
POSTER_B = (0.85, 1.0, 1.1, 1.2, 1.3)
"""s of the rows and b of the columns of the poster."""

POSTER_SEEDS = 16
POSTER_CLASSES = 3
"""Of so many seeds of each class the poster takes the one that the probe of evaluate.py is most
certain of, and of the classes those with the highest certainty."""

ZOOM = 4
"""Its images are enlarged by this factor, with bicubic interpolation."""

RESULTS = Path(__file__).parent / "results"
"""The first table of speed.md has the times of a training step, that of recipe.md the race."""


def strip() -> Figure:
    """One seed a row at rising levels of detail: the model of the package."""
    from uvit_lit import generate, load_model

    model = load_model()
    figure = Figure(figsize=(1.6 * len(LEVELS), 1.68 * len(ROWS)), layout="constrained")
    panels = figure.subplots(len(ROWS), len(LEVELS))
    for column, (s, b) in enumerate(LEVELS):
        panels[0, column].set_title(f"s = {s:g}, b = {b:g}", fontsize=10)
        for panel, (name, seed) in zip(panels[:, column], ROWS, strict=True):
            show(panel, generate(model, 1, seed=seed, classes=[name], s=s, b=b))
    return figure


def show(panel: Axes, images: Tensor) -> None:
    """Draw the first of some images, enlarged."""
    image = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    size = [ZOOM * side for side in image.size]
    panel.imshow(image.resize(size, Image.Resampling.BICUBIC))
    panel.set(xticks=[], yticks=[], frame_on=False)


def certain_seeds() -> list[tuple[str, int]]:
    """Class and seed of the images of the poster."""
    from uvit_lit import generate, load_model
    from uvit_lit.data.datamodule import ImageData
    from uvit_lit.distributed import Devices
    from uvit_lit.evaluation.features import load_features
    from uvit_lit.evaluation.reference import labelled_images, load_probe
    from uvit_lit.options import ReferenceOptions

    model = load_model()
    data = ImageData("folder", "data/cifar10-jpeg")
    data.setup()
    options = ReferenceOptions(features="efficientnet-lite0")
    extract = load_features(options.features, Devices(torch.device("cpu")))
    train, held_out, _ = labelled_images(data, model.class_names)
    probe, _ = load_probe(options, extract, train, held_out, 64)
    best = []
    for label, name in enumerate(model.class_names):
        images = generate(model, POSTER_SEEDS, classes=[name])
        logits = extract(images.as_subclass(Tensor)) @ probe.weight.T + probe.bias
        certainty, seed = logits.softmax(1)[:, label].max(0)
        best.append((certainty.item(), name, int(seed)))
    return [(name, seed) for _, name, seed in sorted(best, reverse=True)[:POSTER_CLASSES]]


def poster() -> Figure:
    """The paper's Figure 4 on the model of the package: rows s, columns b, a block per seed."""
    from uvit_lit import generate, load_model

    model, chosen = load_model(), certain_seeds()
    rows, columns = len(POSTER_S), len(POSTER_B)
    figure = Figure(figsize=(1.25 * columns * len(chosen), 1.4 * rows), layout="constrained")
    blocks = figure.subfigures(1, len(chosen), squeeze=False)[0]
    for block, (name, seed) in zip(blocks, chosen, strict=True):
        block.suptitle(f"{name}, seed {seed}", fontsize=11)
        panels = block.subplots(rows, columns)
        for row, s in enumerate(POSTER_S):
            panels[row, 0].set_ylabel(f"s = {s:g}", fontsize=9)
            for column, b in enumerate(POSTER_B):
                panel = panels[row, column]
                show(panel, generate(model, 1, seed=seed, classes=[name], s=s, b=b))
                if row == 0:
                    panel.set_title(f"b = {b:g}", fontsize=9)
    return figure


def first_table(page: str) -> list[list[str]]:
    """Cells of the rows of the first table of a page of results."""
    lines = (RESULTS / page).read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("|---"))
    rows = takewhile(lambda line: line.startswith("|"), lines[start + 1 :])
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def bars(axes: Axes, names: list[str], cells: list[str], ours: str) -> None:
    """Draw a bar per row: the first number of a cell, with the two after it as its interval.

    Args:
        axes: Where.
        names: Of the rows.
        cells: A middle, a low and a high number each.
        ours: Names that begin with this are highlighted.
    """
    numbers = torch.tensor([[float(x) for x in re.findall(r"\d+\.\d+", cell)] for cell in cells])
    middle, low, high = numbers.T
    colors = ["C0" if name.startswith(ours) else "0.6" for name in names]
    axes.barh(names, middle, xerr=torch.stack([middle - low, high - middle]), color=colors)
    axes.invert_yaxis()


def speed() -> Figure:
    """Seconds of a training step, from the first table of the page."""
    rows = first_table("speed.md")
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    bars(axes, [row[0] for row in rows], [row[3] for row in rows], "ours")
    axes.set_xlabel("seconds a training step, 64 images (median, quartiles)")
    return figure


def race() -> Figure:
    """KID of the candidates of the race, from the first table of the page."""
    rows = first_table("recipe.md")
    names = [f"{row[0].replace('`', '')} ({row[1]} steps)" for row in rows]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    bars(axes, names, [row[2] for row in rows], "the recipe")
    axes.set_xlabel("KID (95 % interval over the images)")
    return figure


def modulation() -> Figure:
    """Where a skip modulation acts: a diagram."""
    figure = Figure(figsize=(8, 1.9), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0.2, 8), ylim=(0.2, 2))
    axes.axis("off")
    low, high = 0.5, 1.6
    line = {"color": "0.3", "linewidth": 1, "zorder": 1}
    arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **line}
    axes.plot([1, 1, 6.2], [low, high, high], **line)
    axes.annotate("", (6.2, low + 0.14), (6.2, high), arrowprops=arrow)
    for end, start in ((2.07, 1), (3.66, 2.4), (5.96, 4.4), (7.05, 6.2)):
        axes.annotate("", (end, low), (start, low), arrowprops=arrow, zorder=1)
    for x, y, words, color in (
        (1, low, "input\nblocks", "0.93"),
        (2.4, low, "middle\nblocks", "0.93"),
        (4.4, low, "backbone features\nscaled by b", "#cfe2f3"),
        (3.6, high, "skip features:\nlow frequencies scaled by s", "#cfe2f3"),
        (6.2, low, "join", "0.93"),
        (7.4, low, "output\nblocks", "0.93"),
    ):
        box = {"facecolor": color, "edgecolor": "0.4", "boxstyle": "round,pad=0.4"}
        axes.text(x, y, words, ha="center", va="center", bbox=box, zorder=2)
    return figure


FIGURES = {
    "strip": strip,
    "poster": poster,
    "speed": speed,
    "race": race,
    "modulation": modulation,
}
"""Figures by name."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=list(FIGURES))
    parser.add_argument("out", type=Path, help="file to write: .png, .pdf or .svg")
    arguments = parser.parse_args()
    save_figure(FIGURES[arguments.figure](), arguments.out)
