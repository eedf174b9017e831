"""The X-codec 2 and NeuCodec models of transformers, and the features of speech that they read."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.models.adapters.pretrained import TOGETHER, SavedModel

MEL_BINS, FRAME, SHIFT, WINDOW = 80, 400, 160, 512
"""Bins, and samples of a frame, between frames, and of the Fourier transform, at 16 kHz."""
LOWEST_HZ = 20.0


class Xcodec2(SavedModel):
    """A codec with one codebook (FSQ), whose encoder is joined by a speech model.

    Source: Ye et al. 2025, "Llasa: Scaling Train-Time and Inference-Time Compute for Llama-based Speech Synthesis".
    """

    modality = "audio"
    network_class = "Xcodec2Model"
    padding: Literal["constant"] | None = None
    encodes_together = TOGETHER
    why_whole = "its speech model attends to the whole audio"
    rate_setting = "sampling_rate"
    settings: tuple[str, ...] = (
        "downsampling_ratios",
        "quantization_levels",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "rms_norm_eps",
        "rope_parameters",
        "semantic_model_config.model_type",
        "semantic_model_config.hidden_act",
        "semantic_model_config.num_attention_heads",
        "semantic_model_config.position_embeddings_type",
        "semantic_model_config.layer_norm_eps",
        "semantic_model_config.left_max_position_embeddings",
        "semantic_model_config.right_max_position_embeddings",
    )

    def __init__(self, source: str) -> None:
        self.settings = (self.rate_setting, *self.settings)
        super().__init__(source)
        self.sample_rate = getattr(self.config, self.rate_setting)
        self.stride = math.prod(self.config.downsampling_ratios)
        self.codebook_sizes = (math.prod(self.config.quantization_levels),)

    def num_steps(self, samples: int) -> int:
        return samples // self.stride + 1  # The library adds a sample, and then pads to whole steps.

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        padded = F.pad(x, (0, self.num_steps(x.shape[2]) * self.stride - x.shape[2]))
        return self._encode(padded, F.pad(padded, (self.stride // 2, self.stride // 2)))

    def _encode(self, x: Tensor, heard: Tensor) -> Tensor:
        """Return the codes of audio, of which the speech model hears `heard`."""
        features = torch.stack([speech_features(sound[0]) for sound in heard])
        mask = torch.ones(features.shape[:2], dtype=torch.long, device=x.device)
        codes: Tensor = self.network.encode(x, input_features=features, input_features_mask=mask).audio_codes
        return codes.long()

    def decode(self, codes: Tensor) -> Tensor:
        media: Tensor = self.network.decode(audio_codes=codes).audio_values
        return media


class NeuCodec(Xcodec2):
    """X-codec 2 for 16 kHz with a decoder for 24 kHz.

    Source: Julian et al. 2025, "Finite Scalar Quantization Enables Redundant and Transmission-Robust Neural Audio
        Compression at Low Bit-rates".
    Unlike: The library drops the samples after the last whole grid step. Here audio is padded with zeros first.
    """

    network_class = "NeuCodecModel"
    padding = "constant"
    rate_setting = "input_sampling_rate"
    settings = (*Xcodec2.settings, "output_sampling_rate")

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.output_rate = self.config.output_sampling_rate

    def num_steps(self, samples: int) -> int:
        return -(-samples // self.stride)

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        padded = F.pad(x, (0, self.stride))  # As the library: a sample, and then to whole steps.
        return self._encode(padded, padded)


def speech_features(sound: Tensor) -> Tensor:
    """Compute log mel energies of audio at 16 kHz, normalized over time, two frames side by side.

    Shapes:
        sound: `(samples,)`. Result: `(samples // 320 - 1 or so, 160)`.

    Source: `fbank` in torchaudio.compliance.kaldi, as the feature extractors of transformers call it.
    """
    frames = (sound * 2**15).unfold(0, FRAME, SHIFT)
    frames = frames - frames.mean(dim=1, keepdim=True)
    frames = frames - 0.97 * F.pad(frames[None], (1, 0), mode="replicate")[0, :, :-1]
    window = torch.hann_window(FRAME, periodic=False, device=sound.device, dtype=sound.dtype).pow(0.85)
    spectrum = torch.fft.rfft(F.pad(frames * window, (0, WINDOW - FRAME))).abs().pow(2)
    energies = torch.mm(spectrum, _mel_filters().to(sound).T)
    features = energies.clamp(min=torch.finfo(torch.float32).eps).log()
    features = (features - features.mean(0)) / torch.sqrt(features.var(0, unbiased=True) + 1e-7)
    return features[: len(features) // 2 * 2].reshape(-1, 2 * MEL_BINS)


@cache
def _mel_filters() -> Tensor:
    """Return the triangular filters `(MEL_BINS, WINDOW // 2 + 1)`; the highest frequency is in none."""
    low, high = (1127.0 * math.log(1 + hertz / 700) for hertz in (LOWEST_HZ, 8000.0))
    step = (high - low) / (MEL_BINS + 1)
    left = low + torch.arange(MEL_BINS)[:, None] * step
    mel = 1127.0 * (1.0 + 16_000 / WINDOW * torch.arange(WINDOW // 2) / 700.0).log()
    rising, falling = (mel - left) / step, (left + 2 * step - mel) / step
    return F.pad(torch.minimum(rising, falling).clamp(min=0), (0, 1))
