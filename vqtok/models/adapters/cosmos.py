"""The discrete image tokenizers of Cosmos."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.models.adapters.pretrained import SavedModel, load_imported
from vqtok.models.adapters.var import network_config
from vqtok.networks.vqgan import ResnetBlock, VQGANDecoder, VQGANEncoder
from vqtok.quantizers.fsq import FSQ


class Cosmos(SavedModel):
    """A VQGAN with finite scalar quantization on the Haar wavelets of an image. `vqtok import` writes the folder.

    Source: NVIDIA 2024, Cosmos-Tokenizer, the models DI8x8 and DI16x16; code: github.com/NVIDIA/Cosmos-Tokenizer.
    Unlike: The project computes in bfloat16 by default, here it is float32.
    """

    modality = "image"
    channels = 3
    network_class = "CosmosTokenizer"
    why_whole = "its norms and its attention depend on the whole image"
    settings = ("patch", "levels", "encoder", "decoder")

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.stride = self.config.patch * math.prod(self.config.encoder["strides"])
        self.codebook_sizes = (math.prod(self.config.levels),)

    def _load(self, modules: Sequence[str]) -> Any:
        return load_imported(self.folder, self.files, "Cosmos-Tokenizer", CosmosNetwork)

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        network = self.network
        z = network.quant_conv(network.encoder(wavelets(x, self.config.patch)))
        return network.quantizer.assign(z.movedim(1, -1)).movedim(-1, 1)

    def decode(self, codes: Tensor) -> Tensor:
        z_q = self.network.quantizer.lookup(codes.movedim(1, -1)).movedim(-1, 1)
        return pixels(self.network.decoder(self.network.post_quant_conv(z_q)), self.config.patch)


class CosmosNetwork(nn.Module):
    """The networks. `width` is that of the encoder's first layer, `dim` that of the latents before the quantizer.

    Args:
        encoder, decoder: Entries of a `NetworkConfig`; in both, stages count from the full resolution down.
    """

    def __init__(
        self,
        *,
        width: int,
        patch: int,
        dim: int,
        levels: Sequence[int],
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
    ) -> None:
        super().__init__()
        channels = 3 * patch**2
        self.encoder_config, self.decoder_config = network_config(encoder), network_config(decoder)
        self.encoder = VQGANEncoder(self.encoder_config, channels, dim)
        self.encoder.layers[0] = nn.Conv2d(channels, width, 3, padding=1)
        self.encoder.layers[1] = ResnetBlock(width, self.encoder_config.widths[0], bias=True)
        self.decoder = VQGANDecoder(self.decoder_config, channels, dim)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(dim, len(levels), 1), nn.Conv2d(len(levels), dim, 1)
        self.quantizer = FSQ(levels)


def wavelets(x: Tensor, patch: int) -> Tensor:
    """Return Haar wavelets of images, `log2(patch)` times over all channels.

    Shapes:
        `(batch, channels, height, width)` to `(batch, channels * patch**2, height / patch, width / patch)`.
    """
    for _ in range(patch.bit_length() - 1):
        across, down = _kernels(x.shape[1], x)
        halves = [F.conv2d(x, kernel, stride=(1, 2), groups=x.shape[1]) for kernel in across]
        x = torch.cat([F.conv2d(h, kernel, stride=(2, 1), groups=x.shape[1]) for h in halves for kernel in down], 1) / 2
    return x


def pixels(x: Tensor, patch: int) -> Tensor:
    """Invert `wavelets`."""
    for _ in range(patch.bit_length() - 1):
        groups = x.shape[1] // 4
        across, down = _kernels(groups, x)
        low, high, *others = (
            F.conv_transpose2d(part, kernel, stride=(2, 1), groups=groups)
            for part, kernel in zip(x.chunk(4, dim=1), down * 2, strict=True)
        )
        halves = low + high, others[0] + others[1]
        sides = [
            F.conv_transpose2d(half, kernel, stride=(1, 2), groups=groups)
            for half, kernel in zip(halves, across, strict=True)
        ]
        x = (sides[0] + sides[1]) * 2
    return x


def _kernels(groups: int, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the kernels of sums and differences, across and down, for each of the groups."""
    pairs = [x.new_tensor([1.0, sign]) * math.sqrt(0.5) for sign in (1.0, -1.0)]
    return [p.expand(groups, 1, 1, 2) for p in pairs], [p[:, None].expand(groups, 1, 2, 1) for p in pairs]
