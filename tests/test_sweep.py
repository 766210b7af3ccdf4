"""The sweep: its files, what it keeps, what its table says."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import error_line
from PIL import Image

from uvit_lit import detail as metrics
from uvit_lit.cli import sweep as cli_sweep
from uvit_lit.cli.sample import main as sample_main
from uvit_lit.cli.sweep import main
from uvit_lit.files import read_png, write_png
from uvit_lit.generation import Generation


@pytest.fixture
def sweep(trained, tmp_path, capsys):
    """Run sweep.py with few steps; the directory that it prints last."""

    def run(*arguments):
        main(
            [
                "--ckpt",
                str(trained),
                "--steps",
                "2",
                "--n",
                "3",
                "--out",
                str(tmp_path / "out"),
                *arguments,
            ]
        )
        return Path(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.fixture
def runs(monkeypatch):
    """Counts the cells that are computed."""
    calls = []
    original = Generation.run
    monkeypatch.setattr(Generation, "run", lambda *a, **k: calls.append(1) or original(*a, **k))
    return calls


def rows(directory):
    return list(csv.DictReader(io.StringIO((directory / "detail.csv").read_text())))


def test_it_writes_figures_cells_and_a_table(sweep):
    out = sweep("--s", "0.2,1", "--b", "1,1.3")
    for name in ("grid.png", "spectra.png"):
        assert Image.open(out / name).size[0] > 300
    names = {path.name for path in (out / "cells").iterdir()}
    assert names == {"s0.2_b1.png", "s0.2_b1.3.png", "s1_b1.png", "s1_b1.3.png"}
    assert any(path.name.startswith("events.out") for path in out.iterdir())
    table = rows(out)
    assert len(table) == 4 * (len(metrics.DETAIL) + len(metrics.BANDS))
    for row in table:
        assert row["images"] == "3"
        assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
        if (row["s"], row["b"]) == ("1.0", "1.0"):
            assert float(row["difference_mean"]) == 0


def test_another_batch_size_draws_nothing_anew(sweep, runs):
    first = sweep("--s", "0.2", "--b", "1")
    assert sweep("--s", "0.2", "--b", "1", "--batch_size", "2") == first
    assert len(runs) == 1


def test_a_caption_says_what_its_cells_have_in_common(sweep, monkeypatch):
    captions = []
    monkeypatch.setattr(cli_sweep, "figures", lambda images, words: captions.append(words) or {})
    sweep("--s", "1", "--b", "1", "--steps", "1,2")
    sweep("--s", "1", "--b", "1", "--steps", "3", "--solver", "ddim")
    assert ["steps" in words.split("seeds")[1] for words in captions] == [False, True]
    assert "ddim, 3 steps" in captions[1]


def test_what_was_trained_can_be_a_cell_and_what_the_others_are_compared_with(sweep):
    table = rows(sweep("--s", "trained,0.2", "--b", "1"))
    differences = {
        s: [float(row["difference_mean"]) for row in table if row["s"] == s] for s in ("", "0.2")
    }
    assert not any(differences[""])
    assert any(differences["0.2"])


def test_a_cell_is_what_sample_draws_and_the_table_measures_it(sweep, trained, tmp_path, capsys):
    out = sweep("--s", "0.4", "--b", "1.2")
    sample_main(
        [
            "--ckpt",
            str(trained),
            "--steps",
            "2",
            "--n",
            "3",
            "--s",
            "0.4",
            "--b",
            "1.2",
            "--out",
            str(tmp_path),
            "--npz",
        ]
    )
    with np.load(next(tmp_path.glob("*.npz"))) as stored:
        images = stored["images"]
    cell = np.asarray(Image.open(out / "cells" / "s0.4_b1.2.png"))
    assert np.array_equal(cell, np.concatenate(list(images), axis=1))
    expected = metrics.measure_detail(torch.from_numpy(images).permute(0, 3, 1, 2))
    for row in rows(out):
        mean = float(expected[row["metric"]].mean())
        assert float(row["mean"]) == pytest.approx(mean, rel=1e-4)
        assert row["difference_mean"] is None or row["difference_mean"] == ""


def test_cells_that_are_there_are_kept(sweep, runs):
    first = sweep("--s", "0.2,1", "--b", "1")
    table = rows(first)
    assert len(runs) == 2
    assert sweep("--s", "0.2,1", "--b", "1") == first
    assert len(runs) == 2
    assert rows(first) == table
    (first / "cells" / "s1_b1.png").write_bytes(b"half a picture")  # interrupted
    assert sweep("--s", "0.2,0.6,1", "--b", "1") == first
    assert len(runs) == 4
    assert sweep("--s", "0.2,1", "--b", "1", "--seed", "5") != first
    assert len(runs) == 6


@pytest.mark.parametrize("width", [16, 32, 47])
def test_a_cell_of_another_size_is_drawn_anew(sweep, runs, width):
    out = sweep("--s", "0.2", "--b", "1")
    path = out / "cells" / "s0.2_b1.png"
    whole = path.read_bytes()
    pixels, parameters = read_png(path)
    write_png(path, pixels[:, :width].copy(), parameters)
    assert sweep("--s", "0.2", "--b", "1") == out
    assert (len(runs), path.read_bytes()) == (2, whole)


def test_a_flipped_bit_in_the_pixels_of_a_cell_is_noticed(sweep, runs):
    out = sweep("--s", "0.2", "--b", "1")
    path = out / "cells" / "s0.2_b1.png"
    whole = path.read_bytes()
    for place in range(whole.index(b"IDAT") + 6, len(whole) - 20, len(whole) // 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert read_png(path) is None
    assert sweep("--s", "0.2", "--b", "1") == out
    assert (len(runs), path.read_bytes()) == (2, whole)


def test_other_skips_are_another_sweep(sweep, runs):
    arguments = ["--s", "0.2", "--b", "1"]
    outer, inner, both = (sweep(*arguments, "--skips", s) for s in ("outer", "inner", "all"))
    pictures = {(out / "cells" / "s0.2_b1.png").read_bytes() for out in (outer, inner, both)}
    assert len(pictures) == 3
    assert sweep(*arguments, "--skips", "inner") == inner
    assert len(runs) == 3


def test_a_third_option_has_a_figure_for_each_value(sweep):
    out = sweep("--s", "0.5,1", "--b", "1", "--filter", "step,butterworth", "--cutoff", "0.3,0.6")
    grids = {path.name for path in out.glob("grid*.png")}
    assert grids == {"grid_b1_cutoff0.3.png", "grid_b1_cutoff0.6.png"}
    cells = [Image.open(path).tobytes() for path in (out / "cells").iterdir()]
    assert len(cells) == 8
    assert len(set(cells)) == 5  # with s = 1 no filter changes anything


def test_any_two_options_make_a_grid(sweep, runs):
    out = sweep("--s", "1", "--b", "1", "--cfg", "1,2", "--steps", "1,2")
    assert {path.name for path in out.glob("grid*.png")} == {"grid_s1_b1.png"}
    names = {path.name for path in (out / "cells").iterdir()}
    assert names == {f"s1_b1_cfg{cfg}_steps{n}.png" for cfg in (1, 2) for n in (1, 2)}
    assert len({path.read_bytes() for path in (out / "cells").iterdir()}) == len(runs) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--s", "-1"], "s is -1.0"),
        (["--b", "much"], "much"),
        (["--cutoff", "0.5,2"], "cutoff is 2.0"),
        (["--filter", "step,box"], "filter is 'step,box'; accepted: none, step"),
        (["--n", "0"], "n is 0"),
        (["--ckpt", "gone.ckpt"], "gone.ckpt does not exist"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_drawn(
    trained, tmp_path, capsys, arguments, message
):
    base = ["--ckpt", str(trained), "--steps", "2", "--n", "2", "--out", str(tmp_path / "out")]
    status, line = error_line(capsys, main, [*base, *arguments])
    assert status == 2
    assert message in line
    assert not (tmp_path / "out").exists()
