"""Uncompressed audio in chunks (WAV, RF64, W64, AIFF, CAF) or after a header (AU): correct wrong sizes in headers."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import SEEK_END
from typing import BinaryIO, NamedTuple

from vqtok.errors import MediaError
from vqtok.media.containers.spliced import Link, Span

_STREAMED_BYTES = {
    True: (range(0x7F000000, 0x80000100), range(0xFFFFFF00, 1 << 32)),
    False: (range(1 << 62, 1 << 63),),
}
"""Sizes, besides negative ones, that programs write into headers if the output is a pipe; by whether it has 32 bits."""
_MAX_32_BITS = 0xFFFFFFFF
_MAX_HEADER_BYTES = 128
"""The maximum error of a size that includes the header by mistake."""
_CHECKED_BYTES = 1 << 16
_WITH_TYPE, _TYPES = (b"RIFF", b"RIFX", b"RF64", b"FORM"), (b"WAVE", b"AIFF", b"AIFC")


class _Layout(NamedTuple):
    """The layout of the chunks of a format."""

    first: int
    id_bytes: int
    size: str
    """The struct format of a chunk's size."""
    data: bytes
    """The first bytes of the identifier of the chunk with the samples."""
    own_bytes: int = 0
    """The bytes of a chunk's header that its size includes."""
    alignment: int = 2

    @property
    def header_bytes(self) -> int:
        return self.id_bytes + struct.calcsize(self.size)


_LAYOUTS = {
    b"RIFF": _Layout(12, 4, "<I", b"data"),
    b"RF64": _Layout(12, 4, "<I", b"data"),
    b"RIFX": _Layout(12, 4, ">I", b"data"),
    b"FORM": _Layout(12, 4, ">I", b"SSND"),
    b"caff": _Layout(8, 4, ">q", b"data", alignment=1),
    b"riff": _Layout(40, 16, "<q", b"data", own_bytes=24, alignment=8),
}


@dataclass(frozen=True)
class _Data:
    """The position of the samples, their number of bytes according to the header, and the position of that number."""

    start: int
    declared: int
    field: Span
    format: str
    own_bytes: int = 0
    alignment: int = 1
    size: str | None = None
    """The struct format of the size of a chunk that may follow."""


def find_links(file: BinaryIO, start: int = 0) -> list[Link]:
    """Return the streams of an uncompressed audio file, or of several concatenated ones; an empty list for other files.

    Raises:
        MediaError: There are fewer samples than the header states.
    """
    end, links = file.seek(0, SEEK_END), list[Link]()
    while start < end and (data := _find_data(file, start, end)):
        following = _next_file(file, data, end)
        links.append(_link(file, start, data, following or end))
        start = following or end
    return links


def _link(file: BinaryIO, start: int, data: _Data, end: int) -> Link:
    available = end - data.start
    whole = Link((Span(start, end),))
    is_short = data.format[1] == "I"
    is_streamed = data.declared < 0 or any(data.declared in sizes for sizes in _STREAMED_BYTES[is_short])
    if data.declared == available or (data.declared > available and is_streamed):
        return whole  # libsndfile reads up to the end in these cases.
    if data.declared > available + min(data.start - start, _MAX_HEADER_BYTES):
        raise MediaError(f"is truncated: has {available} of {data.declared} bytes of samples")
    if 0 <= data.declared < available and _is_metadata(file, data, is_streamed):
        return whole
    warning = (
        "" if is_streamed else f"the header is wrong: it states {data.declared} bytes of samples, but has {available}"
    )
    if available + data.own_bytes > _MAX_32_BITS and is_short:
        return Link(_as_rf64(file, start, data, end), warning=warning)
    size = struct.pack(data.format, available + data.own_bytes)
    return Link((Span(start, data.field.start), size, Span(data.field.stop, end)), warning=warning)


def _next_file(file: BinaryIO, data: _Data, end: int) -> int | None:
    """Return the position of the next of several concatenated files; None if there is none."""
    position = data.start + max(0, data.declared)
    while position + 12 <= end:
        file.seek(position)
        head = file.read(12)
        if head[:4] in _LAYOUTS and (head[:4] not in _WITH_TYPE or head[8:] in _TYPES):
            return position
        if data.size is None or not _is_id(head):
            return None
        body = position + 4 + struct.calcsize(data.size)
        size: int = struct.unpack_from(data.size, head, 4)[0]
        position = body + size + -size % data.alignment
    return None


def _is_id(head: bytes) -> bool:
    return len(head) >= 8 and all(32 <= byte < 127 for byte in head[:4])


def _find_data(file: BinaryIO, start: int, end: int) -> _Data | None:
    file.seek(start)
    head = file.read(12)
    if head[:4] in (b".snd", b"dns.") and len(head) == 12:
        order = ">" if head[:1] == b"." else "<"
        offset, size = struct.unpack_from(f"{order}II", head, 4)
        return _Data(start + offset, size, Span(start + 8, start + 12), f"{order}I") if start + offset <= end else None
    layout = _LAYOUTS.get(head[:4])
    if layout is None or (head[:4] in _WITH_TYPE and head[8:] not in _TYPES):
        return None
    position, long_size = start + layout.first, None
    while position + layout.header_bytes <= end:
        file.seek(position)
        chunk = file.read(layout.header_bytes + 16)
        (size,) = struct.unpack_from(layout.size, chunk, layout.id_bytes)
        body = position + layout.header_bytes
        field = Span(position + layout.id_bytes, body)
        if chunk.startswith(layout.data):
            if long_size is not None:
                return _Data(body, long_size[0], long_size[1], "<q", 0, 2, layout.size)
            after = layout.size if layout.id_bytes == 4 else None
            return _Data(body, size - layout.own_bytes, field, layout.size, layout.own_bytes, layout.alignment, after)
        if chunk.startswith(b"ds64") and head[:4] == b"RF64" and len(chunk) == layout.header_bytes + 16:
            long_size = struct.unpack_from("<q", chunk, 16)[0], Span(position + 16, position + 24)
        size -= layout.own_bytes
        if size < 0:
            return None
        position = body + size + -size % layout.alignment
    return None


def _is_metadata(file: BinaryIO, data: _Data, is_streamed: bool) -> bool:
    """Return whether a chunk, a tag or padding follows the samples, whose size the header states."""
    starts = {data.start + data.declared, data.start + data.declared + -data.declared % data.alignment}
    for start in starts:
        file.seek(start)
        head = file.read(_CHECKED_BYTES)
        if head[:3] in (b"TAG", b"ID3") or _is_id(head):
            return True
        if data.declared and not is_streamed and not any(head):
            return True
    return False


def _as_rf64(file: BinaryIO, start: int, data: _Data, end: int) -> tuple[Span | bytes, ...]:
    """Return a WAV file whose size does not fit into 32 bits as an RF64 file.

    Raises:
        MediaError: The file has a format without a 64-bit form.
    """
    file.seek(start)
    if file.read(4) != b"RIFF":
        raise MediaError("has more than 4 GiB of samples, which its header cannot state; convert it to WAV")
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, end - start + 28, end - data.start, 0, 0)
    head = b"RF64\xff\xff\xff\xffWAVE" + sizes
    return head, Span(start + 12, data.field.start), b"\xff" * 4, Span(data.field.stop, end)
