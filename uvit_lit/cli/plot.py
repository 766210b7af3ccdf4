"""Draw the low-pass families at one cutoff, or the filters of a trained model.

``uvit-lit plot families OUT`` draws the families, ``uvit-lit plot gains OUT --ckpt PATH`` the
filters of a model; the suffix of OUT (png, pdf, svg) chooses the format.
"""

import argparse
from pathlib import Path

from uvit_lit.cli.options import Parser, checked_input
from uvit_lit.errors import InputError


def build_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = Parser(prog="uvit-lit plot", description=__doc__)
    figures = parser.add_subparsers(dest="figure", required=True)
    for name, summary in (("families", "the responses"), ("gains", "the filters of a model")):
        figure = figures.add_parser(name, help=summary)
        figure.add_argument("out", type=Path, help="file to write: .png, .pdf or .svg")
        if name == "families":
            figure.add_argument("--cutoff", type=float, default=0.5, help="default: 0.5")
        else:
            figure.add_argument("--ckpt", default="last", help="default: the newest under runs/")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Write one figure to a file.

    Args:
        arguments: The command line; None takes that of the process.
    """
    args = build_parser().parse_args(arguments)

    from uvit_lit.filters import MAX_FREQUENCY
    from uvit_lit.model import load_model
    from uvit_lit.plots import figure_format, plot_families, plot_gains, save_figure

    with checked_input():
        figure_format(args.out)  # refused before the work
        if args.figure == "families":
            if not 0 < args.cutoff <= MAX_FREQUENCY:
                raise InputError(f"cutoff is {args.cutoff}; accepted: above 0, at most sqrt(2)")
            figure = plot_families(args.cutoff)
        else:
            figure = plot_gains(list(load_model(args.ckpt).denoiser.backbone.long_skips))
        save_figure(figure, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
