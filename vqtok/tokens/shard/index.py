"""Find the records of a shard, by its index or by trying every byte."""

from __future__ import annotations

import mmap
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vqtok.errors import CorruptFileError, MediaError, UnsupportedVersionError
from vqtok.tokens.fields import Buffer, checksum
from vqtok.tokens.shard.format import (
    LEADS,
    SHARD_SIGNATURE,
    Record,
    ShardHeader,
    pack_key,
    parse_record,
    parse_shard_header,
)

HASH_BYTES = 3
OFFSET_BYTES = 8
GROUP = 16
"""Items between two offsets in the index; their places follow from the lengths of the items before."""

SALVAGE = "vqtok merge --salvage keeps the intact items"
"""Advice for a damaged shard."""

_END_SIGNATURE = b"\x89VE\n"
_TRAILER_BYTES = 24
_LEAD = re.compile(b"[" + re.escape(LEADS) + b"]")


class Index(NamedTuple):
    """The index of a shard, not yet parsed into items."""

    num_items: int
    records_end: int
    hashes: bytes
    offsets: bytes

    def fits(self, number: int, key: str) -> bool:
        """Return whether the item with this number can have this key."""
        at = HASH_BYTES * number
        return self.hashes[at : at + HASH_BYTES] == key_hash(key).to_bytes(HASH_BYTES, "little")


class Gap(NamedTuple):
    """A part of a shard without an intact record. At the end of a shard that is cut off it may be empty."""

    start: int
    end: int


def map_file(path: Path) -> Buffer:
    """Return the content of a file, mapped into memory.

    Raises:
        MediaError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            if not path.is_file() or not path.stat().st_size:
                return file.read()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror}") from error


def key_hash(key: str) -> int:
    return zlib.crc32(pack_key(key)) & (1 << 8 * HASH_BYTES) - 1


def pack_index(header: ShardHeader, hashes: bytes, offsets: bytes, records_end: int) -> bytes:
    """Return the bytes that follow the records."""
    numbers = (len(hashes) // HASH_BYTES).to_bytes(8, "little") + records_end.to_bytes(8, "little")
    index = hashes + offsets + numbers
    return header.pack() + index + checksum(index) + _END_SIGNATURE


def parse_index(data: Buffer, header_end: int) -> Index:
    """Read the index of an intact shard.

    Raises:
        CorruptFileError: There is no index, or a damaged one.
    """
    end = len(data) - _TRAILER_BYTES
    trailer = data[max(end, 0) :]
    if end < header_end or not trailer.endswith(_END_SIGNATURE):
        raise CorruptFileError(f"cut off, or writing it was interrupted: it has no index; {SALVAGE}")
    num_items, records_end = (int.from_bytes(trailer[at : at + 8], "little") for at in (0, 8))
    hashes_at = records_end + header_end
    offsets_at = hashes_at + HASH_BYTES * num_items
    fits = num_items and header_end <= records_end and offsets_at + OFFSET_BYTES * -(-num_items // GROUP) == end
    if not fits or checksum(memoryview(data)[hashes_at : end + 16]) != trailer[16:20]:
        raise CorruptFileError(f"its index is damaged; {SALVAGE}")
    if data[records_end:hashes_at] != data[:header_end]:
        raise CorruptFileError(f"its second header is damaged; {SALVAGE}")
    return Index(num_items, records_end, data[hashes_at:offsets_at], data[offsets_at:end])


def walk(shard: ShardHeader, data: Buffer, start: int, index: Index, *, check: bool = True) -> Iterator[Record]:
    """Yield all records of an intact shard, which begin at `start`.

    Args:
        check: Compare the checksum of each. Without it only the keys are verified.

    Raises:
        CorruptFileError: A record is damaged.
    """
    for number in range(index.num_items):
        try:
            record = parse_record(shard, data, start, index.records_end, check=check)
            if not index.fits(number, record.key):
                raise CorruptFileError("it has another key")
        except CorruptFileError as error:
            raise CorruptFileError(f"item {number} is damaged: {error}; {SALVAGE}") from None
        start = record.end
        yield record


def scan(shard: ShardHeader, data: Buffer, start: int) -> Iterator[Record | Gap]:
    """Yield every intact record between `start` and the second header, and the gaps between them."""
    gap, position, end = start, start, len(data)
    while position < end:
        try:
            record = parse_record(shard, data, position, end)
        except CorruptFileError:
            if data[position : position + len(SHARD_SIGNATURE)] == SHARD_SIGNATURE and _header_at(data, position):
                break
            lead = _LEAD.search(data, position + 1)
            position = lead.start() if lead else end
            continue
        if gap < position:
            yield Gap(gap, position)
        yield record
        gap = position = record.end
    if gap < position or position == end:
        yield Gap(gap, position)


def find_header(data: Buffer) -> tuple[ShardHeader, int] | None:
    """Find an intact header, the first or the second; return it and the offset at which records can begin."""
    position = data.find(SHARD_SIGNATURE)
    while position >= 0:
        found = _header_at(data, position)
        if found:
            return found[0], 0 if position else found[1]
        position = data.find(SHARD_SIGNATURE, position + 1)
    return None


def _header_at(data: Buffer, position: int) -> tuple[ShardHeader, int] | None:
    try:
        return parse_shard_header(data, position)
    except (CorruptFileError, UnsupportedVersionError):
        return None
