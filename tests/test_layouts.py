"""Weights in every layout, in and out."""

import json
import math
import os
import pickle
import re
import resource
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import Payload, error_line
from huggingface_hub import HfApi, RepoUrl
from safetensors import safe_open
from safetensors.torch import save_file

from uvit_lit import Model, generate, load_model
from uvit_lit import model as checkpoint
from uvit_lit.classes import CIFAR10, class_names, find_class
from uvit_lit.cli.export import main as export_main
from uvit_lit.cli.sample import main as sample_main
from uvit_lit.cli.sweep import main as sweep_main
from uvit_lit.errors import Note
from uvit_lit.model import complete, find_checkpoint
from uvit_lit.reading import read_weights
from uvit_lit.settings import SkipSettings
from uvit_lit.training.module import DiffusionModule
from uvit_lit.uvit import UViT
from uvit_lit.weights import write_official

LAYOUTS = {
    "as S/2": {"embed_dim": 512, "num_heads": 8},
    "with the time MLP": {"embed_dim": 512, "num_heads": 8, "mlp_time_embed": True},
    "as M/4": {"embed_dim": 768, "num_heads": 12, "patch_size": 4, "num_classes": 1000},
    "as L/2": {"embed_dim": 1024, "num_heads": 16, "in_chans": 4, "num_classes": 1000},
    "as H/2": {
        "embed_dim": 1152,
        "num_heads": 16,
        "in_chans": 4,
        "num_classes": 1000,
        "conv": False,
    },
    "with biases": {"embed_dim": 512, "num_heads": 8, "qkv_bias": True, "num_classes": 3},
}
NO_NULL = {"as M/4"}  # published without guidance: as many rows as classes


def official_state(backbone, rows_are_classes=False):
    """What the official code would save of this network."""
    state = {k: v.clone() for k, v in backbone.state_dict().items() if ".learned." not in k}
    if rows_are_classes:
        state["label_emb.weight"] = state["label_emb.weight"][:-1].clone()
    return state


def save(module, path, names=()):
    """What train.py would write after seven steps."""
    torch.save(
        {
            "state_dict": module.state_dict(),
            "hyper_parameters": dict(module.hparams),
            "global_step": 7,
            "ImageData": {"class_names": list(names)},
        },
        path,
    )


@pytest.fixture
def official(tmp_path):
    """Random weights of a small model in the official layout, and the model."""
    torch.manual_seed(0)
    backbone = UViT(img_size=8, embed_dim=512, num_heads=8, depth=2).eval()
    torch.save(official_state(backbone), tmp_path / "cifar10_uvit_small.pth")
    return tmp_path / "cifar10_uvit_small.pth", backbone


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_architecture_is_read_from_the_shapes_and_written_back(name, tmp_path):
    torch.manual_seed(0)
    arguments = {"img_size": 8, "depth": 2, **LAYOUTS[name]}
    backbone = UViT(**arguments).eval()
    state = official_state(backbone, name in NO_NULL)
    torch.save(state, tmp_path / "model.pth")
    model = load_model(tmp_path / "model.pth")
    for key, value in arguments.items():
        assert read_weights(tmp_path / "model.pth").arguments[key] == value, key
    x, t = torch.randn(2, model.image_shape[0], 8, 8), torch.tensor([3.0, 700.0])
    y = torch.tensor([0, 2]) if "num_classes" in arguments else None
    with torch.no_grad():
        torch.testing.assert_close(model.denoiser.backbone(x, t, y), backbone(x, t, y))
    assert model.denoiser.schedule.name == ("sd" if name == "as H/2" else "vp")
    assert model.can_guide == ("num_classes" in arguments and name not in NO_NULL)
    export_main([str(tmp_path / "again.pth"), "--ckpt", str(tmp_path / "model.pth")])
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert list(again) == list(state)
    assert all(torch.equal(again[k], state[k]) for k in state)


def test_a_training_directory_of_the_official_code(official, tmp_path):
    path, _ = official
    directory = tmp_path / "500.ckpt"
    directory.mkdir()
    path.rename(directory / "nnet_ema.pth")
    assert load_model(directory).name == "500"
    sweep_main(
        [
            "--ckpt",
            str(directory),
            "--n",
            "1",
            "--steps",
            "1",
            "--s",
            "1",
            "--b",
            "1",
            "--out",
            str(tmp_path / "out"),
        ]
    )
    assert next((tmp_path / "out").glob("sweep_500_*/grid.png"))


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_alone(official, tmp_path, zipped):
    """Safetensors without our card, and files of old versions of torch."""
    path, backbone = official
    if zipped:
        path = tmp_path / "model.safetensors"
        save_file(official_state(backbone), path)
    else:
        torch.save(official_state(backbone), path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_model(path).denoiser.backbone.pos_embed, backbone.pos_embed)


