"""What every way to change the detail or the quality at sampling buys and costs, on the same seeds.

    python benchmarks/detail.py --n 500 --figure detail.png
    python benchmarks/detail.py --only "cfg" "b, all skips"
    python benchmarks/detail.py --guide runs/NAME/version_0/checkpoints/step=2000.ckpt

Each method is tried over its range. The table has a row per setting: the KID, its difference to the
model as trained, paired by seed, the share of samples that a linear probe puts into the class that
was asked for (each with its 95 % interval), precision, recall, the change of the power in the
lowest and the highest quarter of the frequencies, and the processor's time per image relative to
the model as trained. The real images are those of the test split. The figure draws the KID over the
power added above 3/4 of Nyquist, a curve per method (with --only, of these alone).

--cfg takes the weights of guidance; a model that was trained with --model.cfg bears smaller ones.
--guide names the weak model of autoguidance, which is left out without it. --table draws the figure
from tables that were printed before, in one file or on a page:

    python benchmarks/detail.py --table docs/results/detail.md --figure docs/images/detail.png
"""

import argparse
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from uvit_lit import load_model
from uvit_lit.data.datamodule import ImageData
from uvit_lit.detail import Estimate, band_decibels, estimate
from uvit_lit.distributed import Devices, choose_device
from uvit_lit.evaluation.distances import Distances
from uvit_lit.evaluation.features import load_features
from uvit_lit.evaluation.reference import (
    data_spectrum,
    labelled_images,
    load_probe,
    load_reference,
)
from uvit_lit.generation import draw_labels
from uvit_lit.guidance import Guided, WithSkips
from uvit_lit.model import Model
from uvit_lit.options import ReferenceOptions
from uvit_lit.plots import save_figure
from uvit_lit.progress import progress
from uvit_lit.sampling import sample, to_uint8

Around = Callable[[Any], Any]
"""What is put around a denoiser."""

NONE = "none"
"""Method and setting of the model as trained."""


class Way(NamedTuple):
    """One setting of one method.

    Attributes:
        skips: Fields of ``SkipOptions``; none is as trained.
        around: Guidance around the denoiser.
    """

    skips: dict[str, Any]
    around: Around | None = None


class Point(NamedTuple):
    """A setting in the figure, relative to the model as trained.

    Attributes:
        setting: As in the table.
        power: Added above 3/4 of Nyquist, dB.
        kid: Difference.
    """

    setting: str
    power: float
    kid: float


class Row(NamedTuple):
    """What one setting gave, in numbers of each image but where a single number is all there is."""

    kid: list[torch.Tensor]
    right: torch.Tensor
    precision: float
    recall: float
    bands: list[torch.Tensor]
    seconds: float


def cfg(weight: float | tuple[float, float], **options: Any) -> Way:
    """Classifier-free guidance."""
    return Way({}, partial(Guided, weight=weight, **options))


def away_from_skips(weight: float, **settings: Any) -> Way:
    """Guidance away from the same network with other long skips."""
    return Way({}, lambda denoiser: Guided(denoiser, weight, WithSkips(denoiser, **settings)))


def over(values: tuple[float, ...], way: Callable[[float], Way], name: str) -> dict[str, Way]:
    """A method over the values of its knob."""
    return {f"{name} {value:g}": way(value) for value in values}


