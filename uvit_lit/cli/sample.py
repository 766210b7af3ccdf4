"""Generate images at any level of detail.

    uvit-lit sample --s 0.5 --b 1.3

s scales the low frequencies of the long skips, b scales the backbone features that they join.
Image k has the seed SEED + k and is the same picture for every --n and --batch_size.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvit_lit.cli.options import Parser, checked_input
from uvit_lit.errors import note
from uvit_lit.files import free_stem, replacing, write, write_png
from uvit_lit.options import ModelOptions, SamplingOptions, SkipOptions

if TYPE_CHECKING:  # heavy: imported after the options are read
    from torch import Tensor

GRID_IMAGES = 400
"""Images that the grid shows, at most."""


@dataclass(frozen=True)
class OutputOptions:
    """Files.

    Attributes:
        out: Directory for the grid and its parameters.
        images: Also write every image as a PNG file.
        npz: Also write all images into one npz file.
    """

    out: Path = Path("samples")
    images: bool = False
    npz: bool = False


def build_parser() -> Parser:
    """Options of the command."""
    return Parser("sample", __doc__, SkipOptions, SamplingOptions, ModelOptions, OutputOptions)


def stem_of(name: str, skips: SkipOptions, *more: str) -> str:
    """Name of a picture: the run or file of the model, the settings given, and ``more``."""
    parts = [name, *([skips.preset] if skips.preset else [])]
    for knob in ("s", "b"):
        value = getattr(skips, knob)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            parts.append(knob + "-".join(f"{v:g}" for v in values))
    if skips.skips is not None:
        parts.append("skips-" + skips.skips.replace(",", "-"))
    return "_".join([*parts, *more])


def write_grid(path: Path, pixels: "Tensor", parameters: dict[str, Any]) -> None:
    """Write images side by side: one column a class where that fills the rows."""
    from uvit_lit.generation import picture

    write_png(path, picture(pixels, parameters["labels"]), parameters)


def main(arguments: list[str] | None = None) -> None:
    """Sample.

    Args:
        arguments: The command line; None takes that of the process.
    """
    parser = build_parser()
    skips, sampling, model_options, output = parser.read(arguments)

    import numpy as np
    import torch

    from uvit_lit.generation import Generation

    with checked_input(parser.values.debug), ExitStack() as stack:
        loaded = Generation.load(model_options, sampling)
        named = stem_of(loaded.model.name, skips, f"seed{sampling.seed}")
        generation, skips = loaded.resolve(skips)
        generation.check_skips(skips)
        stack.enter_context(generation.model.skips(skips))
        parameters = generation.parameters(skips)
        generation.launch()
        is_main = generation.devices.is_main
        stem = generation.devices.decide(free_stem(output.out, named) if is_main else None)
        shown: list[Tensor] = []
        done = 0
        bar = stack.enter_context(generation.bar())
        for pixels in generation.stream(bar):
            if generation.devices.is_main and output.images:
                for k, image in enumerate(pixels, done):
                    label = None if generation.labels is None else generation.labels[k]
                    own = {**parameters, "seed": sampling.seed + k, "labels": label, "n": 1}
                    name = f"{stem.name}_image{sampling.seed + k}.png"
                    write_png(stem.with_name(name), image.permute(1, 2, 0).numpy(), own)
            if done < GRID_IMAGES or output.npz:
                shown.append(pixels)
            done += len(pixels)
        if not generation.devices.is_main:
            return
        images = torch.cat(shown)
        grid = stem.with_name(stem.name + ".png")
        if done > GRID_IMAGES:
            note(f"the grid shows the first {GRID_IMAGES} of {done} images")
        write_grid(grid, images[:GRID_IMAGES], parameters)
        write(grid.with_suffix(".json"), json.dumps(parameters, indent=2).encode())
        if output.npz:
            with replacing(grid.with_suffix(".npz")) as file:
                labels = np.array(generation.labels or [])
                np.savez(file, images=images.permute(0, 2, 3, 1).numpy(), labels=labels)
        print(grid)