@pytest.mark.parametrize("filter", ["none", "butterworth"])
def test_safetensors_carry_everything(tmp_path, filter, monkeypatch):
    torch.manual_seed(0)
    module = DiffusionModule(
        schedule="cosine",
        prediction="v",
        img_size=8,
        embed_dim=32,
        num_heads=2,
        depth=2,
        num_classes=2,
        skip=SkipSettings(filter),
    )
    save(module, tmp_path / "model.ckpt", ["cat", "ship"])
    out = tmp_path / "model.safetensors"
    export_main([str(out), "--ckpt", str(tmp_path / "model.ckpt"), "--licence", "cc-by-4.0"])
    with safe_open(out, framework="pt") as file:
        card = json.loads(file.metadata()["uvit_lit"])
    assert card["licence"] == "cc-by-4.0"
    assert (card["schedule"], card["prediction"], card["step"]) == ("cosine", "v", 7)
    assert card["arguments"]["skip"]["filter"] == filter
    one, two = load_model(tmp_path / "model.ckpt"), load_model(out)
    assert two.class_names == ["cat", "ship"]
    assert (two.training, two.can_guide) == ("7 training steps", True)
    images = [generate(m, 3, steps=2, progress=False, s=0.5) for m in (one, two)]
    assert torch.equal(*images)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_half_precision_halves_the_file(tmp_path, suffix):
    torch.manual_seed(0)
    save(DiffusionModule(img_size=8, embed_dim=64, num_heads=2, depth=2), tmp_path / "model.ckpt")
    paths = [tmp_path / f"{dtype}.{suffix}" for dtype in ("float32", "float16")]
    for path in paths:
        export_main([str(path), "--ckpt", str(tmp_path / "model.ckpt"), "--dtype", path.stem])
    assert paths[1].stat().st_size / paths[0].stat().st_size < 0.6
    options = {} if suffix == "safetensors" else {"num_heads": 2}
    one, two = (load_model(path, **options).denoiser.backbone.state_dict() for path in paths)
    for name, value in two.items():
        assert torch.equal(value, one[name].half().float())


@pytest.mark.parametrize("size", [16, 32])
def test_learned_cutoffs_keep_their_value_at_another_size(tmp_path, size):
    torch.manual_seed(0)
    module = DiffusionModule(
        img_size=16,
        embed_dim=32,
        num_heads=2,
        depth=2,
        skip=SkipSettings("butterworth", s=0.6, cutoff=0.7),
    )
    save(module, tmp_path / "model.ckpt")
    (skip,) = load_model(tmp_path / "model.ckpt", img_size=size).denoiser.backbone.long_skips
    assert skip.settings.cutoff == pytest.approx(0.7, abs=1e-5)
    assert skip.settings.s == pytest.approx(0.6, abs=1e-5)


