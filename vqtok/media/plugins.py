"""Pillow's plugins for HEIC and JPEG XL, which are optional."""

from __future__ import annotations

import re
import struct
from functools import cache
from typing import BinaryIO, NamedTuple

from vqtok.errors import MediaError
from vqtok.media.kinds import is_installed

_HEIF = re.compile(rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)
_JXL = re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")

_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


class JxlHeader(NamedTuple):
    """The contents of the header of a JPEG XL image."""

    width: int
    height: int
    bits: int = 8
    is_animated: bool = False


def prepare_for(file: BinaryIO) -> JxlHeader | None:
    """Load the plugin that a file needs, if any. Return the header of JPEG XL, because opening such a file decodes it.

    Raises:
        MediaError: The plugin is not installed, or the header is damaged.
    """
    start = file.tell()
    head = file.read(64)
    file.seek(start)
    if _HEIF.match(head) and b"avif" not in head[:64]:
        _load_heif()
    elif _JXL.match(head):
        _load_jxl()
        data = file.read(1 << 16)
        file.seek(start)
        return read_jxl_header(data)
    return None


@cache
def _load_heif() -> None:
    if not is_installed("pillow_heif"):
        raise MediaError("HEIC requires pillow-heif: pip install 'vqtok[heif]', or convert it to PNG")
    import pillow_heif

    pillow_heif.register_heif_opener()


@cache
def _load_jxl() -> None:
    if not is_installed("pillow_jxl"):
        raise MediaError("JPEG XL requires pillow-jxl-plugin: pip install 'vqtok[jxl]', or convert it to PNG")
    import pillow_jxl  # noqa: F401


def read_jxl_header(data: bytes) -> JxlHeader:
    """Return the header of a JPEG XL file or codestream.

    Raises:
        MediaError: The header is damaged.

    Source:
        ISO/IEC 18181-1, annex D (SizeHeader, ImageMetadata); 18181-2 (boxes).
    """
    bits = _Bits(_codestream(data))
    try:
        width, height = bits.size()
        is_default, is_animated = bits.take(1), False
        if is_default:
            return JxlHeader(width, height)
        if bits.take(1):
            bits.take(3)  # The orientation, which the decoder applies.
            if bits.take(1):
                bits.size()
            if bits.take(1):  # A preview is rare and has a long header.
                return JxlHeader(width, height)
            if is_animated := bool(bits.take(1)):
                bits.number((100, 0), (1000, 0), (1, 10), (1, 30))
                bits.number((1, 0), (1001, 0), (1, 8), (1, 10))
                bits.number((0, 0), (0, 3), (0, 16), (0, 32))
                bits.take(1)
        is_float = bits.take(1)
        depth = 32 if is_float else bits.number((8, 0), (10, 0), (12, 0), (1, 6))
    except EOFError:
        raise MediaError("the image is damaged: its JPEG XL header is truncated") from None
    return JxlHeader(width, height, depth, is_animated)


def _codestream(data: bytes) -> bytes:
    """Return the bytes after the signature of the codestream, which may be inside a box."""
    start = 0
    while not data.startswith(b"\xff\x0a") and start + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 16 if size == 1 else 8
        if kind in (b"jxlc", b"jxlp"):
            data = data[start + header + (4 if kind == b"jxlp" else 0) :]
            break
        start += max(8, int.from_bytes(data[start + 8 : start + 16], "big") if size == 1 else size)
    return data[2:] if data.startswith(b"\xff\x0a") else b""


class _Bits:
    """Reads numbers of any number of bits, least significant bit first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data[:64], "little"), 8 * len(data[:64])

    def take(self, count: int) -> int:
        if count > self._left:
            raise EOFError
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return value

    def number(self, *choices: tuple[int, int]) -> int:
        """Read a number in one of four forms, each with an offset and a number of bits."""
        offset, count = choices[self.take(2)]
        return offset + self.take(count)

    def size(self) -> tuple[int, int]:
        """Read a width and a height."""
        is_small = self.take(1)
        height = self._length(is_small)
        ratio = self.take(3)
        if not ratio:
            return self._length(is_small), height
        by, to = _JXL_RATIOS[ratio - 1]
        return height * by // to, height

    def _length(self, is_small: int) -> int:
        if is_small:
            return 8 * (1 + self.take(5))
        return self.number((1, 9), (1, 13), (1, 18), (1, 30))
