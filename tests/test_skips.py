"""What acts on a long skip, against torch.fft and the equations of the paper."""

import copy
import math

import pytest
import torch
from diffusers.utils.torch_utils import fourier_filter

from uvit_lit.families import FILTERS, LEARNED, PROTOTYPES
from uvit_lit.filters import LowPass, frequencies
from uvit_lit.options import preset_settings
from uvit_lit.settings import SkipSettings, Window
from uvit_lit.skips import SkipModulation, scale_backbone

GRIDS = [(8, 8), (16, 16), (7, 7), (5, 8), (16, 9), (1, 6), (1, 1)]


def step(s, cutoff, grid, prefix=2, **other):
    return SkipModulation(grid, prefix, filter="step", s=s, cutoff=cutoff, **other)


def fft_reference(x, s, cutoff, grid):
    """Equations 1 and 2, read literally, on (batch, tokens, channels)."""
    height, width = grid
    maps = x.double().transpose(1, 2).unflatten(-1, grid)
    fy = torch.fft.fftfreq(height, dtype=torch.float64)[:, None] * 2
    fx = torch.fft.fftfreq(width, dtype=torch.float64)[None, :] * 2
    beta = torch.where(torch.hypot(fy, fx) < cutoff, s, 1.0)
    filtered = torch.fft.ifft2(torch.fft.fft2(maps) * beta)
    assert filtered.imag.abs().max() < 1e-12
    return filtered.real.flatten(-2).transpose(1, 2)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("cutoff", [0.01, 0.25, 0.3, 0.8, 1.0, math.sqrt(2)])
@pytest.mark.parametrize("s", [0.0, 0.5, 1.0, 1.7])
def test_step_equals_the_fourier_transform(grid, cutoff, s):
    skip = torch.randn(3, 2 + grid[0] * grid[1], 5)
    _, filtered = step(s, cutoff, grid)(skip, skip)
    expected = fft_reference(skip[:, 2:], s, cutoff, grid)
    torch.testing.assert_close(filtered[:, 2:].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("filter", [*FILTERS[1:]])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("cutoff", [0.25, 0.3, 0.8])
@pytest.mark.parametrize("is_learned", [False, True])
def test_the_frequencies_that_act_give_the_fourier_transform(filter, grid, cutoff, is_learned):
    learn = LEARNED.get(filter, ()) if is_learned else ()
    if "cutoff" in learn and cutoff <= 1 / max(grid):
        pytest.skip("a learned cutoff is above half a bin")
    modulation = SkipModulation(grid, 2, learn, filter=filter, s=0.4, cutoff=cutoff)
    gain = 1 - (1 - 0.4) * LowPass(filter)(frequencies(grid), cutoff)
    features = torch.randn(3, 2 + grid[0] * grid[1], 5, requires_grad=True)
    maps = features[:, 2:].double().mT.unflatten(2, grid)
    filtered = torch.fft.ifft2(gain * torch.fft.fft2(maps)).real.flatten(2).mT.float()
    results = modulation(features, features)[1], torch.cat([features[:, :2], filtered], 1)
    gradients = [torch.autograd.grad(x.square().sum(), features)[0] for x in results]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("filter", ["step", "freeu_box", "butterworth"])
def test_autocast_keeps_the_dtype_of_the_skip(filter):
    modulation = SkipModulation((8, 8), 2, filter=filter, s=0.4)
    features = torch.randn(2, 66, 8)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = modulation(features, features)[1]
    assert rounded.dtype == torch.float32
    exact = modulation(features, features)[1]
    torch.testing.assert_close(rounded, exact, atol=0.06, rtol=0.03)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_prefix_tokens_are_untouched(prefix):
    features = torch.randn(2, prefix + 64, 6)
    backbone, skip = step(0.0, 0.5, (8, 8), prefix, b=2.0)(features, features)
    assert torch.equal(skip[:, :prefix], features[:, :prefix])
    assert torch.equal(backbone[:, :prefix], features[:, :prefix])
    assert not torch.equal(skip[:, prefix:], features[:, prefix:])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("s", [0.0, 0.4, 1.5])
def test_a_constant_map_is_scaled_by_s(grid, s):
    skip = torch.full((1, 1 + grid[0] * grid[1], 2), 3.0)
    _, filtered = step(s, 0.3, grid, prefix=1)(skip, skip)
    torch.testing.assert_close(filtered[:, 1:], torch.full_like(filtered[:, 1:], 3.0 * s))


def test_keep_or_kill():
    """A plane wave at half the cutoff is scaled by s, one at twice the cutoff passes."""
    n, cutoff, s = 16, 0.5, 0.2
    position = torch.arange(n, dtype=torch.float32)
    for frequency, gain in ((cutoff / 2, s), (cutoff * 2, 1.0)):
        for axis in (0, 1):
            wave = torch.cos(math.pi * frequency * position)
            wave = wave[:, None].expand(n, n) if axis == 0 else wave[None, :].expand(n, n)
            skip = wave.reshape(1, n * n, 1)
            _, filtered = step(s, cutoff, (n, n), prefix=0)(skip, skip)
            torch.testing.assert_close(filtered, gain * skip, atol=1e-6, rtol=0)


def test_neutral_settings_return_the_features_themselves():
    features = torch.randn(2, 65, 4)
    backbone, skip = step(1.0, 0.5, (8, 8), prefix=1, b=1.0)(features, features)
    assert backbone is features
    assert skip is features


def test_an_image_is_filtered_alone_as_in_a_batch():
    batch = torch.randn(6, 66, 8)
    modulation = step(0.3, 0.6, (8, 8), b=1.6)
    together = modulation(batch, batch)
    for k in range(6):
        alone = modulation(batch[k : k + 1], batch[k : k + 1])
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], many[k], atol=1e-6, rtol=1e-5)