def test_learned_cutoffs_below_the_waves_of_a_smaller_size_move_to_the_bound(tmp_path):
    sizes = {"img_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 2}
    module = DiffusionModule(**sizes, skip=SkipSettings("butterworth", cutoff=0.3))
    save(module, tmp_path / "model.ckpt")
    (skip,) = load_model(tmp_path / "model.ckpt", img_size=4).denoiser.backbone.long_skips
    assert skip.settings.cutoff == pytest.approx(0.5, abs=2e-3)  # half a bin of 2 x 2 tokens


def test_a_checkpoint_of_older_options_still_loads(tmp_path, capsys):
    """It learned s and the cutoff as functions of t, and a b, with flat arguments."""
    sizes = {"img_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 2}
    module = DiffusionModule(**sizes, skip=SkipSettings("butterworth"))
    save(module, tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    series = {"s": torch.tensor([0.3, 0.8, -0.4]), "cutoff": torch.tensor([-0.5, -1.0, 0.2])}
    for name, raw in series.items():
        content["state_dict"][f"denoiser.backbone.long_skips.0.learned.{name}.raw"] = raw
    content["state_dict"]["denoiser.backbone.long_skips.0.learned.b.raw"] = torch.tensor([0.4])
    content["hyper_parameters"] |= {
        "t_coefficients": 2,
        "train": "filters_then_all",
        "filters_steps": 500,
        **content["hyper_parameters"].pop("skip"),
        "learn_b": True,
        "order": 5,
    }
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.warns(Note) as caught:
        model = load_model(tmp_path / "model.ckpt")
    notes = " ".join(str(warning.message) for warning in caught)
    assert notes.count("was a function of t; its mean is used") == 2
    assert "their mean 1.197 is used" in notes
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    (skip,) = model.denoiser.backbone.long_skips
    assert skip.settings.b == pytest.approx(2 / (1 + math.exp(-0.4)))
    assert (skip.settings.filter, skip.settings.order) == ("butterworth", 5)
    bounds = {"s": (0, 2), "cutoff": (1 / 8, 2**0.5)}
    for name, (low, high) in bounds.items():
        terms = [raw * torch.cos(torch.pi * k * t) for k, raw in enumerate(series[name])]
        mean = (low + (high - low) * torch.sigmoid(sum(terms))).mean()
        assert getattr(skip.settings, name) == pytest.approx(float(mean), abs=2e-3)
    assert generate(model, 2, steps=2, progress=False).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("filter", ["none", "butterworth"])
def test_training_starts_from_official_weights(official, filter):
    """With s = 1 a new filter changes nothing: the loss is the pretrained model's."""
    path, _ = official
    sizes = {"img_size": 8, "embed_dim": 512, "num_heads": 8, "depth": 2}
    start = DiffusionModule(**sizes, skip=SkipSettings(filter), init_from=str(path)).denoiser
    pretrained = load_model(path).denoiser
    x0, eps = torch.randn(2, 6, 3, 8, 8)
    t = torch.linspace(0.05, 1, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            start.loss(x0, eps, t), pretrained.loss(x0, eps, t), atol=1e-6, rtol=1e-6
        )


def test_another_image_size(official):
    """Positions are interpolated: the same size keeps them, smooth ones stay what they were."""
    path, backbone = official
    same = load_model(path, img_size=8)
    assert torch.equal(same.denoiser.backbone.pos_embed, backbone.pos_embed)
    larger = load_model(path, img_size=16)
    assert larger.image_shape == (3, 16, 16)
    assert generate(larger, 1, steps=2, progress=False).shape == (1, 3, 16, 16)
    ramp = torch.linspace(0, 1, 4)[:, None].expand(4, 4).reshape(1, 16, 1)
    state = official_state(backbone)
    state["pos_embed"][:, 1:] = ramp
    torch.save(state, path)
    grid = load_model(path, img_size=16).denoiser.backbone.pos_embed[0, 1:, 0].view(8, 8)
    assert torch.allclose(grid[:, 0], grid[:, 7])
    assert (grid[1:, 0] > grid[:-1, 0]).all()
    assert torch.equal(larger.denoiser.backbone.pos_embed[:, 0], backbone.pos_embed[:, 0])


def test_what_the_official_layout_loses_is_said(tmp_path, capsys):
    torch.manual_seed(0)
    module = DiffusionModule(
        schedule="linear",
        img_size=8,
        embed_dim=32,
        num_heads=2,
        depth=2,
        skip=SkipSettings("chebyshev"),
        num_classes=2,
        class_dropout=0.0,
    )
    save(module, tmp_path / "model.ckpt", ["cat", "ship"])
    out = tmp_path / "model.pth"
    export_main([str(out), "--ckpt", str(tmp_path / "model.ckpt")])
    (note,) = capsys.readouterr().err.splitlines()
    for lost in ("filter chebyshev", "2 heads", "schedule linear", "last is no class", "names"):
        assert lost in note
    with pytest.raises(ValueError, match="give --num_heads"):
        load_model(out)
    again = load_model(out, num_heads=2, schedule="linear")
    assert (again.image_shape, again.class_names) == ((3, 8, 8), ["0", "1"])


def test_a_network_that_predicts_the_image_is_not_official(trained, tmp_path, capsys):
    command = [str(tmp_path / "model.pth"), "--ckpt", str(trained)]
    status, line = error_line(capsys, export_main, command)
    assert (status, "predicts x0; accepted in the official layout: eps" in line) == (2, True)
    assert not (tmp_path / "model.pth").exists()


def test_heads_of_no_published_model(tmp_path):
    """The table says 8 heads for 512 channels; a file that says nothing may have 4."""
    torch.manual_seed(0)
    backbone = UViT(img_size=8, embed_dim=512, num_heads=4, depth=2).eval()
    path = tmp_path / "model.pth"
    torch.save(official_state(backbone), path)
    sizes = {"img_size": 8, "embed_dim": 512, "num_heads": 4, "depth": 2}
    started = DiffusionModule(**sizes, init_from=str(path)).denoiser.backbone
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([3.0])
    loaded = load_model(path, num_heads=4).denoiser.backbone
    with torch.no_grad():
        for network in (started, loaded):
            torch.testing.assert_close(network(x, t), backbone(x, t))


@pytest.mark.parametrize(("count", "first"), [(10, "n00000000"), (1000, "tench")])
def test_imagenet_alone_has_names_for_its_folders(count, first, tmp_path):
    torch.manual_seed(0)
    module = DiffusionModule(img_size=8, embed_dim=32, num_heads=2, depth=2, num_classes=count)
    save(module, tmp_path / "model.ckpt", [f"n{k:08}" for k in range(count)])
    assert load_model(tmp_path / "model.ckpt").class_names[0] == first


@pytest.fixture
def bad(official, tmp_path):
    """Files that are not to be loaded, by name."""
    path, backbone = official
    state = official_state(backbone)
    victim = tmp_path / "executed"
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Payload(victim)))
    torch.save({"pos_embed": Payload(victim)}, tmp_path / "code.pth")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:-2000])
    torch.save({k: v for k, v in state.items() if k != "norm.bias"}, tmp_path / "less.pth")
    torch.save({**state, "context_embed.weight": torch.zeros(2)}, tmp_path / "more.pth")
    torch.save({**state, "norm.bias": torch.zeros(3)}, tmp_path / "shape.pth")
    torch.save({**state, "step": 5}, tmp_path / "step.pth")
    torch.save({**state, 3: state["norm.bias"]}, tmp_path / "number.pth")
    torch.save({**state, "pos_embed": torch.zeros(3)}, tmp_path / "flat.pth")
    for name, card in (("list", {"arguments": [1]}), ("names", {"arguments": {}})):
        metadata = {"uvit_lit": json.dumps({"class_names": None, **card})}
        save_file(state, tmp_path / f"{name}.safetensors", metadata)
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    whole = (tmp_path / "other.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:30])
    module = DiffusionModule(img_size=8, embed_dim=32, num_heads=2, depth=2)
    save(module, tmp_path / "text.ckpt")
    content = torch.load(tmp_path / "text.ckpt", weights_only=True)
    (tmp_path / "half.ckpt").write_bytes((tmp_path / "text.ckpt").read_bytes()[:9000])
    torch.save({**content, "state_dict": {"a": "b"}}, tmp_path / "text.ckpt")
    content["state_dict"].pop("denoiser.backbone.pos_embed")
    torch.save(content, tmp_path / "lost.ckpt")
    torch.save({**state, "norm.bias": state["norm.bias"] / 0}, tmp_path / "nan.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pth").read_bytes()
    key = re.search(rb"\d{9,}", old)  # of a storage
    (tmp_path / "key.pth").write_bytes(old[: key.start()] + b"x" + old[key.start() + 1 :])
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "hello.ckpt").write_text("hello")
    with zipfile.ZipFile(tmp_path / "archive.ckpt", "w") as archive:
        archive.writestr("a", "b")
    return victim


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bare.pth", "has code inside"),
        ("code.pth", "has code inside"),
        ("cut.pth", "damaged"),
        ("list.pth", "it is a list"),
        ("resnet.pth", "it lacks patch_embed.proj.weight"),
        ("less.pth", "norm.bias is missing"),
        ("more.pth", "context_embed.weight is too much"),
        ("shape.pth", "norm.bias is (3,) instead of (512,)"),
        ("nan.pth", "norm.bias is not finite"),
        ("key.pth", "damaged"),
        ("step.pth", "'step' is a int"),
        ("number.pth", "3 is a Tensor"),
        ("flat.pth", "it lacks pos_embed"),
        ("list.safetensors", "does not say its architecture"),
        ("names.safetensors", "does not say its architecture"),
        ("other.safetensors", "it lacks patch_embed.proj.weight"),
        ("text.ckpt", "'a' is a str"),
        ("lost.ckpt", "it lacks pos_embed"),
        ("half.ckpt", "damaged"),
        ("empty.ckpt", "damaged"),
        ("hello.ckpt", "damaged"),
        ("archive.ckpt", "damaged"),
        ("cut.safetensors", "damaged"),
    ],
)
def test_a_bad_file_is_one_line_and_nothing_is_executed(bad, tmp_path, capsys, name, message):
    out = tmp_path / "out"
    arguments = ["--ckpt", str(tmp_path / name), "--out", str(out)]
    status, line = error_line(capsys, sample_main, arguments)
    assert status == 2
    assert message in line
    assert name in line
    assert not bad.exists()
    assert not out.exists()


