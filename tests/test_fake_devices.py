"""Devices that are not here: what a GPU or a Mac computes is what the CPU does, where it should be.

``accelerator`` has the numbers; the fake tensors of torch have none, but torch's own rules of what
may meet on a device; ``meta`` has shapes alone.
"""

import pytest
import torch
from accelerator import Elsewhere, accelerator
from lightning.pytorch import Trainer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from uvit_lit.attach import modulate
from uvit_lit.data.datamodule import ImageData
from uvit_lit.families import FILTERS
from uvit_lit.filters import radial_power
from uvit_lit.guidance import Guided, WithSkips, low_frequencies
from uvit_lit.progress import progress
from uvit_lit.sampling import SOLVERS, invert, regenerate, sample
from uvit_lit.settings import SkipSettings
from uvit_lit.training.callbacks import LossByTime, MovingAverage
from uvit_lit.training.module import DiffusionModule

SMALL = {"img_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
LEARNED = SkipSettings("butterworth", s=0.9)
DEVICES = ("cuda:0", "mps")
UNET = {"img_size": 8, "channels": (8, 16), "attention": (4,), "head_dim": 8, "norm_groups": 4}


def make(**options):
    torch.manual_seed(0)
    sizes = UNET if options.get("backbone") == "unet" else SMALL
    return DiffusionModule(**sizes, num_classes=2, **options)


def on_device(name, function):
    """Call a function with the name of a device; with the CPU's there is nothing to pretend."""
    if name == "cpu":
        return function("cpu", [])
    with accelerator(name) as machine:
        return function(name, machine.waits)


def numbers(tensors):
    """On the CPU, with no accelerator any more."""
    return [(x.on_cpu if isinstance(x, Elsewhere) else x).detach() for x in tensors]


def train(module, device, waits):
    """Two steps of a fit, without what is logged; what was computed, and what was waited for."""
    trainer = Trainer(accelerator="cpu", logger=False, max_steps=4, enable_progress_bar=False)
    module.trainer, module.log = trainer, lambda *_, **__: None
    average, by_time, data = MovingAverage(), LossByTime(), ImageData("shapes", image_size=8)
    average.setup(trainer, module, "fit")
    module.to(device)
    average.on_fit_start(trainer, module)
    (optimizer,), _ = module.configure_optimizers()
    module.on_train_start()
    by_time.on_train_start(trainer, module)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=generator)
    batches = []
    for seed in (5, 6):
        batch = {
            "pixels": pixels,
            "label": torch.tensor([0, 1, 1, 0]),
            "flip": pixels[:, 0, 0, 0] > 9,
        }
        batches.append({**{k: v.to(device) for k, v in batch.items()}, "seed": seed})
    waits.clear()
    for k, batch in enumerate(batches):
        out = module.training_step(data.on_after_batch_transfer(batch, 0), k)
        out["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(module)
        by_time._add(by_time.training, out)
    waited = list(waits)
    averages = list(average._average_model.module.parameters())
    tensors = [*module.parameters(), *averages, by_time.training, module.first_wrong_step]
    assert {x.device.type for x in tensors} == {torch.device(device).type}
    return numbers(tensors), waited


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "skip": LEARNED},
        {"optimizer": "muon", "skip": SkipSettings("chebyshev2", s=0.9), "schedule": "cosine"},
        {"schedule": "linear", "prediction": "v", "loss_weight": "velocity", "log_ratio": (0.5, 1)},
        {"train": "filters", "skip": SkipSettings("chebyshev", s=0.9), "prediction": "x0"},
        {"skip": SkipSettings("step", s=0.5, b=1.2, b_channels=0.5), "grad_checkpoint": True},
        {"backbone": "unet", "skip": LEARNED},
        {"cfg": 3.0, "cfg_range": (0.25, 0.75)},
    ],
    ids=["adamw", "muon", "velocity", "filters", "checkpoint", "unet", "guided"],
)
def test_a_training_step_stays_on_its_device_and_never_waits(device, options):
    here, _ = on_device("cpu", lambda *to: train(make(**options), *to))
    there, waits = on_device(device, lambda *to: train(make(**options), *to))
    if device == "cuda:0":  # without float64 the schedule is computed on the CPU
        assert waits == []
    for ours, theirs in zip(here, there, strict=True):
        assert theirs.isfinite().all()
        if options.get("optimizer") != "muon":  # which is in bfloat16 where there is an accelerator
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def draw(model, device, solver="dpmpp", shape=(3, 8, 8)):
    """Three steps; without the inference mode of ``sample``, which no tensor of ours has."""
    with torch.no_grad():
        return sample.__wrapped__(
            model.to(device).eval(),
            shape,
            [1, 2],
            [0, 1],
            solver=solver,
            steps=3,
            device=device,
            batch_size=2,
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_draws_the_images_of_the_cpu(device, solver):
    def call(where, waits):
        return draw(make(schedule="cosine", skip=LEARNED).denoiser, where, solver)

    torch.testing.assert_close(on_device(device, call), on_device("cpu", call))


def test_sampling_waits_for_the_last_images_alone():
    def call(where, waits):
        denoiser = make(skip=LEARNED).denoiser.to(where)
        waits.clear()
        draw(denoiser, where)
        return waits

    noise, labels, images = "copy to cuda:0", "tensor", "copy to cpu"
    assert on_device("cuda:0", call) == [noise, labels, images]


def guided(kind):
    denoiser, other = (make(schedule=name).denoiser for name in ("vp", "cosine"))
    return {
        "classes": lambda: Guided(denoiser, 2.0, t_range=(0.2, 0.9)),
        "rescaled": lambda: Guided(denoiser, 2.0, rescale=0.5),
        "bands": lambda: Guided(denoiser, (2.0, 1.5), cutoff=0.3),
        "weak": lambda: Guided(denoiser, 2.0, other),
        "skips": lambda: Guided(denoiser, 2.0, WithSkips(denoiser, s=0.3, b=1.2)),
    }[kind]()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["classes", "rescaled", "bands", "weak", "skips"])
