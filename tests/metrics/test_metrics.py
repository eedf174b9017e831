"""Metrics against values computed by hand, an independent SSIM, and numbers computed with the pystoi package."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vqtok.losses.reconstruction import mel_filters
from vqtok.metrics.audio import mel_distance, si_sdr, stoi
from vqtok.metrics.image import ms_ssim, psnr, ssim


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def images(generator):
    """Return two smooth color images with values in all of [-1, 1]."""
    coarse = torch.rand(2, 3, 14, 12, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (224, 192), mode="bilinear")


def noisy(x, scale, generator):
    return x + scale * torch.randn(x.shape, generator=generator)


# --- images


def test_psnr_of_a_hand_worked_difference():
    x = torch.zeros(3, 1, 4, 4)
    x_hat = torch.stack([torch.full((1, 4, 4), 0.2), torch.zeros(1, 4, 4), torch.full((1, 4, 4), 7.0)])
    # Peak to peak 2: 20 log10(2 / 0.2) = 20 dB; equal images; 7 is clamped to 1: 20 log10(2 / 1).
    assert psnr(x, x_hat).tolist() == pytest.approx([20, math.inf, 20 * math.log10(2)], rel=1e-6)


def reference_ssim(x, x_hat):
    """Return SSIM and its contrast part for one plane in [0, 1], window by window as in the paper."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    patches, patches_hat = (np.lib.stride_tricks.sliding_window_view(p, (11, 11)) for p in (x, x_hat))
    mean, mean_hat = ((p * window).sum((2, 3), keepdims=True) for p in (patches, patches_hat))
    variance = ((patches - mean) ** 2 * window).sum((2, 3))
    variance_hat = ((patches_hat - mean_hat) ** 2 * window).sum((2, 3))
    covariance = ((patches - mean) * (patches_hat - mean_hat) * window).sum((2, 3))
    mean, mean_hat = mean[..., 0, 0], mean_hat[..., 0, 0]
    luminance = (2 * mean * mean_hat + 0.01**2) / (mean**2 + mean_hat**2 + 0.01**2)
    contrast = (2 * covariance + 0.03**2) / (variance + variance_hat + 0.03**2)
    return (luminance * contrast).mean(), contrast.mean()


def planes(x):
    return ((x.double() + 1) / 2).numpy()


def test_ssim_agrees_with_an_independent_implementation(images, generator):
    x = images[..., :40, :33]
    x_hat = noisy(x, 0.2, generator).clamp(-1, 1)
    expected = [
        np.mean([reference_ssim(*pair)[0] for pair in zip(*item, strict=True)])
        for item in zip(planes(x), planes(x_hat), strict=True)
    ]
    assert 0.2 < expected[0] < 0.9
    assert ssim(x, x_hat).tolist() == pytest.approx(expected, abs=1e-9)


def test_ms_ssim_agrees_with_an_independent_implementation(images, generator):
    x = images[:1, :1]
    x_hat = noisy(x, 0.4, generator).clamp(-1, 1)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])
    expected, plane, plane_hat = 1.0, planes(x)[0, 0], planes(x_hat)[0, 0]
    for scale, weight in enumerate(weights / weights.sum()):
        expected *= reference_ssim(plane, plane_hat)[0 if scale == 4 else 1] ** weight
        plane, plane_hat = ((p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]) / 4 for p in (plane, plane_hat))
    assert ms_ssim(x, x_hat).tolist() == pytest.approx([expected], abs=1e-9)


@pytest.mark.parametrize("metric", [psnr, ssim, ms_ssim])
def test_image_metrics_fall_as_noise_grows(metric, images, generator):
    scores = torch.stack([metric(images, noisy(images, scale, generator)) for scale in (0.0, 0.05, 0.2, 0.8)])
    assert (scores.diff(dim=0) < 0).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 30), (10, 10), (11, 11), (47, 21)])
def test_similarity_of_small_images_has_one_scale(height, width, images, generator):
    x = images[..., :height, :width]
    x_hat = noisy(x, 0.1, generator)
    assert ssim(x, x).tolist() == pytest.approx([1, 1])
    assert (ssim(x, x_hat) < 0.9999).all()
    assert ms_ssim(x, x_hat).tolist() == pytest.approx(ssim(x, x_hat).tolist())


def test_ms_ssim_of_a_negative_is_zero(generator):
    x = torch.randn(1, 1, 64, 64, generator=generator).clamp(-1, 1)
    assert ssim(x, -x).item() < 0
    assert ms_ssim(x, -x).item() == 0


# --- audio


def test_si_sdr_of_orthogonal_noise_and_any_scale():
    time = torch.arange(1000) / 1000
    x = torch.sin(2 * torch.pi * 5 * time).expand(1, 2, -1)
    noise = torch.sin(2 * torch.pi * 7 * time)
    # Noise of a tenth of the amplitude: 20 dB; of twice the amplitude: -6.02 dB. An offset is no distortion.
    for scale, expected in ((0.1, 20), (2, -20 * math.log10(2))):
        for gain in (1, 0.01, -3):
            assert si_sdr(x, gain * (x + scale * noise) + 0.3).item() == pytest.approx(expected, abs=1e-4)
    # Energies of both channels are added before the ratio is computed.
    noise = torch.stack([0.1 * noise, noise])
    assert si_sdr(x, x + noise).item() == pytest.approx(10 * math.log10(2 / 1.01), abs=1e-4)


