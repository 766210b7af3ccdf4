"""The shape of the project: which module may import which, configurations that load."""

import ast
import sys

import pytest
import yaml
from conftest import ROOT

import train

ARROWS = {
    "filters": set(),
    "schedule": set(),
    "shapes": set(),
    "cli": set(),
    "data": {"shapes"},
    "uvit": {"filters"},
    "denoiser": {"schedule"},
    "sampler": {"denoiser", "schedule"},
    "module": {"denoiser", "uvit"},
    "callbacks": {"module", "sampler"},
    "checkpoint": {"denoiser", "uvit"},
}
LIGHTNING = {"module", "callbacks", "data"}
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def imports(path):
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "uvit_lit":
            yield from (f"uvit_lit.{alias.name}" for alias in node.names)
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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_builds_its_model(path, monkeypatch, tmp_path):
    """Every configuration parses and builds; the run stops before the data are touched."""

    class Built(Exception):
        pass

    def stop(cli):
        raise Built(cli.model)

    monkeypatch.setattr(train, "check_run", stop)
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(path)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Built) as built:
        train.main(["--config", str(path), "--trainer.accelerator", "cpu"])
    model = built.value.args[0]
    expected = {"cifar10_uvit_small": 44_255_328}.get(path.stem)
    assert expected is None or sum(p.numel() for p in model.parameters()) == expected
