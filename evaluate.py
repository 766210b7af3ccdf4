"""Measure the samples of a checkpoint, as trained or at many (s, b), against real images.

--metrics fid,kid,precision_recall,detail. Only what Inception's features give is called FID; with
other --features the same formula is called Frechet distance, and every name says the features.
KID (of blocks of 100 images, each against as many real ones) and the detail metrics have 95 %
intervals, also of the difference to the cell with s = 1, b = 1 (else to the one with either as
trained), paired by seed. The power of each band has its distance to the data's. The reference is
the data that the model was trained on (--split train), or --data and --data_root, or --stats, an
npz file with mu and sigma as pytorch-fid writes (which has no spectrum). Images stream through:
memory does not grow with --n but by the few numbers per image of the detail metrics. An interrupted
evaluation goes on where it was.
"""

import argparse
import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvit_lit.cli import (
    Parser,
    add_cell_options,
    add_sampling_options,
    checked_input,
    comma_list,
)
from uvit_lit.files import write, write_torch

if TYPE_CHECKING:  # heavy: imported after the arguments are parsed
    from torch import Tensor
    from tqdm import tqdm

    from uvit_lit.distances import Distances
    from uvit_lit.features import Features
    from uvit_lit.generation import Generation
    from uvit_lit.metrics import Estimate

METRICS = ("fid", "kid", "precision_recall", "detail")
SAVE_EVERY = 8  # batches


def build_parser() -> argparse.ArgumentParser:
    """Options of evaluate.py."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_cell_options(parser, s="trained", b="trained")
    add = parser.add_argument
    add("--metrics", type=comma_list(str), default=["kid", "detail"],
        help=f"any of {','.join(METRICS)} (default: kid,detail)")  # fmt: skip
    add("--features", default="inception", help="inception (default), efficientnet-lite0, or "
        "module:attribute")  # fmt: skip
    add("--inception_weights", type=Path, help="local file of the Inception weights")
    add("--data", help="cifar10, cifar100, folder or shapes (default: the model's)")
    add("--data_root", help="directory of the data (default: the model's)")
    add("--split", choices=("train", "test"), default="train", help="of the data (default: train)")
    add("--stats", type=Path, help="npz file with mu and sigma, instead of data")
    add("--save_stats", type=Path, help="also write the reference to this npz file")
    add_sampling_options(parser, n=10_000)
    return parser


def measure(
    generation: "Generation",
    distances: "Distances | None",
    extract: "Features | None",
    with_detail: bool,
    state: Path,
    bar: "tqdm",
) -> "dict[str, Tensor]":
    """Stream the images of a cell through the metrics; goes on from ``state``, and writes it.

    Every device computes images and features; the main process alone measures.
    """
    import torch

    from uvit_lit.layouts import load
    from uvit_lit.metrics import detail

    devices, total = generation.devices, len(generation.seeds)
    batches: list[dict[str, Tensor]] = []
    first = 0
    stored = None
    if devices.is_main and state.exists():
        with suppress(ValueError):  # a damaged file is measured anew
            stored = load(state)
    if stored is not None:
        first, batches = stored["images"], [stored["detail"]]
        if distances is not None:
            distances.load_state_dict(stored["distances"])
    first = devices.decide(first)
    bar.update(devices.share(first) * generation.calls)
    size = generation.batch_size * devices.count
    for number, start in enumerate(range(first, total, size), start=1):
        chosen = slice(start, start + size)
        labels = None if generation.labels is None else generation.labels[chosen]
        images = replace(generation, seeds=generation.seeds[chosen], labels=labels).run(bar)
        features = None if extract is None else extract(images)
        if not devices.is_main:
            continue
        if distances is not None:
            distances.update(features)
        if with_detail:
            batches.append(detail(images))
        done = min(start + size, total)
        if number % SAVE_EVERY == 0 or done == total:
            if batches:
                batches = [{name: torch.cat([b[name] for b in batches]) for name in batches[0]}]
            content = {
                "images": done,
                "detail": batches[0] if batches else {},
                "distances": None if distances is None else distances.state_dict(),
            }
            write_torch(state, content)
    return batches[0] if batches else {}


def name_of(metric: str, features: str) -> str:
    """Name of a value: only Inception's Frechet distance is called FID."""
    if metric == "fid" and features != "inception":
        metric = "frechet_distance"
    return f"{metric}_{features}"


