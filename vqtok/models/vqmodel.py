"""`VQModel`: an encoder, a quantizer and a decoder; `FusionModel`: one of each modality around one quantizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqtok.compute.device import channels_last
from vqtok.config import Modality, ModelConfig
from vqtok.models.card import BIT_VALUE
from vqtok.models.tokenizer import Tokenizer
from vqtok.networks import build_decoder, build_encoder, network_context
from vqtok.networks.layers import Axes
from vqtok.quantizers import Quantizer, QuantizerOutput, build_quantizer
from vqtok.tokens.coding.coders import NO_MODEL


class VQModel(nn.Module, Tokenizer):
    """A vector-quantized autoencoder: a `Tokenizer` that can be trained.

    `identity` and `entropy_model` belong to the file it was loaded from; a model in training has none.

    Args:
        config: The architecture.
        quantizer: The quantizer, if it is shared with another model.

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning".
    """

    bit_value = BIT_VALUE
    """What the file it was loaded from says a bit may cost: see `ModelCard`."""

    def __init__(self, config: ModelConfig, quantizer: Quantizer | None = None) -> None:
        super().__init__()
        self.config = config
        assert config.modality != "fusion"
        axes: Axes = 2 if config.modality == "image" else 1
        channels, dim = config.channels if axes == 2 else 1, config.quantizer.dim
        self.modality: Literal["image", "audio"] = config.modality
        self.channels = channels
        self.sample_rate = config.sample_rate or None
        self.stride = math.prod(config.network.strides)
        self.encoder = build_encoder(config.network, axes, channels, dim)
        self.quantizer = build_quantizer(config.quantizer) if quantizer is None else quantizer
        self.decoder = build_decoder(config.network, axes, channels, dim)
        self.encoder_context: int | None = network_context(self.encoder)
        self.decoder_context: int | None = network_context(self.decoder)
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.identity = b""
        self.entropy_model = NO_MODEL

    @property
    def sides(self) -> Mapping[Modality, VQModel]:
        """The model of each modality: both sides of a fusion model, else this model."""
        return {self.modality: self}

    def of(self, modality: str) -> VQModel:
        return {str(name): side for name, side in self.sides.items()}.get(modality, self)

    def forward(self, x: Tensor, *, quantize: bool = True) -> tuple[Tensor, QuantizerOutput | None]:
        """Return the reconstruction of media and the quantizer's output.

        Args:
            quantize: False bypasses the codebooks, for the start of training.

        Shapes:
            x and the reconstruction: `(batch, channels, *size)`.
        """
        return self.reconstruct(self.encoder(x), quantize=quantize)

    def reconstruct(self, z: Tensor, *, quantize: bool = True) -> tuple[Tensor, QuantizerOutput | None]:
        """Return what `forward` returns, from the latents `(batch, dim, *grid)`."""
        if not quantize:
            return self.decoder(self.quantizer.bypass(z)), None
        output = self.quantizer(z)
        return self.decoder(output.quantized), output

    def reconstruct_codes(self, codes: Tensor) -> Tensor:
        """Return the reconstruction from codes, with the gradient of the decoder's weights.

        Shapes:
            codes: `(batch, num_codebooks, *grid)`, negative in the codebooks that an item is not decoded from.
        """
        counts = (codes.flatten(2)[..., 0] >= 0).sum(1)
        latents = codes.new_zeros(len(codes), self.config.quantizer.dim, *codes.shape[2:], dtype=torch.float32)
        for count in counts.unique().tolist():
            latents[counts == count] = self.quantizer.decode(codes[counts == count, :count])
        return self.decoder(channels_last(latents))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        return self.quantizer.encode(self.encoder(x))

    @torch.no_grad()
    def encode_searching(self, x: Tensor, num_codebooks: int, effort: int) -> Tensor:
        prices = code_prices(self.quantizer, self.entropy_model.tables, num_codebooks, self.bit_value)
        return self.quantizer.encode(self.encoder(x), num_codebooks, effort, prices)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.quantizer.decode(codes))


class FusionModel(VQModel):
    """A `VQModel` for images and one for audio that share their quantizer, and so their codes.

    Its sides are used like models of one modality: `model.of("image").encode(x)`. The weights are those of
    `encoder.image`, `encoder.audio`, `quantizer`, `decoder.image` and `decoder.audio`.

    Source: Liu et al. 2022, "Cross-Modal Discrete Representation Learning", section 3.1 (a codebook for all
        modalities).
    """

    def __init__(self, config: ModelConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        quantizer = build_quantizer(config.quantizer)
        # Not modules of this one: their weights would be in the state twice.
        self.__dict__["_sides"] = {modality: VQModel(config.of(modality), quantizer) for modality in config.modalities}
        self.encoder = nn.ModuleDict({modality: side.encoder for modality, side in self.sides.items()})
        self.quantizer = quantizer
        self.decoder = nn.ModuleDict({modality: side.decoder for modality, side in self.sides.items()})
        self.codebook_sizes = quantizer.codebook_sizes
        self.identity = b""
        self.entropy_model = NO_MODEL

    @property
    def sides(self) -> Mapping[Modality, VQModel]:
        sides: Mapping[Modality, VQModel] = self.__dict__["_sides"]
        return sides

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(self.sides)

    def forward(self, x: Tensor, *, quantize: bool = True) -> tuple[Tensor, QuantizerOutput | None]:
        raise TypeError("a fusion model is used by its sides: model.of(modality)")


def code_prices(
    quantizer: Quantizer, tables: Sequence[NDArray[np.uint16] | None], num_codebooks: int, bit_value: float
) -> list[Tensor]:
    """Return the price of each code in squared error, `(codebook_size,)` for each of the first codebooks.

    It is the number of bits in the static tables, times `bit_value`, times the error that one bit saves: what the last
    of the codebooks explains of the latents, divided by its entropy. There are none if a codebook has no table, or for
    a single codebook, where bits can only be bought with error.

    Source: Sullivan and Wiegand 1998, "Rate-Distortion Optimization for Video Compression" (the Lagrangian of error and
        bits).
    """
    own = [table for table in tables[:num_codebooks] if table is not None]
    if num_codebooks == 1 or len(own) < num_codebooks:
        return []
    last = quantizer.codebooks()[num_codebooks - 1]
    shares = [torch.from_numpy(table.astype(np.float32)).to(last.device) for table in own]
    shares = [share / share.sum() for share in shares]
    bits = [-share.clamp(min=1e-9).log2() for share in shares]
    energy = (shares[-1] * last.square().sum(1)).sum()
    per_bit = bit_value * energy / (shares[-1] * bits[-1]).sum().clamp(min=1e-6)
    return [per_bit * count for count in bits]


def build_model(config: ModelConfig) -> VQModel:
    """Build a model with random weights."""
    return FusionModel(config) if config.modality == "fusion" else VQModel(config)