@pytest.fixture
def small(tmp_path):
    """A small model as a checkpoint and as safetensors, by suffix."""
    torch.manual_seed(0)
    sizes = {"img_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2, "num_classes": 2}
    save(DiffusionModule(**sizes), tmp_path / "model.ckpt", ["cat", "ship"])
    export_main([str(tmp_path / "model.safetensors"), "--ckpt", str(tmp_path / "model.ckpt")])
    return {path.suffix: path for path in tmp_path.iterdir()}


def read(path):
    """Metadata and tensors of a .safetensors file."""
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


HUGE = 10**400


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("arguments", {"embed_dim": 32.0}, "embed_dim is 32.0; accepted: of type int"),
        ("arguments", {"embed_dim": 10**9}, "embed_dim is 1000000000; accepted: 32, as"),
        ("arguments", {"embed_dim": HUGE}, "embed_dim is a huge number; accepted: 32"),
        ("arguments", {"depth": 10**9}, "depth is 1000000000; accepted: 2, as"),
        ("arguments", {"img_size": 65536}, "img_size is 65536; accepted: 8, as"),
        ("arguments", {"num_heads": 0}, "num_heads is 0; accepted: a divisor of 32"),
        ("arguments", {"num_heads": True}, "num_heads is True; accepted: of type int"),
        ("arguments", {"mlp_ratio": 1e300}, "mlp_ratio is 1e+300; accepted: 4, as"),
        ("arguments", {"mlp_ratio": float("nan")}, "mlp_ratio is nan; accepted: of type float"),
        ("arguments", {"num_classes": -1}, "num_classes is -1; accepted: 2, as"),
        ("arguments", {"skip": {"filter": ["step"]}}, "skip.filter is a list; accepted: of type"),
        ("arguments", {"skip": {"s": -1, "filter": "step"}}, "s is -1"),
        ("schedule", {}, "schedule is a dict; accepted: vp"),
        ("prediction", "score", "prediction is 'score'; accepted: eps"),
        ("class_names", "ab", "class_names is 'ab'; accepted: a list of texts"),
        ("can_guide", 1, "can_guide is 1; accepted: true or false"),
        ("step", -1, "step is -1; accepted: a number of steps"),
        ("data", {"name": 3}, "data.name is 3; accepted: a text"),
        ("skips", 3, "skips is 3; accepted: a text"),
        ("tail", 3, "does not say its architecture"),
    ],
)
def test_a_card_that_lies_is_one_line(small, tmp_path, capsys, where, value, message):
    metadata, tensors = read(small[".safetensors"])
    card = json.loads(metadata["uvit_lit"])
    card[where] = card["arguments"] | value if where == "arguments" else value
    save_file(tensors, tmp_path / "lies.safetensors", {"uvit_lit": json.dumps(card)})
    command = ["--ckpt", str(tmp_path / "lies.safetensors"), "--out", str(tmp_path / "out")]
    status, line = error_line(capsys, sample_main, command)
    assert (status, message in line) == (2, True), line


