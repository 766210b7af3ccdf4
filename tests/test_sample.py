"""The command that a user types most."""

import copy
import json
import math
import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, error_line
from PIL import Image

from uvit_lit import generate, load_model
from uvit_lit.cli.sample import main
from uvit_lit.errors import InputError
from uvit_lit.options import PRESETS, preset_settings


@pytest.fixture
def sample(trained, tmp_path, capsys):
    """Run sample.py with few steps; the path that it prints last."""

    def run(*arguments, out=tmp_path / "samples"):
        main(["--ckpt", str(trained), "--steps", "3", "--out", str(out), *arguments])
        return out / capsys.readouterr().out.splitlines()[-1].split("/")[-1]

    return run


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_it_writes_a_grid_that_carries_its_parameters(sample):
    grid = sample("--n", "4", "--s", "0.5", "--b", "1.3", "--cutoff", "0.6", "--t_range", "0.2,1")
    assert grid.name == "tiny_s0.5_b1.3_seed0.png"
    inside = json.loads(Image.open(grid).text["parameters"])
    assert inside == json.loads(grid.with_suffix(".json").read_text())
    assert (inside["seed"], inside["n"], inside["s"]) == (0, 4, 0.5)
    assert inside["labels"] == [0, 1, 0, 1]
    assert inside["training_steps"] == 8
    assert inside["t_range"] == [0.2, 1.0]
    (skip, _) = inside["long_skips"]
    assert (skip["filter"], skip["s"], skip["cutoff"], skip["b"]) == ("step", 0.5, 0.6, 1.3)


def test_image_k_does_not_depend_on_the_others(sample, tmp_path):
    sample("--n", "5", "--seed", "7", "--images", out=tmp_path / "many")
    sample("--n", "2", "--seed", "9", "--images", "--batch_size", "1", out=tmp_path / "few")
    many = pixels(tmp_path / "many" / "tiny_seed7_image9.png")
    few = pixels(tmp_path / "few" / "tiny_seed9_image9.png")
    assert abs(many - few).max() <= 1


def test_s_b_and_the_window_change_the_picture(sample):
    plain = pixels(sample("--n", "2"))
    neutral = pixels(sample("--n", "2", "--s", "1", "--b", "1"))
    assert np.array_equal(plain, neutral)
    for change in (["--s", "0"], ["--b", "1.6"], ["--s", "1,0"]):
        assert not np.array_equal(plain, pixels(sample("--n", "2", *change)))


def test_a_window_acts_at_its_steps_alone(trained):
    """Each call of the network inside it is as with the settings, each outside as trained."""
    model, seen = load_model(trained), []

    def solver(denoise, noise, schedule, steps, generators):
        times = torch.linspace(1.0, 0.1, 10)
        seen.append([denoise(noise, t) for t in times])
        return noise

    for settings in ({}, {"s": 0.0}, {"s": 0.0, "t_range": (0.25, 0.65)}):
        generate(model, 2, solver=solver, progress=False, **settings)
    plain, changed, windowed = seen
    inside = [False] * 4 + [True] * 4 + [False] * 2  # 0.6, 0.5, 0.4, 0.3
    for acts, as_trained, as_set, found in zip(inside, plain, changed, windowed, strict=True):
        assert not torch.equal(as_trained, as_set)
        assert torch.equal(found, as_set if acts else as_trained)


def test_skips_choose_where_a_value_acts_and_a_list_is_for_all(sample, trained):
    inner = sample("--n", "2", "--s", "0", "--skips", "inner", "--npz")
    assert inner.name == "tiny_s0_skips-inner_seed0.png"
    parameters = json.loads(Image.open(inner).text["parameters"])
    assert (parameters["skips"], parameters["acts_on"]) == ("inner", [1])
    assert [skip["s"] for skip in parameters["long_skips"]] == [1, 0]
    listed = sample("--n", "2", "--s", "1,0")
    assert json.loads(Image.open(listed).text["parameters"])["acts_on"] == [0, 1]
    assert np.array_equal(pixels(inner), pixels(listed))
    outer, both = (pixels(sample("--n", "2", "--s", "0", "--skips", s)) for s in ("0", "all"))
    assert not np.array_equal(outer, pixels(inner))
    assert np.array_equal(both, pixels(sample("--n", "2", "--s", "0")))
    with np.load(inner.with_suffix(".npz")) as stored:
        images = torch.from_numpy(stored["images"]).permute(0, 3, 1, 2)
    model = load_model(trained)
    for skips in ("inner", [1]):
        assert torch.equal(images, generate(model, 2, steps=3, s=0, skips=skips, progress=False))


