"""Compare finished training runs: losses, and what the long skips learned.

``python -m uvit_lit.compare runs/a runs/b`` prints one Markdown row per run: the training loss
(mean over the logged steps of the last quarter of the run), the last validation loss, and s and
cutoff of every long skip with the averaged weights, outermost first.
"""

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
    losses = {
        tag: [e.value for e in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []
        for tag in ("train/loss", "val/loss")
    }
    last = losses["train/loss"][-max(len(losses["train/loss"]) // 4, 1) :]
    train = f"{sum(last) / len(last):.4f}" if last else "-"
    validation = f"{losses['val/loss'][-1]:.4f}" if losses["val/loss"] else "-"
    settings = [long_skip.settings for long_skip in model.denoiser.backbone.long_skips]
    if settings[0].filter == "none":
        s = cutoff = "-"
    else:
        s = ", ".join(f"{chosen.s:.3f}" for chosen in settings)
        cutoff = ", ".join(f"{chosen.cutoff:.3f}" for chosen in settings)
    return [run.name, str(model.step), train, validation, s, cutoff]


def main(arguments: list[str] | None = None) -> None:
    """Print the table.

    Args:
        arguments: The command line; None takes that of the process.
    """
    parser = Parser(prog="python -m uvit_lit.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="directories below runs/")
    args = parser.parse_args(arguments)
    heads = ["run", "steps", "training loss", "validation loss", "s", "cutoff"]
    with checked_input():
        rows = [heads, ["---"] * len(heads), *map(describe, args.runs)]
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
