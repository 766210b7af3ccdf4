"""The static page: its solver is ours, it draws what Python draws, and asks no other host."""

import contextlib
import dataclasses
import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from conftest import ROOT, error_line, needs_browser

from uvit_lit import generate, load_model, web
from uvit_lit.cli.export import main
from uvit_lit.diffusion import SCHEDULES, STEPS, Schedule
from uvit_lit.errors import InputError
from uvit_lit.onnx import NUMBERS, describe_model
from uvit_lit.sampling import diffusers_solver, make_scheduler, to_uint8

NODE = shutil.which("node")

needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


def in_node(script, **data):
    """What a script prints as JSON; it sees the names of sampler.js, settings.js and the data."""
    names = (
        f"const {{ {', '.join(data)} }} = JSON.parse(await read(process.stdin));" if data else ""
    )
    code = f"""
        import * as sampler from {json.dumps((ROOT / "uvit_lit/web/sampler.js").as_uri())};
        import * as knobs from {json.dumps((ROOT / "uvit_lit/web/settings.js").as_uri())};
        const {{ randn, noiseOf, timeOf, solve, guide, toPixels }} = sampler;
        import {{ text as read }} from "node:stream/consumers";
        {names}
        process.stdout.write(JSON.stringify(await (async () => {{ {script} }})()));
    """
    command = [NODE, "--input-type=module", "--eval", code]
    done = subprocess.run(
        command, input=json.dumps(data), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
@pytest.mark.parametrize("size", [16, 768, 3072])
def test_a_seed_gives_the_noise_of_torch(size):
    seeds = [0, 1, 12345, 2**32 - 1]
    noise = in_node("return [...noiseOf(seeds, size)];", seeds=seeds, size=size)
    expected = [torch.randn(size, generator=torch.Generator().manual_seed(s)) for s in seeds]
    assert np.abs(np.array(noise) - torch.cat(expected).numpy()).max() < 1e-5


@needs_node
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 14, 25])
def test_the_solver_is_ours(name, steps):
    schedule = Schedule(name)
    asked = []

    def denoise(x, t):  # not linear, and another function at every time
        asked.append(float(t))
        return torch.tanh(x * (1.5 - t) + t)

    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = diffusers_solver("dpmpp", denoise, noise, schedule, steps, [])
    table = schedule.log_alpha(torch.arange(STEPS + 1, dtype=torch.float64) / STEPS)
    card = {
        "log_alpha": table.tolist(),
        "sigmas": make_scheduler("dpmpp", schedule, 2).sigmas[:2].tolist(),
    }
    script = """
        const asked = [];
        const denoise = async (x, t) => {
          asked.push(t);
          return x.map((v) => Math.tanh(v * (1.5 - t) + t));
        };
        const images = await solve(card, Float32Array.from(noise), steps, denoise);
        return { asked, images: [...images] };
    """
    got = in_node(script, card=card, noise=noise.flatten().tolist(), steps=steps)
    assert got["asked"] == pytest.approx(asked, abs=1e-6)
    assert got["images"] == pytest.approx(expected.flatten().tolist(), abs=2e-5)


@needs_node
def test_a_solver_stops_when_it_is_told(trained):
    card = describe_model(load_model(trained))
    script = """
        let calls = 0;
        const denoise = async (x) => { calls += 1; return x; };
        const images = await solve(card, new Float32Array(16), 9, denoise, (step) => step < 4);
        return { calls, images };
    """
    assert in_node(script, card=card) == {"calls": 4, "images": None}


@needs_node
def test_guidance_and_bytes_are_ours():
    images = torch.linspace(-1.2, 1.2, 2 * 3 * 4 * 4).view(2, 3, 4, 4)
    script = "return toPixels(images, [3, 4, 4]).map((pixels) => [...pixels]);"
    rows = in_node(script, images=images.flatten().tolist())
    rgba = np.array(rows, dtype=np.uint8).reshape(2, 4, 4, 4)
    assert np.array_equal(rgba[..., :3], to_uint8(images).permute(0, 2, 3, 1).numpy())
    assert (rgba[..., 3] == 255).all()
    guided = in_node("return [...guide(Float32Array.of(1, 2, 4, 8), 2)];")
    assert guided == [-2, -4]  # uncond + 2 (cond - uncond)


