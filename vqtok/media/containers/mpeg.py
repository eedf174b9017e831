"""MPEG audio (MP1, MP2, MP3): find the frames in a file and count them exactly.

libmpg123 guesses the number of samples from the first frames if no Xing frame states it, stops at the end of the first
of several concatenated files, and prints to stderr about anything that is not a frame. It is therefore only passed
frames, with a Xing frame that states the correct number if the encoder's delay is known.

Source:
    ISO/IEC 11172-3, 2.4.1 and 13818-3 (headers); "MP3 Info Tag revision 1" (Xing and LAME);
    id3.org (ID3v1, ID3v2), "APEv2 specification", "Lyrics3 made easy" (tags).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from vqtok.errors import MediaError
from vqtok.media.containers.spliced import Link, Span, Window

# kbps by index, from 1; index 0 stands for free format.
_BITRATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)
_HEADER_BYTES = 4
_MAX_FRAME_BYTES = 1 << 13
"""More than a frame of free format at 640 kbps, the maximum of decoders."""
_SEARCH_BYTES = 1 << 16
"""The maximum number of junk bytes before the first frame."""
_SILENT_FRAMES = 256
_MISCOUNTED = 1
"""The tolerance for the number of frames in a Xing frame: some encoders count the Xing frame itself."""
_SYNC = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]")


class Header(NamedTuple):
    """The contents of a frame header."""

    size: int
    """Size of the frame in bytes; 0 in free format."""
    samples: int
    sample_rate: int
    channels: int
    layer: int
    side_bytes: int
    """Bytes of side information after the header and its checksum, in layer III."""
    has_checksum: bool
    padding: int

    def fits(self, other: Header) -> bool:
        """Return whether both can belong to the same stream."""
        return self[1:6] == other[1:6] and (self.size > 0) == (other.size > 0)


@lru_cache(maxsize=4096)
def parse_header(data: bytes) -> Header | None:
    """Return the frame header that data begin with; None if there is none."""
    if len(data) < _HEADER_BYTES or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return None
    version = {0: 2.5, 2: 2, 3: 1}.get(data[1] >> 3 & 3)
    layer = 4 - (data[1] >> 1 & 3)
    rate, bitrate, padding = data[2] >> 2 & 3, data[2] >> 4, data[2] >> 1 & 1
    if version is None or layer == 4 or rate == 3 or bitrate == 15 or data[3] & 3 == 2:
        return None
    sample_rate = int(_RATES[rate] / {1: 1, 2: 2, 2.5: 4}[version])
    channels = 1 if data[3] >> 6 == 3 else 2
    halved = version != 1
    samples = 384 if layer == 1 else 576 if layer == 3 and halved else 1152
    kbps = _BITRATES[2 if halved else 1, layer][bitrate - 1] if bitrate else 0
    slot = 4 if layer == 1 else 1
    size = (samples // 8 * 1000 * kbps // sample_rate // slot + padding) * slot if kbps else 0
    side_bytes = {(False, 1): 17, (False, 2): 32, (True, 1): 9, (True, 2): 17}[halved, channels] if layer == 3 else 0
    return Header(size, samples, sample_rate, channels, layer, side_bytes, not data[1] & 1, padding * slot)


class Info(NamedTuple):
    """The contents of a Xing, Info or VBRI frame, which describes the stream."""

    frames: int | None = None
    size: int | None = None
    """Size of the stream in bytes, including this frame."""
    delay: bytes | None = None
    """Three bytes: the number of samples that the encoder added before and after the audio."""


@dataclass
class _Stream:
    """A stream that is being collected: frames that fit each other, and the Xing frame before them."""

    first: bytes
    """The header of its first frame."""
    info: Info | None = None
    frames: int = 0
    first_bytes: int = 0
    most_bytes: int = 0
    """The size of the largest frame."""
    spans: list[Span] = field(default_factory=list)

    @property
    def header(self) -> Header:
        header = parse_header(self.first)
        assert header
        return header

    def add(self, start: int, stop: int) -> None:
        self.frames += 1
        self.first_bytes = self.first_bytes or stop - start
        self.most_bytes = max(self.most_bytes, stop - start)
        if self.spans and self.spans[-1].stop == start:
            self.spans[-1] = Span(self.spans[-1].start, stop)
        else:
            self.spans.append(Span(start, stop))


def skip_tags(file: BinaryIO, start: int = 0) -> int:
    """Return the position after the tags at the start of a file."""
    reader = Window(file)
    while tag := _tag_size(reader, start):
        start += tag
    return start


def find_links(file: BinaryIO, start: int = 0) -> list[Link]:
    """Return the streams in an MPEG audio file; an empty list for other files.

    Raises:
        MediaError: A Xing frame states more frames than there are.
    """
    reader = Window(file)
    first = _first_frame(reader, start)
    if first is None:
        return []
    streams, junk = _whole_by_its_info(reader, first) or _scan(reader, first)
    links = [_link(stream) for stream in streams if stream.frames]
    if links and junk:
        warning = f"{junk} bytes between the MPEG frames are damaged or foreign and are skipped"
        links[0] = Link(links[0].pieces, links[0].samples, warning=warning)
    return links


def _first_frame(reader: Window, start: int) -> int | None:
    """Return the position of the first frame, after tags, zeros and some junk; frames that fit must follow it."""
    while tag := _tag_size(reader, start):
        start += tag
    while (data := reader.read(start, _SEARCH_BYTES)) and not any(data):
        start += len(data)
    for found in reader.search(_SYNC, start, min(reader.size, start + _SEARCH_BYTES)):
        if _is_run(reader, found, 3):
            return found
    return None


def _is_run(reader: Window, start: int, frames: int) -> bool:
    """Return whether so many frames that fit each other begin here, or fewer up to the end or a tag."""
    first = header = parse_header(reader.read(start, _HEADER_BYTES))
    if first is None:
        return False
    free_size = 0 if first.size else _free_size(reader, start, first)
    for _ in range(frames):
        if header is None or not header.fits(first) or not (header.size or free_size):
            return False
        start += header.size or free_size + header.padding
        if start >= reader.size or _tag_size(reader, start):
            return start <= reader.size
        header = parse_header(reader.read(start, _HEADER_BYTES))
    return True


def _free_size(reader: Window, start: int, first: Header) -> int:
    """Return the size of a frame in free format without padding, from the positions of the next two; 0 if not found."""
    for found in reader.search(_SYNC, start + _HEADER_BYTES, start + _MAX_FRAME_BYTES):
        header = parse_header(reader.read(found, _HEADER_BYTES))
        if header and header.fits(first):
            size = found - start - first.padding
            after = parse_header(reader.read(found + size + header.padding, _HEADER_BYTES))
            if (after and after.fits(first)) or found + size + header.padding == reader.size:
                return size
    return 0


def _whole_by_its_info(reader: Window, start: int) -> tuple[list[_Stream], int] | None:
    """Return the stream as its Xing frame describes it, without a scan, if the size that it states is correct."""
    head = reader.read(start, _HEADER_BYTES)
    header = parse_header(head)
    info = header and _parse_info(reader.read(start, header.size), header)
    if not header or not info or not info.frames or not info.size or not info.delay:
        return None
    end = reader.size
    if reader.read(end - 128, 3) == b"TAG":
        end -= 128
    if start + info.size != end:
        return None
    return [_Stream(head, info, info.frames, spans=[Span(start + header.size, end)])], 0


def _scan(reader: Window, start: int) -> tuple[list[_Stream], int]:
    """Scan all frames; return the streams and the number of bytes that are neither frames nor tags."""
    streams: list[_Stream] = []
    position, junk, free_size = start, 0, 0
    reference: Header | None = None
    while position < reader.size:
        head = reader.read(position, _HEADER_BYTES)
        header = parse_header(head)
        if header and (reference is None or not header.fits(reference)):
            header = header if _is_run(reader, position, 3) else None
            reference = header or reference
            free_size = 0 if header is None or header.size else _free_size(reader, position, header)
            if header:
                streams.append(_Stream(head))
        if header is None:
            skipped, is_junk = _skip(reader, position)
            junk += skipped * is_junk
            position += skipped
            continue
        stop = position + (header.size or free_size + header.padding)
        if stop > reader.size:  # The last frame is cut off, as in recordings of broadcasts.
            break
        info = _parse_info(reader.read(position, 200), header) if header.layer == 3 else None
        if info:
            streams.append(_Stream(head, info))
        else:
            streams[-1].add(position, stop)
        position = stop
    return streams, junk


def _skip(reader: Window, start: int) -> tuple[int, bool]:
    """Return the number of bytes up to the next frame or tag, and whether they are junk."""
    if tag := _tag_size(reader, start):
        return tag, False
    for found in reader.search(_SYNC_OR_TAG, start + 1, reader.size):
        if _is_run(reader, found, 3) or _tag_size(reader, found):
            return found - start, any(reader.chunks(start, found))
    return reader.size - start, any(reader.chunks(start, reader.size))


def _link(stream: _Stream) -> Link:
    """Return a stream's frames in a form that libmpg123 decodes to the end.

    Raises:
        MediaError: The Xing frame states more frames than there are.
    """
    header, info = stream.header, stream.info or Info()
    if info.frames and info.frames > stream.frames + _MISCOUNTED:
        raise MediaError(f"is truncated or damaged: has {stream.frames} of {info.frames} MPEG frames")
    if info.delay and info.frames and info.frames >= stream.frames:
        return Link((_xing_frame(stream.first, stream.frames, info.delay), *stream.spans))
    # libmpg123 guesses the length from the size of the file and the first frame. Silent frames at the end, which are
    # not decoded, make the file so large that the guess is never too low.
    available = sum(span.stop - span.start for span in stream.spans)
    silence = stream.first.ljust(stream.first_bytes, b"\0") * _SILENT_FRAMES
    repeats = max(0, stream.frames * stream.most_bytes - available) // len(silence) + 1
    return Link((*stream.spans, *[silence] * repeats), samples=stream.frames * header.samples)


def _xing_frame(first: bytes, frames: int, delay: bytes) -> bytes:
    """Return a Xing frame for a stream with this first header."""
    head = bytes([first[0], first[1] | 1, 0x90 | first[2] & 0x0C, first[3]])  # no checksum, 128 or 80 kbps
    header = parse_header(head)
    assert header
    tag = b"Xing" + struct.pack(">II", 1, frames) + b"LAME".ljust(21, b"\0") + delay
    return (head + bytes(header.side_bytes) + tag).ljust(header.size, b"\0")


def _parse_info(frame: bytes, header: Header) -> Info | None:
    """Return the contents of a Xing, Info or VBRI frame; None for other frames."""
    for start in {_HEADER_BYTES + header.side_bytes, _HEADER_BYTES + header.side_bytes + 2 * header.has_checksum}:
        if frame[start : start + 4] in (b"Xing", b"Info"):
            return _parse_xing(frame[start + 4 :])
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        size, frames = struct.unpack_from(">II", frame, 46)
        return Info(frames, size)
    return None


def _parse_xing(data: bytes) -> Info:
    flags = int.from_bytes(data[:4], "big")
    position, found = 4, {}
    for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)):
        if flags & bit:
            found[bit] = int.from_bytes(data[position : position + size], "big")
            position += size
    lame = data[position : position + 24]
    return Info(found.get(1), found.get(2), lame[21:24] if len(lame) == 24 and lame[0] else None)


_SYNC_OR_TAG = re.compile(_SYNC.pattern + rb"|ID3|TAG|APETAGEX|LYRICSBEGIN")


def _tag_size(reader: Window, start: int) -> int:
    """Return the size in bytes of the tag that begins here; 0 if there is none."""
    head = reader.read(start, 32)
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        return 10 + size + (10 if head[5] & 0x10 else 0)
    if head[:3] == b"TAG" and start + 128 <= reader.size:
        return 227 if head[3:4] == b"+" and start + 227 <= reader.size else 128
    if head[:8] == b"APETAGEX" and len(head) == 32:
        size, _, flags = struct.unpack_from("<III", head, 12)
        return 32 + (size if flags & 1 << 29 else 0)
    if head[:11] == b"LYRICSBEGIN":
        found = next(reader.search(re.compile(rb"LYRICSEND|LYRICS200"), start, reader.size), None)
        return found + 9 - start if found is not None else 0
    return 0
