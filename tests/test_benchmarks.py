"""The benchmarks run; what they measure is not asserted."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "training.py --batch 1 --cases ours",
        "training.py --batch 1 --profile",
        "data.py --batch 2 --batches 2",
        "filters.py --batch 1",
        "filters.py --batch 1 --grids 4",
        "startup.py",
        "sampling.py --n 1 --cases dpmpp:2,dpmpp:4:bf16-mixed --reference_images 0",
    ],
)
def test_a_benchmark_prints_a_table(command, trained):
    script, *options = command.split()
    options += ["--ckpt", str(trained)] if script == "sampling.py" else []
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *options, "--rounds", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "|---|" in done.stdout
