"""`Tokens`: a grid of codes, and what is needed to decode it."""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError, MediaError
from vqtok.tokens.shape import Layout, sequence_length

SIDE_DATA = "side_data"
"""The key of side data in the metadata: base64 of little-endian float32 numbers."""
LEVELS = "levels"
"""The key of the levels in the metadata: a list of integers."""
MAX_SIDE_DATA = 12_000
"""The most numbers that fit into metadata of 64 KiB with some room; EnCodec at 48 kHz needs them for 3.25 hours."""
BITS = "bits"
"""The key of the bits per pixel in the metadata of a gray image that had more than 8: 16."""
WINDOW = "window"
"""The key of the values of black and white in the metadata of a medical image, two numbers in the file's units."""
SUBTYPE = "subtype"
"""The key of the kind of the samples in the metadata of audio that had more than 16 bits: PCM_24, PCM_32 or FLOAT."""


@dataclass(frozen=True)
class Tokens(Layout):
    """The codes of one image or audio, with the original size.

    Shapes:
        codes: `(num_codebooks, height, width)` for images, `(num_codebooks, time)` for mono audio and
        `(num_codebooks, channels, time)` for audio with more channels; int32, coarse codebook first.

    Raises:
        ValueError: Codes out of range, or a layout that no token file can have.
    """

    codes: NDArray[np.int32]
    _: KW_ONLY
    size: tuple[int, ...]
    """The original `(width, height)` of an image, or `(samples, sample_rate, channels)` of audio."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """A JSON object that is stored in the file."""

    def __post_init__(self) -> None:
        codes = np.asarray(self.codes)
        if codes.ndim < 2 or codes.shape[0] != self.num_codebooks:
            raise ValueError(f"codes of shape {codes.shape} do not have {self.num_codebooks} codebooks")
        if not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"codes must be integers, not {codes.dtype}")
        self.check(codes.shape[1:], self.size)
        for index, (plane, bound) in enumerate(zip(codes, self.codebook_sizes, strict=True)):
            if plane.min() < 0 or plane.max() >= bound:
                raise ValueError(f"codebook {index} has codes outside 0..{bound - 1}")
        object.__setattr__(self, "codes", np.ascontiguousarray(codes, dtype=np.int32))

    @property
    def grid(self) -> tuple[int, ...]:
        """Positions of the latent: `(height, width)`, `(time,)` or `(channels, time)`."""
        return self.codes.shape[1:]

    @property
    def sequence_length(self) -> int:
        """Codes of each codebook for every square of `stride` pixels of an image; 1 except for models of sequences."""
        return sequence_length(self.modality, self.grid, self.size, self.stride)

    @property
    def num_tokens(self) -> int:
        return self.codes.size

    @property
    def raw_bits(self) -> float:
        """The sum of log2 of the codebook size over all tokens."""
        return self.bits_per_position * math.prod(self.grid)

    @property
    def side_data(self) -> NDArray[np.float32]:
        """Numbers that decoding needs besides the codes, such as scales of audio. They are stored in the metadata.

        Raises:
            CorruptFileError: The metadata hold something else under their key.
        """
        try:
            return np.frombuffer(b64decode(self.metadata.get(SIDE_DATA, ""), validate=True), "<f4").astype(np.float32)
        except (ValueError, TypeError):
            raise CorruptFileError("damaged side data in the metadata; encode again") from None

    @property
    def levels(self) -> tuple[int, ...]:
        """Codes of each codebook per position, if codebooks have different rates, such as (1, 2, 4); else empty.

        Each of these codes counts as one of `num_codebooks`, coarse first.

        Raises:
            CorruptFileError: The metadata hold something else under their key.
        """
        found, left, levels = self.metadata.get(LEVELS, []), self.num_codebooks, []
        valid = isinstance(found, list) and all(isinstance(level, int) and level > 0 for level in found)
        for level in found if valid else ():
            if left > 0:
                levels.append(level)
                left -= level
        if not valid or (found and left):
            raise CorruptFileError("damaged levels in the metadata, or not all codes of a level; encode again")
        return tuple(levels)

    def prefix(self, num_codebooks: int) -> Tokens:
        """Return the tokens of the first (coarse) `num_codebooks` codebooks."""
        if not 1 <= num_codebooks <= self.num_codebooks:
            raise ValueError(f"cannot keep {num_codebooks} of {self.num_codebooks} codebooks")
        return replace(self, codes=self.codes[:num_codebooks], codebook_sizes=self.codebook_sizes[:num_codebooks])

    def to_ids(
        self,
        layout: Literal["flat", "coarse-first", "delay", "parallel", "interleave"] = "flat",
        *,
        offset: int = 0,
        shared_vocabulary: bool = False,
        **special_tokens: Any,
    ) -> NDArray[np.int64]:
        """Return the token ids of a language model, as `vqtok.export` with these options writes them.

        Args:
            layout, offset, shared_vocabulary: As for `vqtok.tokens.export.options.ExportOptions`.
            special_tokens: `begin_token`, `end_token`, `row_token` and `pad_token`: an id, "auto" or None.

        Raises:
            UsageError: The options contradict each other.

        Shapes:
            `(length,)`, or `(steps, num_codebooks)` in the layouts `delay` and `parallel`.
        """
        from vqtok.tokens.export.layout import to_ids
        from vqtok.tokens.export.options import ExportOptions

        form = ExportOptions("npy", layout, offset, shared_vocabulary, **special_tokens).form(self)
        return to_ids(self.codes[form.order], layout, form.vocabulary)


def pack_side_data(values: NDArray[np.float32]) -> dict[str, str]:
    """Return metadata with side data; empty if there are none.

    Raises:
        MediaError: There are too many for the metadata.
    """
    if values.size > MAX_SIDE_DATA:
        raise MediaError(f"needs {values.size} numbers of side data, but a token file holds {MAX_SIDE_DATA}; split it")
    return {SIDE_DATA: b64encode(values.astype("<f4").tobytes()).decode()} if values.size else {}
