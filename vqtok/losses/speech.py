"""Losses for speech: measures of its intelligibility and quality that have a gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SILENT_POWER = 1e-8
"""Power below which segments of speech count as silence."""
QUIET_POWER = 1e-5
"""Power below which audio is not brought to the usual level of speech, as if it were a pause of it."""


class STOILoss(nn.Module):
    """1 minus the short-time objective intelligibility of speech: how far envelopes in bands are from correlated.

    Source: Taal et al. 2011, "An Algorithm for Intelligibility Prediction of Time-Frequency Weighted Noisy Speech",
        section II; Fu et al. 2018, "End-to-End Waveform Utterance Enhancement for Direct Evaluation Metrics
        Optimization", section III (as a loss).
    Unlike: Without resampling, and segments more than 40 dB below the loudest of an item are left out in place of
        frames. Audio shorter than a segment (0.4 s) has a loss of 0.
    """

    filters: Tensor
    window: Tensor
    frame_seconds, bands, lowest, segment, limit = 0.0256, 15, 150.0, 30, 1 + 10 ** (15 / 20)

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.hop = round(sample_rate * self.frame_seconds / 2)
        edges = self.lowest * 2 ** ((2 * torch.arange(self.bands + 1) - 1) / 6)
        bins = torch.arange(self.hop + 1) * sample_rate / (2 * self.hop)
        filters = (bins >= edges[:-1, None]) & (bins < edges[1:, None])
        # At low rates the highest bands are empty, at short frames the lowest ones can be.
        self.register_buffer("filters", filters[filters.any(1)].float(), persistent=False)
        self.register_buffer("window", torch.hann_window(2 * self.hop), persistent=False)

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        if x.shape[-1] < (self.segment + 1) * self.hop:
            return 0 * x_hat.float().sum()
        target, estimate = (self._segments(signal.mean(1).float()) for signal in (x, x_hat))
        level = target.square().sum((1, 3))
        loud = (level > 1e-4 * level.amax(1, keepdim=True) + SILENT_POWER).float()
        estimate = F.normalize(estimate, dim=-1) * target.norm(dim=-1, keepdim=True)
        estimate = torch.minimum(estimate, target * self.limit)
        target, estimate = (part - part.mean(-1, keepdim=True) for part in (target, estimate))
        correlation = F.cosine_similarity(target, estimate, dim=-1).mean(1)
        return (loud * (1 - correlation)).sum() / loud.sum().clamp(min=1)

    def _segments(self, x: Tensor) -> Tensor:
        """Return the magnitudes in bands of all segments, `(batch, bands, segments, frames)`."""
        spectrum = torch.stft(x, 2 * self.hop, self.hop, window=self.window, center=False, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return (self.filters @ power + 1e-12).sqrt().unfold(-1, self.segment, 1)


class PESQLoss(nn.Module):
    """How far speech is below the best quality of PESQ (4.5, before its mapping to a scale of opinions).

    It compares loudness in bands of hearing; what is added counts more than what is missing.

    Source: ITU-T P.862, "Perceptual Evaluation of Speech Quality", section 10, and P.862.2 (wide band); Martín-Doñas et
        al. 2018, "A Deep Learning Loss Function Based on the Perceptual Evaluation of the Speech Quality" (as a loss).
    Unlike: Audio is taken as aligned, with its level and its spectrum as they are, and every frame counts. There is no
        dead zone around small differences, so that the gradient is zero only without any. Bands have equal widths on
        the Bark scale, and the threshold of hearing is that of Terhardt 1979. With a level of 85 dB, the mapped values
        are on average 0.1 from those of the standard for speech from this codec (correlation 0.94).
    """

    filters: Tensor
    threshold: Tensor
    exponent: Tensor
    window: Tensor
    audible: Tensor
    frame_seconds, top, bark, level = 0.032, 8000.0, 0.46, 85.0
    segment, limit = 20, 45.0

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.hop = round(sample_rate * self.frame_seconds / 2)
        highest = _to_bark(torch.tensor(min(sample_rate / 2, self.top))).item()
        count = round(highest / self.bark)
        edges = torch.linspace(0, highest, count + 1)
        self.width = highest / count
        step = sample_rate / (2 * self.hop)
        bins = torch.arange(self.hop + 1) * step
        # A narrow band gets a part of the power of a bin.
        low, high = (_to_hz(edge)[:, None] for edge in (edges[:-1], edges[1:]))
        shares = torch.minimum(high, bins + step / 2) - torch.maximum(low, bins - step / 2)
        center = (edges[:-1] + edges[1:]) / 2
        # Loudness grows faster with power in the lowest bands.
        exponent = 0.23 * torch.where(center < 4, 6 / (center + 2), 1.0).clamp(max=2) ** 0.15
        window = torch.hann_window(2 * self.hop)
        self.register_buffer("filters", shares.clamp(min=0) / step, persistent=False)
        self.register_buffer("threshold", 10 ** (_threshold_of_hearing(_to_hz(center)) / 10)[:, None], persistent=False)
        self.register_buffer("exponent", exponent[:, None], persistent=False)
        self.register_buffer("window", window / (self.hop * window.square().sum()).sqrt(), persistent=False)
        self.register_buffer("audible", ((bins >= 350) & (bins <= 3250)).float(), persistent=False)

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        if x.shape[-1] < 2 * self.hop:
            return 0 * x_hat.float().sum()
        target, estimate = (self._powers(signal.flatten(0, 1).float()) for signal in (x, x_hat))
        scale = 10 ** (self.level / 10) / ((self.audible @ target).mean(-1) + QUIET_POWER)
        target, estimate = (self.filters @ power * scale[:, None, None] for power in (target, estimate))
        difference = (self._loudness(estimate) - self._loudness(target)).abs() * self.width
        added = ((estimate + 50) / (target + 50)) ** 1.2
        added = torch.where(added < 3, 0.0, added.clamp(max=12))
        bark = self.width * len(self.filters)
        symmetric = (bark * difference.square().sum(1) + 1e-12).sqrt()
        asymmetric = (added * difference).sum(1)
        # Differences in loud frames count a little less.
        emphasis = ((target.sum(1) + 1e5) / 1e7) ** 0.04
        return (0.1 * self._over_time(symmetric / emphasis) + 0.0309 * self._over_time(asymmetric / emphasis)).mean()

    def _powers(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 2 * self.hop, self.hop, window=self.window, center=False, return_complex=True)
        return spectrum.real.square() + spectrum.imag.square()

    def _loudness(self, power: Tensor) -> Tensor:
        """Return Zwicker's loudness in sone of the power `(batch, bands, frames)`."""
        growth = (0.5 + 0.5 * power / self.threshold) ** self.exponent - 1
        return (0.1866 * (self.threshold / 0.5) ** self.exponent * growth).clamp(min=0)

    def _over_time(self, frames: Tensor) -> Tensor:
        """Return a mean over the frames `(batch, frames)` in which the worst of each third of a second prevail."""
        frames = frames.clamp(max=self.limit)
        segments = frames.unfold(-1, min(self.segment, frames.shape[-1]), self.segment // 2)
        return ((segments**6).mean(-1) + 1e-12).pow(1 / 3).mean(-1).sqrt()


def _to_bark(hz: Tensor) -> Tensor:
    """Source: Schroeder et al. 1979, "Optimizing digital speech coders by exploiting masking properties"."""
    return 7 * torch.asinh(hz / 650)


def _to_hz(bark: Tensor) -> Tensor:
    return 650 * torch.sinh(bark / 7)


def _threshold_of_hearing(hz: Tensor) -> Tensor:
    """Return the threshold in dB. Source: Terhardt 1979, "Calculating virtual pitch", equation 1."""
    khz = hz / 1000
    return 3.64 * khz**-0.8 - 6.5 * torch.exp(-0.6 * (khz - 3.3) ** 2) + 1e-3 * khz**4
