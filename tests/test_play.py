"""The page that turns the settings of the long skips, and what a notebook shows."""

import json
import re
import shlex
import time
import urllib.error
import urllib.request
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import ROOT, needs_browser
from PIL import Image

from uvit_lit.cli import play, sample
from uvit_lit.cli.options import command_line
from uvit_lit.cli.play.page import Page
from uvit_lit.cli.play.pictures import words
from uvit_lit.cli.play.settings import python_code, read_parameters
from uvit_lit.errors import InputError
from uvit_lit.files import read_png, write_png
from uvit_lit.filters import MAX_FREQUENCY
from uvit_lit.generation import Generation, generate
from uvit_lit.model import load_model
from uvit_lit.options import ModelOptions, SamplingOptions, SkipOptions
from uvit_lit.playground import KNOBS, PREVIEW_STEPS, Playground, Stopped
from uvit_lit.progress import progress
from uvit_lit.settings import SkipSettings

SETTINGS = [
    SkipOptions(),
    SkipOptions(s=0.5, b=1.3),
    SkipOptions(s=0.25, cutoff=0.6, filter="butterworth", order=5, skips="all"),
    SkipOptions(s=[1.0, 0.9, 0.7, 0.5], b=1.1),
    SkipOptions(s=[0.5, 0.25], skips="2,3"),
    SkipOptions(b=1.4, b_map="constant", t_range=(0.2, 0.9), t_fade=0.1),
    SkipOptions(preset="freeu_v1"),
    SkipOptions(s=0.5, skips="0,2", keep_mean=True),
]


def make_playground(ckpt="pretrained", **sampling):
    options = SamplingOptions(**{"n": 2, "steps": 6, **sampling})
    return Playground(Generation.load(ModelOptions(ckpt=str(ckpt), device="cpu"), options))


@pytest.fixture(scope="module")
def playground():
    return make_playground()


def in_force(model, skips):
    """What acts on every long skip, and when; of a filter with s = 1 nothing acts."""
    with model.skips(skips):
        long_skips = list(model.denoiser.backbone.long_skips)
        settings = [skip.settings for skip in long_skips]
        return [
            (
                SkipSettings(b=s.b, b_channels=s.b_channels, b_map=s.b_map) if s.s == 1 else s,
                skip.window if s != skip.trained else None,
            )
            for s, skip in zip(settings, long_skips, strict=True)
        ]


@pytest.mark.parametrize("skips", SETTINGS, ids=str)
def test_controls_mean_what_they_were_filled_with(playground, skips):
    sampling = SamplingOptions(
        n=3, seed=7, classes=["cat", "ship"], cfg=2.0, cfg_range=(0.25, 0.75), steps=12
    )
    read = playground.read(playground.fill(skips, sampling))
    assert in_force(playground.model, read[0]) == in_force(playground.model, skips)
    assert read[1] == sampling


def test_the_best_preset_is_there_where_all_of_it_has_controls(trained):
    playground = make_playground(trained)
    assert not playground.shows_best  # its card recommends nothing
    model = playground.model
    model.recommended = {"cfg": 2.0, "cfg_range": [0.25, 0.75], "b": 1.3, "skips": "0"}
    assert playground.shows_best
    named = model.resolve(SkipOptions(preset="best"), playground.base.options)
    skips, sampling = playground.read(playground.fill(*named))
    assert skips == SkipOptions(b=1.3, skips="0")
    assert (sampling.cfg, sampling.cfg_range) == (2.0, (0.25, 0.75))
    model.recommended = {"cfg": 2.0, "cfg_rescale": 0.5}
    assert not playground.shows_best


def test_controls_as_trained_set_nothing(trained):
    """Also where the numbers of the skips differ and are on no slider's grid."""
    playground = make_playground(trained)
    learned = [
        replace(t, filter="butterworth", s=0.91234 + k / 30, cutoff=0.51234)
        for k, t in enumerate(playground.trained)
    ]
    model = playground.model
    for skip, settings in zip(model.denoiser.backbone.long_skips, learned, strict=True):
        skip.trained = settings
    playground = Playground(playground.base)
    values = playground.fill(SkipOptions(), playground.base.options)
    assert playground.read(values)[0] == SkipOptions()
    read, _ = playground.read({**values, "per_skip": True, "s1": 0.5})
    assert read == SkipOptions(s=[learned[0].s, 0.5])


