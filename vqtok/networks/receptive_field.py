"""The receptive field: what tiles need around them to be exact."""

from __future__ import annotations

import math

from torch import nn

from vqtok.networks.autoencoder import Decoder, Encoder
from vqtok.networks.layers import Downsample, ResBlock, Upsample


def context(network: nn.Module) -> int | None:
    """Give the grid steps to either side that what belongs to one grid step depends on; None: all there are.

    Raises:
        TypeError: a layer of a kind unknown here.
    """
    if not isinstance(network, Encoder | Decoder):
        return None
    stride = math.prod(layer.stride[1] for layer in network.layers if isinstance(layer, Downsample | Upsample))
    is_encoder = isinstance(network, Encoder)
    first, last = (0, 0) if is_encoder else (0, stride - 1)  # the codes, or the media, of one grid step
    for layer in reversed(network.layers):
        first, last = _reads(layer, first, last)
    return max(-(first // stride), last // stride) if is_encoder else max(-first, last)


def _reads(layer: nn.Module, first: int, last: int) -> tuple[int, int]:
    """Give the first and last input position that the outputs `first` to `last` depend on."""
    match layer:
        case nn.Conv2d():
            radius = int(layer.dilation[1]) * (layer.kernel_size[1] // 2)
            return first - radius, last + radius
        case ResBlock():  # its norm and activations look at one position
            return _reads(layer.conv1, *_reads(layer.conv2, first, last))
        case Downsample():
            first, last = _reads(layer.conv, first, last)
            return first * layer.stride[1], last * layer.stride[1] + layer.stride[1] - 1
        case Upsample():
            return _reads(layer.conv, first // layer.stride[1], last // layer.stride[1])
    raise TypeError(f"unknown how far a {type(layer).__name__} looks")
