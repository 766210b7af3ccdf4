"""The project around the package: configurations, and commands, Python and links of the pages."""

import dataclasses
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from string import Template

import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image
from scipy import signal

import uvit_lit
from uvit_lit import errors
from uvit_lit.cli import train
from uvit_lit.cli.config import default_config
from uvit_lit.settings import SkipSettings
from uvit_lit.training.module import DiffusionModule
from uvit_lit.weights import BACKBONES

PUBLISHED = {
    "cifar10_uvit_small": 44_255_328,
    "imagenet256_uvit_large": 286_763_172,
    "imagenet256_uvit_huge": 500_832_016,
    "imagenet512_uvit_large": 286_861_524,
}
"""Parameters that the official code counts."""

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_is_complete_and_says_what_to_expect(path):
    """Each names every option of the model and the data, and its header a command and a result."""
    config = yaml.safe_load(path.read_text())
    tiny = yaml.safe_load(default_config(config["backbone"]).read_text())
    for section in tiny:
        assert config.keys() == tiny.keys()
        if isinstance(tiny[section], dict):
            assert config[section].keys() == tiny[section].keys(), section
    header = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    for promised in ("python train.py", "Hardware", "Time", "Expect"):
        assert promised in header, promised


class Built(Exception):
    """A training command got as far as loading its data."""


def build(monkeypatch, arguments):
    """Run a training command up to where it would load its data; the model it built."""

    def stop(cli):
        raise Built(cli.model)

    monkeypatch.setattr(train, "check_run", stop)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(Built) as built, torch.device("meta"):  # the largest has 500 M parameters
        train.main([*arguments, "--trainer.accelerator=cpu", "--trainer.devices=1"])
    return built.value.args[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_builds_its_model(path, monkeypatch, tmp_path):
    """Every configuration parses and builds; the run stops before the data are touched."""

    monkeypatch.chdir(tmp_path)
    model = build(monkeypatch, ["--config", str(path)])
    expected = PUBLISHED.get(path.stem)
    assert expected is None or sum(p.numel() for p in model.parameters()) == expected


PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
}
COMMANDS = [
    shlex.split(Template(line).safe_substitute(variables), comments=True)
    for page in PAGES.values()
    for variables in [
        {"filter": "chebyshev", "cutoff": "0.4", "s": "1", "seed": "1", "steps": "1,2"}
        | dict(re.findall(r'^ *(\w+)="(.*)"$', page, re.M))
    ]
    for line in re.findall(
        r"^(?:    )*((?:python (?:\w+\.py)|uvit-lit |make ).*)$", page, re.MULTILINE
    )
]


@pytest.mark.parametrize("backbone", ["uvit", "unet"])
def test_a_configuration_names_every_option(backbone, monkeypatch):
    """Those of the model and of the skips, whichever network."""
    config = yaml.safe_load(default_config(backbone).read_text())
    names = {*inspect.signature(BACKBONES[backbone]).parameters}
    names |= {*inspect.signature(DiffusionModule).parameters}
    assert config["model"].keys() == names - {"skip", "backbone", "network"}
    assert config.keys() >= {f.name for f in dataclasses.fields(SkipSettings)}


