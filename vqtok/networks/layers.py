"""Layers shared by the networks for images and audio.

Audio is treated as an image of height 1: `(batch, channels, 1, samples)` with kernels `(1, k)`, because 2-D
convolutions in channels_last memory are several times faster on CPUs than 1-D convolutions.
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
"""Number of axes that a layer works along: 1 for audio, 2 for images."""


def convolution(axes: Axes, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    """Build a convolution that keeps the size; the border is padded with zeros."""
    if kernel == 1:
        # Without effect on the result, but in a single thread torch uses oneDNN, twice as fast, only if it is dilated.
        dilation = 2
    padding = dilation * (kernel // 2)
    if axes == 2:
        layer = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation)
    else:
        layer = nn.Conv2d(inputs, outputs, (1, kernel), padding=(0, padding), dilation=(1, dilation))
    # Keeps the variance, while torch's default divides it by three and adds random biases that are louder than quiet
    # audio.
    nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def start_as(layer: nn.Conv2d, matrix: Tensor) -> None:
    """Initialize a convolution as a matrix `(outputs, inputs)` that is applied at each position.

    A matrix that is larger than the layer is cut. Inputs beyond the matrix have no effect at first; outputs beyond it
    stay random.
    """
    rows, columns = min(layer.out_channels, matrix.shape[0]), min(layer.in_channels, matrix.shape[1])
    layer.weight[:rows] = 0
    middle = tuple(size // 2 for size in layer.kernel_size)
    layer.weight[:rows, :columns, middle[0], middle[1]] = matrix[:rows, :columns]


def dct_stages(axes: Axes, channels: int, strides: Sequence[int], widths: Sequence[int]) -> list[Tensor]:
    """Return the initial matrix of each downsampling stage, orthonormal, `(outputs, inputs * stride ** axes)`.

    The stages together compute the DCT-II of whole blocks, and of the colors, sorted from low to high frequencies.
    Frequencies for which the widths have no room are dropped. Before any training such a network is therefore a
    transform codec that drops high frequencies. From random filters, images need thousands of steps to get there, and
    audio many more.

    Source: Ahmed et al. 1974, "Discrete Cosine Transform".
    """
    stages = []
    # The sum of the colors is their DC. Their differences are about as weak as the third frequency of a block.
    colors, frequencies = dct_matrix(channels), (torch.arange(channels) > 0) * 2 / strides[0]
    for stride, width in zip(strides, widths, strict=True):
        block, within = dct_matrix(stride), torch.arange(stride) / stride
        if axes == 2:
            block, within = torch.kron(block, block), (within[:, None] + within).flatten()
        matrix = torch.kron(colors, block)
        frequencies = (frequencies[:, None] + within).flatten()
        order = frequencies.argsort(stable=True)[:width]
        stages.append(matrix[order])
        frequencies, colors = frequencies[order] * stride, torch.eye(len(order))
    return stages


def dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix `(size, size)`, one row per frequency."""
    matrix = torch.cos(torch.pi / size * torch.arange(size)[:, None] * (torch.arange(size) + 0.5))
    matrix[0] /= math.sqrt(2)
    return matrix * math.sqrt(2 / size)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each position. It uses no other positions, which exact tiling requires."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # Autocast would compute this in float32, which takes several times as long; the kernel sums in float32 anyway.
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, 1e-6).movedim(-1, 1)


class Snake(nn.Module):
    """The activation x + sin(a x)^2 / a, with a learned frequency a per channel.

    Source: Ziyin et al. 2020, "Neural Networks Fail to Learn Periodic Functions and How to Fix It".
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        frequency = self.frequency.to(x.dtype)
        return x + torch.sin(frequency * x).square() / (frequency + 1e-6)


class Activation(nn.Module):
    """SiLU or ELU; with `overwrite` in place, unless gradients are needed.

    Allocating memory for a feature map takes longer than the function itself.
    """

    def __init__(self, name: str, *, overwrite: bool) -> None:
        super().__init__()
        self.function = F.silu if name == "silu" else F.elu
        self.overwrite = overwrite

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, inplace=self.overwrite and not torch.is_grad_enabled())


def activation(name: str, channels: int, *, overwrite: bool) -> nn.Module:
    return Snake(channels) if name == "snake" else Activation(name, overwrite=overwrite)


class Block(nn.Module):
    """A residual block, which can save memory in training by gradient checkpointing."""

    recompute = False
    """Whether the backward pass computes the block again instead of keeping its activations."""

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._compute, x, use_reentrant=False, preserve_rng_state=False)
        return self._compute(x)

    def _compute(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class ResBlock(Block):
    """Norm, activation, convolution, activation, convolution, added to the input.

    The second convolution has the kernel size of the first for images, and 1 for audio, as in SEANet and DAC. It is
    initialized with zeros, so that a deep network starts like a shallow one.
    """

    def __init__(self, config: NetworkConfig, axes: Axes, channels: int, dilation: int) -> None:
        super().__init__()
        kernel = config.kernel
        has_norm = config.norm == "channel"
        self.norm = ChannelNorm(channels) if has_norm else nn.Identity()
        self.activation1 = activation(config.activation, channels, overwrite=has_norm)
        self.conv1 = convolution(axes, channels, channels, kernel, dilation)
        self.activation2 = activation(config.activation, channels, overwrite=True)
        self.conv2 = convolution(axes, channels, channels, kernel if axes == 2 else 1)
        nn.init.zeros_(self.conv2.weight)

    def _compute(self, x: Tensor) -> Tensor:
        return self.conv2(self.activation2(self.conv1(self.activation1(self.norm(x))))).add_(x)


class Downsample(nn.Module):
    """Moves blocks of `stride` (squared) positions into the channels, then convolves."""

    def __init__(self, axes: Axes, inputs: int, outputs: int, stride: int, start: Tensor) -> None:
        super().__init__()
        self.stride = (stride, stride) if axes == 2 else (1, stride)
        self.conv = convolution(axes, inputs * stride**axes, outputs, 3)
        start_as(self.conv, start)

    def forward(self, x: Tensor) -> Tensor:
        high, wide = self.stride
        batch, channels, height, width = x.shape
        x = x.view(batch, channels, height // high, high, width // wide, wide).permute(0, 2, 4, 3, 5, 1)
        # To channels_last memory in two steps. A single step would copy `wide` numbers at a time, several times slower.
        return self.conv(x.flatten(3, 4).mT.flatten(3).movedim(-1, 1))


class Upsample(nn.Module):
    """Convolves, then moves channels into blocks of `stride` (squared) positions.

    Source: Shi et al. 2016, "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
        Convolutional Neural Network", section 2.2.
    """

    def __init__(self, axes: Axes, inputs: int, outputs: int, stride: int, start: Tensor) -> None:
        super().__init__()
        self.stride = (stride, stride) if axes == 2 else (1, stride)
        self.conv = convolution(axes, inputs, outputs * stride**axes, 3)
        start_as(self.conv, start)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).unflatten(1, (-1, *self.stride)).permute(0, 4, 2, 5, 3, 1)
        return x.flatten(3, 4).flatten(1, 2).movedim(-1, 1)  # channels_last
