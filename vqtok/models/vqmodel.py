"""`VQModel`: an encoder, a quantizer and a decoder."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from vqtok.config import ModelConfig
from vqtok.models.tokenizer import Tokenizer
from vqtok.networks import build_decoder, build_encoder, network_context
from vqtok.networks.layers import Axes
from vqtok.quantizers import QuantizerOutput, build_quantizer
from vqtok.tokens.coding.coders import NO_MODEL


class VQModel(nn.Module, Tokenizer):
    """A vector-quantized autoencoder: a `Tokenizer` that can be trained.

    `identity` and `entropy_model` belong to the file it was loaded from; a model in training has none.

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning".
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        axes: Axes = 2 if config.modality == "image" else 1
        channels, dim = config.channels if axes == 2 else 1, config.quantizer.dim
        self.modality: Literal["image", "audio"] = config.modality
        self.channels = channels
        self.sample_rate = config.sample_rate or None
        self.stride = math.prod(config.network.strides)
        self.encoder = build_encoder(config.network, axes, channels, dim)
        self.quantizer = build_quantizer(config.quantizer)
        self.decoder = build_decoder(config.network, axes, channels, dim)
        self.encoder_context: int | None = network_context(self.encoder)
        self.decoder_context: int | None = network_context(self.decoder)
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.identity = b""
        self.entropy_model = NO_MODEL

    def forward(self, x: Tensor, *, quantize: bool = True) -> tuple[Tensor, QuantizerOutput | None]:
        """Return the reconstruction of media and the quantizer's output.

        Args:
            quantize: False bypasses the codebooks, for the start of training.

        Shapes:
            x and the reconstruction: `(batch, channels, *size)`.
        """
        z = self.encoder(x)
        if not quantize:
            return self.decoder(self.quantizer.bypass(z)), None
        output = self.quantizer(z)
        return self.decoder(output.quantized), output

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        return self.quantizer.encode(self.encoder(x))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.quantizer.decode(codes))
