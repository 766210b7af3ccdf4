"""Draw the low-pass families at one cutoff, or the filters of a trained model.

    uvit-lit plot families families.png
    uvit-lit plot gains gains.pdf --ckpt last

The suffix of the file (png, pdf, svg) chooses the format.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uvit_lit.cli.options import Parser, checked_input


@dataclass(frozen=True)
class PlotOptions:
    """The figure.

    Attributes:
        ckpt: Checkpoint of the gains; last is the newest below runs/.
        cutoff: Cutoff of the families, fraction of Nyquist, up to sqrt(2).
    """

    ckpt: str = "last"
    cutoff: float = 0.5


def build_parser() -> Parser:
    """Options of the command."""
    parser = Parser("plot", __doc__, PlotOptions)
    parser.add_argument("figure", type=Literal["families", "gains"], help="families or gains")
    parser.add_argument("out", type=Path, help="file to write: .png, .pdf or .svg")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Write one figure to a file.

    Args:
        arguments: The command line; None takes that of the process.
    """
    parser = build_parser()
    (options,) = parser.read(arguments)
    out = parser.values.out

    from uvit_lit.filters import check_cutoff
    from uvit_lit.model import load_model
    from uvit_lit.plots import figure_format, plot_families, plot_gains, save_figure

    with checked_input(parser.values.debug):
        figure_format(out)  # refused before the work
        if parser.values.figure == "families":
            check_cutoff(options.cutoff)
            figure = plot_families(options.cutoff)
        else:
            figure = plot_gains(list(load_model(options.ckpt).denoiser.backbone.long_skips))
        save_figure(figure, out)
    print(out)
