"""Choose a decoder for an audio file, and pass to libsndfile only data that it decodes correctly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import SEEK_END
from typing import BinaryIO, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from vqtok.errors import MediaError
from vqtok.media.containers import mpeg, ogg, riff
from vqtok.media.containers.libav import LibavDecoder, format_of
from vqtok.media.containers.spliced import Link, Span, Spliced, Window
from vqtok.media.quiet import native_stderr_closed

_MAX_FRAMES = 1 << 40
"""More than any real file has. libsndfile returns larger numbers if the length is unknown."""
_FLAC, _OGG = b"fLaC", b"OggS"
_FLAC_START = re.compile(rb"fLaC[\0\x80]\0\0\x22")
_READ_AHEAD = 1 << 20
"""The maximum number of bytes that libsndfile reads ahead of decoding."""
_COUNT_FRAMES = 1 << 18


class Decoder(Protocol):
    """An audio file that can be decoded, any number of times.

    Raises:
        MediaError: The file is truncated or damaged.
    """

    sample_rate: int
    channels: int
    subtype: str
    """The kind of the samples by libsndfile's name, such as PCM_24; empty if libsndfile does not read them."""
    warnings: list[str]

    def count(self) -> int:
        """Return the number of samples."""

    def read(self, samples: int) -> Iterator[NDArray[np.float32]]:
        """Yield all audio `(samples, channels)` in pieces of about `samples` samples."""


def open_decoder(file: BinaryIO) -> Decoder:
    """Return a decoder for the audio at the current position of a file that can seek.

    Raises:
        MediaError: The audio is of no known format, truncated or damaged.
    """
    start = mpeg.skip_tags(file, file.tell())
    file.seek(start)
    head = file.read(16)
    if format := format_of(head):
        return LibavDecoder(file, format, start)
    if head.startswith(_OGG):
        links = ogg.find_links(file, start)
    else:
        links = riff.find_links(file, start)
        if not links and not head.startswith(_FLAC):
            links = mpeg.find_links(file, start)
    return SndfileDecoder(file, links or [Link((Span(start, file.seek(0, SEEK_END)),))])


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is only read from start to end. soundfile seeks after each read unless `seekable` is false."""

    def seekable(self) -> bool:
        return False


class SndfileDecoder:
    """Decodes the streams of a file one after another with libsndfile.

    Raises:
        MediaError: The streams differ in sample rate or channels, or cannot be read; also raised by all methods.
    """

    def __init__(self, file: BinaryIO, links: Sequence[Link]) -> None:
        self._file, self._links = file, links
        self.warnings = [link.warning for link in links if link.warning]
        self._samples = list[int | None]()
        """The number of samples of each stream; None if only decoding can find it out."""
        formats = set[tuple[int, int]]()
        for link in links:
            with self._opened(link) as (opened, _):
                formats.add((opened.samplerate, opened.channels))
                self.subtype: str = opened.subtype
                is_open_ended = link.is_open_ended or opened.frames > _MAX_FRAMES
                self._samples.append(None if is_open_ended else link.samples or opened.frames)
            if is_open_ended and not link.is_open_ended:
                self.warnings.append("the header does not state the length; the file is read up to its end")
        if len(formats) > 1:
            kinds = ", ".join(f"{rate} Hz x {channels}" for rate, channels in sorted(formats))
            raise MediaError(f"contains {len(links)} streams of different formats ({kinds}); split it")
        ((self.sample_rate, self.channels),) = formats

    def count(self) -> int:
        """Return the number of samples. Decode only if there is no other way."""
        return sum(
            sum(map(len, self._frames(link, None, _COUNT_FRAMES))) if samples is None else samples
            for link, samples in zip(self._links, self._samples, strict=True)
        )

    def read(self, samples: int) -> Iterator[NDArray[np.float32]]:
        """Yield all audio `(samples, channels)` in pieces of `samples` samples, fewer at the end of a stream."""
        for link, total in zip(self._links, self._samples, strict=True):
            yield from self._frames(link, total, samples)

    def _frames(self, link: Link, total: int | None, samples: int) -> Iterator[NDArray[np.float32]]:
        with self._opened(link) as (opened, stream):
            found = 0
            while total is None or found < total:
                wanted = samples if total is None else min(samples, total - found)
                with native_stderr_closed():
                    frames = opened.read(wanted, dtype="float32", always_2d=True)
                if not len(frames):
                    break
                found += len(frames)
                yield frames
            if total is not None and found < total:
                raise MediaError(f"is truncated: has {found} of {total} samples")
            if opened.format == "FLAC":
                _check_single(stream)

    @contextmanager
    def _opened(self, link: Link) -> Iterator[tuple[_SoundFile, Spliced]]:
        stream = Spliced(self._file, link.pieces)
        try:
            with native_stderr_closed():
                opened = _SoundFile(stream)
            with opened:
                yield opened, stream
        except soundfile.SoundFileRuntimeError as error:
            reason = str(getattr(error, "error_string", error))  # str(error) would contain the stream's repr.
            if "does not exist" in reason:  # The misleading message of libsndfile if libmpg123 finds no frame.
                reason = "Format not recognised."
            raise MediaError(f"is not readable audio: {reason}") from error


def _check_single(stream: Spliced) -> None:
    """Raise if another FLAC stream follows the one that has been read, which libsndfile ignores."""
    start = max(1, stream.tell() - _READ_AHEAD)
    window = Window(stream)
    if more := sum(1 for _ in window.search(_FLAC_START, start, window.size)):
        raise MediaError(f"contains {1 + more} concatenated FLAC files; split it")
