"""Guidance: the formula, its window, its bands, and what is refused."""

import copy
import math

import pytest
import torch
from torch import nn

from uvit_lit.diffusion import Denoiser
from uvit_lit.filters import frequencies
from uvit_lit.guidance import SPLIT, Guided, WithSkips, low_frequencies
from uvit_lit.sampling import sample
from uvit_lit.settings import SkipSettings
from uvit_lit.skips import override_skips
from uvit_lit.unet import UNet
from uvit_lit.uvit import UViT


class Toy(nn.Module):
    """Backbone that answers with its gain times a pattern per label, and remembers its calls."""

    null_class = 2

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain, self.calls = gain, []
        self.pattern = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def forward(self, x, timesteps, y):
        self.calls.append((x, timesteps, y))
        return x + self.gain * self.pattern[y]


def toy(gain=1.0, schedule="cosine"):
    return Denoiser(Toy(gain), schedule, "x0")


def network(**options):
    torch.manual_seed(0)
    uvit = UViT(img_size=8, patch_size=2, embed_dim=16, depth=4, num_heads=2, **options)
    return Denoiser(uvit.eval(), "cosine", "x0")


def unet():
    torch.manual_seed(0)
    small = UNet(img_size=8, channels=(16, 32), attention=(4,), head_dim=8, norm_groups=8)
    return Denoiser(small.eval(), "cosine", "x0")


X_T = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
T, Y = torch.tensor([0.5, 0.5]), torch.tensor([1, 0])
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("w", [0.0, 0.5, 3.0])
def test_the_weak_model_is_the_null_class_in_one_batch(w):
    denoiser, null = toy(), torch.full_like(Y, Toy.null_class)
    strong, weak = denoiser(X_T, T, Y), denoiser(X_T, T, null)
    denoiser.backbone.calls.clear()
    guided = Guided(denoiser, w)(X_T, T, Y)
    torch.testing.assert_close(guided, weak + w * (strong - weak))
    assert [len(x) for x, _, _ in denoiser.backbone.calls] == [4]
    alone = [Guided(denoiser, w)(*(v[k : k + 1] for v in (X_T, T, Y))) for k in range(2)]
    torch.testing.assert_close(torch.cat(alone), guided)


@pytest.mark.parametrize("w", [0.0, 0.5, 3.0])
def test_the_weak_model_is_another_one(w):
    strong, weak = toy(), toy(gain=0.5)
    expected = weak(X_T, T, Y) + w * (strong(X_T, T, Y) - weak(X_T, T, Y))
    torch.testing.assert_close(Guided(strong, w, weak)(X_T, T, Y), expected)


