"""The U-Net as a backbone: trained, resumed, sampled and exported with the commands of a U-ViT."""

import copy
import json
import math
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import error_line, make_folder, train_arguments
from diffusers import UNet2DModel
from PIL import Image
from safetensors import safe_open
from test_train import differences, load

from uvit_lit import generate
from uvit_lit.cli import train
from uvit_lit.cli.config import default_config
from uvit_lit.cli.edit import main as edit_main
from uvit_lit.cli.export import main as export_main
from uvit_lit.cli.sample import main as sample_main
from uvit_lit.diffusion import Denoiser
from uvit_lit.errors import InputError
from uvit_lit.model import load_model
from uvit_lit.plots import plot_spectra
from uvit_lit.settings import SkipSettings, Window
from uvit_lit.skips import override_skips
from uvit_lit.training.module import DiffusionModule, parameter_groups
from uvit_lit.unet import UNet
from uvit_lit.weights import BACKBONES, Weights, backbone_arguments, write_safetensors

SMALL = {"img_size": 16, "channels": (8, 16), "attention": (8,), "head_dim": 8, "norm_groups": 4}


@pytest.fixture(autouse=True)
def restore_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])


def small_arguments(folder, **options):
    """Command line of a short run of a small U-Net."""
    arguments = [
        argument
        for argument in train_arguments(folder, **options)
        if not argument.startswith(("--model.embed_dim", "--model.depth", "--model.num_heads"))
    ]
    sizes = {"channels": "[8,16]", "attention": "[8]", "head_dim": 8, "norm_groups": 4}
    return ["--backbone=unet", *(f"--model.{k}={v}" for k, v in sizes.items()), *arguments]


def run(folder, steps, name, **options):
    """Train up to a step; the checkpoint it leaves."""
    options = {"trainer.logger.init_args.name": name, **options}
    train.main(small_arguments(folder, trainer__max_steps=steps, **options))
    return folder.parent / "runs" / name / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def trained_unet(tmp_path_factory):
    """Checkpoint of a run of eight steps, with a filter that learns."""
    root = tmp_path_factory.mktemp("unet")
    argv = sys.argv
    try:
        return run(make_folder(root / "images"), 8, "unet", filter="butterworth")
    finally:
        sys.argv = argv


def test_it_is_the_network_of_diffusers_where_nothing_acts():
    network = UNet(**SMALL, num_classes=3)
    plain = UNet2DModel(**network.unet.config)
    plain.load_state_dict(network.unet.state_dict())
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([10.0, 900.0]), torch.tensor([0, 3])
    assert torch.equal(network(x, t, y), plain(x, t, class_labels=y).sample)
    assert torch.equal(network(x, t), network(x, t, torch.tensor([3, 3])))
    assert {name.split(".")[0] for name in network.state_dict()} == {"unet"}
    unconditional = UNet(**SMALL)
    assert torch.equal(unconditional(x, t), unconditional(x, t, y))


def test_every_long_skip_has_a_modulation_of_its_grid_the_outermost_first():
    network = UNet(**SMALL, layers=2, skip=SkipSettings("butterworth", s=0.9)).eval()
    assert [skip.grid for skip in network.long_skips] == [(16, 16)] * 3 + [(8, 8)] * 3
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([100.0, 900.0])
    trained = network(x, t)
    override_skips(network.long_skips, skips="2", s=0.2, b=1.3, window=Window(0.5, 1.0))
    changed = network(x, t)
    torch.testing.assert_close(changed[0], trained[0])  # outside the window
    assert (changed[1] - trained[1]).abs().max() > 1e-3
    learned = {name for name, _ in network.named_parameters() if name.startswith("long_skips")}
    assert learned == {f"long_skips.{i}.learned.{n}.raw" for i in range(6) for n in ("s", "cutoff")}