def test_features_are_not_changed_in_place():
    features = torch.randn(2, 66, 4)
    before = features.clone()
    step(0.0, 0.9, (8, 8), b=2.0)(features, features)
    assert torch.equal(features, before)


def test_bfloat16_in_bfloat16_out():
    modulation = step(0.4, 0.6, (8, 8), b=1.5)
    features = torch.randn(2, 66, 8)
    exact = modulation(features, features)
    rounded = modulation(features.bfloat16(), features.bfloat16())
    for wide, narrow in zip(exact, rounded, strict=True):
        assert narrow.dtype == torch.bfloat16
        torch.testing.assert_close(narrow.float(), wide, atol=0.06, rtol=0.03)


def test_gradients_flow():
    torch.manual_seed(0)
    modulation = step(0.4, 0.6, (4, 4), 1, b=1.5).double()
    backbone = torch.randn(2, 17, 3, dtype=torch.float64, requires_grad=True)
    skip = torch.randn(2, 17, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(modulation, (backbone, skip))


@pytest.mark.parametrize("b", [0.0, 0.5, 1.3, 2.0])
def test_backbone_scale_follows_equations_3_to_5(b):
    x = torch.randn(3, 1 + 20, 7)
    scaled = scale_backbone(x, b, prefix=1)
    for image in range(3):
        tokens = x[image, 1:]
        mean = torch.stack([sum(token) / 7 for token in tokens])
        alpha = (b - 1) * (mean - mean.min()) / (mean.max() - mean.min()) + 1
        torch.testing.assert_close(scaled[image, 1:], tokens * alpha[:, None])


def test_backbone_scale_of_a_constant_map_is_one():
    x = torch.full((2, 17, 4), 5.0)
    assert torch.equal(scale_backbone(x, 1.7, prefix=1), x)


def test_backbone_scale_reaches_the_first_channels_only():
    x = torch.randn(2, 16, 8)
    half, whole = scale_backbone(x, 1.4, channels=0.5), scale_backbone(x, 1.4)
    assert torch.equal(half[..., :4], whole[..., :4])
    assert torch.equal(half[..., 4:], x[..., 4:])


FREEU_SKIP = [-0.66776, 0.28439, 0.96265, 0.74153, -0.14653, 0.76739, 0.95754, 0.24857]
FREEU = {
    "freeu_v1": [-0.90816, -1.15071, -0.3353, 0.78838, -0.99178, -0.64354, 0.29637, 0.9638],
    "freeu_v2": [-0.94872, -1.02212, -0.27963, 0.73454, -0.99178, -0.64354, 0.29637, 0.9638],
}


@pytest.mark.parametrize("preset", FREEU)
def test_the_presets_of_freeu_are_its_code(preset):
    """Rows of channels 0 and 2, made by its demo (version 1) and by its README (version 2)."""
    settings = preset_settings(preset, 4)
    assert settings.pop("skips") == "inner"
    numbers = torch.arange(64.0).reshape(1, 4, 4, 4)
    modulated = SkipModulation(**settings)(numbers.sin(), numbers.cos())
    for maps, expected in zip(modulated, (FREEU[preset], FREEU_SKIP), strict=True):
        rows = torch.cat([maps[0, 0, 1], maps[0, 2, 1]])
        torch.testing.assert_close(rows, torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_constant_b_multiplies_the_patch_tokens():
    x = torch.randn(2, 18, 4)
    scaled = scale_backbone(x, 1.4, prefix=2, b_map="constant")
    torch.testing.assert_close(scaled[:, 2:], 1.4 * x[:, 2:])
    assert torch.equal(scaled[:, :2], x[:, :2])


@pytest.mark.parametrize("s", [0.0, 0.9, 1.5])
def test_a_flat_filter_scales_the_whole_skip(s):
    """Skip-Tuning; the prefix tokens are left alone."""
    skip = torch.randn(2, 66, 4)
    filtered = SkipModulation((8, 8), 2, filter="flat", s=s)(skip, skip)[1]
    torch.testing.assert_close(filtered[:, 2:], s * skip[:, 2:], atol=1e-5, rtol=1e-5)
    assert torch.equal(filtered[:, :2], skip[:, :2])


def test_a_flat_filter_learns_its_s_alone():
    modulation = SkipModulation((4, 4), 1, ("s",), filter="flat", s=0.5)
    skip = torch.randn(2, 17, 3)
    modulation(skip, skip)[1][:, 1:].sum().backward()
    (raw,) = modulation.parameters()
    slope = 2 * 0.25 * 0.75  # of 2 sigmoid(raw) at 0.5
    torch.testing.assert_close(raw.grad, slope * skip[:, 1:].sum().view(1), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="filter is flat; accepted where cutoff is learned: but"):
        SkipModulation((4, 4), 1, ("cutoff",), filter="flat", s=0.5)


@pytest.mark.parametrize(("filter", "learn"), [("step", ()), ("butterworth", ("s", "cutoff"))])
def test_the_mean_is_left_alone_and_the_rest_is_filtered(filter, learn):
    settings = {"filter": filter, "s": 0.4, "cutoff": 0.6}
    plain, keeping = (
        SkipModulation((8, 8), 1, learn, **settings, keep_mean=keep) for keep in (False, True)
    )
    skip = torch.randn(2, 65, 3) + 2
    with torch.no_grad():
        filtered, kept = (modulation(skip, skip)[1][:, 1:] for modulation in (plain, keeping))
    mean = skip[:, 1:].mean(1, keepdim=True)
    torch.testing.assert_close(kept.mean(1, keepdim=True), mean)
    torch.testing.assert_close(filtered.mean(1, keepdim=True), 0.4 * mean)
    torch.testing.assert_close(kept, filtered + 0.6 * mean, atol=1e-5, rtol=1e-5)
    frequency = frequencies((8, 8))
    gains = plain.gain(frequency), keeping.gain(frequency)
    assert ((gains[0] - gains[1]).abs() > 1e-6).nonzero().tolist() == [[0, 0]]
    assert float(gains[1][0, 0]) == 1


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("grid", [(8, 8), (5, 8)])
def test_maps_are_modulated_as_tokens_are(filter, grid):
    s = 1.0 if filter == "none" else 0.4
    learn = (*LEARNED.get(filter, ()), "b")
    modulation = SkipModulation(grid, 0, learn, filter=filter, s=s, cutoff=0.5, b=1.3)
    backbone, skip = torch.randn(3, 6, *grid), torch.randn(3, 4, *grid)
    tokens = modulation(*(x.flatten(2).mT for x in (backbone, skip)))
    for maps, expected in zip(modulation(backbone, skip), tokens, strict=True):
        torch.testing.assert_close(maps.flatten(2).mT, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        SkipModulation(grid, 5, filter=filter, s=s, cutoff=0.5, b=1.3)(backbone, skip),
        modulation(backbone, skip),
        atol=1e-6,
        rtol=1e-5,
    )  # maps have no prefix


def test_a_grid_that_is_not_given_is_that_of_the_features():
    inferred = SkipModulation(prefix=1, s=0.4, cutoff=0.5, b=1.3)
    for side in (8, 4, 8):
        tokens = torch.randn(2, 2, 1 + side * side, 3)
        given = SkipModulation((side, side), 1, s=0.4, cutoff=0.5, b=1.3)
        torch.testing.assert_close(inferred(*tokens), given(*tokens))
    maps = torch.randn(2, 2, 3, 5, 8)
    given = SkipModulation((5, 8), s=0.4, cutoff=0.5, b=1.3)
    torch.testing.assert_close(inferred(*maps), given(*maps))
    with pytest.raises(ValueError, match="40 patch tokens make no square; accepted: grid="):
        inferred(*torch.randn(2, 2, 41, 3))


def test_a_grid_of_another_size_takes_the_same_fraction_of_nyquist():
    """Maps of a larger image, from a modulation that was made for a smaller one."""
    made, other = (SkipModulation(grid, s=0.3, cutoff=0.6) for grid in ((4, 4), (8, 8)))
    maps = torch.randn(2, 2, 3, 8, 8)
    torch.testing.assert_close(made(*maps), other(*maps))


TIMES = torch.tensor([0.2, 0.7, 0.9])


def test_an_override_acts_in_its_window():
    modulation = SkipModulation((4, 4), filter="step", s=0.9)
    features = torch.randn(3, 17, 3)
    trained = modulation(features, features)
    modulation.set(s=0.0, b=1.5)
    override = modulation(features, features)
    modulation.set(Window(0.5, 0.8), s=0.0, b=1.5)
    windowed = modulation(features, features, TIMES)
    for inside, outside, both in zip(override, trained, windowed, strict=True):
        torch.testing.assert_close(both[0], outside[0])
        torch.testing.assert_close(both[1], inside[1])
        torch.testing.assert_close(both[2], outside[2])
        assert (inside - outside).abs().amax(dim=(1, 2)).min() > 0.01
    with pytest.raises(ValueError, match="t is None; accepted with a window"):
        modulation(features, features)
    modulation.set()
    for again, expected in zip(modulation(features, features), trained, strict=True):
        assert torch.equal(again, expected)
    assert list(modulation.state_dict()) == []


def test_halfway_through_the_fade_half_of_the_change_is_made():
    modulation = SkipModulation((4, 4), filter="step", s=0.9)
    modulation.set(Window(0.5, 0.7, fade=0.2), s=0.0, b=1.5)
    features = torch.randn(2, 17, 3)
    halfway = modulation(features, features, torch.tensor([0.4, 0.8]))
    between = SkipModulation((4, 4), filter="step", s=0.45, b=1.25)(features, features)
    for half, expected in zip(halfway, between, strict=True):
        torch.testing.assert_close(half, expected, atol=1e-5, rtol=1e-5)


def test_the_window_fades_as_half_a_cosine():
    t = torch.tensor([0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.675, 0.701])
    quarter = 0.5 + 0.5 * math.cos(0.75 * math.pi)
    expected = torch.tensor([0, 0, 0.5, 1, 1, 1, quarter, 0])
    torch.testing.assert_close(Window(0.4, 0.6, 0.1).strength(t), expected, atol=1e-4, rtol=0)
    assert Window(0.4, 0.6).strength(t).tolist() == [0, 0, 0, 1, 1, 1, 0, 0]


def learned(filter, grid=(8, 8), prefix=2, learn_b=False, **settings):
    learn = [*LEARNED.get(filter, ()), *(("b",) if learn_b else ())]
    return SkipModulation(
        grid, prefix, learn, filter=filter, **{"s": 0.9, "cutoff": 0.5, **settings}
    )


@pytest.mark.parametrize("grid", GRIDS[:4])
@pytest.mark.parametrize("filter", [*PROTOTYPES, "freeu_box", "flat"])
def test_every_filter_equals_the_fourier_transform(filter, grid):
    """gain(f) = 1 - (1 - s) |H(f)|."""
    modulation = learned(filter, grid, s=0.4)
    skip = torch.randn(3, 2 + grid[0] * grid[1], 5)
    with torch.no_grad():
        _, filtered = modulation(skip, skip)
    gain = 1 - 0.6 * LowPass(filter)(frequencies(grid), 0.5)
    maps = skip[:, 2:].double().mT.unflatten(-1, grid)
    expected = torch.fft.ifft2(torch.fft.fft2(maps) * gain).real.flatten(-2).mT
    torch.testing.assert_close(filtered[:, 2:].double(), expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(filtered[:, :2], skip[:, :2])
    torch.testing.assert_close(modulation.gain(frequencies(grid)), gain, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [8, 16, 7])
@pytest.mark.parametrize("threshold", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.0, 0.2, 0.9])
def test_freeu_box_equals_the_function_of_diffusers(size, threshold, scale):
    maps = torch.randn(2, 3, size, size)
    expected = fourier_filter(maps, threshold, scale)
    modulation = SkipModulation(filter="freeu_box", s=scale, cutoff=2 * threshold / size)
    _, filtered = modulation(maps, maps)
    torch.testing.assert_close(filtered, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("filter", PROTOTYPES)
def test_a_learned_filter_at_s_1_and_b_1_is_exactly_the_identity(filter):
    long_skip = learned(filter, s=1.0, learn_b=True)
    features = torch.randn(2, 66, 4)
    backbone, skip = long_skip(features, features)
    assert torch.equal(skip, features)
    assert torch.equal(backbone, features)


@pytest.mark.parametrize("raw", [-1e4, -20.0, 0.0, 20.0, 1e4])
@pytest.mark.parametrize("filter", PROTOTYPES)
def test_learned_values_stay_inside_their_ranges(filter, raw):
    """Whatever the optimiser does, the values, the result and the gradients mean something."""
    long_skip = learned(filter, grid=(4, 8), learn_b=True)
    for value in long_skip.learned.values():
        value.raw.data.fill_(raw)
    skip = torch.randn(2, 34, 3)
    backbone, filtered = long_skip(skip, skip)
    (backbone.square().mean() + filtered.square().mean()).backward()
    assert filtered.isfinite().all()
    settings = long_skip.settings
    assert 0 <= settings.s <= 2
    assert 0 <= settings.b <= 2
    assert 1 / 8 <= settings.cutoff <= math.sqrt(2)
    assert all(p.grad.isfinite().all() for p in long_skip.parameters())


@pytest.mark.parametrize("filter", PROTOTYPES)
def test_the_gradient_is_right(filter):
    torch.manual_seed(1)
    long_skip = learned(filter, (4, 5), 1, learn_b=True).double()
    names = [name for name, _ in long_skip.named_parameters()]
    features = torch.randn(2, 21, 2, dtype=torch.float64)

    def call(*values):
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(long_skip, state, (features, features))

    start = [p.detach() + 0.3 * torch.randn_like(p) for p in long_skip.parameters()]
    assert torch.autograd.gradcheck(call, [p.requires_grad_() for p in start])


@pytest.mark.parametrize("filter", PROTOTYPES)
def test_a_student_finds_the_filter_of_a_teacher(filter):
    """Cutoff and s of an unknown filter are recovered to 2 % from features alone."""
    torch.manual_seed(0)
    teacher = learned(filter, s=0.35, cutoff=0.8)
    student = learned(filter, s=0.9, cutoff=0.4)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    for step in range(400):
        skip = torch.randn(16, 66, 8)
        wanted, found = (m(skip, skip)[1] for m in (teacher, student))
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        optimizer.zero_grad()
        (wanted.detach() - found).square().mean().backward()
        optimizer.step()
    assert student.settings.s == pytest.approx(0.35, rel=0.02)
    assert student.settings.cutoff == pytest.approx(0.8, rel=0.02)


def test_an_override_leaves_what_it_does_not_name_learned():
    long_skip = learned("butterworth")
    long_skip.learned["cutoff"].raw.data += 0.5
    cutoff = long_skip.settings.cutoff
    long_skip.set(s=0.2)
    assert long_skip.settings.s == 0.2
    assert long_skip.settings.cutoff == pytest.approx(cutoff)
    long_skip.set(filter="step")
    assert long_skip.settings.filter == "step"
    assert long_skip.settings.cutoff == pytest.approx(cutoff)
    long_skip.set(filter="none")
    assert (long_skip.settings.filter, long_skip.settings.s) == ("none", 1.0)
    backbone, skip = torch.randn(2, 1, 66, 3)
    assert long_skip(backbone, skip)[1] is skip
    assert {name.split(".")[0] for name in long_skip.state_dict()} == {"learned"}


@pytest.mark.parametrize("grid", [None, (8, 8)])
def test_what_was_prepared_in_inference_mode_can_be_trained_through(grid):
    long_skip = SkipModulation(grid, prefix=2)
    features = torch.randn(2, 1, 66, 3)
    with torch.inference_mode():
        long_skip.set(s=0.5, b=1.3)
        long_skip(*features)
    features.requires_grad_()
    sum(part.square().sum() for part in long_skip(*features)).backward()
    assert features.grad.abs().min() > 0


@pytest.mark.parametrize("filter", [*PROTOTYPES, "step", "freeu_box"])
def test_another_filter_takes_the_learned_cutoff(filter):
    long_skip = learned("butterworth")
    long_skip.learned["cutoff"].raw.data += 0.8
    long_skip.set(filter=filter, s=0.3)
    skip = torch.randn(4, 66, 3)
    cutoff = long_skip.learned["cutoff"].number()
    fixed = SkipModulation((8, 8), 2, filter=filter, s=0.3, cutoff=cutoff)
    with torch.no_grad():
        filtered, expected = (module(skip, skip)[1] for module in (long_skip, fixed))
    torch.testing.assert_close(filtered, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("filter", [*PROTOTYPES, "step", "freeu_box"])
def test_bfloat16_autocast_changes_rounding_only(filter):
    """A strong filter on features with a large mean, and its gradients."""
    results = []
    for narrow in (False, True):
        torch.manual_seed(0)
        long_skip = learned(filter, s=0.2)
        skip = torch.randn(4, 66, 16) + 4
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            _, filtered = long_skip(skip, skip)
        filtered.float().square().mean().backward() if long_skip.learned else None
        results.append((filtered.float(), [p.grad for p in long_skip.parameters()]))
    (wide, gradients), (rounded, rounded_gradients) = results
    assert (wide - rounded).norm() / wide.norm() < 0.01
    for exact, other in zip(gradients, rounded_gradients, strict=True):
        torch.testing.assert_close(other, exact, rtol=0.03, atol=1e-3)


def test_numbers_that_are_not_finite_say_that_training_diverged():
    long_skip = learned("butterworth")
    long_skip.learned["s"].raw.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="diverged"):
        _ = long_skip.settings


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"s": 0.0}, "s is 0.0"),
        ({"s": 2.5}, "s is 2.5"),
        ({"cutoff": 0.05}, "cutoff is 0.05"),
        ({"b": 2.0, "learn_b": True}, "b is 2.0"),
    ],
)
def test_a_learned_value_starts_inside_its_bounds(wrong, named):
    with pytest.raises(ValueError, match=f"{named}; accepted where it is learned"):
        learned("butterworth", **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learn": ("order",)}, "learn is order; accepted: s, cutoff, b"),
        ({"learn": ("s",), "filter": "step"}, "filter is step; accepted where s is learned"),
        ({"learn": ("b",), "grid": None}, "grid is None; accepted where something is learned"),
    ],
)
def test_what_cannot_be_learned_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        SkipModulation(**{"grid": (8, 8), **wrong})


