"""Turn the settings of the long skips on a page of this machine and see the images change.

    uvit-lit play
    uvit-lit play --ckpt last --s 0.5 --b 1.3

The page shows eight seeds as trained and as set. Nobody but this machine can open it unless --host
says otherwise.
"""

import base64
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from uvit_lit.cli.options import Parser, checked_input, command_line
from uvit_lit.errors import InputError
from uvit_lit.files import file_hash, png, read_png
from uvit_lit.options import (
    BEST,
    PRESETS,
    ModelOptions,
    ReferenceOptions,
    SamplingOptions,
    SkipOptions,
)

if TYPE_CHECKING:  # heavy: imported after the options are read
    import gradio as gr
    from torch import Tensor

    from uvit_lit.playground import Drawn, Playground

COLUMNS = 4
"""Images in a row."""

UPLOAD = "20mb"
"""Size of a picture that is dropped onto the page, at most."""


@dataclass(frozen=True)
class PageOptions:
    """Page.

    Attributes:
        host: Address to listen on; 127.0.0.1 is this machine alone, 0.0.0.0 every network.
        port: Port to listen on; by default the first free one from 7860.
        open: Open the page in a browser.
        data: Data whose spectrum is drawn: cifar10, cifar100, folder or shapes; by default that of
            the training, where it is on this machine.
        data_root: Directory of the data; by default that of the training.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    open: bool = False
    data: Literal["cifar10", "cifar100", "folder", "shapes"] | None = None
    data_root: str | None = None


def build_parser() -> Parser:
    """Options of the command."""
    groups = (SkipOptions, SamplingOptions, ModelOptions, PageOptions)
    return Parser("play", __doc__, *groups, n=8)


def python_code(model: ModelOptions, skips: SkipOptions, sampling: SamplingOptions) -> str:
    """Python that draws the same images."""
    groups: dict[str, list[str]] = {"load": [], "generate": []}
    for name, given in (("load", model), ("generate", skips), ("generate", sampling)):
        for field, default in zip(fields(given), fields(type(given)), strict=True):
            value = getattr(given, field.name)
            if value != default.default and field.name not in ("ckpt", "n", "vae", "devices"):
                groups[name].append(f"{field.name}={value!r}")
    if model.ckpt != ModelOptions.ckpt:
        groups["load"].insert(0, repr(model.ckpt))
    if model.vae is not None:
        groups["generate"].append(f"vae={model.vae!r}")
    drawn = ", ".join(["model", str(sampling.n), *groups["generate"]])
    return (
        "from uvit_lit import generate, load_model\n\n"
        f"model = load_model({', '.join(groups['load'])})\n"
        f"images = generate({drawn})\n"
    )


def read_parameters(path: Path) -> tuple[SkipOptions, SamplingOptions, dict[str, Any]]:
    """The options that a picture carries, and everything else that it says.

    Raises:
        ValueError: If it carries none, or a value is not of its kind.
    """
    found = read_png(path)
    if found is None or not isinstance(found[1], dict):
        raise InputError(
            "this picture carries no settings; accepted: a PNG written by uvit-lit sample, sweep, "
            "edit or this page"
        )
    parser = Parser("play", None, SkipOptions, SamplingOptions, n=8)
    options = []
    for group in parser.dataclasses:
        own = {f.name: found[1][f.name] for f in fields(group) if f.name in found[1]}
        try:
            values = parser.parse_object(own)
        except Exception as error:  # of argparse or jsonargparse, which have several
            reason = " ".join(str(error).split())[:80]
            raise InputError(f"a setting of this picture is not accepted: {reason}") from None
        options.append(group(**{field.name: values[field.name] for field in fields(group)}))
    return options[0], options[1], found[1]


def data_uri(content: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def figure(images: "Tensor | None", caption: str, parameters: dict[str, Any] | None = None) -> str:
    """Images with a caption, as HTML; the picture carries its parameters."""
    from uvit_lit.generation import picture

    if images is None:
        return f"<figure><div class='waiting'></div><figcaption>{caption}</figcaption></figure>"
    address = data_uri(png(picture(images, columns=COLUMNS), parameters))
    return (
        f"<figure><img src='{address}' alt='{caption}'><figcaption>{caption}</figcaption></figure>"
    )


def words(skips: SkipOptions) -> str:
    """The settings of a picture, to read."""
    given = {name: value for name, value in asdict(skips).items() if value}
    parts = []
    for name, value in given.items():
        values = value if isinstance(value, list | tuple) else [value]
        shown = ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
        parts.append(f"{name} {shown}")
    return escape("; ".join(parts)) or "as trained"


def pair(drawn: "Drawn", skips: SkipOptions) -> str:
    """The images as trained beside those as set."""
    note = "" if drawn.parameters else f" &middot; preview, {drawn.steps} steps"
    return (
        f"<div class='pair'>{figure(drawn.trained, 'as trained' + note)}"
        f"{figure(drawn.chosen, 'as set: ' + words(skips) + note, drawn.parameters)}</div>"
    )


def flicker(drawn: "Drawn") -> str:
    """The two in one place, in turn."""
    return (
        f"<div class='flicker'>{figure(drawn.trained, 'as trained')}"
        f"{figure(drawn.chosen, 'as set')}</div>"
    )


def download(drawn: "Drawn", name: str) -> str:
    """A link that saves the picture with its parameters."""
    from uvit_lit.generation import picture

    address = data_uri(png(picture(drawn.chosen, columns=COLUMNS), drawn.parameters))
    return f"<a class='save' download='{escape(name)}.png' href='{address}'>Download PNG</a>"


def status(message: str, is_error: bool = False) -> str:
    """The line below the pictures."""
    return f"<p class='status{' error' if is_error else ''}' role='status'>{escape(message)}</p>"


CSS = """
.pair { display: flex; flex-wrap: wrap; gap: 16px; }
.pair figure { flex: 1 1 300px; margin: 0; min-width: 0; }
.pair img, .flicker img, .waiting, .slide img { width: 100%; display: block; border-radius: 6px;
  image-rendering: pixelated; }
