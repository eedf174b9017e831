"""The header of a `.vqt` token file, in the standard library alone, so that `vqtok inspect` starts quickly.

    0   4  signature 89 56 51 0A
    4   1  version, major << 4 | minor
    5   1  flags: coder (bits 0-2), modality (3), has-metadata (4), in segments (5), must be zero (6), ignored (7)
    6   8  model identity
    14  v  varints: num_codebooks, codebook sizes, stride, size, grid, payload length of each codebook
        v  optional metadata: varint length, UTF-8 JSON object
        n  payload: one stream per codebook, coarse first
    -4  4  CRC-32 of all before it

`size` is `(width, height)` for images and `(samples, sample_rate, channels)` for audio; `grid` has one dimension for
mono audio and two otherwise.

Large media are cut into independent segments, of rows of an image or time steps of audio.

    14  v  varints: num_codebooks, codebook sizes, stride, size, grid, rows or steps of a segment (the last may have
           fewer), payload length of each codebook of the first segment, of the second, ...
        v  optional metadata
        4  CRC-32 of the header
        n  segments: one stream per codebook; CRC-32 of the header's CRC-32, the segment's number (4 bytes) and these
        v  the header and its CRC-32 again, then their size in bytes (4)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from vqtok.errors import CorruptFileError, UnsupportedVersionError
from vqtok.files.paths import as_path
from vqtok.tokens.fields import CRC_BYTES, Buffer, Fields, checksum, pack_metadata, varint
from vqtok.tokens.shape import (
    CODERS,
    MAX_CODEBOOKS,
    MODALITIES,
    Coder,
    Layout,
    _cut_axis,
    grid_dims,
    num_segments,
    sequence_length,
    size_dims,
)

MAX_STREAMS = 2**20
"""The most streams, segments times codebooks, that a header may claim."""

_SIGNATURE = b"\x89VQ\n"
_MAJOR, _MINOR = 1, 0
_HAS_METADATA, _IN_SEGMENTS = 1 << 4, 1 << 5
_MUST_BE_ZERO = 1 << 6
_FIXED_BYTES = 14
_LENGTH_BYTES = 4
_LOST_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Header(Layout):
    """The header of a token file. `size` and `metadata` are those of `Tokens`.

    Raises:
        ValueError: Numbers that contradict each other or exceed the format's limits.
    """

    coder: Coder
    grid: tuple[int, ...]
    size: tuple[int, ...]
    payload_lengths: tuple[int, ...]
    """Bytes of each codebook's stream, segment by segment; for an item of a shard, those of its single stream."""
    segment_steps: int = 0
    """Rows of the grid of an image, or time steps of audio, in a segment; 0 for a file in one piece."""
    metadata: dict[str, Any] = field(default_factory=dict)
    version: str = f"{_MAJOR}.{_MINOR}"
    file_bytes: int = 0
    """Size of the whole file; 0 if there is none yet."""

    def __post_init__(self) -> None:
        self.check(self.grid, self.size)
        if not 0 <= self.segment_steps < self.grid[_cut_axis(self.modality)]:
            raise ValueError(f"grid {self.grid} cannot be cut every {self.segment_steps} steps")
        if len(self.payload_lengths) not in (1, self.num_segments * self.num_codebooks):
            raise ValueError(f"{len(self.payload_lengths)} streams for {self.num_codebooks} codebooks")

    @property
    def num_segments(self) -> int:
        return num_segments(self.modality, self.grid, self.segment_steps)

    @property
    def sequence_length(self) -> int:
        """Codes of each codebook for every square of `stride` pixels of an image; 1 except for models of sequences."""
        return sequence_length(self.modality, self.grid, self.size, self.stride)

    @property
    def num_tokens(self) -> int:
        return self.num_codebooks * math.prod(self.grid)

    @property
    def raw_bits(self) -> float:
        """The sum of log2 of the codebook size over all tokens."""
        return self.bits_per_position * math.prod(self.grid)

    @property
    def coded_bits(self) -> int:
        """Size of the payload in bits."""
        return 8 * sum(self.payload_lengths)

    def bytes_of(self, num_codebooks: int | None) -> int:
        """Return the size of the file without the codebooks after the first `num_codebooks`."""
        kept = num_codebooks or self.num_codebooks
        lengths = enumerate(self.payload_lengths)
        return self.file_bytes - sum(length for index, length in lengths if index % self.num_codebooks >= kept)

    @property
    def duration_seconds(self) -> float | None:
        """Original duration; None for images."""
        return self.size[0] / self.size[1] if self.modality == "audio" else None

    @property
    def bpp(self) -> float | None:
        """File bits per pixel of the original; None for audio."""
        return 8 * self.file_bytes / math.prod(self.size) if self.modality == "image" else None

    @property
    def kbps(self) -> float | None:
        """1000 file bits per second of the original; None for images."""
        return 0.008 * self.file_bytes / self.duration_seconds if self.duration_seconds else None


