"""Build an encoder or a decoder from a `NetworkConfig`, between media of `channels` and latents of `dim`."""

from __future__ import annotations

from torch import nn

from vqtok.config import NetworkConfig
from vqtok.networks.autoencoder import Decoder, Encoder
from vqtok.networks.layers import Axes
from vqtok.networks.vqgan import VQGANDecoder, VQGANEncoder


def build_encoder(config: NetworkConfig, axes: Axes, channels: int, dim: int) -> nn.Module:
    if config.kind == "convolutional":
        return Encoder(config, axes, channels, dim)
    return VQGANEncoder(config, channels, dim)


def build_decoder(config: NetworkConfig, axes: Axes, channels: int, dim: int) -> nn.Module:
    if config.kind == "convolutional":
        return Decoder(config, axes, channels, dim)
    return VQGANDecoder(config, channels, dim)
