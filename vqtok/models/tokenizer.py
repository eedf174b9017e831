"""`Tokenizer`, the interface of all models, including those of other libraries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import accumulate
from typing import Any, Literal, Self

import torch
from torch import Tensor

from vqtok.errors import UsageError
from vqtok.tokens.coding.coders import NO_MODEL, EntropyModel


class Tokenizer(ABC):
    """Converts media tensors to codes and back, deterministically.

    To add a family of models, write a subclass and pass it to `vqtok.register`.

    Shapes:
        media: float32 `(batch, channels, height, width)` or `(batch, channels, samples)` in [-1, 1]; all sizes are
            multiples of `stride` unless `padding` is None.
        codes: int64 `(batch, num_codebooks, *grid)`.
    """

    modality: Literal["image", "audio"]
    channels: int = 1
    """For images 1 (gray) or 3 (sRGB). For audio the number of channels that are encoded together."""
    sample_rate: int | None = None
    """In Hz; None for images."""
    output_rate: int | None = None
    """The sample rate of decoded audio; None if it is `sample_rate`."""
    codebook_sizes: tuple[int, ...]
    levels: tuple[int, ...] = ()
    """Codes of each codebook per grid step, if codebooks have different rates, such as (1, 2, 4); coarse first.

    Each of these codes counts as one of `codebook_sizes`: 7 for (1, 2, 4), the second and the third of one codebook.
    """
    sequence_length: int = 1
    """Codes of each codebook per grid step of an image, side by side in the last axis, if it becomes a sequence."""
    stride: int
    """Input steps per grid step: pixels in each direction, or samples (hop length)."""
    padding: Literal["symmetric", "constant"] | None = "symmetric"
    """How media are padded to whole grid steps: mirrored, with zeros, or not at all, if the model pads by itself."""
    encoder_context: int | None = None
    """Grid steps to either side on which a code depends; None if it depends on all, so that media cannot be tiled."""
    decoder_context: int | None = None
    """Grid steps to either side on which the decoded media of a grid step depend; None if they depend on all."""
    why_whole: str = ""
    """The reason why a context is None, for humans."""
    why_encode_only: str = ""
    """The reason why codes cannot be decoded, for humans; empty if they can."""
    one_by_one: bool = False
    """Whether media are not batched because results would be rounded differently; required for side data."""
    encodes_together: int = 0
    """Pixels or samples in a batch of media of one size, if codes do not depend on the batch; else 0.

    Such media are encoded together even with `one_by_one`. On GPUs a batch may be larger.
    """
    identity: bytes
    """SHA-256 of everything that decoding depends on."""
    decodes: tuple[bytes, ...] = ()
    """The identities of other models with the same codes, whose tokens this one also decodes."""
    entropy_model: EntropyModel = NO_MODEL
    """The frequencies of the codes, for the coding of token files."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of media."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Return the media of codes, or of codes of only the first codebooks."""

    def can_decode(self, model: bytes) -> bool:
        """Return whether this model decodes the tokens of a model, given the first 8 bytes of its identity."""
        return any(identity[:8] == model for identity in (self.identity, *self.decodes))

    @property
    def prefixes(self) -> tuple[int, ...]:
        """The numbers of first codebooks that can be encoded and decoded: all, or those of whole `levels`."""
        return tuple(accumulate(self.levels or (1,) * len(self.codebook_sizes)))

    @property
    def modalities(self) -> tuple[Literal["image", "audio"], ...]:
        """What the model encodes; both for a fusion model, which is used through `of`."""
        return (self.modality,)

    def of(self, modality: str) -> Tokenizer:
        """Return the tokenizer of a modality: one side of a fusion model. Any other model returns itself."""
        return self

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        """Return the codes of at least the first `num_codebooks` codebooks."""
        return self.encode(x)

    def encode_searching(self, x: Tensor, num_codebooks: int, effort: int) -> Tensor:
        """Return codes of the first `num_codebooks` codebooks that were searched for longer and so have less error.

        Args:
            x: The media.
            num_codebooks: The number of codebooks that will be decoded.
            effort: The number of paths through the codebooks that are followed; above 1.

        Raises:
            UsageError: The model has no codebooks that can be searched like that.
        """
        raise UsageError("`effort` above 1 is for models of vqtok with residual codebooks; leave it out")

    def num_steps(self, samples: int) -> int:
        """Return the number of grid steps of audio with so many samples at the model's rate."""
        return -(-samples // self.stride)

    def side_data(self, x: Tensor) -> Tensor:
        """Return data that decoding needs besides the codes, such as scales: `(batch, numbers)`; by default none.

        Side data require `one_by_one` and contexts of None.
        """
        return x.new_zeros(len(x), 0)

    def decode_with(self, codes: Tensor, side_data: Tensor) -> Tensor:
        """Return the media of codes and side data.

        Raises:
            CorruptFileError: The codes and the side data do not belong together.
        """
        return self.decode(codes)

    def facts(self) -> dict[str, Any]:
        """Return further facts for `vqtok inspect`, such as `num_parameters` and `config`."""
        return {}

    def to(self, device: torch.device | str) -> Self:
        """Move the network to a device."""
        return self
