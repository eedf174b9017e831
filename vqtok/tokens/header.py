"""The header of a `.vqt` token file, in the standard library alone: `vqtok inspect` starts at once.

    0   4  signature 89 56 51 0A
    4   1  version, major << 4 | minor
    5   1  flags: coder (bits 0-2), modality (bit 3), has-metadata (bit 4), must be zero (5, 6), ignored (7)
    6   8  model identity
    14  v  varints: num_codebooks, codebook sizes, stride, size, grid, payload length of each codebook
        v  optional metadata: varint length, UTF-8 JSON object
        n  payload: one stream a codebook, coarse first
    -4  4  CRC-32 (zlib) of all before it, little-endian

A varint is LEB128 of at most 35 bits, in its shortest form. `size` is `(width, height)` for images and
`(samples, sample_rate, channels)` for sound; `grid` has one dimension for mono sound and two otherwise.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from typing import Any, Literal

from vqtok.errors import CorruptFileError, UnsupportedVersionError
from vqtok.remote import as_path

Modality = Literal["image", "audio"]
Coder = Literal["packed", "static", "prior"]

MAX_CODEBOOKS = 256
MAX_CODEBOOK_SIZE = 2**31
MAX_TOKENS = 2**28
MAX_METADATA_BYTES = 2**16

_SIGNATURE = b"\x89VQ\n"
_MAJOR, _MINOR = 1, 0
MODALITIES: tuple[Modality, ...] = ("image", "audio")
CODERS: tuple[Coder, ...] = ("packed", "static", "prior")
_HAS_METADATA = 1 << 4
_MUST_BE_ZERO = 0b11 << 5
_FIXED_BYTES = 14
_CRC_BYTES = 4
_VARINT_BYTES = 5


def check_layout(
    modality: Modality,
    codebook_sizes: Sequence[int],
    grid: Sequence[int],
    size: Sequence[int],
    stride: int,
    model: bytes,
) -> None:
    """Refuse a layout of tokens that no file may have.

    Raises:
        ValueError: numbers that do not fit together or exceed the format's limits.
    """
    if modality not in MODALITIES or len(size) != size_dims(modality):
        raise ValueError(f"size {tuple(size)} does not fit modality {modality!r}")
    if not all(1 <= number < 1 << 7 * _VARINT_BYTES for number in (stride, *size)):
        raise ValueError(f"stride {stride} or size {tuple(size)} out of range")
    if not 1 <= len(codebook_sizes) <= MAX_CODEBOOKS:
        raise ValueError(f"{len(codebook_sizes)} codebooks: there must be 1 to {MAX_CODEBOOKS}")
    if not all(2 <= number <= MAX_CODEBOOK_SIZE for number in codebook_sizes):
        raise ValueError(f"codebook sizes {tuple(codebook_sizes)} out of 2..{MAX_CODEBOOK_SIZE}")
    if len(grid) != grid_dims(modality, size) or min(grid) < 1:
        raise ValueError(f"grid {tuple(grid)} does not fit {modality} of size {tuple(size)}")
    if len(codebook_sizes) * math.prod(grid) > MAX_TOKENS:
        raise ValueError(f"{len(codebook_sizes)} codebooks of grid {tuple(grid)} exceed {MAX_TOKENS} tokens")
    if len(model) != 8:
        raise ValueError(f"model identity must be 8 bytes, not {len(model)}")


@dataclass(frozen=True)
class Header:
    """What a token file says of itself; the fields shared with `Tokens` mean the same there.

    Raises:
        ValueError: numbers that do not fit together or exceed the format's limits.
    """

    coder: Coder
    modality: Modality
    model: bytes
    codebook_sizes: tuple[int, ...]
    grid: tuple[int, ...]
    stride: int
    size: tuple[int, ...]
    payload_lengths: tuple[int, ...]
    """Bytes of each codebook's stream; of an item of a shard, of the one stream of all."""
    metadata: dict[str, Any] = field(default_factory=dict)
    version: str = f"{_MAJOR}.{_MINOR}"
    file_bytes: int = 0
    """Size of the whole file; 0 where there is none yet."""

    def __post_init__(self) -> None:
        check_layout(self.modality, self.codebook_sizes, self.grid, self.size, self.stride, self.model)
        if len(self.payload_lengths) not in (1, self.num_codebooks):
            raise ValueError(f"{len(self.payload_lengths)} streams for {self.num_codebooks} codebooks")

    @property
    def num_codebooks(self) -> int:
        return len(self.codebook_sizes)

    @property
    def num_tokens(self) -> int:
        return self.num_codebooks * math.prod(self.grid)

    @property
    def raw_bits(self) -> float:
        """Sum of log2 of the codebook size over all tokens."""
        return sum(map(math.log2, self.codebook_sizes)) * math.prod(self.grid)

    @property
    def coded_bits(self) -> int:
        """Bits of the payload."""
        return 8 * sum(self.payload_lengths)

    @property
    def duration_seconds(self) -> float | None:
        """Original duration; None for images."""
        return self.size[0] / self.size[1] if self.modality == "audio" else None

    @property
    def bpp(self) -> float | None:
        """File bits per pixel of the original; None for sound."""
        return 8 * self.file_bytes / math.prod(self.size) if self.modality == "image" else None

    @property
    def kbps(self) -> float | None:
        """1000 file bits per second of the original; None for images."""
        return 0.008 * self.file_bytes / self.duration_seconds if self.duration_seconds else None


