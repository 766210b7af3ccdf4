"""The filters against torch.fft and the equations of the paper."""

import math

import pytest
import torch

from uvit_lit.filters import (
    LongSkip,
    Modulation,
    SkipSettings,
    filter_matrix,
    magnitude_response,
    radial_frequency,
    scale_backbone,
)

GRIDS = [(8, 8), (16, 16), (7, 7), (5, 8), (16, 9), (1, 6), (1, 1)]


def step(s, cutoff, grid, prefix=2, **other):
    return Modulation(SkipSettings("step", s=s, cutoff=cutoff, **other), grid, prefix)


def fft_reference(x, s, cutoff, grid):
    """Equations 1 and 2, read literally, on (batch, tokens, channels)."""
    height, width = grid
    maps = x.double().transpose(1, 2).unflatten(-1, grid)
    fy = torch.fft.fftfreq(height, dtype=torch.float64)[:, None] * 2
    fx = torch.fft.fftfreq(width, dtype=torch.float64)[None, :] * 2
    beta = torch.where((fy**2 + fx**2).sqrt() < cutoff, s, 1.0)
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


def test_a_cutoff_at_the_bin_spacing_touches_the_mean_alone():
    response = magnitude_response("step", radial_frequency((8, 8)), 0.25)
    assert response.sum() == 1
    assert response[0, 0] == 1


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
    modulation = step(0.4, 0.6, (4, 4), prefix=1, b=1.5).double()
    backbone = torch.randn(2, 17, 3, dtype=torch.float64, requires_grad=True)
    skip = torch.randn(2, 17, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(modulation, (backbone, skip))


def test_filter_matrix_is_symmetric_and_idempotent_for_a_step():
    matrix = filter_matrix(magnitude_response("step", radial_frequency((6, 9)), 0.7))
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix @ matrix, matrix)


@pytest.mark.parametrize("b", [0.0, 0.5, 1.3, 2.0])
def test_backbone_scale_follows_equations_3_to_5(b):
    x = torch.randn(3, 1 + 20, 7)
    scaled = scale_backbone(x, b, num_prefix=1)
    for image in range(3):
        tokens = x[image, 1:]
        mean = torch.stack([sum(token) / 7 for token in tokens])
        alpha = (b - 1) * (mean - mean.min()) / (mean.max() - mean.min()) + 1
        torch.testing.assert_close(scaled[image, 1:], tokens * alpha[:, None])


def test_backbone_scale_of_a_constant_map_is_one():
    x = torch.full((2, 17, 4), 5.0)
    assert torch.equal(scale_backbone(x, 1.7, num_prefix=1), x)


def test_backbone_scale_reaches_the_first_channels_only():
    x = torch.randn(2, 16, 8)
    half, whole = scale_backbone(x, 1.4, channels=0.5), scale_backbone(x, 1.4)
    assert torch.equal(half[..., :4], whole[..., :4])
    assert torch.equal(half[..., 4:], x[..., 4:])


def test_override_acts_where_it_is_active():
    long_skip = LongSkip(SkipSettings("step", s=0.9), (4, 4), 1)
    features = torch.randn(2, 17, 3)
    trained = long_skip(features, features)
    long_skip.set_override(SkipSettings("step", s=0.0, b=1.5), torch.device("cpu"))
    override = long_skip(features, features)
    mixed = long_skip(features, features, torch.tensor([True, False])[:, None, None])
    for inside, outside, both in zip(override, trained, mixed, strict=True):
        assert not torch.equal(inside[0], outside[0])
        assert torch.equal(both[0], inside[0])
        assert torch.equal(both[1], outside[1])
    assert list(long_skip.state_dict()) == []


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
    ],
)
def test_settings_outside_their_range_are_named(wrong, named):
    with pytest.raises(ValueError, match=f"{named}.*accepted"):
        SkipSettings(**wrong)