def test_the_default_of_the_model_acts_when_nobody_says_which(trained):
    """Before it come the option, a preset that names skips, and a list with a value for each."""
    model = load_model(trained)
    model.default_skips = "inner"

    def acts_on(preset=None, **settings):
        with model.skips(preset=preset, **settings):
            return [i for i, s in enumerate(model.denoiser.backbone.long_skips) if s.override]

    assert acts_on(s=0.5) == acts_on("medium") == acts_on("freeu_v2") == acts_on(s=[0.5]) == [1]
    assert acts_on(s=[0.5, 0.5], b=1.2) == acts_on(s=0.5, skips="all") == [0, 1]
    assert acts_on("freeu_v2", skips="outer") == acts_on(s=0.5, skips="0") == [0]
    assert acts_on() == []


def test_split_puts_the_filter_on_the_innermost_skip_and_b_on_all(trained):
    def images(**settings):
        return generate(load_model(trained), 2, steps=3, progress=False, **settings)

    split = images(s=0.5, b=1.3, skips="split")
    assert torch.equal(split, images(s=[1, 0.5], b=[1.3, 1.3]))
    assert not torch.equal(split, images(s=0.5, b=1.3, skips="inner"))
    assert torch.equal(images(s=0.5, skips="split"), images(s=0.5, skips="inner"))
    assert torch.equal(images(b=1.3, skips="split"), images(b=1.3, skips="all"))
    with pytest.raises(ValueError, match="s has 2 values; accepted: 1"):
        images(s=[1, 0.5], skips="split")


def test_a_preset_is_its_settings_and_options_come_before_it(sample):
    named = sample("--n", "2", "--preset", "medium")
    assert named.name == "tiny_medium_seed0.png"
    s, b = (str(PRESETS["medium"][name]) for name in ("s", "b"))
    assert np.array_equal(pixels(named), pixels(sample("--n", "2", "--s", s, "--b", b)))
    other = sample("--n", "2", "--preset", "medium", "--s", "0.1")
    assert np.array_equal(pixels(other), pixels(sample("--n", "2", "--s", "0.1", "--b", b)))


def test_the_best_preset_is_what_the_card_recommends(sample, trained, tmp_path, capsys):
    model = load_model(trained)
    with pytest.raises(InputError, match="recommends nothing; accepted: another preset"):
        generate(model, 2, steps=2, preset="best", progress=False)
    model.recommended = {"cfg": 2.0, "cfg_range": [0.2, 0.9], "b": 1.3, "skips": "0"}
    model.save_pretrained(tmp_path / "copy")
    model = load_model(tmp_path / "copy")
    best = generate(model, 2, steps=3, preset="best", progress=False)
    same = generate(model, 2, steps=3, progress=False, **model.recommended)
    assert torch.equal(best, same)
    for change in ({"cfg": 3.0}, {"b": 1.1}):
        own = {**model.recommended, **change}
        mixed = generate(model, 2, steps=3, preset="best", progress=False, **change)
        assert torch.equal(mixed, generate(model, 2, steps=3, progress=False, **own))
    path = sample("--ckpt", str(tmp_path / "copy"), "--n", "2", "--preset", "best", "--npz")
    assert path.name == "copy_best_seed0.png"
    assert json.loads(Image.open(path).text["parameters"])["cfg"] == 2
    with np.load(path.with_suffix(".npz")) as stored:
        assert np.array_equal(stored["images"], best.permute(0, 2, 3, 1).numpy())
    card = tmp_path / "copy" / "README.md"
    text = card.read_text()
    for wrong in ("guide: /etc/passwd", "cfg: high", "cfg: '2'", "steps: 2.5"):
        card.write_text(text.replace("cfg: 2.0", wrong))
        with pytest.raises(InputError, match=r"recommended of the model card .* accepted: values"):
            load_model(tmp_path / "copy")


