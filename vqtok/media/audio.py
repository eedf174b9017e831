"""Read and write sounds, through libsndfile."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import SEEK_END, SEEK_SET, BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from vqtok.errors import MediaError, UsageError
from vqtok.media.media import Media, Source, open_source, save_target, source_name, target_suffix
from vqtok.media.resample import resample

_FORMATS = {  # suffix: libsndfile's format and subtype
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".oga": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".aiff": ("AIFF", "PCM_16"),
    ".aif": ("AIFF", "PCM_16"),
    ".au": ("AU", "PCM_16"),
    ".caf": ("CAF", "PCM_16"),
    ".w64": ("W64", "PCM_16"),
    ".rf64": ("RF64", "PCM_16"),
}
_READ_FRAMES = 1 << 22  # few enough that a false length in the header does no harm
_WRITE_FRAMES = 1 << 16  # libsndfile's Vorbis encoder overflows the stack when given minutes in one call
_MAX_FRAMES = 1 << 40  # above all that is real: libsndfile's way to say that the length is unknown
_STREAMED_BYTES = 0x7FFF0000  # programs that write to a pipe put such sizes into the header
_MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255


class Sound:
    """A sound that is open for reading, block by block.

    Args:
        mono: take the mean of the channels.
    """

    def __init__(self, file: soundfile.SoundFile, name: str, mono: bool) -> None:
        self._file, self._name, self._mono = file, name, mono
        self.sample_rate: int = file.samplerate
        self.samples: int = file.frames
        """As the header says."""
        self.channels: int = 1 if mono else file.channels

    def blocks(self, samples: int) -> Iterator[NDArray[np.float32]]:
        """Read to the end in blocks `(channels, samples)`; values beyond full scale in float files are kept.

        Raises:
            MediaError: truncated or damaged, or with NaN or infinity in it.
        """
        found = 0
        while found < self.samples:
            frames = self._file.read(min(samples, self.samples - found), dtype="float32", always_2d=True)
            found += len(frames)
            if not len(frames):
                raise MediaError(f"{self._name}: is truncated: {found} of {self.samples} samples are there")
            if not np.isfinite(frames).all():
                raise MediaError(f"{self._name}: has samples that are NaN or infinite")
            yield frames.mean(axis=1, dtype=np.float32)[None] if self._mono else np.ascontiguousarray(frames.T)


@contextmanager
def open_audio(source: Source, mono: bool = False) -> Iterator[Sound]:
    """Open a sound for reading.

    Args:
        source: a path, the bytes of a file, or a stream; a stream's `name` stands in messages.
        mono: take the mean of the channels.

    Raises:
        MediaError: not a sound, empty, truncated or damaged.
    """
    with _opened(source) as file:
        yield Sound(file, source_name(source), mono)


def read_audio(source: Source, sample_rate: int | None = None, mono: bool = False) -> Media:
    """Read a sound whole.

    Args:
        source: as for `open_audio`.
        sample_rate: resample to this many Hz.
        mono: take the mean of the channels.

    Raises:
        MediaError: as `open_audio` and `Sound.blocks`, or a sample rate that is too far off.
    """
    with open_audio(source, mono) as sound:
        rate = sound.sample_rate
        data = np.concatenate(list(sound.blocks(_READ_FRAMES)), axis=1)
    if sample_rate is not None:
        try:
            data = resample(data, rate, sample_rate)
        except MediaError as error:
            raise MediaError(f"{source_name(source)}: {error}") from error
    return Media("audio", data, sample_rate or rate)


def audio_info(source: Source) -> tuple[int, int, int]:
    """Return `(samples, sample_rate, channels)` without decoding.

    Raises:
        MediaError: as `read_audio`, as far as the header tells.
    """
    with _opened(source) as sound:
        return sound.frames, sound.samplerate, sound.channels


def write_audio(media: Media, target: Path | BinaryIO, format: str | None = None) -> None:
    """Write a sound; values beyond full scale are clipped.

    Args:
        format: a suffix such as "flac"; by default the target's, else "wav" (16 bit).

    Raises:
        UsageError: no format goes by that suffix.
        MediaError: the format cannot hold this sample rate or number of channels.
        OutputError: the path cannot be written.
    """
    assert media.sample_rate
    buffer, suffix = BytesIO(), target_suffix(target, format, default=".wav")
    with audio_writer(buffer, source_name(target), suffix, media.sample_rate, len(media.data)) as write:
        write(media.data)
    save_target(buffer.getbuffer(), target)


@contextmanager
def audio_writer(
    target: BinaryIO, name: str, suffix: str, sample_rate: int, channels: int
) -> Iterator[Callable[[NDArray[np.float32]], None]]:
    """Write a sound block by block `(channels, samples)`, as `write_audio` does.

    Args:
        target: a file that can seek.
        name: what to call it in messages.
        suffix: such as ".flac".
    """
    if suffix not in _FORMATS:
        raise UsageError(f"{name}: cannot write sound as {suffix!r}; use .wav, .flac, .ogg, .opus, .mp3 or .aiff")
    container, subtype = _FORMATS[suffix]

    def write(block: NDArray[np.float32]) -> None:
        for start in range(0, block.shape[1], _WRITE_FRAMES):
            frames = block[:, start : start + _WRITE_FRAMES].T.clip(-1, 1)
            if subtype == "PCM_16":  # libsndfile would round down
                frames = np.rint(frames * 32768).clip(-32768, 32767).astype(np.int16)
            sound.write(frames)

    sink = _Sink(target)
    try:
        with soundfile.SoundFile(sink, "w", sample_rate, channels, format=container, subtype=subtype) as sound:
            yield write
    except soundfile.LibsndfileError as error:
        what = f"{channels} channels at {sample_rate} Hz"
        raise sink.failure or MediaError(f"{name}: cannot write {what} as {suffix}: {error.error_string}") from error
    except AssertionError as error:  # so soundfile says that less was written
        raise sink.failure or error from None
    if sink.failure:
        raise sink.failure


class _Stream:
    """What libsndfile calls to read a file: in damaged ones it seeks to before the start."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        with suppress(OSError, ValueError):
            self._file.seek(offset, whence)
        return self._file.tell()