def pack_header(header: Header) -> bytes:
    """Write the header: all of the file before its payload.

    Raises:
        ValueError: metadata that is no JSON or longer than 64 KiB.
    """
    flags = CODERS.index(header.coder) | MODALITIES.index(header.modality) << 3
    numbers = (
        header.num_codebooks,
        *header.codebook_sizes,
        header.stride,
        *header.size,
        *header.grid,
        *header.payload_lengths,
    )
    metadata = pack_metadata(header.metadata)
    if metadata:
        flags |= _HAS_METADATA
    fixed = _SIGNATURE + bytes([_MAJOR << 4 | _MINOR, flags]) + header.model
    return fixed + b"".join(map(varint, numbers)) + metadata


def pack_metadata(metadata: dict[str, Any]) -> bytes:
    """Write metadata behind its length; nothing where there is none.

    Raises:
        ValueError: metadata that is no JSON or longer than 64 KiB.
    """
    if not metadata:
        return b""
    text = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if len(text) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata of {len(text)} bytes exceeds {MAX_METADATA_BYTES}")
    return varint(len(text)) + text


def parse_header(data: bytes) -> tuple[Header, int]:
    """Read the header of a whole token file, having checked that the file is whole.

    Returns:
        The header and the offset of the payload.

    Raises:
        CorruptFileError: not a token file, or a damaged one.
        UnsupportedVersionError: a token file of a newer version of the format.
    """
    _check_whole(data)
    version, flags = data[4:6]
    coder = flags & 0b111
    if coder >= len(CODERS) or flags & _MUST_BE_ZERO:
        raise UnsupportedVersionError(f"token file uses features unknown here (flags {flags:#04x}): upgrade vqtok")
    modality = MODALITIES[flags >> 3 & 1]
    fields = Fields(data, _FIXED_BYTES, len(data) - _CRC_BYTES)
    num_codebooks = fields.number()
    if num_codebooks > MAX_CODEBOOKS:
        raise CorruptFileError(f"damaged token file: it claims {num_codebooks} codebooks")
    codebook_sizes = fields.numbers(num_codebooks)
    stride = fields.number()
    size = fields.numbers(size_dims(modality))
    grid = fields.numbers(grid_dims(modality, size))
    payload_lengths = fields.numbers(num_codebooks)
    metadata = fields.metadata() if flags & _HAS_METADATA else {}
    if fields.offset + sum(payload_lengths) != fields.end:
        raise CorruptFileError("damaged token file: its streams do not add up to its length")
    try:
        header = Header(
            coder=CODERS[coder],
            modality=modality,
            model=data[6:_FIXED_BYTES],
            codebook_sizes=codebook_sizes,
            grid=grid,
            stride=stride,
            size=size,
            payload_lengths=payload_lengths,
            metadata=metadata,
            version=f"{version >> 4}.{version & 15}",
            file_bytes=len(data),
        )
    except ValueError as error:
        raise CorruptFileError(f"damaged token file: {error}") from None
    return header, fields.offset


