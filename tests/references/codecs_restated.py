"""What importers of audio codecs are measured against: networks restated with the names that their weights have.

Sources: descriptinc/descript-audio-codec 1.0.0 (MIT), dac/model/dac.py and dac/nn; jishengpeng/WavTokenizer (MIT),
encoder/modules and decoder/{models,modules,heads,spectral_ops}.py. Sizes are settable; what only training needs is left
out. `torch.nn.utils.weight_norm` is written out, because it is deprecated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightNorm(nn.Module):
    """A convolution whose weight is stored as `weight_g` and `weight_v`."""

    def __init__(self, convolution: nn.Conv1d | nn.ConvTranspose1d) -> None:
        super().__init__()
        self.bias = convolution.bias
        self.weight_g = nn.Parameter(convolution.weight.norm(dim=(1, 2), keepdim=True))
        self.weight_v = nn.Parameter(convolution.weight.data)
        self.layer = [convolution]  # In a list, which has no weights.

    def forward(self, x: Tensor) -> Tensor:
        layer, weight = self.layer[0], torch._weight_norm(self.weight_v, self.weight_g, 0)
        if isinstance(layer, nn.ConvTranspose1d):
            return F.conv_transpose1d(x, weight, self.bias, layer.stride, layer.padding, layer.output_padding)
        return F.conv1d(x, weight, self.bias, layer.stride, layer.padding, layer.dilation)


def conv(*args: int, **options: int) -> WeightNorm:
    return WeightNorm(nn.Conv1d(*args, **options))


class Snake1d(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)


class Block(nn.Module):
    def __init__(self, *layers: nn.Module, is_residual: bool = False) -> None:
        super().__init__()
        self.block, self.is_residual = nn.Sequential(*layers), is_residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.is_residual else self.block(x)


def units(dim: int) -> list[nn.Module]:
    return [
        Block(
            Snake1d(dim),
            conv(dim, dim, 7, dilation=d, padding=3 * d),
            Snake1d(dim),
            conv(dim, dim, 1),
            is_residual=True,
        )
        for d in (1, 3, 9)
    ]


class VectorQuantize(nn.Module):
    def __init__(self, inputs: int, size: int, dim: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = conv(inputs, dim, 1), conv(dim, inputs, 1)
        self.codebook = nn.Embedding(size, dim)

    def encode(self, z: Tensor) -> Tensor:
        encodings = F.normalize(self.in_proj(z).transpose(1, 2).flatten(0, 1))
        codebook = F.normalize(self.codebook.weight)
        distances = (
            encodings.pow(2).sum(1, keepdim=True)
            - 2 * encodings @ codebook.t()
            + codebook.pow(2).sum(1, keepdim=True).t()
        )
        return (-distances).max(1)[1].view(len(z), -1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.out_proj(self.codebook(codes).transpose(1, 2))


class DAC(nn.Module):
    def __init__(self, width: int, rates: Sequence[int], decoder_width: int, count: int, size: int, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(1, width, 7, padding=3)]
        for stride in rates:
            down = conv(width, 2 * width, 2 * stride, stride=stride, padding=math.ceil(stride / 2))
            layers.append(Block(*units(width), Snake1d(width), down))
            width *= 2
        self.encoder = Block(*layers, Snake1d(width), conv(width, width, 3, padding=1))
        self.quantizer = nn.Module()
        self.quantizer.quantizers = nn.ModuleList(VectorQuantize(width, size, dim) for _ in range(count))
        layers, width = [conv(width, decoder_width, 7, padding=3)], decoder_width
        for stride in reversed(rates):
            shape = width, width // 2, 2 * stride
            up = WeightNorm(nn.ConvTranspose1d(*shape, stride=stride, padding=math.ceil(stride / 2)))
            layers.append(Block(Snake1d(width), up, *units(width // 2)))
            width //= 2
        self.decoder = nn.Module()
        self.decoder.model = nn.Sequential(*layers, Snake1d(width), conv(width, 1, 7, padding=3), nn.Tanh())

    def encode(self, x: Tensor) -> Tensor:
        z, codes = self.encoder(x), []
        for quantizer in self.quantizer.quantizers:
            codes.append(quantizer.encode(z))
            z = z - quantizer.decode(codes[-1])
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        planes = zip(self.quantizer.quantizers, codes.unbind(1), strict=True)
        return self.decoder.model(sum(quantizer.decode(plane) for quantizer, plane in planes))


class SConv1d(nn.Module):
    """A convolution with reflected padding, within two modules that are both called conv."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Module()
        self.conv.conv = conv(inputs, outputs, kernel, stride=stride, dilation=dilation)
        self.stride, self.kernel = stride, (kernel - 1) * dilation + 1

    def forward(self, x: Tensor) -> Tensor:
        padding, length = self.kernel - self.stride, x.shape[-1]
        frames = math.ceil((length - self.kernel + padding) / self.stride + 1)
        extra = (frames - 1) * self.stride + self.kernel - padding - length
        left, right = padding - padding // 2, padding // 2 + extra
        missing = max(0, max(left, right) - length + 1)
        padded = F.pad(F.pad(x, (0, missing)), (left, right), "reflect")
        return self.conv.conv(padded[..., : padded.shape[-1] - missing])


class SEANetResnetBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ELU(), SConv1d(dim, dim // 2, 3), nn.ELU(), SConv1d(dim // 2, dim, 1))
        self.shortcut = SConv1d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


class SLSTM(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(2, 0, 1)
        return (self.lstm(x)[0] + x).permute(1, 2, 0)


class AdaLayerNorm(nn.Module):
    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Embedding(count, dim), nn.Embedding(count, dim)

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * self.scale(number) + self.shift(number)


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int, intermediate: int, count: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = AdaLayerNorm(count, dim)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, intermediate), nn.Linear(intermediate, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).transpose(1, 2), number)
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))).transpose(1, 2)


class ResnetBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, dim, 1e-6), nn.GroupNorm(32, dim, 1e-6)
        self.conv1, self.conv2 = nn.Conv1d(dim, dim, 3, padding=1), nn.Conv1d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        y = self.norm2(self.conv1(y * torch.sigmoid(y)))
        return x + self.conv2(y * torch.sigmoid(y))


class AttnBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, dim, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv1d(dim, dim, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        weights = torch.bmm(self.q(y).permute(0, 2, 1), self.k(y)) * (int(x.shape[1]) ** (-0.5))
        return x + self.proj_out(torch.bmm(self.v(y), weights.softmax(dim=2).permute(0, 2, 1)))


class WavTokenizer(nn.Module):
    def __init__(
        self, width: int, ratios: Sequence[int], latent: int, size: int, dim: int, intermediate: int, layers: int
    ) -> None:
        super().__init__()
        encoder: list[nn.Module] = [SConv1d(1, width, 7)]
        for ratio in reversed(ratios):
            encoder += [SEANetResnetBlock(width), nn.ELU(), SConv1d(width, 2 * width, 2 * ratio, ratio)]
            width *= 2
        encodec = nn.Module()
        encodec.encoder = nn.Module()
        encodec.encoder.model = nn.Sequential(*encoder, SLSTM(width), nn.ELU(), SConv1d(width, latent, 7))
        encodec.decoder = nn.Linear(2, 2)  # There, but not used.
        self.codebook = codebook = nn.Module()
        codebook.register_buffer("inited", torch.ones(1))
        codebook.register_buffer("cluster_size", torch.ones(size))
        codebook.register_buffer("embed", torch.randn(size, latent))
        codebook.register_buffer("embed_avg", torch.randn(size, latent))
        del self.codebook
        encodec.quantizer, layer = nn.Module(), nn.Module()
        layer._codebook = codebook
        encodec.quantizer.vq = nn.Module()
        encodec.quantizer.vq.layers = nn.ModuleList([layer])
        self.feature_extractor = nn.Module()
        self.feature_extractor.encodec = encodec
        self.backbone = backbone = nn.Module()
        backbone.embed, backbone.norm = nn.Conv1d(latent, dim, 7, padding=3), AdaLayerNorm(4, dim)
        blocks = [ResnetBlock(dim), ResnetBlock(dim), AttnBlock(dim), ResnetBlock(dim), ResnetBlock(dim)]
        backbone.pos_net = nn.Sequential(*blocks, nn.GroupNorm(32, dim, 1e-6))
        backbone.convnext = nn.ModuleList(ConvNeXtBlock(dim, intermediate, 4) for _ in range(layers))
        backbone.final_layer_norm = nn.LayerNorm(dim, eps=1e-6)
        self.hop, self.head = math.prod(ratios), nn.Module()
        self.head.out, self.head.istft = nn.Linear(dim, 4 * self.hop + 2), nn.Module()
        self.head.istft.register_buffer("window", torch.hann_window(4 * self.hop))

    def encode(self, x: Tensor) -> Tensor:
        encodec = self.feature_extractor.encodec
        z, embed = encodec.encoder.model(x), encodec.quantizer.vq.layers[0]._codebook.embed.t()
        flat = z.transpose(1, 2).flatten(0, 1)
        distances = -(flat.pow(2).sum(1, keepdim=True) - 2 * flat @ embed + embed.pow(2).sum(0, keepdim=True))
        return distances.max(dim=-1).indices.view(len(z), 1, -1)

    def decode(self, codes: Tensor) -> Tensor:
        z_q = F.embedding(codes[:, 0], self.feature_extractor.encodec.quantizer.vq.layers[0]._codebook.embed)
        backbone, number = self.backbone, torch.tensor([0])
        x = backbone.pos_net(backbone.embed(z_q.transpose(1, 2)))
        x = backbone.norm(x.transpose(1, 2), number).transpose(1, 2)
        for block in backbone.convnext:
            x = block(x, number)
        magnitude, phase = self.head.out(backbone.final_layer_norm(x.transpose(1, 2))).transpose(1, 2).chunk(2, dim=1)
        magnitude = torch.clip(torch.exp(magnitude), max=1e2)
        return self._istft(magnitude * (torch.cos(phase) + 1j * torch.sin(phase)))[:, None]

    def _istft(self, spectrum: Tensor) -> Tensor:
        window, steps = self.head.istft.window, spectrum.shape[2]
        frames = torch.fft.irfft(spectrum, len(window), dim=1, norm="backward") * window[None, :, None]
        squares = window.square().expand(1, steps, -1).transpose(1, 2)
        pad, size = (len(window) - self.hop) // 2, (1, (steps - 1) * self.hop + len(window))
        audio, envelope = (
            F.fold(part, size, (1, len(window)), stride=(1, self.hop))[:, 0, 0, pad:-pad] for part in (frames, squares)
        )
        return audio / envelope
