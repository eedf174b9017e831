"""The limits of audio file formats. They are checked first, because libsndfile's Vorbis encoder crashes beyond them."""

from __future__ import annotations

from typing import NamedTuple

from vqtok.errors import MediaError

_GIB_4 = 1 << 32
_HEADER_BYTES = 4096


class _Limits(NamedTuple):
    """The limits of a format of libsndfile, found by experiment."""

    channels: int
    rates: range | tuple[int, ...]
    file_bytes: int = 1 << 62


BYTES = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4}
"""The kinds of uncompressed samples that can be written, and the bytes of each sample."""
_LIMITS = {
    "WAV": _Limits(1024, range(1, 1 << 31), _GIB_4),
    "AIFF": _Limits(1024, range(1, 800_000_001), _GIB_4),
    "AU": _Limits(1024, range(1, 1 << 31), _GIB_4),
    "CAF": _Limits(1024, range(1, 1 << 31)),
    "W64": _Limits(1024, range(1, 1 << 31)),
    "RF64": _Limits(1024, range(1, 1 << 31)),
    "FLAC": _Limits(8, range(1, 655_351)),
    "VORBIS": _Limits(255, range(1, 200_001)),
    "OPUS": _Limits(255, (8000, 12000, 16000, 24000, 48000)),
    "MP3": _Limits(2, (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
}


def check_limits(format: str, subtype: str, sample_rate: int, channels: int, samples: int = 0) -> None:
    """Raise if a format of libsndfile does not support this audio.

    Raises:
        MediaError: There are too many channels or samples, or the sample rate is not supported.
    """
    limits = _LIMITS[subtype if format == "OGG" else format]
    if not 1 <= channels <= limits.channels:
        instead = "use .wav" if channels <= _LIMITS["WAV"].channels else "no format supports so many"
        raise MediaError(f"it supports at most {limits.channels} channels; {instead}")
    rates = limits.rates
    if sample_rate not in rates or (format == "FLAC" and sample_rate > 65535 and sample_rate % 10):
        known = f"{', '.join(map(str, rates))} Hz" if isinstance(rates, tuple) else f"up to {rates[-1]} Hz"
        known += ", in steps of 10 Hz above 65535" if format == "FLAC" else ""
        raise MediaError(f"it supports sample rates of {known}; use .wav")
    if BYTES.get(subtype, 2) * channels * samples > limits.file_bytes - _HEADER_BYTES:
        raise MediaError("it supports at most 4 GiB; use .w64 or .flac")
