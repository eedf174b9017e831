"""Convolutions over long audio: their receptive field, and exact computation in windows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vqtok.media.tiling import windows
from vqtok.networks.receptive_field import Layer

CORE_SECONDS = 30.0
"""Seconds of audio per window. Shorter audio is passed to the library as it is."""


def seanet_layers(network: nn.Module, causal: bool, trim_right_ratio: float) -> list[Layer]:
    """Return the convolutions of a network of EnCodec or Mimi, whose modules pad and trim by themselves."""
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


def in_windows(
    network: Callable[[Tensor], Tensor], x: Tensor, core: int, context: int, *, takes: int = 1, gives: int = 1
) -> Tensor:
    """Run a chain of convolutions over the last axis, one window at a time.

    Args:
        core, context: In grid steps.
        takes, gives: The number of input and output positions per grid step.
    """
    parts = []
    for lies, given in windows(-(-x.shape[-1] // takes), core, context):
        part = network(x[..., lies.start * takes : lies.stop * takes])
        parts.append(part[..., given.start * gives : given.stop * gives])
    return torch.cat(parts, dim=-1)