def test_controls_hold_every_model(trained):
    playground = make_playground(trained)
    assert playground.ranges == KNOBS
    (outer, inner) = playground.model.denoiser.backbone.long_skips
    outer.trained = replace(outer.trained, filter="butterworth", s=0.4, b=2.503, cutoff=0.0031)
    inner.trained = replace(inner.trained, filter="butterworth", s=2.7, cutoff=1.413)
    playground = Playground(playground.base)
    values = playground.fill(SkipOptions(), playground.base.options)
    assert playground.read(values)[0] == SkipOptions()
    assert playground.ranges["s"] == (0, 2.7, 0.01)
    assert playground.ranges["b"] == (0, 2.51, 0.01)
    assert playground.ranges["cutoff"] == (0.003, 1.415, 0.005)
    with pytest.raises(InputError, match=r"b is 2\.6; accepted on this page: 0 to 2\.51"):
        playground.fill(SkipOptions(b=2.6), playground.base.options)


def test_the_slider_of_the_cutoff_ends_at_its_bound(playground):
    largest = SkipOptions(s=0.5, cutoff=MAX_FREQUENCY)
    values = playground.fill(largest, playground.base.options)
    assert playground.read(values)[0] == largest
    read, _ = playground.read({**values, "cutoff": playground.ranges["cutoff"][1]})
    assert read == largest
    playground.gains(read)


