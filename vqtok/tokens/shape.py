"""`Layout`, sizes, grids and segments of tokens, with the limits of the file formats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vqtok.tokens.fields import VARINT_BYTES

Modality = Literal["image", "audio"]
Coder = Literal["packed", "static", "prior"]

MAX_CODEBOOKS = 256
MAX_CODEBOOK_SIZE = 2**31
MAX_TOKENS = 2**28
MODALITIES: tuple[Modality, ...] = ("image", "audio")
CODERS: tuple[Coder, ...] = ("packed", "static", "prior")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What all tokens of a model have in common."""

    modality: Modality
    model: bytes
    """First 8 bytes of the model's identity."""
    codebook_sizes: tuple[int, ...]
    stride: int
    """Input steps per grid step; for audio, samples at the model's rate (the hop length)."""

    @property
    def num_codebooks(self) -> int:
        return len(self.codebook_sizes)

    @property
    def bits_per_position(self) -> float:
        """The sum of log2 of the codebook sizes."""
        return sum(map(math.log2, self.codebook_sizes))

    def check(self, grid: Sequence[int], size: Sequence[int]) -> None:
        """Raise if no token file can have this layout with a grid and an original size.

        Raises:
            ValueError: Numbers that contradict each other or exceed the format's limits.
        """
        if self.modality not in MODALITIES or len(size) != size_dims(self.modality):
            raise ValueError(f"size {tuple(size)} does not fit modality {self.modality!r}")
        if not all(1 <= number < 1 << 7 * VARINT_BYTES for number in (self.stride, *size)):
            raise ValueError(f"stride {self.stride} or size {tuple(size)} out of range")
        if not 1 <= self.num_codebooks <= MAX_CODEBOOKS:
            raise ValueError(f"{self.num_codebooks} codebooks: there must be 1 to {MAX_CODEBOOKS}")
        if not all(2 <= number <= MAX_CODEBOOK_SIZE for number in self.codebook_sizes):
            raise ValueError(f"codebook sizes {tuple(self.codebook_sizes)} out of 2..{MAX_CODEBOOK_SIZE}")
        if len(grid) != grid_dims(self.modality, size) or min(grid) < 1:
            raise ValueError(f"grid {tuple(grid)} does not fit {self.modality} of size {tuple(size)}")
        if self.num_codebooks * math.prod(grid) > MAX_TOKENS:
            raise ValueError(f"{self.num_codebooks} codebooks of grid {tuple(grid)} exceed {MAX_TOKENS} tokens")
        if len(self.model) != 8:
            raise ValueError(f"model identity must be 8 bytes, not {len(self.model)}")


def cut(modality: Modality, grid: Sequence[int], steps: int) -> list[tuple[slice, ...]]:
    """Return the slices of a grid that its segments cover.

    Args:
        steps: Rows of an image, or time steps of audio, in a segment; 0 for a grid in one piece.
    """
    axis = _cut_axis(modality) % len(grid)
    steps = steps or grid[axis]
    return [(*[slice(None)] * axis, slice(begin, begin + steps)) for begin in range(0, grid[axis], steps)]


def num_segments(modality: Modality, grid: Sequence[int], steps: int) -> int:
    return -(-grid[_cut_axis(modality)] // steps) if steps else 1


def _cut_axis(modality: Modality) -> int:
    return 0 if modality == "image" else -1


def sequence_length(modality: Modality, grid: Sequence[int], size: Sequence[int], stride: int) -> int:
    """Return the codes of each codebook for every square of `stride` pixels, side by side in the grid of an image.

    1 for all models but those that turn a square into a sequence.
    """
    return max(1, grid[1] // -(-size[0] // stride)) if modality == "image" else 1


def packed_bytes(codebook_size: int, count: int) -> int:
    """Return the size of `count` bit-packed codes in bytes."""
    return (count * (codebook_size - 1).bit_length() + 7) // 8


def size_dims(modality: Modality) -> int:
    return 2 if modality == "image" else 3


def grid_dims(modality: Modality, size: Sequence[int]) -> int:
    return 1 if modality == "audio" and size[2] == 1 else 2