class Parts(NamedTuple):
    """The intact parts of a token file."""

    header: Header
    starts: list[int | None]
    """The offset of the streams of each segment; None for a damaged one."""
    damage: str = ""
    """Describes the damage; empty for an intact file."""
    whole_codebooks: int | None = None
    """The number of codebooks that are whole in a file that was cut off; None if all are."""


def pack_header(header: Header) -> bytes:
    """Return the bytes of a header, which precede the payload.

    Raises:
        ValueError: The metadata are not JSON, or longer than 64 KiB.
    """
    flags = CODERS.index(header.coder) | MODALITIES.index(header.modality) << 3
    numbers = [header.num_codebooks, *header.codebook_sizes, header.stride, *header.size, *header.grid]
    if header.segment_steps:
        flags |= _IN_SEGMENTS
        numbers.append(header.segment_steps)
    metadata = pack_metadata(header.metadata)
    if metadata:
        flags |= _HAS_METADATA
    fixed = _SIGNATURE + bytes([_MAJOR << 4 | _MINOR, flags]) + header.model
    packed = fixed + b"".join(map(varint, (*numbers, *header.payload_lengths))) + metadata
    return packed + checksum(packed) if header.segment_steps else packed


def seal(packed: bytes, segments: Sequence[bytes]) -> bytes:
    """Join a packed header and the payload of each segment to a file, and add the checksums."""
    if not packed[5] & _IN_SEGMENTS:
        body = packed + segments[0]
        return body + checksum(body)
    sealed = (payload + _segment_checksum(packed, number, payload) for number, payload in enumerate(segments))
    return b"".join([packed, *sealed, packed, len(packed).to_bytes(_LENGTH_BYTES, "little")])


def parse_header(data: Buffer) -> tuple[Header, int]:
    """Check that a token file is intact, and read its header.

    Returns:
        The header and the offset of the payload.

    Raises:
        CorruptFileError: The data is not a token file, or damaged.
        UnsupportedVersionError: It has a newer version of the format.
    """
    parts = parse_whole(data)
    assert parts.starts[0]
    return parts.header, parts.starts[0]


def parse_whole(data: Buffer) -> Parts:
    """Check that a token file is intact, and find its segments. Raises as `parse_header` does."""
    if data[:4] != _SIGNATURE:
        raise CorruptFileError("not a token file: it does not begin with the .vqt signature")
    if len(data) > 4:
        _check_version(data[4])
    parts = parse_parts(data)
    if parts.damage:
        raise CorruptFileError(f"damaged token file: {parts.damage}; vqtok decode --salvage decodes the rest")
    return parts


def parse_parts(data: Buffer) -> Parts:
    """Find the intact parts of a token file.

    A file in segments can lack some of them. Any other file may have been cut off after its first codebook, as may the
    first segment: the codebooks that are whole are then found by the header alone, without a checksum over them.

    Raises:
        CorruptFileError: Nothing is intact.
        UnsupportedVersionError: The file has a newer version of the format.
    """
    if len(data) >= _FIXED_BYTES + CRC_BYTES and checksum(memoryview(data)[:-CRC_BYTES]) == data[-CRC_BYTES:]:
        header, start = _parse_fields(data, 0, len(data) - CRC_BYTES)
        if not header.segment_steps and start + sum(header.payload_lengths) == len(data) - CRC_BYTES:
            return Parts(header, [start])
        raise CorruptFileError("damaged token file: its streams do not add up to its length")
    for position in (0, len(data) - _LENGTH_BYTES - int.from_bytes(data[-_LENGTH_BYTES:], "little")):
        found = _sealed_header(data, position)
        if found:
            parts = _find_segments(data, *found)
            if any(start is not None for start in parts.starts):
                return parts
    return _cut_off(data)


def _cut_off(data: Buffer) -> Parts:
    """Find the whole codebooks of a file whose end is missing.

    Raises:
        CorruptFileError: Not even the first one is whole, or the end is there.
    """
    useless = CorruptFileError("damaged token file (truncated or altered): copy or encode it again")
    if data[:4] != _SIGNATURE:
        raise useless
    try:
        header, start = _parse_fields(data, 0, len(data))
    except (CorruptFileError, UnsupportedVersionError):
        raise useless from None
    ends = list(accumulate(header.payload_lengths[: header.num_codebooks], initial=start))
    whole = sum(end <= len(data) for end in ends[1:])
    if not whole or len(data) >= start + sum(header.payload_lengths) + CRC_BYTES * header.num_segments:
        raise useless
    starts = [start, *[None] * (header.num_segments - 1)]
    return Parts(header, starts, f"cut off after {whole} of {header.num_codebooks} codebooks", whole)


def _sealed_header(data: Buffer, position: int) -> tuple[Header, bytes] | None:
    """Read the header of a file in segments at this offset, if it is intact; return it parsed and as bytes."""
    fixed = data[position : position + 6] if position >= 0 else b""
    if not fixed.startswith(_SIGNATURE) or not fixed[-1] & _IN_SEGMENTS:
        return None
    try:
        header, end = _parse_fields(data, position, len(data))
    except CorruptFileError:
        return None
    return header, data[position:end]


