"""A fixed part of the faults, in every run of the slow tests; ``make faults`` has any number."""

import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, error_line
from forged import FORGED, arguments

from uvit_lit.cli import evaluate, sample

CASES = 20


@pytest.mark.slow
def test_no_fault_loses_anything():
    command = [sys.executable, "tests/faults", "--seed", "0", "--cases", str(CASES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def less_memory(size):
    """Bound the addresses that this process takes beside those that it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("words", FORGED)
def test_a_forged_size_takes_no_memory(tmp_path, monkeypatch, capsys, words):
    name, make = FORGED[words]
    path = tmp_path / name
    path.write_bytes(make())
    monkeypatch.chdir(tmp_path)
    command, *options = arguments(path)
    main = evaluate.main if command == "evaluate" else sample.main
    with less_memory(2**30):
        status, line = error_line(capsys, main, options)
    assert status == 2
    assert name in line