def test_the_help_of_train_names_every_entry_and_needs_no_torch():
    code = """
import sys
from uvit_lit.cli import main
sys.argv = ["train.py", "--help"]
main("train")
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "False", done.stderr
    shown = "\n".join(lines)
    entries = yaml.safe_load(shown[shown.index("seed_everything") :])
    assert entries == yaml.safe_load(default_config("uvit").read_text())
    assert shown.index("uvit-lit train --filter butterworth") < shown.index("--ckpt_path")


def test_the_pages_have_commands():
    programs = {command[1].removesuffix(".py") for command in COMMANDS}
    assert programs >= {"train", "sample", "sweep", "evaluate", "edit", "export", "compare", "plot"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_docs_is_accepted(command, monkeypatch):
    program = command[1]
    arguments = [
        "butterworth" if word == "bessel" else word for word in command[2:]
    ]  # the tutorial's
    monkeypatch.chdir(ROOT)
    if command[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert program in targets
    elif program == "train.py":
        for module in ("uvit_lit.cli.train", "uvit_lit.training.module"):  # PATH
            monkeypatch.setattr(f"{module}.find_checkpoint", lambda path, *_: Path(path))
        monkeypatch.setattr("uvit_lit.cli.train.check_newest", lambda *_: None)
        monkeypatch.setattr("uvit_lit.training.module.initialise", lambda *_: None)
        build(monkeypatch, arguments)
    else:
        name = program.removesuffix(".py")
        importlib.import_module(f"uvit_lit.cli.{name}").build_parser().read(arguments)


SHORT = {
    "sample": ["--n", "2", "--steps", "8"],
    "sweep": ["--n", "2", "--steps", "2"],
    "train": [
        "--trainer.max_steps=2",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--samples.count=2",
        "--samples.steps=1",
    ],
    "plot": [],
}
"""What makes a command of a page short."""

NEEDS = {"--ckpt", "--vae", "--guide", "--devices", "bessel", "my_solver:even_ddim"}
"""Words of the commands that need something that is not here."""

DRAWN = dict.fromkeys(
    (command[1].removesuffix(".py"), *command[2:])
    for command in COMMANDS
    if command[1].removesuffix(".py") in ("sample", "sweep") and not NEEDS & set(command)
)


def run(name, *arguments):
    """Run a command of a page with less to do."""
    module = importlib.import_module(f"uvit_lit.cli.{name}")
    module.main([*arguments, *SHORT[name]])


@pytest.mark.slow
@pytest.mark.parametrize("command", DRAWN, ids=" ".join)
def test_a_command_of_the_docs_draws(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(*command)
    printed = Path(capsys.readouterr().out.splitlines()[-1])
    assert printed.is_dir() or Image.open(printed).size > (64, 64)


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run_one_after_the_other(tmp_path, monkeypatch):
    """With a family that is there in the place of the one that the tutorial adds."""
    lines = re.findall(
        r"^(?:python (?!-m)|uvit-lit )(.*)$", PAGES["docs/tutorial.md"], re.MULTILINE
    )
    commands = [shlex.split(line.replace("bessel", "butterworth"), comments=True) for line in lines]
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    for program, *arguments in commands:
        run(program.removesuffix(".py"), *arguments)
    assert [program for program, *_ in commands].count("train.py") == 2
    assert (tmp_path / "runs" / "quickstart" / "version_1" / "checkpoints" / "last.ckpt").is_file()


BLOCKS = [
    (name, code)
    for name, page in PAGES.items()
    if "results/" not in name and not name.endswith("modulate.md")  # parts; tests/test_attach.py
    for code in re.findall(r"^```python\n(.*?)```", page, re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize(("name", "code"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_the_python_of_the_pages_runs(name, code, monkeypatch):
    monkeypatch.setattr(uvit_lit, "generate", partial(uvit_lit.generate, steps=2), raising=False)
    names = {}
    exec(code, names)
    if "images" in names:
        assert names["images"].shape == (16, 3, 32, 32)
        assert names["images"].dtype == torch.uint8
    if "again" in names:  # the same settings in two ways
        assert torch.equal(names["again"], names["detailed"])
        assert not torch.equal(names["again"], names["plain"])
    if "train" in names:
        image, label = names["train"][0]
        assert image.size == (32, 32)
        assert 0 <= label < len(names["train"].classes)


def test_the_solver_of_the_pages_is_ddim():
    """With as many even steps it draws the same images, to rounding of the times."""
    (code,) = [code for _, code in BLOCKS if "def even_ddim" in code]
    names = {}
    exec(code, names)
    model = uvit_lit.load_model()
    own, ddim = (
        uvit_lit.generate(model, 2, solver=solver, steps=10).float()
        for solver in (names["even_ddim"], "ddim")
    )
    assert (own - ddim).abs().mean() < 2


def test_the_family_of_the_tutorial_is_one_line(monkeypatch):
    """Its diff applies, and the filter that it adds has the response of scipy's Bessel."""
    (diff,) = re.findall(r"^```diff\n(.*?)```", PAGES["docs/tutorial.md"], re.DOTALL | re.MULTILINE)
    header, lines = diff.partition("@@\n")[::2]
    path = ROOT / re.findall(r"^\+\+\+ b/(.*)$", header, re.MULTILINE)[0]
    before, after = (
        "".join(line[1:] for line in lines.splitlines(True) if line[0] in kept)
        for kept in (" -", " +")
    )
    assert len(after.splitlines()) == len(before.splitlines()) + 1
    source = path.read_text()
    assert source.count(before) == 1
    names = {}
    exec(source.replace(before, after), names)
    assert names["LEARNED"]["bessel"] == ("s", "cutoff")
    for name in ("FILTERS", "PROTOTYPES"):
        monkeypatch.setattr(f"uvit_lit.filters.{name}", names[name])
    frequency = torch.linspace(0.01, 1.4, 20, dtype=torch.float64)
    response = uvit_lit.LowPass("bessel", order=4)(frequency[:, None] * torch.eye(1, 2), cutoff=0.5)
    design = signal.besselap(4, norm="mag")
    expected = abs(signal.freqs_zpk(*design, worN=(frequency / 0.5).numpy())[1])
    torch.testing.assert_close(response, torch.from_numpy(expected))


def test_the_public_names_are_there():
    for name in uvit_lit.__all__:
        assert getattr(uvit_lit, name).__doc__
    with pytest.raises(AttributeError, match="it has"):
        uvit_lit.Diffusion  # noqa: B018


def anchors(page):
    """Anchors of the headings of a page, as GitHub and the site make them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_of_a_page_exist(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text()), target


def test_the_site_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text()
    pages = {name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")}
    assert pages == set(re.findall(r"^ *- [^#\n]*: (\S+\.md)$", text, re.MULTILINE))


def test_the_command_that_installs_an_extra_fits_the_installation(monkeypatch, tmp_path):
    assert errors.install("play") == "pip install -e '.[play]'"
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "uvit_lit" / "errors.py"))
    assert errors.install("play") == "pip install 'uvit-lit[play]'"