@pytest.mark.parametrize("card", ["null", "[]", "3", '"text"', "{", "[" * 100_000, "9" * 5000])
def test_a_card_that_is_none_is_one_line(small, tmp_path, capsys, card):
    _, tensors = read(small[".safetensors"])
    save_file(tensors, tmp_path / "lies.safetensors", {"uvit_lit": card})
    status, line = error_line(capsys, sample_main, ["--ckpt", str(tmp_path / "lies.safetensors")])
    assert (status, "does not say its architecture" in line) == (2, True)


def nested():
    """Lists in lists that take 2^60 characters to write down."""
    value = []
    for _ in range(60):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hyper_parameters": None}, "was not written by train.py"),
        ({"hyper_parameters": [1]}, "was not written by train.py"),
        ({"state_dict": None}, "is no state dict"),
        ({"global_step": "7"}, "step is '7'"),
        ({"global_step": 10**100}, "step is a huge number"),
        ({"ImageData": {"class_names": [1, 2]}}, "class_names is a list"),
        ({"ImageData": []}, "was not written by train.py"),
        ({"datamodule_hyper_parameters": {"name": nested()}}, "data.name is a list"),
    ],
    ids=[
        "no hyper-parameters",
        "a list",
        "no tensors",
        "text",
        "huge",
        "numbers",
        "other",
        "nested",
    ],
)
def test_a_checkpoint_of_wrong_types_is_one_line(small, tmp_path, capsys, change, message):
    content = torch.load(small[".ckpt"], weights_only=True)
    torch.save({**content, **change}, tmp_path / "lies.ckpt")
    status, line = error_line(capsys, sample_main, ["--ckpt", str(tmp_path / "lies.ckpt")])
    assert (status, message in line) == (2, True), line


TERA = 2**38


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(1, TERA, 32), "pos_embed' is larger than its numbers"),
        (torch.zeros(1, 0, 32), "it lacks pos_embed"),
        (torch.tensor(1.0), "it lacks pos_embed"),
        (torch.zeros(1, 17, 32, dtype=torch.int64), "pos_embed' is torch.int64"),
        (torch.zeros(1, 17, 32).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(1, 17, 32, device="meta"), "on meta"),
        (torch.full((1, 18, 32), torch.inf), "pos_embed is not finite"),
        (torch.zeros(1, 19, 32), "pos_embed is (1, 19, 32) instead of (1, 18, 32)"),
    ],
    ids=["stride 0", "empty", "no axes", "integers", "sparse", "meta", "infinite", "shape"],
)
def test_a_tensor_that_lies_is_one_line(small, tmp_path, capsys, tensor, message):
    content = torch.load(small[".ckpt"], weights_only=True)
    content["state_dict"]["denoiser.backbone.pos_embed"] = tensor
    torch.save(content, tmp_path / "lies.ckpt")
    status, line = error_line(capsys, sample_main, ["--ckpt", str(tmp_path / "lies.ckpt")])
    assert (status, message in line) == (2, True), line