class _Sink:
    """What libsndfile calls to write a file: errors, and Ctrl-C, would be lost on their way through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read, self.tell, self.seek = file.read, file.tell, file.seek
        self.failure: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except BaseException as error:
            self.failure = error
            return 0


@contextmanager
def _opened(source: Source) -> Iterator[soundfile.SoundFile]:
    """Open a sound that is whole, as far as the header tells; what libsndfile raises becomes a MediaError."""
    name = source_name(source)
    with open_source(source) as file:
        try:
            with soundfile.SoundFile(_Stream(file)) as sound:
                if sound.frames == 0:
                    raise MediaError(f"{name}: has no samples")
                if sound.frames > _MAX_FRAMES:
                    raise MediaError(f"{name}: the header does not tell the length; re-encode the file")
                if _is_cut_short(sound, file):
                    raise MediaError(f"{name}: is truncated")
                yield sound
        except soundfile.SoundFileRuntimeError as error:
            reason = getattr(error, "error_string", error)  # str(error) would show the stream's repr
            raise MediaError(f"{name}: not a readable sound: {reason}") from error


def _is_cut_short(sound: soundfile.SoundFile, file: BinaryIO) -> bool:
    """Tell whether less is there than the header says or, in Ogg, whether the last page is missing.

    libsndfile reads on in both cases, and says what it found only in its log.
    """
    if sound.format == "OGG":
        return not _ends_with_last_page(file)
    sizes = re.findall(
        r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)",
        sound.extra_info,
        re.MULTILINE,
    )
    return any(int(found) < int(declared) < _STREAMED_BYTES for declared, found in sizes)


def _ends_with_last_page(file: BinaryIO) -> bool:
    """Tell whether an Ogg file's last page is whole and marked as the end (RFC 3533, section 6)."""
    position = file.tell()
    file.seek(max(0, file.seek(0, SEEK_END) - _MAX_OGG_PAGE_BYTES))
    tail = file.read()
    file.seek(position)
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or not page[5] & 4:
        return False
    return len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