def methods(
    model: Model, weights: tuple[float, float, float], guide: Any = None
) -> dict[str, dict[str, Way]]:
    """Every method with its settings by name.

    Args:
        model: What is sampled from. Some methods act on the long skips that it names as its own.
        weights: Three weights of guidance, rising.
        guide: Weak denoiser of autoguidance.
    """

    def knob(name: str, **more: Any) -> Callable[[float], Way]:
        return lambda value: Way({name: value, **more})

    long_skips = model.denoiser.backbone.long_skips
    numbers = model.choose_skips()["s"]
    where = "innermost skip" if numbers == [len(long_skips) - 1] else "inner skips"
    inner, every = {"skips": ",".join(map(str, numbers))}, {"skips": "all"}
    box = {  # lowers one frequency to each side of the mean, as FreeU does on maps of every size
        "filter": "freeu_box",
        "cutoff": [2 / long_skips[number].grid[0] for number in numbers],
        "b_channels": 0.5,
        **inner,
    }
    pairs = ((0.8, 1.1), (0.5, 1.3), (0.2, 1.4), (0.0, 2.0))
    low, middle, high = weights
    found = {
        f"s, {where}": over((1.5, 0.5, 0), knob("s", **inner), "s"),
        f"b, {where}": over((0.8, 1.4, 2), knob("b", **inner), "b"),
        f"s and b, {where}": {
            f"s {s:g}, b {b:g}": Way({"s": s, "b": b, **inner}) for s, b in pairs
        },
        "s, innermost skip, and b, all skips": {
            f"s {s:g}, b {b:g} on all": Way({"s": s, "b": b, "skips": "split"})
            for s, b in ((0.8, 1.1), (0.6, 1.2), (0.5, 1.3), (0.2, 1.4))
        },
        "s, all skips": over((1.05, 0.95, 0.9), knob("s", **every), "s"),
        "s, all skips, mean left alone": over((1.2, 0.8), knob("s", keep_mean=True, **every), "s"),
        "b, all skips": over((0.95, 1.05, 1.1, 1.15, 1.2), knob("b", **every), "b"),
        f"FreeU 1, {where}": over((1.2, 1.6), knob("b", s=0.9, b_map="constant", **box), "b"),
        f"FreeU 2, {where}": over((1.4, 2), knob("b", s=0.9, **box), "b"),
        "Skip-Tuning": over((1.05, 0.95), knob("s", filter="flat", **every), "s"),
        "ScaleLong": {
            f"kappa {k:g}": Way({"filter": "flat", "s": [k**i for i in range(len(long_skips))]})
            for k in (1.02, 0.95)
        },
        "cfg": over(weights, cfg, "cfg"),
        "cfg, t 0.25 to 0.75": over(
            (middle, high), partial(cfg, t_range=(0.25, 0.75)), "cfg in the window"
        ),
        "cfg, rescaled by 0.7": over((high,), partial(cfg, rescale=0.7), "cfg rescaled"),
        "cfg of two bands": {
            f"cfg low {of_low:g}, high {of_high:g}": cfg((of_low, of_high), cutoff=0.3)
            for of_low, of_high in ((middle, 1.2), (1, middle))
        },
        f"away from s = 0.5, {where}": over((2,), partial(away_from_skips, s=0.5, **inner), "w"),
        "cfg and b, all skips": {
            f"cfg {w:g}, b {b:g}": Way({"b": b, **every}, cfg(w).around)
            for w, b in ((low, 1.05), (low, 1.1), (middle, 1.1))
        },
        f"cfg {high:g}, t 0.25 to 0.75, and b, all skips": {
            f"cfg {high:g} in the window, b {b:g}": Way(
                {"b": b, **every}, cfg(high, t_range=(0.25, 0.75)).around
            )
            for b in (1.05, 1.1, 1.15, 1.2)
        },
    }
    if guide is not None:
        found["autoguidance"] = over((1.5, 2), partial(cfg, weak=guide), "guide")
    return found