def learned_card(model):
    """The card of a model with other learned numbers in each long skip, on no slider's grid."""
    for k, skip in enumerate(model.denoiser.backbone.long_skips):
        numbers = {"s": 0.91234 - k / 30, "cutoff": 0.51234 + k * 0.9, "b": 1.1 + k * 1.4}
        skip.trained = dataclasses.replace(skip.trained, filter="butterworth", **numbers)
    return json.loads(json.dumps(describe_model(model)))


MOVES = [
    {},
    {"s": {0: 0.5}},
    {"b": {0: 1.3}, "cutoff": {0: 0.2}},
    {"s": {0: 0.3, 1: 0.7}, "cutoff": {1: 0.8}},
]


@needs_node
@pytest.mark.parametrize("is_learned", [True, False])
@pytest.mark.parametrize("skips", ["inner", "all", "outer", "split", "each"])
def test_what_no_slider_moves_is_as_trained_and_the_python_means_the_same(
    trained, skips, is_learned
):
    model = load_model(trained)
    card = learned_card(model) if is_learned else describe_model(model)
    script = """
        return moves.map((move) => {
          let settings = knobs.resetKnobs(knobs.readAddress(card, `skips=${skips}`));
          for (const [knob, values] of Object.entries(move)) {
            for (const [i, value] of Object.entries(values)) {
              if (i < settings[knob].length) settings[knob][i] = value;
            }
          }
          const again = knobs.readAddress(card, knobs.writeAddress(settings));
          const python = knobs.python(card, settings);
          const back = knobs.readAddress(card, knobs.writeAddress(knobs.resetKnobs(settings)));
          return [settings, again, knobs.inputs(card, settings), python, knobs.inputs(card, back)];
        });
    """
    trained_numbers = {name: [s[name] for s in card["long_skips"]] for name in NUMBERS}
    for move, drawn in zip(
        MOVES, in_node(script, card=card, skips=skips, moves=MOVES), strict=True
    ):
        settings, again, inputs, python, reset = drawn
        assert settings == again  # a link to the page draws the same
        assert reset == trained_numbers
        assert (inputs == trained_numbers) == (not move)
        options = eval(python, {"generate": lambda model, n, **o: o, "model": None})
        del options["seed"], options["steps"]
        with model.skips(**options):
            in_force = describe_model(model)["long_skips"]
        assert inputs == {name: [s[name] for s in in_force] for name in NUMBERS}


@needs_node
def test_a_slider_back_at_its_start_is_as_trained_and_its_start_is_on_its_grid(trained):
    card = learned_card(load_model(trained))
    script = """
        const settings = knobs.readAddress(card, "skips=all");
        const other = knobs.readAddress(card, "skips=each");
        return Object.keys(knobs.KNOBS).map((knob) => {
          const start = knobs.startOf(card, settings, knob, 0);
          const back = [start, 0.75].map((v) => knobs.meant(card, settings, knob, 0, v));
          return [start, back, [0, 1].map((i) => knobs.startOf(card, other, knob, i))];
        });
    """
    assert in_node(script, card=card) == [
        [0.9, [None, 0.75], [0.9, 0.9]],
        [1.8, [None, 0.75], [1.1, 2]],
        [0.95, [None, 0.75], [0.5, 1.4]],
    ]


@needs_node
@pytest.mark.parametrize("given", ["", "skips=no&s=x&cutoff=trained", "skips=toString"])
def test_an_address_that_says_nothing_starts_with_the_cutoff_as_trained(trained, given):
    card = learned_card(load_model(trained))
    card["skips"] = {"s": [1], "cutoff": [1], "b": [0, 1]}
    settings = in_node("return knobs.readAddress(card, given);", card=card, given=given)
    assert settings["skips"] == "split"
    assert (settings["s"], settings["b"], settings["cutoff"]) == ([0.5], [1.3], [None])


def test_the_page_has_every_module_that_its_modules_import():
    for name in web.PAGE:
        text = (ROOT / "uvit_lit/web" / name).read_text()
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(web.PAGE)


def test_a_page_without_npm_says_what_it_needs(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "page"
    status, line = error_line(capsys, main, [str(out), "--ckpt", str(trained), "--format", "web"])
    assert status == 1
    assert "npm is not installed" in line
    assert "--onnxruntime_web" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("page", ["--onnxruntime_web", "nowhere.tgz"], "nowhere.tgz; accepted: a directory or"),
        ("page.onnx", [], "page.onnx; accepted with --format web: a directory"),
        ("hf://user/name", [], "hf://user/name; accepted with --format web: a directory"),
    ],
)
def test_a_page_that_cannot_be(trained, tmp_path, capsys, monkeypatch, out, options, message):
    monkeypatch.chdir(tmp_path)
    command = [out, "--ckpt", str(trained), "--format", "web", *options]
    status, line = error_line(capsys, main, command)
    assert status == 2
    assert message in line
    assert not list(tmp_path.iterdir())


