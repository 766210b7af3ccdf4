"""The layout of the page in Gradio, and which control moves what."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from uvit_lit.cli.play.page import Page
from uvit_lit.cli.play.pictures import status
from uvit_lit.families import FILTERS
from uvit_lit.filters import RANGES
from uvit_lit.options import BEST, PRESETS
from uvit_lit.playground import KNOBS, LIMITS, TRAINED
from uvit_lit.sampling import SOLVERS
from uvit_lit.settings import B_MAPS, NAMED_SKIPS, SPLIT, skips_in_words

HERE = Path(__file__).parent
UPLOAD = "20mb"
"""Size of a picture that is dropped onto the page, at most."""

COPY = "(text) => { navigator.clipboard.writeText(text); }"


def build(page: Page) -> gr.Blocks:
    """Lay a page out."""

    def shown(values: tuple[Any, ...]) -> list[Any]:
        return [gr.skip() if value is None else value for value in values]

    def changes(values: dict[str, Any] | None) -> list[Any]:
        if values is None:
            return [gr.skip() for _ in page.controls]
        return [values[name] for name in page.controls]

    with gr.Blocks(title="uvit-lit play", fill_width=True, analytics_enabled=False) as blocks:
        with gr.Row():
            with gr.Column(scale=1, min_width=320, elem_classes="side"):
                preset = skip_controls(page)
                sampling_controls(page)
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

        inputs = list(page.controls.values())
        outputs = [both, slide, turns, spectra, save, line]

        def draw(
            request: gr.Request,
            report: gr.Progress = gr.Progress(),  # noqa: B008
        ) -> Iterator[list[Any]]:
            yield [gr.skip() for _ in outputs]  # without any, Gradio would empty them
            for values in page.draw(request, lambda share, text: report(share, desc=text)):
                yield shown(values)

        def ask(request: gr.Request, *values: Any) -> list[Any]:
            return shown(page.ask(request, *values))

        def leave(request: gr.Request) -> None:
            page.leave(request)

        def restore(path: str | None) -> list[Any]:
            if path is None:
                return [*changes(None), gr.skip(), gr.skip()]
            values, said = page.restore(path)
            return [*changes(values), None, said]

        def choose(name: str | None, *values: Any) -> list[Any]:
            if not name:
                return [*changes(None), gr.skip()]
            filled, said = page.choose(name, *values)
            return [*changes(filled), said]

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
        preset.input(choose, [preset, *inputs], [*inputs, line], **hidden)
        command_button.click(None, command, None, js=COPY, api_visibility="private")
        python_button.click(None, python, None, js=COPY, api_visibility="private")
        blocks.load(None, None, None, js=(HERE / "drop.js").read_text(), api_visibility="private")
        blocks.unload(leave)
    return blocks


def skip_controls(page: Page) -> gr.Dropdown:
    """Controls of the level of detail; returns that of the presets."""
    start, controls = page.start, page.controls
    count = len(page.playground.trained)
    labels = {"s": "s, skip scale", "b": "b, backbone scale", "cutoff": "cutoff"}

    def slider(name: str, knob: str, label: str) -> Any:
        low, high, step = page.playground.ranges[knob]
        return gr.Slider(low, high, start[name], step=step, label=label, elem_id=name)

    model = page.playground.model
    gr.Markdown(f"### {escape(model.name)}\n{escape(model.training)}")
    presets = [*PRESETS, BEST] if page.playground.shows_best else PRESETS
    preset = gr.Dropdown(
        [("choose one", ""), *((name, name) for name in presets)], value="", label="Preset"
    )
    with gr.Group(visible=not start["per_skip"]) as single:
        for knob in KNOBS:
            controls[knob] = slider(knob, knob, labels[knob])
        controls["skips"] = gr.Dropdown(
            [*NAMED_SKIPS, (skips_in_words(SPLIT), SPLIT), *map(str, range(count))],
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


def sampling_controls(page: Page) -> None:
    """Controls of the images."""
    start, controls = page.start, page.controls
    model = page.playground.model
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
        for name, label in (("cfg_first", "first t of guidance"), ("cfg_last", "last t")):
            controls[name] = gr.Slider(
                0, 1, start[name], step=0.01, label=label, visible=model.can_guide
            )
        controls["steps"] = gr.Slider(*LIMITS["steps"], start["steps"], step=1, label="Steps")
        controls["solver"] = gr.Dropdown(
            sorted({*SOLVERS, start["solver"]}), value=start["solver"], label="Solver"
        )


def launch(
    blocks: gr.Blocks, host: str, port: int | None, browser: bool = False, wait: bool = True
) -> str:
    """Serve a page; returns its address at once, or when it is interrupted.

    Raises:
        OSError: If the address or the port is not free.
    """
    look: Any = {
        "primary_hue": "orange",
        "neutral_hue": "slate",
        "font": ["system-ui", "sans-serif"],
        "font_mono": ["ui-monospace", "Consolas", "monospace"],
    }
    _, address, _ = blocks.queue(api_open=False).launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=UPLOAD,
        footer_links=[],
        theme=gr.themes.Default(**look),
        css=(HERE / "page.css").read_text(),
    )
    print(address)
    if wait:
        blocks.block_thread()
    return address
