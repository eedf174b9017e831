"""Read and write audio files. Most formats are handled by libsndfile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from vqtok.errors import MediaError, UsageError
from vqtok.media.containers.decoding import Decoder, open_decoder
from vqtok.media.limits import BYTES, check_limits
from vqtok.media.media import Media, Source, open_source, save_target, source_name, target_suffix
from vqtok.media.resample import resample

logger = logging.getLogger(__name__)

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
_SET_ADD_PEAK_CHUNK = 0x1050  # a command of libsndfile, which soundfile has no method for
_READ_FRAMES = 1 << 22  # small, because a wrong length in a header must not lead to a huge allocation
_WRITE_FRAMES = 1 << 16  # libsndfile's Vorbis encoder overflows the stack if minutes of audio are written in one call


class Sound:
    """An audio file that is open for reading in blocks.

    Args:
        mono: Whether to average the channels.
    """

    def __init__(self, decoder: Decoder, name: str, mono: bool) -> None:
        self._decoder, self._name, self._mono = decoder, name, mono
        self.sample_rate: int = decoder.sample_rate
        self.channels: int = 1 if mono else decoder.channels
        self.subtype = decoder.subtype

    def blocks(self, samples: int) -> Iterator[NDArray[np.float32]]:
        """Yield all audio in blocks `(channels, samples)`. Values beyond full scale in float files are kept.

        Raises:
            MediaError: The file is truncated or damaged, or contains NaN or infinity.
        """
        for warning in self._decoder.warnings:
            logger.warning("%s: %s", self._name, warning)
        num_logged, is_empty = len(self._decoder.warnings), True
        for frames in self._decoder.read(samples):
            is_empty = False
            if not np.isfinite(frames).all():
                raise MediaError(f"{self._name}: has samples that are NaN or infinite")
            yield frames.mean(axis=1, dtype=np.float32)[None] if self._mono else np.ascontiguousarray(frames.T)
        if is_empty:
            raise MediaError(f"{self._name}: has no samples")
        for warning in self._decoder.warnings[num_logged:]:
            logger.warning("%s: %s", self._name, warning)


@contextmanager
def open_audio(source: Source, mono: bool = False) -> Iterator[Sound]:
    """Open an audio file for reading.

    Args:
        source: A path, the bytes of a file, or a stream, whose `name` is used in messages.
        mono: Whether to average the channels.

    Raises:
        MediaError: The source is not audio, or is empty, truncated or damaged.
    """
    with _opened(source) as decoder:
        yield Sound(decoder, source_name(source), mono)


def read_audio(source: Source, sample_rate: int | None = None, mono: bool = False) -> Media:
    """Read an audio file into memory.

    Args:
        source: As for `open_audio`.
        sample_rate: Resample to this rate in Hz.
        mono: Whether to average the channels.

    Raises:
        MediaError: As for `open_audio` and `Sound.blocks`, or the sample rates are too far apart.
    """
    with open_audio(source, mono) as audio:
        rate = audio.sample_rate
        data = np.concatenate(list(audio.blocks(_READ_FRAMES)), axis=1)
    if sample_rate is not None:
        try:
            data = resample(data, rate, sample_rate)
        except MediaError as error:
            raise MediaError(f"{source_name(source)}: {error}") from error
    return Media("audio", data, sample_rate or rate)


def audio_info(source: Source) -> tuple[int, int, int]:
    """Return `(samples, sample_rate, channels)`. The file is only decoded if it does not state its length.

    Raises:
        MediaError: As for `read_audio`, if the headers show it.
    """
    with _opened(source) as decoder:
        if not (samples := decoder.count()):
            raise MediaError(f"{source_name(source)}: has no samples")
        return samples, decoder.sample_rate, decoder.channels


def write_audio(media: Media, target: Path | BinaryIO, format: str | None = None) -> None:
    """Write an audio file. Values beyond full scale are clipped.

    Args:
        format: A suffix such as "flac"; by default the target's, else "wav" (16 bit).

    Raises:
        UsageError: The format is not supported.
        MediaError: The format does not support this sample rate or number of channels.
        OutputError: The file cannot be written.
    """
    assert media.sample_rate
    buffer, suffix = BytesIO(), target_suffix(target, format, default=".wav")
    with audio_writer(buffer, source_name(target), suffix, media.sample_rate, *media.data.shape) as write:
        write(media.data)
    save_target(buffer.getbuffer(), target)


@contextmanager
def audio_writer(
    target: BinaryIO,
    name: str,
    suffix: str,
    sample_rate: int,
    channels: int,
    samples: int = 0,
    subtype: str | None = None,
) -> Iterator[Callable[[NDArray[np.float32]], None]]:
    """Yield a function that writes a block of audio `(channels, samples)`, as `write_audio` does.

    Args:
        target: A file that can seek.
        name: The name of the file in messages.
        suffix: The suffix that decides the format, such as ".flac".
        samples: The total number of samples, if known.
        subtype: How samples are stored: PCM_16, PCM_24, PCM_32 or FLOAT; by default 16 bits, or compressed.

    Raises:
        UsageError, MediaError: As for `write_audio`.
    """
    if suffix not in _FORMATS:
        raise UsageError(f"{name}: cannot write audio as {suffix!r}; use .wav, .flac, .ogg, .opus, .mp3 or .aiff")
    if subtype is not None and not can_store(suffix, subtype):
        raise UsageError(f"{name}: cannot store samples as {subtype} in {suffix}; use .wav")
    container, default = _FORMATS[suffix]
    subtype = subtype or default
    what = f"{name}: cannot write {channels} channels at {sample_rate} Hz as {suffix}"
    try:
        check_limits(container, subtype, sample_rate, channels, samples)
    except MediaError as error:
        raise MediaError(f"{what}: {error}") from None

    def write(block: NDArray[np.float32]) -> None:
        for start in range(0, block.shape[1], _WRITE_FRAMES):
            file.write(_as_stored(block[:, start : start + _WRITE_FRAMES].T, subtype))

    sink = _Sink(target)
    try:
        with soundfile.SoundFile(sink, "w", sample_rate, channels, format=container, subtype=subtype) as file:
            if subtype == "FLOAT":
                # Else libsndfile adds a chunk with the time of writing, and the same audio would give other files.
                soundfile._snd.sf_command(file._file, _SET_ADD_PEAK_CHUNK, soundfile._ffi.NULL, 0)
            yield write
    except soundfile.LibsndfileError as error:
        raise sink.failure or MediaError(f"{what}: {error.error_string}") from error
    except AssertionError as error:  # soundfile raises this if fewer samples were written.
        raise sink.failure or error from None
    if sink.failure:
        raise sink.failure


def can_store(suffix: str, subtype: str) -> bool:
    """Return whether files with a suffix can store samples of a kind: PCM_16, PCM_24, PCM_32 or FLOAT."""
    container, default = _FORMATS.get(suffix, ("", ""))
    return default == "PCM_16" and subtype in BYTES and soundfile.check_format(container, subtype)


def _as_stored(frames: NDArray[np.float32], subtype: str) -> NDArray[Any]:
    """Return samples as libsndfile stores them without rounding, since it would round down."""
    if subtype == "FLOAT":
        return frames
    frames = frames.clip(-1, 1)
    if subtype not in BYTES:
        return frames
    bits = 8 * BYTES[subtype]
    limit = 2 ** (bits - 1)
    integers = np.rint(frames.astype(np.float64) * limit).clip(-limit, limit - 1).astype(np.int64)
    # libsndfile takes the upper bits of 16 or 32.
    stored: NDArray[Any] = integers.astype(np.int16) if bits == 16 else (integers << (32 - bits)).astype(np.int32)
    return stored


class _Sink:
    """The file object that libsndfile writes to. It keeps exceptions, which would get lost in the C library."""

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
def _opened(source: Source) -> Iterator[Decoder]:
    """Open an audio file for decoding. Errors while opening or using it begin with its name."""
    name = source_name(source)
    with open_source(source) as file:
        try:
            yield open_decoder(file)
        except MediaError as error:
            if str(error).startswith(f"{name}:"):
                raise
            raise MediaError(f"{name}: {error}") from error
