"""`Tokenizer`: what every model is seen through, ours or another's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, Self

import torch
from torch import Tensor

from vqtok.tokens.coding.coders import NO_MODEL, EntropyModel


class Tokenizer(ABC):
    """Turn media tensors into codes and back, deterministically.

    A family of models of one's own is a subclass, made known by `vqtok.register`.

    Shapes:
        media: float32 `(batch, channels, height, width)` or `(batch, channels, samples)` in [-1, 1], every size a
            multiple of `stride` unless `padding` is None; codes: int64 `(batch, num_codebooks, *grid)`.
    """

    modality: Literal["image", "audio"]
    channels: int = 1
    """Of a picture (1 grey, 3 sRGB); of a sound those that are coded together: with 1, each is coded by itself."""
    sample_rate: int | None = None
    """Hz; None for pictures."""
    codebook_sizes: tuple[int, ...]
    stride: int
    """Input steps per grid step: pixels each way, or samples (hop length)."""
    padding: Literal["symmetric", "constant"] | None = "symmetric"
    """What fills a medium up to whole grid steps: its mirror image, zeros, or nothing, as the model does it itself."""
    encoder_context: int | None = None
    """Grid steps to either side that a code depends on; None: all of the medium, which cannot be tiled."""
    decoder_context: int | None = None
    """Grid steps to either side that the media of a grid step depend on; None: all of them."""
    why_whole: str = ""
    """Why a context is None, for people to read."""
    one_by_one: bool = False
    """Whether media do not go into batches, because rounding would be another; needed for side data, too."""
    identity: bytes
    """SHA-256 over all that decoding depends on."""
    entropy_model: EntropyModel = NO_MODEL
    """How often codes occur, for token files."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Give the codes of media."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Give the media of codes, or of a prefix of their codebooks."""

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        """Give the codes of the first so many codebooks, and of more where that spares no work."""
        return self.encode(x)

    def num_steps(self, samples: int) -> int:
        """Give the grid steps of a sound of so many samples, at the model's rate."""
        return -(-samples // self.stride)

    def side_data(self, x: Tensor) -> Tensor:
        """Give what decoding needs of media beside their codes, such as scales: `(batch, numbers)`, mostly none.

        Only of a model that takes media whole and one by one.
        """
        return x.new_zeros(len(x), 0)

    def decode_with(self, codes: Tensor, side_data: Tensor) -> Tensor:
        """Give the media of codes and side data; raises CorruptFileError where these do not go together."""
        return self.decode(codes)

    def facts(self) -> dict[str, Any]:
        """Give what `vqtok inspect` tells of the model beside the above: `num_parameters`, `config` and the like."""
        return {}

    def to(self, device: torch.device | str) -> Self:
        """Move the network to a device."""
        return self
