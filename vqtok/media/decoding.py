"""Decode audio files: find out who can, and hand libsndfile what it reads rightly."""

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
from vqtok.media import mpeg, ogg, riff
from vqtok.media.libav import LibavDecoder, format_of
from vqtok.media.quiet import native_stderr_closed
from vqtok.media.spliced import Link, Span, Spliced, Window

_MAX_FRAMES = 1 << 40
"""Above all that is real: libsndfile's way to say that the length is unknown."""
_FLAC, _OGG = b"fLaC", b"OggS"
_FLAC_START = re.compile(rb"fLaC[\0\x80]\0\0\x22")
_READ_AHEAD = 1 << 20
"""Bytes that libsndfile reads at most before it decodes them."""
_COUNT_FRAMES = 1 << 18


class Decoder(Protocol):
    """An audio file that can be decoded, any number of times.

    Raises:
        MediaError: truncated or damaged.
    """

    sample_rate: int
    channels: int
    warnings: list[str]

    def count(self) -> int:
        """Return the number of samples."""

    def read(self, samples: int) -> Iterator[NDArray[np.float32]]:
        """Yield all frames `(samples, channels)` in pieces of about so many samples."""


def open_decoder(file: BinaryIO) -> Decoder:
    """Find a decoder for what follows in a file that can seek.

    Raises:
        MediaError: no known kind of audio, truncated or damaged.
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
    """A file that is read from its start to its end: soundfile seeks after each read, which not all files can."""

    def seekable(self) -> bool:
        return False


class SndfileDecoder:
    """Decode the streams that are joined in a file one after another, through libsndfile.

    Raises:
        MediaError: they differ in sample rate or channels, or cannot be read; so do all methods.
    """

    def __init__(self, file: BinaryIO, links: Sequence[Link]) -> None:
        self._file, self._links = file, links
        self.warnings = [link.warning for link in links if link.warning]
        self._samples = list[int | None]()
        """Of each link; None where only decoding shows."""
        formats = set[tuple[int, int]]()
        for link in links:
            with self._opened(link) as (sound, _):
                formats.add((sound.samplerate, sound.channels))
                is_open_ended = link.is_open_ended or sound.frames > _MAX_FRAMES
                self._samples.append(None if is_open_ended else link.samples or sound.frames)
            if is_open_ended and not link.is_open_ended:
                self.warnings.append("the header does not say how long it is; all that is there is read")
        if len(formats) > 1:
            kinds = ", ".join(f"{rate} Hz x {channels}" for rate, channels in sorted(formats))
            raise MediaError(f"{len(links)} streams of different form are joined in it ({kinds}); split it")
        ((self.sample_rate, self.channels),) = formats

    def count(self) -> int:
        """Return the number of samples, by decoding where nothing else shows it."""
        return sum(
            sum(map(len, self._frames(link, None, _COUNT_FRAMES))) if samples is None else samples
            for link, samples in zip(self._links, self._samples, strict=True)
        )

    def read(self, samples: int) -> Iterator[NDArray[np.float32]]:
        """Yield all frames `(samples, channels)` in pieces of so many samples, less at the end of a stream."""
        for link, total in zip(self._links, self._samples, strict=True):
            yield from self._frames(link, total, samples)

    def _frames(self, link: Link, total: int | None, samples: int) -> Iterator[NDArray[np.float32]]:
        with self._opened(link) as (sound, stream):
            found = 0
            while total is None or found < total:
                wanted = samples if total is None else min(samples, total - found)
                with native_stderr_closed():
                    frames = sound.read(wanted, dtype="float32", always_2d=True)
                if not len(frames):
                    break
                found += len(frames)
                yield frames
            if total is not None and found < total:
                raise MediaError(f"is truncated: {found} of {total} samples are there")
            if sound.format == "FLAC":
                _refuse_joined(stream)

    @contextmanager
    def _opened(self, link: Link) -> Iterator[tuple[_SoundFile, Spliced]]:
        stream = Spliced(self._file, link.pieces)
        try:
            with native_stderr_closed():
                sound = _SoundFile(stream)
            with sound:
                yield sound, stream
        except soundfile.SoundFileRuntimeError as error:
            reason = str(getattr(error, "error_string", error))  # str(error) would show the stream's repr
            if "does not exist" in reason:  # what libsndfile says where libmpg123 finds no frame
                reason = "Format not recognised."
            raise MediaError(f"not a readable sound: {reason}") from error


def _refuse_joined(stream: Spliced) -> None:
    """Refuse a FLAC stream that has been read with another one after it, which libsndfile passes over."""
    start = max(1, stream.tell() - _READ_AHEAD)
    window = Window(stream)
    if more := sum(1 for _ in window.search(_FLAC_START, start, window.size)):
        raise MediaError(f"{1 + more} FLAC files are joined in it; split it")
