"""The responses against scipy and against what is known of them."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import signal

from uvit_lit.families import FILTERS, PROTOTYPES
from uvit_lit.filters import LowPass, frequencies, hartley_matrix, radial_power

DESIGNS = {
    "butterworth": [{}],
    "chebyshev": [{"ripple": r} for r in (0.05, 1.0, 6.0)],
    "chebyshev2": [{"attenuation": a} for a in (10.0, 40.0, 80.0)],
}
EVERY = [(name, design) for name, designs in DESIGNS.items() for design in designs]
CUTOFFS = (1 / 64, 0.125, 0.3, 1.0, math.sqrt(2))


def along_an_axis(radius):
    """Frequencies of that radius."""
    radius = torch.as_tensor(radius, dtype=torch.float64)
    return torch.stack([radius, torch.zeros_like(radius)], dim=-1)


def scipy_magnitude(name, order, cutoff, radius, ripple=None, attenuation=None):
    design = {
        "butterworth": lambda: signal.butter(order, cutoff, analog=True, output="zpk"),
        "chebyshev": lambda: signal.cheby1(order, ripple, cutoff, analog=True, output="zpk"),
        "chebyshev2": lambda: signal.cheby2(order, attenuation, cutoff, analog=True, output="zpk"),
    }[name]()
    return np.abs(signal.freqs_zpk(*design, worN=radius)[1])


@pytest.mark.parametrize(("name", "design"), EVERY)
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_equal_to_scipy(name, design, cutoff):
    radius = np.append(np.linspace(0, math.sqrt(2), 201), cutoff)
    for order in range(1, 13):
        ours = LowPass(name, order, **design)(along_an_axis(radius), cutoff)
        scipys = scipy_magnitude(name, order, cutoff, radius, **design)
        np.testing.assert_allclose(ours, scipys, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("name", "design"), EVERY)
def test_finite_in_float32_with_a_finite_gradient(name, design):
    """At f = 0, at the cutoff, and where type II is 0, too."""
    for order in range(1, 13):
        zeros = np.array(PROTOTYPES[name](LowPass(name, order, **design))[0]).imag
        for value in CUTOFFS:
            at_zeros = np.abs(zeros[np.abs(zeros) * value < 1.4] * value)
            radius = np.concatenate([np.linspace(0, math.sqrt(2), 65), [value], at_zeros])
            frequency = along_an_axis(radius).float()
            cutoff = torch.tensor([value], dtype=torch.float32, requires_grad=True)
            response = LowPass(name, order, **design)(frequency, cutoff)
            slopes = torch.autograd.functional.jacobian(
                lambda c, n=order, f=frequency: LowPass(name, n, **design)(f, c), cutoff
            )
            assert response.isfinite().all()
            assert slopes.isfinite().all()
            assert response.max() <= 1 + 1e-4
            exact = LowPass(name, order, **design)(along_an_axis(radius), value)
            torch.testing.assert_close(response.detach().double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "design"), EVERY)
@pytest.mark.parametrize("order", [1, 4, 7, 12])
def test_gradcheck(name, design, order):
    frequency = along_an_axis(torch.linspace(0, 1.4, 30))
    cutoff = torch.tensor([0.37], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: LowPass(name, order, **design)(frequency, c), cutoff)


@pytest.mark.parametrize("order", [1, 3, 6, 12])
@pytest.mark.parametrize("name", ["butterworth", "chebyshev"])
def test_falls_by_six_decibels_per_octave_and_pole(name, order):
    one, two = LowPass(name, order)(along_an_axis([40.0, 80.0]), 0.5).log10() * 20
    assert float(two - one) == pytest.approx(-6.02 * order, abs=0.02 * order)


def test_a_butterworth_of_high_order_is_the_step():
    """Away from the edge, beyond the accepted orders."""
    steep = LowPass("butterworth")
    object.__setattr__(steep, "order", 50)
    radius = np.linspace(0, math.sqrt(2), 300)
    away = along_an_axis(radius[np.abs(radius / 0.6 - 1) > 0.15])
    step = LowPass("step")(away, 0.6)
    torch.testing.assert_close(steep(away, 0.6), step, atol=1e-3, rtol=0)


@pytest.mark.parametrize("ripple", [0.5, 3.0])
@pytest.mark.parametrize("order", range(1, 9))
def test_type_i_has_gain_s_at_the_peaks_of_its_response(order, ripple):
    """At frequency 0 for odd orders; for even ones the ripple begins at its lower end."""
    design, s, cutoff = LowPass("chebyshev", order, ripple), 0.4, 0.7
    peaks = np.cos(np.arange(1, 2 * order, 2) * np.pi / (2 * order))
    at_peaks, at_zero = (
        1 - (1 - s) * design(along_an_axis(f), cutoff) for f in (np.abs(peaks) * cutoff, [0.0])
    )
    torch.testing.assert_close(at_peaks, torch.full_like(at_peaks, s), atol=1e-12, rtol=0)
    dip = 1.0 if order % 2 else 10 ** (-ripple / 20)
    assert float(at_zero) == pytest.approx(1 - (1 - s) * dip, abs=1e-12)


def test_what_the_cutoff_means_in_each_family():
    at = along_an_axis([0.5])
    butterworth, chebyshev, chebyshev2 = (float(LowPass(n, 5, 2.0, 30.0)(at, 0.5)) for n in DESIGNS)
    assert butterworth == pytest.approx(math.sqrt(0.5))
    assert 20 * math.log10(chebyshev) == pytest.approx(-2.0)
    assert 20 * math.log10(chebyshev2) == pytest.approx(-30.0)
    assert LowPass("step")(along_an_axis([0.499, 0.5]), 0.5).tolist() == [1, 0]


@pytest.mark.parametrize("name", FILTERS[1:])
@pytest.mark.parametrize("grid", [(8, 8), (7, 5), (6, 9), (1, 4)])
def test_every_response_is_symmetric_and_in_its_range(name, grid):
    for cutoff in (0.25, 0.7, 1.0, 1.3):
        response = LowPass(name)(frequencies(grid), cutoff)
        opposite = response.flip(0, 1).roll((1, 1), (0, 1))
        torch.testing.assert_close(response, opposite, atol=1e-14, rtol=0)
        assert response.min() >= 0
        assert response.max() <= 1 + 1e-12


def test_a_cutoff_at_the_bin_spacing_touches_the_mean_alone():
    response = LowPass("step")(frequencies((8, 8)), 0.25)
    assert response.sum() == 1
    assert response[0, 0] == 1


@pytest.mark.parametrize("cutoff", [0.1, 1.0])
def test_a_flat_response_is_1_everywhere(cutoff):
    assert torch.equal(LowPass("flat")(frequencies((8, 8)), cutoff), torch.ones(8, 8).double())


@pytest.mark.parametrize("name", FILTERS[1:])
def test_a_response_can_leave_out_the_mean_alone(name):
    plain, keeping = (LowPass(name, keep_mean=keep)(frequencies((8, 8)), 0.5) for keep in (0, 1))
    assert plain[0, 0] > 0.5
    assert (plain != keeping).nonzero().tolist() == [[0, 0]]
    assert keeping[0, 0] == 0


def test_the_box_with_cutoff_1_holds_every_bin():
    assert LowPass("freeu_box")(frequencies((8, 8)), 1.0).min() == 1


@pytest.mark.parametrize("n", [8, 7, 1])
def test_the_hartley_matrix_is_its_own_inverse_and_agrees_with_the_fft(n):
    basis = hartley_matrix(n)
    torch.testing.assert_close(basis, basis.T)
    torch.testing.assert_close(basis @ basis, torch.eye(n, dtype=torch.float64))
    line = torch.randn(n, dtype=torch.float64)
    spectrum = torch.fft.fft(line, norm="ortho")
    torch.testing.assert_close(basis @ line, spectrum.real - spectrum.imag)


def test_radial_power_finds_a_wave_and_keeps_the_energy():
    grid, x = (8, 8), torch.arange(8)
    wave = torch.cos(2 * math.pi * 2 * x / 8).expand(8, 8)  # 0.5 of Nyquist
    rings, power = radial_power(wave.reshape(1, 64, 1), grid)
    assert rings[power.argmax()] == 0.5
    assert (power[rings != 0.5] < 1e-10).all()
    noise = torch.randn(4, 64, 6)
    rings, power = radial_power(noise, grid)
    radius = torch.hypot(*frequencies(grid).unbind(-1)).float()
    count = torch.tensor([(radius == ring).sum() for ring in rings])
    torch.testing.assert_close((power * count).sum() / 64, noise.square().mean())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "none"}, "filter is 'none'"),
        ({"name": "elliptic"}, "filter is 'elliptic'; accepted: none, step, butterworth"),
        ({"name": "butterworth", "order": 0}, "order is 0; accepted: 1 to 12, a whole number"),
        ({"name": "chebyshev", "ripple": 7.0}, "ripple is 7.0; accepted: 0.05 to 6.0, dB"),
        ({"name": "chebyshev2", "attenuation": 5.0}, "attenuation is 5.0; accepted: 10.0 to 80.0"),
    ],
)
def test_a_design_outside_its_range_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        LowPass(**wrong)


def test_scipy_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in PROTOTYPES:
            LowPass(name, 12)(frequencies((4, 4)), 0.5)
