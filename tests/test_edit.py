"""Inversion and editing of a real image."""

import json

import numpy as np
import pytest
import torch
from conftest import error_line
from PIL import Image
from tqdm import tqdm

from uvit_lit.cli.edit import main
from uvit_lit.diffusion import Denoiser
from uvit_lit.model import load_model
from uvit_lit.sampling import invert, regenerate
from uvit_lit.weights import write_safetensors

BAR = tqdm(disable=True)


class GaussianBackbone(torch.nn.Module):
    """Exact prediction for images that are independent normal numbers of deviation 0.5."""

    def __init__(self, schedule, prediction):
        super().__init__()
        self.schedule, self.prediction = schedule, prediction

    def forward(self, x, timesteps, y):
        t = timesteps / self.schedule.time_scale
        alpha, sigma = (v[:, None, None, None] for v in self.schedule.alpha_sigma(t))
        x0 = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * x
        eps = (x - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[self.prediction]


def gaussian(prediction, schedule="cosine"):
    denoiser = Denoiser(torch.nn.Identity(), schedule, prediction)
    denoiser.backbone = GaussianBackbone(denoiser.schedule, prediction)
    return denoiser


@pytest.mark.parametrize("schedule", ["vp", "cosine", "linear"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_inversion_comes_back_and_ends_at_normal_noise(prediction, schedule):
    """The exact flow of a Gaussian is a scaling, from deviation 0.5 to 1."""
    torch.manual_seed(0)
    denoiser, x0 = gaussian(prediction, schedule), 0.5 * torch.randn(8, 3, 16, 16)
    path = invert(denoiser, x0, None, 100, 0.01, BAR)
    assert len(path) == 101
    assert float(path[-1].std()) == pytest.approx(1.0, abs=0.05)
    correlation = torch.corrcoef(torch.stack([path[-1].flatten(), x0.flatten()]))[0, 1]
    assert correlation > 0.999
    back = regenerate(denoiser, path, None, 0.01, BAR)
    assert float((back - x0).square().mean()) < 4e-4  # 40 dB


def test_the_error_of_inversion_falls_with_the_number_of_steps():
    """DDIM is of first order: twice the steps, half the error."""
    denoiser, x0 = gaussian("x0"), 0.5 * torch.randn(4, 3, 8, 8)
    errors = [
        (
            regenerate(denoiser, invert(denoiser, x0, None, n, 0.05, BAR), None, 0.05, BAR) - x0
        ).norm()
        for n in (25, 50, 100)
    ]
    assert errors[1] < 0.55 * errors[0]
    assert errors[2] < 0.55 * errors[1]


def test_outside_the_mask_an_image_stays():
    torch.manual_seed(0)
    denoiser, x0 = gaussian("eps"), 0.5 * torch.randn(2, 3, 8, 8)
    path = invert(denoiser, x0, None, 20, 0.05, BAR)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    other = gaussian("eps", "cosine")
    other.backbone.forward = lambda x, timesteps, y: 0.5 * x
    changed = regenerate(other, path, None, 0.05, BAR, mask)
    torch.testing.assert_close(changed[..., 4:], x0[..., 4:])
    assert (changed[..., :4] - x0[..., :4]).abs().mean() > 0.05


@pytest.fixture
def picture(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_the_command_writes_a_picture_and_its_errors(trained, picture, tmp_path, capsys):
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    mask.save(tmp_path / "mask.png")
    main(
        [
            str(picture),
            "--ckpt",
            str(trained),
            "--steps",
            "20",
            "--s",
            "0.3",
            "--label",
            "cat",
            "--skips",
            "outer",
            "--mask",
            str(tmp_path / "mask.png"),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    written = tmp_path / "out" / "tiny_s0.3_skips-outer_picture.png"
    assert lines[-1] == str(written)
    parameters = json.loads(written.with_suffix(".json").read_text())
    assert json.loads(Image.open(written).text["parameters"]) == parameters
    assert parameters["mean_change_outside_mask_grey_levels"] < 1
    assert [skip["s"] for skip in parameters["long_skips"]] == [0.3, 1]
    tile = 128 + 4
    assert Image.open(written).size == (4 * tile, tile)


def test_a_model_with_a_filter_is_inverted_as_it_was_trained(trained, picture, tmp_path, capsys):
    """Nothing overridden, what is regenerated is the reconstruction."""
    weights = load_model(trained).weights
    weights.arguments["skip"] |= {"filter": "step", "s": 0.1}
    write_safetensors(weights, tmp_path / "filtered.safetensors")
    main(
        [
            str(picture),
            "--ckpt",
            str(tmp_path / "filtered.safetensors"),
            "--steps",
            "3",
            "--out",
            str(tmp_path / "out"),
        ]
    )
    _, reconstruction, result = np.split(
        np.array(Image.open(capsys.readouterr().out.split()[-1])), 3, axis=1
    )
    assert np.array_equal(reconstruction, result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.png"], "gone.png does not exist"),
        (["notes.txt"], "notes.txt is not a readable image"),
        (["picture.png", "--mask", "notes.txt"], "notes.txt is not a readable image"),
        (["picture.png", "--steps", "0"], "steps is 0"),
        (["picture.png", "--t_min", "1"], "t_min is 1.0"),
        (["picture.png", "--label", "dog"], "no class 'dog'; accepted: cat, ship"),
        (["picture.png", "--s", "0.1,0.2,0.3"], "s has 3 values"),
        (["picture.png", "--t_fade", "0.1"], "t_fade is 0.1"),
    ],
)
def test_mistakes_are_one_line(trained, picture, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(picture.parent)
    (picture.parent / "notes.txt").write_text("no image")
    status, line = error_line(capsys, main, [*arguments, "--ckpt", str(trained), "--out", "out"])
    assert status == 2
    assert message in line
    assert not (picture.parent / "out").exists()
