"""Metrics of the quality of reconstructed audio `x_hat` of `x`, one number per item of a batch.

Every function takes two tensors of the same shape `(batch, channels, samples)` with a nominal range of [-1, 1], and
returns a `(batch,)` tensor without gradient. All but the spectral distances compute in float64.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtok.losses.reconstruction import FLOOR, magnitudes, mel_filters
from vqtok.media.resample import resample
from vqtok.metrics.image import check_shapes

SI_SDR_LIMIT = 100.0
MEL_SPECTROGRAMS = (2048, 150), (512, 80)
STFT_WINDOWS = 512, 1024, 2048
STOI_RATE = 10_000
STOI_FRAME, STOI_FFT, STOI_HOP = 256, 512, 128
STOI_BANDS, STOI_LOWEST = 15, 150.0
STOI_SEGMENT = 30
STOI_DYNAMIC_RANGE = 40.0
STOI_LOWEST_SDR = -15.0


def si_sdr(x: Tensor, x_hat: Tensor) -> Tensor:
    """Compute the scale-invariant signal-to-distortion ratio in dB, with one scale for all channels.

    The mean of each channel is subtracted first. The ratio is limited to [-100, 100] dB, so that averages
    over many clips stay finite: 100 if `x_hat` is a multiple of `x` or both are silent, -100 if only one of
    them is silent or they are orthogonal.

    Source: Le Roux et al. 2019, SDR - half-baked or well done?
    """
    check_shapes(x, x_hat, ndim=3)
    x, x_hat = (signal.detach().double() for signal in (x, x_hat))
    x, x_hat = ((signal - signal.mean(-1, keepdim=True)).flatten(1) for signal in (x, x_hat))
    energy, energy_hat = x.square().sum(-1), x_hat.square().sum(-1)
    silence = 1e-20 * x.shape[-1]  # -200 dB, the rounding error of a constant signal
    silent, silent_hat = energy < silence, energy_hat < silence
    target = ((x * x_hat).sum(-1) / energy)[:, None] * x
    ratio = 10 * (target.square().sum(-1) / (x_hat - target).square().sum(-1)).log10()
    ratio = torch.where(silent | silent_hat, torch.where(silent & silent_hat, torch.inf, -torch.inf), ratio)
    return ratio.clamp(-SI_SDR_LIMIT, SI_SDR_LIMIT)


def mel_distance(x: Tensor, x_hat: Tensor, sample_rate: int) -> Tensor:
    """Compute the mean absolute difference of log10 mel spectrograms in float32; 1 corresponds to 20 dB.

    The mean over two resolutions: magnitudes in Hann windows of 2048 and 512 samples, centered and a quarter
    of their length apart, through 150 and 80 `mel_filters`; values below 1e-5 count as 1e-5. Audio is
    reflected at both ends, or padded with silence if it is no longer than half a window.

    Source: Kumar et al. 2023, High-fidelity audio compression with improved RVQGAN: the default windows, mels
    and floor of `MelSpectrogramLoss` in its code.
    Unlike: The source adds the two resolutions, takes log10 of squares (twice the value here) and adds the
    differences of the magnitudes themselves. Its published numbers are not comparable with these.
    """
    check_shapes(x, x_hat, ndim=3)
    signals = torch.stack([x, x_hat]).detach().float()
    distances = []
    for window_size, num_mels in MEL_SPECTROGRAMS:
        filters = mel_filters(sample_rate, window_size, num_mels).to(x.device)
        mels = filters @ magnitudes(signals.flatten(0, 2), window_size)
        log_mel, log_mel_hat = mels.clamp(min=FLOOR).log10().reshape(2, len(x), -1)
        distances.append((log_mel - log_mel_hat).abs().mean(1))
    return torch.stack(distances).mean(0)


def stft_distance(x: Tensor, x_hat: Tensor) -> Tensor:
    """Compute the mean absolute difference of log10 STFT magnitudes in float32; 1 corresponds to 20 dB.

    The mean over Hann windows of 512, 1024 and 2048 samples, a quarter of their length apart; magnitudes below 1e-5
    count as 1e-5.

    Source: Yamamoto et al. 2020, "Parallel WaveGAN", section 2.2: the log-magnitude term of the multi-resolution loss.
    Unlike: Without the spectral convergence, which has no bound for silence.
    """
    check_shapes(x, x_hat, ndim=3)
    signals = torch.stack([x, x_hat]).detach().float()
    distances = []
    for window_size in STFT_WINDOWS:
        found = magnitudes(signals.flatten(0, 2), window_size).clamp(min=FLOOR).log10().reshape(2, len(x), -1)
        distances.append((found[0] - found[1]).abs().mean(1))
    return torch.stack(distances).mean(0)


def stoi(x: Tensor, x_hat: Tensor, sample_rate: int) -> Tensor:
    """Compute the short-time objective intelligibility of speech, from about 0 (none) to 1 (all).

    Channels are mixed down and resampled to 10 kHz. NaN if `x` has less than 30 frames (0.4 s) within 40 dB
    of its loudest frame.

    Source: Taal et al. 2011, An algorithm for intelligibility prediction of time-frequency weighted noisy
    speech, section II.
    """
    check_shapes(x, x_hat, ndim=3)
    pairs = torch.stack([x, x_hat], 1).detach().float().mean(2).cpu().numpy()
    scores = [_stoi(*resample(pair, sample_rate, STOI_RATE).astype(np.float64)) for pair in pairs]
    return torch.tensor(scores, dtype=torch.float64, device=x.device)


def _stoi(x: NDArray[np.float64], x_hat: NDArray[np.float64]) -> float:
    """Compute the STOI of one mono signal at 10 kHz."""
    x_bands, x_hat_bands = (_third_octaves(signal) for signal in _without_silence(x, x_hat))
    if x_bands.shape[-1] < STOI_SEGMENT:
        return math.nan
    # Both have the shape (bands, segments, frames of a segment).
    segments, segments_hat = (
        np.lib.stride_tricks.sliding_window_view(bands, STOI_SEGMENT, axis=-1) for bands in (x_bands, x_hat_bands)
    )
    segments_hat = _unit(segments_hat) * np.linalg.norm(segments, axis=-1, keepdims=True)
    segments_hat = np.minimum(segments_hat, segments * (1 + 10 ** (-STOI_LOWEST_SDR / 20)))
    centered, centered_hat = (part - part.mean(-1, keepdims=True) for part in (segments, segments_hat))
    return float((_unit(centered) * _unit(centered_hat)).sum(-1).mean())


def _frames(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut a signal into windowed frames that overlap by half: `(frames, STOI_FRAME)`.

    A frame that would end with the signal's last sample is left out, as `pystoi` does.
    """
    padded = np.pad(signal, (0, max(0, STOI_FRAME - len(signal))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, STOI_FRAME)[:-1:STOI_HOP]
    return frames * np.hanning(STOI_FRAME + 2)[1:-1]


def _without_silence(*signals: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Remove the frames in which the first signal is silent from all signals, and overlap-add the others."""
    frames = [_frames(signal) for signal in signals]
    level = np.linalg.norm(frames[0], axis=-1)
    loud = level > level.max(initial=0) * 10 ** (-STOI_DYNAMIC_RANGE / 20)
    halves = [part[loud].reshape(-1, 2, STOI_HOP) for part in frames]
    after, before = ((0, 1), (0, 0)), ((1, 0), (0, 0))
    return [(np.pad(half[:, 0], after) + np.pad(half[:, 1], before)).ravel() for half in halves]


def _third_octaves(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return magnitudes in one-third octave bands with edges at the nearest FFT bins: `(bands, frames)`."""
    edges = STOI_LOWEST * 2 ** ((2 * np.arange(STOI_BANDS + 1) - 1) / 6)
    edges = np.rint(edges * STOI_FFT / STOI_RATE)[:, np.newaxis]
    bins = np.arange(STOI_FFT // 2 + 1)
    bands = (bins >= edges[:-1]) & (bins < edges[1:])
    power = np.abs(np.fft.rfft(_frames(signal), STOI_FFT)) ** 2
    result: NDArray[np.float64] = np.sqrt(bands @ power.T)
    return result


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale the vectors of the last axis to length 1; zeros stay zeros."""
    lengths: NDArray[np.float64] = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / (lengths + np.finfo(np.float64).eps)