def test_another_schedule_is_asked_at_the_same_noise():
    strong, weak = toy(), toy(0.5, "vp")
    t = torch.tensor([0.05, 0.7])
    Guided(strong, 2, weak)(X_T, t, Y)
    ((_, timesteps, _),) = weak.backbone.calls
    found = weak.schedule.alpha_sigma(timesteps / weak.schedule.time_scale)
    torch.testing.assert_close(found, strong.schedule.alpha_sigma(t), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(timesteps / weak.schedule.time_scale, t, atol=0.05)


@pytest.mark.parametrize("backbone", ["uvit", "unet"])
def test_the_weak_model_is_the_same_network_with_other_skips(backbone):
    denoiser, settings = {"uvit": network, "unet": unet}[backbone](), {"s": 0.3, "b": 1.4}
    strong = denoiser(IMAGES, T)
    override_skips(denoiser.backbone.long_skips, skips="inner", **settings)
    weak = denoiser(IMAGES, T)
    override_skips(denoiser.backbone.long_skips)
    guided = Guided(denoiser, 2, WithSkips(denoiser, "inner", **settings))
    torch.testing.assert_close(guided(IMAGES, T), 2 * strong - weak)
    assert (strong - weak).abs().max() > 1e-4


def test_other_skips_last_for_the_call_alone():
    denoiser = network(skip=SkipSettings("butterworth", s=0.9))
    override_skips(denoiser.backbone.long_skips, b=1.2)
    before, long_skips = denoiser(IMAGES, T), denoiser.backbone.long_skips
    names = list(denoiser.state_dict())
    weak = WithSkips(denoiser, s=0.3)
    assert (weak(IMAGES, T) - before).abs().max() > 1e-4
    with pytest.raises(RuntimeError):
        weak(IMAGES[:, :2], T)
    assert denoiser.backbone.long_skips is long_skips
    assert list(denoiser.state_dict()) == names
    assert torch.equal(denoiser(IMAGES, T), before)
    override_skips(denoiser.backbone.long_skips, s=0.3)  # b as trained
    torch.testing.assert_close(weak(IMAGES, T), denoiser(IMAGES, T))


@pytest.mark.parametrize("weak", [None, "another"])
def test_at_weight_1_it_is_the_strong_model_and_calls_nothing_else(weak):
    strong, other = toy(), toy(0.5)
    guided = Guided(strong, 1, other if weak else None, rescale=0.7)
    assert torch.equal(guided(X_T, T, Y), strong(X_T, T, Y))
    assert [len(x) for x, _, _ in strong.backbone.calls] == [2, 2]
    assert not other.backbone.calls


def test_outside_the_window_the_strong_model_is_called_alone():
    strong, weak = toy(), toy(0.5)
    guided = Guided(strong, 3, weak, t_range=(0.2, 0.6))
    for t in (0.1, 0.2, 0.6, 0.7):
        times = torch.tensor([t, t])
        expected = strong(X_T, times, Y)
        if 0.2 <= t <= 0.6:
            expected = weak(X_T, times, Y) + 3 * (expected - weak(X_T, times, Y))
        strong.backbone.calls.clear()
        weak.backbone.calls.clear()
        torch.testing.assert_close(guided(X_T, times, Y), expected)
        calls = len(strong.backbone.calls), len(weak.backbone.calls)
        assert calls == ((1, 1) if 0.2 <= t <= 0.6 else (1, 0))
    mixed = guided(X_T, torch.tensor([0.1, 0.4]), Y)
    torch.testing.assert_close(mixed[0], strong(X_T, T, Y)[0])
    torch.testing.assert_close(mixed[1], Guided(strong, 3, weak)(X_T, T, Y)[1])


def test_a_sampler_pays_for_the_window_alone():
    strong, weak = toy(), toy(0.5)
    model = Guided(strong, 3, weak, t_range=(0.3, 0.7))
    sample(model, (1, 4, 4), [0, 1], [0, 1], steps=10)
    times = [float(t[0]) / strong.schedule.time_scale for _, t, _ in strong.backbone.calls]
    assert len(times) == 10
    inside = [t for t in times if 0.3 <= t <= 0.7]
    assert 0 < len(inside) < 10
    asked = [float(t[0]) / weak.schedule.time_scale for _, t, _ in weak.backbone.calls]
    assert asked == inside


def test_rescaling_goes_from_the_guided_deviation_to_the_strong_one():
    """Equations 15 and 16 of Lin et al.; each image has statistics of its own."""
    strong, weak = toy(), toy(0.5)
    x_t = X_T * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)
    plain = Guided(strong, 4, weak)(x_t, T, Y)
    whole = Guided(strong, 4, weak, rescale=1)(x_t, T, Y)
    aim = strong(x_t, T, Y).std((1, 2, 3))
    torch.testing.assert_close(whole.std((1, 2, 3)), aim)
    assert ((plain.std((1, 2, 3)) - aim).abs() > 1e-2).all()
    partly = Guided(strong, 4, weak, rescale=0.7)(x_t, T, Y)
    torch.testing.assert_close(partly, 0.7 * whole + 0.3 * plain)


@pytest.mark.parametrize("size", [(8, 8), (6, 9)])
@pytest.mark.parametrize("cutoff", [0.1, 0.5])
def test_the_low_frequencies_are_those_of_the_fourier_transform(size, cutoff):
    images = torch.randn(2, 3, *size)
    response = SPLIT(frequencies(size), cutoff)
    expected = torch.fft.ifft2(response * torch.fft.fft2(images.double())).real.float()
    low = low_frequencies(images, cutoff)
    torch.testing.assert_close(low, expected, atol=1e-5, rtol=1e-5)


def test_the_bands_are_those_of_the_low_pass_and_sum_to_the_image():
    """A weight of 1 on one band and 0 on the other leaves the band; both together leave all."""
    strong, weak = toy(), toy(0.5)
    whole, none = strong(X_T, T, Y), weak(X_T, T, Y)
    low = Guided(strong, (1, 0), weak, cutoff=0.5)(X_T, T, Y) - none
    high = Guided(strong, (0, 1), weak, cutoff=0.5)(X_T, T, Y) - none
    torch.testing.assert_close(low + high, whole - none)
    torch.testing.assert_close(low, low_frequencies(whole - none, 0.5))
    assert low.std() > 0.01
    assert high.std() > 0.01


