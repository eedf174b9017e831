"""The parts of a `.vqts` shard, which holds many items of one model. Needs the standard library alone.

    header   4  signature 89 56 53 0A
             1  version, major << 4 | minor
             1  flags: modality (bit 3), ignored (7), the others zero
             8  model identity
             v  varints: num_codebooks, codebook sizes, stride, usual size without its first number, model rate
             4  CRC-32 of the header
    records  one per item
    header   again: it ends the records, and lets the shard survive damage to the first header
    index    3  of each item: the low bytes of the CRC-32 of its key
             8  of every 16th item, from the first: the offset of its record
             8  number of items
             8  offset of the second header
             4  CRC-32 of the index
             4  signature 89 56 45 0A

    record   1  coder (bits 0-2), has-metadata (3), grid stored (4), whole size stored (5), 10 (7-6)
             v  key: varint length, UTF-8
             v  varints: first number of the size, or all of it; with bit 4, the grid
             v  optional metadata: varint length, UTF-8 JSON object
             v  varint: the number of bytes that the payload is shorter than packed codes
             n  payload: all codebooks, coarse first, as `vqtok.tokens.shard.payload.dump_joint` joins them
             4  CRC-32 of the record

Little-endian; varints as in `vqtok.tokens.fields`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from vqtok.errors import CorruptFileError, UnsupportedVersionError
from vqtok.tokens.fields import CRC_BYTES, Buffer, Fields, checksum, pack_metadata, varint
from vqtok.tokens.shape import (
    CODERS,
    MAX_TOKENS,
    MODALITIES,
    Coder,
    Layout,
    grid_dims,
    packed_bytes,
    size_dims,
)
from vqtok.tokens.vqt.header import Header

MAX_KEY_BYTES = 4096
SHARD_SIGNATURE = b"\x89VS\n"

_MAJOR, _MINOR = 1, 0
_FLAGS_MUST_BE_ZERO = 0b111_0111
_FIXED_BYTES = 14
_LEAD = 0b10 << 6
_HAS_METADATA, _GRID_STORED, _SIZE_STORED = 1 << 3, 1 << 4, 1 << 5
LEADS = bytes(lead for lead in range(_LEAD, _LEAD + 64) if lead & 0b111 < len(CODERS))
"""First bytes of records."""


@dataclass(frozen=True, kw_only=True)
class ShardHeader(Layout):
    """What all items of a shard have in common.

    Raises:
        ValueError: Numbers that contradict each other or exceed the format's limits.
    """

    usual_size: tuple[int, ...]
    """The size of most items without its first number: `(height,)`, or `(sample_rate, channels)`."""
    model_rate: int = 0
    """Sample rate of an audio model; 0 if it is not known, in which case each item states its grid."""
    version: str = f"{_MAJOR}.{_MINOR}"

    def __post_init__(self) -> None:
        size = (1, *self.usual_size)
        if len(size) != size_dims(self.modality) or not 0 <= self.model_rate < 1 << 35:
            raise ValueError(f"usual size {self.usual_size} or rate {self.model_rate} does not fit {self.modality}")
        self.check([1] * grid_dims(self.modality, size), size)

    def expected_grid(self, size: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the grid that tokens of this size usually have; None if it is not known."""
        if self.modality == "image":
            return -(-size[1] // self.stride), -(-size[0] // self.stride)
        samples, sample_rate, channels = size
        time = -(-samples * self.model_rate // (sample_rate * self.stride))
        return None if not time else (time,) if channels == 1 else (channels, time)

    def packed_bytes(self, grid: tuple[int, ...]) -> int:
        """Return the size of all bit-packed codes of a grid in bytes."""
        count = math.prod(grid)
        return sum(packed_bytes(size, count) for size in self.codebook_sizes)

    def pack(self) -> bytes:
        fixed = SHARD_SIGNATURE + bytes([_MAJOR << 4 | _MINOR, MODALITIES.index(self.modality) << 3]) + self.model
        numbers = self.num_codebooks, *self.codebook_sizes, self.stride, *self.usual_size, self.model_rate
        body = fixed + b"".join(map(varint, numbers))
        return body + checksum(body)


class Record(NamedTuple):
    """An item of a shard, and its place in the file."""

    key: str
    coder: Coder
    size: tuple[int, ...]
    grid: tuple[int, ...]
    metadata: dict[str, Any]
    start: int
    payload: int
    """Offset of the payload."""
    end: int

    @property
    def payload_bytes(self) -> int:
        return self.end - CRC_BYTES - self.payload

    def payload_of(self, data: Buffer) -> bytes:
        return data[self.payload : self.end - CRC_BYTES]

    def header(self, shard: ShardHeader) -> Header:
        """Return the header that a token file of this item would have."""
        return Header(
            coder=self.coder,
            modality=shard.modality,
            model=shard.model,
            codebook_sizes=shard.codebook_sizes,
            grid=self.grid,
            stride=shard.stride,
            size=self.size,
            payload_lengths=(self.payload_bytes,),
            metadata=self.metadata,
            file_bytes=self.end - self.start,
        )


def parse_shard_header(data: Buffer, start: int = 0) -> tuple[ShardHeader, int]:
    """Read the header that begins at `start`.

    Returns:
        The header, and the offset of its end.

    Raises:
        CorruptFileError: There is no header, or a damaged one.
        UnsupportedVersionError: The shard has a newer version of the format.
    """
    fixed = data[start : start + _FIXED_BYTES]
    if not fixed.startswith(SHARD_SIGNATURE):
        raise CorruptFileError("not a shard: it does not begin with the .vqts signature")
    if len(fixed) > 4 and fixed[4] >> 4 != _MAJOR:
        raise UnsupportedVersionError(
            f"shard of format version {fixed[4] >> 4}, this vqtok reads {_MAJOR}: upgrade vqtok"
        )
    try:
        fields = Fields(data, start + len(fixed), len(data))
        modality = MODALITIES[fixed[5] >> 3 & 1]
        codebook_sizes = fields.numbers(min(fields.number(), 257))
        stride = fields.number()
        usual_size = fields.numbers(size_dims(modality) - 1)
        model_rate = fields.number()
        end = fields.offset
        if fields.take(CRC_BYTES) != checksum(data[start:end]):
            raise CorruptFileError
        version = f"{fixed[4] >> 4}.{fixed[4] & 15}"
        header = ShardHeader(
            modality=modality,
            model=fixed[6:],
            codebook_sizes=codebook_sizes,
            stride=stride,
            usual_size=usual_size,
            model_rate=model_rate,
            version=version,
        )
    except (CorruptFileError, ValueError, IndexError):
        raise CorruptFileError("damaged shard: its header is truncated or altered") from None
    if fixed[5] & _FLAGS_MUST_BE_ZERO:
        raise UnsupportedVersionError(
            f"shard uses features that this vqtok does not know (flags {fixed[5]:#04x}): upgrade vqtok"
        )
    return header, fields.offset


def pack_record(
    shard: ShardHeader,
    key: str,
    coder: Coder,
    size: tuple[int, ...],
    grid: tuple[int, ...],
    metadata: dict[str, Any],
    payload: bytes,
) -> bytes:
    """Return the record of an item.

    Raises:
        ValueError: The key is empty, too long or contains NUL, or the metadata are not JSON or longer than 64 KiB.
    """
    lead, key_bytes = _LEAD | CODERS.index(coder), pack_key(key)
    if not 0 < len(key_bytes) <= MAX_KEY_BYTES or "\0" in key:
        raise ValueError(f"key {key[:40]!r} of {len(key_bytes)} bytes: 1 to {MAX_KEY_BYTES}, none of them 0")
    numbers = size[:1]
    if size[1:] != shard.usual_size:
        lead, numbers = lead | _SIZE_STORED, size
    if grid != shard.expected_grid(size):
        lead, numbers = lead | _GRID_STORED, numbers + grid
    if metadata:
        lead |= _HAS_METADATA
    spared = shard.packed_bytes(grid) - len(payload)
    assert spared >= 0
    fields = b"".join([bytes([lead]), varint(len(key_bytes)), key_bytes, *map(varint, numbers)])
    body = fields + pack_metadata(metadata) + varint(spared) + payload
    return body + checksum(body)


def parse_record(shard: ShardHeader, data: Buffer, start: int, end: int, *, check: bool = True) -> Record:
    """Read the record that begins at `start`; records end at `end` at the latest.

    Args:
        check: Compare the checksum. Without it only the fields before the payload are read.

    Raises:
        CorruptFileError: There is no intact record, or its coder is not known.
    """
    fields = Fields(data, start, end)
    lead = fields.take(1)[0]
    if lead not in LEADS:
        raise CorruptFileError("no record begins here")
    key = fields.text(MAX_KEY_BYTES, "key")
    rest = len(shard.usual_size)
    size = (fields.number(), *(fields.numbers(rest) if lead & _SIZE_STORED else shard.usual_size))
    grid: tuple[int, ...] | None = None
    if min(size):
        stored = lead & _GRID_STORED
        grid = fields.numbers(grid_dims(shard.modality, size)) if stored else shard.expected_grid(size)
    if not key or b"\0" in key or not grid or not 0 < math.prod(grid) * shard.num_codebooks <= MAX_TOKENS:
        raise CorruptFileError("its numbers are not valid")
    metadata = fields.metadata() if lead & _HAS_METADATA else {}
    length = shard.packed_bytes(grid) - fields.number()
    payload = fields.offset
    if length < 0 or payload + length + CRC_BYTES > end:
        raise CorruptFileError("its payload does not end")
    try:
        name = key.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise CorruptFileError("its key is not text") from None
    crc = payload + length
    if check and checksum(memoryview(data)[start:crc]) != data[crc : crc + CRC_BYTES]:
        raise CorruptFileError("its checksum does not match")
    return Record(name, CODERS[lead & 0b111], size, grid, metadata, start, payload, crc + CRC_BYTES)


def pack_key(key: str) -> bytes:
    """Return a key in UTF-8, including the surrogates that stand for bytes of file names that are not text."""
    return key.encode("utf-8", "surrogatepass")
