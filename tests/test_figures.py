"""Figures and comparisons: what the curves and tables hold, and files that a user asks for."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import error_line

from uvit_lit import compare, figures
from uvit_lit.denoiser import Denoiser
from uvit_lit.files import file_hash
from uvit_lit.uvit import UViT

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2}


def lines(axes):
    return [line for line in axes.get_lines() if len(line.get_xdata()) > 100]


def test_the_gain_curves_are_those_in_force():
    model = UViT(**SMALL, filter="butterworth", order=2, s=0.4, cutoff=0.5)
    model.set_skips(s=[0.2, 0.6])
    (axes,) = figures.plot_gains(model.long_skips).axes
    outermost, innermost = lines(axes)
    assert outermost.get_ydata()[0] == pytest.approx(0.2)
    assert innermost.get_ydata()[0] == pytest.approx(0.6)
    at_cutoff = abs(outermost.get_xdata() - 0.5).argmin()
    assert outermost.get_ydata()[at_cutoff] == pytest.approx(1 - 0.8 * 0.5**0.5, abs=0.01)


def test_a_filter_that_depends_on_t_has_three_curves():
    model = UViT(**SMALL, filter="butterworth", t_coefficients=1)
    (axes,) = figures.plot_gains(model.long_skips).axes
    assert len(lines(axes)) == 6
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"t = 0", "t = 0.5", "t = 1"} <= set(labels)
    assert all("mean over t" in label for label in labels if label.startswith("skip"))


def test_the_spectra_are_measured_in_float32_under_autocast():
    denoiser = Denoiser(UViT(**SMALL, filter="step", s=0.1, cutoff=0.6)).eval()
    x0 = torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = figures.plot_spectra(denoiser, x0, None)
    wide = figures.plot_spectra(denoiser, x0, None)
    for one, other in zip(narrow.axes, wide.axes, strict=True):
        for line, expected in zip(one.get_lines(), other.get_lines(), strict=True):
            assert line.get_ydata() == pytest.approx(expected.get_ydata(), abs=0.3)


def test_the_spectra_show_what_the_filter_takes_away():
    model = UViT(**SMALL, filter="step", s=0.1, cutoff=0.6)
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
        figures.main([name, str(out), *(["--ckpt", str(trained)] if name == "gains" else [])])
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
    status, line = error_line(capsys, figures.main, arguments)
    assert status == 2
    assert message in line


def made_run(filter, seed, **values):
    backbone = UViT(**SMALL, filter=filter, s=1.0 if filter == "none" else 0.5)
    model = SimpleNamespace(denoiser=SimpleNamespace(backbone=backbone), data={"seed": seed})
    return compare.Run(f"{filter}_{seed}", model, None, values)


def test_filters_are_compared_by_pairs_of_the_same_seed():
    """The third seed has no partner; the spread of the seeds themselves does not count."""
    runs = [made_run("none", seed, loss=10.0 * seed) for seed in (1, 2)]
    runs += [made_run("step", seed, loss=10.0 * seed + change)
             for seed, change in ((2, 0.3), (1, 0.1), (3, 9.0))]  # fmt: skip
    ((name, base, difference),) = compare.paired_rows(compare.by_filter(runs))
    assert (name, base) == ("loss", "15")
    low, high = 0.2 - 12.706 * 0.1, 0.2 + 12.706 * 0.1  # Student's t of one degree of freedom
    assert difference == f"+0.2 [{low:+.2g}, {high:+.2g}]"


def test_the_comparison_is_drawn():
    runs = [made_run(filter, 0, **{"validation loss, t 0.00-0.25": loss, "kid_x": loss})
            for filter, loss in (("none", 2.0), ("step", 1.0))]  # fmt: skip
    *gains, by_time, kid = compare.plot_comparison(runs).subfigs[0].axes + (
        compare.plot_comparison(runs).subfigs[1].axes
    )
    assert [len(lines(axes)) for axes in gains] == [1, 1]  # of the step alone
    dots = [line.get_ydata()[0] for line in by_time.get_lines() if line.get_marker() == "o"]
    assert dots == [0, -50]
    assert [line.get_ydata()[0] for line in kid.get_lines()] == [2.0, 1.0]


def test_an_evaluation_belongs_to_the_checkpoint_that_it_measured(trained, tmp_path, capsys):
    values = {"kid_x": {"mean": 0.25, "low": 0.0, "high": 0.5}, "nothing": {"mean": None}}
    for images, cell in ((9, {"s": 1.0}), (5, {"s": None}), (3, {"s": None})):
        report = {"images": images, "checkpoint_sha256": file_hash(trained), "results": [
            {"cell": cell, "values": {**values, "images": images}}]}  # fmt: skip
        path = tmp_path / "samples" / f"evaluation_{images}" / "results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(report))
    figure = tmp_path / "figure.png"
    compare.main([str(trained.parents[2]), "--results", str(tmp_path / "samples"),
                  "--figure", str(figure)])  # fmt: skip
    table = capsys.readouterr().out
    assert "| kid_x | 0.25 |" in table
    assert "| images | 5 |" in table
    assert "nothing" not in table
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_runs_are_compared_in_a_table(trained, capsys, tmp_path):
    run = trained.parents[2]
    compare.main([str(run), str(run)])
    heads, _, first, second = capsys.readouterr().out.splitlines()[:4]
    assert first == second
    cells = dict(zip(heads.split(" | "), first.split(" | "), strict=True))
    assert cells["steps"] == "8"
    assert 0 < float(cells["validation loss"]) < 2
    assert 0 < float(cells["training loss"]) < 2
    assert float(cells["images/s"]) > 0
    status, line = error_line(capsys, compare.main, [str(tmp_path)])
    assert status == 2
    assert "holds no run" in line
