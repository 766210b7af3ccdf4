"""The shape of the project: which module may import which, configurations that load."""

import importlib
import re
import shlex
import sys
from string import Template

import pytest
import torch
import yaml
from conftest import ROOT

import uvit_lit
from uvit_lit.cli import train
from uvit_lit.cli.config import DEFAULT_CONFIG

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
    tiny = yaml.safe_load(DEFAULT_CONFIG.read_text())
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


README = (ROOT / "README.md").read_text()
PAGES = [README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))]
COMMANDS = [
    shlex.split(Template(line).safe_substitute(variables), comments=True)
    for page in PAGES
    for variables in [
        {"filter": "chebyshev", "cutoff": "0.4", "s": "1", "seed": "1", "steps": "1,2"}
        | dict(re.findall(r'^ *(\w+)="(.*)"$', page, re.M))
    ]
    for line in re.findall(
        r"^(?:    )*((?:python (?:\w+\.py)|uvit-lit |make ).*)$", page, re.MULTILINE
    )
]


def test_the_readme_has_commands():
    assert {command[1] for command in COMMANDS} >= {"train.py", "sample.py", "demo"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_docs_is_accepted(command, monkeypatch):
    program, arguments = command[1], command[2:]
    monkeypatch.chdir(ROOT)
    if command[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert program in targets
    elif program == "train.py":
        for module in ("uvit_lit.cli.train", "uvit_lit.training.module"):  # PATH
            monkeypatch.setattr(f"{module}.find_checkpoint", lambda path, *_: path)
        monkeypatch.setattr("uvit_lit.training.module.initialise", lambda *_: None)
        build(monkeypatch, arguments)
    else:
        name = program.removesuffix(".py")
        importlib.import_module(f"uvit_lit.cli.{name}").build_parser().parse_args(arguments)


def test_the_python_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code.replace("s=0.5", "s=0.5, steps=2"), names)
    assert names["images"].shape == (16, 3, 32, 32)
    assert names["images"].dtype == torch.uint8


def test_the_public_names_are_there():
    for name in uvit_lit.__all__:
        assert getattr(uvit_lit, name).__doc__
    with pytest.raises(AttributeError, match="it has"):
        uvit_lit.Diffusion  # noqa: B018


def test_links_and_pictures_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
