"""What a user names as module:attribute."""

import sys

import pytest
import torch

from uvit_lit.data.own import load_dataset
from uvit_lit.distributed import Devices
from uvit_lit.errors import InputError
from uvit_lit.evaluation.features import load_features
from uvit_lit.evaluation.reference import content_key
from uvit_lit.imports import source_hash
from uvit_lit.options import ReferenceOptions
from uvit_lit.sampling import find_solver

READERS = {
    "data.name": load_dataset,
    "solver": find_solver,
    "features": lambda name: load_features(name, Devices(torch.device("cpu"))),
}


@pytest.fixture(params=READERS)
def option(request, tmp_path, monkeypatch):
    """An option that takes such a name, in a working directory where modules can be written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules = set(sys.modules)
    yield request.param
    for name in set(sys.modules) - modules:
        if name.startswith("mine"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("this", "'this'; accepted: .*module:"),
        ("", "''; accepted: .*module:"),
        ("mine:", "'mine:'; accepted: .*module:"),
        (":y", "':y'; accepted: .*module:"),
        (".x:y", "'.x:y'; accepted: .*module:"),
        ("..x:y", "'..x:y'; accepted: .*module:"),
        ("mine_gone:y", "'mine_gone:y': there is no module mine_gone; accepted: .*module:"),
        ("math.gone:y", "'math.gone:y': there is no module math.gone; accepted: .*module:"),
        ("math:gone", "'math:gone': math has no gone; accepted: .*module:"),
    ],
)
def test_a_name_of_nothing_is_one_line(option, name, message):
    with pytest.raises(InputError, match=f"{option} is {message}"):
        READERS[option](name)
    assert "this" not in sys.modules


@pytest.mark.parametrize("code", ["import nothing_here", "raise AttributeError('mine')", "1 / 0"])
def test_what_a_module_raises_itself_keeps_its_traceback(option, code, tmp_path):
    (tmp_path / "mine_broken.py").write_text(code)
    with pytest.raises((ModuleNotFoundError, AttributeError, ZeroDivisionError)):
        READERS[option]("mine_broken:y")


def test_a_module_of_the_working_directory_is_found(option, tmp_path):
    (tmp_path / "mine_here.py").write_text(
        "def both(images):\n    return images.float().mean((2, 3))\npairs = [(0, 0)]\n"
    )
    assert READERS[option]("mine_here:pairs" if option == "data.name" else "mine_here:both")


def test_what_an_earlier_state_of_the_code_computed_is_not_kept_for_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_hashed.py").write_text(
        "def f(images):\n    return images.float().mean((2, 3))"
    )
    extract = load_features("mine_hashed:f", Devices(torch.device("cpu")))
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    before = content_key(ReferenceOptions(), extract, images)
    assert content_key(ReferenceOptions(), extract, images) == before
    (tmp_path / "mine_hashed.py").write_text(
        "def f(images):\n    return images.float().amax((2, 3))"
    )
    assert content_key(ReferenceOptions(), extract, images) != before
    assert source_hash("dpmpp") is None
    del sys.modules["mine_hashed"]
