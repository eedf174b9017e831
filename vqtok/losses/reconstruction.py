"""Spectral reconstruction losses for audio, and the reconstruction loss of a config."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vqtok.config import LossConfig
from vqtok.errors import UsageError
from vqtok.losses.perceptual import build_perceptual_loss
from vqtok.losses.speech import PESQLoss, STOILoss
from vqtok.losses.ssimulacra2 import SSIMULACRA2Loss

FOR_SPEECH = ("stoi", "pesq")
FLOOR = 1e-5
"""Magnitudes below this count as silence."""


@functools.lru_cache(maxsize=64)
def mel_filters(sample_rate: int, n_fft: int, num_mels: int) -> Tensor:
    """Return triangular filters `(num_mels, n_fft // 2 + 1)` of equal area, from 0 Hz to half the sample rate.

    Source: Slaney 1998, "Auditory Toolbox": linear below 1 kHz, logarithmic above, area-normalized.
    """
    hz_per_mel, break_mel, step = 200 / 3, 15.0, torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27

    def to_hz(mel: Tensor) -> Tensor:
        return torch.where(mel < break_mel, mel * hz_per_mel, 1000 * torch.exp(step * (mel - break_mel)))

    top = torch.tensor(sample_rate / 2, dtype=torch.float64)
    top_mel = break_mel + torch.log(top / 1000) / step if top > 1000 else top / hz_per_mel
    edges = to_hz(torch.linspace(0, 1, num_mels + 2, dtype=torch.float64) * top_mel)
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles = torch.minimum(rise, fall).clamp(min=0)
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


def magnitudes(x: Tensor, window_size: int) -> Tensor:
    """Return STFT magnitudes `(n, window_size // 2 + 1, frames)` of `(n, samples)`; Hann window, hop of a quarter."""
    window = torch.hann_window(window_size, device=x.device)
    # Reflection requires more samples than half a window.
    mode = "reflect" if x.shape[-1] > window_size // 2 else "constant"
    spectrum = torch.stft(x, window_size, window_size // 4, window=window, pad_mode=mode, return_complex=True)
    # abs() would have an undefined gradient at silence.
    return (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()


class MelLoss(nn.Module):
    """Mean absolute difference of log10 mel spectrograms, averaged over several window sizes.

    Args:
        windows: Window sizes; 32 samples have 5 mel bands, longer windows in proportion.

    Shapes:
        x, x_hat: `(batch, channels, samples)`.

    Source: Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN", section 3.4.
    """

    def __init__(self, sample_rate: int, windows: Sequence[int]) -> None:
        super().__init__()
        self.sample_rate, self.windows = sample_rate, windows

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        x, x_hat = x.flatten(0, 1).float(), x_hat.flatten(0, 1).float()
        total = x.new_zeros(())
        for window_size in self.windows:
            filters = mel_filters(self.sample_rate, window_size, window_size * 5 // 32).to(x.device)
            target, estimate = (filters @ magnitudes(signal, window_size) for signal in (x, x_hat))
            total = total + (_log(estimate) - _log(target)).abs().mean()
        return total / len(self.windows)


class STFTLoss(nn.Module):
    """Spectral convergence plus log-magnitude difference, over three window sizes.

    Source: Yamamoto et al. 2020, "Parallel WaveGAN", section 2.2.
    """

    windows = (512, 1024, 2048)

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        x, x_hat = x.flatten(0, 1).float(), x_hat.flatten(0, 1).float()
        total = x.new_zeros(())
        for window_size in self.windows:
            target, estimate = magnitudes(x, window_size), magnitudes(x_hat, window_size)
            convergence = (estimate - target).norm() / target.norm().clamp(min=FLOOR)
            total = total + convergence + (_log(estimate) - _log(target)).abs().mean()
        return total / len(self.windows)


class LoudnessLoss(nn.Module):
    """Squared difference of magnitudes in 40 mel bands, compressed like in human hearing, relative to their variance.

    All items have equal weight, loud or quiet. Bands that are 40 dB below an item's mean have hardly any.

    Source: Braun and Tashev 2021, "A Consolidated View of Loss Functions for Supervised Deep Learning-Based Speech
        Enhancement", section 3 (magnitudes to the power of 0.3).
    Unlike: Mel bands instead of single frequencies.
    """

    window, num_mels, exponent = 512, 40, 0.3

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        filters = mel_filters(self.sample_rate, self.window, self.num_mels).to(x.device)
        target, estimate = (
            filters @ magnitudes(signal.flatten(0, 1).float(), self.window).square() for signal in (x, x_hat)
        )
        floor = 1e-4 * target.mean((1, 2), keepdim=True) + FLOOR**2
        target, estimate = ((power + floor) ** (self.exponent / 2) for power in (target, estimate))
        error = (estimate - target).square().mean((1, 2))
        return (error / target.var((1, 2)).clamp(min=1e-6)).mean()


class SDRLoss(nn.Module):
    """Distortion-to-signal ratio in units of 10 dB, after a pre-emphasis that flattens the spectrum of speech.

    All items have equal weight, loud or quiet; a floor keeps the loss of silence finite.

    Source: Luo and Mesgarani 2019, "Conv-TasNet", section II-D; Le Roux et al. 2019, "SDR - half-baked or well done?".
    Unlike: Not scale-invariant, because a codec must keep the level.
    """

    pre_emphasis = 0.9

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        x, error = (self._emphasize(signal.flatten(1).float()) for signal in (x, x_hat - x))
        floor = 1e-6 * x.shape[-1]
        return ((error.square().sum(-1) + floor) / (x.square().sum(-1) + floor)).log10().mean()

    def _emphasize(self, x: Tensor) -> Tensor:
        return x[:, 1:] - self.pre_emphasis * x[:, :-1]


def _log(magnitude: Tensor) -> Tensor:
    return magnitude.clamp(min=FLOOR).log10()


class ReconstructionLoss(nn.Module):
    """Computes the unweighted reconstruction terms of a `LossConfig`, by name.

    Args:
        sample_rate: In Hz; 0 for images.

    Raises:
        UsageError: No term, a term of the other modality, or a term whose packages are not installed.
        TrainingError: The weights of a perceptual loss cannot be downloaded.
    """

    def __init__(self, config: LossConfig, sample_rate: int) -> None:
        super().__init__()
        for_any: dict[str, Callable[[], nn.Module]] = {"l1": nn.L1Loss, "l2": nn.MSELoss}
        for_images: dict[str, Callable[[], nn.Module]] = {
            "ssimulacra2": SSIMULACRA2Loss,
            "perceptual": lambda: build_perceptual_loss(config.perceptual_kind),
        }
        for_audio: dict[str, Callable[[], nn.Module]] = {
            "mel": lambda: MelLoss(sample_rate, config.mel_windows),
            "stft": STFTLoss,
            "sdr": SDRLoss,
            "loudness": lambda: LoudnessLoss(sample_rate),
            "stoi": lambda: STOILoss(sample_rate),
            "pesq": lambda: PESQLoss(sample_rate),
        }
        makers = for_any | for_images | for_audio
        chosen = [name for name in makers if getattr(config, name) > 0]
        if not chosen:
            raise UsageError(f"loss: no reconstruction term; set one of {', '.join(makers)}")
        for name in chosen:
            if name in (for_images if sample_rate else for_audio):
                raise UsageError(f"loss.{name} is for {'images' if sample_rate else 'audio'}; use loss.l1 and loss.l2")
        self.terms = nn.ModuleDict({name: makers[name]() for name in chosen})

    def forward(self, x: Tensor, x_hat: Tensor, speech: Tensor | None = None) -> dict[str, Tensor]:
        """Return the mean of each term over the items of a batch.

        Args:
            speech: Which items are speech, `(batch,)`; of others, the terms for speech are 0. None stands for all.
        """
        return {
            name: term(x, x_hat) if speech is None or name not in FOR_SPEECH else _of_some(term, x, x_hat, speech)
            for name, term in self.terms.items()
        }


def _of_some(term: nn.Module, x: Tensor, x_hat: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of a term over all items of a batch, where it is 0 for those that are not chosen."""
    if not chosen.any():
        return 0 * x_hat.float().sum()
    mean: Tensor = chosen.float().mean() * term(x[chosen], x_hat[chosen])
    return mean
