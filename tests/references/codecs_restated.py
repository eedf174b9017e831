"""What importers of audio codecs are measured against: networks restated with the names that their weights have.

Sources: descriptinc/descript-audio-codec 1.0.0 (MIT), dac/model/dac.py and dac/nn; jishengpeng/WavTokenizer (MIT),
encoder/modules and decoder/{models,modules,heads,spectral_ops}.py; ZhangXInFD/SpeechTokenizer 1.0.1 (Apache-2.0),
model.py, modules and quantization; Aria-K-Alethia/BigCodec (MIT), vq; neuphonic/neucodec 0.0.6 (MIT), model.py,
codec_encoder.py, codec_decoder_vocos.py and bs_roformer5.py, with torchtune 0.6.1 (BSD-3-Clause),
modules/position_embeddings.py. Sizes are settable; what only training needs is left out.
`torch.nn.utils.weight_norm` is written out, because it is deprecated.
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


def units(dim: int, activation: type[nn.Module] = Snake1d) -> list[nn.Module]:
    return [
        Block(
            activation(dim),
            conv(dim, dim, 7, dilation=d, padding=3 * d),
            activation(dim),
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
        hop, self.head = math.prod(ratios), nn.Module()
        self.head.out, self.head.istft = nn.Linear(dim, 4 * hop + 2), nn.Module()
        self.head.istft.register_buffer("window", torch.hann_window(4 * hop))

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
        return istft(magnitude * (torch.cos(phase) + 1j * torch.sin(phase)), self.head.istft.window)[:, None]


def istft(spectrum: Tensor, window: Tensor) -> Tensor:
    """Return the audio of a spectrum with a hop of a quarter of the window."""
    steps, hop = spectrum.shape[2], len(window) // 4
    frames = torch.fft.irfft(spectrum, len(window), dim=1, norm="backward") * window[None, :, None]
    squares = window.square().expand(1, steps, -1).transpose(1, 2)
    pad, size = (len(window) - hop) // 2, (1, (steps - 1) * hop + len(window))
    audio, envelope = (
        F.fold(part, size, (1, len(window)), stride=(1, hop))[:, 0, 0, pad:-pad] for part in (frames, squares)
    )
    return audio / envelope


class SConvTranspose1d(nn.Module):
    """A transposed convolution within two modules that are both called convtr."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.convtr = nn.Module()
        self.convtr.convtr = WeightNorm(nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        right = self.stride // 2
        y = self.convtr.convtr(x)
        return y[..., self.stride - right : y.shape[-1] - right]


class BidirectionalSLSTM(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, 2, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(2, 0, 1)
        return (self.lstm(x)[0] + x.repeat(1, 1, 2)).permute(1, 2, 0)


class SpeechTokenizer(nn.Module):
    def __init__(self, width: int, strides: Sequence[int], dim: int, count: int, size: int) -> None:
        super().__init__()
        encoder: list[nn.Module] = [SConv1d(1, width, 7)]
        for stride in reversed(strides):
            encoder += [SEANetResnetBlock(width), nn.ELU(), SConv1d(width, 2 * width, 2 * stride, stride)]
            width *= 2
        self.encoder, self.decoder, self.quantizer = nn.Module(), nn.Module(), nn.Module()
        tail = BidirectionalSLSTM(width), nn.ELU(), SConv1d(2 * width, dim, 7)
        self.encoder.model = nn.Sequential(*encoder, *tail)
        decoder: list[nn.Module] = [SConv1d(dim, width, 7), SLSTM(width)]
        for stride in strides:
            decoder += [nn.ELU(), SConvTranspose1d(width, width // 2, stride), SEANetResnetBlock(width // 2)]
            width //= 2
        self.decoder.model = nn.Sequential(*decoder, nn.ELU(), SConv1d(width, 1, 7))
        self.transform, self.quantizer.vq = nn.Linear(dim, 3), nn.Module()
        self.quantizer.vq.layers = nn.ModuleList(nn.Module() for _ in range(count))
        for layer in self.quantizer.vq.layers:
            layer._codebook = nn.Module()
            layer._codebook.register_buffer("inited", torch.ones(1))
            layer._codebook.register_buffer("cluster_size", torch.ones(size))
            layer._codebook.register_buffer("embed", torch.randn(size, dim))
            layer._codebook.register_buffer("embed_avg", torch.randn(size, dim))

    @property
    def codebooks(self) -> list[Tensor]:
        return [layer._codebook.embed for layer in self.quantizer.vq.layers]

    def encode(self, x: Tensor) -> Tensor:
        residual, codes = self.encoder.model(x), []
        for embed in self.codebooks:
            flat = residual.transpose(1, 2).flatten(0, 1)
            distances = -(
                flat.pow(2).sum(1, keepdim=True) - 2 * flat @ embed.t() + embed.t().pow(2).sum(0, keepdim=True)
            )
            codes.append(distances.max(dim=-1).indices.view(len(x), -1))
            residual = residual - F.embedding(codes[-1], embed).transpose(1, 2)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        planes = zip(codes.unbind(1), self.codebooks, strict=True)
        return self.decoder.model(sum(F.embedding(plane, embed) for plane, embed in planes).transpose(1, 2))


def kaiser_sinc_filter1d() -> Tensor:
    """Return the filter of 12 taps that halves the rate."""
    amplitude = 2.285 * 5 * math.pi * 4 * 0.3 + 7.95
    window = torch.kaiser_window(12, beta=0.5842 * (amplitude - 21) ** 0.4 + 0.07886 * (amplitude - 21), periodic=False)
    taps = 0.5 * window * torch.sinc(0.5 * (torch.arange(-6, 6) + 0.5))
    return (taps / taps.sum()).view(1, 1, 12)


class SnakeBeta(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = (torch.exp(value)[None, :, None] for value in (self.alpha, self.beta))
        return x + (1.0 / (beta + 0.000000001)) * torch.pow(torch.sin(x * alpha), 2)


class Activation1d(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.act, self.upsample, self.downsample = SnakeBeta(dim), nn.Module(), nn.Module()
        self.upsample.register_buffer("filter", kaiser_sinc_filter1d())
        self.downsample.lowpass = nn.Module()
        self.downsample.lowpass.register_buffer("filter", kaiser_sinc_filter1d())

    def forward(self, x: Tensor) -> Tensor:
        dim = x.shape[1]
        up, down = self.upsample.filter.expand(dim, -1, -1), self.downsample.lowpass.filter.expand(dim, -1, -1)
        x = 2 * F.conv_transpose1d(F.pad(x, (5, 5), mode="replicate"), up, stride=2, groups=dim)
        x = self.act(x[..., 15:-15])
        return F.conv1d(F.pad(x, (5, 6), mode="replicate"), down, stride=2, groups=dim)


class ResLSTM(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        return (self.lstm(x)[0] + x).transpose(1, 2)


class WeightNormLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layer = nn.Linear(inputs, outputs)
        self.bias, self.weight_v = layer.bias, layer.weight
        self.weight_g = nn.Parameter(layer.weight.data.norm(dim=1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True), self.bias)


class FactorizedVectorQuantize(nn.Module):
    def __init__(self, dim: int, size: int, codebook_dim: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = WeightNormLinear(dim, codebook_dim), WeightNormLinear(codebook_dim, dim)
        self._codebook = nn.Embedding(size, codebook_dim)

    def encode(self, z: Tensor) -> Tensor:
        encodings = F.normalize(self.in_proj(z.transpose(1, 2)).flatten(0, 1))
        codebook = F.normalize(self._codebook.weight)
        dist = (
            encodings.pow(2).sum(1, keepdim=True)
            - 2 * encodings @ codebook.t()
            + codebook.pow(2).sum(1, keepdim=True).t()
        )
        return (-dist).max(1)[1].view(len(z), -1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.out_proj(F.embedding(codes, self._codebook.weight)).transpose(1, 2)


class BigCodec(nn.Module):
    """The encoder and the decoder with the names that they have in training."""

    def __init__(
        self, width: int, ratios: Sequence[int], latent: int, top: int, count: int, size: int, dim: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(1, width, 7, padding=3)]
        for stride in ratios:
            down = conv(width, 2 * width, 2 * stride, stride=stride, padding=stride // 2 + stride % 2)
            layers.append(Block(*units(width, Activation1d), Activation1d(width), down))
            width *= 2
        self.CodecEnc, self.generator = Block(), nn.Module()
        self.generator.quantizer = nn.Module()
        tail = ResLSTM(width), Activation1d(width), conv(width, latent, 3, padding=1)
        self.CodecEnc.block = nn.Sequential(*layers, *tail)
        self.generator.quantizer.layers = nn.ModuleList(
            FactorizedVectorQuantize(latent, size, dim) for _ in range(count)
        )
        layers = [conv(latent, top, 7, padding=3), ResLSTM(top)]
        for stride in reversed(ratios):
            padding, extra = stride // 2 + stride % 2, stride % 2
            up = nn.ConvTranspose1d(top, top // 2, 2 * stride, stride, padding, output_padding=extra)
            layers.append(Block(Activation1d(top), WeightNorm(up), *units(top // 2, Activation1d)))
            top //= 2
        self.generator.model = nn.Sequential(*layers, Activation1d(top), conv(top, 1, 7, padding=3), nn.Tanh())

    def encode(self, x: Tensor) -> Tensor:
        residual, codes = self.CodecEnc(x), []
        for layer in self.generator.quantizer.layers:
            codes.append(layer.encode(residual))
            residual = residual - layer.decode(codes[-1])
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        planes = zip(self.generator.quantizer.layers, codes.unbind(1), strict=True)
        return self.generator.model(sum(layer.decode(plane) for layer, plane in planes))


def rotary(x: Tensor) -> Tensor:
    """Rotate neighboring features `(batch, heads, time, 64)` by the number of the head: torchtune takes it for time."""
    theta = 1.0 / 10_000 ** (torch.arange(0, 64, 2).float() / 64)
    angles = torch.outer(torch.arange(x.shape[1]).float(), theta)[None, :, None]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()
    return torch.stack(turned, dim=-1).flatten(3)


class RoformerBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.att_norm, self.ffn_norm = nn.RMSNorm(dim, 1e-6), nn.RMSNorm(dim, 1e-6)
        self.att, self.mlp = nn.Module(), nn.Module()
        self.att.c_attn, self.att.c_proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.att.c_attn(self.att_norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(2, (-1, 64)).transpose(1, 2) for part in parts)
        x = x + self.att.c_proj(F.scaled_dot_product_attention(rotary(q), rotary(k), v).transpose(1, 2).flatten(2))
        return x + self.mlp.fc2(F.silu(self.mlp.fc1(self.ffn_norm(x))))


class NeuCodec(nn.Module):
    """The network around a speech model of transformers, which is not among its weights."""

    LEVELS = 4

    def __init__(self, width: int, ratios: Sequence[int], dim: int, semantic: int, layers: int, speech: nn.Module):
        super().__init__()
        self.speech = [speech]  # In a list, which has no weights.
        blocks: list[nn.Module] = [conv(1, width, 7, padding=3)]
        for stride in ratios:
            down = conv(width, 2 * width, 2 * stride, stride=stride, padding=stride // 2 + stride % 2)
            blocks.append(Block(*units(width, Activation1d), Activation1d(width), down))
            width *= 2
        self.CodecEnc, self.SemanticEncoder_module, self.generator = nn.Module(), nn.Module(), nn.Module()
        self.CodecEnc.conv_blocks = nn.Sequential(*blocks)
        self.CodecEnc.conv_final_block = nn.Sequential(Activation1d(width), conv(width, dim, 3, padding=1))
        adapter, shape = self.SemanticEncoder_module, (semantic, semantic, 3)
        adapter.initial_conv, adapter.final_conv = (nn.Conv1d(*shape, padding=1, bias=False) for _ in range(2))
        inner = nn.ReLU(), nn.Conv1d(*shape, padding=1), nn.ReLU(), nn.Conv1d(*shape, padding=1)
        adapter.residual_blocks = nn.Sequential(*inner)
        self.fc_prior, self.fc_post_a = nn.Linear(dim + semantic, dim + semantic), nn.Linear(dim + semantic, dim)
        self.fc_post_s = nn.Linear(2, 2)  # Only used in training.
        self.generator.quantizer, self.generator.backbone, self.generator.head = (nn.Module() for _ in range(3))
        quantizer, backbone, head = self.generator.quantizer, self.generator.backbone, self.generator.head
        quantizer.project_in, quantizer.project_out = nn.Linear(dim + semantic, 8), nn.Linear(8, dim + semantic)
        backbone.embed = nn.Conv1d(dim, dim, 7, padding=3)
        backbone.prior_net, backbone.post_net = (nn.Sequential(ResnetBlock(dim), ResnetBlock(dim)) for _ in range(2))
        backbone.transformers = nn.Sequential(*(RoformerBlock(dim) for _ in range(layers)))
        backbone.final_layer_norm = nn.LayerNorm(dim, eps=1e-6)
        window = 4 * math.prod(ratios) * 3 // 2
        head.out, head.istft = nn.Linear(dim, window + 2), nn.Module()
        head.istft.register_buffer("window", torch.hann_window(window))

    def encode(self, x: Tensor, features: Tensor) -> Tensor:
        """Return the codes `(1, 1, time)` of audio that is padded as the package does, given the features of it."""
        acoustic = self.CodecEnc.conv_final_block(self.CodecEnc.conv_blocks(x))
        adapter, speech = self.SemanticEncoder_module, self.speech[0]
        heard = adapter.initial_conv(
            speech(features, output_hidden_states=True).hidden_states[16].transpose(1, 2)
        ).relu()
        heard = adapter.final_conv(adapter.residual_blocks(heard) + heard)
        length = min(acoustic.shape[2], heard.shape[2])
        both = torch.cat([heard[..., :length], acoustic[..., :length]], dim=1).transpose(1, 2)
        z = self.generator.quantizer.project_in(self.fc_prior(both))
        levels = (self._bound(self._bound(z)).round() + self.LEVELS // 2).long()
        return (levels * self.LEVELS ** torch.arange(8)).sum(dim=-1)[:, None]

    def _bound(self, z: Tensor) -> Tensor:
        half = (self.LEVELS - 1) * (1 + 1e-3) / 2
        return (z + math.atanh(0.5 / half)).tanh() * half - 0.5

    def decode(self, codes: Tensor) -> Tensor:
        levels = codes[:, 0, :, None] // self.LEVELS ** torch.arange(8) % self.LEVELS
        z_q = self.generator.quantizer.project_out((levels - self.LEVELS // 2) / (self.LEVELS // 2))
        backbone, head = self.generator.backbone, self.generator.head
        x = backbone.prior_net(backbone.embed(self.fc_post_a(z_q).transpose(1, 2)))
        x = backbone.post_net(backbone.transformers(x.transpose(1, 2)).transpose(1, 2)).transpose(1, 2)
        magnitude, phase = head.out(backbone.final_layer_norm(x)).transpose(1, 2).chunk(2, dim=1)
        magnitude = torch.clip(torch.exp(magnitude), max=1e2)
        return istft(magnitude * (torch.cos(phase) + 1j * torch.sin(phase)), head.istft.window)[:, None]