def test_si_sdr_of_silence_and_of_equal_sound_is_limited(generator):
    audio = torch.randn(1, 1, 500, generator=generator)
    silence, offset = torch.zeros(1, 1, 500), torch.full((1, 1, 500), 0.1)
    x = torch.cat([audio, audio, audio, silence, silence, offset])
    x_hat = torch.cat([audio, 2 * audio, silence, audio, silence, silence])
    assert si_sdr(x, x_hat).tolist() == [100, 100, -100, -100, 100, 100]


def test_mel_distance_of_a_tenth_of_the_amplitude_is_one(generator):
    x = torch.randn(2, 2, 16000, generator=generator) * 0.3
    x_hat = torch.stack([x[0], 0.1 * x[1]])
    assert mel_distance(x, x_hat, 16000).tolist() == pytest.approx([0, 1], abs=1e-3)


def reference_log_mel(x, window_size, num_mels):
    frames = np.pad(x.double().numpy(), window_size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(frames, window_size)[:: window_size // 4]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_size) / window_size)
    mels = np.abs(np.fft.rfft(frames * window)) @ mel_filters(24000, window_size, num_mels).numpy().T
    return np.log10(np.maximum(mels, 1e-5))


def test_mel_distance_agrees_with_an_independent_implementation(generator):
    x, x_hat = torch.randn(2, 5000, generator=generator).cumsum(1) * 1e-3
    expected = [
        np.abs(reference_log_mel(x, *resolution) - reference_log_mel(x_hat, *resolution)).mean()
        for resolution in ((2048, 150), (512, 80))
    ]
    distance = mel_distance(x.view(1, 1, -1), x_hat.view(1, 1, -1), 24000)
    assert distance.tolist() == pytest.approx([np.mean(expected)], rel=1e-3)


def test_mel_distance_ignores_what_is_below_its_floor():
    x = torch.zeros(1, 1, 3000)
    assert mel_distance(x, x + 1e-9, 16000).item() == 0


@pytest.mark.parametrize("samples", [1, 1000, 1025])
def test_mel_distance_is_defined_for_short_sound(samples, generator):
    x = torch.randn(1, 1, samples, generator=generator)
    assert 0 < mel_distance(x, 0.5 * x, 44100).item() < 1


def speech_like(sample_rate):
    """Return two seconds of a gliding voice of 30 harmonics in syllables, with a silent gap."""
    time = np.arange(2 * sample_rate) / sample_rate
    phase = 2 * np.pi * (120 * time + 4 * np.sin(2 * np.pi * 1.5 * time))
    syllables = np.clip(np.sin(2 * np.pi * 3 * time), 0, None) ** 2 * (np.abs(time - 1.2) > 0.25)
    timbre = [(1 + np.cos(2 * np.pi * 0.7 * k * time)) * 0.2 / k for k in range(1, 31)]
    return syllables * sum(level * np.sin(k * phase) for k, level in enumerate(timbre, start=1))


def with_noise(x, snr):
    noise = np.random.RandomState(0).standard_normal(len(x))
    return x + noise * np.sqrt(np.mean(x**2) / np.mean(noise**2)) * 10 ** (-snr / 20)


# Computed with pystoi 0.4.1: {sample rate: scores at -5, 5 and 15 dB}, and the tolerance for another resampler.
PYSTOI = {
    10000: ([0.694067, 0.908106, 0.989330], 1e-5),
    16000: ([0.775568, 0.946645, 0.993945], 1e-4),
    44100: ([0.850202, 0.974008, 0.997593], 1e-4),
}


@pytest.mark.parametrize("sample_rate", PYSTOI)
def test_stoi_agrees_with_pystoi(sample_rate):
    expected, tolerance = PYSTOI[sample_rate]
    clean = speech_like(sample_rate)
    x = torch.tensor(clean, dtype=torch.float32).expand(3, 1, -1)
    x_hat = torch.tensor(np.stack([with_noise(clean, snr) for snr in (-5, 5, 15)]), dtype=torch.float32)
    assert stoi(x, x_hat.unsqueeze(1), sample_rate).tolist() == pytest.approx(expected, abs=tolerance)


def test_stoi_of_clean_speech_is_one_and_of_silence_zero():
    x = torch.tensor(speech_like(16000), dtype=torch.float32).expand(2, 2, -1)
    x_hat = x * torch.tensor([0.5, 0.0]).view(2, 1, 1)
    assert stoi(x, x_hat, 16000).tolist() == pytest.approx([1, 0])


@pytest.mark.parametrize("samples", [50, 3000, 20000])
def test_stoi_of_too_little_sound_is_nan(samples):
    x = torch.zeros(1, 1, samples)
    x[..., :40] = 1
    assert stoi(x, x, 10000).isnan().all()


@pytest.mark.parametrize("metric", [psnr, ssim, ms_ssim, si_sdr])
def test_shapes_that_differ_are_refused(metric):
    x = torch.zeros(1, 3, 16, 16) if metric is not si_sdr else torch.zeros(1, 3, 16)
    with pytest.raises(ValueError, match="equal shape"):
        metric(x, x[:, :1])