class Bench:
    """A model with its seeds, and what its images are measured by.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, choose_device("auto")
        self.model = load_model(args.ckpt, self.device)
        data = ImageData(args.data, args.data_root, image_size=self.model.image_shape[-1])
        data.setup()
        assert data.validation is not None
        self.extract = load_features(args.features, Devices(self.device))
        options = ReferenceOptions(features=args.features)
        self.real = [*data_spectrum(data.validation.pixels).values()]
        self.reference, _ = load_reference(
            options, self.extract, data.validation.pixels, args.batch_size
        )
        train, held_out, _ = labelled_images(data, self.model.class_names)
        self.probe, _ = load_probe(options, self.extract, train, held_out, args.batch_size)
        self.seeds = list(range(args.n))
        self.labels = draw_labels(self.model, None, self.seeds)
        self.draw(Way({}), args.batch_size)  # the first run takes longer

    def draw(self, way: Way, n: int) -> torch.Tensor:
        """The first images of a setting."""
        denoiser = self.model.denoiser
        with self.model.skips(**way.skips) if way.skips else nullcontext():
            images = sample(
                denoiser if way.around is None else way.around(denoiser),
                self.model.image_shape,
                self.seeds[:n],
                None if self.labels is None else self.labels[:n],
                steps=self.args.steps,
                precision=self.args.precision,
                batch_size=self.args.batch_size,
                device=self.device,
            )
        return to_uint8(images)

    def measure(self, way: Way) -> Row:
        """Draw and measure the images of a setting."""
        start = time.process_time()
        images = self.draw(way, self.args.n)
        seconds = time.process_time() - start
        features = torch.cat([self.extract(some) for some in images.split(self.args.batch_size)])
        distances = Distances(self.reference, {"kid", "precision_recall"})
        distances.update(features)
        values: dict[str, Any] = distances.compute()
        right = self.probe.agrees(features, torch.tensor(self.labels))
        bands = [*band_decibels(images).values()]
        return Row(values["kid"], right, values["precision"], values["recall"], bands, seconds)


HEADS = (
    "method",
    "setting",
    "KID",
    "KID - none",
    "class share",
    "precision",
    "recall",
    "below 1/4, dB",
    "above 3/4, dB",
    "time",
)


def cells(method: str, setting: str, row: Row, none: Row) -> list[str]:
    """A line of the table."""
    low, *_, high = (estimate(a - b) for a, b in zip(row.bands, none.bands, strict=True))
    return [
        method,
        setting,
        interval(estimate(*row.kid)),
        "" if row is none else interval(difference(row, none), "+"),
        interval(estimate(row.right), digits=2),
        f"{row.precision:.2f}",
        f"{row.recall:.2f}",
        f"{low.mean:+.2f}",
        f"{high.mean:+.2f}",
        f"{row.seconds / none.seconds:.2f}",
    ]


def difference(row: Row, none: Row) -> Estimate:
    """KID of a setting less that of none, paired by seed."""
    return estimate(*(x - y for x, y in zip(row.kid, none.kid, strict=True)))


def interval(value: Estimate, sign: str = "", digits: int = 3) -> str:
    """An estimate with its 95 % interval."""
    mean, low, high = (f"{number:{sign}.{digits}f}" for number in value)
    return f"{mean} [{low}, {high}]"


HIGHEST = 0.3
"""Difference of KID where the figure ends; worse settings are in the table alone."""

LACK = "the data less none, dB, by band:"
"""Begins the line with the power that the model lacks."""


def report(bench: Bench, chosen: dict[str, dict[str, Way]]) -> Iterator[str]:
    """Measure some methods: the lines to print, as they come."""
    none = bench.measure(Way({}))
    yield f"real images: class share {interval(estimate(bench.probe.right), digits=2)}"
    lack = [estimate(a, -b).mean for a, b in zip(bench.real, none.bands, strict=True)]
    yield f"{LACK} " + ", ".join(f"{value:+.2f}" for value in lack)
    yield f"none: {none.seconds / bench.args.n:.3f} processor seconds an image\n"
    yield "| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|"
    yield "| " + " | ".join(cells(NONE, "", none, none)) + " |"
    for method, settings in chosen.items():
        for setting, way in settings.items():
            yield "| " + " | ".join(cells(method, setting, bench.measure(way), none)) + " |"


def read_report(lines: Iterable[str], number: int = 1) -> tuple[dict[str, list[Point]], float]:
    """The arguments of ``plot`` from printed lines, among which others may stand.

    Args:
        lines: They hold at least one report.
        number: Which of the reports, from 1.
    """
    curves: dict[str, list[Point]] = {}
    lack = math.nan
    for line in lines:
        if LACK in line:
            number -= 1
            lack = float(re.findall(r"[+-]\d+\.\d+", line)[-1]) if number == 0 else lack
        if number:
            continue
        row = dict(zip(HEADS, (cell.strip() for cell in line[1:].split("|")), strict=False))
        if re.match(r"[+-]\d", row.get("KID - none", "")) and HEADS[-1] in row:
            power, kid = (float(row[name].split()[0]) for name in (HEADS[-2], "KID - none"))
            curves.setdefault(row["method"], []).append(Point(row["setting"], power, kid))
    return curves, lack


def in_order(points: list[Point]) -> list[Point]:
    """The settings of a method with the model as trained among them, in the order of its knob.

    As trained is 1 for s, b and kappa; for other knobs, and for several, it is the first.
    """
    values = [re.fullmatch(r"(?:s|b|kappa) (\S+)", point.setting) for point in points]
    none = Point("", 0.0, 0.0)
    if not all(values):
        return [none, *points]
    numbers = [float(value[1]) for value in values if value]
    return [p for _, p in sorted([(1.0, none), *zip(numbers, points, strict=True)])]


def plot(curves: dict[str, list[Point]], data: float) -> Figure:
    """KID over the power added above 3/4 of Nyquist: a curve per method.

    Args:
        curves: Settings by method.
        data: Power of the data less that of the model as trained, dB.
    """
    figure = Figure(figsize=(9.5, 5.5), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["tab20" if len(curves) > 10 else "tab10"]
    for number, (method, points) in enumerate(curves.items()):
        line = [(point.power, point.kid) for point in in_order(points)]
        axes.plot(*zip(*line, strict=True), "o-", color=colors(number), label=method, ms=4)
    axes.axvline(data, color="0.6", linestyle="--")
    at_top = {"xycoords": ("data", "axes fraction"), "va": "bottom", "ha": "center"}
    axes.annotate("real images", (data, 1), **at_top)
    axes.plot(0, 0, "k*", ms=12)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_ylim(top=min(axes.get_ylim()[1], HIGHEST))
    every = (point for points in curves.values() for point in points)
    shown = [data, 0.0, *(point.power for point in every if point.kid <= HIGHEST)]
    axes.set_xlim(min(shown) - 0.3, max(shown) + 0.3)
    axes.set_xlabel("power added above 3/4 of Nyquist, dB")
    axes.set_ylabel("KID less that of the model as trained (lower is better)")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    return figure


def main() -> None:
    """Print the table, draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", default="pretrained", help="default: the one in the package")
    parser.add_argument("--guide", help="checkpoint to guide away from")
    parser.add_argument(
        "--cfg",
        nargs=3,
        type=float,
        default=(1.5, 2, 3),
        help="weights of guidance (default: 1.5 2 3)",
    )
    parser.add_argument("--only", nargs="+", help="some of the methods, by name")
    parser.add_argument("--n", type=int, default=500, help="images of a setting (default: 500)")
    parser.add_argument("--steps", type=int, default=12, help="of dpmpp (default: 12)")
    parser.add_argument("--precision", default="bf16-mixed", help="default: bf16-mixed")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--data", default="folder", help="default: folder")
    parser.add_argument("--data_root", default="data/cifar10-jpeg")
    parser.add_argument("--features", default="efficientnet-lite0", help="as evaluate.py's")
    parser.add_argument("--figure", type=Path, help="file to draw to: .png, .pdf, .svg")
    parser.add_argument("--table", type=Path, help="draw what this file has, measure nothing")
    parser.add_argument("--report", type=int, default=1, help="which one of the file (default: 1)")
    args = parser.parse_args()

    def pick(known: dict[str, Any]) -> dict[str, Any]:
        if unknown := set(args.only or ()) - known.keys():
            parser.error(f"only is {', '.join(unknown)}; accepted: {', '.join(known)}")
        return {name: known[name] for name in known if name in (args.only or known)}

    if args.table is not None:
        lines = args.table.read_text().splitlines()
    else:
        bench = Bench(args)
        guide = load_model(args.guide, bench.device).denoiser if args.guide else None
        chosen = pick(methods(bench.model, tuple(args.cfg), guide))
        lines = []
        with progress(
            total=1 + sum(map(len, chosen.values())), desc="detail", unit="setting"
        ) as bar:
            for line in report(bench, chosen):
                lines.append(line)
                bar.write(line)
                bar.update(line.startswith("| ") and HEADS[0] not in line)
    if args.figure is not None:
        curves, lack = read_report(lines, args.report)
        save_figure(plot(pick(curves), lack), args.figure)


if __name__ == "__main__":
    main()
