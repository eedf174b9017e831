"""Encoders and decoders."""

from vqtok.networks.autoencoder import Decoder, Encoder, scale_to_data

__all__ = ["Decoder", "Encoder", "scale_to_data"]