def test_a_copy_has_skips_of_its_own():
    """The moving average of the weights is a copy."""
    network = UNet(**SMALL, skip=SkipSettings("butterworth", s=0.9)).eval()
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([100.0, 900.0])
    twin, before = copy.deepcopy(network), network(x, t)
    assert torch.equal(twin(x, t), before)
    twin.long_skips[0].learned["s"].raw.data -= 2
    assert torch.equal(network(x, t), before)
    assert (twin(x, t) - before).abs().max() > 1e-3


def test_muon_takes_the_kernels_of_the_blocks():
    module = DiffusionModule(
        backbone="unet", **SMALL, num_classes=3, skip=SkipSettings("butterworth", s=0.9)
    )
    names = {id(p): n.removeprefix("denoiser.backbone.") for n, p in module.named_parameters()}
    groups = parameter_groups(module.denoiser, 1e-3, 0.03, 5.0, muon=True)
    named = {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}
    assert sum(map(len, named.values())) == len(names)
    assert named.keys() == {"matrices", "decay", "no_decay", "filters"}
    assert all(
        n.startswith(("unet.down_blocks", "unet.mid_block", "unet.up_blocks"))
        and n.endswith("weight")
        and "norm" not in n
        for n in named["matrices"]
    )
    assert "unet.down_blocks.0.resnets.0.conv1.weight" in named["matrices"]
    assert "unet.conv_in.weight" in named["decay"]
    assert "unet.class_embedding.weight" in named["no_decay"]
    assert len(named["filters"]) == 8


@pytest.mark.parametrize(
    "options",
    [
        {"filter": "butterworth"},
        {"filter": "step", "b": 1.2, "model.optimizer": "adamw"},
        {"model.dropout": 0.5, "trainer.accumulate_grad_batches": 2},
    ],
    ids=["learned", "step", "dropout"],
)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, options):
    folder = make_folder(tmp_path / "images")
    whole = load(run(folder, 6, "whole", **options))
    run(folder, 3, "parts", **options)
    parts = load(run(folder, 6, "parts", ckpt_path="last", **options))
    assert differences(whole, parts) == []
    assert differences(whole["state_dict"], whole["current_model_state"]) != []


@pytest.mark.parametrize(
    ("knobs", "wanted"),
    [
        (["--s", "0.5", "--b", "1.3"], [0.5] * 4),
        (["--s", "0.9,0.8,0.7,0.6"], [0.9, 0.8, 0.7, 0.6]),
        ([], None),
    ],
)
def test_sample_draws_from_it_with_s_and_b(trained_unet, tmp_path, capsys, knobs, wanted):
    sample_main(
        [
            "--ckpt",
            str(trained_unet),
            *knobs,
            "--n",
            "4",
            "--steps",
            "2",
            "--out",
            str(tmp_path / "out"),
        ]
    )
    written = capsys.readouterr().out.split()[-1]
    parameters = json.loads(Image.open(written).text["parameters"])
    scales = [skip["s"] for skip in parameters["long_skips"]]
    learned = [skip.settings.s for skip in load_model(trained_unet).denoiser.backbone.long_skips]
    assert scales == (wanted or learned)


def test_safetensors_say_which_network_it_is(trained_unet, tmp_path, capsys):
    out = tmp_path / "model.safetensors"
    export_main([str(out), "--ckpt", str(trained_unet)])
    with safe_open(out, framework="pt") as file:
        card = json.loads(file.metadata()["uvit_lit"])
    assert card["backbone"] == "unet"
    one, two = load_model(trained_unet), load_model(out)
    options = {"steps": 2, "progress": False, "s": 0.5, "b": 1.3, "skips": "inner"}
    assert torch.equal(*(generate(model, 3, **options) for model in (one, two)))
    learned = one.denoiser.backbone.long_skips[0].settings
    assert learned == two.denoiser.backbone.long_skips[0].settings
    text = str(one.generate_model_card())
    assert "# U-Net with frequency filters" in text
    assert "channels [8, 16]" in text
    status, line = error_line(
        capsys, export_main, [str(tmp_path / "model.pth"), "--ckpt", str(out)]
    )
    assert (status, "the network is a unet; accepted in the official layout: uvit" in line) == (
        2,
        True,
    )


