"""The multi-scale tokenizer of VAR, which turns an image into token maps of growing size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import NetworkConfig
from vqtok.errors import ModelError
from vqtok.models.adapters.pretrained import SavedModel, fill, ready
from vqtok.networks.vqgan import VQGANDecoder, VQGANEncoder


class Var(SavedModel):
    """A VQGAN whose latents are quantized in residual token maps of 1 x 1, 2 x 2, ..., 16 x 16 codes of one codebook.

    A grid step is a square of 256 x 256 pixels, whose 680 codes lie side by side in the order of the project, coarse
    first. Larger images become several squares, each by itself. `vqtok import` writes the folder.

    Source: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction".
    """

    modality = "image"
    channels = 3
    network_class = "VAR"
    encoder_context = decoder_context = 0
    settings = ("network", "scales", "quant_resi")

    def __init__(self, source: str) -> None:
        super().__init__(source)
        scales, levels = self.config.scales, len(self.config.network["strides"])
        self.stride = scales[-1] * 2 ** (levels - 1)
        self.sequence_length = sum(scale**2 for scale in scales)
        self.codebook_sizes = (self.network.quantizer.embedding.num_embeddings,)

    def _load(self, modules: Sequence[str]) -> Any:
        try:
            config = json.loads((self.folder / "config.json").read_bytes())
            facts = {name: config[name] for name in (*self.settings, "codebook_size", "dim", "num_phis")}
            network = _Network(**facts)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ModelError(f"{self.folder}: its config.json is not that of VAR's tokenizer: {error!r}") from None
        network.__dict__["config"] = SimpleNamespace(**facts, to_dict=lambda: facts)
        return ready(fill(network, self.folder, self.files, modules))

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        size = self.stride
        squares = x.unfold(2, size, size).unfold(3, size, size)  # batch, channels, rows, columns, size, size
        batch, _, rows, _, _, _ = squares.shape
        codes = self.network.encode(squares.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous())
        return codes.reshape(batch, 1, rows, -1)

    def decode(self, codes: Tensor) -> Tensor:
        sequences = codes[:, 0].unflatten(2, (-1, self.sequence_length))  # batch, rows, columns, codes
        media = self.network.decode(sequences.flatten(0, 2))
        squares = media.view(*sequences.shape[:3], *media.shape[1:]).permute(0, 3, 1, 4, 2, 5)
        return squares.flatten(4, 5).flatten(2, 3)


def network_config(settings: Mapping[str, Any]) -> NetworkConfig:
    """Return the configuration of a network from JSON, which has lists for tuples."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    return NetworkConfig(**values)


class _Network(nn.Module):
    def __init__(
        self,
        network: dict[str, Any],
        scales: list[int],
        quant_resi: float,
        codebook_size: int,
        dim: int,
        num_phis: int,
    ) -> None:
        super().__init__()
        config = network_config(network)
        self.encoder, self.decoder = VQGANEncoder(config, 3, dim), VQGANDecoder(config, 3, dim)
        self.quantizer = _Quantizer(scales, quant_resi, codebook_size, dim, num_phis)
        self.quant_conv, self.post_quant_conv = (nn.Conv2d(dim, dim, 3, padding=1) for _ in range(2))

    def encode(self, x: Tensor) -> Tensor:
        return self.quantizer.encode(self.quant_conv(self.encoder(x)))

    def decode(self, codes: Tensor) -> Tensor:
        media: Tensor = self.decoder(self.post_quant_conv(self.quantizer.decode(codes)))
        return media.clamp(-1, 1)


class _Quantizer(nn.Module):
    """Quantizes what is left of the latents, averaged to each scale. Every scale is smoothed by one of the `phis`."""

    def __init__(self, scales: list[int], quant_resi: float, codebook_size: int, dim: int, num_phis: int) -> None:
        super().__init__()
        self.scales, self.ratio = scales, quant_resi
        self.embedding = nn.Embedding(codebook_size, dim)
        self.phis = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(num_phis))
        # The place of each of them between the first scale (0) and the last one (1).
        end = 1 / 3 / num_phis if num_phis == 4 else 1 / 2 / num_phis
        self.places = torch.linspace(end, 1 - end, num_phis, dtype=torch.float64)

    def encode(self, z: Tensor) -> Tensor:
        """Return the codes `(batch, codes)` of latents."""
        rest, found = z, []
        for index, scale in enumerate(self.scales):
            averaged = F.interpolate(rest, size=(scale, scale), mode="area") if scale != self.scales[-1] else rest
            flat, codebook = averaged.permute(0, 2, 3, 1).flatten(0, 2), self.embedding.weight
            distances = flat.square().sum(1, keepdim=True) + codebook.square().sum(1)
            codes = torch.addmm(distances, flat, codebook.T, alpha=-2).argmin(1).view(len(z), -1)
            rest = rest - self._map(index, codes)
            found.append(codes)
        return torch.cat(found, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        maps = codes.split([scale**2 for scale in self.scales], dim=1)
        z_q = self._map(0, maps[0])
        for index, part in enumerate(maps[1:], 1):
            z_q = z_q + self._map(index, part)
        return z_q

    def _map(self, index: int, codes: Tensor) -> Tensor:
        """Return what the codes `(batch, codes)` of a scale add to the latents."""
        scale, size = self.scales[index], self.scales[-1]
        vectors = self.embedding(codes).transpose(1, 2).unflatten(2, (scale, scale))
        if scale != size:
            vectors = F.interpolate(vectors, size=(size, size), mode="bicubic")
        vectors = vectors.contiguous()
        place = index / (len(self.scales) - 1)
        phi = self.phis[int((self.places - place).abs().argmin())]
        added: Tensor = vectors * (1 - self.ratio) + phi(vectors) * self.ratio
        return added
