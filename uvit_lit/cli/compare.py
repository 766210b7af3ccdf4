"""Compare finished training runs: losses, learned settings of the long skips, and evaluations.

``uvit-lit compare runs/a_0 runs/a_1 runs/b_0 runs/b_1`` prints three Markdown tables. The
first has one row per run: the training loss (over all batches of the last quarter of the run; the
quarters of t have equal weight), the last validation loss, the median of the logged speed, and s
and cutoff of every long skip in the averaged weights, outermost first.

The second has one row per measure: the losses, also by quarter of t, and the results of evaluate
for the last checkpoint as trained (below --results; of several, the one with most images). Runs
whose names differ only in the number at the end, as a_0 and a_1, are one recipe with several seeds;
runs of the same seed are paired. The table has the mean of the first recipe, and for each other the
mean difference from it, the number of pairs and, with two or more, the 95 % interval of Student's
t. A note says where their lengths differ.

The third has the same columns and one row per validation: the loss after so many steps, of the runs
that have it. --figure draws the learned gains, the losses and the KID.
"""

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from uvit_lit.cli.options import Parser, checked_input
from uvit_lit.detail import estimate
from uvit_lit.errors import InputError, note
from uvit_lit.files import file_hash
from uvit_lit.model import Model, load_model
from uvit_lit.options import SkipOptions
from uvit_lit.plots import FREQUENCY_LABEL, figure_format, save_figure

LOSSES = ("training loss", "validation loss")
BY_TIME = "validation loss, t "
ALIKE = ("n", "seed", "classes", "solver", "steps", "precision")
"""What evaluations have in common that can be compared, beside the real images."""


@dataclass
class Run:
    """A finished run.

    Attributes:
        name: Of its directory.
        model: With the averaged weights.
        speed: Images per second; None if it was not logged.
        values: Losses and measured numbers, by name.
        evaluated: How they were measured: the entries of ``ALIKE`` and ``reference_sha256``; empty
            if they were not.
        validations: Validation loss by the number of steps before it.
    """

    name: str
    model: Model
    speed: float | None
    values: dict[str, float]
    evaluated: dict[str, Any]
    validations: dict[int, float]

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.model.data["seed"]

    @property
    def recipe(self) -> str:
        """The name up to the seed."""
        return self.name.removesuffix(f"_{self.seed}")


def read_reports(directory: Path) -> list[dict[str, Any]]:
    """Reports of evaluate.py below a directory that hold a model as it was trained.

    Returns:
        Of each the ``checkpoint_sha256``, how it was ``evaluated``, and the ``values``.

    Raises:
        ValueError: If one is none.
    """
    unguided = {"cfg": 1.0, "guide": None}
    reports = []
    for path in sorted(directory.glob("evaluation_*/results.json")):
        try:
            report = json.loads(path.read_text())
            for result in report["results"]:
                sampling = result["sampling"]
                guidance = {name: sampling[name] for name in unguided}
                if result["skips"] == asdict(SkipOptions()) and guidance == unguided:
                    evaluated = {name: sampling[name] for name in ALIKE}
                    evaluated["reference_sha256"] = report.get("reference_sha256")
                    own = {"evaluated": evaluated, "values": dict(result["values"])}
                    reports.append({"checkpoint_sha256": report["checkpoint_sha256"], **own})
        except (AttributeError, KeyError, TypeError, ValueError):
            raise InputError(
                f"{path} is no report of evaluate.py, or one of an earlier version; accepted: "
                "--results with a directory without it"
            ) from None
    return reports