def test_a_copy_learns_by_itself():
    original = learned("butterworth", s=0.5)
    twin = copy.deepcopy(original)
    twin.learned["s"].raw.data += 1
    skip = torch.randn(1, 66, 2)
    assert original.settings.s == pytest.approx(0.5)
    assert twin.settings.s > 0.9
    assert (twin(skip, skip)[1] - original(skip, skip)[1]).abs().max() > 0.1


def test_the_state_is_what_is_learned_on_the_meta_device_too():
    with torch.device("meta"):
        modulation = learned("butterworth", learn_b=True)
    shapes = {name: tensor.shape for name, tensor in modulation.state_dict().items()}
    assert shapes == {f"learned.{name}.raw": (1,) for name in ("s", "cutoff", "b")}
    assert next(modulation.parameters()).is_meta


@pytest.mark.parametrize("filter", ["step", "butterworth"])
def test_it_is_one_graph_for_the_compiler_and_for_export(filter):
    torch.compiler.reset()
    modulation = learned(filter, learn_b=True, s=0.4)
    modulation.set(Window(0.5, 1.0, 0.1), b=1.3)
    features = (*torch.randn(2, 3, 66, 4), TIMES)
    exported = torch.export.export(modulation, features).module()
    expected = modulation(*features)
    assert type(expected[1]) is torch.Tensor  # nothing of the export stays behind
    torch.testing.assert_close(exported(*features), expected)
    compiled = torch.compile(modulation, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*features), expected)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"filter": "box"}, "box"),
        ({"filter": "step", "s": -0.1}, "-0.1"),
        ({"filter": "step", "s": math.nan}, "nan"),
        ({"s": 0.5}, "0.5"),
        ({"b": math.inf}, "inf"),
        ({"cutoff": 0.0}, "0.0"),
        ({"cutoff": 2.0}, "2.0"),
        ({"b_channels": 0.0}, "0.0"),
        ({"b_map": "mean"}, "b_map is 'mean'"),
        ({"filter": "butterworth", "order": 0}, "order is 0"),
        ({"filter": "butterworth", "order": 13}, "order is 13"),
        ({"filter": "butterworth", "order": 2.5}, "order is 2.5"),
        ({"filter": "chebyshev", "ripple": 0.0}, "ripple is 0.0"),
        ({"filter": "chebyshev", "ripple": math.nan}, "ripple is nan"),
        ({"filter": "chebyshev2", "attenuation": 100.0}, "attenuation is 100.0"),
    ],
)
def test_settings_outside_their_range_are_named(wrong, named):
    with pytest.raises(ValueError, match=f"{named}.*accepted"):
        SkipSettings(**wrong)
