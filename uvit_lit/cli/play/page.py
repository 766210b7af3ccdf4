"""What happens on the page: what a tab asks for, what is drawn for it, settings from a picture."""

import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvit_lit.cli.options import command_line
from uvit_lit.cli.play.pictures import COLUMNS, download, flicker, pair, status
from uvit_lit.cli.play.settings import python_code, read_parameters
from uvit_lit.errors import InputError
from uvit_lit.files import file_hash
from uvit_lit.generation import picture
from uvit_lit.options import ModelOptions, SamplingOptions, SkipOptions
from uvit_lit.playground import Playground, Stopped

if TYPE_CHECKING:
    import gradio as gr


class Page:
    """The page of a playground.

    Args:
        playground: What it shows.
        model: Which model, as the command line gave it.
        skips: Settings that it opens with.
    """

    def __init__(self, playground: Playground, model: ModelOptions, skips: SkipOptions) -> None:
        self.playground, self.model = playground, model
        self.start = playground.fill(skips, playground.base.options)
        self.asked: dict[str, tuple[SkipOptions, SamplingOptions]] = {}
        self.drawn: dict[str, tuple[SkipOptions, SamplingOptions]] = {}
        self.controls: dict[str, Any] = {}

    def ask(self, request: "gr.Request", *values: Any) -> tuple[Any, ...]:
        """Note what a tab wants; what is being drawn for it stops at its next step.

        Returns:
            Status, command, Python and gains; None for what stays.
        """
        session = str(request.session_hash)
        try:
            options = self.playground.read(dict(zip(self.controls, values, strict=True)))
            gains = self.playground.gains(options[0])
        except InputError as error:
            self.asked.pop(session, None)
            return status(str(error), is_error=True), "", "", None
        if self.asked.get(session) != options:
            self.asked[session] = options
        said = None if options == self.drawn.get(session) else status("Drawing")
        return said, *self.code(*options), gains

    def code(self, skips: SkipOptions, sampling: SamplingOptions) -> tuple[str, str]:
        """The command and the Python that draw the same images."""
        return (
            command_line("sample", self.model, skips, sampling),
            python_code(self.model, skips, sampling),
        )

    def leave(self, request: "gr.Request") -> None:
        """Forget a tab that was closed; what is being drawn for it stops at its next step."""
        self.asked.pop(str(request.session_hash), None)
        self.drawn.pop(str(request.session_hash), None)

    def draw(
        self, request: "gr.Request", report: Callable[[float, str], Any]
    ) -> Iterator[tuple[Any, ...]]:
        """Draw what a tab wants last.

        Yields:
            Pictures side by side, both for the slider, the flicker, spectra, the link, and the
            status; None for what stays.
        """
        session = str(request.session_hash)
        options = self.asked.get(session)
        if options is None or options == self.drawn.get(session):
            return
        skips, sampling = options

        def wanted(share: float) -> None:
            if self.asked.get(session) is not options:
                raise Stopped
            report(share, "drawing")

        begun = time.monotonic()
        try:
            for drawn in self.playground.draw(skips, sampling, wanted):
                wanted(1.0 if drawn.parameters else 0.0)
                slide = None
                if drawn.trained is not None:
                    slide = tuple(
                        picture(images, columns=COLUMNS) for images in (drawn.trained, drawn.chosen)
                    )
                seconds = f"{time.monotonic() - begun:.1f} s"
                done = f"{len(drawn.chosen)} images, {drawn.steps} steps, {seconds}"
                yield (
                    pair(drawn, skips),
                    slide,
                    flicker(drawn) if drawn.parameters else None,
                    self.playground.spectra(drawn),
                    download(drawn, self.playground.model.name) if drawn.parameters else None,
                    status(done if drawn.parameters else f"Preview after {seconds}"),
                )
            self.drawn[session] = options
        except Stopped:
            return
        except InputError as error:
            yield (*[None] * 5, status(str(error), is_error=True))

    def choose(self, name: str, *values: Any) -> tuple[dict[str, Any] | None, str]:
        """Values of the controls with a preset, and what to say about it.

        Args:
            name: Of the preset.
            *values: Of the controls now, whose options of sampling stay where it names none.
        """
        playground = self.playground
        try:
            _, sampling = playground.read(dict(zip(self.controls, values, strict=True)))
            named = playground.model.resolve(SkipOptions(preset=name), sampling)
            return playground.fill(*named), status(f"Preset {name}.")
        except InputError as error:
            return None, status(str(error), is_error=True)

    def restore(self, path: str) -> tuple[dict[str, Any] | None, str]:
        """Values of the controls from a picture, and what to say about it."""
        playground = self.playground
        try:
            skips, sampling, parameters = read_parameters(Path(path))
            values = playground.fill(skips, sampling)
        except InputError as error:
            return None, status(str(error), is_error=True)
        message = "Settings restored"
        own = playground.base.options
        kept = [
            field.name
            for field in fields(sampling)
            if field.name not in values
            and field.name in parameters
            and field.name != "batch_size"
            and getattr(sampling, field.name) != getattr(own, field.name)
        ]
        if kept:
            message += f", but for {', '.join(kept)}, which this page takes from its command"
        made_by = parameters.get("checkpoint_sha256")
        if made_by not in (None, file_hash(playground.model.path)):
            message += "; the picture was made by another model"
        return values, status(message + ".")
