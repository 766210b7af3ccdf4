"""Measure the samples of a model, as trained or at many settings, against real images.

    uvit-lit evaluate --s trained,0.5 --b trained,1.3 --metrics kid,detail,classes

The Frechet distance is called FID only with the features of Inception. All values except Frechet
distance, precision and recall have 95 % intervals, also for the difference from the cell s = 1,
b = 1 (or trained instead of 1), paired by seed. KID compares all generated images with all real
ones, at most 10,000 of each. With at least 1,000 of each there is also kid_blocks, the mean and
standard deviation over blocks of 1,000, as in papers. The metric classes is the share of images
that a linear probe assigns to the requested class, with the share of the real images beside it.

The class of each image is random and depends only on its seed. Memory grows with --n by a few
numbers per image. A repeated command continues an interrupted evaluation.
"""

import json
from dataclasses import asdict
from typing import Any

from uvit_lit.cli.options import Parser, checked_input
from uvit_lit.files import read_stats, write
from uvit_lit.options import (
    DirectoryOptions,
    GridOptions,
    ModelOptions,
    ReferenceOptions,
    SamplingOptions,
    SkipOptions,
)


def build_parser() -> Parser:
    """Options of the command."""
    groups = (ReferenceOptions, GridOptions, SkipOptions, SamplingOptions, ModelOptions)
    return Parser("evaluate", __doc__, *groups, DirectoryOptions, n=10_000)


def markdown(columns: dict[str, dict[str, Any]]) -> str:
    """Table of values by name and column: one row per name."""
    names = dict.fromkeys(name for values in columns.values() for name in values)
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        row = [cell_text(values.get(name)) for values in columns.values()]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


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


def main(arguments: list[str] | None = None) -> None:
    """Evaluate.

    Args:
        arguments: The command line; None takes that of the process.
    """
    parser = build_parser()
    reference, grid, skips, sampling, options, output = parser.read(arguments)

    with checked_input(parser.values.debug):
        if reference.stats is not None:
            read_stats(reference.stats)  # a damaged file is refused before the libraries load

    from uvit_lit.detail import estimate
    from uvit_lit.evaluation.evaluate import Evaluation, plain
    from uvit_lit.generation import Generation

    skips, sampling = grid.fixed(skips), grid.fixed(sampling)
    with checked_input(parser.values.debug):
        generation = Generation.load(options, sampling, drawn_labels=True)
        model, drawn = generation.model, generation.over(grid.cells(), skips)
        generation.launch()
        evaluation = Evaluation(generation, reference)
        identity = {
            **generation.identity(),
            **asdict(skips),
            "default_skips": model.default_skips,
            "recommended": model.recommended,
            "training_steps": model.step,
            **evaluation.key,
        }
        del identity["labels"]  # follow from the seeds and the classes
        out = generation.directory(output.out, "evaluation", identity)

        samples: dict[Any, dict[str, Any]] = {}  # numbers of images, by their seeds
        results = []
        calls = sum(at_cell.calls for at_cell, _ in drawn.values())
        with generation.bar(calls, desc="evaluate") as bar:
            for cell, (at_cell, chosen) in drawn.items():
                with model.skips(chosen):
                    state = out / f"{cell.stem()}.state"
                    values, samples[cell] = evaluation.measure(at_cell, state, bar)
                in_force = {"sampling": at_cell.sampling, "skips": asdict(chosen)}
                results.append({"cell": dict(cell.values), **in_force, "values": values})
        if not generation.devices.is_main:
            return
        for cell, result in zip(drawn, results, strict=True):
            unchanged = cell.unchanged(samples)
            if unchanged is not None and unchanged != cell:
                for name, own in samples[cell].items():
                    pairs = zip(own, samples[unchanged][name], strict=True)
                    differences = [x.double() - y.double() for x, y in pairs]
                    result["values"][f"{name}, difference"] = plain(estimate(*differences))
        real = evaluation.real
        shared = {k: v for k, v in identity.items() if k != "sampling" and not hasattr(skips, k)}
        report = {**shared, "real": real, "results": results}
        write(out / "results.json", json.dumps(report, indent=2, allow_nan=False).encode())
        is_set = skips != SkipOptions() or sampling.cfg != 1
        columns = {
            c.title() if c.values or not is_set else "as set": r["values"]
            for c, r in zip(drawn, results, strict=True)
        }
        if real:
            columns[f"real images ({real['images']})"] = real["values"]
        text = markdown(columns)
        write(out / "results.md", text.encode())
        print(text)
        print(out / "results.json")
