"""Which recipe teaches more in the same time: candidates with the same seeds, images and noise.

    python benchmarks/race.py benchmarks/race.yaml --minutes 10 --seeds 0,1

The YAML file has the options of train.py that each candidate adds to the tiny configuration, those
that all have in common, and the data of the evaluation. Each candidate trains for as many steps as
fit into the minutes on a quiet machine: the time of a step is measured before, in rounds in which
the candidates take turns. The others are compared with the first one, and stopped half-way if their
KID is clearly above its own: the interval of the paired difference lies above a tenth of it.

The table has a row per candidate and seed: steps, images, and what evaluate.py measured of its last
checkpoint. The KID's difference to the first candidate is paired by the seeds of the samples and
has a 95 % interval. What is finished stays below --out, and the same command goes on from there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from uvit_lit.detail import Estimate, estimate
from uvit_lit.evaluation.distances import Distances, Reference
from uvit_lit.files import write
from uvit_lit.plots import save_figure
from uvit_lit.reading import load

ROOT = Path(__file__).parent.parent
TIMED = 20
"""Steps that a rate is measured over, after as many that do not count."""

DEFAULT_FEATURES = "efficientnet-lite0"
SHOWN = ("kid", "frechet_distance", "precision", "recall", "class_accuracy")


def start(script: str, *options: object) -> subprocess.Popen:
    """Start a script of this project."""
    command = [sys.executable, str(ROOT / script), *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> Path:
    """Wait for a script; the path that it prints last."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{process.args} left with status {process.returncode}")
    return Path(output.strip().splitlines()[-1])