def test_guidance_draws_the_images_of_the_cpu(device, kind):
    there, here = (
        on_device(where, lambda to, _: draw(guided(kind), to)) for where in (device, "cpu")
    )
    torch.testing.assert_close(there, here)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("filter", FILTERS)
def test_settings_of_the_skips_follow_the_model(device, filter):
    """Set before and after the model moves, and in a window."""

    def call(where, waits):
        denoiser = make(skip=SkipSettings(filter, s=1.0 if filter == "none" else 0.5)).denoiser
        with denoiser.skips(s=0.3, b=1.2, b_channels=0.5):
            before = draw(denoiser, where)
        with denoiser.skips((0.3, 0.8), 0.1, s=0.3, filter="step", b=1.2, b_map="constant"):
            return torch.cat([before, draw(denoiser, where)])

    torch.testing.assert_close(on_device(device, call), on_device("cpu", call))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backbone", ["uvit", "unet"])
def test_modulations_follow_a_network_of_others(device, backbone):
    def call(where, waits):
        ours = make(backbone=backbone).denoiser.backbone
        network = ours if backbone == "uvit" else ours.unet
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(where)
        t = torch.tensor([100.0, 900.0], device=where)
        y = torch.tensor([0, 1], device=where)
        outputs = []
        with modulate(network, s=0.3, b=1.3, t_range=(0.5, 1.0), t_fade=0.1):
            outputs.append(network.to(where)(x, t, y))
        with modulate(network, learn=("s", "cutoff"), filter="chebyshev", s=0.6) as attached:
            outputs.append(network(x, t, y))
        outputs = [getattr(output, "sample", output) for output in outputs]
        outputs[1].square().mean().backward()
        assert {p.grad.device.type for p in attached.parameters()} == {torch.device(where).type}
        return numbers([*outputs, *(p.grad for p in attached.parameters())])

    there, here = on_device(device, call), on_device("cpu", call)
    torch.testing.assert_close(there, here)


