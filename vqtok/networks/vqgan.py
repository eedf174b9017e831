"""The networks of VQGAN and of its successor Open-MAGVIT2, which many published image models use.

Their group norms and attention depend on the whole image, so that it cannot be computed in parts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import NetworkConfig
from vqtok.networks.layers import Block

EPSILON = 1e-6


class VQGANEncoder(nn.Module):
    """Maps images `(batch, channels, height, width)` to latents `(batch, dim, *grid)`.

    Sizes are multiples of the stride.

    Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", appendix B; for the kind
        "magvit2" Luo et al. 2024, "Open-MAGVIT2".
    """

    def __init__(self, config: NetworkConfig, channels: int, dim: int) -> None:
        super().__init__()
        magvit2 = config.kind == "magvit2"
        inputs = config.widths[0]
        layers: list[nn.Module] = [_convolution(channels, inputs, bias=not magvit2)]
        for stage, (stride, width) in enumerate(zip(config.strides, config.widths, strict=True)):
            if stride == 2 and magvit2:
                layers.append(nn.Conv2d(inputs, inputs, 3, stride=2, padding=1))
            elif stride == 2:
                layers += [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(inputs, inputs, 3, stride=2)]
            layers += _blocks(config, stage, config.encoder_blocks[stage], inputs)
            inputs = width
        layers += _middle(config, config.encoder_blocks[-1])
        layers += [GroupNorm(inputs), nn.SiLU(), nn.Conv2d(inputs, dim, 1) if magvit2 else _convolution(inputs, dim)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class VQGANDecoder(nn.Module):
    """Maps latents `(batch, dim, *grid)` to images `(batch, channels, height, width)`; sources as `VQGANEncoder`."""

    def __init__(self, config: NetworkConfig, channels: int, dim: int) -> None:
        super().__init__()
        magvit2 = config.kind == "magvit2"
        inputs = config.widths[-1]
        layers: list[nn.Module] = [_convolution(dim, inputs), *_middle(config, config.decoder_blocks[-1])]
        for stage in reversed(range(len(config.strides))):
            if magvit2:
                layers.append(AdaptiveNorm(inputs, dim))
            layers += _blocks(config, stage, config.decoder_blocks[stage], inputs)
            inputs = config.widths[stage]
            if config.strides[stage] == 2 and magvit2:
                layers += [_convolution(inputs, 4 * inputs), nn.PixelShuffle(2)]
            elif config.strides[stage] == 2:
                layers += [nn.Upsample(scale_factor=2, mode="nearest"), _convolution(inputs, inputs)]
        layers += [GroupNorm(inputs), nn.SiLU(), _convolution(inputs, channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        x = z
        for layer in self.layers:
            x = layer(x, z) if isinstance(layer, AdaptiveNorm) else layer(x)
        return x


class GroupNorm(nn.GroupNorm):
    """Group norm with 32 groups of channels, over all positions."""

    def __init__(self, channels: int, *, affine: bool = True) -> None:
        super().__init__(32, channels, EPSILON, affine)

    def forward(self, x: Tensor) -> Tensor:
        # In channels_last memory torch (2.13, CPU) computes wrong variances for groups whose mean is far from zero.
        # F.group_norm refuses groups of one value, which a single position of 32 channels has.
        return torch.group_norm(x.contiguous(), self.num_groups, self.weight, self.bias, self.eps)


class ResnetBlock(Block):
    """Group norm, SiLU and convolution, twice, added to the input."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(inputs), _convolution(inputs, outputs, bias=bias)
        self.norm2, self.conv2 = GroupNorm(outputs), _convolution(outputs, outputs, bias=bias)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=bias)

    def _compute(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Self-attention over all positions with one head, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.q, self.k, self.v, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).mT[:, None] for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0].mT
        return x + self.out(attended.unflatten(2, x.shape[2:]))


class AdaptiveNorm(nn.Module):
    """Group norm with scale and shift computed from the standard deviations and means of the latents' channels."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, affine=False)
        self.scale, self.shift = nn.Linear(dim, channels), nn.Linear(dim, channels)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        latents = z.flatten(2)
        # The unbiased variance of a single position is undefined; the biased one is 0.
        variance = latents.var(2, correction=min(1, latents.shape[2] - 1))
        scale, shift = self.scale((variance + EPSILON).sqrt()), self.shift(latents.mean(2))
        return scale[..., None, None] * self.norm(x) + shift[..., None, None]


def _blocks(config: NetworkConfig, stage: int, count: int, inputs: int) -> list[nn.Module]:
    """Build the blocks of a stage; the first one changes the number of channels."""
    width = config.widths[stage]
    layers: list[nn.Module] = []
    for index in range(count):
        layers.append(ResnetBlock(width if index else inputs, width, bias=config.kind == "vqgan"))
        if config.attention and config.attention[stage]:
            layers.append(Attention(width))
    return layers


def _middle(config: NetworkConfig, count: int) -> list[nn.Module]:
    """Build the blocks between the last stage and the latents."""
    width = config.widths[-1]
    if config.kind == "magvit2":
        return [ResnetBlock(width, width, bias=False) for _ in range(count)]
    attention = [Attention(width)] if config.middle_attention else []
    return [ResnetBlock(width, width, bias=True), *attention, ResnetBlock(width, width, bias=True)]


def _convolution(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