class Race:
    """Candidates, their times, and where their results are.

    Args:
        candidates: Options of train.py by name.
        shared: Options of train.py that all have.
        data: Options of evaluate.py that say the real images.
        out: Directory of the runs and the evaluations.
        samples: Images of a last evaluation.
        features: What evaluate.py measures with.
    """

    def __init__(
        self,
        candidates: dict[str, list[str]],
        shared: list[str],
        data: list[str],
        out: Path,
        samples: int,
        features: str,
    ) -> None:
        self.candidates, self.shared, self.data = candidates, shared, data
        self.out, self.samples, self.features = out, samples, features

    def train(self, name: str, run: str, steps: int, *more: str) -> subprocess.Popen:
        """Start the training of a candidate."""
        return start(
            "train.py",
            *self.shared,
            *self.candidates[name],
            f"--trainer.max_steps={steps}",
            f"--trainer.logger.init_args.save_dir={self.out}",
            f"--trainer.logger.init_args.name={run}",
            *more,
        )

    def rates(self, rounds: int) -> dict[str, dict[str, float]]:
        """Images per second and batch size of each candidate, medians of some rounds."""
        path = self.out / "rates.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        new = [name for name in self.candidates if name not in known]
        found: dict[str, list[float]] = {name: [] for name in new}
        for _ in range(rounds):
            for name in new:
                options = (
                    "--trainer.limit_val_batches=0",
                    "--samples.count=1",
                    f"--trainer.log_every_n_steps={TIMED}",
                )
                directory = finish(self.train(name, f"timed_{name}", 2 * TIMED, *options))
                events = EventAccumulator(str(directory)).Reload()
                found[name].append(events.Scalars("train/images_per_second")[-1].value)
        for name in new:
            run = load(newest(self.out / f"timed_{name}", "last.ckpt"))
            batch = run["datamodule_hyper_parameters"]["batch_size"]
            known[name] = {"images_per_second": statistics.median(found[name]), "batch": batch}
        write(path, json.dumps(known, indent=2).encode())
        return {name: known[name] for name in self.candidates}

    def evaluate(self, checkpoint: Path, samples: int) -> Path:
        """Report of evaluate.py on a checkpoint."""
        metrics = "kid,fid,precision_recall,classes"
        return finish(
            start(
                "evaluate.py",
                "--ckpt",
                checkpoint,
                "--n",
                samples,
                "--steps",
                12,
                "--metrics",
                metrics,
                "--features",
                self.features,
                "--precision",
                "bf16-mixed",
                "--out",
                self.out / "evaluations",
                *self.data,
            )
        )

    def race(self, name: str, seed: int, steps: int) -> Path | None:
        """Train and evaluate a candidate, unless it is clearly behind the first one half-way."""
        run, half = f"{name}_{seed}", steps // 2
        first = next(iter(self.candidates))
        ends, stopped = self.out / run / "version_0" / "checkpoints", self.out / run / "stopped"
        if stopped.exists():
            return None
        if not (ends / "last.ckpt").exists():
            saves = (
                f"--checkpoints.{when}_n_steps={n}"
                for when, n in (("every", steps), ("keep_every", half))
            )
            same = "--trainer.logger.init_args.version=0"  # also after an interruption
            process = self.train(name, run, steps, f"--seed_everything={seed}", same, *saves)
            while process.poll() is None and not (ends / f"step={half}.ckpt").exists():
                time.sleep(1)
            if name != first and process.poll() is None:
                mine = self.evaluate(ends / f"step={half}.ckpt", self.samples // 4)
                other = newest(self.out / f"{first}_{seed}", "step=*.ckpt")
                base = self.evaluate(other, self.samples // 4)
                difference, scale = paired(mine, base), kid_samples(base)
                if difference.low > 0.1 * estimate(*scale).mean:
                    process.terminate()
                    process.communicate()
                    write(stopped, b"")
                    return None
            finish(process)
        return self.evaluate(ends / "last.ckpt", self.samples)


def newest(directory: Path, pattern: str) -> Path:
    """Newest checkpoint of a run."""
    return max(directory.glob(f"version_*/checkpoints/{pattern}"), key=os.path.getmtime)


def kid_samples(report: Path) -> list[torch.Tensor]:
    """Numbers per generated and per real image whose means' sum is the KID."""
    known = json.loads(report.read_text())
    found = Path("data/cache").glob(f"reference_*_{known['reference_sha256'][:24]}.npz")
    distances = Distances(Reference.read(next(found)), {"kid"})
    (state,) = report.parent.glob("*.state")
    distances.load_state_dict(load(state)["distances"])
    return distances.compute()["kid"]


def paired(report: Path, base: Path) -> Estimate:
    """Difference of two KIDs of the same seeds."""
    both = zip(kid_samples(report), kid_samples(base), strict=True)
    return estimate(*(mine - other for mine, other in both))


def features_of(report: Path) -> str:
    """What a report was measured with."""
    return json.loads(report.read_text())["features"]


def kid_of(report: Path) -> Estimate:
    """The KID of a report."""
    values = json.loads(report.read_text())["results"][0]["values"]
    return Estimate(**values[f"kid_{features_of(report)}"])


def row_of(report: Path, base: Path) -> list[str]:
    """Cells of a table: what ``report`` measured, and the difference of its KID to ``base``."""
    values = json.loads(report.read_text())["results"][0]["values"]
    cells = []
    for name in SHOWN:
        value = values[f"{name}_{features_of(report)}"]
        cells.append(interval(Estimate(**value)) if isinstance(value, dict) else f"{value:.3f}")
    return [*cells, "" if report == base else interval(paired(report, base))]


def plot(kids: dict[str, list[Estimate]]) -> Figure:
    """KID of each candidate, one dot with its interval per seed."""
    figure = Figure(figsize=(7, 0.8 + 0.35 * len(kids)), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(kids.values()):
        for value in values:
            axes.plot([value.low, value.high], [row, row], color=f"C{min(row, 1)}", linewidth=1.5)
            axes.plot(value.mean, row, "o", color=f"C{min(row, 1)}")
    axes.axvline(next(iter(kids.values()))[0].mean, color="0.7", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(kids)), list(kids))
    axes.invert_yaxis()
    axes.set_xlabel("KID, with its 95 % interval over the images")
    return figure


def interval(value: Estimate) -> str:
    """An estimate with its interval."""
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def main() -> None:
    """Race and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="YAML file: options, data, candidates")
    parser.add_argument("--minutes", type=float, default=10, help="of training of each candidate")
    parser.add_argument(
        "--seeds",
        type=lambda text: list(map(int, text.split(","))),
        default=[0],
        help="seeds of the training",
    )
    parser.add_argument("--n", type=int, default=2000, help="samples of a last evaluation")
    parser.add_argument("--rounds", type=int, default=3, help="in which the steps are timed")
    parser.add_argument("--features", default=DEFAULT_FEATURES, help="as evaluate.py takes them")
    parser.add_argument("--only", type=lambda text: text.split(","), help="some of the candidates")
    parser.add_argument("--figure", type=Path, help="file to draw the KIDs to: .png, .pdf, .svg")
    parser.add_argument("--out", type=Path, default=Path("runs/race"), help="default: runs/race")
    args = parser.parse_args()
    content = yaml.safe_load(args.file.read_text())
    candidates = content["candidates"]
    first = next(iter(candidates))
    if args.only:
        candidates = {name: candidates[name] for name in dict.fromkeys([first, *args.only])}
    race = Race(candidates, content["options"], content["data"], args.out, args.n, args.features)
    rates = race.rates(args.rounds)
    heads = ["candidate", "seed", "images/s", "steps", "images", *SHOWN, "KID - that of the first"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    kids: dict[str, list[Estimate]] = {name: [] for name in rates}
    for seed in args.seeds:
        base = None
        for name, rate in rates.items():
            images = 60 * args.minutes * rate["images_per_second"]
            steps = round(images / rate["batch"])
            report = race.race(name, seed, steps)
            base = base or report
            cells = ["stopped half-way"] if report is None else row_of(report, base)
            if report is not None:
                kids[name].append(kid_of(report))
            numbers = (f"{rate['images_per_second']:.0f}", steps, steps * rate["batch"])
            print("| " + " | ".join(map(str, [name, seed, *numbers, *cells])) + " |", flush=True)
    if args.figure is not None:
        save_figure(plot({name: values for name, values in kids.items() if values}), args.figure)


if __name__ == "__main__":
    main()
