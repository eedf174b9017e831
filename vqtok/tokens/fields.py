"""Fields of token files and shards: varints, text, metadata, checksums. Needs the standard library alone.

A varint is LEB128 of at most 35 bits, in its shortest form. Checksums are CRC-32 (zlib), little-endian.
"""

from __future__ import annotations

import json
import zlib
from mmap import mmap
from typing import Any

from vqtok.errors import CorruptFileError

Buffer = bytes | mmap

CRC_BYTES = 4
VARINT_BYTES = 5
MAX_METADATA_BYTES = 2**16


def varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def pack_metadata(metadata: dict[str, Any]) -> bytes:
    """Return metadata after its length, or nothing if it is empty.

    Raises:
        ValueError: The metadata is not JSON, or longer than 64 KiB.
    """
    if not metadata:
        return b""
    text = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if len(text) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata of {len(text)} bytes exceeds {MAX_METADATA_BYTES}")
    return varint(len(text)) + text


def checksum(data: bytes | memoryview, before: bytes = b"") -> bytes:
    """Return the CRC-32 of `before` followed by `data`."""
    return zlib.crc32(data, zlib.crc32(before)).to_bytes(CRC_BYTES, "little")


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


class Fields:
    """Reads consecutive fields between an offset and an end.

    Methods raise CorruptFileError if a field is malformed or extends past the end.
    """

    def __init__(self, data: Buffer, offset: int, end: int) -> None:
        self.data, self.offset, self.end = data, offset, end

    def take(self, length: int) -> bytes:
        start, self.offset = self.offset, self.offset + length
        if self.offset > self.end:
            raise CorruptFileError("damaged token file: its header does not end")
        return self.data[start : self.offset]

    def number(self) -> int:
        value = 0
        for index, byte in enumerate(self.data[self.offset : min(self.offset + VARINT_BYTES, self.end)]):
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
        """Return the bytes of a field that begins with its length."""
        length = self.number()
        if length > max_length:
            raise CorruptFileError(f"damaged token file: it claims {length} bytes of {what}")
        return self.take(length)

    def metadata(self) -> dict[str, Any]:
        try:
            text = self.text(MAX_METADATA_BYTES, "metadata").decode()
            metadata = json.loads(text, parse_constant=_no_json)
        except (ValueError, RecursionError):
            metadata = None
        if not isinstance(metadata, dict):
            raise CorruptFileError("damaged token file: its metadata is not a JSON object")
        return metadata
