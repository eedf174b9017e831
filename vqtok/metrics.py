"""Metrics of the quality of a reconstruction `x_hat` of `x`, one number per item of a batch.

Every function takes two tensors of the same shape, `(batch, channels, height, width)` for images and
`(batch, channels, samples)` for audio, with a nominal range of [-1, 1], and returns a `(batch,)` tensor without
gradient. All but `mel_distance` compute in float64.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vqtok.losses.reconstruction import FLOOR, magnitudes, mel_filters
from vqtok.media.resample import resample

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_STABILIZERS = 0.01**2, 0.03**2
MS_SSIM_WEIGHTS = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333
SI_SDR_LIMIT = 100.0
MEL_SPECTROGRAMS = (2048, 150), (512, 80)
STOI_RATE = 10_000
STOI_FRAME, STOI_FFT, STOI_HOP = 256, 512, 128
STOI_BANDS, STOI_LOWEST = 15, 150.0
STOI_SEGMENT = 30
STOI_DYNAMIC_RANGE = 40.0
STOI_LOWEST_SDR = -15.0


def _check(x: Tensor, x_hat: Tensor, ndim: int) -> None:
    if x.shape != x_hat.shape or x.ndim != ndim:
        raise ValueError(f"need {ndim}-D tensors of equal shape, not {tuple(x.shape)} and {tuple(x_hat.shape)}")


def _pixels(x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
    """Convert images to float64 in [0, 1]; clamp `x_hat` like an image file does."""
    _check(x, x_hat, ndim=4)
    return (x.detach().double() + 1) / 2, (x_hat.detach().double().clamp(-1, 1) + 1) / 2


def psnr(x: Tensor, x_hat: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio in dB over pixels and channels; infinite for equal images."""
    x, x_hat = _pixels(x, x_hat)
    return -10 * (x - x_hat).square().mean((1, 2, 3)).log10()


def ssim(x: Tensor, x_hat: Tensor) -> Tensor:
    """Compute the structural similarity, averaged over channels and over all windows inside the image.

    The window is Gaussian, 11 x 11 with sigma 1.5. For images less than 11 pixels wide or high it is cut to
    the smaller side and normalized again.

    Source: Wang et al. 2004, Image quality assessment: from error visibility to structural similarity,
    section III.
    """
    return _similarity(*_pixels(x, x_hat))[0].mean(1)


def ms_ssim(x: Tensor, x_hat: Tensor) -> Tensor:
    """Compute the multi-scale structural similarity, averaged over channels.

    Each of up to five scales has half the size of the one before, by averages of 2 x 2 pixels (an odd last
    row or column is left out). Only scales of at least 11 x 11 pixels are used (all five from 176 x 176 on),
    at least one; their weights are normalized to a sum of 1. A negative mean at any scale counts as 0.

    Source: Wang et al. 2003, Multi-scale structural similarity for image quality assessment, section 3.
    """
    x, x_hat = _pixels(x, x_hat)
    sides = [min(x.shape[-2:]) >> scale for scale in range(len(MS_SSIM_WEIGHTS))]
    weights = MS_SSIM_WEIGHTS[: max(1, sum(side >= SSIM_WINDOW for side in sides))]
    similarity = x.new_ones(x.shape[:2])
    for scale, weight in enumerate(weights, start=1):
        whole, contrast = _similarity(x, x_hat)
        term = whole if scale == len(weights) else contrast
        similarity *= term.clamp(min=0) ** (weight / sum(weights))
        if scale < len(weights):
            x, x_hat = F.avg_pool2d(x, 2), F.avg_pool2d(x_hat, 2)
    return similarity.mean(1)


def _similarity(x: Tensor, x_hat: Tensor) -> Tensor:
    """Return SSIM and its contrast and structure part, averaged over positions: `(2, batch, channels)`."""
    # One image at a time, because its moments then stay in the cache: several times as fast as the whole batch.
    return torch.stack([_image_similarity(*pair) for pair in zip(x, x_hat, strict=True)], 1)


def _image_similarity(x: Tensor, x_hat: Tensor) -> Tensor:
    size = min(SSIM_WINDOW, *x.shape[-2:])
    window = [math.exp(-(((i - (size - 1) / 2) / SSIM_SIGMA) ** 2) / 2) for i in range(size)]
    moments = torch.stack([x, x_hat, x * x + x_hat * x_hat, x * x_hat])
    for dim in (-2, -1):
        # Sums of shifted arrays are several times as fast as a float64 convolution on a CPU.
        valid = moments.shape[dim] - size + 1
        blurred = torch.zeros_like(moments.narrow(dim, 0, valid))
        for start, weight in enumerate(window):
            blurred.add_(moments.narrow(dim, start, valid), alpha=weight / sum(window))
        moments = blurred
    mean, mean_hat, squares, product = moments
    mean_squares, mean_product = mean**2 + mean_hat**2, mean * mean_hat
    c1, c2 = SSIM_STABILIZERS
    luminance = (2 * mean_product + c1) / (mean_squares + c1)
    contrast = (2 * (product - mean_product) + c2) / (squares - mean_squares + c2)
    return torch.stack([luminance * contrast, contrast]).mean((2, 3))


def si_sdr(x: Tensor, x_hat: Tensor) -> Tensor:
    """Compute the scale-invariant signal-to-distortion ratio in dB, with one scale for all channels.

    The mean of each channel is subtracted first. The ratio is limited to [-100, 100] dB, so that averages
    over many clips stay finite: 100 if `x_hat` is a multiple of `x` or both are silent, -100 if only one of
    them is silent or they are orthogonal.

    Source: Le Roux et al. 2019, SDR - half-baked or well done?
    """
    _check(x, x_hat, ndim=3)
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
    _check(x, x_hat, ndim=3)
    signals = torch.stack([x, x_hat]).detach().float()
    distances = []
    for window_size, num_mels in MEL_SPECTROGRAMS:
        filters = mel_filters(sample_rate, window_size, num_mels).to(x.device)
        mels = filters @ magnitudes(signals.flatten(0, 2), window_size)
        log_mel, log_mel_hat = mels.clamp(min=FLOOR).log10().reshape(2, len(x), -1)
        distances.append((log_mel - log_mel_hat).abs().mean(1))
    return torch.stack(distances).mean(0)


def stoi(x: Tensor, x_hat: Tensor, sample_rate: int) -> Tensor:
    """Compute the short-time objective intelligibility of speech, from about 0 (none) to 1 (all).

    Channels are mixed down and resampled to 10 kHz. NaN if `x` has less than 30 frames (0.4 s) within 40 dB
    of its loudest frame.

    Source: Taal et al. 2011, An algorithm for intelligibility prediction of time-frequency weighted noisy
    speech, section II.
    """
    _check(x, x_hat, ndim=3)
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
