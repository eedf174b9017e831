"""BigCodec, a large codec with a single codebook for speech."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.models.adapters.pretrained import SavedModel, load_imported

TAPS = 12
"""The length of the filters around activations."""


class BigCodec(SavedModel):
    """A codec with convolutions, LSTMs and activations that are filtered against aliasing.

    `vqtok import` writes the folder.

    Source: Xin et al. 2024, "BigCodec: Pushing the Limits of Low-Bitrate Neural Speech Codec".
    Unlike: The project's script adds one more grid step of zeros to audio that consists of whole steps.
    """

    modality = "audio"
    network_class = "BigCodec"
    padding = "constant"
    encodes_together = 1
    why_whole = "its LSTMs depend on the whole audio"
    settings = ("sampling_rate", "ratios", "decoder_ratios", "dilations", "codebook_size")

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.sample_rate, self.stride = self.config.sampling_rate, math.prod(self.config.ratios)
        self.codebook_sizes = (self.config.codebook_size,) * self.config.num_codebooks

    def _load(self, modules: Sequence[str]) -> Any:
        return load_imported(self.folder, self.files, "BigCodec", lambda **config: _Network(SimpleNamespace(**config)))

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        z, codes = self.network.encoder(x), []
        for quantizer in self.network.quantizer[:num_codebooks]:
            codes.append(quantizer.encode(z))
            z = z - quantizer.decode(codes[-1])
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        z_q = torch.zeros((), device=codes.device)
        for quantizer, plane in zip(self.network.quantizer, codes.unbind(1), strict=False):
            z_q = z_q + quantizer.decode(plane)
        media: Tensor = self.network.decoder(z_q)
        return media


class _Network(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, dilations, lstm = config.width, config.dilations, config.num_lstm_layers
        layers: list[nn.Module] = [nn.Conv1d(1, width, 7, padding=3)]
        for stride in config.ratios:
            shape = width, 2 * width, 2 * stride, stride, stride // 2 + stride % 2
            layers.append(_Block(*_units(width, dilations), _Activation(width), nn.Conv1d(*shape)))
            width *= 2
        last = nn.Conv1d(width, config.latent_dim, 3, padding=1)
        self.encoder = nn.Sequential(*layers, _LSTM(width, lstm), _Activation(width), last)
        width = config.decoder_width
        layers = [nn.Conv1d(config.latent_dim, width, 7, padding=3), _LSTM(width, lstm)]
        for stride in config.decoder_ratios:
            shape = width, width // 2, 2 * stride, stride, stride // 2 + stride % 2
            up = nn.ConvTranspose1d(*shape, output_padding=stride % 2)
            layers.append(_Block(_Activation(width), up, *_units(width // 2, dilations)))
            width //= 2
        self.decoder = nn.Sequential(*layers, _Activation(width), nn.Conv1d(width, 1, 7, padding=3), nn.Tanh())
        sizes = config.latent_dim, config.codebook_size, config.codebook_dim
        self.quantizer = nn.ModuleList(_Quantizer(*sizes) for _ in range(config.num_codebooks))


class _Block(nn.Module):
    def __init__(self, *layers: nn.Module, is_residual: bool = False) -> None:
        super().__init__()
        self.block, self.is_residual = nn.Sequential(*layers), is_residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.is_residual else y


def _units(dim: int, dilations: Sequence[int]) -> list[_Block]:
    return [
        _Block(
            _Activation(dim),
            nn.Conv1d(dim, dim, 7, padding=3 * dilation, dilation=dilation),
            _Activation(dim),
            nn.Conv1d(dim, dim, 1),
            is_residual=True,
        )
        for dilation in dilations
    ]


class _Activation(nn.Module):
    """SnakeBeta at twice the rate: x + sin²(exp(alpha) x) / exp(beta)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.up, self.down = nn.Buffer(torch.zeros(1, 1, TAPS)), nn.Buffer(torch.zeros(1, 1, TAPS))

    def forward(self, x: Tensor) -> Tensor:
        dim = x.shape[1]
        x = F.pad(x, (TAPS // 2 - 1, TAPS // 2 - 1), mode="replicate")
        x = 2 * F.conv_transpose1d(x, self.up.expand(dim, -1, -1), stride=2, groups=dim)
        cut = TAPS - 2 + TAPS // 2 - 1
        x = x[..., cut:-cut]
        x = x + (1 / (self.beta.exp()[:, None] + 1e-9)) * torch.sin(x * self.alpha.exp()[:, None]).square()
        x = F.pad(x, (TAPS // 2 - 1, TAPS // 2), mode="replicate")
        return F.conv1d(x, self.down.expand(dim, -1, -1), stride=2, groups=dim)


class _LSTM(nn.Module):
    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, num_layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        return (self.lstm(x)[0] + x).transpose(1, 2)


class _Quantizer(nn.Module):
    def __init__(self, latent_dim: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(latent_dim, codebook_dim), nn.Linear(codebook_dim, latent_dim)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)

    def encode(self, z: Tensor) -> Tensor:
        flat = F.normalize(self.in_proj(z.transpose(1, 2)).flatten(0, 1))
        codebook = F.normalize(self.codebook.weight)
        squares = flat.square().sum(1, keepdim=True), codebook.square().sum(1)
        return (squares[0] - 2 * flat @ codebook.T + squares[1]).argmin(1).view(len(z), -1)

    def decode(self, codes: Tensor) -> Tensor:
        z_q: Tensor = self.out_proj(self.codebook(codes))
        return z_q.transpose(1, 2)