def header(size, **tensors):
    """A .safetensors file that says its header has this size."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


@pytest.mark.parametrize(
    "content",
    [
        header(2**40),
        header(2**64 - 1),
        header(None, pos_embed={"dtype": "F32", "shape": [TERA], "data_offsets": [0, 4 * TERA]}),
        header(None, pos_embed={"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}),
        header(None, pos_embed={"dtype": "F32", "shape": [1], "data_offsets": [2**63, 2**63 + 4]}),
    ],
    ids=["a terabyte", "all", "of a tensor", "overflow", "offset"],
)
def test_a_forged_header_takes_neither_memory_nor_time(tmp_path, capsys, content):
    (tmp_path / "forged.safetensors").write_bytes(content)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    try:
        room = pages * resource.getpagesize() + 2**29
        resource.setrlimit(resource.RLIMIT_AS, (room, limits[1]))
        command = ["--ckpt", str(tmp_path / "forged.safetensors")]
        status, line = error_line(capsys, sample_main, command)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert (status, "it is damaged" in line) == (2, True)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_flipped_bit_in_a_tensor_is_noticed(small, capsys, suffix):
    path = small[suffix]
    load_model(path)
    content = bytearray(path.read_bytes())
    value = load_model(path).denoiser.backbone.mid_block.attn.qkv.weight.detach()
    place = content.find(value.numpy().tobytes()) + 1001  # in the fraction of a number
    content[place] ^= 1
    path.write_bytes(content)
    status, line = error_line(capsys, sample_main, ["--ckpt", str(path)])
    assert (status, "damaged" in line) == (2, True)


def test_the_checksum_covers_the_card_and_old_files_without_one_load(small, capsys):
    path = small[".safetensors"]
    metadata, tensors = read(path)
    save_file(tensors, path, {"uvit_lit": metadata["uvit_lit"]})
    load_model(path)
    changed = metadata["uvit_lit"].replace('"cutoff": 0.3', '"cutoff": 0.4')
    assert changed != metadata["uvit_lit"]
    save_file(tensors, path, {**metadata, "uvit_lit": changed})
    status, line = error_line(capsys, sample_main, ["--ckpt", str(path)])
    assert (status, "its checksum is another" in line) == (2, True)


def test_a_bomb_in_a_checkpoint_is_refused(small, tmp_path, capsys):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**24))
    status, line = error_line(capsys, sample_main, ["--ckpt", str(path)])
    assert (status, "damaged" in line) == (2, True)


def test_a_bad_file_does_not_start_a_run_of_another_size(bad, tmp_path):
    sizes = {"img_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 2}
    with pytest.raises(ValueError, match="it lacks pos_embed"):
        DiffusionModule(**sizes, init_from=str(tmp_path / "lost.ckpt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--img_size", "9"], "img_size is 9; accepted: a positive multiple of 2"),
        (["--schedule", "edm"], "schedule is 'edm'; accepted: vp"),
        (["--num_heads", "7"], "num_heads is 7; accepted: a divisor of 512"),
    ],
)
def test_wrong_options_of_official_weights(official, capsys, arguments, message):
    status, line = error_line(capsys, sample_main, ["--ckpt", str(official[0]), *arguments])
    assert status == 2
    assert message in line


def test_options_may_not_contradict_a_file_that_says(trained, capsys):
    status, line = error_line(capsys, sample_main, ["--ckpt", str(trained), "--schedule", "sd"])
    assert status == 2
    assert "schedule is sd, but" in line


@pytest.mark.parametrize(
    ("out", "message"),
    [("model.bin", ".safetensors, .pth or .onnx"), ("there.pth", "exists already")],
)
def test_an_export_that_cannot_be(trained, tmp_path, capsys, out, message):
    (tmp_path / "there.pth").write_text("mine")
    command = [str(tmp_path / out), "--ckpt", str(trained)]
    status, line = error_line(capsys, export_main, command)
    assert status == 2
    assert message in line
    assert (tmp_path / "there.pth").read_text() == "mine"


def test_save_pretrained_and_back(trained, tmp_path):
    model = load_model(trained)
    model.licence = "cc-by-4.0"
    model.save_pretrained(tmp_path / "hub", model_card_kwargs={"results": "KID 0.1, 5 images"})
    assert {p.name for p in (tmp_path / "hub").iterdir()} == {"model.safetensors", "README.md"}
    card = (tmp_path / "hub" / "README.md").read_text()
    for promised in (
        "license: cc-by-4.0",
        "no filter, b 1; no filter, b 1",
        "| Training steps | 8 |",
        "KID 0.1, 5 images",
        "cat",
    ):
        assert promised in card
    assert str(trained.parents[4]) not in card  # nobody's paths
    again = Model.from_pretrained(tmp_path / "hub")
    images = [generate(m, 2, steps=2, progress=False) for m in (model, again)]
    assert torch.equal(*images)


def test_a_directory_as_on_the_hub(trained, tmp_path):
    (tmp_path / "results.md").write_text("KID 0.1, 5 images")
    out = tmp_path / "named"
    export_main(
        [
            str(out),
            "--ckpt",
            str(trained),
            "--results",
            str(tmp_path / "results.md"),
            "--data",
            "cifar10",
        ]
    )
    assert "KID 0.1, 5 images" in (out / "README.md").read_text()
    model = load_model(out)
    assert (model.name, model.data) == ("named", {"name": "cifar10"})


def default_of(path):
    """The default of a model, and the skips that an s without more acts on."""
    model = load_model(path)
    with model.skips(s=0.5):
        chosen = [skip.override is not None for skip in model.denoiser.backbone.long_skips]
    return model.default_skips, chosen


def test_a_file_names_the_skips_that_a_single_value_acts_on(trained, tmp_path, capsys):
    assert default_of(trained) == ("all", [True, True])
    out = tmp_path / "model.safetensors"
    export_main([str(out), "--ckpt", str(trained), "--skips", "inner"])
    assert default_of(out) == ("inner", [False, True])
    export_main([str(tmp_path / "again.safetensors"), "--ckpt", str(out)])
    assert default_of(tmp_path / "again.safetensors")[0] == "inner"
    Model.from_pretrained(tmp_path).save_pretrained(tmp_path / "hub")
    assert default_of(tmp_path / "hub")[0] == "inner"
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "\nskips: inner\n" in card
    assert "| Long skips that a single s or b acts on | inner |" in card
    command = [str(tmp_path / "bad.safetensors"), "--ckpt", str(trained), "--skips", "2"]
    status, line = error_line(capsys, export_main, command)
    assert (status, "skips is '2'; accepted: all, inner" in line) == (2, True)
    assert not (tmp_path / "bad.safetensors").exists()


def test_the_card_beside_the_weights_of_a_directory_decides(trained, tmp_path, capsys):
    """It is text: another default does not need another file of weights."""
    directory = tmp_path / "model"
    export_main([str(directory), "--ckpt", str(trained)])
    card = directory / "README.md"
    written = card.read_text()
    for value, expected in (("outer", "outer"), ("1", "1"), ("1, 0", "1, 0")):
        card.write_text(written.replace("skips: all", f"skips: {value}"))
        assert load_model(directory).default_skips == expected
    card.write_text(written.replace("skips: all\n", ""))
    assert load_model(directory).default_skips == "all"
    card.write_text("# A page without a header\n")
    assert load_model(directory).default_skips == "all"
    for header, message in (("skips: 7", "skips is '7'; accepted: all"), ("a: [", "is not YAML")):
        card.write_text(f"---\n{header}\n---\n")
        status, line = error_line(capsys, sample_main, ["--ckpt", str(directory)])
        assert (status, message in line, str(directory) in line) == (2, True, True)


def test_a_run_names_its_default(tmp_path):
    sizes = {"img_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4}
    save(DiffusionModule(**sizes, skips="1"), tmp_path / "model.ckpt")
    assert default_of(tmp_path / "model.ckpt") == ("1", [False, True])
    with pytest.raises(ValueError, match="skips is '2'"):
        DiffusionModule(**sizes, skips="2")


def test_push_to_hub_and_download(trained, tmp_path, capsys, monkeypatch):
    """The hub is a directory here; what goes over the network is the library's."""
    hub = tmp_path / "hub"

    def upload(self, *, folder_path, **_):
        assert sorted(os.listdir(folder_path)) == ["README.md", "model.safetensors"]
        shutil.copytree(folder_path, hub)
        return "https://huggingface.co/user/name"

    monkeypatch.setattr(
        HfApi, "create_repo", lambda *_, repo_id, **__: RepoUrl(f"https://huggingface.co/{repo_id}")
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    results = tmp_path / "results.md"
    results.write_text("KID 0.2")
    export_main(["hf://user/name", "--ckpt", str(trained), "--results", str(results)])
    assert "huggingface.co/user/name" in capsys.readouterr().out
    assert "KID 0.2" in (hub / "README.md").read_text()
    fetched = []
    monkeypatch.setattr(checkpoint, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(
        checkpoint, "hf_hub_download", lambda name, file, **_: fetched.append(name) or hub / file
    )
    assert load_model("hf://user/name").step == 8
    assert fetched == ["user/name"]


def test_results_for_the_card_are_text(trained, tmp_path, capsys):
    (tmp_path / "results.md").write_bytes("caf\u00e9".encode("latin-1"))
    command = [str(tmp_path / "out"), "--ckpt", str(trained)]
    status, line = error_line(
        capsys, export_main, [*command, "--results", str(tmp_path / "results.md")]
    )
    assert (status, "results.md is not in UTF-8; accepted: Markdown" in line) == (2, True)
    assert not (tmp_path / "out").exists()


def test_the_name_of_a_model_of_the_hub(trained, tmp_path):
    """The cache of the Hub holds links to files that are named by their hash."""
    blob = tmp_path / "models--user--name" / "blobs" / ("0" * 64)
    blob.parent.mkdir(parents=True)
    export_main([str(tmp_path / "model.safetensors"), "--ckpt", str(trained)])
    (tmp_path / "model.safetensors").rename(blob)
    link = blob.parents[1] / "snapshots" / "main" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    assert load_model(link).name == "name"


def test_no_network_for_the_hub(capsys, tmp_path, monkeypatch):
    asked = []

    def offline(*_, **__):
        asked.append(1)
        raise OSError("no network")

    monkeypatch.setattr(checkpoint, "get_hf_file_metadata", offline)
    monkeypatch.setattr(checkpoint, "hf_hub_download", offline)
    status, line = error_line(capsys, sample_main, ["--ckpt", "hf://user/name"])
    assert (status, line) == (1, "error: hf://user/name: no network")
    assert len(asked) == 1


def test_without_a_network_the_weights_of_last_time_serve(capsys, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(checkpoint, "get_hf_file_metadata", offline)
    stored = str(tmp_path / "model.safetensors")
    monkeypatch.setattr(checkpoint, "try_to_load_from_cache", lambda *_, **__: stored)
    assert str(find_checkpoint("hf://user/name")) == stored


def test_a_revision_of_the_hub_is_asked_for_and_no_other(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(checkpoint, "get_hf_file_metadata", lambda url, **_: asked.append(url))
    monkeypatch.setattr(
        checkpoint, "hf_hub_download", lambda *names, **chosen: asked.append(chosen) or tmp_path
    )
    find_checkpoint("hf://user/name@0123abc")
    assert "/user/name/resolve/0123abc/model.safetensors" in asked[0]
    assert asked[1] == {"revision": "0123abc"}


@pytest.mark.parametrize(
    "name", ["", "a", "a/b/c", "a b/c", "../up", "user/na--me", "user/x.git", "user/x@"]
)
def test_a_wrong_name_on_the_hub_is_refused_before_the_network(capsys, monkeypatch, name):
    monkeypatch.setattr(checkpoint, "get_hf_file_metadata", None)
    status, line = error_line(capsys, sample_main, ["--ckpt", f"hf://{name}"])
    assert (status, "accepted: hf://user/name" in line) == (2, True)


def test_no_network_for_an_export(trained, capsys, monkeypatch):
    class ConnectError(Exception):
        """The library beneath has errors of its own."""

    def offline(*_, **__):
        raise ConnectError

    monkeypatch.setattr(HfApi, "create_repo", offline)
    command = ["hf://user/name", "--ckpt", str(trained)]
    status, line = error_line(capsys, export_main, command)
    assert (status, line) == (1, "error: hf://user/name: ConnectError")


def test_class_names():
    imagenet = class_names(1000)
    assert find_class("arctic fox", imagenet) == 279  # of ImageNet's 1,000, counted from 0
    assert find_class("macaw", imagenet) == 88
    assert find_class("Balloon", imagenet) == 417
    assert find_class("cardigan", imagenet) == 474  # the Cardigan is a dog
    assert find_class("3", imagenet) == find_class(3, imagenet) == 3
    assert class_names(10) == CIFAR10
    assert class_names(3) == ["0", "1", "2"]
    with pytest.raises(ValueError, match="arctic fox"):
        find_class("artic fox", imagenet)
    with pytest.raises(ValueError, match="from 0 to 999"):
        find_class("1000", imagenet)


def test_writing_leaves_the_weights_as_they_are(official, tmp_path):
    path, _ = official
    weights = read_weights(path)
    complete(weights, path)
    before = {name: tensor.clone() for name, tensor in weights.tensors.items()}
    write_official(weights, tmp_path / "out.pth")
    assert all(torch.equal(before[name], tensor) for name, tensor in weights.tensors.items())