def test_a_wave_of_one_band_is_guided_by_the_weight_of_that_band():
    strong, weak = toy(), toy(0.5)
    x = torch.arange(32.0)
    for frequency, w in ((1 / 16, 2.0), (15 / 16, 1.2)):
        wave = torch.cos(math.pi * frequency * x)[:, None].expand(1, 1, 32, 32)
        for denoiser in (strong, weak):
            denoiser.backbone.pattern = wave
        guided = Guided(strong, (2, 1.2), weak, cutoff=0.3)
        change = guided(torch.zeros(1, 1, 32, 32), T[:1], torch.tensor([0])) - 0.5 * wave
        # order 3: 0.03 of the low weight is left at three times the cutoff
        torch.testing.assert_close(change, w * 0.5 * wave, atol=0.015, rtol=0)


def test_equal_weights_of_both_bands_are_the_plain_formula():
    strong, weak = toy(), toy(0.5)
    plain = Guided(strong, 2.5, weak)(X_T, T, Y)
    for low in (2.5, 2.5 + 1e-6):  # the second takes the way of different weights
        split = Guided(strong, (low, 2.5), weak, cutoff=0.4)(X_T, T, Y)
        torch.testing.assert_close(split, plain)


def test_the_bands_part_in_float32_under_autocast():
    images = torch.randn(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low = low_frequencies(images, 0.3)
    assert torch.equal(low, low_frequencies(images, 0.3))


def test_guidance_goes_around_guidance():
    """Away from another model, and from the null class of both."""
    strong, weak = toy(), toy(0.5)
    null = torch.full_like(Y, Toy.null_class)
    outer = Guided(Guided(strong, 1.5, weak), 2)(X_T, T, Y)
    by_class = [weak(X_T, T, y) + 1.5 * (strong(X_T, T, y) - weak(X_T, T, y)) for y in (Y, null)]
    torch.testing.assert_close(outer, 2 * by_class[0] - by_class[1])
    guide = Guided(strong, 2, t_range=(0.4, 0.6))
    mixed = Guided(guide, 3, weak, t_range=(0.0, 0.6))
    torch.testing.assert_close(
        mixed(X_T, T, Y), 3 * (2 * strong(X_T, T, Y) - strong(X_T, T, null)) - 2 * weak(X_T, T, Y)
    )
    early = torch.tensor([0.2, 0.2])
    expected = 3 * strong(X_T, early, Y) - 2 * weak(X_T, early, Y)
    torch.testing.assert_close(mixed(X_T, early, Y), expected)


def test_a_guided_u_vit_makes_images_and_is_left_as_it_was():
    denoiser = network(num_classes=3)
    before = copy.deepcopy(denoiser.state_dict())
    weak = WithSkips(denoiser, s=0.5)
    model = Guided(Guided(denoiser, (2, 1.2), cutoff=0.5), 1.5, weak, rescale=0.5)
    images = sample(model, (3, 8, 8), [0, 1], [0, 2], steps=3)
    assert images.isfinite().all()
    assert (images - sample(denoiser, (3, 8, 8), [0, 1], [0, 2], steps=3)).abs().max() > 1e-4
    assert before.keys() == denoiser.state_dict().keys()
    assert all(torch.equal(v, before[name]) for name, v in denoiser.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, r"cfg is -1.0"),
        ({"weight": math.inf}, r"cfg is inf"),
        ({"weight": (2, math.nan), "cutoff": 0.3}, r"cfg is \(2, nan\)"),
        ({"weight": (2, 1.2)}, r"cfg has 2 values and cutoff is None"),
        ({"weight": 2, "cutoff": 0.3}, r"cfg has 1 values and cutoff is 0.3"),
        ({"weight": (2, 1, 3), "cutoff": 0.3}, r"cfg has 3 values"),
        ({"weight": (2, 1.2), "cutoff": 0.0}, r"cutoff is 0.0"),
        ({"weight": 2, "rescale": 1.1}, r"rescale is 1.1"),
        ({"weight": 2, "t_range": (0.6, 0.2)}, r"range of t is 0.6,0.2"),
    ],
)
def test_what_is_outside_its_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Guided(toy(), **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 4}, "num_classes of the weak model is 4; accepted.*3"),
        ({"num_classes": 3, "in_chans": 4}, "in_chans of the weak model is 4; accepted.*3"),
    ],
)
def test_a_guide_that_makes_other_images_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Guided(network(num_classes=3), 2, network(**options))


def test_the_null_class_needs_classes():
    with pytest.raises(ValueError, match="the model has no classes"):
        Guided(network(), 2)
    with pytest.raises(ValueError, match="y is None"):
        Guided(network(num_classes=3), 2)(IMAGES, T)
