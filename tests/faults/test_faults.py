"""A fixed part of the faults, in every run of the slow tests; ``make faults`` has any number."""

import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, error_line
from forged import FORGED, arguments

from uvit_lit.cli import evaluate, sample

CASES = 21


@pytest.mark.slow
def test_no_fault_loses_anything():
    command = [sys.executable, "tests/faults", "--seed", "0", "--cases", str(CASES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


STARTS = """
import sys
from uvit_lit.cli import main, orderly
with orderly():
    print("ready", flush=True)
    main("train")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", [0, 2])
def test_a_signal_while_the_libraries_load_is_one_line(tmp_path, number, status, moment):
    command = [sys.executable, "-c", STARTS, "--config", "configs/quickstart.yaml"]
    runs = f"--trainer.logger.init_args.save_dir={tmp_path}"
    process = subprocess.Popen(
        [*command, runs],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(moment)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == status, err
    assert err.count("error:") == 1, err
    assert "Traceback" not in err


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


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, marks=[pytest.mark.slow] * ("zeros" in words)) for words in FORGED],
)
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