def read_run(directory: Path, reports: Sequence[dict[str, Any]]) -> Run:
    """Read the newest version of a run.

    Args:
        directory: Its directory, with a sub-directory for each version.
        reports: From ``read_reports``; those of its last checkpoint belong to it.

    Raises:
        ValueError: If the directory holds no finished version of a run.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    versions = directory.glob("version_*/checkpoints/last.ckpt")
    path = max(versions, key=lambda p: p.stat().st_mtime, default=None)
    if path is None:
        raise InputError(
            f"{directory} holds no run of train.py: no version_*/checkpoints/last.ckpt"
        )
    events = EventAccumulator(str(path.parents[1])).Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    logged = {tag: [event.value for event in of_tag] for tag, of_tag in scalars.items()}
    values = {}
    quarters = [
        of_tag[-max(len(of_tag) // 4, 1) :]
        for tag, of_tag in logged.items()
        if tag.startswith("train/loss_t_")
    ]
    if quarters:
        values["training loss"] = statistics.fmean(map(statistics.fmean, quarters))
    if "val/loss" in logged:
        values["validation loss"] = logged["val/loss"][-1]
    for tag in sorted(logged):
        if tag.startswith("val/loss_t_"):
            values[BY_TIME + tag.removeprefix("val/loss_t_")] = logged[tag][-1]
    hashed = file_hash(path)
    own = [report for report in reports if report["checkpoint_sha256"] == hashed]
    nothing: dict[str, Any] = {"evaluated": {}, "values": {}}
    report = max(own, key=lambda report: report["evaluated"]["n"], default=nothing)
    for name, value in report["values"].items():
        number = value["mean"] if isinstance(value, dict) else value
        if number is not None and ", " not in name:  # no differences to other cells or the data
            values[name] = number
    speeds = logged.get("train/images_per_second")
    speed = statistics.median(speeds) if speeds else None
    validations = {event.step + 1: event.value for event in scalars.get("val/loss", ())}
    return Run(directory.name, load_model(path), speed, values, report["evaluated"], validations)


def check_alike(runs: Sequence[Run]) -> None:
    """Refuse evaluations that measured something else, and say which runs have other lengths.

    Raises:
        ValueError: If the evaluations of two runs were not made alike.
    """
    for first, run in pairwise(run for run in runs if run.evaluated):
        for name in run.evaluated:
            here, there = run.evaluated.get(name), first.evaluated.get(name)
            if here != there:
                raise InputError(
                    f"{first.name} was evaluated with {name} {there}, {run.name} with {here}"
                )
    for first, run in pairwise(runs):
        if run.model.step != first.model.step:
            note(
                f"{first.name} has {first.model.step} steps, {run.name} {run.model.step}: the "
                "second table compares their ends"
            )


def row_of(run: Run) -> list[str]:
    """Cells of a run's row: name, steps, losses, speed, s, cutoff."""
    losses = [f"{run.values[name]:.4f}" if name in run.values else "-" for name in LOSSES]
    speed = "-" if run.speed is None else f"{run.speed:.1f}"
    settings = [long_skip.settings for long_skip in run.model.denoiser.backbone.long_skips]
    s = cutoff = "-"
    if settings[0].filter != "none":
        s = ", ".join(f"{chosen.s:.3f}" for chosen in settings)
        cutoff = ", ".join(f"{chosen.cutoff:.3f}" for chosen in settings)
    return [run.name, str(run.model.step), *losses, speed, s, cutoff]


