"""Compare finished training runs: losses, what the long skips learned, and their evaluations.

``python -m uvit_lit.compare runs/a runs/b`` prints two Markdown tables. The first has one row per
run: the training loss (over all batches of the last quarter of the run, the quarters of t weighing
the same), the last validation loss, the speed (median of what was logged), and s and cutoff of
every long skip with the averaged weights, outermost first, averaged over t.

The second has a column per filter and a row per number: the losses, also by quarter of t, and what
evaluate.py measured of the last checkpoint as it was trained (its results below --results). The
filter of the first run has the mean over its runs, the others the difference to it: the mean over
the runs of the same seeds, paired, with its 95 % interval (Student's t) from two seeds on. --figure
draws what the filters learned, the losses and the KID.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from uvit_lit.checkpoint import Model, load_model
from uvit_lit.cli import Parser, checked_input
from uvit_lit.figures import FREQUENCY_LABEL, gain_curves
from uvit_lit.files import file_hash, replacing
from uvit_lit.metrics import estimate

LOSSES = ("training loss", "validation loss")
BY_TIME = "validation loss, t "


@dataclass
class Run:
    """A finished run: its name, its model, images per second, and numbers by name."""

    name: str
    model: Model
    speed: float | None
    values: dict[str, float]

    @property
    def filter(self) -> str:
        """Low-pass on the long skips."""
        return self.model.denoiser.backbone.long_skips[0].settings.filter

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.model.data["seed"]


def read_evaluations(directory: Path) -> dict[str, dict[str, Any]]:
    """What evaluate.py measured of models as trained, by the hash of the checkpoint.

    Of several evaluations of a checkpoint the one with the most images counts.
    """
    reports = [json.loads(path.read_text()) for path in directory.glob("evaluation_*/results.json")]
    evaluations = {}
    for report in sorted(reports, key=lambda report: report["images"]):
        for result in report["results"]:
            if not any(setting is not None for setting in result["cell"].values()):
                evaluations[report["checkpoint_sha256"]] = result["values"]
    return evaluations


def read_run(directory: Path, evaluations: dict[str, dict[str, Any]]) -> Run:
    """Read the newest version of a run.

    Raises:
        ValueError: If the directory holds no finished version of a run.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    versions = directory.glob("version_*/checkpoints/last.ckpt")
    path = max(versions, key=lambda p: p.stat().st_mtime, default=None)
    if path is None:
        raise ValueError(
            f"{directory} holds no run of train.py: no version_*/checkpoints/last.ckpt"
        )
    events = EventAccumulator(str(path.parents[1])).Reload()
    logged = {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    values = {}
    quarters = [values[-max(len(values) // 4, 1) :] for tag, values in logged.items()
                if tag.startswith("train/loss_t_")]  # fmt: skip
    if quarters:
        values["training loss"] = statistics.fmean(map(statistics.fmean, quarters))
    if "val/loss" in logged:
        values["validation loss"] = logged["val/loss"][-1]
    for tag in sorted(logged):
        if tag.startswith("val/loss_t_"):
            values[BY_TIME + tag.removeprefix("val/loss_t_")] = logged[tag][-1]
    for name, value in evaluations.get(file_hash(path), {}).items():
        number = value["mean"] if isinstance(value, dict) else value
        if number is not None:
            values[name] = number
    speeds = logged.get("train/images_per_second")
    speed = statistics.median(speeds) if speeds else None
    return Run(directory.name, load_model(path), speed, values)


def row_of(run: Run) -> list[str]:
    """Cells of a run's row: name, steps, losses, speed, s, cutoff."""
    losses = [f"{run.values[name]:.4f}" if name in run.values else "-" for name in LOSSES]
    speed = "-" if run.speed is None else f"{run.speed:.1f}"
    settings = [long_skip.settings for long_skip in run.model.denoiser.backbone.long_skips]
    s = cutoff = "-"
    if run.filter != "none":
        s = ", ".join(f"{chosen.s:.3f}" for chosen in settings)
        cutoff = ", ".join(f"{chosen.cutoff:.3f}" for chosen in settings)
    return [run.name, str(run.model.step), *losses, speed, s, cutoff]


def by_filter(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each filter; that of the first run comes first."""
    return {name: [run for run in runs if run.filter == name]
            for name in dict.fromkeys(run.filter for run in runs)}  # fmt: skip


def differences(name: str, runs: Sequence[Run], base: Sequence[Run]) -> torch.Tensor:
    """Of one number to the run of ``base`` with the same seed, (pairs,)."""
    others = {run.seed: run.values[name] for run in base if name in run.values}
    return torch.tensor([run.values[name] - others[run.seed] for run in runs
                         if name in run.values and run.seed in others]).double()  # fmt: skip


def paired_rows(groups: dict[str, list[Run]]) -> list[list[str]]:
    """Rows of the second table."""
    base, *_ = groups.values()
    rows = []
    for name in dict.fromkeys(name for run in base for name in run.values):
        known = [run.values[name] for run in base if name in run.values]
        cells = [name, f"{statistics.fmean(known):.4g}"]
        for runs in list(groups.values())[1:]:
            found = differences(name, runs, base)
            mean, low, high = estimate(found)
            interval = f" [{low:+.2g}, {high:+.2g}]" if len(found) > 1 else ""
            cells.append(f"{mean:+.2g}{interval}" if len(found) else "-")
        rows.append(cells)
    return rows


def plot_comparison(runs: Sequence[Run]) -> Figure:
    """What the long skips learned, and the losses and the KID beside those of the first filter.

    Returns:
        Figure with the gain of each long skip (one curve per run), the change of the validation
        loss by quarter of t in percent, and the KID (one dot per run) where it was measured.
    """
    groups = by_filter(runs)
    colors = {name: f"C{i}" for i, name in enumerate(groups)}
    depth = max(len(run.model.denoiser.backbone.long_skips) for run in runs)
    figure = Figure(figsize=(2.6 * max(depth, 4), 5.6), layout="constrained")
    halves: Any = figure.subfigures(2, 1)
    above, below = halves
    for i, panel in enumerate(above.subplots(1, depth, sharey=True, squeeze=False)[0]):
        panel.axhline(1, color="0.7", linewidth=0.8, zorder=0)
        panel.set_title(f"gain of skip {i}" + " (outermost)" * (i == 0), fontsize=9)
        for run in runs:
            skips = run.model.denoiser.backbone.long_skips
            if i < len(skips) and run.filter != "none":
                frequency, gain = gain_curves(skips[i])
                panel.plot(frequency, gain.expand(3, -1)[1], color=colors[run.filter], alpha=0.8)
    above.supxlabel(FREQUENCY_LABEL, fontsize=9)
    base, *_ = groups.values()
    metric = next((name for run in runs for name in run.values if name.startswith("kid_")), None)
    by_time, *others = below.subplots(1, 2 if metric else 1, squeeze=False)[0]
    quarters = [name for name in base[0].values if name.startswith(BY_TIME)]
    for i, (name, group) in enumerate(groups.items()):
        for k, quarter in enumerate(quarters):
            level = statistics.fmean(run.values[quarter] for run in base)
            percent = 100 * differences(quarter, group, base) / level
            at = [k + 0.1 * (i - len(groups) / 2)] * len(percent)
            by_time.plot(
                at, percent, "o", color=colors[name], alpha=0.8, label=name if not k else None
            )
        for panel in others:
            values = [run.values[metric] for run in group if metric in run.values]
            panel.plot([i] * len(values), values, "o", color=colors[name], alpha=0.8)
            panel.set(ylabel=metric, xlim=(-0.5, len(groups) - 0.5))
            panel.set_xticks(range(len(groups)), list(groups), fontsize=8)
    by_time.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    by_time.set(ylabel=f"validation loss against {next(iter(groups))} (%)", xlabel="t")
    by_time.set_xticks(range(len(quarters)), [name.removeprefix(BY_TIME) for name in quarters])
    by_time.legend(fontsize=8)
    return figure


def build_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = Parser(prog="python -m uvit_lit.compare", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("runs", nargs="+", type=Path, help="directories below runs/")
    parser.add_argument("--results", type=Path, default=Path("samples"), help="directory with what "
                        "evaluate.py wrote (default: samples)")  # fmt: skip
    parser.add_argument("--figure", type=Path, help="PNG file to draw to")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Print the tables.

    Args:
        arguments: The command line; None takes that of the process.
    """
    args = build_parser().parse_args(arguments)
    with checked_input():
        evaluations = read_evaluations(args.results)
        runs = [read_run(directory, evaluations) for directory in args.runs]
        groups = by_filter(runs)
        first, *others = groups
        heads = ["run", "steps", "training loss", "validation loss", "images/s", "s", "cutoff"]
        paired = ["", f"{first}, mean of {len(groups[first])}",
                  *(f"{name} - {first}, {len(groups[name])} runs" for name in others)]  # fmt: skip
        tables = [(heads, list(map(row_of, runs))), (paired, paired_rows(groups))]
        if args.figure is not None:
            with replacing(args.figure) as file:
                plot_comparison(runs).savefig(file, format="png", dpi=110)
    for head, rows in tables:
        for row in (head, ["---"] * len(head), *rows):
            print("| " + " | ".join(row) + " |")
        print()


if __name__ == "__main__":
    main()