def _find_segments(data: Buffer, header: Header, packed: bytes) -> Parts:
    """Look for each segment at its place, and at other places in case bytes were inserted or lost before it."""
    count = header.num_codebooks
    lengths = [sum(header.payload_lengths[i : i + count]) for i in range(0, len(header.payload_lengths), count)]
    tail = packed + len(packed).to_bytes(_LENGTH_BYTES, "little")
    shift = len(data) - len(packed) - sum(lengths) - CRC_BYTES * len(lengths) - len(tail)
    starts: list[int | None] = []
    at = len(packed)
    view = memoryview(data)
    for number, length in enumerate(lengths):
        for start in {at, at + shift}:
            crc = start + length
            if start >= 0 and _segment_checksum(packed, number, view[start:crc]) == view[crc : crc + CRC_BYTES]:
                starts.append(start)
                break
        else:
            starts.append(None)
        at += length + CRC_BYTES
    lost = [str(number) for number, start in enumerate(starts, 1) if start is None]
    shown = ", ".join(lost[:_LOST_SHOWN]) + (", ..." if len(lost) > _LOST_SHOWN else "")
    damage = [f"segment{'s' * (len(lost) > 1)} {shown} of {len(starts)}"] if lost else []
    if shift or data[: len(packed)] != packed or data[-len(tail) :] != tail:
        damage.append("the header or the end")
    return Parts(header, starts, " and ".join(damage))


def _segment_checksum(packed: bytes, number: int, payload: bytes | memoryview) -> bytes:
    """Return the CRC-32 of a segment, which distinguishes it from any other of this file or another."""
    return checksum(payload, packed[-CRC_BYTES:] + number.to_bytes(4, "little"))


def _parse_fields(data: Buffer, start: int, end: int) -> tuple[Header, int]:
    """Read the fields of a header and, in a file in segments, its checksum; return them and the offset of their end.

    Raises:
        CorruptFileError: The fields are not valid.
        UnsupportedVersionError: They use features that are not known here.
    """
    fields = Fields(data, start + 4, end)
    version, flags = fields.take(2)
    model = fields.take(8)
    modality = MODALITIES[flags >> 3 & 1]
    num_codebooks = fields.number()
    if num_codebooks > MAX_CODEBOOKS:
        raise CorruptFileError(f"damaged token file: it claims {num_codebooks} codebooks")
    codebook_sizes = fields.numbers(num_codebooks)
    stride = fields.number()
    size = fields.numbers(size_dims(modality))
    grid = fields.numbers(grid_dims(modality, size))
    segment_steps = fields.number() if flags & _IN_SEGMENTS else 0
    num_streams = num_codebooks * num_segments(modality, grid, segment_steps)
    if num_streams > MAX_STREAMS:
        raise CorruptFileError(f"damaged token file: it claims {num_streams} streams")
    payload_lengths = fields.numbers(num_streams)
    metadata = fields.metadata() if flags & _HAS_METADATA else {}
    if flags & _IN_SEGMENTS and checksum(data[start : fields.offset]) != fields.take(CRC_BYTES):
        raise CorruptFileError("damaged token file: its header is truncated or altered")
    coder = flags & 0b111
    _check_version(version)
    if coder >= len(CODERS) or flags & _MUST_BE_ZERO:
        raise UnsupportedVersionError(
            f"token file uses features that this vqtok does not know (flags {flags:#04x}): upgrade vqtok"
        )
    try:
        header = Header(
            coder=CODERS[coder],
            modality=modality,
            model=model,
            codebook_sizes=codebook_sizes,
            grid=grid,
            stride=stride,
            size=size,
            payload_lengths=payload_lengths,
            segment_steps=segment_steps,
            metadata=metadata,
            version=f"{version >> 4}.{version & 15}",
            file_bytes=len(data),
        )
    except ValueError as error:
        raise CorruptFileError(f"damaged token file: {error}") from None
    return header, fields.offset


def read_header(path: str | Path, salvage: bool = False) -> Header:
    """Check that a token file is intact, at least in part with `salvage`, and read its header.

    Raises:
        CorruptFileError: The file is not a token file, or damaged.
        UnsupportedVersionError: It has a newer version of the format.
        OSError: It cannot be read.
    """
    try:
        data = as_path(path).read_bytes()
        return (parse_parts(data) if salvage else parse_whole(data)).header
    except (CorruptFileError, UnsupportedVersionError) as error:
        raise type(error)(f"{path}: {error}") from None


def _check_version(version: int) -> None:
    if version >> 4 != _MAJOR:
        raise UnsupportedVersionError(
            f"token file of format version {version >> 4}, this vqtok reads {_MAJOR}: upgrade vqtok"
        )
