"""Encoders and decoders."""

from vqtok.networks.autoencoder import Decoder, Encoder, scale_to_data
from vqtok.networks.build import build_decoder, build_encoder
from vqtok.networks.receptive_field import network_context

__all__ = ["Decoder", "Encoder", "build_decoder", "build_encoder", "network_context", "scale_to_data"]
