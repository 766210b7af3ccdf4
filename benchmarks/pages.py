"""Time from a move of s to new pictures, on the page of `play` and on the static page.

    python benchmarks/pages.py play
    python benchmarks/pages.py web --steps 12

Eight images of the model in the package, in Chromium on the same machine. The table has the median
over the moves, with the range: the preview, and the final pictures. It needs the extras play,
export and browser, Chromium, and for `web` Node.js.
"""

import argparse
import contextlib
import functools
import http.server
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VALUES = (0.9, 0.5, 0.2, 0.7, 0.35, 0.8, 0.1, 0.6)
"""s of the moves."""

PATIENCE = 300_000
"""Milliseconds that a picture may take."""

PREVIEW = "() => document.querySelector('#pair').innerText.includes('preview')"


@contextlib.contextmanager
def play_page(steps: int) -> Iterator[str]:
    """Address of the page of `play`."""
    from uvit_lit.cli import play
    from uvit_lit.cli.play.layout import build, launch
    from uvit_lit.options import ModelOptions, SamplingOptions, SkipOptions

    sampling = SamplingOptions(n=8, steps=steps)
    page = play.open_page(ModelOptions(device="cpu"), SkipOptions(), sampling, play.PageOptions())
    blocks = build(page)
    yield launch(blocks, "127.0.0.1", None, wait=False)
    blocks.close()


@contextlib.contextmanager
def web_page(directory: Path) -> Iterator[str]:
    """Address of the static page."""
    from uvit_lit import load_model
    from uvit_lit.web import export_web

    export_web(load_model(), directory / "page", "float32", None)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    handler = functools.partial(Quiet, directory=str(directory / "page"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def move_play(tab: Any, s: float) -> tuple[float, float]:
    """Seconds to the preview and to the final pictures."""
    start = time.perf_counter()
    tab.fill("#s input[type=number]", str(s))
    tab.keyboard.press("Enter")
    words = f"as set: s {s:g}"
    has = f"document.querySelector('#pair').innerText.includes({words!r})"
    tab.wait_for_function(f"() => {has}", timeout=PATIENCE)
    preview = time.perf_counter() - start
    tab.wait_for_function(f"() => {has} && !({PREVIEW})()", timeout=PATIENCE)
    return preview, time.perf_counter() - start


def move_web(tab: Any, s: float) -> tuple[float, float]:
    """Seconds to the preview and to the final pictures."""
    script = """(s) => {
        const slider = document.querySelector('input[data-knob="s"]');
        slider.value = s;
        slider.dispatchEvent(new Event("input", { bubbles: true }));
        slider.dispatchEvent(new Event("change", { bubbles: true }));
    }"""
    start = time.perf_counter()
    tab.evaluate(script, s)
    tab.wait_for_function("() => document.body.dataset.drawn !== 'final'", timeout=PATIENCE)
    tab.wait_for_function("() => document.body.dataset.drawn !== ''", timeout=PATIENCE)
    preview = time.perf_counter() - start
    tab.wait_for_selector("body[data-drawn=final]", state="attached", timeout=PATIENCE)
    return preview, time.perf_counter() - start


def row(name: str, seconds: list[float]) -> str:
    """A line of the table."""
    low, high = min(seconds), max(seconds)
    return f"| {name} | {statistics.median(seconds):.2f} ({low:.2f} to {high:.2f}) |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", choices=("play", "web"))
    parser.add_argument("--steps", type=int, default=25, help="of the solver (default: 25)")
    parser.add_argument("--rounds", type=int, default=len(VALUES), help="moves (default: 8)")
    args = parser.parse_args()

    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with contextlib.ExitStack() as stack:
        if args.page == "play":
            address = stack.enter_context(play_page(args.steps))
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            address = stack.enter_context(web_page(directory))
            address += f"/#s=1&b=1&steps={args.steps}"
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": 1300, "height": 900})
        tab.goto(address)
        first = "#save a" if args.page == "play" else "body[data-drawn=final]"
        tab.wait_for_selector(first, state="attached", timeout=PATIENCE)
        move = move_play if args.page == "play" else move_web
        times = [move(tab, VALUES[k % len(VALUES)]) for k in range(args.rounds)]
        browser.close()
    previews, finals = map(list, zip(*times, strict=True))
    print("| pictures | seconds |\n|---|---|")
    print(row("preview", previews))
    print(row(f"final, {args.steps} steps", finals))


if __name__ == "__main__":
    main()
