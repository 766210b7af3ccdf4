"""Two processes on the CPU draw and measure what one does."""

import csv
import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, error_line
from PIL import Image

from uvit_lit import generate, load_model
from uvit_lit.cli.sample import main as sample_main
from uvit_lit.distributed import Devices, _all_alive

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"]
SKIPS = ["--s", "0.3,1", "--b", "1.2"]


def call(directory, *command):
    """Run a command in a process of its own; what it printed."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def both(trained, tmp_path):
    """Run a command with one device and with two; the two directories."""

    def run(script, *arguments, launcher=()):
        options = ["--ckpt", trained, "--steps", "2", "--device", "cpu", "--out", "out", *arguments]
        directories = []
        for name, more in (("one", []), ("two", [] if launcher else ["--devices", "2"])):
            directory = tmp_path / name
            directory.mkdir()
            before = launcher if name == "two" else ()
            lines = call(directory, *before, ROOT / script, *options, *more)
            assert sum("out/" in line for line in lines) == 1  # one process reports
            directories.append(directory / "out")
        return directories

    return run


def same_pictures(one, two, pattern):
    """The same files, equal but for rounding: a share is a batch of another size."""
    names = sorted(path.relative_to(one) for path in one.glob(pattern))
    assert names == sorted(path.relative_to(two) for path in two.glob(pattern))
    assert names
    for name in names:
        images = [np.asarray(Image.open(root / name)).astype(int) for root in (one, two)]
        assert abs(images[0] - images[1]).max() <= 1, name


@pytest.mark.slow
def test_sample_writes_the_same_images(both):
    options = ["--n", "5", "--batch_size", "2"]
    one, two = both("sample.py", *options, "--images")
    same_pictures(one, two, "*.png")
    assert len(list(two.iterdir())) == 7  # five images, their grid and its parameters


@pytest.mark.slow
def test_sweep_under_torchrun_writes_the_same_cells_and_numbers(both):
    one, two = both("sweep.py", "--n", "3", *SKIPS, launcher=TORCHRUN)
    same_pictures(one, two, "*/cells/*.png")
    tables = [csv.DictReader(next(root.glob("*/detail.csv")).open()) for root in (one, two)]
    for ours, theirs in zip(*tables, strict=True):
        assert float(ours["mean"]) == pytest.approx(float(theirs["mean"]), rel=1e-2, abs=1e-2)


@pytest.mark.slow
def test_evaluate_measures_the_same(both, trained):
    metrics = ["--metrics", "fid,kid,precision_recall,detail"]
    features = ["--features", "test_evaluate:moments"]
    one, two = both("evaluate.py", "--n", "22", "--batch_size", "4", *SKIPS, *metrics, *features)
    reports = [json.loads(next(root.glob("*/results.json")).read_text()) for root in (one, two)]
    for ours, theirs in zip(*(report.pop("results") for report in reports), strict=True):
        for name, value in ours["values"].items():
            other = theirs["values"][name]
            if isinstance(value, dict):
                value, other = value["mean"], other["mean"]
            assert other == pytest.approx(value, rel=1e-2, abs=1e-3), name
    assert reports[0] == reports[1]


def test_one_device_computes_everything_itself():
    devices = Devices(torch.device("cpu"))
    devices.launch()
    assert devices.is_main
    assert devices.map(torch.tensor, 3).tolist() == [0, 1, 2]
    assert devices.decide("this") == "this"


def test_shares_cover_all_images():
    devices = Devices(torch.device("cpu"), 2)
    assert [devices.share(n) for n in (1, 2, 5, 6)] == [1, 1, 3, 3]


@pytest.mark.parametrize("count", ["0", "100000"])
def test_more_devices_than_there_are(trained, tmp_path, capsys, count):
    arguments = ["--ckpt", str(trained), "--out", str(tmp_path / "out"), "--devices", count]
    status, line = error_line(capsys, sample_main, arguments)
    assert status == 2
    assert f"devices is {count}; accepted here: 1 to" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("here", "everywhere", "asked"), [("2", "2", ["--devices", "1"]), ("1", "2", [])]
)
def test_torchrun_started_other_processes(trained, capsys, monkeypatch, here, everywhere, asked):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    monkeypatch.setenv("WORLD_SIZE", everywhere)
    status, line = error_line(capsys, sample_main, ["--ckpt", str(trained), *asked])
    assert status == 2
    assert f"torchrun started {everywhere} processes, {here} on this machine" in line


def test_python_in_a_process_of_torchrun(trained, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(generate(load_model(trained), 1, steps=1, progress=False)) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.distributed.DistBackendError("NCCL error: remote process exited"),
        RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer "
            "[127.0.0.1]:62677. This is typically caused by a remote worker crashing."
        ),
        RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:129] Timed out "
            "waiting 8000ms for send operation to complete"
        ),
    ],
)
def test_a_lost_connection_means_that_another_process_has_stopped(error):
    with pytest.raises(OSError, match="another process has stopped"), _all_alive():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("ProcessGroupGloo::allgather: invalid tensor size at index 0"),
        RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc:467] length <= nbytes. 8 vs 4"),
    ],
)
def test_other_errors_of_the_exchange_keep_their_traceback(error):
    with pytest.raises(type(error)) as caught, _all_alive():
        raise error
    assert caught.value is error


@pytest.mark.slow
def test_a_failure_in_one_process_is_a_line_in_each(trained, tmp_path):
    """The main one cannot write; the other one says that it stopped, without a traceback."""
    (tmp_path / "fails.py").write_text(
        "import sweep\n"
        "from uvit_lit import files\n"
        "def refuse(path): raise OSError('no space')\n"
        "files.replacing = refuse\n"
        "sweep.main('sweep')\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "fails.py",
            "--ckpt",
            trained,
            "--steps",
            "2",
            "--device",
            "cpu",
            "--devices",
            "2",
            "--n",
            "2",
            *SKIPS,
            "--out",
            "out",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert "error: no space" in done.stderr
    assert "another process has stopped" in done.stderr
    assert "Traceback" not in done.stderr


KEEPING = """
import resource, sys, torch
from uvit_lit.distributed import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**25)  # 128 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of the GNU C library")
def test_kept_memory_is_not_asked_for_again():
    kept, given_back = (int(call(ROOT, "-c", KEEPING, how)[0]) for how in ("keep", "not"))
    assert kept < given_back / 20
