"""The benchmarks run; what they measure is not asserted."""

import importlib.util
import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, train_arguments


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "training.py --batch 1 --cases ours",
        "training.py --batch 1 --profile",
        "attention.py",
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
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "|---|" in done.stdout


@pytest.mark.slow
def test_a_race_trains_measures_and_draws(tmp_path, folder):
    """Two candidates on a small folder; a second call finds everything done."""
    small = [
        argument
        for argument in train_arguments(folder)
        if "max_steps" not in argument and "save_dir" not in argument and "logger" not in argument
    ]
    content = {
        "options": small,
        "data": ["--data", "folder", "--data_root", str(folder), "--split", "test"],
        "candidates": {"recipe": [], "butterworth": ["--filter=butterworth"]},
    }
    (tmp_path / "race.yaml").write_text(yaml.safe_dump(content))
    command = [
        sys.executable,
        ROOT / "benchmarks" / "race.py",
        tmp_path / "race.yaml",
        "--minutes",
        "0.001",
        "--rounds",
        "1",
        "--n",
        "16",
        "--features",
        "test_evaluate:moments",
        "--out",
        tmp_path / "race",
        "--figure",
        tmp_path / "race.png",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    tables = []
    for _ in range(2):
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        tables.append(done.stdout)
    assert tables[0] == tables[1]
    assert tables[0].count("| recipe | 0 |") == tables[0].count("| butterworth | 0 |") == 1
    assert (tmp_path / "race.png").exists()


def test_the_curve_of_a_method_follows_its_knob():
    """With the model as trained at s = 1; where there is no such number it comes first."""
    path = ROOT / "benchmarks" / "detail.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_detail", path)
    detail = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(detail)
    one = [detail.Point(f"s {s:g}", power, 0.1) for s, power in ((1.5, -1.3), (0, 0.4), (0.5, 0.8))]
    assert [p.setting for p in detail.in_order(one)] == ["s 0", "s 0.5", "", "s 1.5"]
    two = [detail.Point(f"s {s:g}, b 1.1", 0.4, 0.1) for s in (0.8, 0.5)]
    assert [p.setting for p in detail.in_order(two)] == ["", "s 0.8, b 1.1", "s 0.5, b 1.1"]


@pytest.mark.slow
def test_settings_are_compared_with_none_on_the_same_seeds(tmp_path, folder, trained):
    command = [
        sys.executable,
        ROOT / "benchmarks" / "detail.py",
        "--ckpt",
        trained,
        "--guide",
        trained,
        "--data_root",
        folder,
        "--features",
        "test_evaluate:moments",
        "--n",
        "8",
        "--steps",
        "2",
        "--only",
        "autoguidance",
        "b, all skips",
        "--figure",
        "detail.png",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    by_setting = {row[1]: row[3] for row in rows}
    assert [row[0] for row in rows] == ["| none"] + 5 * ["| b, all skips"] + 2 * ["| autoguidance"]
    assert by_setting["guide 2"] == "+0.000 [+0.000, +0.000]"  # away from itself it is itself
    assert by_setting["b 1.2"] != by_setting["b 0.95"] != by_setting["guide 2"]
    figure = (tmp_path / "detail.png").read_bytes()
    (tmp_path / "page.md").write_text(f"A page.\n\n{done.stdout}\nThe end.\n")
    again = [*command[:2], "--table", "page.md", "--figure", "detail.png"]
    subprocess.run(again, env=environment, cwd=tmp_path, check=True, timeout=300)
    assert (tmp_path / "detail.png").read_bytes() == figure
