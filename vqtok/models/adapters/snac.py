"""SNAC, whose codebooks have different rates."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vqtok.errors import ModelError
from vqtok.models.adapters.pretrained import SavedModel, fill, find_class, ready, with_config
from vqtok.networks.receptive_field import context, conv_layers


class Snac(SavedModel):
    """The multi-scale codec of Hubert Siuzdak, as its package `snac` saves it.

    A grid step has one code of the coarsest codebook and all codes of the others in the same time: 1, 2 and 4 in the
    model for 24 kHz. Each of them counts as a codebook, coarse first, so that the grid is a rectangle.

    Source: Siuzdak et al. 2024, "SNAC: Multi-Scale Neural Audio Codec".
    Unlike: The decoder adds noise that is the same each time.
    """

    modality = "audio"
    package = network_class = "snac"
    padding = "constant"  # As the library does.
    encodes_together = 1
    settings = (
        "sampling_rate",
        "encoder_rates",
        "decoder_rates",
        "attn_window_size",
        "codebook_size",
        "codebook_dim",
        "vq_strides",
    )

    def __init__(self, source: str) -> None:
        super().__init__(source)
        network = self.network
        strides = self.config.vq_strides
        coarsest = strides[0]
        self.sample_rate, self.stride = network.sampling_rate, int(network.hop_length) * coarsest
        self.levels = tuple(coarsest // stride for stride in strides)
        self.codebook_sizes = (network.codebook_size,) * sum(self.levels)
        self.unit = math.lcm(coarsest, network.attn_window_size or 1) // coarsest
        """The library pads audio to a multiple of so many grid steps."""
        if network.attn_window_size:
            self.why_whole = "the windows of its attention begin with the audio"
        else:
            self.encoder_context = -(-context(conv_layers(network.encoder)) // coarsest)
            self.decoder_context = -(-context(conv_layers(network.decoder)) // coarsest)

    def _load(self, modules: Sequence[str]) -> Any:
        found = find_class(self.folder, "snac", "SNAC")
        try:
            network = found(**json.loads((self.folder / "config.json").read_bytes()))
        except Exception as error:  # The library may raise anything for a config that it cannot use.
            raise ModelError(f"{self.folder}: snac cannot load it: {type(error).__name__}: {error}") from error
        facts = {name: getattr(network, name) for name in self.settings}
        return ready(_with_fixed_noise(fill(with_config(network, facts), self.folder, self.files, modules)))

    def num_steps(self, samples: int) -> int:
        return -(-samples // (self.stride * self.unit)) * self.unit

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        codes = [
            plane.unflatten(1, (-1, level)) for plane, level in zip(self.network.encode(x), self.levels, strict=True)
        ]
        return torch.cat(codes, dim=2).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        bounds = pairwise(accumulate(self.levels, initial=0))
        z = torch.zeros((), device=codes.device)
        for quantizer, (start, stop) in zip(self.network.quantizer.quantizers, bounds, strict=True):
            if stop <= codes.shape[1]:
                plane = codes[:, start:stop].transpose(1, 2).flatten(1)
                z = z + quantizer.out_proj(quantizer.decode_code(plane)).repeat_interleave(quantizer.stride, dim=-1)
        media: Tensor = self.network.decoder(z)
        return media


class _Noise(nn.Module):
    """A noise block of SNAC's decoder that draws the same noise each time, on every device."""

    def __init__(self, linear: nn.Module, seed: int) -> None:
        super().__init__()
        self.linear, self.seed = linear, seed

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn((len(x), 1, x.shape[2]), generator=generator).to(x)
        return x + noise * self.linear(x)


def _with_fixed_noise(network: Any) -> Any:
    blocks = [(name, part) for name, part in network.named_modules() if type(part).__name__ == "NoiseBlock"]
    for seed, (name, block) in enumerate(blocks):
        network.set_submodule(name, _Noise(block.linear, seed))
    return network
