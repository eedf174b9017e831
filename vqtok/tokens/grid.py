"""`Tokens`: a grid of codes and what it takes to turn it back into media."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.tokens.header import Modality, check_layout


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

    def prefix(self, num_codebooks: int) -> Tokens:
        """Keep the first (coarse) `num_codebooks` codebooks."""
        if not 1 <= num_codebooks <= self.num_codebooks:
            raise ValueError(f"cannot keep {num_codebooks} of {self.num_codebooks} codebooks")
        return replace(self, codes=self.codes[:num_codebooks], codebook_sizes=self.codebook_sizes[:num_codebooks])
