"""`Tokenizer`: what every model is seen through, ours or another's."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from vqtok.tokens.vqt import EntropyModel


class Tokenizer(Protocol):
    """Turn media tensors into codes and back, deterministically.

    Shapes:
        media: float32 `(batch, channels, height, width)` or `(batch, 1, samples)` in [-1, 1], every size a multiple
            of `stride`; codes: int64 `(batch, num_codebooks, *grid)`.
    """

    modality: Literal["image", "audio"]
    channels: int
    """Of a picture (1 grey, 3 sRGB); 1 for sound."""
    sample_rate: int | None
    """Hz; None for pictures."""
    codebook_sizes: tuple[int, ...]
    stride: int
    """Input steps per grid step: pixels each way, or samples (hop length)."""
    encoder_context: int | None
    """Grid steps to either side that a code depends on; None: all of the medium, which cannot be tiled."""
    decoder_context: int | None
    """Grid steps to either side that the media of a grid step depend on; None: all of them."""
    identity: bytes
    """SHA-256 over all that decoding depends on."""
    entropy_model: EntropyModel
    """How often codes occur, for token files."""

    def encode(self, x: Tensor) -> Tensor:
        """Give the codes of media."""

    def decode(self, codes: Tensor) -> Tensor:
        """Give the media of codes, or of a prefix of their codebooks."""