@pytest.mark.parametrize(
    ("skips", "sentence"),
    [
        (SkipOptions(s=3.0), "s is 3.0; accepted on this page: 0 to 2"),
        (SkipOptions(s=[0.5, 0.6]), "s has 2 values"),
        (SkipOptions(s=0.5, skips="9"), "skips is '9'"),
    ],
)
def test_controls_refuse_what_they_cannot_show(playground, skips, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        playground.fill(skips, playground.base.options)
    with pytest.raises(InputError, match="steps is 1000; accepted on this page: 1 to 100"):
        playground.fill(SkipOptions(), SamplingOptions(steps=1000))


@pytest.mark.parametrize("skips", SETTINGS, ids=str)
def test_the_command_is_read_back_to_the_same_options(skips):
    model = ModelOptions(ckpt="my runs/last.ckpt")
    sampling = SamplingOptions(n=8, seed=3, classes=["cat", "ship"], cfg=[1.5, 2.123456789])
    words = shlex.split(command_line("sample", model, skips, sampling))
    assert words[:2] == ["uvit-lit", "sample"]
    read = sample.build_parser().read(words[2:])
    assert read[:3] == [skips, sampling, model]


def test_the_python_draws_the_same_images(trained):
    playground = make_playground(trained, steps=2, seed=5)
    skips = SkipOptions(s=0.5, b=1.3)
    *_, drawn = playground.draw(skips, playground.base.options, lambda share: None)
    names = {}
    exec(python_code(ModelOptions(ckpt=str(trained)), skips, playground.base.options), names)
    assert torch.equal(names["images"], drawn.chosen)


def test_a_preview_comes_first_and_the_trained_images_are_drawn_once(trained):
    playground = make_playground(trained)
    shares = []
    skips = SkipOptions(s=0.5)
    drawn = list(playground.draw(skips, playground.base.options, shares.append))
    assert [(d.steps, d.trained is None) for d in drawn] == [
        (PREVIEW_STEPS, True),
        (PREVIEW_STEPS, False),
        (6, True),
        (6, False),
    ]
    assert [d.parameters is None for d in drawn] == [True, True, True, False]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert torch.equal(drawn[-1].trained, generate(playground.model, 2, steps=6))
    assert torch.equal(drawn[-1].chosen, generate(playground.model, 2, steps=6, s=0.5))
    assert not torch.equal(drawn[-1].chosen, drawn[-1].trained)
    shares.clear()
    *_, again = playground.draw(skips, playground.base.options, shares.append)
    assert shares == []
    assert torch.equal(again.chosen, drawn[-1].chosen)


def test_work_that_is_not_wanted_stops_and_leaves_the_model_as_it_was(trained):
    playground = make_playground(trained)
    before = in_force(playground.model, None)
    shares = []

    def report(share):
        shares.append(share)
        if len(shares) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        list(playground.draw(SkipOptions(s=0.5), playground.base.options, report))
    assert len(shares) == 3
    assert in_force(playground.model, None) == before
    *_, drawn = playground.draw(SkipOptions(s=0.5), playground.base.options, lambda share: None)
    assert drawn.steps == 6  # the next work is not blocked


def test_the_charts_are_well_formed_and_follow_the_settings(playground):
    charts = [playground.gains(skips) for skips in (SkipOptions(), SkipOptions(s=0.5))]
    for chart in charts:
        lines = ElementTree.fromstring(chart).findall("svg/polyline")
        assert len(lines) == len(playground.trained)
    assert charts[0] != charts[1]


def test_a_picture_of_the_command_sample_restores_its_settings(trained, tmp_path):
    arguments = [
        "--ckpt",
        str(trained),
        "--s",
        "0.5,0.25",
        "--filter",
        "butterworth",
        "--n",
        "2",
        "--steps",
        "2",
        "--seed",
        "9",
        "--out",
        str(tmp_path),
    ]
    sample.main(arguments)
    (path,) = tmp_path.glob("*.png")
    skips, sampling, _ = read_parameters(path)
    assert skips == SkipOptions(s=[0.5, 0.25], filter="butterworth")
    assert sampling == SamplingOptions(n=2, seed=9, steps=2)
    playground = make_playground(trained)
    page = Page(playground, ModelOptions(), SkipOptions())
    values, said = page.restore(str(path))
    assert playground.read(values) == (skips, sampling)
    assert "Settings restored." in said
    *_, drawn = playground.draw(skips, sampling, lambda share: None)
    theirs, _ = read_png(path)
    assert np.array_equal(sample_picture(drawn.chosen), theirs)


def sample_picture(images):
    from uvit_lit.generation import picture

    return picture(images, labels=[0, 1])


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (None, "carries no settings"),
        ([], "carries no settings"),
        ({"s": "a"}, "is not accepted"),
        ({"s": 0.5, "steps": "__import__('os')"}, "is not accepted"),
        ({"s": 0.5, "classes": ["unicorn"]}, "unicorn"),
    ],
)
def test_a_picture_without_good_settings_gets_one_sentence(
    playground, tmp_path, parameters, sentence
):
    path = tmp_path / "picture.png"
    pixels = np.zeros((4, 4, 3), np.uint8)
    if parameters is None:
        Image.fromarray(pixels).save(path)
    else:
        write_png(path, pixels, parameters)
    page = Page(playground, ModelOptions(), SkipOptions())
    values, said = page.restore(str(path))
    assert values is None
    assert sentence in said
    assert "error" in said


def test_a_picture_says_what_the_page_does_not_restore(playground, tmp_path):
    path = tmp_path / "picture.png"
    parameters = {"s": 0.5, "cfg_rescale": 0.5, "checkpoint_sha256": "0"}
    write_png(path, np.zeros((4, 4, 3), np.uint8), parameters)
    values, said = Page(playground, ModelOptions(), SkipOptions()).restore(str(path))
    assert values["s"] == 0.5
    assert "cfg_rescale" in said
    assert "another model" in said


@pytest.mark.parametrize(
    ("skips", "caption"),
    [
        (SkipOptions(), "as trained"),
        (SkipOptions(s=0.0), "s 0"),
        (SkipOptions(s=[0.0, 0.5], b=1.3), "s 0, 0.5; b 1.3"),
        (SkipOptions(keep_mean=False, b_map="constant"), "b_map constant; keep_mean False"),
    ],
)
def test_a_caption_names_all_that_is_set(skips, caption):
    assert words(skips) == caption


