"""The Mimi models of transformers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from vqtok.models.adapters.pretrained import TOGETHER, SavedModel
from vqtok.models.adapters.seanet import CORE_SECONDS, in_windows, seanet_layers
from vqtok.networks.receptive_field import context


class Mimi(SavedModel):
    """Kyutai's codec.

    Source: Défossez et al. 2024, "Moshi: a speech-text foundation model for real-time dialogue".
    """

    modality = "audio"
    network_class = "MimiModel"
    padding = None
    encodes_together = TOGETHER
    why_whole = f"its transformers depend on all earlier audio; convolutions process {CORE_SECONDS:.0f} s at a time"
    settings = (
        "sampling_rate",
        "frame_rate",
        "upsampling_ratios",
        "dilation_growth_rate",
        "use_causal_conv",
        "pad_mode",
        "trim_right_ratio",
        "codebook_size",
        "num_quantizers",
        "num_semantic_quantizers",
        "upsample_groups",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "norm_eps",
        "rope_parameters",
        "sliding_window",
    )

    def __init__(self, source: str) -> None:
        super().__init__(source)
        config = self.config
        self.sample_rate, self.stride = config.sampling_rate, config.frame_size
        self.codebook_sizes = (config.codebook_size,) * config.num_quantizers
        self.inner_stride = self.stride // config.latent_stride
        """Samples per step of the transformers."""
        self.core = round(CORE_SECONDS * self.sample_rate / self.inner_stride)
        causal, trim = config.use_causal_conv, config.trim_right_ratio
        self.encoder_reach = context(seanet_layers(self.network.encoder.encoder_seanet, causal, trim))
        self.decoder_reach = context(seanet_layers(self.network.decoder.decoder_seanet, causal, trim))

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        network = self.network
        count = max(num_codebooks, self.config.num_semantic_quantizers)
        codes: Tensor
        if x.shape[2] <= self.core * self.inner_stride:
            codes = network.encode(x, num_quantizers=count).audio_codes
            return codes
        encoder = network.encoder
        features = in_windows(encoder.encoder_seanet, x, self.core, self.encoder_reach, takes=self.inner_stride)
        latents = encoder.downsample(self._attend(encoder.encoder_transformer, features))
        codes = network.quantizer.encode(latents, count)
        return codes.transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        network = self.network
        if codes.shape[2] * self.stride <= self.core * self.inner_stride:
            media: Tensor = network.decode(codes).audio_values
            return media
        decoder = network.decoder
        features = self._attend(decoder.decoder_transformer, decoder.upsample(network.quantizer.decode(codes)))
        return in_windows(decoder.decoder_seanet, features, self.core, self.decoder_reach, gives=self.inner_stride)

    def _attend(self, transformer: Any, features: Tensor) -> Tensor:
        """Run a transformer over long audio in parts, with the cached keys and values of the parts before."""
        # transformers 5.24 renamed the argument and the output; 5.40 removes the old names.
        name = "cache" if "cache" in inspect.signature(transformer.forward).parameters else "past_key_values"
        parts, past = [], None
        for part in features.transpose(1, 2).split(self.core, dim=1):
            found = transformer(part, use_cache=True, **{name: past})
            parts.append(found.last_hidden_state)
            past = getattr(found, name)
        return torch.cat(parts, dim=1).transpose(1, 2)
