"""Latent diffusion with a small autoencoder of random weights, from the cache to a sweep."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, error_line, make_folder, train_arguments
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from uvit_lit import generate, load_model
from uvit_lit.cli import edit, evaluate, sample, sweep, train
from uvit_lit.data import encoded as latents
from uvit_lit.data.encoded import draw_latents, load_latents
from uvit_lit.generation import Generation
from uvit_lit.latents import load_autoencoder


def make_autoencoder(path, channels=4):
    """An autoencoder with a factor of 4, whose latents say more than their noise hides."""
    torch.manual_seed(0)
    block = {"down": "DownEncoderBlock2D", "up": "UpDecoderBlock2D"}
    network = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=(block["down"],) * 3,
        up_block_types=(block["up"],) * 3,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    with torch.no_grad():
        network.quant_conv.weight[:channels].mul_(10)
        network.quant_conv.bias[channels:].sub_(10)  # logarithm of the variance
    network.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def vae(tmp_path_factory):
    return make_autoencoder(tmp_path_factory.mktemp("vae"))


def latent_arguments(folder, vae, **options):
    return train_arguments(
        folder,
        data__autoencoder=vae,
        model__img_size=8,
        model__in_chans=4,
        trainer__logger__init_args__name="latent",
        **options,
    )


@pytest.fixture(scope="session")
def trained_on_latents(tmp_path_factory, vae):
    """Checkpoint of a run of eight steps on latents."""
    root = tmp_path_factory.mktemp("latent")
    argv = sys.argv
    try:
        train.main(latent_arguments(make_folder(root / "images"), vae, trainer__max_steps=8))
    finally:
        sys.argv = argv
    return root / "runs" / "latent" / "version_0" / "checkpoints" / "last.ckpt"


def test_scale_and_shapes_of_the_autoencoder(vae):
    ours = load_autoencoder(vae)
    theirs = AutoencoderKL.from_pretrained(vae)
    assert (ours.factor, ours.channels, ours.scale) == (4, 4, 0.18215)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        latent = theirs.encode(pixels / 127.5 - 1).latent_dist
        mean, std = ours.encode(pixels).unbind(1)
        torch.testing.assert_close(mean, latent.mean * 0.18215)
        torch.testing.assert_close(std, latent.std * 0.18215)
        torch.testing.assert_close(ours.decode(mean, 2), theirs.decode(latent.mean).sample)


def test_latents_are_encoded_once_with_their_mirror_images(folder, vae, tmp_path, monkeypatch):
    (folder / "train" / "cat" / "03.png").write_bytes(b"no image")
    autoencoder = load_autoencoder(vae)
    cache = tmp_path / "latents"
    first = load_latents(folder / "train", 32, autoencoder, cache, batch_size=5)
    assert first.pixels.shape == (23, 2, 2, 4, 8, 8)
    assert first.labels.tolist() == [0] * 11 + [1] * 12
    image = Image.open(folder / "train" / "ship" / "11.png").convert("RGB")
    scaled = ImageOps.fit(image, (32, 32), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(scaled).copy()).permute(2, 0, 1)[None]
    for flipped, expected in enumerate(first.pixels[-1].float()):
        moments = autoencoder.encode(pixels.flip(-1) if flipped else pixels)[0]
        torch.testing.assert_close(moments, expected, atol=2e-3, rtol=2e-3)
    monkeypatch.setattr(latents, "_encode", lambda *_: pytest.fail("encoded again"))
    again = load_latents(folder / "train", 32, autoencoder, cache)
    assert torch.equal(again.pixels, first.pixels)


def test_an_interrupted_encoding_leaves_nothing(folder, vae, tmp_path, monkeypatch):
    autoencoder = load_autoencoder(vae)
    monkeypatch.setattr(autoencoder, "encode", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load_latents(folder / "train", 32, autoencoder, tmp_path / "latents")
    assert list((tmp_path / "latents").iterdir()) == []


def test_latents_are_drawn_from_their_distribution():
    moments = torch.zeros(4000, 2, 2, 1, 2, 2)
    moments[:, 0, 0], moments[:, 0, 1] = 1.0, 0.5
    moments[:, 1, 0], moments[:, 1, 1] = -2.0, 0.1
    flip = torch.arange(4000) % 2 == 1
    drawn = draw_latents(moments, flip, seed=5)
    for values, mean, std in ((drawn[~flip], 1.0, 0.5), (drawn[flip], -2.0, 0.1)):
        assert values.mean() == pytest.approx(mean, abs=0.02)
        assert values.std() == pytest.approx(std, rel=0.03)
    assert torch.equal(drawn, draw_latents(moments, flip, seed=5))
    assert not torch.equal(drawn, draw_latents(moments, flip, seed=6))


def test_samples_are_decoded(trained_on_latents, tmp_path, capsys):
    command = ["--ckpt", str(trained_on_latents), "--n", "2", "--steps", "2", "--npz"]
    sample.main([*command, "--out", str(tmp_path), "--s", "0.5", "--b", "1.3"])
    with np.load(next(tmp_path.glob("*.npz"))) as stored:
        assert stored["images"].shape == (2, 32, 32, 3)
    model = load_model(trained_on_latents)
    assert model.image_shape == (4, 8, 8)
    images = generate(model, 2, steps=2, s=0.5, b=1.3, progress=False)
    assert images.shape == (2, 3, 32, 32)


def test_sweep_edit_and_evaluate_see_pixels(trained_on_latents, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "tests")
    common = ["--ckpt", str(trained_on_latents), "--steps", "2", "--out", "out"]
    grid = [*common, "--n", "2", "--s", "0.5,1", "--b", "1"]
    sweep.main(grid)
    with monkeypatch.context() as patch:
        patch.setattr(Generation, "run", lambda *_: pytest.fail("a cell was not kept"))
        sweep.main(grid)
    out = Path(capsys.readouterr().out.splitlines()[-1])
    assert np.asarray(Image.open(out / "cells" / "s0.5_b1.png")).shape == (32, 64, 3)
    evaluate.main([*grid, "--metrics", "fid,detail", "--features", "test_evaluate:moments"])
    report = json.loads(Path(capsys.readouterr().out.splitlines()[-1]).read_text())
    assert len(report["autoencoder_sha256"]) == 64
    picture = trained_on_latents.parents[4] / "images" / "test" / "cat" / "00.png"
    mask = np.zeros((32, 32), np.uint8)
    mask[:16] = 255
    Image.fromarray(mask).save("mask.png")
    edit.main([str(picture), *common, "--s", "0.5", "--mask", "mask.png"])
    printed = capsys.readouterr().out
    assert "mean_change_outside_mask_grey_levels: 0.00" in printed
    assert "mean_change_grey_levels: 0.00" not in printed


def test_another_autoencoder_is_another_sweep(trained_on_latents, tmp_path, capsys, vae):
    other = Path(make_autoencoder(tmp_path / "other"))
    weights = load_file(other / "diffusion_pytorch_model.safetensors")
    weights["decoder.conv_out.bias"] += 0.5
    save_file(weights, other / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    command = [
        "--ckpt",
        str(trained_on_latents),
        "--steps",
        "1",
        "--n",
        "1",
        "--s",
        "1",
        "--b",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    for name in (vae, str(other)):
        sweep.main([*command, "--vae", name])
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.slow
def test_two_hundred_steps_on_latents_learn(vae, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    folder = make_folder(tmp_path / "images")
    options = {"trainer__max_steps": 200, "trainer__val_check_interval": 50, "model__lr": 3e-3}
    train.main(latent_arguments(folder, vae, **options))
    events = next((tmp_path / "runs").rglob("events.out*"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(events)).Reload()
    losses = [event.value for event in log.Scalars("train/loss")]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert log.Images("samples")[-1].width > 100


def without_decoder(directory):
    path = make_autoencoder(directory) + "/diffusion_pytorch_model.safetensors"
    kept = {k: v for k, v in load_file(path).items() if not k.startswith("decoder")}
    save_file(kept, path, {"format": "pt"})


def with_configuration(**changes):
    def make(directory):
        make_autoencoder(directory)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, **changes}))

    return make


def empty(directory):
    directory.mkdir()
    (directory / "config.json").write_text("{}")


@pytest.mark.parametrize(
    "make",
    [
        lambda directory: None,
        empty,
        without_decoder,
        with_configuration(block_out_channels=[]),
        with_configuration(scaling_factor="x"),
        with_configuration(latent_channels=5),
    ],
)
def test_a_wrong_autoencoder(trained_on_latents, tmp_path, capsys, make):
    make(tmp_path / "vae")
    command = [
        "--ckpt",
        str(trained_on_latents),
        "--vae",
        str(tmp_path / "vae"),
        "--out",
        str(tmp_path / "out"),
    ]
    status, line = error_line(capsys, sample.main, command)
    assert (status, "no autoencoder in" in line) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_keeps_its_autoencoder(trained_on_latents, tmp_path, capsys):
    folder = trained_on_latents.parents[4] / "images"
    other = make_autoencoder(tmp_path / "other")
    arguments = latent_arguments(folder, other, ckpt_path=trained_on_latents)
    status, line = error_line(capsys, train.main, arguments)
    assert (status, "in the checkpoint" in line) == (2, True)


def test_channels_that_do_not_fit(trained_on_latents, trained, folder, tmp_path, capsys, vae):
    other = make_autoencoder(tmp_path / "other", channels=8)
    status, line = error_line(
        capsys, sample.main, ["--ckpt", str(trained_on_latents), "--vae", other]
    )
    assert (status, "4 channels, the latents of the autoencoder 8" in line) == (2, True)
    status, line = error_line(capsys, sample.main, ["--ckpt", str(trained), "--vae", vae])
    assert (status, "3 channels, the latents of the autoencoder 4" in line) == (2, True)
    arguments = latent_arguments(folder, other)
    status, line = error_line(capsys, train.main, arguments)
    assert (status, "4 channels, the latents of the autoencoder 8" in line) == (2, True)
    arguments = train_arguments(folder, model__in_chans=4)
    status, line = error_line(capsys, train.main, arguments)
    assert (status, "name their autoencoder" in line) == (2, True)
    assert not (tmp_path / "runs").exists()
