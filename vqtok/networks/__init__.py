"""Encoders and decoders."""

from vqtok.networks.autoencoder import Decoder, Encoder

__all__ = ["Decoder", "Encoder"]