def by_recipe(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each recipe; that of the first run comes first."""
    return {
        name: [run for run in runs if run.recipe == name]
        for name in dict.fromkeys(run.recipe for run in runs)
    }


def pairs(runs: dict[int, float], base: dict[int, float]) -> Tensor:
    """Numbers of runs and of those of ``base`` with the same seeds, by seed: (pairs, 2) float64."""
    found = [(number, base[seed]) for seed, number in runs.items() if seed in base]
    return torch.tensor(found, dtype=torch.float64).view(-1, 2)


def by_seed(name: str, runs: Sequence[Run]) -> dict[int, float]:
    """One of the values of runs, where they have it."""
    return {run.seed: run.values[name] for run in runs if name in run.values}


def paired_row(name: str, recipes: Sequence[dict[int, float]]) -> list[str]:
    """Row of a table: the mean of the first recipe and the differences of the others from it.

    Args:
        name: First cell.
        recipes: Of each recipe a number by seed.
    """
    base, *others = recipes
    cells = [name, f"{statistics.fmean(base.values()):.4g}"]
    for numbers in others:
        both = pairs(numbers, base)
        cell = "-"
        if len(both):
            mean, low, high = estimate(both[:, 0] - both[:, 1])
            cell = f"{mean:+.3g}"
            if len(both) > 1:
                cell += f" [{low:+.2g}, {high:+.2g}]"
            cell += f" ({len(both)})"
        cells.append(cell)
    return cells


def paired_rows(recipes: dict[str, list[Run]]) -> list[list[str]]:
    """Rows of the second table."""
    base, *_ = recipes.values()
    names = dict.fromkeys(name for run in base for name in run.values)
    return [paired_row(name, [by_seed(name, runs) for runs in recipes.values()]) for name in names]


def rows_by_step(recipes: dict[str, list[Run]]) -> list[list[str]]:
    """Rows of the third table."""
    base, *_ = recipes.values()
    rows = []
    for step in sorted({step for run in base for step in run.validations}):
        numbers = [
            {run.seed: run.validations[step] for run in runs if step in run.validations}
            for runs in recipes.values()
        ]
        rows.append(paired_row(f"{step:,} steps", numbers))
    return rows


def plot_comparison(runs: Sequence[Run]) -> Figure:
    """What the long skips learned, and the losses and the KID beside those of the first recipe.

    Returns:
        Figure with the gain of each long skip (one curve per run with a filter), the change of the
        validation loss in percent of that of the run of the same seed, by quarter of t (one dot per
        run) and, where there were several validations, by step (one curve per run), and the KID
        (one dot per run), as far as they were measured.
    """
    recipes = by_recipe(runs)
    base, *_ = recipes.values()
    colors = {name: f"C{i}" for i, name in enumerate(recipes)}
    depth = max(len(run.model.denoiser.backbone.long_skips) for run in runs)
    figure = Figure(figsize=(2.6 * max(depth, 4), 5.6), layout="constrained")
    halves: Any = figure.subfigures(2, 1)
    for i, panel in enumerate(halves[0].subplots(1, depth, sharey=True, squeeze=False)[0]):
        panel.axhline(1, color="0.7", linewidth=0.8, zorder=0)
        panel.set_title(f"gain of skip {i}" + " (outermost)" * (i == 0), fontsize=9)
        for run in runs:
            skips = run.model.denoiser.backbone.long_skips
            if i < len(skips) and skips[i].settings.filter != "none":
                frequency, gain = skips[i].gain_curve()
                panel.plot(frequency, gain, color=colors[run.recipe], alpha=0.8)
    halves[0].supxlabel(FREQUENCY_LABEL, fontsize=9)
    names = dict.fromkeys(name for run in base for name in run.values)
    quarters = [name for name in names if name.startswith(BY_TIME)]
    metrics = [name for name in names if re.match("kid_(?!blocks)", name)]
    followed = any(len(run.validations) > 1 for run in base)
    panels = list(halves[1].subplots(1, 1 + followed + len(metrics), squeeze=False)[0])
    by_time, by_step, others = panels[0], panels[1 : 1 + followed], panels[1 + followed :]
    for panel in (by_time, *by_step):
        panel.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    by_time.set(ylabel=f"validation loss\nagainst {base[0].recipe} (%)", xlabel="t")
    for panel in by_step:
        panel.set(xlabel="steps", ylabel="the same over all t (%)")
    partners = {run.seed: run.validations for run in base}
    by_time.set_xticks(range(len(quarters)), [name.removeprefix(BY_TIME) for name in quarters])
    for i, (recipe, group) in enumerate(recipes.items()):
        by_time.plot([], [], "o", color=colors[recipe], label=recipe)
        for k, quarter in enumerate(quarters):
            both = pairs(by_seed(quarter, group), by_seed(quarter, base))
            at = torch.full((len(both),), k + 0.1 * (i - (len(recipes) - 1) / 2))
            change = 100 * (both[:, 0] / both[:, 1] - 1)
            by_time.plot(at, change, "o", color=colors[recipe], alpha=0.8)
        for panel in by_step:
            for run, partner in (
                (run, partners[run.seed]) for run in group if run.seed in partners
            ):
                steps = sorted(run.validations.keys() & partner.keys())
                gaps = [100 * (run.validations[step] / partner[step] - 1) for step in steps]
                panel.plot(steps, gaps, ".-", color=colors[recipe], alpha=0.8)
        for metric, panel in zip(metrics, others, strict=True):
            values = [run.values[metric] for run in group if metric in run.values]
            panel.plot([i] * len(values), values, "o", color=colors[recipe], alpha=0.8)
    for metric, panel in zip(metrics, others, strict=True):
        panel.set(ylabel=metric, xlim=(-0.5, len(recipes) - 0.5))
        panel.set_xticks(range(len(recipes)), list(recipes), fontsize=7, rotation=15)
    handles = by_time.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(recipes), fontsize=8)
    return figure


@dataclass(frozen=True)
class CompareOptions:
    """What to compare.

    Attributes:
        results: Directory with the results of evaluate; by default samples, where it is.
        figure: File to draw to: .png, .pdf or .svg.
    """

    results: Path | None = None
    figure: Path | None = None


def build_parser() -> Parser:
    """Options of the command."""
    parser = Parser("compare", __doc__, CompareOptions)
    parser.add_argument("runs", nargs="+", type=Path, help="directories below runs/")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Print the tables.

    Args:
        arguments: The command line; None takes that of the process.
    """
    parser = build_parser()
    (args,) = parser.read(arguments)
    with checked_input(parser.values.debug):
        if args.figure is not None:
            figure_format(args.figure)  # refused before the work
        if args.results is not None and not args.results.is_dir():
            raise InputError(f"results is {args.results}, which is no directory")
        reports = read_reports(args.results or Path("samples"))
        runs = [read_run(directory, reports) for directory in dict.fromkeys(parser.values.runs)]
        check_alike(runs)
        recipes = by_recipe(runs)
        first, *others = recipes
        heads = ["run", "steps", "training loss", "validation loss", "images/s", "s", "cutoff"]
        paired = ["", first, *(f"{name} - {first} (pairs)" for name in others)]
        tables = [
            (heads, list(map(row_of, runs))),
            (paired, paired_rows(recipes)),
            (paired, rows_by_step(recipes)),
        ]
        if args.figure is not None:
            save_figure(plot_comparison(runs), args.figure)
    for head, rows in tables:
        for row in (head, ["---"] * len(head), *rows):
            print("| " + " | ".join(row) + " |")
        print()
