"""Set the level of detail with sliders, on a page of this machine.

    uvit-lit play
    uvit-lit play --ckpt last --s 0.5 --b 1.3

Open the address that the command prints. The page shows eight seeds as trained and with the
settings of the sliders. Only this machine can open the page, unless --host says otherwise.
"""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from uvit_lit.cli.options import Parser, checked_input
from uvit_lit.errors import InputError, install
from uvit_lit.options import (
    DataName,
    ModelOptions,
    ReferenceOptions,
    SamplingOptions,
    SkipOptions,
)

if TYPE_CHECKING:  # heavy: imported after the options are read
    from uvit_lit.cli.play.page import Page


@dataclass(frozen=True)
class PageOptions:
    """Page.

    Attributes:
        host: Address to listen on; 127.0.0.1 is this machine only, 0.0.0.0 every network.
        port: Port to listen on; by default the first free one from 7860.
        open: Open the page in a browser.
        data: Data whose spectrum is drawn: cifar10, cifar100, folder or shapes; by default the
            training data, if they are on this machine.
        data_root: Directory of the data; by default that of the training.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    open: bool = False
    data: DataName | None = None
    data_root: str | None = None


def build_parser() -> Parser:
    """Options of the command."""
    groups = (SkipOptions, SamplingOptions, ModelOptions, PageOptions)
    return Parser("play", __doc__, *groups, n=8)


def main(arguments: list[str] | None = None) -> None:
    """Serve the page until it is interrupted.

    Args:
        arguments: The command line; None takes that of the process.
    """
    parser = build_parser()
    skips, sampling, model_options, page_options = parser.read(arguments)

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with checked_input(parser.values.debug):
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise InputError(f"play needs a package: {install('play')}") from None

        from uvit_lit.cli.play.layout import build, launch

        page = open_page(model_options, skips, sampling, page_options)
        launch(build(page), page_options.host, page_options.port, page_options.open)


def open_page(
    model: ModelOptions, skips: SkipOptions, sampling: SamplingOptions, options: PageOptions
) -> "Page":
    """The page of a model.

    Raises:
        ValueError: If an option is outside its range or does not fit the model.
    """
    from uvit_lit.cli.play.page import Page
    from uvit_lit.generation import Generation
    from uvit_lit.playground import Playground

    real = ReferenceOptions(data=options.data, data_root=options.data_root)
    playground = Playground(Generation.load(model, sampling), real)
    return Page(playground, replace(model, ckpt=playground.model.ckpt), skips)
