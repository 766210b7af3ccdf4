"""Measure the samples of a checkpoint, as trained or at many (s, b), against real images.

--metrics fid,kid,precision_recall,detail,classes. Only what Inception's features give is called
FID; with other --features the same formula is called Frechet distance, and every name says the
features. All but FID, precision and recall have 95 % intervals, also of the difference to the cell
with s = 1, b = 1 (else to the one with either as trained), paired by seed. Where generated images
are compared with real ones, the interval covers the sampling error of both.

The reference is the data that the model was trained on (--split train), or --data and --data_root,
or --stats, an npz file with mu and sigma as pytorch-fid writes (which has neither spectrum nor
classes). KID compares all generated images with all real ones, at most 10,000 of each; from 1,000
of each on there is also kid_blocks, mean and standard deviation over blocks of 1,000, as papers
print it. The power of each band has its distance to the data's. The metric classes is the share of
images that a linear probe puts into the class that was asked for; it is trained on the train split,
and its share of right answers on the test split stands beside.

The class of each image is drawn at random from --classes and depends on its seed alone. Images
stream through: memory grows with --n by a few numbers per image only. An interrupted evaluation
goes on where it was.
"""

import argparse
import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvit_lit.cli.options import (
    Parser,
    add_cell_options,
    add_sampling_options,
    checked_input,
    comma_list,
)
from uvit_lit.errors import InputError
from uvit_lit.files import write, write_torch

if TYPE_CHECKING:  # heavy: imported after the arguments are parsed
    from torch import Tensor
    from tqdm import tqdm

    from uvit_lit.detail import Estimate
    from uvit_lit.evaluation.distances import Blocks, Distances
    from uvit_lit.evaluation.features import Features
    from uvit_lit.evaluation.probe import Probe
    from uvit_lit.generation import Generation

METRICS = ("fid", "kid", "precision_recall", "detail", "classes")
DISTANCES = {"fid", "kid", "precision_recall"}
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
    probe: "Probe | None",
    with_detail: bool,
    state: Path,
    bar: "tqdm",
) -> "dict[str, Tensor]":
    """Stream the images of a cell through the metrics; goes on from ``state``, and writes it.

    Every device computes images and features; the main process alone measures.

    Returns:
        (images,) numbers by name: the detail metrics, and ``class_accuracy``, whether the probe
        puts an image into its class.
    """
    import torch

    from uvit_lit.detail import measure_detail
    from uvit_lit.weights import load

    devices, total = generation.devices, len(generation.seeds)
    batches: list[dict[str, Tensor]] = []
    first = 0
    stored = None
    if devices.is_main and state.exists():
        with suppress(ValueError):  # a damaged file is measured anew
            stored = load(state)
    if stored is not None:
        first, batches = stored["images"], [stored["per_image"]]
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
        numbers = measure_detail(images) if with_detail else {}
        if probe is not None:
            numbers["class_accuracy"] = probe.agrees(features, torch.tensor(labels))
        batches.append(numbers)
        done = min(start + size, total)
        if number % SAVE_EVERY == 0 or done == total:
            batches = [{name: torch.cat([b[name] for b in batches]) for name in numbers}]
            content = {
                "images": done,
                "per_image": batches[0],
                "distances": None if distances is None else distances.state_dict(),
            }
            write_torch(state, content)
    return batches[0] if batches else {}


def by_class(
    accuracy: "Tensor", labels: "Tensor", class_names: list[str], features: str
) -> "dict[str, list[Tensor]]":
    """Whether each image is put into its class: of all images, and of those of each class."""
    name = name_of("class_accuracy", features)
    return {name: [accuracy]} | {
        f"{name}, {class_names[k]}": [accuracy[labels == k]] for k in labels.unique().tolist()
    }


def name_of(metric: str, features: str) -> str:
    """Name of a value: only Inception's Frechet distance is called FID."""
    if metric == "fid" and features != "inception":
        metric = "frechet_distance"
    return f"{metric}_{features}"


def markdown(columns: dict[str, dict[str, Any]]) -> str:
    """Table of values by name and column: one row per name."""
    names = dict.fromkeys(name for values in columns.values() for name in values)
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        row = [cell_text(values.get(name)) for values in columns.values()]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def head_of(cell: dict[str, Any]) -> str:
    """Head of the column of a cell."""
    given = {name: value for name, value in cell.items() if value is not None}
    return ", ".join(f"{k} = {v}" for k, v in given.items()) or "s, b as trained"


def cell_text(value: Any) -> str:
    """A number, with its interval or its standard deviation where it has one, or nothing."""
    numbers = value if isinstance(value, dict) else {"mean": value}
    if numbers["mean"] is None:
        return ""
    text = f"{numbers['mean']:.4g}"
    if numbers.get("low") is not None:
        text += f" [{numbers['low']:.4g}, {numbers['high']:.4g}]"
    if numbers.get("std") is not None:
        text += f" (std {numbers['std']:.2g})"
    return text


def plain(value: "float | Estimate | Blocks") -> Any:
    """A number or several for JSON, which has no nan: None."""
    if isinstance(value, tuple):
        return {name: plain(number) for name, number in value._asdict().items()}
    return value if math.isfinite(value) else None