def test_half_precision_is_close_and_in_the_parameters(sample, trained):
    options = ["--n", "2", "--cfg", "2", "--filter", "butterworth", "--s", "0.5", "--b", "1.3"]
    plain = sample(*options)
    half = sample(*options, "--precision", "bf16-mixed")
    assert json.loads(Image.open(half).text["parameters"])["precision"] == "bf16-mixed"
    difference = np.abs(pixels(plain).astype(float) - pixels(half))
    assert 0 < difference.mean() < 2


@pytest.mark.parametrize("name", PRESETS)
def test_generate_takes_every_preset(trained, name):
    model = load_model(trained)
    named = generate(model, 2, steps=2, preset=name, progress=False)
    settings = preset_settings(name, 4)
    assert torch.equal(named, generate(model, 2, steps=2, progress=False, **settings))
    plain = generate(model, 2, steps=2, progress=False)
    assert torch.equal(named, plain) == (name == "neutral")


def test_images_and_npz_hold_the_same_pixels(sample):
    grid = sample("--n", "3", "--images", "--npz", "--classes", "ship,0")
    with np.load(grid.with_suffix(".npz")) as stored:
        assert stored["images"].shape == (3, 16, 16, 3)
        assert stored["labels"].tolist() == [1, 0, 1]
        for k in range(3):
            path = grid.with_name(f"{grid.stem}_image{k}.png")
            assert np.array_equal(stored["images"][k], pixels(path))


def test_nothing_is_written_over(sample, tmp_path):
    first, second = sample("--n", "1"), sample("--n", "1")
    assert first.name == "tiny_seed0.png"
    assert second.name == "tiny_seed0-2.png"
    assert first.read_bytes() == second.read_bytes()
    first.unlink()  # its parameters are still there
    assert sample("--n", "1").name == "tiny_seed0-3.png"


def test_every_kind_of_guidance_changes_the_picture(sample, trained):
    kinds = (
        [],
        ["--cfg", "4"],
        ["--cfg", "4,2", "--cfg_cutoff", "0.5"],
        ["--cfg", "4", "--cfg_rescale", "0.7"],
        ["--cfg", "4", "--cfg_range", "0,0.8"],
    )
    drawn = [pixels(sample("--n", "2", *kind)).tobytes() for kind in kinds]
    assert len(set(drawn)) == len(kinds)
    itself = pixels(sample("--n", "2", "--cfg", "3", "--guide", str(trained)))
    assert np.abs(itself - pixels(sample("--n", "2"))).max() <= 1


