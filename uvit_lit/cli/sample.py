"""Generate images with a trained U-ViT at any level of detail.

s scales the low frequencies of the long skips, b amplifies the backbone features that meet them;
without --s and --b the model samples as it was trained. Image k has the seed SEED + k and is the
same picture whatever --n and --batch_size are. A single value acts on the long skips that --skips
or else the model names. A list has commas: --s 0.9,0.7,0.5,0.5 gives one value per long skip, from
the outermost pair of blocks to the innermost.
"""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from uvit_lit.cli.options import Parser, add_sampling_options, add_skip_options, checked_input
from uvit_lit.files import free_stem, replacing, write, write_png

if TYPE_CHECKING:  # heavy: imported after the arguments are parsed
    from torch import Tensor

GRID_IMAGE_SIZE = 64
"""Images smaller than this are enlarged in the grid, by a whole factor."""


def build_parser() -> argparse.ArgumentParser:
    """Options of sample.py."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_skip_options(parser)
    add_sampling_options(parser, n=16)
    add = parser.add_argument
    add("--images", action="store_true", help="also write every image as a PNG file")
    add("--npz", action="store_true", help="also write all images into one npz file")
    return parser


def save(args: argparse.Namespace, stem: Path, pixels: "Tensor", parameters: dict) -> Path:
    """Write the grid, its parameters, and on request the images; return the grid's path."""
    import numpy as np
    from torchvision.utils import make_grid

    zoom = max(1, GRID_IMAGE_SIZE // pixels.shape[-1])
    enlarged = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    classes = len(set(parameters["labels"] or [0]))
    columns = classes if classes > 1 and args.n % classes == 0 else math.ceil(math.sqrt(args.n))
    grid = stem.with_name(stem.name + ".png")
    arrange = make_grid(enlarged, nrow=columns)
    write_png(grid, arrange.permute(1, 2, 0).numpy(), parameters)
    write(stem.with_name(stem.name + ".json"), json.dumps(parameters, indent=2).encode())
    if args.images:
        for k, image in enumerate(pixels):
            seed, label = args.seed + k, (parameters["labels"] or [None] * args.n)[k]
            name = f"{stem.name}_image{seed}.png"
            own = {**parameters, "seed": seed, "label": label}
            write_png(stem.with_name(name), image.permute(1, 2, 0).numpy(), own)
    if args.npz:
        with replacing(stem.with_name(stem.name + ".npz")) as file:
            np.savez(file, images=pixels.permute(0, 2, 3, 1).numpy(),
                     labels=np.array(parameters["labels"] or []))  # fmt: skip
    return grid


def main(arguments: list[str] | None = None) -> None:
    """Sample.

    Args:
        arguments: The command line; None takes that of the process.
    """
    args = build_parser().parse_args(arguments)

    from uvit_lit.generation import Generation, set_skips, stem_of

    with checked_input():
        generation = Generation.from_options(args)
        set_skips(generation.model, args)
        stem = free_stem(args.out, stem_of(generation.model, args, f"seed{args.seed}"))
        generation.launch()
    with checked_input(), generation.bar(1) as bar:
        pixels = generation.run(bar)
    if generation.devices.is_main:
        with checked_input():
            print(save(args, stem, pixels, generation.parameters(args)))


if __name__ == "__main__":
    main()