@pytest.mark.parametrize("device", DEVICES)
def test_editing_follows_the_model(device):
    def call(where, waits):
        denoiser = make(skip=LEARNED).denoiser.to(where).eval()
        x0, y = torch.full((1, 3, 8, 8), 0.2).to(where), torch.tensor([1], device=where)
        mask = torch.eye(8).to(where)
        with torch.no_grad(), progress(total=4) as bar:
            path = invert.__wrapped__(denoiser, x0, y, 2, 0.1, bar)
            return regenerate.__wrapped__(denoiser, path, y, 0.1, bar, mask).cpu()

    torch.testing.assert_close(on_device(device, call), on_device("cpu", call))


def test_an_accelerator_refuses_and_counts():
    """What the other tests rely on."""

    def call(where, waits):
        x, here = torch.arange(3.0, device=where), torch.arange(3.0)
        assert (x + here[0]).device.type == torch.device(where).type
        for wrong in (lambda: x + here, lambda: x.numpy()):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        assert waits == []
        x.tolist(), float(x[0]), bool((x > 1).any()), x[x > 1], x.cpu(), here.to(where)
        here.to(where, non_blocking=True)
        assert len(waits) == 6
        if where == "mps":
            with pytest.raises(TypeError, match="no float64"):
                x.double()

    for device in DEVICES:
        on_device(device, call)


def test_spectra_are_measured_where_the_features_are():
    features = torch.randn(2, 16, 4)
    expected = radial_power(features, (4, 4))
    for device in DEVICES:
        found = on_device(device, lambda to, _: radial_power(features.to(to), (4, 4)))
        torch.testing.assert_close(found, expected)


def move(module, device):
    """Give a module new tensors on a device that ``Module.to`` cannot move to."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(value.detach().to(device)))
        for name, value in part.named_buffers(recurse=False):
            setattr(part, name, value.to(device))
    return module


def check_shapes(module, other, average, device):
    """Loss, average, guidance and a modulated network, on a device without numbers."""
    x, y = torch.zeros(2, 3, 8, 8, device=device), torch.zeros(2, dtype=torch.long, device=device)
    t = torch.zeros(2, device=device)
    loss = module.denoiser.loss(x, x, t, y).mean()
    average.update(module)
    outputs = [loss, other(x, t, y), module.denoiser(x, t, y), low_frequencies(x, 0.3)]
    averages = average._average_model.module.parameters()
    devices = {tensor.device.type for tensor in (*outputs, *module.parameters(), *averages)}
    assert devices == {torch.device(device).type}
    return loss


@pytest.mark.parametrize("filter", FILTERS)
def test_the_rules_of_torch_agree(filter):
    """Fake tensors on a GPU refuse to be turned into numbers, and to meet those of the CPU.

    They have no gradients where there is no GPU.
    """
    module = make(schedule="linear", skip=SkipSettings(filter, s=1.0 if filter == "none" else 0.5))
    other, average = make().denoiser.backbone, MovingAverage()
    average.setup(None, module, "fit")
    attached = modulate(other, s=0.3, b=1.3, t_range=(0.5, 1.0))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        device = "cuda:0"
        for part in (average._average_model.module, attached):
            move(part, device)
        check_shapes(move(module, device), move(other, device), average, device)
        with pytest.raises(RuntimeError, match="device"):
            torch.zeros(2, device=device) + torch.zeros(2)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            float(torch.zeros(2, device=device)[0])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("filter", FILTERS)
def test_shapes_alone_are_enough(filter, optimizer):
    skip = SkipSettings(filter, s=1.0 if filter == "none" else 0.5)
    module, other = make(skip=skip, optimizer=optimizer), make().denoiser.backbone
    modulate(other.to("meta"), s=0.3, b=1.3, t_range=(0.5, 1.0))
    average = MovingAverage()
    average.setup(None, module, "fit")
    module.to("meta")
    average.on_fit_start(None, module)
    check_shapes(module, other, average, "meta").backward()
    module.trainer = Trainer(accelerator="cpu", logger=False, max_steps=4)
    (steps,), _ = module.configure_optimizers()
    steps.step()
    moments = [x for state in steps.state.values() for x in state.values() if x.ndim]
    assert {x.device.type for x in (*moments, *(p.grad for p in module.parameters()))} == {"meta"}
