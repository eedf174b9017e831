"""Receptive fields of chains of convolutions: how much context exact tiling needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from vqtok.networks.autoencoder import Decoder, Encoder
from vqtok.networks.layers import Downsample, ResBlock, Upsample


class Layer(NamedTuple):
    """One convolution of a chain, along one axis."""

    kernel: int
    """Input positions that one output reads, dilation included; for a transposed layer, output positions that one
    input writes."""
    stride: int
    left: int
    """Positions padded before the first; for a transposed layer, positions cut off."""
    transposed: bool = False


def context(layers: Sequence[Layer]) -> int:
    """Return how many grid steps to either side one grid step of an encoder or decoder depends on."""
    is_decoder = any(layer.transposed for layer in layers)
    stride = math.prod(layer.stride for layer in layers)
    # Trace the interval of inputs backward from one grid step: one code of an encoder, `stride` samples of a decoder.
    first, last = 0, stride - 1 if is_decoder else 0
    for kernel, step, left, transposed in reversed(layers):
        if transposed:
            first, last = -((kernel - 1 - left - first) // step), (last + left) // step
        else:
            first, last = first * step - left, last * step - left + kernel - 1
    return max(-first, last) if is_decoder else max(-(first // stride), last // stride)


def network_context(network: nn.Module) -> int | None:
    """Return the `context` of a network of `vqtok.networks`; None if every position depends on the whole input."""
    if not isinstance(network, Encoder | Decoder):
        return None
    return context([layer for module in network.layers for layer in _layers_of(module)])


def conv_layers(network: nn.Module) -> list[Layer]:
    """Return the 1-D convolutions of a chain, in the order in which its modules are registered."""
    layers = []
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            assert isinstance(module.padding, tuple)
            kernel = (module.kernel_size[0] - 1) * module.dilation[0] + 1
            transposed = isinstance(module, nn.ConvTranspose1d)
            layers.append(Layer(kernel, module.stride[0], module.padding[0], transposed))
    return layers


def _layers_of(module: nn.Module) -> Iterator[Layer]:
    """Yield the layers of a module along its last axis. Norms and activations read a single position.

    Raises:
        TypeError: The receptive field of this kind of module is not known.
    """
    match module:
        case nn.Conv2d():
            radius = int(module.dilation[1]) * (module.kernel_size[1] // 2)
            yield Layer(2 * radius + 1, 1, radius)
        case ResBlock():
            yield from _layers_of(module.conv1)
            yield from _layers_of(module.conv2)
        case Downsample():  # space to depth, then a convolution
            yield Layer(module.stride[1], module.stride[1], 0)
            yield from _layers_of(module.conv)
        case Upsample():  # a convolution, then depth to space
            yield from _layers_of(module.conv)
            yield Layer(module.stride[1], module.stride[1], 0, transposed=True)
        case _:
            raise TypeError(f"receptive field of {type(module).__name__} is not known")