def test_help_answers_without_heavy_imports():
    code = (
        "import sys; from uvit_lit.cli import sample\n"
        "try: sample.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'lightning'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for option in ("--s", "--b", "--cutoff", "--t_range", "--classes", "--cfg", "--solver"):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--s", "-1"], "s is -1.0; accepted"),
        (["--s", "nan"], "s is 'nan'; accepted"),
        (["--s", "much"], "'much'"),
        (["--b", "-0.5"], "b is -0.5; accepted"),
        (["--b", "inf"], "b is 'inf'; accepted"),
        (["--s", "0.5", "--cutoff", "0"], "cutoff is 0.0; accepted"),
        (["--s", "0.5", "--cutoff", "2"], "cutoff is 2.0; accepted"),
        (["--s", "0.1,0.2,0.3"], "s has 3 values; accepted: 1 or 2, for the long skips 0,1"),
        (["--s", "0.1", "--skips", "9"], "skips is '9'; accepted: all, inner, outer"),
        (["--s", "0.1", "--skips", "foo"], "skips is 'foo'"),
        (["--s", "0.1", "--skips", "1,1"], "skips is '1,1'"),
        (["--s", "0.1", "--skips", ""], "skips is ''"),
        (["--s", "0.1,0.2", "--skips", "1"], "s has 2 values; accepted: 1, for the long skips 1"),
        (["--b", "1,1,1"], "b has 3 values"),
        (["--b_channels", "0"], "b_channels is 0.0"),
        (["--filter", "boxcar"], "'boxcar'; accepted: none, step"),
        (["--filter", "none", "--s", "0.5"], "without a filter"),
        (["--t_range", "0.5"], "t_range is '0.5'; accepted: 2 numbers with a comma"),
        (["--t_range", "0.9,0.1"], "range of t is 0.9,0.1"),
        (["--s", "0.5", "--t_range", "1,1"], "t_range is 1,1, where dpmpp with 25 steps calls"),
        (["--cfg", "2", "--cfg_range", "0.999,1"], "cfg_range is 0.999,1, where dpmpp"),
        (["--cfg", "2,1.2"], "cfg has 2 values and cutoff is None; accepted"),
        (["--cfg_cutoff", "0.5"], "cfg has 1 values and cutoff is 0.5; accepted"),
        (["--cfg", "3", "--cfg_rescale", "2"], "rescale is 2.0; accepted: 0 to 1"),
        (["--cfg", "2", "--guide", "pretrained"], "of the weak model is 32; accepted as a guide"),
        (["--classes", "dog"], "no class 'dog'; accepted: cat, ship"),
        (["--classes", "2"], "no class '2'"),
        (["--cfg", "-1"], "cfg is -1.0"),
        (["--n", "0"], "n is 0; accepted"),
        (["--n", "9" * 23], "accepted: 1 to 10,000,000"),
        (["--ckpt", "/dev/null"], "checkpoint /dev/null is no file"),
        (["--n", "many"], "'many'"),
        (["--seed", "-1"], "seed is -1"),
        (["--seed", "100000000000000000000"], "below 2^32"),
        (["--seed", "1e3"], "seed is '1e3'; accepted: a whole number"),
        (["--t_range", "-1,1"], "range of t is -1,1"),
        (["--ste", "3"], "unknown option --ste 3"),
        (["--cfg"], "--cfg has no value; accepted: a number"),
        (["--seed", "4294967280", "--n", "17"], "seed is 4294967296; accepted: 0 to below 2^32"),
        (["--cutoff", "0.5"], "give s as well"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--solver", "euler"], "'euler'; accepted: ddpm"),
        (["--steps", "0"], "steps is 0; accepted"),
        (["--precision", "8"], "precision is '8'; accepted: 32-true, bf16-mixed, 16-mixed"),
        (["--device", "abacus"], "'abacus'"),
        (["--ckpt", "gone.ckpt"], "gone.ckpt does not exist"),
        (["--sharpness", "3"], "--sharpness"),
        (["--preset", "vivid"], "preset is 'vivid'; accepted: neutral, mild"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(trained, tmp_path, capsys, wrong, message):
    arguments = ["--ckpt", str(trained), "--out", str(tmp_path / "samples"), *wrong]
    status, line = error_line(capsys, main, arguments)
    assert status == 2
    assert message in line
    assert not (tmp_path / "samples").exists()


def test_no_run_yet(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, line = error_line(capsys, main, ["--ckpt", "last"])
    assert status == 2
    assert "train a model first" in line


def test_the_newest_run(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(trained.parents[4])
    main(["--ckpt", "last", "--n", "1", "--steps", "2", "--out", str(tmp_path)])
    assert "tiny_seed0.png" in capsys.readouterr().out


def test_the_model_in_the_package_is_the_default(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["--n", "2", "--steps", "2", "--s", "0.5", "--b", "1.3"])
    image = Path(capsys.readouterr().out.strip())
    assert image.name == "cifar10_uvit_tiny_s0.5_b1.3_seed0.png"
    parameters = json.loads(image.with_suffix(".json").read_text())
    assert parameters["ckpt"] == "pretrained"
    assert parameters["acts_on"] == [0, 1, 2, 3]
    values = [(skip["s"], skip["b"]) for skip in parameters["long_skips"]]
    assert values == [(1, 1.3)] * 3 + [(0.5, 1.3)]  # as its card says


def test_a_lack_of_memory_is_one_line(trained, tmp_path, capsys, monkeypatch):
    def lacks(*_, **__):
        raise torch.OutOfMemoryError("20 GiB")

    monkeypatch.setattr("uvit_lit.generation.sample", lacks)
    status, line = error_line(capsys, main, ["--ckpt", str(trained), "--out", str(tmp_path / "o")])
    assert (status, "choose a smaller batch size" in line) == (1, True)


def test_an_output_directory_that_is_a_file(trained, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    arguments = ["--ckpt", str(trained), "--n", "1", "--out", str(tmp_path / "out")]
    status, line = error_line(capsys, main, arguments)
    assert status == 1
    assert "out" in line
    assert (tmp_path / "out").read_text() == "mine"


def test_a_full_disk_leaves_no_half_file(trained, tmp_path, capsys):
    """A limit on the size of files stands for the full disk: the write fails in the same way."""
    out = tmp_path / "out"
    arguments = ["--ckpt", str(trained), "--n", "4", "--steps", "2", "--out", str(out)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
        status, _ = error_line(capsys, main, arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    left = [path.read_text() for path in out.iterdir()]
    assert [text.split()[0] for text in left] == ["reserved"], left  # until the process ends


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"cfg": -1.0}, "cfg is -1"),
        ({"cfg": math.nan}, "cfg is nan"),
        ({"classes": ["dog"]}, "no class 'dog'"),
    ],
)
def test_generate_refuses_what_the_command_refuses(trained, wrong, message):
    with pytest.raises(ValueError, match=message):
        generate(load_model(trained), progress=False, **wrong)


def test_settings_act_in_their_block_alone(trained):
    model = load_model(trained)
    long_skips = model.denoiser.backbone.long_skips

    def in_force():
        return [(skip.settings, skip.window) for skip in long_skips]

    trained_settings = in_force()
    with model.skips(s=0.2, t_range=(0.0, 0.9)):
        outer = in_force()
        with model.skips(b=1.4):
            assert in_force() != outer
        assert in_force() == outer
        inside = generate(model, 2, steps=4, progress=False)
        other = generate(model, 2, steps=4, progress=False, s=0.9)
        assert in_force() == outer
    assert in_force() == trained_settings
    as_trained = generate(model, 2, steps=4, progress=False)
    direct = generate(model, 2, steps=4, progress=False, s=0.2, t_range=(0.0, 0.9))
    assert in_force() == trained_settings
    assert torch.equal(inside, direct)
    assert not torch.equal(inside, as_trained)
    assert not torch.equal(inside, other)
    with pytest.raises(ZeroDivisionError), model.skips(s=0.5):
        1 / 0  # noqa: B018
    assert in_force() == trained_settings


def test_generate_leaves_no_trace(trained):
    """Neither in the settings nor in the weights, the training flag or the random numbers."""
    model = load_model(trained)

    def state():
        long_skips = model.denoiser.backbone.long_skips
        return (
            [(s.settings, s.window, s.override) for s in long_skips],
            [module.training for module in model.denoiser.modules()],
            [p.requires_grad for p in model.denoiser.parameters()],
            model.card(),
        )

    before = copy.deepcopy(state())
    tensors = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    random, plain = torch.get_rng_state(), generate(model, 2, steps=3, progress=False)
    options = {"s": 0.2, "b": 1.3, "filter": "butterworth", "t_range": (0.3, 1.0), "cfg": 2.0}
    changed = generate(model, 2, steps=3, progress=False, **options)
    with pytest.raises(ValueError, match="accepted"):
        generate(model, 2, progress=False, s=0.2, cutoff=-1)
    assert state() == before
    assert torch.equal(torch.get_rng_state(), random)
    after = model.denoiser.state_dict()
    assert after.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in after.items())
    assert not torch.equal(changed, plain)
    assert torch.equal(generate(model, 2, steps=3, progress=False), plain)


def euler(denoise, noise, schedule, steps, generators):
    """A solver of one's own: Euler steps of the probability flow, even in t."""
    x, times = noise, torch.linspace(0.999, 0.001, steps + 1)
    for now, then in pairwise(times):
        (alpha, sigma), (new_alpha, new_sigma) = map(schedule.alpha_sigma, (now, then))
        clean = denoise(x, now)
        x = new_alpha * clean + new_sigma * (x - alpha * clean) / sigma
    return x


def test_a_solver_of_ones_own_samples(trained, sample):
    model = load_model(trained)
    own = generate(model, 2, solver=euler, steps=40, progress=False).int()
    ddim = generate(model, 2, solver="ddim", steps=40, progress=False).int()
    assert (own - ddim).abs().float().mean() < 2
    named = sample("--n", "2", "--solver", "test_sample:euler", "--images", "--npz")
    with np.load(named.with_suffix(".npz")) as stored:
        images = torch.from_numpy(stored["images"]).permute(0, 3, 1, 2)
    assert torch.equal(images, generate(model, 2, solver=euler, steps=3, progress=False))
