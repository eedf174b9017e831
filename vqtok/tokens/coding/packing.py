"""Bit-packed streams of codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError
from vqtok.tokens.shape import packed_bytes


def pack(codes: NDArray[np.int32], codebook_size: int) -> bytes:
    """Write each code with the fewest bits that can hold all codes, lowest bit first."""
    code_bytes = codes.astype("<u4").view(np.uint8).reshape(-1, 4)
    bits = np.unpackbits(code_bytes, axis=1, count=_bits(codebook_size), bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(data: bytes, codebook_size: int, count: int) -> NDArray[np.int32]:
    """Read `count` codes.

    Raises:
        CorruptFileError: The number of bytes is wrong, bits after the last code are set, or a code is out of range.
    """
    width = _bits(codebook_size)
    if len(data) != packed_bytes(codebook_size, count):
        raise CorruptFileError(f"damaged codes: {len(data)} bytes for {count} codes of {width} bits")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    code_bytes = np.zeros((count, 4), np.uint8)
    packed = np.packbits(bits[: count * width].reshape(count, width), axis=1, bitorder="little")
    code_bytes[:, : packed.shape[1]] = packed
    codes = code_bytes.view("<u4")[:, 0]
    if bits[count * width :].any() or codes.max(initial=0) >= codebook_size:
        raise CorruptFileError(f"damaged codes: not all are below the codebook size {codebook_size}")
    return codes.astype(np.int32)


def _bits(codebook_size: int) -> int:
    return (codebook_size - 1).bit_length()