def test_a_preset_fills_the_controls_or_says_why_not(trained):
    playground = make_playground(trained)
    page = Page(playground, ModelOptions(), SkipOptions())
    page.controls = page.start  # the layout makes one for each
    values, said = page.choose("mild", *page.start.values())
    assert playground.read(values)[0] == SkipOptions(s=0.8, b=1.1)
    assert "error" not in said
    for name, now, recommended, sentence in (
        ("mild", {"n": 0}, {}, "n is 0; accepted: 1 to"),
        ("mild", {"n": None}, {}, "n is 0; accepted: 1 to"),
        ("best", {"steps": 25}, {"steps": 200}, "steps is 200; accepted on this page: 1 to 100"),
        ("best", {}, {}, "recommends nothing"),
    ):
        playground.model.recommended = recommended
        values, said = page.choose(name, *{**page.start, **now}.values())
        assert values is None
        assert "error" in said
        assert sentence in said


@pytest.mark.slow
@needs_browser
def test_a_refused_preset_leaves_its_sentence_and_the_controls(page, capsys):
    number = page.locator("label", has_text="Images").locator("input[type=number]")

    def choose(name):
        page.get_by_label("Preset").click()
        page.get_by_role("option", name=name).click()

    number.fill("")
    page.wait_for_selector("#status .error:has-text('n is 0')", timeout=20_000)
    choose("mild")
    page.wait_for_timeout(2_000)
    assert "n is 0" in page.inner_text("#status")
    assert page.input_value("#s input[type=number]") == "1"
    assert "Traceback" not in capsys.readouterr().err
    number.fill("2")
    choose("strong")
    wait_for(page, "as set: s 0.2; b 1.4")


def test_generated_images_show_themselves_and_compute_as_tensors(trained):
    model = load_model(trained)
    images = generate(model, 2, steps=1)
    assert images._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
    assert type(images[0]) is type(images.float()) is type(torch.cat([images, images]))
    assert type(images[0]) is torch.Tensor
    assert np.array_equal(images.numpy(), np.asarray(images))


def test_a_model_shows_its_sizes_classes_and_filters():
    model = load_model()
    text = model._repr_html_()
    ElementTree.fromstring(text)
    for part in ("7,671,428", "3 x 32 x 32", "airplane", f"{model.step} training steps", "<svg"):
        assert part in text


def test_the_notebook_runs():
    """Every cell, in order, with fewer steps."""
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    shown = []
    names = {"display": shown.append}  # a notebook has it
    for cell in cells:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"])
            exec(re.sub(r"steps=\d+", "steps=1", code), names)
    assert names["images"].shape == (8, 3, 32, 32)
    assert [hasattr(value, "_repr_html_") for value in shown] == [True]


def test_a_bar_is_silent_where_there_is_no_terminal(capsys):
    with progress(total=3) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


@pytest.fixture
def served(trained):
    pytest.importorskip("gradio")
    from uvit_lit.cli.play.layout import build, launch

    model, sampling = ModelOptions(ckpt=str(trained), device="cpu"), SamplingOptions(n=4, steps=6)
    blocks = build(play.open_page(model, SkipOptions(), sampling, play.PageOptions()))
    address = launch(blocks, "127.0.0.1", None, wait=False)
    yield address
    blocks.close()


@pytest.mark.slow
def test_the_page_serves_no_file_of_the_machine(served, tmp_path, monkeypatch):
    assert served.startswith("http://127.0.0.1:")
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    paths = [secret, ROOT / "pyproject.toml", "/etc/passwd", "../../../../../../etc/passwd"]
    routes = [f"{route}file={path}" for route in ("gradio_api/", "") for path in paths]
    routes += ["gradio_api/file%3D/etc/passwd", "gradio_api/file=%2fetc%2fpasswd"]
    routes += ["gradio_api/file=file:///etc/passwd", "static/../../../../etc/passwd"]
    for route in routes:
        try:
            content = urllib.request.urlopen(f"{served}{route}").read()  # the page, or
        except urllib.error.HTTPError as refused:
            content = refused.read()
        for inside in (b"root:", b"[project]", b"a secret"):
            assert inside not in content, route
    for path in paths[:3]:
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{served}gradio_api/file={path}")