.waiting { aspect-ratio: 2; background: var(--background-fill-secondary); }
figcaption { font-size: 13px; color: var(--body-text-color-subdued); padding-top: 6px; }
.flicker { position: relative; max-width: 640px; }
.flicker figure { margin: 0; }
.flicker figure + figure { position: absolute; inset: 0; background: var(--body-background-fill);
  animation: flicker 1.6s steps(1) infinite; }
.flicker:hover figure + figure { animation-play-state: paused; }
@keyframes flicker { 0% { opacity: 1 } 50% { opacity: 0 } }
.status { min-height: 1.5em; margin: 0; font-size: 14px; color: var(--body-text-color-subdued); }
.status.error { color: #c0392b; font-weight: 600; }
.dark .status.error { color: #ff8a7a; }
.save { display: block; text-align: center; text-decoration: none !important;
  padding: var(--button-large-padding); border-radius: var(--button-large-radius);
  background: var(--button-secondary-background-fill);
  color: var(--button-secondary-text-color) !important;
  border: 1px solid var(--button-secondary-border-color);
  font-weight: var(--button-large-text-weight); font-size: var(--button-large-text-size); }
#save { margin: 0; flex: 1 1 160px; }
#save .html-container { padding: 0; }
.charts > * { flex: 1 1 290px !important; }
.gradio-container { overflow: visible !important; }  /* else nothing in it can be sticky */
@media (max-width: 760px) {  /* the pictures stay in sight while the sliders move */
  .row:has(> .side) > .side { display: contents; }
  .row:has(> .side) { flex-direction: column; flex-wrap: nowrap; }
  #pictures { order: -1; position: sticky; top: 0; z-index: 1000; padding-bottom: 8px;
    background: var(--body-background-fill); }
  .pair { gap: 8px; flex-wrap: nowrap; }
  .pair figure { flex: 1 1 0; }
  .pair figcaption { font-size: 11px; }
}
footer { display: none !important; }
"""

DROP = """
() => {
  // a picture dropped anywhere on the page goes to the field for pictures
  for (const kind of ["dragover", "drop"]) {
    document.addEventListener(kind, (event) => {
      if (!event.dataTransfer || ![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault();
      if (kind === "dragover") return;
      event.stopPropagation();
      const field = document.querySelector("#restore input[type=file]");
      if (!field) return;
      field.files = event.dataTransfer.files;
      field.dispatchEvent(new Event("change", { bubbles: true }));
    }, true);
  }
}
"""

COPY = "(text) => { navigator.clipboard.writeText(text); }"


class Page:
    """The page of a playground.

    Args:
        playground: What it shows.
        model: Which model, as the command line gave it.
        skips: Settings that it opens with.
    """

    def __init__(self, playground: "Playground", model: ModelOptions, skips: SkipOptions) -> None:
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
        from uvit_lit.generation import picture
        from uvit_lit.playground import Stopped

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

    def build(self) -> "gr.Blocks":
        """Lay the page out."""
        import gradio as gr

        def shown(values: tuple[Any, ...]) -> list[Any]:
            return [gr.skip() if value is None else value for value in values]

        def changes(values: dict[str, Any] | None) -> list[Any]:
            if values is None:
                return [gr.skip() for _ in self.controls]
            return [values[name] for name in self.controls]

        with gr.Blocks(title="uvit-lit play", fill_width=True, analytics_enabled=False) as blocks:
            with gr.Row():
                with gr.Column(scale=1, min_width=320, elem_classes="side"):
                    preset = self._skip_controls(gr)
                    self._sampling_controls(gr)
                with gr.Column(scale=3, min_width=320, elem_classes="side"):
                    with gr.Tabs(elem_id="pictures"):
                        with gr.Tab("Side by side"):
                            both = gr.HTML("<div class='pair'></div>", elem_id="pair")
                        with gr.Tab("Slide"):
                            slide = gr.ImageSlider(
                                show_label=False,
                                format="png",
                                interactive=False,
                                elem_classes="slide",
                                buttons=["fullscreen"],
                            )
                        with gr.Tab("Flicker"):
                            turns = gr.HTML()
                    line = gr.HTML(status("Drawing"), elem_id="status", min_height=48)
                    with gr.Row():
                        command_button = gr.Button("Copy command")
                        python_button = gr.Button("Copy Python")
                        save = gr.HTML(elem_id="save")
                    with gr.Row(elem_classes="charts"):
                        gains, spectra = gr.HTML(elem_id="gains"), gr.HTML(elem_id="spectra")
                    dropped = gr.File(
                        label="Drop a PNG of uvit-lit anywhere on this page to get its settings",
                        file_types=[".png"],
                        height=110,
                        elem_id="restore",
                    )
                    with gr.Accordion("Command and Python for these images", open=False):
                        command = gr.Code(label="Command", language="shell", interactive=False)
                        python = gr.Code(label="Python", language="python", interactive=False)

            inputs = list(self.controls.values())
            outputs = [both, slide, turns, spectra, save, line]

            def draw(
                request: gr.Request,
                report: gr.Progress = gr.Progress(),  # noqa: B008
            ) -> Iterator[list[Any]]:
                yield [gr.skip() for _ in outputs]  # without any, Gradio would empty them
                for values in self.draw(request, lambda share, text: report(share, desc=text)):
                    yield shown(values)

            def ask(request: gr.Request, *values: Any) -> list[Any]:
                return shown(self.ask(request, *values))

            def leave(request: gr.Request) -> None:
                self.leave(request)

            def restore(path: str | None) -> list[Any]:
                if path is None:
                    return [*changes(None), gr.skip(), gr.skip()]
                values, said = self.restore(path)
                return [*changes(values), None, said]

            def choose(name: str | None, *values: Any) -> list[Any]:
                if not name:
                    return changes(None)
                now = dict(zip(self.controls, values, strict=True))
                _, sampling = self.playground.read(now)
                named = self.playground.model.resolve(SkipOptions(preset=name), sampling)
                return changes(self.playground.fill(*named))

            hidden: Any = {"show_progress": "hidden", "api_visibility": "private"}
            gr.on(
                [blocks.load, *(control.change for control in inputs)],
                ask,
                inputs,
                [line, command, python, gains],
                queue=False,
                trigger_mode="multiple",
                **hidden,
            ).then(
                draw,
                None,
                outputs,
                trigger_mode="multiple",
                concurrency_limit=1,
                concurrency_id="model",
                show_progress="minimal",
                show_progress_on=line,
                api_visibility="private",
            )
            dropped.upload(restore, dropped, [*inputs, dropped, line], **hidden)
            preset.input(choose, [preset, *inputs], inputs, **hidden)
            command_button.click(None, command, None, js=COPY, api_visibility="private")
            python_button.click(None, python, None, js=COPY, api_visibility="private")
            blocks.load(None, None, None, js=DROP, api_visibility="private")
            blocks.unload(leave)
        return blocks

    def _skip_controls(self, gr: Any) -> Any:
        """Controls of the level of detail; returns that of the presets."""
        from uvit_lit.families import FILTERS
        from uvit_lit.filters import RANGES
        from uvit_lit.playground import KNOBS, TRAINED
        from uvit_lit.skips import B_MAPS, NAMED_SKIPS

        start, controls = self.start, self.controls
        count = len(self.playground.trained)
        labels = {"s": "s, skip scale", "b": "b, backbone scale", "cutoff": "cutoff"}

        def slider(name: str, knob: str, label: str) -> Any:
            low, high, step = KNOBS[knob]
            return gr.Slider(low, high, start[name], step=step, label=label, elem_id=name)

        model = self.playground.model
        gr.Markdown(f"### {escape(model.name)}\n{escape(model.training)}")
        presets = [*PRESETS, BEST] if model.recommended else PRESETS
        preset = gr.Dropdown(
            [("choose one", ""), *((name, name) for name in presets)], value="", label="Preset"
        )
        with gr.Group(visible=not start["per_skip"]) as single:
            for knob in KNOBS:
                controls[knob] = slider(knob, knob, labels[knob])
            controls["skips"] = gr.Dropdown(
                list(NAMED_SKIPS) + [str(k) for k in range(count)],
                value=start["skips"],
                label=f"Long skips, 0 (outermost) to {count - 1}; several with commas",
                allow_custom_value=True,
            )
        with gr.Group(visible=start["per_skip"]) as several:
            for knob in KNOBS:
                for k in range(count):
                    controls[f"{knob}{k}"] = slider(f"{knob}{k}", knob, f"{knob} of skip {k}")
        controls["per_skip"] = gr.Checkbox(start["per_skip"], label="One value per skip")
        controls["per_skip"].change(
            lambda on: (gr.Group(visible=not on), gr.Group(visible=on)),
            controls["per_skip"],
            [single, several],
            api_visibility="private",
            show_progress="hidden",
            queue=False,
        )
        controls["filter"] = gr.Dropdown([TRAINED, *FILTERS], value=start["filter"], label="Filter")
        with gr.Accordion("Window in t, shape of the filter", open=False):
            for name, label in (("t_first", "first t"), ("t_last", "last t"), ("t_fade", "fade")):
                controls[name] = gr.Slider(0, 1, start[name], step=0.01, label=label, elem_id=name)
            for name, (low, high) in RANGES.items():
                step = 1 if name == "order" else 0.05
                controls[name] = gr.Slider(low, high, start[name], step=step, label=name)
            controls["b_channels"] = gr.Slider(
                0.01, 1, start["b_channels"], step=0.01, label="share of the channels for b"
            )
            controls["b_map"] = gr.Dropdown(list(B_MAPS), value=start["b_map"], label="map of b")
            controls["keep_mean"] = gr.Checkbox(start["keep_mean"], label="leave the mean alone")
        return preset

    def _sampling_controls(self, gr: Any) -> None:
        """Controls of the images."""
        from uvit_lit.playground import LIMITS
        from uvit_lit.sampling import SOLVERS

        start, controls = self.start, self.controls
        model = self.playground.model
        with gr.Accordion("Images", open=True):
            with gr.Row():
                controls["seed"] = gr.Number(
                    start["seed"], label="Seed", precision=0, minimum=0, min_width=90
                )
                controls["n"] = gr.Number(
                    start["n"],
                    label="Images",
                    precision=0,
                    minimum=1,
                    maximum=LIMITS["n"][1],
                    min_width=90,
                )
            controls["classes"] = gr.Dropdown(
                model.class_names,
                value=start["classes"] or [],
                multiselect=True,
                label="Classes (none is all)",
                visible=bool(model.class_names),
            )
            if not isinstance(start["cfg"], list):
                controls["cfg"] = gr.Slider(
                    *LIMITS["cfg"],
                    start["cfg"],
                    step=0.1,
                    label="Guidance",
                    visible=model.can_guide,
                )
            controls["steps"] = gr.Slider(*LIMITS["steps"], start["steps"], step=1, label="Steps")
            controls["solver"] = gr.Dropdown(
                sorted({*SOLVERS, start["solver"]}), value=start["solver"], label="Solver"
            )


def main(arguments: list[str] | None = None) -> None:
    """Serve the page until it is interrupted.

    Args:
        arguments: The command line; None takes that of the process.
    """
    parser = build_parser()
    skips, sampling, model_options, page_options = parser.read(arguments)

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with checked_input(parser.values.debug):
        blocks = build_page(model_options, skips, sampling, page_options)
        launch(blocks, page_options)


def build_page(
    model: ModelOptions, skips: SkipOptions, sampling: SamplingOptions, options: PageOptions
) -> "gr.Blocks":
    """The page of a model.

    Raises:
        ValueError: If an option is outside its range or does not fit the model, or Gradio is
            missing.
    """
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise InputError("play needs a package: pip install -e '.[play]'") from None

    from uvit_lit.generation import Generation
    from uvit_lit.playground import Playground

    real = ReferenceOptions(data=options.data, data_root=options.data_root)
    playground = Playground(Generation.load(model, sampling), real)
    shown = replace(model, ckpt=playground.model.ckpt)
    return Page(playground, shown, skips).build()


def launch(blocks: "gr.Blocks", options: PageOptions, wait: bool = True) -> str:
    """Serve a page; returns its address at once, or when it is interrupted.

    Raises:
        OSError: If the address or the port is not free.
    """
    import gradio as gr

    look: Any = {
        "primary_hue": "orange",
        "neutral_hue": "slate",
        "font": ["system-ui", "sans-serif"],
        "font_mono": ["ui-monospace", "Consolas", "monospace"],
    }
    _, address, _ = blocks.queue(api_open=False).launch(
        server_name=options.host,
        server_port=options.port,
        inbrowser=options.open,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=UPLOAD,
        footer_links=[],
        theme=gr.themes.Default(**look),
        css=CSS,
    )
    print(address)
    if wait:
        blocks.block_thread()
    return address


if __name__ == "__main__":
    main()
