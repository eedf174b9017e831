"""The multi-scale tokenizer of VAR, which turns an image into token maps of growing size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import NetworkConfig
from vqtok.models.adapters.pretrained import SavedModel, load_imported
from vqtok.models.adapters.squares import cut, join
from vqtok.networks.vqgan import VQGANDecoder, VQGANEncoder


class Var(SavedModel):
    """A VQGAN whose latents are quantized in residual token maps of 1 x 1, 2 x 2, ..., 16 x 16 codes of one codebook.

    A grid step is a square of 256 x 256 pixels, whose 680 codes lie side by side in the order of the project, coarse
    first. Larger images are cut into independent squares. `vqtok import` writes the folder.

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
        return load_imported(self.folder, self.files, "VAR's tokenizer", _Network)

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        codes: Tensor = self.network.encode(cut(x, self.stride))
        return codes.view(len(x), 1, x.shape[2] // self.stride, -1)

    def decode(self, codes: Tensor) -> Tensor:
        sequences = codes[:, 0].unflatten(2, (-1, self.sequence_length))  # batch, rows, columns, codes
        return join(self.network.decode(sequences.flatten(0, 2)), *sequences.shape[1:3])


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
    """Quantizes latents from the coarsest scale to the finest; each scale gets what the ones before it have left.

    One of the convolutions `phis` smooths the vectors of each scale.
    """

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
        """Return the part of the latents that the codes `(batch, codes)` of a scale stand for."""
        scale, size = self.scales[index], self.scales[-1]
        vectors = self.embedding(codes).transpose(1, 2).unflatten(2, (scale, scale))
        if scale != size:
            vectors = F.interpolate(vectors, size=(size, size), mode="bicubic")
        vectors = vectors.contiguous()
        place = index / (len(self.scales) - 1)
        phi = self.phis[int((self.places - place).abs().argmin())]
        added: Tensor = vectors * (1 - self.ratio) + phi(vectors) * self.ratio
        return added
