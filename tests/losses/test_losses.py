"""Reconstruction losses, against values computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vqtok.config import LossConfig
from vqtok.errors import UsageError
from vqtok.losses.reconstruction import (
    LoudnessLoss,
    MelLoss,
    ReconstructionLoss,
    SDRLoss,
    STFTLoss,
    magnitudes,
    mel_filters,
)
from vqtok.losses.speech import PESQLoss, STOILoss
from vqtok.media.audio import read_audio
from vqtok.metrics.audio import stoi

SAMPLES = Path(__file__).parents[1] / "samples"
RATE = 24_000
MEL_WINDOWS = LossConfig().mel_windows
SPEECH_LOSSES = [STOILoss(RATE), PESQLoss(RATE)]
SOUND_LOSSES = [MelLoss(RATE, MEL_WINDOWS), STFTLoss(), LoudnessLoss(RATE), SDRLoss(), *SPEECH_LOSSES]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_mel_filters_by_hand() -> None:
    # 2 kHz is 15 + 27 log(2) / log(6.4) = 25.0820 mel. A third and two thirds of it, 8.3607 and 16.7213, are
    # 557.38 and 1000 * 6.4 ** (1.7213 / 27) = 1125.63 Hz. Bins lie at 0, 500, 1000, 1500 and 2000 Hz.
    first = [0, 500 / 557.38, (1125.63 - 1000) / (1125.63 - 557.38), 0, 0]
    second = [0, 0, (1000 - 557.38) / (1125.63 - 557.38), (2000 - 1500) / (2000 - 1125.63), 0]
    expected = torch.stack([torch.tensor(first) * 2 / 1125.63, torch.tensor(second) * 2 / (2000 - 557.38)])
    torch.testing.assert_close(mel_filters(4000, 8, 2), expected, rtol=1e-4, atol=1e-8)


def test_mel_filters_below_1_khz_are_linear() -> None:
    # Edges at 0, 160, ... 800 Hz, bins of 16 Hz.
    filters = mel_filters(1600, 100, 4)
    assert filters.argmax(1).tolist() == [10, 20, 30, 40]
    torch.testing.assert_close(filters.amax(1), torch.full((4,), 2 / 320))


def test_mel_filters_have_equal_area_and_rising_peaks() -> None:
    filters = mel_filters(RATE, 2048, 80)
    assert filters.shape == (80, 1025)
    assert (filters.argmax(1).diff() > 0).all()
    # Hz per bin; the narrow low filters are sampled too coarsely to be exact.
    torch.testing.assert_close(filters.sum(1) * RATE / 2048, torch.ones(80), rtol=0.1, atol=0)
    torch.testing.assert_close(filters[40:].sum(1) * RATE / 2048, torch.ones(40), rtol=0.005, atol=0)


@pytest.mark.parametrize("window", MEL_WINDOWS)
def test_no_band_of_the_mel_loss_is_empty(window: int) -> None:
    assert (mel_filters(RATE, window, window * 5 // 32).sum(1) > 0).all()


def test_mel_loss_is_the_mean_over_its_windows() -> None:
    x, x_hat = noise(2, 1, 4096), noise(2, 1, 4096)
    short, long, both = (MelLoss(RATE, windows)(x, x_hat) for windows in ((64,), (512,), (64, 512)))
    torch.testing.assert_close(both, (short + long) / 2)


def test_magnitudes_of_a_cosine() -> None:
    # Amplitude a at a bin's center: a times half the sum of the window (n / 2 for a Hann window) in every frame
    # that the ends do not reach.
    x = 0.5 * torch.cos(2 * torch.pi * 8 * torch.arange(256) / 64)[None]
    found = magnitudes(x, 64)
    assert found.shape == (1, 33, 256 // 16 + 1)
    torch.testing.assert_close(found[0, 8, 2:-2], torch.full((13,), 0.5 * 16), rtol=1e-4, atol=0)
    assert found[0, 20, 2:-2].max() < 1e-4


@pytest.mark.parametrize("loss", SOUND_LOSSES[:2])
def test_equal_signals_have_no_spectral_loss(loss: torch.nn.Module) -> None:
    x = noise(2, 1, 4096)
    assert loss(x, x.clone()).item() == 0


def test_ten_times_as_loud_is_1_in_mel() -> None:
    x = noise(2, 1, 8192)
    torch.testing.assert_close(MelLoss(RATE, MEL_WINDOWS)(x, 10 * x), torch.tensor(1.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(MelLoss(RATE, MEL_WINDOWS)(x, 0.1 * x), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_ten_times_as_loud_is_10_in_stft() -> None:
    x = noise(2, 1, 8192)
    # 9 of spectral convergence and 1 of log magnitude.
    torch.testing.assert_close(STFTLoss()(x, 10 * x), torch.tensor(10.0), rtol=1e-4, atol=0)


def test_loudness_grows_with_magnitude_to_the_power_of_0_3() -> None:
    loss, x = LoudnessLoss(RATE), 0.1 * noise(2, 1, RATE)
    # A gain g turns every compressed band b into about g ** 0.3 * b.
    expected = ((8**0.3 - 1) / (2**0.3 - 1)) ** 2
    torch.testing.assert_close(loss(x, 8 * x) / loss(x, 2 * x), torch.tensor(expected), rtol=1e-3, atol=0)
    levels = torch.tensor([1.0, 0.01])[:, None, None]
    torch.testing.assert_close(loss(levels * x, levels * 2 * x), loss(x, 2 * x), rtol=0.02, atol=0)


def test_what_is_below_the_floor_is_silence() -> None:
    x = torch.zeros(1, 1, 4096)
    assert MelLoss(RATE, MEL_WINDOWS)(x, 1e-8 * noise(1, 1, 4096)).item() == 0


def test_sdr_by_hand() -> None:
    x = noise(3, 1, 4096)
    sdr = SDRLoss()
    torch.testing.assert_close(sdr(x, torch.zeros_like(x)), torch.tensor(0.0))
    torch.testing.assert_close(sdr(x, 1.1 * x), torch.tensor(-2.0), rtol=1e-3, atol=0)
    # Loud and quiet items have equal weight.
    levels = torch.tensor([1.0, 0.1, 0.3])[:, None, None]
    torch.testing.assert_close(sdr(levels * x, levels * 1.1 * x), torch.tensor(-2.0), rtol=0.02, atol=0)
    # The pre-emphasis takes away 0.9 of a constant, but also of its error.
    torch.testing.assert_close(sdr(torch.ones(1, 1, 64), torch.zeros(1, 1, 64)), torch.tensor(0.0))


@pytest.mark.parametrize("loss", SOUND_LOSSES)
@pytest.mark.parametrize("samples", [2, 17, 300, 12_000])
@pytest.mark.parametrize(("target", "estimate"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_losses_and_gradients_are_finite(loss: torch.nn.Module, samples: int, target: int, estimate: int) -> None:
    x = target * noise(1, 1, samples)
    x_hat = (estimate * noise(1, 1, samples).flip(-1)).requires_grad_()
    value = loss(x, x_hat)
    value.backward()
    assert value.isfinite()
    assert x_hat.grad is not None
    assert x_hat.grad.isfinite().all()


@pytest.mark.parametrize("loss", SOUND_LOSSES[:4])
def test_losses_pull_towards_the_target(loss: torch.nn.Module) -> None:
    x = noise(2, 1, 4096)
    x_hat = (0.5 * x).requires_grad_()
    loss(x, x_hat).backward()
    assert x_hat.grad is not None
    assert loss(x, x_hat - 0.1 * x_hat.grad / x_hat.grad.abs().max()) < loss(x, x_hat)


def test_bfloat16_estimates_are_taken_in_float32() -> None:
    x = noise(1, 1, 4096)
    for loss in SOUND_LOSSES:
        assert loss(x, x.bfloat16()).dtype == torch.float32


def test_reconstruction_picks_its_terms() -> None:
    x, x_hat = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5)
    found = ReconstructionLoss(LossConfig(l1=0.1, l2=7.0), 0)(x, x_hat)
    assert {name: term.item() for name, term in found.items()} == {"l1": 0.5, "l2": 0.25}
    audio = ReconstructionLoss(LossConfig(l1=1, mel=1, stft=1, sdr=1, loudness=1, stoi=1, pesq=1), RATE)
    assert set(audio(noise(1, 1, 64), noise(1, 1, 64))) == {"l1", "mel", "stft", "sdr", "loudness", "stoi", "pesq"}


def test_terms_for_speech_are_of_speech_only() -> None:
    losses = ReconstructionLoss(LossConfig(mel=1, stoi=1, pesq=1), RATE)
    x, x_hat = speech(RATE).repeat(4, 1, 1), (speech(RATE) + noise(4, 1, RATE)).requires_grad_()
    of_all, of_some = losses(x, x_hat), losses(x, x_hat, torch.tensor([True, False, False, False]))
    torch.testing.assert_close(of_some["mel"], of_all["mel"])
    for name in ("stoi", "pesq"):
        # The mean of one item and of three that count as 0.
        torch.testing.assert_close(of_some[name], losses(x[:1], x_hat[:1])[name] / 4)
    of_none = losses(x, x_hat, torch.zeros(4, dtype=torch.bool))
    assert of_none["stoi"].item() == of_none["pesq"].item() == 0
    sum(of_none.values(), torch.zeros(())).backward()
    assert x_hat.grad is not None


def test_reconstruction_needs_a_term_that_fits() -> None:
    with pytest.raises(UsageError, match="loss: no reconstruction term"):
        ReconstructionLoss(LossConfig(), RATE)
    with pytest.raises(UsageError, match=r"loss\.mel is for audio"):
        ReconstructionLoss(LossConfig(l1=1, mel=1), 0)


def speech(count: int) -> Tensor:
    """Return noise that is loud and quiet four times a second, in a different rhythm in each octave."""
    generator = torch.Generator().manual_seed(1)
    times = torch.arange(count) / RATE
    bands = [
        torch.sin(2 * torch.pi * 150 * 2**octave * times) * (1.1 + torch.sin(2 * torch.pi * (3 + octave) * times))
        for octave in range(5)
    ]
    return (sum(bands, torch.zeros(count)) + 0.1 * torch.randn(count, generator=generator))[None, None]


def test_stoi_loss_is_one_minus_the_metric() -> None:
    x = speech(2 * RATE)
    for level in (0.3, 1.0):
        x_hat = x + level * noise(1, 1, 2 * RATE)
        assert STOILoss(RATE)(x, x_hat).item() == pytest.approx(1 - stoi(x, x_hat, RATE).item(), abs=0.05)
    assert STOILoss(RATE)(x, 0.1 * x).item() == pytest.approx(0, abs=1e-4)
    x_hat = (x + noise(1, 1, 2 * RATE)).requires_grad_()
    loss = STOILoss(RATE)(x, x_hat)
    loss.backward()
    assert x_hat.grad is not None
    assert STOILoss(RATE)(x, x_hat - 0.1 * x_hat.grad / x_hat.grad.abs().max()) < loss


def test_stoi_loss_leaves_out_what_is_silent_or_too_short() -> None:
    x = speech(2 * RATE)
    x_hat = x + noise(1, 1, 2 * RATE)
    loss = STOILoss(RATE)
    silent = torch.zeros(1, 1, 2 * RATE)
    hiss = noise(1, 1, 2 * RATE)
    # Two items: of the silent one nothing counts.
    both = loss(torch.cat([x, silent]), torch.cat([x_hat, hiss]))
    torch.testing.assert_close(both, loss(x, x_hat))
    assert loss(silent, hiss).item() == 0
    assert loss(x[..., : RATE // 4], hiss[..., : RATE // 4]).item() == 0


def opinion(loss: Tensor) -> float:
    """Map a loss to the scale of PESQ (P.862.2, section 5)."""
    return 0.999 + 4 / (1 + math.exp(1.3669 * (loss.item() - 4.5) + 3.8224))


def test_pesq_loss_is_near_the_standard() -> None:
    media = read_audio(SAMPLES / "speech.flac", RATE, mono=True)
    x = torch.from_numpy(media.data)[None]
    hiss = x.std() * noise(*x.shape)
    loss = PESQLoss(RATE)
    # The package pesq 0.0.4 gives these for the same signals at 16 kHz.
    for decibels, expected in ((10, 1.11), (20, 1.62), (30, 2.70), (40, 3.73)):
        found = opinion(loss(x, x + 10 ** (-decibels / 20) * hiss))
        assert found == pytest.approx(expected, abs=0.25), decibels
    assert opinion(loss(x, x)) == pytest.approx(4.64, abs=0.01)
    # Less of the signal is not as bad as more of another.
    assert loss(x, 0.9 * x) < loss(x, x + 0.1 * hiss)


def test_pesq_loss_has_a_gradient_that_helps_and_leaves_silence_alone() -> None:
    x = speech(RATE)
    x_hat = (x + 0.1 * noise(1, 1, RATE)).requires_grad_()
    loss = PESQLoss(RATE)(x, x_hat)
    loss.backward()
    assert x_hat.grad is not None
    assert PESQLoss(RATE)(x, x_hat - 0.01 * x_hat.grad / x_hat.grad.abs().max()) < loss
    silent = torch.zeros(1, 1, RATE)
    assert PESQLoss(RATE)(silent, 1e-6 * noise(1, 1, RATE)) < 0.1
    assert PESQLoss(RATE)(x[..., :100], x_hat[..., :100]).item() == 0
