"""`Spliced`, a file made of parts of another file and other bytes, and `Window`, for random access to a file."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END, SEEK_SET
from itertools import accumulate
from typing import BinaryIO, NamedTuple, Protocol, TypeAlias

_WINDOW_BYTES = 1 << 18


class Span(NamedTuple):
    """The bytes of a file from `start` up to `stop`."""

    start: int
    stop: int


Piece: TypeAlias = Span | bytes


@dataclass(frozen=True)
class Link:
    """One stream of an audio file, which a decoder can read separately."""

    pieces: tuple[Piece, ...]
    samples: int | None = None
    """The number of samples; None if the decoder knows it."""
    is_open_ended: bool = False
    """Whether only decoding can find out the number of samples."""
    warning: str = ""
    """A warning for the user, logged before decoding."""


class Spliced:
    """A read-only file made of pieces.

    Several of them may share one file, but not in different threads.
    """

    def __init__(self, file: BinaryIO, pieces: Sequence[Piece]) -> None:
        self._file, self._pieces = file, pieces
        self._ends = list(accumulate(_length(piece) for piece in pieces))
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes; all that follow if it is negative."""
        end = self._ends[-1] if self._ends else 0
        wanted = end - self._position if size < 0 else min(size, end - self._position)
        parts = []
        while wanted > 0:
            index = bisect_right(self._ends, self._position)
            piece = self._pieces[index]
            offset = self._position - (self._ends[index] - _length(piece))
            if isinstance(piece, Span):
                self._file.seek(piece.start + offset)
                part = self._file.read(min(wanted, piece.stop - piece.start - offset))
            else:
                part = piece[offset : offset + wanted]
            if not part:  # The file has become shorter.
                break
            parts.append(part)
            self._position += len(part)
            wanted -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Move to a position and return it. Impossible positions, which damaged files can lead to, are ignored."""
        end = self._ends[-1] if self._ends else 0
        origin = {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: end}[whence]
        if 0 <= origin + offset < 1 << 62:
            self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position


class Seekable(Protocol):
    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int: ...
    def read(self, size: int = -1, /) -> bytes: ...


class Window:
    """Reads a file at any position, with a part of it in memory."""

    def __init__(self, file: Seekable) -> None:
        self._file = file
        self.size = file.seek(0, SEEK_END)
        self._start, self._window = 0, b""

    def read(self, start: int, size: int) -> bytes:
        offset = start - self._start
        if offset < 0 or offset + size > len(self._window):
            if start >= self.size or start < 0:
                return b""
            self._file.seek(start)
            self._start, self._window, offset = start, self._file.read(max(size, _WINDOW_BYTES)), 0
        return self._window[offset : offset + size]

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `stop` in pieces, each without zeros at its start and end."""
        while start < stop and (data := self.read(start, min(_WINDOW_BYTES, stop - start))):
            yield data.strip(b"\0")
            start += len(data)

    def search(self, pattern: re.Pattern[bytes], start: int, stop: int) -> Iterator[int]:
        """Yield the positions from `start` up to `stop` at which a pattern of at most 11 bytes matches."""
        while start < min(stop, self.size):
            data = self.read(start, min(_WINDOW_BYTES, stop - start + 10))
            last = len(data) if start + len(data) >= min(stop, self.size) else len(data) - 10
            for match in pattern.finditer(data):
                if match.start() < last:
                    yield start + match.start()
            start += max(last, 1)


def _length(piece: Piece) -> int:
    return piece.stop - piece.start if isinstance(piece, Span) else len(piece)