@pytest.fixture(scope="module")
def plain():
    """The weights of a small U-Net with what a file says of them."""
    network = UNet(**SMALL, num_classes=3)
    return Weights(
        tensors=dict(network.state_dict()),
        arguments=backbone_arguments("unet", {**SMALL, "num_classes": 3, "skip": {}}),
        schedule="cosine",
        prediction="x0",
        class_names=[],
        can_guide=True,
        backbone="unet",
    )


def test_a_file_needs_no_names_of_its_classes(plain, tmp_path):
    write_safetensors(plain, tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors").class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("card", "arguments", "message"),
    [
        ({"schedule": None}, {}, "schedule is None; accepted: vp, linear"),
        ({"prediction": None}, {}, "prediction is None; accepted: eps, x0"),
        ({}, {"num_classes": "3"}, "num_classes is '3'; accepted: of type int"),
        ({}, {"num_classes": True}, "num_classes is True; accepted: of type int"),
        ({}, {"num_classes": 4}, "num_classes is 4; accepted: 3, as the tensors have it"),
        ({}, {"img_size": 16.0}, "img_size is 16.0; accepted: of type int"),
        ({}, {"channels": [8.0, 16.0]}, "channels is a list; accepted: a list of int"),
        ({}, {"channels": 8}, "channels is 8; accepted: a list of int"),
        ({}, {"channels": [8, 10**9]}, "channels is a list; accepted: [8, 16], as the tensors"),
        ({}, {"layers": 2000}, "layers is 2000; accepted: 1, as the tensors have it"),
        ({}, {"in_chans": 10**9}, "in_chans is 1000000000; accepted: 3, as the tensors have it"),
        ({}, {"attention": [[8]]}, "attention is a list; accepted: a list of int"),
        ({}, {"attention": [3]}, "attention is at [3]; accepted: heights of levels, 16, 8"),
        ({}, {"dropout": None}, "dropout is None; accepted: of type float"),
        ({"tensors": {"a": torch.zeros(1)}}, {}, "is no U-Net: it lacks its first convolutions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_lies_is_one_sentence(plain, tmp_path, card, arguments, message):
    path = tmp_path / "lies.safetensors"
    lies = replace(plain, **card, arguments={**plain.arguments, **arguments})
    write_safetensors(lies, path)
    with pytest.raises(InputError, match=re.escape(message)):
        load_model(path)


def test_it_edits_a_picture(trained_unet, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "mask.png")
    edit_main(
        [
            str(tmp_path / "picture.png"),
            "--ckpt",
            str(trained_unet),
            "--steps",
            "2",
            "--s",
            "0.5",
            "--mask",
            str(tmp_path / "mask.png"),
            "--out",
            str(tmp_path),
        ]
    )
    assert Image.open(capsys.readouterr().out.split()[-1]).size[0] > 16


def test_it_starts_from_weights_of_its_kind(trained_unet, trained, tmp_path):
    loaded = load_model(trained_unet)
    arguments = {**loaded.arguments, "skip": SkipSettings(**loaded.arguments["skip"])}
    options = {"backbone": "unet", "schedule": "cosine", "prediction": "x0", **arguments}
    start = DiffusionModule(**options, init_from=str(trained_unet)).denoiser
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 0.8]), torch.tensor([0, 1])
    torch.testing.assert_close(start(x, t, y), loaded.denoiser(x, t, y))  # but for rounding
    folder = make_folder(tmp_path / "images")
    tuned = run(folder, 2, "tuned", **{"model.init_from": str(trained_unet)})  # by the command
    assert load_model(tuned).step == 2
    with pytest.raises(ValueError, match="backbone is unet here and uvit in"):
        DiffusionModule(**options, init_from=str(trained))
    with pytest.raises(ValueError, match="img_size is 32; accepted for this network: as it was"):
        load_model(trained_unet, img_size=32)


def test_a_filter_is_learned_through_the_network():
    """A teacher with another filter in the same network: the student finds its s and cutoff."""
    torch.manual_seed(0)
    settings = [SkipSettings("butterworth", s=0.4, cutoff=0.7), SkipSettings("butterworth", s=0.9)]
    networks = [UNet(**SMALL, skip=skip) for skip in settings]
    teacher, student = (network.eval() for network in networks)
    student.unet.load_state_dict(teacher.unet.state_dict())
    optimizer = torch.optim.Adam(student.long_skips.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        x, t = torch.randn(8, 3, 16, 16), 999 * torch.rand(8)
        with torch.no_grad():
            wanted = teacher(x, t)
        loss = (student(x, t) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.02 * losses[0]
    outermost = student.long_skips[0].settings
    assert outermost.s == pytest.approx(0.4, abs=0.1)


def test_the_spectra_of_its_maps_show_the_filter():
    denoiser = Denoiser(UNet(**SMALL, skip=SkipSettings("step", s=0.1, cutoff=0.6))).eval()
    figure = plot_spectra(denoiser, torch.randn(4, 3, 16, 16), None)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        curves = {line.get_label(): line for line in axes.get_lines()}
        change = curves["skip after"].get_ydata() - curves["skip before"].get_ydata()
        for f, decibels in zip(curves["skip before"].get_xdata(), change, strict=True):
            assert decibels == pytest.approx(-20 if f < 0.6 else 0, abs=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"img_size": 15}, "img_size is 15; accepted: a positive multiple of 2"),
        ({"channels": (8, 18)}, r"channels are \(8, 18\); accepted: multiples of 4"),
        ({"channels": ()}, "at least one level"),
        ({"attention": (4,)}, r"attention is at \[4\]; accepted: heights of levels, 16, 8"),
        ({"head_dim": 5}, "head_dim is 5"),
        ({"dropout": 1.0}, r"dropout is 1\.0"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"skip": SkipSettings("butterworth", s=0.0)}, r"s is 0\.0; accepted where it is learned"),
    ],
)
def test_sizes_that_do_not_fit_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{**SMALL, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--backbone=vgg"], "backbone is 'vgg'; accepted: uvit, unet"),
        (["--backbone=uvit"], "backbone is uvit here and unet in the checkpoint"),
        (["--model.embed_dim=32"], "model.embed_dim"),
        (["--model.head_dim=4"], "head_dim is 4 here and 8 in the checkpoint"),
    ],
)
def test_mistakes_are_one_line(trained_unet, tmp_path, capsys, wrong, message):
    folder = make_folder(tmp_path / "images")
    options = {"ckpt_path": trained_unet, "filter": "butterworth", "trainer.max_steps": 9}
    if wrong == ["--backbone=uvit"]:
        arguments = train_arguments(folder, **options)
    else:
        arguments = [*small_arguments(folder, **options), *wrong]
    status, line = error_line(capsys, train.main, arguments)
    assert status == 2
    assert message in line


def test_a_configuration_says_which_network(tmp_path, monkeypatch):
    config = tmp_path / "own.yaml"
    config.write_text(default_config("unet").read_text())
    for arguments, backbone in (
        ([], "uvit"),
        (["--backbone", "unet"], "unet"),
        (["--config", str(config)], "unet"),
        ([f"--config={config}", "--backbone=uvit"], "uvit"),
    ):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        assert train.choose_config(tuple(BACKBONES)) == backbone
        assert (str(config) if "own" in str(arguments) else backbone) in " ".join(sys.argv)


def test_dropout_is_of_training_alone():
    network = UNet(**SMALL, dropout=0.5)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([500.0])
    network.eval()
    assert torch.equal(network(x, t), network(x, t))
    network.train()
    assert not math.isclose(float((network(x, t) - network(x, t)).detach().abs().max()), 0)