@pytest.fixture
def page(served, browser):
    """The page in a browser, after its first images."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.hosts = set()
    page.on("request", lambda r: page.hosts.add(r.url.split("/")[2]) if "//" in r.url else 0)
    page.goto(served)
    page.wait_for_selector("#save a", timeout=120_000)
    yield page
    page.close()


def wait_for(page, words):
    """Wait until the final images of some settings are there; their address."""
    page.wait_for_function(
        "words => { const text = document.querySelector('#pair').innerText;"
        " return text.includes(words) && !text.includes('preview'); }",
        arg=words,
        timeout=60_000,
    )
    return page.locator("#pair img").last.get_attribute("src")


@pytest.mark.slow
@needs_browser
def test_a_slider_changes_the_pixels_and_a_dropped_picture_restores_them(page, tmp_path):
    before = wait_for(page, "as set: as trained")
    with page.expect_download() as saved:
        page.click("#save a")
    saved.value.save_as(tmp_path / "trained.png")

    box = page.locator("#s input[type=range]").bounding_box()
    page.mouse.click(box["x"] + 0.1 * box["width"], box["y"] + box["height"] / 2)
    value = float(page.input_value("#s input[type=number]"))
    assert value < 0.5
    after = wait_for(page, f"as set: s {value:.3g}")
    assert after.split(",")[1] != before.split(",")[1]
    with page.expect_download() as saved:
        page.click("#save a")
    saved.value.save_as(tmp_path / "set.png")
    pixels, parameters = read_png(tmp_path / "set.png")
    assert parameters["s"] == value
    assert not np.array_equal(pixels, read_png(tmp_path / "trained.png")[0])

    page.set_input_files("#restore input[type=file]", tmp_path / "trained.png")
    assert wait_for(page, "as set: as trained") == before
    drop(page, tmp_path / "set.png")  # anywhere on the page
    assert wait_for(page, f"as set: s {value:.3g}") == after
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    drop(page, tmp_path / "plain.png")
    page.wait_for_selector("#status .error", timeout=20_000)
    assert "carries no settings" in page.inner_text("#status")
    assert page.hosts == {re.sub(r"^http://|/$", "", page.url)}  # nobody else was asked


def drop(page, path):
    """Drop a file onto the heading of the page."""
    transfer = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            const file = new File([new Uint8Array(bytes)], "a.png", { type: "image/png" });
            transfer.items.add(file);
            return transfer;
        }""",
        list(path.read_bytes()),
    )
    page.dispatch_event("h3", "drop", {"dataTransfer": transfer})


@pytest.mark.slow
@needs_browser
def test_the_last_of_many_moves_is_drawn(page):
    for value in ("0.9", "0.8", "0.7", "0.6", "0.55"):
        page.fill("#s input[type=number]", value)
        page.keyboard.press("Enter")
    page.fill("#b input[type=number]", "1.2")
    page.keyboard.press("Enter")
    wait_for(page, "as set: s 0.55; b 1.2")


@pytest.mark.slow
@needs_browser
def test_closing_the_tab_stops_the_work(trained, browser):
    """Its bar does not move any more after the tab has gone, long before the end."""
    pytest.importorskip("gradio")
    from uvit_lit.cli.play.layout import build, launch

    playground = make_playground(trained, steps=100)
    moved, run = [], playground.draw

    def draw(skips, sampling, report):
        def slowly(share):
            moved.append(share)
            time.sleep(0.3)
            report(share)

        return run(skips, sampling, slowly)

    playground.draw = draw
    blocks = build(Page(playground, ModelOptions(), SkipOptions()))
    address = launch(blocks, "127.0.0.1", None, wait=False)
    tab = browser.new_page()
    tab.goto(address)
    tab.wait_for_selector("#pair img", timeout=60_000)
    tab.close()
    counts = [-1]
    while counts[-1] != len(moved):
        counts.append(len(moved))
        time.sleep(2)
    blocks.close()
    assert PREVIEW_STEPS <= len(moved) < 100
