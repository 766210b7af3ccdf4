"""Figures and comparisons: what the curves and tables hold, and files that a user asks for."""

from types import SimpleNamespace

import pytest
import torch
from conftest import error_line

from uvit_lit import plots as figures
from uvit_lit.cli import compare, plot
from uvit_lit.diffusion import Denoiser
from uvit_lit.errors import Note
from uvit_lit.settings import SkipSettings
from uvit_lit.skips import override_skips
from uvit_lit.uvit import UViT

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2}


def lines(axes):
    return [line for line in axes.get_lines() if len(line.get_xdata()) > 100]


def test_the_gain_curves_are_those_in_force():
    model = UViT(**SMALL, skip=SkipSettings("butterworth", order=2, s=0.4, cutoff=0.5))
    override_skips(model.long_skips, s=[0.2, 0.6])
    (axes,) = figures.plot_gains(model.long_skips).axes
    outermost, innermost = lines(axes)
    assert outermost.get_ydata()[0] == pytest.approx(0.2)
    assert innermost.get_ydata()[0] == pytest.approx(0.6)
    at_cutoff = abs(outermost.get_xdata() - 0.5).argmin()
    assert outermost.get_ydata()[at_cutoff] == pytest.approx(1 - 0.8 * 0.5**0.5, abs=0.01)


def test_the_spectra_are_measured_in_float32_under_autocast():
    denoiser = Denoiser(UViT(**SMALL, skip=SkipSettings("step", s=0.1, cutoff=0.6))).eval()
    x0 = torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = figures.plot_spectra(denoiser, x0, None)
    wide = figures.plot_spectra(denoiser, x0, None)
    for one, other in zip(narrow.axes, wide.axes, strict=True):
        for line, expected in zip(one.get_lines(), other.get_lines(), strict=True):
            assert line.get_ydata() == pytest.approx(expected.get_ydata(), abs=0.3)


