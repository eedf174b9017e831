"""Layers shared by pictures and sound.

A sound is a picture of height 1: `(batch, channels, 1, samples)` with kernels `(1, k)`. So both use the 2-D
convolutions whose channels_last form is several times faster on CPUs than the 1-D ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqtok.config import NetworkConfig

Axes = Literal[1, 2]
"""Axes that a layer works along: 1 for sound, 2 for pictures."""


def convolution(axes: Axes, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    """Make a convolution that keeps the size, with zeros beyond the border."""
    padding = dilation * (kernel // 2)
    if axes == 2:
        layer = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation)
    else:
        layer = nn.Conv2d(inputs, outputs, (1, kernel), padding=(0, padding), dilation=(1, dilation))
    # Keeps the variance, which the default of torch divides by three; its random biases would drown quiet sound.
    nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def start_as(layer: nn.Conv2d, matrix: Tensor) -> None:
    """Let a convolution start as a matrix `(outputs, inputs)` at each position, cut to the layer's channels.

    Inputs beyond the matrix start without effect, outputs beyond it at random.
    """
    rows, columns = min(layer.out_channels, matrix.shape[0]), min(layer.in_channels, matrix.shape[1])
    layer.weight[:rows] = 0
    middle = tuple(size // 2 for size in layer.kernel_size)
    layer.weight[:rows, :columns, middle[0], middle[1]] = matrix[:rows, :columns]


def dct_stages(axes: Axes, channels: int, strides: Sequence[int], widths: Sequence[int]) -> list[Tensor]:
    """Give for each downsampling stage an orthonormal matrix `(outputs, inputs * stride ** axes)` to start as.

    The stages together are a DCT-II of whole blocks, and of the colours, from low frequencies to high; what the widths
    have no room for is dropped. Networks that start so are, before any training, a transform codec that drops high
    frequencies. From random filters pictures take thousands of steps to get there, and sound many more.

    Source: Ahmed et al. 1974, "Discrete Cosine Transform".
    """
    stages = []
    # The sum of the colours is their DC; their differences are about as weak as the third frequency of a block.
    colours, frequencies = dct_matrix(channels), (torch.arange(channels) > 0) * 2 / strides[0]
    for stride, width in zip(strides, widths, strict=True):
        block, within = dct_matrix(stride), torch.arange(stride) / stride
        if axes == 2:
            block, within = torch.kron(block, block), (within[:, None] + within).flatten()
        matrix = torch.kron(colours, block)
        frequencies = (frequencies[:, None] + within).flatten()
        order = frequencies.argsort(stable=True)[:width]
        stages.append(matrix[order])
        frequencies, colours = frequencies[order] * stride, torch.eye(len(order))
    return stages


def dct_matrix(size: int) -> Tensor:
    """Give the orthonormal DCT-II `(size, size)`, a row a frequency."""
    matrix = torch.cos(torch.pi / size * torch.arange(size)[:, None] * (torch.arange(size) + 0.5))
    matrix[0] /= math.sqrt(2)
    return matrix * math.sqrt(2 / size)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each position: it looks at no other position, so tiles can be exact."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # Autocast would compute this in float32, at several times the cost; the kernel sums in float32 anyway.
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, 1e-6).movedim(-1, 1)


class Snake(nn.Module):
    """x + sin(a x)^2 / a, with a learned frequency a per channel.

    Source: Ziyin et al. 2020, "Neural Networks Fail to Learn Periodic Functions and How to Fix It".
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        frequency = self.frequency.to(x.dtype)
        return x + torch.sin(frequency * x).square() / (frequency + 1e-6)


def activation(name: str, channels: int) -> nn.Module:
    return {"silu": nn.SiLU, "elu": nn.ELU}[name]() if name != "snake" else Snake(channels)


class Block(nn.Module):
    """A residual block, whose insides need much memory in training."""

    recompute = False
    """Whether the backward pass computes the block again, so that its insides need not be kept."""

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._compute, x, use_reentrant=False, preserve_rng_state=False)
        return self._compute(x)

    def _compute(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class ResBlock(Block):
    """Norm, activation, convolution, activation, convolution, added to the input.

    The second convolution has the kernel of the first for pictures and 1 for sound, as in SEANet and DAC. It starts at
    zero, so that a deep network starts as a shallow one.
    """

    def __init__(self, config: NetworkConfig, axes: Axes, channels: int, dilation: int) -> None:
        super().__init__()
        kernel = config.kernel
        self.norm = ChannelNorm(channels) if config.norm == "channel" else nn.Identity()
        self.activation1 = activation(config.activation, channels)
        self.conv1 = convolution(axes, channels, channels, kernel, dilation)
        self.activation2 = activation(config.activation, channels)
        self.conv2 = convolution(axes, channels, channels, kernel if axes == 2 else 1)
        nn.init.zeros_(self.conv2.weight)

    def _compute(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.activation2(self.conv1(self.activation1(self.norm(x)))))


class Downsample(nn.Module):
    """Move blocks of `stride` (squared) positions into channels, then convolve."""

    def __init__(self, axes: Axes, inputs: int, outputs: int, stride: int, start: Tensor) -> None:
        super().__init__()
        self.stride = (stride, stride) if axes == 2 else (1, stride)
        self.conv = convolution(axes, inputs * stride**axes, outputs, 3)
        start_as(self.conv, start)

    def forward(self, x: Tensor) -> Tensor:
        high, wide = self.stride
        batch, channels, height, width = x.shape
        x = x.view(batch, channels, height // high, high, width // wide, wide)
        return self.conv(x.permute(0, 1, 3, 5, 2, 4).flatten(1, 3))


class Upsample(nn.Module):
    """Convolve, then move channels into blocks of `stride` (squared) positions.

    Source: Shi et al. 2016, "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
        Convolutional Neural Network", section 2.2.
    """

    def __init__(self, axes: Axes, inputs: int, outputs: int, stride: int, start: Tensor) -> None:
        super().__init__()
        self.stride = (stride, stride) if axes == 2 else (1, stride)
        self.conv = convolution(axes, inputs, outputs * stride**axes, 3)
        start_as(self.conv, start)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        high, wide = self.stride
        x = x.unflatten(1, (-1, high, wide))
        return x.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
