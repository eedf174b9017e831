"""Encoders and decoders."""

from vqtok.networks.autoencoder import Decoder, Encoder, scale_to_data
from vqtok.networks.receptive_field import context

__all__ = ["Decoder", "Encoder", "context", "scale_to_data"]
