"""The ONNX file gives what the model gives, whatever s, b and the cutoff."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import error_line

from uvit_lit import load_model
from uvit_lit.cli.export import main
from uvit_lit.diffusion import Denoiser
from uvit_lit.model import Model
from uvit_lit.onnx import DTYPES, NUMBERS, AdjustableDenoiser, describe_model, export_onnx
from uvit_lit.settings import SkipSettings
from uvit_lit.weights import BACKBONES

pytest.importorskip("onnxscript", reason="the extra export is not installed")
onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
runtime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")


SIZES = {
    "uvit": {"img_size": 12, "patch_size": 2, "embed_dim": 32, "depth": 4, "num_heads": 2},
    "unet": {"img_size": 12, "channels": (8, 16), "attention": (6,), "head_dim": 8}
    | {"norm_groups": 4},
}


def make_model(schedule="cosine", prediction="x0", backbone="uvit", **arguments) -> Model:
    """A small model of random weights whose long skips matter."""
    torch.manual_seed(0)
    settings = {f.name for f in dataclasses.fields(SkipSettings)}
    chosen = {k: v for k, v in arguments.items() if k in settings}
    skip = SkipSettings(**({"s": 0.9, **chosen} if "filter" in chosen else chosen))
    given = {"num_classes": 3, **{k: v for k, v in arguments.items() if k not in settings}}
    arguments = {**SIZES[backbone], **given, "skip": skip}
    network = BACKBONES[backbone](**arguments)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1 and backbone == "uvit":
                weight.normal_(std=0.2)
    names = ["a", "b", "c"][: arguments["num_classes"]]
    denoiser = Denoiser(network, schedule, prediction).eval()
    return Model(
        denoiser=denoiser,
        path=Path("small.ckpt"),
        arguments=arguments,
        schedule=schedule,
        prediction=prediction,
        class_names=names,
        can_guide=bool(names),
        backbone=backbone,
        step=7,
        data={"name": "x"},
    )


class Session:
    """An ONNX file in onnxruntime, on one thread."""

    def __init__(self, path):
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = runtime.InferenceSession(str(path), options)
        self.card = json.loads(self.session.get_modelmeta().custom_metadata_map["uvit_lit"])
        self.inputs = [entry.name for entry in self.session.get_inputs()]

    def __call__(self, x_t, t, label, **numbers):
        """The clean image; what is not named of s, b and cutoff is as trained."""
        trained = {
            name: [skip[name] for skip in self.card["long_skips"]] for name in ("s", "b", "cutoff")
        }
        feeds = {"x_t": x_t.numpy(), "t": t.numpy()}
        if label is not None:
            feeds["label"] = label.numpy()
        for name, values in {**trained, **numbers}.items():
            feeds[name] = np.asarray(values, dtype=np.float32)
        return torch.from_numpy(self.session.run(["x0"], feeds)[0])


def draw(model, batch=5):
    """Noisy images, times in [0.1, 0.95] and labels with no class among them."""
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch, *model.image_shape, generator=generator)
    classes = len(model.class_names)
    return x_t, torch.linspace(0.1, 0.95, batch), torch.arange(batch) % (classes + 1)


def of_torch(model, inputs, **settings):
    with torch.no_grad(), model.skips(skips="all", **settings):
        return model.denoiser(*inputs)


CASES = {
    "no filter": {},
    "step": {"filter": "step", "s": 0.8, "b": 1.2, "b_channels": 0.5},
    "butterworth": {
        "filter": "butterworth",
        "s": 0.8,
        "b": 1.1,
        "schedule": "vp",
        "prediction": "eps",
    },
    "chebyshev": {"filter": "chebyshev", "order": 5, "ripple": 2.0, "b": 1.1},
    "chebyshev2": {"filter": "chebyshev2", "prediction": "v", "num_classes": 0},
    "freeu_box": {"filter": "freeu_box", "s": 0.7, "schedule": "linear"},
    "U-Net": {"backbone": "unet", "filter": "butterworth", "s": 0.8, "b": 1.1},
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A model with a learned filter, what its export returned, and its file."""
    model = make_model(**CASES["butterworth"])
    model.default_skips = "inner"
    path = tmp_path_factory.mktemp("learned") / "model.onnx"
    return model, export_onnx(model, path), Session(path)