def test_a_latent_model_has_no_page(trained, tmp_path):
    model = load_model(trained)
    model.data = {"autoencoder": "somewhere"}
    with pytest.raises(InputError, match="makes latents"):
        web.export_web(model, tmp_path / "page")


# ---- in a browser -------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(directory):
    """Address of a static host of a directory."""
    handler = functools.partial(Quiet, directory=str(directory))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    """The npm package of the page."""
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    try:
        return web._npm_pack(tmp_path_factory.mktemp("npm"))
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def page(trained, runtime, tmp_path_factory):
    """A page of the small model."""
    out = tmp_path_factory.mktemp("web") / "page"
    return web.export_web(load_model(trained), out, "float32", runtime)


@pytest.fixture
def tab(browser):
    """A tab with nothing stored, which notes what it asks for and what goes wrong."""
    context = browser.new_context()
    tab = context.new_page()
    tab.asked, tab.wrong = [], []
    context.on("request", lambda request: tab.asked.append(request.url))
    tab.on("pageerror", lambda error: tab.wrong.append(str(error)))
    yield tab
    context.close()


def wait(tab, selector):
    """Wait long enough for a busy machine."""
    tab.wait_for_selector(selector, state="attached", timeout=300_000)


def wait_for_pictures(tab):
    wait(tab, "body[data-drawn=final]")


def pictures(tab, kind="set"):
    """The eight pictures that a tab shows, (8, height, width, 3)."""
    script = """(kind) => [...document.querySelectorAll(`canvas.${kind}`)].map((canvas) => {
        const { width, height } = canvas;
        return [...canvas.getContext("2d").getImageData(0, 0, width, height).data];
    })"""
    flat = np.array(tab.evaluate(script, kind))
    side = int((flat.shape[1] / 4) ** 0.5)
    return flat.reshape(8, side, side, 4)[..., :3]


def of_python(model, **options):
    images = generate(model, 8, progress=False, **options)
    return images.permute(0, 2, 3, 1).numpy().astype(int)


def grey_levels(one, other):
    return np.abs(one - other).mean()


def spoil(model):
    """The ONNX file with zeros for its largest matrix."""
    import onnx

    proto = onnx.load_from_string(model)
    largest = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.raw_data = bytes(len(largest.raw_data))
    return proto.SerializeToString()


