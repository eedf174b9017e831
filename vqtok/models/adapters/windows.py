"""Convolutions over long sounds: how far they look, and running them in windows as if in one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqtok.media.tiling import windows

CORE_SECONDS = 30.0
"""Seconds of sound that go through convolutions at once; a shorter sound goes through the library as it is."""


class Layer(NamedTuple):
    """A convolution in a chain of them."""

    kernel: int
    """Input positions from the first to the last that it looks at; of a transposed one output positions it writes."""
    stride: int
    left: int
    """Positions padded before the first, or cut off by a transposed one."""
    transposed: bool = False


def conv_layers(network: nn.Module) -> list[Layer]:
    """Give the convolutions of a chain, in the order in which the modules are registered."""
    layers = []
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            assert isinstance(module.padding, tuple)
            kernel = (module.kernel_size[0] - 1) * module.dilation[0] + 1
            transposed = isinstance(module, nn.ConvTranspose1d)
            layers.append(Layer(kernel, module.stride[0], module.padding[0], transposed))
    return layers


def seanet_layers(network: nn.Module, causal: bool, trim_right_ratio: float) -> list[Layer]:
    """Give the convolutions of EnCodec's or Mimi's networks, whose modules pad and cut off by themselves."""
    layers = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d) and "shortcut" not in name:
            transposed = isinstance(module, nn.ConvTranspose1d)
            kernel, stride = (module.kernel_size[0] - 1) * module.dilation[0] + 1, module.stride[0]
            right = (kernel - stride) // 2
            if causal:
                right = math.ceil((kernel - stride) * trim_right_ratio) if transposed else 0
            layers.append(Layer(kernel, stride, kernel - stride - right, transposed))
    return layers


def context(layers: Sequence[Layer]) -> int:
    """Give the grid steps to either side that what belongs to one grid step depends on, of an encoder or decoder."""
    is_decoder = any(layer.transposed for layer in layers)
    stride = math.prod(layer.stride for layer in layers)
    first, last = 0, stride - 1 if is_decoder else 0
    for kernel, step, left, transposed in reversed(layers):
        if transposed:
            first, last = -((kernel - 1 - left - first) // step), (last + left) // step
        else:
            first, last = first * step - left, last * step - left + kernel - 1
    return max(-first, last) if is_decoder else max(-(first // stride), last // stride)


def in_windows(
    network: Callable[[Tensor], Tensor], x: Tensor, core: int, context: int, *, takes: int = 1, gives: int = 1
) -> Tensor:
    """Run a chain of convolutions over the last axis, a window at a time.

    Args:
        core, context: In grid steps.
        takes, gives: Input and output positions of a grid step.
    """
    parts = []
    for lies, given in windows(-(-x.shape[-1] // takes), core, context):
        part = network(x[..., lies.start * takes : lies.stop * takes])
        parts.append(part[..., given.start * gives : given.stop * gives])
    return torch.cat(parts, dim=-1)
