"""`Tokens`: a grid of codes and what it takes to turn it back into media."""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError, MediaError
from vqtok.tokens.shape import Modality, check_layout

SIDE_DATA = "side_data"
"""The key of metadata under which side data stand: base64 of little-endian float32."""
MAX_SIDE_DATA = 12_000
"""Numbers, which leave some room in metadata of 64 KiB; of EnCodec at 48 kHz three hours and a quarter."""


@dataclass(frozen=True)
class Tokens:
    """Codes of one picture or sound, with the sizes that decoding restores.

    Shapes:
        codes: `(num_codebooks, height, width)` for images, `(num_codebooks, time)` for mono sound and
        `(num_codebooks, channels, time)` for sound with more channels; int32, coarse codebook first.

    Raises:
        ValueError: codes out of range, or a layout that no token file may have.
    """

    codes: NDArray[np.int32]
    codebook_sizes: tuple[int, ...]
    modality: Modality
    size: tuple[int, ...]
    """The original `(width, height)` of an image, or `(samples, sample_rate, channels)` of a sound."""
    stride: int
    """Input steps per grid step (for sound: model samples, the hop length)."""
    model: bytes
    """First 8 bytes of the model's identity."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Optional JSON object that travels with the file."""

    def __post_init__(self) -> None:
        codes = np.asarray(self.codes)
        if codes.ndim < 2 or codes.shape[0] != len(self.codebook_sizes):
            raise ValueError(f"codes of shape {codes.shape} do not have {len(self.codebook_sizes)} codebooks")
        if not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"codes must be integers, not {codes.dtype}")
        check_layout(self.modality, self.codebook_sizes, codes.shape[1:], self.size, self.stride, self.model)
        for index, (plane, bound) in enumerate(zip(codes, self.codebook_sizes, strict=True)):
            if plane.min() < 0 or plane.max() >= bound:
                raise ValueError(f"codebook {index} has codes outside 0..{bound - 1}")
        object.__setattr__(self, "codes", np.ascontiguousarray(codes, dtype=np.int32))

    @property
    def num_codebooks(self) -> int:
        return len(self.codebook_sizes)

    @property
    def grid(self) -> tuple[int, ...]:
        """Positions of the latent: `(height, width)`, `(time,)` or `(channels, time)`."""
        return self.codes.shape[1:]

    @property
    def num_tokens(self) -> int:
        return self.codes.size

    @property
    def raw_bits(self) -> float:
        """Sum of log2 of the codebook size over all tokens."""
        return sum(math.log2(size) for size in self.codebook_sizes) * math.prod(self.grid)

    @property
    def side_data(self) -> NDArray[np.float32]:
        """Numbers that decoding needs beside the codes, such as the scales of a sound; they travel in the metadata.

        Raises:
            CorruptFileError: what stands there are no such numbers.
        """
        try:
            return np.frombuffer(b64decode(self.metadata.get(SIDE_DATA, ""), validate=True), "<f4").astype(np.float32)
        except (ValueError, TypeError):
            raise CorruptFileError("damaged side data in the metadata; encode again") from None

    def prefix(self, num_codebooks: int) -> Tokens:
        """Keep the first (coarse) `num_codebooks` codebooks."""
        if not 1 <= num_codebooks <= self.num_codebooks:
            raise ValueError(f"cannot keep {num_codebooks} of {self.num_codebooks} codebooks")
        return replace(self, codes=self.codes[:num_codebooks], codebook_sizes=self.codebook_sizes[:num_codebooks])


def pack_side_data(values: NDArray[np.float32]) -> dict[str, str]:
    """Give the metadata that hold side data; none where there are none.

    Raises:
        MediaError: there are more than metadata have room for.
    """
    if values.size > MAX_SIDE_DATA:
        raise MediaError(f"needs {values.size} numbers of side data, a token file holds {MAX_SIDE_DATA}; cut it up")
    return {SIDE_DATA: b64encode(values.astype("<f4").tobytes()).decode()} if values.size else {}
