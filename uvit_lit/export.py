"""Write the averaged weights of a checkpoint into a file for others.

A .safetensors file has the architecture, the filters, the schedule, the class names and the licence
inside, and every command takes it as --ckpt. A .pth file has the layout of the official U-ViT code,
which loads it; it has no place for filters.
"""

import argparse
from pathlib import Path

from uvit_lit.cli import Parser, checked_input


def build_parser() -> argparse.ArgumentParser:
    """Options of this command."""
    parser = Parser(prog="python -m uvit_lit.export", description=__doc__)
    add = parser.add_argument
    add("out", type=Path, help="file to write: .safetensors, or .pth for the official layout")
    add("--ckpt", default="last", help="checkpoint; 'last' (default): the newest under runs/")
    add("--licence", help="licence of the weights, such as CC-BY-4.0")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Export.

    Args:
        arguments: The command line; None takes that of the process.
    """
    args = build_parser().parse_args(arguments)

    from uvit_lit.checkpoint import complete, find_checkpoint
    from uvit_lit.weights import check_tensors, read_weights, write_official, write_safetensors

    with checked_input():
        if args.out.suffix not in (".safetensors", ".pth"):
            raise ValueError(f"out is {args.out}; accepted: a name with .safetensors or .pth")
        if args.out.exists():
            raise ValueError(f"{args.out} exists already")
        path = find_checkpoint(args.ckpt)
        weights = read_weights(path)
        complete(weights, path)
        check_tensors(weights, path)
        weights.licence = args.licence or weights.licence
        write = write_official if args.out.suffix == ".pth" else write_safetensors
        write(weights, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
