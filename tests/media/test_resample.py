"""The sample rate converter against tones, impulses and a direct evaluation of its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vqtok.errors import MediaError
from vqtok.media.resample import Resampler, resample

RATIOS = [
    (44100, 24000),
    (24000, 44100),
    (48000, 24000),
    (24000, 48000),
    (22050, 24000),
    (22254, 24000),
    (11025, 24000),
    (24000, 11025),
    (8000, 24000),
    (48000, 8000),
]
ROUNDING = 1e-5
"""Of float32 sums of a hundred products of numbers up to 1."""


def tone(frequency: float, rate: int, samples: int) -> NDArray[np.float32]:
    return np.sin(2 * np.pi * frequency / rate * np.arange(samples) + 0.3).astype(np.float32)[None]


def decibels(power: float) -> float:
    return float(10 * np.log10(power + 1e-30))


def direct(x: NDArray[np.float32], from_rate: int, to_rate: int, num_samples: int) -> NDArray[np.float64]:
    """Compute every output separately as the sum of the windowed sinc over all samples, in float64."""
    reach = 64 * from_rate // min(from_rate, to_rate) + 1
    grid = np.arange(-reach, x.shape[1] + reach)
    padded = np.pad(x.astype(np.float64), ((0, 0), (reach, reach)))
    out = np.zeros((len(x), num_samples))
    for n in range(num_samples):
        time = (n * from_rate - grid * to_rate) / max(from_rate, to_rate)
        window = np.where(np.abs(time) < 64, np.i0(10 * np.sqrt(np.maximum(0, 1 - (time / 64) ** 2))), 0)
        weights = np.sinc(0.95 * time) * window
        out[:, n] = padded @ weights / weights.sum()
    return out


@pytest.mark.parametrize(("from_rate", "to_rate"), RATIOS)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.85, 0.9])
def test_passband_is_kept(from_rate: int, to_rate: int, share: float) -> None:
    frequency = share * min(from_rate, to_rate) / 2
    y = resample(tone(frequency, from_rate, from_rate), from_rate, to_rate)[0]
    expected = tone(frequency, to_rate, to_rate)[0]
    inner = slice(to_rate // 10, -to_rate // 10)
    error = y[inner] - expected[inner]
    assert decibels(np.mean(expected[inner] ** 2) / np.mean(error**2)) > 90


@pytest.mark.parametrize(("from_rate", "to_rate"), [pair for pair in RATIOS if pair[0] > pair[1]])
@pytest.mark.parametrize("share", [1.003, 1.1, 1.6])
def test_what_lies_above_the_new_nyquist_is_removed(from_rate: int, to_rate: int, share: float) -> None:
    y = resample(tone(min(share * to_rate, from_rate) / 2, from_rate, from_rate), from_rate, to_rate)[0]
    assert decibels(np.mean(y[to_rate // 10 : -to_rate // 10] ** 2) / 0.5) < -90


@pytest.mark.parametrize(("from_rate", "to_rate"), RATIOS)
def test_images_of_the_passband_are_removed(from_rate: int, to_rate: int) -> None:
    frequency = 0.7 * min(from_rate, to_rate) / 2
    y = resample(tone(frequency, from_rate, from_rate), from_rate, to_rate)[0]
    y = y[to_rate // 10 : -to_rate // 10]
    spectrum = np.abs(np.fft.rfft(y * np.kaiser(len(y), 20))) ** 2
    near = np.abs(np.fft.rfftfreq(len(y), 1 / to_rate) - frequency) < 50
    assert decibels(spectrum[~near].max() / spectrum.max()) < -95


@pytest.mark.parametrize(("from_rate", "to_rate"), RATIOS)
def test_an_impulse_stays_in_its_place(from_rate: int, to_rate: int) -> None:
    down, up = (rate // math.gcd(from_rate, to_rate) for rate in (from_rate, to_rate))
    periods = 2000 // down + 1
    x = np.zeros((1, 2 * periods * down), np.float32)
    x[0, periods * down] = 1
    y = resample(x, from_rate, to_rate)[0]
    centre = periods * up
    assert np.argmax(np.abs(y)) == centre
    np.testing.assert_allclose(y[centre - 100 : centre], y[centre + 100 : centre : -1], atol=ROUNDING)


@pytest.mark.parametrize(("from_rate", "to_rate"), RATIOS)
def test_a_constant_stays_constant(from_rate: int, to_rate: int) -> None:
    y = resample(np.full((1, from_rate // 4), 0.5, np.float32), from_rate, to_rate)[0]
    np.testing.assert_allclose(y[to_rate // 20 : -to_rate // 20], 0.5, atol=ROUNDING)


@pytest.mark.parametrize(("from_rate", "to_rate"), RATIOS)
def test_equals_the_direct_sum(from_rate: int, to_rate: int) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (2, 700)).astype(np.float32)
    y = resample(x, from_rate, to_rate)
    np.testing.assert_allclose(y, direct(x, from_rate, to_rate, y.shape[1]), atol=ROUNDING)


@settings(deadline=None, max_examples=25)
@given(
    rates=st.sampled_from([*RATIOS, (24000, 24000)]),
    cuts=st.lists(st.integers(0, 60000), max_size=5),
    num_samples=st.none() | st.integers(59900, 60100),
)
def test_pieces_do_not_show(rates: tuple[int, int], cuts: list[int], num_samples: int | None) -> None:
    x = np.random.default_rng(1).uniform(-1, 1, (2, 60000)).astype(np.float32)
    if num_samples is not None:
        num_samples = num_samples * rates[1] // rates[0]
    pieces = np.split(x, sorted(cuts), axis=1)
    y = np.concatenate(list(Resampler(*rates, 2).stream(pieces, num_samples)), axis=1)
    assert np.array_equal(y[:, :num_samples], resample(x, *rates, num_samples))
    for channel in (0, 1):
        assert np.array_equal(resample(x[channel : channel + 1], *rates, num_samples)[0], y[channel, :num_samples])


def test_is_linear_and_keeps_channels_apart() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.uniform(-1, 1, (2, 1, 3000)).astype(np.float32)
    both = resample(np.concatenate([a, b]), 44100, 24000)
    np.testing.assert_allclose(both[:1], resample(a, 44100, 24000), atol=ROUNDING)
    np.testing.assert_allclose(both[0] * 2 + both[1], resample(2 * a + b, 44100, 24000)[0], atol=1e-5)


@settings(deadline=None)
@given(
    samples=st.integers(0, 3000),
    from_rate=st.integers(1, 2000),
    to_rate=st.integers(8, 2000),
    num_samples=st.none() | st.integers(0, 3000),
)
@example(samples=1, from_rate=44100, to_rate=24000, num_samples=None)
@example(samples=100, from_rate=44100, to_rate=44101, num_samples=None)
@example(samples=100, from_rate=24000, to_rate=24000, num_samples=130)
def test_lengths_are_exact(samples: int, from_rate: int, to_rate: int, num_samples: int | None) -> None:
    assume(1 / 256 <= to_rate / from_rate <= 256)
    x = np.random.default_rng(samples).uniform(-1, 1, (2, samples)).astype(np.float32)
    y = resample(x, from_rate, to_rate, num_samples)
    natural = -(-samples * to_rate // from_rate)
    assert y.shape == (2, natural if num_samples is None else num_samples)
    assert y.dtype == np.float32
    assert y.flags.c_contiguous
    assert np.isfinite(y).all()
    if num_samples is not None:  # Another length does not change the samples that both results have.
        shared = min(num_samples, natural)
        np.testing.assert_allclose(y[:, :shared], resample(x, from_rate, to_rate)[:, :shared], atol=1e-5)


def test_there_and_back_restores_the_length_and_the_sound() -> None:
    x = tone(440, 44100, 44100) + tone(3000, 44100, 44100)
    back = resample(resample(x, 44100, 24000), 24000, 44100, x.shape[1])
    assert back.shape == x.shape
    np.testing.assert_allclose(back[:, 1000:-1000], x[:, 1000:-1000], atol=1e-4)


def test_same_rate_changes_nothing() -> None:
    x = np.random.default_rng(3).uniform(-1, 1, (2, 50)).astype(np.float32)
    assert np.array_equal(resample(x, 24000, 24000), x)


@pytest.mark.parametrize(("from_rate", "to_rate"), [(0, 24000), (24000, 0), (-1, 8000), (1, 24000), (10**9, 8000)])
def test_absurd_rates_are_refused(from_rate: int, to_rate: int) -> None:
    with pytest.raises(MediaError, match="cannot resample"):
        resample(np.zeros((1, 10), np.float32), from_rate, to_rate)
