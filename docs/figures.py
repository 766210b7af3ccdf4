"""Figures of the README and the pages that no command of the package draws.

python docs/figures.py strip docs/images/strip.png
python docs/figures.py speed docs/images/speed.png
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from uvit_lit.plots import save_figure

LEVELS = ((1.6, 0.6), (1.0, 1.0), (0.6, 1.2), (0.2, 1.4), (0.0, 1.6))
"""s and b of the columns of the strip; the second is the model as it was trained."""

ROWS = (("automobile", 3), ("horse", 1), ("ship", 9))
"""Class and seed of its rows."""

ZOOM = 4
"""Its images are enlarged by this factor, with bicubic interpolation."""

SPEED_PAGE = Path(__file__).parent / "results" / "speed.md"
"""The first table of this page has the times of a training step."""


def strip() -> Figure:
    """One seed a row at rising levels of detail: the model of the package with guidance 2."""
    from uvit_lit import generate, load_model

    model = load_model()
    figure = Figure(figsize=(1.6 * len(LEVELS), 1.68 * len(ROWS)), layout="constrained")
    panels = figure.subplots(len(ROWS), len(LEVELS))
    for column, (s, b) in enumerate(LEVELS):
        panels[0, column].set_title(f"s = {s:g}, b = {b:g}", fontsize=10)
        for panel, (name, seed) in zip(panels[:, column], ROWS, strict=True):
            (pixels,) = generate(model, 1, seed=seed, classes=[name], cfg=2, s=s, b=b)
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            size = [ZOOM * side for side in image.size]
            panel.imshow(image.resize(size, Image.Resampling.BICUBIC))
            panel.set_axis_off()
    return figure


def speed() -> Figure:
    """Seconds of a training step, from the first table of the page."""
    rows = [line.split("|")[1:-1] for line in SPEED_PAGE.read_text().splitlines() if "|" in line]
    end = next(n for n, row in enumerate(rows[2:], 2) if "network" in row[0])
    names = [row[0].strip() for row in rows[2:end]]
    middle, low, high = zip(
        *(
            map(float, row[3].replace("(", "").replace(")", "").replace("to", "").split())
            for row in rows[2:end]
        ),
        strict=True,
    )
    errors = [
        [m - a for m, a in zip(middle, low, strict=True)],
        [b - m for m, b in zip(middle, high, strict=True)],
    ]
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    colors = ["C0" if name.startswith("ours") else "0.6" for name in names]
    axes.barh(names, middle, xerr=errors, color=colors)
    axes.invert_yaxis()
    axes.set_xlabel("seconds a training step, 64 images (median, quartiles)")
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=["strip", "speed"])
    parser.add_argument("out", type=Path, help="file to write: .png, .pdf or .svg")
    arguments = parser.parse_args()
    save_figure({"strip": strip, "speed": speed}[arguments.figure](), arguments.out)
