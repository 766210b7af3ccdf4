"""Compare finished training runs: losses, and what the long skips learned.

``python -m uvit_lit.compare runs/a runs/b`` prints one Markdown row per run: the training loss
(over all batches of the last quarter of the run, the quarters of t weighing the same), the last
validation loss, the speed (median of what was logged), and s and cutoff of every long skip with the
averaged weights, outermost first, averaged over t.
"""

import argparse
import statistics
from pathlib import Path

from uvit_lit.cli import Parser, checked_input


def describe(run: Path) -> list[str]:
    """Cells of a run's row: name, steps, losses, s, cutoff.

    Raises:
        ValueError: If the directory holds no finished version of a run.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from uvit_lit.checkpoint import load_model

    versions = sorted(run.glob("version_*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime)
    if not versions:
        raise ValueError(f"{run} holds no run of train.py: no version_*/checkpoints/last.ckpt")
    model = load_model(versions[-1])
    events = EventAccumulator(str(versions[-1].parents[1])).Reload()
    logged = {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    quarters = [values[-max(len(values) // 4, 1) :] for tag, values in logged.items()
                if tag.startswith("train/loss_t_")]  # fmt: skip
    numbers = [
        statistics.fmean(map(statistics.fmean, quarters)) if quarters else None,
        logged.get("val/loss", [None])[-1],
    ]
    losses = ["-" if x is None else f"{x:.4f}" for x in numbers]
    speeds = logged.get("train/images_per_second")
    speed = f"{statistics.median(speeds):.1f}" if speeds else "-"
    settings = [long_skip.settings for long_skip in model.denoiser.backbone.long_skips]
    if settings[0].filter == "none":
        s = cutoff = "-"
    else:
        s = ", ".join(f"{chosen.s:.3f}" for chosen in settings)
        cutoff = ", ".join(f"{chosen.cutoff:.3f}" for chosen in settings)
    return [run.name, str(model.step), *losses, speed, s, cutoff]


def build_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = Parser(prog="python -m uvit_lit.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="directories below runs/")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Print the table.

    Args:
        arguments: The command line; None takes that of the process.
    """
    args = build_parser().parse_args(arguments)
    heads = ["run", "steps", "training loss", "validation loss", "images/s", "s", "cutoff"]
    with checked_input():
        rows = [heads, ["---"] * len(heads), *map(describe, args.runs)]
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