def read_header(path: str | Path) -> Header:
    """Read the header of the token file at `path`, having checked that the file is whole.

    Raises:
        CorruptFileError: not a token file, or a damaged one.
        UnsupportedVersionError: a token file of a newer version of the format.
        OSError: the file cannot be read.
    """
    try:
        return parse_header(as_path(str(path)).read_bytes())[0]
    except (CorruptFileError, UnsupportedVersionError) as error:
        raise type(error)(f"{path}: {error}") from None


def checksum(data: bytes | memoryview) -> bytes:
    """Return the CRC-32 that ends a file which begins with `data`."""
    return zlib.crc32(data).to_bytes(_CRC_BYTES, "little")


def _check_whole(data: bytes) -> None:
    """Check signature, version and checksum, in the order that names the fault best."""
    if not data.startswith(_SIGNATURE):
        raise CorruptFileError("not a token file: it does not begin with the .vqt signature")
    if len(data) > 4 and data[4] >> 4 != _MAJOR:
        raise UnsupportedVersionError(
            f"token file of format version {data[4] >> 4}, this vqtok reads {_MAJOR}: upgrade vqtok"
        )
    if len(data) < _FIXED_BYTES + _CRC_BYTES or checksum(memoryview(data)[:-4]) != data[-4:]:
        raise CorruptFileError("damaged token file (truncated or altered): copy or encode it again")


def packed_bytes(codebook_size: int, count: int) -> int:
    """Return how many bytes `count` bit-packed codes take."""
    return (count * (codebook_size - 1).bit_length() + 7) // 8


def size_dims(modality: Modality) -> int:
    return 2 if modality == "image" else 3


def grid_dims(modality: Modality, size: Sequence[int]) -> int:
    return 1 if modality == "audio" and size[2] == 1 else 2


def varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


class Fields:
    """Fields one after another, from an offset on and before an end.

    Its methods raise CorruptFileError where a field is malformed or the end is overrun.
    """

    def __init__(self, data: bytes | mmap, offset: int, end: int) -> None:
        self.data, self.offset, self.end = data, offset, end

    def take(self, length: int) -> bytes:
        start, self.offset = self.offset, self.offset + length
        if self.offset > self.end:
            raise CorruptFileError("damaged token file: its header does not end")
        return self.data[start : self.offset]

    def number(self) -> int:
        value = 0
        for index, byte in enumerate(self.data[self.offset : min(self.offset + _VARINT_BYTES, self.end)]):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if byte == 0 and index:
                    break  # not the shortest form
                self.offset += index + 1
                return value
        raise CorruptFileError("damaged token file: a number in its header is malformed")

    def numbers(self, count: int) -> tuple[int, ...]:
        return tuple(self.number() for _ in range(count))

    def text(self, max_length: int, what: str) -> bytes:
        """Take what stands behind its length."""
        length = self.number()
        if length > max_length:
            raise CorruptFileError(f"damaged token file: it claims {length} bytes of {what}")
        return self.take(length)

    def metadata(self) -> dict[str, Any]:
        try:
            metadata = json.loads(self.text(MAX_METADATA_BYTES, "metadata").decode())
        except (ValueError, RecursionError):
            metadata = None
        if not isinstance(metadata, dict):
            raise CorruptFileError("damaged token file: its metadata is not a JSON object")
        return metadata
