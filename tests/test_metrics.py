"""Detail metrics against closed cases."""

import io
import math

import pytest
import torch
from PIL import Image
from scipy import stats

from uvit_lit import detail as metrics


def grey(values):
    """(H, W) values as one image of three equal channels."""
    return values.round().clamp(0, 255).to(torch.uint8).expand(1, 3, *values.shape)


def wave(frequency, size=32, amplitude=100.0):
    x = torch.arange(size, dtype=torch.float64)
    return grey(128 + amplitude * torch.cos(math.pi * frequency * x).expand(size, size))


def noise(count=16, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def blurred(images):
    """Each pixel replaced by the mean of 3 x 3."""
    padded = torch.nn.functional.pad(images.double(), (1, 1, 1, 1), mode="circular")
    return torch.nn.functional.avg_pool2d(padded, 3, stride=1).round().to(torch.uint8)


@pytest.mark.parametrize("frequency", [0.125, 0.375, 0.625, 0.9375])
def test_a_wave_has_its_power_at_its_frequency(frequency):
    rings, power = metrics.radial_power_spectrum(wave(frequency))
    assert rings[power[0].argmax()] == frequency
    band = sum(frequency >= low for low, _ in metrics.BANDS) - 1
    assert metrics.band_power(wave(frequency))[0].argmax() == band
    expected = 1.0 if frequency > 0.5 else 0.0
    assert float(metrics.high_frequency_ratio(wave(frequency))) == pytest.approx(expected, abs=1e-3)


def test_power_is_that_of_parseval():
    images = noise(4)
    luma = metrics.luma(images)
    variance = luma.flatten(1).var(1, correction=0)
    _, power = metrics._spectrum(images)
    torch.testing.assert_close(power.sum(1) / 32**2, variance)


def test_white_noise_is_flat():
    _, power = metrics.radial_power_spectrum(noise(64))
    decibels = 10 * power.mean(0).log10()
    assert decibels.max() - decibels.min() < 1.5
    share = sum(
        bool(math.hypot(y, x) > 0.5)
        for y in (2 * torch.fft.fftfreq(32)).tolist()
        for x in (2 * torch.fft.fftfreq(32)).tolist()
    ) / (32**2 - 1)
    ratio = metrics.high_frequency_ratio(noise(64)).mean()
    assert float(ratio) == pytest.approx(share, abs=0.01)


def test_a_constant_has_no_detail():
    image = torch.full((2, 3, 16, 16), 90, dtype=torch.uint8)
    values = metrics.measure_detail(image)
    for name in ("high_frequency_ratio", "laplacian_variance", "total_variation", "colourfulness"):
        assert values[name].tolist() == [0, 0], name
    assert values["saturation"].tolist() == [0, 0]
    assert values["clipped_share"].tolist() == [0, 0]


def test_a_blurred_copy_has_less_of_everything():
    sharp, soft = metrics.measure_detail(noise()), metrics.measure_detail(blurred(noise()))
    for name in (
        "high_frequency_ratio",
        "laplacian_variance",
        "total_variation",
        "colourfulness",
        "saturation",
        "clipped_share",
        "png_bytes",
    ):
        assert (soft[name] < sharp[name]).all(), name
    assert (soft["power_0.75-1.41_db"] < sharp["power_0.75-1.41_db"] - 6).all()


def test_the_laplacian_of_a_checkerboard():
    """Each of its pixels differs by 2 a from all four neighbours: the Laplacian is +-8 a."""
    board = torch.arange(16)[:, None] + torch.arange(16)
    values = metrics.laplacian_variance(grey(128.0 + 10 * (1 - 2 * (board % 2))))
    assert float(values) == pytest.approx(80.0**2, rel=1e-9)


def test_total_variation_of_a_ramp():
    ramp = grey(torch.arange(16.0).expand(16, 16) * 8)
    assert float(metrics.total_variation(ramp)) == pytest.approx(4.0)


def test_colourfulness_of_known_colours():
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 4, 4)
    assert float(metrics.colourfulness(red)) == pytest.approx(0.3 * math.hypot(255, 127.5))
    assert float(metrics.saturation(red)) == 1
    assert float(metrics.clipped_share(red)) == 1
    halves = torch.cat([red, red.flip(1)], dim=3)  # red and blue: rg is +-, yb is 127.5 and -255
    deviation, mean = math.hypot(127.5, 191.25), math.hypot(127.5, -63.75)
    assert float(metrics.colourfulness(halves)) == pytest.approx(deviation + 0.3 * mean)


def test_png_bytes_is_the_size_of_a_file():
    image = noise(1)
    buffer = io.BytesIO()
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(buffer, "PNG")
    assert metrics.png_bytes(image).tolist() == [len(buffer.getvalue())]


def test_one_number_per_image_whatever_the_batch():
    images = torch.cat([noise(3), blurred(noise(2))])
    together = metrics.measure_detail(images)
    for k in range(5):
        alone = metrics.measure_detail(images[k : k + 1])
        for name, value in alone.items():
            torch.testing.assert_close(value[0], together[name][k])


def test_the_interval_holds_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(4000, 8, generator=generator, dtype=torch.float64) + 3
    held = sum(low <= 3 <= high for _, low, high in map(metrics.estimate, samples))
    assert held / 4000 == pytest.approx(0.95, abs=0.015)
    assert str(metrics.estimate(torch.tensor([2.0]))[:]) == "(2.0, nan, nan)"


def test_the_interval_of_a_difference_knows_both_samples():
    """Many exact numbers beside few scattered ones: Welch's interval is nearly that of the few."""
    generator = torch.Generator().manual_seed(0)
    many, few = (
        scale * torch.randn(2000, n, generator=generator, dtype=torch.float64)
        for scale, n in ((1, 100), (3, 8))
    )
    estimates = [metrics.estimate(x + 3, -y) for x, y in zip(many, few, strict=True)]
    held = sum(low <= 3 <= high for _, low, high in estimates)
    assert held / 2000 == pytest.approx(0.95, abs=0.02)
    one = metrics.estimate(many[0], -few[0])
    welch = stats.ttest_ind(many[0], few[0], equal_var=False).confidence_interval()
    assert one[1:] == pytest.approx(tuple(welch))
    assert str(metrics.estimate(torch.zeros(3), torch.zeros(3))[:]) == "(0.0, 0.0, 0.0)"


def test_a_share_has_an_interval_even_if_it_is_all_or_nothing():
    mean, low, high = metrics.estimate(torch.ones(50, dtype=torch.bool))
    assert (mean, high) == (1, 1)
    assert 0.9 < low < 0.95
