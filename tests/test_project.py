"""The shape of the project: which module may import which, configurations that load."""

import ast
import importlib.util
import re
import shlex
import sys

import pytest
import yaml
from conftest import ROOT

import sample
import train
from uvit_lit.generation import check_numbers

ARROWS = {
    "filters": set(),
    "metrics": set(),
    "schedule": set(),
    "shapes": set(),
    "cli": set(),
    "files": set(),
    "folder": {"files"},
    "data": {"folder", "shapes"},
    "saving": {"files"},
    "settings": {"filters"},
    "skips": {"filters", "settings"},
    "uvit": {"settings", "skips"},
    "denoiser": {"schedule"},
    "sampler": {"denoiser", "schedule"},
    "checkpoint": {"denoiser", "uvit"},
    "generation": {"checkpoint", "cli", "denoiser", "sampler"},
    "features": set(),
    "distances": {"features", "files", "metrics"},
    "compare": {"checkpoint", "cli"},
    "figures": {"checkpoint", "cli", "denoiser", "filters", "metrics", "skips"},
    "module": {"checkpoint", "denoiser", "filters", "uvit"},
    "callbacks": {"figures", "module", "sampler", "skips"},
}
LIGHTNING = {"module", "callbacks", "data", "saving"}
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def imports(path):
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module in ("uvit_lit", "scipy"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_arrows_point_downwards():
    modules = {p.stem: p for p in (ROOT / "uvit_lit").glob("*.py") if p.stem != "__init__"}
    assert modules.keys() == ARROWS.keys()
    for name, path in modules.items():
        ours = {m.split(".")[1] for m in imports(path) if m.startswith("uvit_lit.")}
        assert ours <= ARROWS[name], name
        knows_lightning = any(m.split(".")[0] == "lightning" for m in imports(path))
        assert knows_lightning == (name in LIGHTNING), name
        designs = any(m.startswith("scipy.signal") for m in imports(path))
        assert designs == (name == "filters"), name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_is_complete_and_says_what_to_expect(path):
    """Each names every option of the model and the data, and its header a command and a result."""
    config = yaml.safe_load(path.read_text())
    tiny = yaml.safe_load(train.DEFAULT_CONFIG.read_text())
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
    with pytest.raises(Built) as built:
        train.main([*arguments, "--trainer.accelerator=cpu", "--trainer.devices=1"])
    return built.value.args[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_builds_its_model(path, monkeypatch, tmp_path):
    """Every configuration parses and builds; the run stops before the data are touched."""

    monkeypatch.chdir(tmp_path)
    model = build(monkeypatch, ["--config", str(path)])
    expected = {"cifar10_uvit_small": 44_255_328}.get(path.stem)
    assert expected is None or sum(p.numel() for p in model.parameters()) == expected


README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith(("python train.py", "python sample.py", "python -m uvit_lit", "make "))
]


def test_the_readme_has_commands():
    assert {command[1] for command in COMMANDS} >= {"train.py", "sample.py", "demo"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_readme_is_accepted(command, monkeypatch):
    program, arguments = command[1], command[2:]
    monkeypatch.chdir(ROOT)
    if command[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert program in targets
    elif program == "train.py":
        monkeypatch.setattr("uvit_lit.module.find_checkpoint", lambda path: path)  # PATH
        monkeypatch.setattr("uvit_lit.module.initialise", lambda *_: None)
        build(monkeypatch, arguments)
    elif program == "-m":
        assert importlib.util.find_spec(arguments[0])
    else:
        check_numbers(sample.build_parser().parse_args(arguments))


def test_the_python_of_the_readme_runs(trained):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = code.replace("runs/quickstart/version_0/checkpoints/last.ckpt", str(trained))
    code = code.replace("[3, 3, 5]", "[0, 0, 1], steps=2")  # a model of two classes
    names = {}
    exec(code, names)
    assert names["images"].shape == (3, 3, 16, 16)


def test_links_and_pictures_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