def test_the_spectra_show_what_the_filter_takes_away():
    model = UViT(**SMALL, skip=SkipSettings("step", s=0.1, cutoff=0.6))
    figure = figures.plot_spectra(Denoiser(model).eval(), torch.randn(4, 3, 8, 8), None)
    for axes in figure.axes:
        curves = {line.get_label(): line for line in axes.get_lines()}
        radius = curves["skip before"].get_xdata()
        change = curves["skip after"].get_ydata() - curves["skip before"].get_ydata()
        for f, decibels in zip(radius, change, strict=True):
            assert decibels == pytest.approx(-20 if f < 0.6 else 0, abs=1e-3)
        same = curves["backbone after"].get_ydata() == curves["backbone before"].get_ydata()
        assert same.all()


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_a_figure_is_written_to_a_file(tmp_path, trained, suffix, capsys):
    for name in ("families", "gains"):
        out = tmp_path / f"{name}.{suffix}"
        plot.main([name, str(out), *(["--ckpt", str(trained)] if name == "gains" else [])])
        assert out.stat().st_size > 1000
        assert capsys.readouterr().out.strip() == str(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gains", "x.png", "--ckpt", "gone.ckpt"], "gone.ckpt does not exist"),
        (["gains", "x.doc"], "accepted: a file that ends in .png, .pdf or .svg"),
        (["families", "x.png", "--cutoff", "0"], "cutoff is 0.0"),
        (["spectrum", "x.png"], "spectrum"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, line = error_line(capsys, plot.main, arguments)
    assert status == 2
    assert message in line


def made_run(name, seed, filter="none", evaluated=None, validations=None, steps=8, **values):
    backbone = UViT(**SMALL, skip=SkipSettings(filter, s=1.0 if filter == "none" else 0.5))
    denoiser = SimpleNamespace(backbone=backbone)
    model = SimpleNamespace(denoiser=denoiser, data={"seed": seed}, step=steps)
    return compare.Run(f"{name}_{seed}", model, None, values, evaluated or {}, validations or {})


def test_recipes_are_compared_by_pairs_of_the_same_seed():
    """The third seed has no partner; the spread of the seeds themselves does not count."""
    runs = [made_run("plain", seed, loss=10.0 * seed) for seed in (1, 2)]
    runs += [
        made_run("other", seed, loss=10.0 * seed + change)
        for seed, change in ((2, 0.3), (1, 0.1), (3, 9.0))
    ]
    ((name, base, difference),) = compare.paired_rows(compare.by_recipe(runs))
    assert (name, base) == ("loss", "15")
    low, high = 0.2 - 12.706 * 0.1, 0.2 + 12.706 * 0.1  # Student's t of one degree of freedom
    assert difference == f"+0.2 [{low:+.2g}, {high:+.2g}] (2)"


def test_the_comparison_is_drawn():
    runs = [
        made_run(
            filter,
            0,
            filter,
            **{"validation loss, t 0.00-0.25": loss, "kid_x": loss, "kid_blocks_x": loss},
        )
        for filter, loss in (("none", 2.0), ("step", 1.0))
    ]
    *gains, by_time, kid = compare.plot_comparison(runs).axes
    assert [len(lines(axes)) for axes in gains] == [1, 1]  # of the step alone
    dots = [y for line in by_time.get_lines() if line.get_marker() == "o" for y in line.get_ydata()]
    assert dots == [0, -50]
    assert [line.get_ydata()[0] for line in kid.get_lines()] == [2.0, 1.0]
    (*_, by_time) = compare.plot_comparison([made_run("plain", 0)]).axes  # nothing measured
    assert by_time.get_ylabel() == "validation loss\nagainst plain (%)"


def test_the_losses_of_two_recipes_are_compared_step_by_step():
    """Only where both have been validated: the second run of ``other`` is shorter."""
    runs = [
        made_run("plain", 1, validations={200: 1.0, 400: 0.5}),
        made_run("plain", 2, validations={200: 2.0, 400: 0.7}),
        made_run("other", 1, validations={200: 0.8, 400: 0.6}),
        made_run("other", 2, validations={200: 1.8, 300: 9.0}),
    ]
    assert compare.rows_by_step(compare.by_recipe(runs)) == [
        ["200 steps", "1.5", "-0.2 [-0.2, -0.2] (2)"],
        ["400 steps", "0.6", "+0.1 (1)"],
    ]
    by_step = compare.plot_comparison(runs).axes[-1]
    curves = [(list(x), y) for x, y in (line.get_data() for line in by_step.get_lines())][1:]
    assert by_step.get_xlabel() == "steps"
    assert [x for x, _ in curves] == [[200, 400], [200, 400], [200, 400], [200]]
    assert [list(y) for _, y in curves[2:]] == [pytest.approx([-20, 20]), pytest.approx([-10])]


def test_evaluations_that_measured_something_else_are_not_compared():
    runs = [
        made_run("a", 0, evaluated={"steps": 15}),
        made_run("a", 1),
        made_run("b", 0, evaluated={"steps": 25}),
    ]
    compare.check_alike(runs[:2])
    with pytest.raises(ValueError, match="a_0 was evaluated with steps 15, b_0 with 25"):
        compare.check_alike(runs)


def test_a_note_says_which_runs_have_other_lengths():
    with pytest.warns(Note, match="a_0 has 8 steps, b_0 9"):
        compare.check_alike([made_run("a", 0), made_run("b", 0, steps=9)])


def test_runs_are_compared_in_a_table(trained, capsys, tmp_path):
    run = trained.parents[2]
    compare.main([str(run), str(run)])
    heads, _, first, end, *rest = capsys.readouterr().out.splitlines()
    assert end == ""  # the same run counts once
    assert rest[-2].startswith("| 8 steps | ")
    cells = dict(zip(heads.split(" | "), first.split(" | "), strict=True))
    assert cells["steps"] == "8"
    assert 0 < float(cells["validation loss"]) < 2
    assert 0 < float(cells["training loss"]) < 2
    assert float(cells["images/s"]) > 0
    status, line = error_line(capsys, compare.main, [str(tmp_path)])
    assert status == 2
    assert "holds no run" in line
