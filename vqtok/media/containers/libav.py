"""Decode AAC, WMA and the audio of MP4, WebM and Matroska files with PyAV."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_END
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import MediaError
from vqtok.media.containers.spliced import Span, Spliced
from vqtok.media.kinds import is_installed

if TYPE_CHECKING:
    from av.container import InputContainer

_FORMATS = {
    "mov": re.compile(rb"....ftyp", re.DOTALL),
    "matroska": re.compile(rb"\x1aE\xdf\xa3"),
    "asf": re.compile(rb"0&\xb2u\x8ef\xcf\x11"),
    "aac": re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"),
}
"""libav's names of the supported formats and their first bytes. Others, such as playlists, could open further files."""
_PADDING_SAMPLES = 4096
"""The maximum number of samples that a codec adds at the end."""
_MISSING_SECONDS = 0.5
"""The tolerance for durations that containers state."""


def format_of(head: bytes) -> str | None:
    """Return libav's name of the format of a file by its first bytes; None if libav does not decode it here."""
    return next((name for name, pattern in _FORMATS.items() if pattern.match(head)), None)


class LibavDecoder:
    """Decodes the first audio stream of a file.

    Raises:
        MediaError: There is none, or it is damaged; also raised by all methods.
    """

    subtype = ""

    def __init__(self, file: BinaryIO, format: str, start: int) -> None:
        if not is_installed("av"):
            raise MediaError("requires PyAV: pip install 'vqtok[av]', or convert it to FLAC")
        self._file, self._span, self._format = file, Span(start, file.seek(0, SEEK_END)), format
        with self._opened() as container:
            self.warnings = ["only its audio is read, not the video"] if _has_video(container) else []
            if len(container.streams.audio) > 1:
                self.warnings.append("only the first of its audio streams is read")
            frame = next(container.decode(audio=0), None)
            if frame is None:
                raise MediaError("has no samples")
            self.sample_rate: int = frame.sample_rate
            self.channels: int = len(frame.layout.channels)

    def count(self) -> int:
        """Return the number of samples. The file is decoded if it does not state it exactly."""
        with self._opened() as container:
            stated, is_exact = _stated_samples(container, self.sample_rate)
        if is_exact:
            return stated
        return sum(len(frames) for frames in self.read(0))

    def read(self, samples: int) -> Iterator[NDArray[np.float32]]:
        """Yield all audio `(samples, channels)` in pieces of at least `samples` samples; the last may have fewer."""
        import av

        with self._opened() as container:
            resampler = av.AudioResampler(format="fltp")
            (stated, is_exact), found = _stated_samples(container, self.sample_rate), 0
            held: list[NDArray[np.float32]] = []
            for decoded in container.decode(audio=0):
                if decoded.sample_rate != self.sample_rate or len(decoded.layout.channels) != self.channels:
                    raise MediaError("changes its sample rate or channels; convert it to FLAC")
                for frame in resampler.resample(decoded):
                    piece = np.asarray(frame.to_ndarray().T, np.float32)
                    if is_exact and 0 <= stated - found < len(piece) and len(piece) <= _PADDING_SAMPLES:
                        piece = piece[: stated - found]  # The codec has padded its last frame.
                    found += len(piece)
                    held.append(piece)
                if sum(map(len, held)) >= max(samples, 1):
                    yield np.concatenate(held)
                    held.clear()
            if held:
                yield np.concatenate(held)
            if stated - found > _MISSING_SECONDS * self.sample_rate:
                message = f"is truncated: has {found} of {stated} samples"
                if is_exact:
                    raise MediaError(message)
                self.warnings.append(message)

    @contextmanager
    def _opened(self) -> Iterator[InputContainer]:
        import av

        av.logging.set_level(None)
        file = Spliced(self._file, [self._span])
        try:
            with av.open(file, "r", format=self._format, metadata_errors="replace") as container:
                if not container.streams.audio:
                    raise MediaError("has no audio stream")
                if container.streams.audio[0].codec_context is None:  # Decoding would crash some versions.
                    raise MediaError("is damaged: has no known codec")
                yield container
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(f"is damaged: {getattr(error, 'strerror', None) or error}") from error


def _has_video(container: Any) -> bool:
    """Return whether the file has a video stream that is not only a cover image."""
    return any(not stream.disposition & stream.disposition.attached_pic for stream in container.streams.video)


def _stated_samples(container: InputContainer, sample_rate: int) -> tuple[int, bool]:
    """Return the number of samples that the file states, 0 if none, and whether it is exact."""
    stream = container.streams.audio[0]
    if container.format.name.startswith("mov") and stream.duration and stream.time_base:
        return round(stream.duration * stream.time_base * sample_rate), True
    if container.format.name == "aac" or container.streams.video:
        return 0, False
    return round((container.duration or 0) * sample_rate / 1_000_000), False
