"""The DAC models of transformers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vqtok.models.adapters.pretrained import SavedModel
from vqtok.networks.receptive_field import context, conv_layers


class Dac(SavedModel):
    """Descript's codec.

    Source: Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN".
    Unlike: The library drops the samples after the last whole grid step, and its decoder ends a few samples early if a
        stride is odd. Here audio is padded with zeros, as in its feature extractor, and the last sample is repeated.
    """

    modality = "audio"
    network_class = "DacModel"
    padding = "constant"
    encodes_together = 1
    settings = ("sampling_rate", "downsampling_ratios", "upsampling_ratios", "n_codebooks", "codebook_size")

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.sample_rate = self.config.sampling_rate
        self.stride = self.config.hop_length
        self.codebook_sizes = (self.config.codebook_size,) * self.config.n_codebooks
        self.encoder_context = context(conv_layers(self.network.encoder))
        self.decoder_context = context(conv_layers(self.network.decoder))

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        codes: Tensor = self.network.encode(x, n_quantizers=num_codebooks).audio_codes
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        media = self.network.decode(audio_codes=codes).audio_values[:, None]
        return F.pad(media, (0, codes.shape[2] * self.stride - media.shape[2]), mode="replicate")