def check(session, model):
    """The file gives what the model gives, as trained and at three settings."""
    x_t, t, label = draw(model)
    inputs = x_t, t, label if model.class_names else None
    trained = of_torch(model, inputs)
    tolerance = 1e-4 * max(1, trained.abs().max())  # (x_t - sigma eps) / alpha may be large
    assert torch.allclose(session(*inputs), trained, rtol=0, atol=tolerance)
    times = len(session.card["long_skips"]) // 2
    for pairs in (
        {"s": [0.5, 1.0], "b": [1.0, 1.3]},
        {"s": [0.0, 1.5], "cutoff": [0.6, 1.1]},
        {"s": [0.3, 0.3], "b": [1.4, 0.0], "cutoff": [0.1, 2**0.5]},
    ):
        numbers = {name: times * pair for name, pair in pairs.items()}
        expected = of_torch(model, inputs, **numbers)
        assert (expected - trained).abs().max() > 100 * tolerance  # the setting changes something
        assert torch.allclose(session(*inputs, **numbers), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_each_number_of_each_long_skip_reaches_the_network(backbone):
    model = make_model(backbone=backbone, filter="butterworth", s=0.8, cutoff=0.4)
    inputs, network = draw(model), AdjustableDenoiser(model)
    trained = {
        name: torch.tensor([s[name] for s in describe_model(model)["long_skips"]])
        for name in NUMBERS
    }
    assert torch.allclose(network(*inputs, **trained), of_torch(model, inputs), atol=1e-5)
    for name in NUMBERS:
        for number in range(len(trained[name])):
            values = trained[name].clone()
            values[number] += 0.3
            changed = network(*inputs, **{**trained, name: values})
            expected = of_torch(model, inputs, **{name: values.tolist()})
            assert (expected - of_torch(model, inputs)).abs().max() > 1e-3
            assert torch.allclose(changed, expected, atol=1e-5)


def test_one_file_serves_every_setting(learned):
    model, _, session = learned
    check(session, model)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != "butterworth"])
def test_every_family(case, tmp_path):
    model = make_model(**CASES[case])
    export_onnx(model, tmp_path / "model.onnx")
    check(Session(tmp_path / "model.onnx"), model)


def test_the_file_says_what_a_program_needs(learned):
    model, returned, session = learned
    card = session.card
    assert card == json.loads(json.dumps(returned)) == json.loads(json.dumps(describe_model(model)))
    assert session.inputs == ["x_t", "t", "label", "s", "b", "cutoff"]
    assert card["image_shape"] == [3, 12, 12]
    assert card["class_names"] == ["a", "b", "c"]
    assert (card["training_steps"], card["schedule"]) == (7, "vp")
    assert card["skips"] == {"s": [1], "cutoff": [1], "b": [1]}
    (outer, inner) = card["long_skips"]
    assert outer["filter"] == "butterworth"
    assert inner["s"] == pytest.approx(0.8)
    assert inner["b"] == pytest.approx(1.1)
    alpha, _ = model.denoiser.schedule.alpha_sigma(torch.tensor([0.0, 0.25, 1.0]))
    assert np.exp([card["log_alpha"][n] for n in (0, 250, 1000)]) == pytest.approx(alpha.numpy())


@pytest.mark.slow
def test_stored_weights_change_the_size_and_hardly_the_image(tmp_path):
    model = make_model(embed_dim=128)
    inputs, settings = draw(model), {"s": [0.5, 0.5], "b": [1.2, 1.2]}
    expected = of_torch(model, inputs, **settings)
    error, size = {}, {}
    for dtype in DTYPES:
        path = tmp_path / f"{dtype}.onnx"
        export_onnx(model, path, dtype)
        error[dtype] = (Session(path)(*inputs, **settings) - expected).std() / expected.std()
        size[dtype] = path.stat().st_size
    assert size["int8"] < 0.7 * size["float16"] < 0.49 * size["float32"]
    assert error["float32"] < 1e-5 < error["float16"] < 2e-3 < error["int8"] < 5e-2


@pytest.mark.slow
def test_the_command(trained, tmp_path, capsys):
    main([str(tmp_path / "model.onnx"), "--ckpt", str(trained), "--dtype", "int8"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "model.onnx")
    session = Session(tmp_path / "model.onnx")
    inputs = draw(model := load_model(trained))
    expected = of_torch(model, inputs, s=0.5)
    assert torch.allclose(session(*inputs, s=[0.5, 0.5]), expected, atol=0.05)
    assert onnx.load(tmp_path / "model.onnx").ir_version


@pytest.mark.parametrize("out", ["model.safetensors", "model.pth", "directory"])
def test_int8_is_for_onnx_alone(trained, tmp_path, capsys, out):
    command = [str(tmp_path / out), "--ckpt", str(trained), "--dtype", "int8"]
    status, line = error_line(capsys, main, command)
    assert status == 2
    assert "int8" in line
    assert not (tmp_path / out).exists()


@pytest.mark.slow
def test_the_shipped_model(tmp_path):
    model = load_model()
    inputs = draw(model, batch=11)
    for dtype, tolerance in (("float32", 1e-4), ("float16", 1e-4), ("int8", 0.1)):
        export_onnx(model, tmp_path / f"{dtype}.onnx", dtype)
        session = Session(tmp_path / f"{dtype}.onnx")
        for numbers in (
            {},
            {"s": [1, 1, 1, 0.5], "b": [1, 1, 1, 1.3]},
            {"s": [0.9, 0.7, 0.5, 0.0], "b": [1.0, 1.1, 1.2, 1.4], "cutoff": [0.2, 0.3, 0.6, 1.2]},
        ):
            expected = of_torch(model, inputs, **numbers)
            assert torch.allclose(session(*inputs, **numbers), expected, atol=tolerance)