def check_metrics(args: argparse.Namespace, metrics: set[str]) -> None:
    """Refuse metrics that are unknown, or that the other options leave without what they need.

    Raises:
        ValueError: If there are some.
    """
    if unknown := metrics - set(METRICS):
        raise InputError(
            f"metrics are {', '.join(sorted(unknown))}; accepted: {', '.join(METRICS)}"
        )
    if not metrics & DISTANCES and (args.stats or args.save_stats):
        raise InputError("stats and save_stats are of no use to detail and classes; accepted with: "
                         "fid, kid, precision_recall")  # fmt: skip
    if "classes" in metrics and args.stats:
        raise InputError("stats has no images with classes; accepted with classes: --data")
    if "precision_recall" in metrics:
        from uvit_lit.evaluation.distances import NEIGHBOURS

        if args.n <= NEIGHBOURS:
            raise InputError(
                f"n is {args.n}; accepted with precision_recall: more than {NEIGHBOURS}"
            )


def main(arguments: list[str] | None = None) -> None:
    """Evaluate.

    Args:
        arguments: The command line; None takes that of the process.
    """
    args = build_parser().parse_args(arguments)

    import torch

    from uvit_lit.detail import estimate
    from uvit_lit.evaluation.reference import (
        data_spectrum,
        find_data,
        labelled_images,
        load_probe,
        load_reference,
        split_pixels,
    )
    from uvit_lit.generation import Cell, Generation, set_skips

    with checked_input():
        metrics = set(args.metrics)
        check_metrics(args, metrics)
        generation = Generation.from_options(args, drawn_labels=True)
        names = generation.model.class_names
        if "classes" in metrics and not names:
            raise InputError("this model has no classes; accepted: other metrics than classes")
        cells = generation.cells(args)
        generation.launch()
        extract = reference = probe = None
        hashes = dict.fromkeys(("reference_sha256", "probe_sha256"))
        data = find_data(args, generation, metrics)
        pixels = None if data is None else split_pixels(data, args.split)
        spectrum = data_spectrum(pixels) if "detail" in metrics and pixels is not None else {}
        real: dict[str, Any] = {}
        if metrics - {"detail"}:
            from uvit_lit.evaluation.features import load_features

            if "classes" in metrics:
                train, held_out, source = labelled_images(data, names)
            extract = load_features(args.features, generation.devices, args.inception_weights)
        if metrics & DISTANCES:
            from uvit_lit.evaluation.distances import Distances

            reference, hashes["reference_sha256"] = load_reference(args, extract, pixels)
            Distances(reference, metrics)
            if args.save_stats is not None and generation.devices.is_main:
                reference.write(args.save_stats)
        if "classes" in metrics:
            probe, hashes["probe_sha256"] = load_probe(args, extract, train, held_out)
            asked = torch.isin(probe.labels, torch.tensor(generation.labels))
            samples = by_class(probe.right[asked], probe.labels[asked], names, args.features)
            shares = {name: plain(estimate(*v)) for name, v in samples.items() if len(v[0])}
            real = {"images": source, "values": shares}
        identity = {
            **generation.identity(),
            "training_steps": generation.model.step,
            "images": args.n,
            "first_seed": args.seed,
            "labels": f"at random of {args.classes or 'all'}",
            "skips": generation.model.choose_skips(args.skips),
            "t_range": args.t_range,
            "t_fade": args.t_fade,
            "features": args.features if extract is not None else None,
            "reference": str(args.stats or [args.data, args.data_root, args.split]),
            **hashes,
            "metrics": sorted(metrics),
            "design": [args.order, args.ripple, args.attenuation, args.b_channels],
        }
        out = generation.directory(args.out, "evaluation", identity)

    paired: dict[Cell, dict[str, list[torch.Tensor]]] = {}  # numbers of images, by their seeds
    results = []
    with checked_input(), generation.bar(len(cells), desc="evaluate") as bar:
        for cell in cells:
            set_skips(generation.model, args, **cell._asdict())
            distances = None if reference is None else Distances(reference, metrics)
            state = out / f"{cell.stem()}.state"
            numbers = measure(
                generation, distances, extract, probe, "detail" in metrics, state, bar
            )
            if not generation.devices.is_main:
                continue
            computed = distances.compute() if distances else {}
            measured = {name_of(name, args.features): v for name, v in computed.items()}
            if probe is not None:
                right, labels = numbers.pop("class_accuracy"), torch.tensor(generation.labels)
                measured |= by_class(right, labels, names, args.features)
            measured |= {name: [v] for name, v in numbers.items()}
            paired[cell] = {name: v for name, v in measured.items() if isinstance(v, list)}
            values: dict[str, Any] = {}
            for name, value in measured.items():
                values[name] = plain(estimate(*value) if isinstance(value, list) else value)
                if name in spectrum:
                    values[f"{name}, above the data"] = plain(estimate(*value, -spectrum[name]))
            results.append({"cell": cell._asdict(), "values": values})
    if not generation.devices.is_main:
        return
    for cell, result in zip(cells, results, strict=True):
        unchanged = cell.unchanged(paired)
        if unchanged is not None and unchanged != cell:
            for name, samples in paired[cell].items():
                others = paired[unchanged][name]
                differences = [
                    x.double() - y.double() for x, y in zip(samples, others, strict=True)
                ]
                result["values"][f"{name}, difference"] = plain(estimate(*differences))
    with checked_input():
        report = {**identity, "real": real, "results": results}
        write(out / "results.json", json.dumps(report, indent=2, allow_nan=False).encode())
        columns = {head_of(result["cell"]): result["values"] for result in results}
        if real:
            columns[f"real images ({real['images']})"] = real["values"]
        text = markdown(columns)
        write(out / "results.md", text.encode())
    print(text)
    print(out / "results.json")


if __name__ == "__main__":
    main()