def markdown(results: list[dict[str, Any]]) -> str:
    """Table of the results: one row per metric, one column per cell."""
    heads = []
    for result in results:
        given = {name: value for name, value in result["cell"].items() if value is not None}
        heads.append(", ".join(f"{k} = {v}" for k, v in given.items()) or "s, b as trained")
    names = dict.fromkeys(name for result in results for name in result["values"])
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in names:
        row = [cell_text(result["values"].get(name)) for result in results]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def cell_text(value: Any) -> str:
    """A number, an estimate with its interval where it has one, or nothing."""
    if isinstance(value, dict) and value["low"] is not None:
        return f"{value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"
    number = value["mean"] if isinstance(value, dict) else value
    return "" if number is None else f"{number:.4g}"


def plain(value: "float | Estimate") -> Any:
    """A number or an estimate for JSON, which has no nan: None."""
    if isinstance(value, tuple):
        return {name: plain(number) for name, number in value._asdict().items()}
    return value if math.isfinite(value) else None


def main(arguments: list[str] | None = None) -> None:
    """Evaluate.

    Args:
        arguments: The command line; None takes that of the process.
    """
    args = build_parser().parse_args(arguments)

    import torch

    from uvit_lit.generation import Generation
    from uvit_lit.metrics import estimate
    from uvit_lit.overrides import Cell, set_skips
    from uvit_lit.reference import data_spectrum, find_pixels, load_reference

    with checked_input():
        metrics = set(args.metrics)
        if unknown := metrics - set(METRICS):
            raise ValueError(
                f"metrics are {', '.join(sorted(unknown))}; accepted: {', '.join(METRICS)}"
            )
        if metrics == {"detail"} and (args.stats or args.save_stats):
            raise ValueError("stats and save_stats are of no use to the detail metrics alone; "
                             "accepted with: fid, kid, precision_recall")  # fmt: skip
        generation = Generation.from_options(args)
        cells = generation.cells(args)
        generation.launch()
        extract = reference = reference_hash = None
        pixels = find_pixels(args, generation, metrics)
        spectrum = data_spectrum(pixels) if "detail" in metrics and pixels is not None else {}
        if metrics - {"detail"}:
            from uvit_lit.distances import NEIGHBOURS, Distances
            from uvit_lit.features import load_features

            if "precision_recall" in metrics and args.n <= NEIGHBOURS:
                raise ValueError(
                    f"n is {args.n}; accepted with precision_recall: more than {NEIGHBOURS}"
                )
            extract = load_features(args.features, generation.devices, args.inception_weights)
            reference, reference_hash = load_reference(args, extract, generation, pixels)
            Distances(reference, metrics)
            if args.save_stats is not None and generation.devices.is_main:
                reference.write(args.save_stats)
        identity = {
            **generation.identity(),
            "training_steps": generation.model.step,
            "images": args.n,
            "first_seed": args.seed,
            "labels": "in turn" if args.classes is None else args.classes,
            "skips": generation.model.choose_skips(args.skips),
            "t_range": args.t_range,
            "t_fade": args.t_fade,
            "features": args.features if extract is not None else None,
            "reference": str(args.stats or [args.data, args.data_root, args.split]),
            "reference_sha256": reference_hash,
            "metrics": sorted(metrics),
            "design": [args.order, args.ripple, args.attenuation, args.b_channels],
        }
        out = generation.directory(args.out, "evaluation", identity)

    paired: dict[Cell, dict[str, torch.Tensor]] = {}  # numbers of images, or of blocks of them
    results = []
    with checked_input(), generation.bar(len(cells), desc="evaluate") as bar:
        for cell in cells:
            set_skips(generation.model, args, **cell._asdict())
            distances = None if reference is None else Distances(reference, metrics)
            state = out / f"{cell.stem()}.state"
            details = measure(generation, distances, extract, "detail" in metrics, state, bar)
            if not generation.devices.is_main:
                continue
            values: dict[str, Any] = {}
            computed = distances.compute() if distances else {}
            measured = {name_of(name, args.features): v for name, v in computed.items()} | details
            paired[cell] = {name: v for name, v in measured.items() if torch.is_tensor(v)}
            for name, value in measured.items():
                values[name] = plain(estimate(value) if torch.is_tensor(value) else value)
                if name in spectrum:
                    values[f"{name}, above the data"] = plain(estimate(value - spectrum[name]))
            results.append({"cell": cell._asdict(), "values": values})
    if not generation.devices.is_main:
        return
    for cell, result in zip(cells, results, strict=True):
        unchanged = cell.unchanged(paired)
        if unchanged is not None and unchanged != cell:
            for name, numbers in paired[cell].items():
                difference = plain(estimate(numbers - paired[unchanged][name]))
                result["values"][f"{name}, difference"] = difference
    with checked_input():
        report = {**identity, "results": results}
        write(out / "results.json", json.dumps(report, indent=2, allow_nan=False).encode())
        text = markdown(results)
        write(out / "results.md", text.encode())
    print(text)
    print(out / "results.json")


if __name__ == "__main__":
    main()