@pytest.mark.slow
@needs_browser
class TestInABrowser:
    def test_it_draws_what_python_draws_and_asks_no_other_host(
        self, tab, runtime, tmp_path_factory
    ):
        model = load_model()
        out = tmp_path_factory.mktemp("shipped") / "page"
        web.export_web(model, out, "float16", runtime)
        with serving(out) as address:
            for given, settings in (
                ("skips=split&s=0.5&b=1.3&seed=0&steps=5", {"s": 0.5, "b": 1.3}),
                (
                    "skips=each&s=1,0.9,0.7,0&b=1,1.1,1.2,1.4&cutoff=0.3,0.3,0.6,1.2&seed=40&steps=5",
                    {
                        "s": [1, 0.9, 0.7, 0],
                        "b": [1, 1.1, 1.2, 1.4],
                        "cutoff": [0.3, 0.3, 0.6, 1.2],
                        "seed": 40,
                    },
                ),
                (
                    "skips=all&s=0.9&b=1.1&cutoff=0.3&class=ship&cfg=2&seed=7&steps=5",
                    {"skips": "all", "s": 0.9, "b": 1.1, "classes": ["ship"], "cfg": 2, "seed": 7},
                ),
            ):
                tab.goto("about:blank")  # else it is the same page, which shows the pictures before
                tab.goto(f"{address}/#{given}")
                wait_for_pictures(tab)
                settings = {"steps": 5, "seed": 0, "cfg": 1, "classes": None, **settings}
                frame = {name: settings[name] for name in ("steps", "seed", "cfg", "classes")}
                drawn = pictures(tab)
                expected = of_python(model, **settings)
                trained = of_python(model, **frame)
                assert grey_levels(drawn, expected) < 0.1
                assert grey_levels(pictures(tab, "trained"), trained) < 0.1
                assert grey_levels(drawn, trained) > 1  # the setting matters
            assert tab.evaluate("crossOriginIsolated")  # so that there are threads
            hosts = {urlsplit(url).netloc for url in tab.asked if not url.startswith("data:")}
            assert hosts == {urlsplit(address).netloc}
            assert not tab.wrong

    def test_a_key_moves_a_slider_and_the_pictures(self, tab, page):
        with serving(page) as address:
            tab.goto(f"{address}/#s=1&b=1&steps=4")
            wait_for_pictures(tab)
            before = pictures(tab)
            assert np.array_equal(before, pictures(tab, "trained"))
            tab.focus('input[data-knob="s"]')
            for _ in range(20):
                tab.keyboard.press("ArrowLeft")
            wait_for_pictures(tab)
            assert not np.array_equal(pictures(tab), before)
            assert np.array_equal(pictures(tab, "trained"), before)
            assert "s=0," in tab.inner_text("#python")
            assert "s=0&" in tab.url  # a link to the page has the settings inside
            drawn = pictures(tab)
            tab.focus("#hold")
            tab.keyboard.down(" ")
            assert np.array_equal(pictures(tab), before)
            tab.keyboard.up(" ")
            assert np.array_equal(pictures(tab), drawn)
            tab.click("#reset")
            wait_for_pictures(tab)
            assert np.array_equal(pictures(tab), before)
            assert not tab.wrong

    def test_as_trained_is_each_long_skip_as_it_was_trained(self, tab, page, trained, tmp_path):
        learned = shutil.copytree(page, tmp_path / "learned")
        card = json.loads((learned / "model.json").read_text())
        card["long_skips"] = learned_card(load_model(trained))["long_skips"]
        (learned / "model.json").write_text(json.dumps(card))
        with serving(learned) as address:
            tab.goto(f"{address}/#skips=all&s=0.5&b=1&steps=2")
            wait_for_pictures(tab)
            as_trained = pictures(tab, "trained")
            assert not np.array_equal(pictures(tab), as_trained)
            tab.click("#reset")
            wait_for_pictures(tab)
            assert np.array_equal(pictures(tab), as_trained)
            assert "skips" not in tab.inner_text("#python")
            tab.focus('input[data-knob="s"]')
            tab.keyboard.press(
                "ArrowLeft"
            )  # from the grid's 0.9, near the mean of what was trained
            wait_for_pictures(tab)
            assert 'skips="all", s=0.85)' in tab.inner_text("#python")
            assert not np.array_equal(pictures(tab), as_trained)
            tab.keyboard.press("ArrowRight")
            wait_for_pictures(tab)
            assert np.array_equal(pictures(tab), as_trained)
            assert not tab.wrong

    def test_the_python_of_the_page_draws_its_pictures(self, tab, page, trained):
        with serving(page) as address:
            tab.goto(f"{address}/#skips=each&s=0.5,0&b=1,1.5&class=ship&steps=3&seed=9")
            wait_for_pictures(tab)
            line = tab.inner_text("#python")
            names = {"generate": generate, "model": load_model(trained)}
            images = eval(line, names).permute(0, 2, 3, 1).numpy().astype(int)
            assert grey_levels(pictures(tab), images) < 0.1

    def test_it_works_without_a_network_after_the_first_time(self, tab, page):
        with serving(page) as address:
            tab.goto(f"{address}/#steps=2")
            wait_for_pictures(tab)
            drawn = pictures(tab)
        tab.reload()  # the host is gone
        wait_for_pictures(tab)
        assert np.array_equal(pictures(tab), drawn)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda model: model[:-1000], "The model file is broken: it has"),
            (lambda model: b"\0" * len(model), "The model file is broken."),
            (spoil, "The model gives other numbers"),
        ],
    )
    def test_a_broken_model_file(self, tab, page, tmp_path, damage, message):
        broken = shutil.copytree(page, tmp_path / "broken")
        model = (broken / "model.onnx").read_bytes()
        (broken / "model.onnx").write_bytes(damage(model))
        with serving(broken) as address:
            tab.goto(address)
            wait(tab, "text=Export the page again")
            assert message in tab.inner_text("#alert")

    def test_a_browser_without_simd(self, tab, page):
        tab.add_init_script("WebAssembly.validate = () => false")
        with serving(page) as address:
            tab.goto(address)
            tab.wait_for_selector("text=has no WebAssembly SIMD")
            assert tab.is_hidden("main")
