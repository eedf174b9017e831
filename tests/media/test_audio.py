"""Audio files in all formats of libsndfile, valid and damaged."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vqtok.errors import MediaError, OutputError, UsageError
from vqtok.media.audio import _FORMATS, audio_info, audio_writer, open_audio, read_audio, write_audio
from vqtok.media.kinds import AUDIO_SUFFIXES
from vqtok.media.media import Media

RATE = 24000


def chord(samples: int = RATE // 2, channels: int = 1) -> NDArray[np.float32]:
    time = np.arange(samples) / RATE
    tones = [
        0.4 * np.sin(2 * np.pi * 220 * (k + 1) * time) + 0.2 * np.sin(2 * np.pi * 1000 * time) for k in range(channels)
    ]
    return np.stack(tones).astype(np.float32)


def encoded(x: NDArray[np.float32], format: str, subtype: str | None = None, rate: int = RATE) -> bytes:
    buffer = BytesIO()
    soundfile.write(buffer, x.T, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def snr(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.mean(x**2) / max(np.mean((x - y) ** 2), 1e-20)))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("format", "subtype", "least_snr"),
    [
        ("WAV", "PCM_U8", 30),
        ("WAV", "PCM_16", 80),
        ("WAV", "PCM_24", 120),
        ("WAV", "PCM_32", 130),
        ("WAV", "FLOAT", 150),
        ("WAV", "DOUBLE", 150),
        ("WAV", "ULAW", 30),
        ("WAV", "ALAW", 30),
        ("RF64", "PCM_16", 80),
        ("W64", "PCM_16", 80),
        ("FLAC", "PCM_16", 80),
        ("FLAC", "PCM_24", 120),
        ("AIFF", "PCM_S8", 30),
        ("AIFF", "PCM_16", 80),
        ("AIFF", "FLOAT", 150),
        ("AU", "PCM_16", 80),
        ("CAF", "PCM_16", 80),
        ("OGG", "VORBIS", 15),
        ("OGG", "OPUS", 15),
        ("MP3", "MPEG_LAYER_III", 15),
    ],
)
def test_read_every_subtype(format: str, subtype: str, least_snr: float, channels: int) -> None:
    x = chord(channels=channels)
    data = encoded(x, format, subtype)
    media = read_audio(data)
    assert (media.modality, media.sample_rate) == ("audio", RATE)
    assert media.data.shape == x.shape
    assert media.data.dtype == np.float32
    assert media.data.flags.c_contiguous
    assert snr(x, media.data) > least_snr
    assert audio_info(data) == (x.shape[1], RATE, channels)


@pytest.mark.parametrize("suffix", sorted(_FORMATS))
def test_write_by_suffix_and_read_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix.upper()}"
    x = chord(channels=2)
    write_audio(Media("audio", x, RATE), path)
    assert suffix in AUDIO_SUFFIXES
    assert soundfile.info(str(path)).format == _FORMATS[suffix][0]
    back = read_audio(path)
    assert back.sample_rate == RATE
    assert back.data.shape == x.shape
    assert snr(x, back.data) > 15


def test_write_takes_wav_unless_told_otherwise(tmp_path: Path) -> None:
    media = Media("audio", chord(), RATE)
    write_audio(media, tmp_path / "x")
    assert (tmp_path / "x").read_bytes()[:4] == b"RIFF"
    write_audio(media, tmp_path / "x.wav", format="flac")
    assert (tmp_path / "x.wav").read_bytes()[:4] == b"fLaC"
    stream = BytesIO()
    write_audio(media, stream)
    assert stream.getvalue() == (tmp_path / "x").read_bytes()


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.integers(-32768, 32767), min_size=1, max_size=200), channels=st.integers(1, 8))
def test_16_bit_samples_survive_unchanged(values: list[int], channels: int) -> None:
    x = np.tile(np.float32(values) / np.float32(32768), (channels, 1))
    stream = BytesIO()
    write_audio(Media("audio", x, 8000), stream, format="flac")
    assert np.array_equal(read_audio(stream.getvalue()).data, x)


def test_values_beyond_full_scale_are_clipped_on_writing_but_kept_on_reading() -> None:
    x = np.float32([[1.5, -1.5, 1.0, -1.0, 0.5]])
    stream = BytesIO()
    write_audio(Media("audio", x, RATE), stream)
    np.testing.assert_allclose(read_audio(stream.getvalue()).data, [[1, -1, 1, -1, 0.5]], atol=1 / 32768)
    assert np.array_equal(read_audio(encoded(x, "WAV", "FLOAT")).data, x)


def test_minutes_of_vorbis_can_be_written() -> None:
    stream = BytesIO()
    samples = 300 * 8000
    write_audio(Media("audio", np.zeros((1, samples), np.float32), 8000), stream, format="ogg")
    assert audio_info(stream.getvalue())[0] == samples


def test_sources_are_paths_bytes_and_streams(tmp_path: Path) -> None:
    x = np.rint(chord() * 1000) / 1000
    path = tmp_path / "x.wav"
    path.write_bytes(encoded(x, "WAV", "FLOAT"))
    with path.open("rb") as stream:
        for source in (path, path.read_bytes(), stream):
            assert np.array_equal(read_audio(source).data, x)


def test_mono_and_sample_rate() -> None:
    x = chord(channels=8)
    media = read_audio(encoded(x, "WAV", "FLOAT"), sample_rate=16000, mono=True)
    assert media.sample_rate == 16000
    assert media.data.shape == (1, x.shape[1] * 2 // 3)
    time = np.arange(media.data.shape[1]) / 16000
    expected = 0.2 * np.sin(2 * np.pi * 1000 * time)
    expected += np.mean([0.4 * np.sin(2 * np.pi * 220 * (k + 1) * time) for k in range(8)], axis=0)
    np.testing.assert_allclose(media.data[0, 500:-500], expected[500:-500], atol=1e-4)


def test_one_sample_is_a_sound() -> None:
    media = read_audio(encoded(np.float32([[0.25]]), "WAV", "PCM_16"), sample_rate=RATE * 2)
    assert media.data.shape == (1, 2)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(value: float, subtype: str, tmp_path: Path) -> None:
    x = chord(100)
    x[0, 50] = value
    path = tmp_path / "odd.wav"
    path.write_bytes(encoded(x, "WAV", subtype))
    with pytest.raises(MediaError, match=r"odd\.wav: has samples that are NaN or infinite"):
        read_audio(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"no sound at all, but words", "is not readable audio: Format not recognised"),
        (encoded(chord(0), "WAV"), "has no samples"),
        (encoded(chord(1000), "WAV", rate=1), "cannot resample from 1 Hz to 24000 Hz"),
    ],
)
def test_what_is_no_sound_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.wav"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=rf"odd\.wav: {message}") as caught:
        read_audio(path, sample_rate=24000)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        *[(format, "PCM_16") for format in ("WAV", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC")],
        *[("WAV", "FLOAT"), ("OGG", "VORBIS"), ("OGG", "OPUS")],
    ],
)
def test_a_truncated_sound_is_refused(format: str, subtype: str) -> None:
    data = encoded(chord(2 * RATE), format, subtype)
    for tenth in range(10):
        stream = BytesIO(data[: len(data) * tenth // 10])
        stream.name = "cut"
        with pytest.raises(MediaError, match=r"^cut: "):
            read_audio(stream)


def test_a_truncated_mp3_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(chord(2 * RATE), "MP3")
    with pytest.raises(MediaError, match="input: is truncated"):
        read_audio(data[: len(data) // 2])
    capfd.readouterr()  # libmpg123 prints to stderr by itself.


def test_a_header_written_to_a_pipe_is_not_taken_for_truncation() -> None:
    x = chord(1000)
    data = bytearray(encoded(x, "WAV", "PCM_16"))
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    assert read_audio(bytes(data)).data.shape == x.shape


def flac(x: NDArray[np.float32], total: int) -> bytes:
    """Return a FLAC file whose header states so many samples."""
    data = bytearray(encoded(x, "FLAC"))
    data[21] = data[21] & 0xF0 | total >> 32
    data[22:26] = struct.pack(">I", total & 0xFFFFFFFF)
    return bytes(data)


def test_a_flac_header_with_a_false_length_is_refused() -> None:
    with pytest.raises(MediaError, match="input: is truncated: has 1000 of"):
        read_audio(flac(chord(1000), (1 << 36) - 1))


def test_flac_of_unknown_length_is_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    x = chord(100_000)
    assert audio_info(flac(x, 0)) == (100_000, RATE, 1)
    assert not caplog.records  # The warning is not logged again when the length is asked for.
    assert np.array_equal(read_audio(flac(x, 0)).data, read_audio(encoded(x, "FLAC")).data)
    assert caplog.messages == ["input: the header does not state the length; the file is read up to its end"]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damage_is_a_media_error_or_harmless(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["WAV", "AIFF", "FLAC", "OGG", "AU"]))
    content = bytearray(encoded(chord(300), format))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(200, len(content) - 1)))] = data.draw(st.integers(0, 255))
    with suppress(MediaError):
        assert np.isfinite(read_audio(bytes(content)).data).all()


@pytest.mark.parametrize("name", ["missing.wav", "."])
def test_a_missing_file_is_a_media_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot be read"):
        read_audio(tmp_path / name)


def test_writing_refuses_what_cannot_be(tmp_path: Path) -> None:
    media = Media("audio", chord(), RATE)
    with pytest.raises(UsageError, match=r"x\.xyz: cannot write audio as '\.xyz'; use \.wav"):
        write_audio(media, tmp_path / "x.xyz")
    with pytest.raises(MediaError, match=r"x\.mp3: cannot write 1 channels at 22254 Hz as \.mp3"):
        write_audio(Media("audio", chord(), 22254), tmp_path / "x.mp3")
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        write_audio(media, tmp_path / "missing" / "x.wav")
    assert not list(tmp_path.iterdir())


LIMITS = [  # suffix, sample rate, channels, and a part of the error
    (".ogg", 200_001, 1, "up to 200000 Hz"),
    (".ogg", 250_000, 2, "up to 200000 Hz"),
    (".oga", 2_147_483_647, 1, "up to 200000 Hz"),
    (".ogg", 48_000, 256, "at most 255 channels"),
    (".opus", 44_100, 1, "8000, 12000, 16000, 24000, 48000 Hz"),
    (".opus", 48_000, 256, "at most 255 channels"),
    (".mp3", 96_000, 1, "44100, 48000 Hz"),
    (".mp3", 48_000, 3, "at most 2 channels"),
    (".flac", 655_360, 1, "up to 655350 Hz, in steps of 10 Hz above 65535"),
    (".flac", 65_536, 1, "in steps of 10 Hz above 65535"),
    (".flac", 48_000, 9, "at most 8 channels"),
    (".aiff", 800_000_001, 1, "up to 800000000 Hz"),
    *[(suffix, 48_000, 1025, "at most 1024 channels") for suffix in (".wav", ".aif", ".au", ".caf", ".w64", ".rf64")],
]


@pytest.mark.parametrize(("suffix", "rate", "channels", "message"), LIMITS)
def test_the_limits_of_formats_are_known_before_libsndfile_is_called(
    suffix: str, rate: int, channels: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise AssertionError("libsndfile was called, and might have crashed")

    monkeypatch.setattr("vqtok.media.audio.soundfile.SoundFile", crash)
    expected = rf"x\{suffix}: cannot write {channels} channels at {rate} Hz as \{suffix}: it supports .*{message}.*; "
    with pytest.raises(MediaError, match=expected):
        write_audio(Media("audio", np.zeros((channels, 10), np.float32), rate), tmp_path / f"x{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "rate", "channels"),
    [
        *[(".ogg", 200_000, 1), (".ogg", 1, 1), (".ogg", 48_000, 255), (".opus", 48_000, 255), (".opus", 8000, 1)],
        *[(".mp3", rate, 2) for rate in (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)],
        *[(".flac", rate, 8) for rate in (1, 65535, 65540, 96000, 655_350)],
        *[(suffix, 2_147_483_647, 1024) for suffix in (".wav", ".au", ".caf", ".w64", ".rf64")],
        (".aiff", 800_000_000, 1024),
    ],
)
def test_at_the_limits_formats_can_be_written(suffix: str, rate: int, channels: int) -> None:
    stream = BytesIO()
    write_audio(Media("audio", np.zeros((channels, 1000), np.float32), rate), stream, suffix)
    assert audio_info(stream.getvalue()) == (1000, rate, channels)


def test_more_than_a_header_of_32_bits_can_say_is_refused_at_once() -> None:
    for suffix, samples in ((".wav", 1 << 31), (".aiff", 1 << 30), (".au", 1 << 31)):
        with (
            pytest.raises(MediaError, match=rf"as \{suffix}: it supports at most 4 GiB; use \.w64 or \.flac"),
            audio_writer(BytesIO(), "x", suffix, RATE, 2, samples),
        ):
            pass


class Full(BytesIO):
    """A file on a disk that becomes full, or a write that the user interrupts."""

    def __init__(self, failure: BaseException, after: int) -> None:
        super().__init__()
        self.failure, self.after = failure, after

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.after:
            raise self.failure
        return super().write(data)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [10, 1000])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_failed_writes_are_heard_of(failure: BaseException, after: int, suffix: str) -> None:
    def write_all() -> None:
        with audio_writer(Full(failure, after), "x", suffix, RATE, 1) as write:
            for block in np.split(chord(3 * RATE), 3, axis=1):
                write(block)

    with pytest.raises(type(failure)) as caught:
        write_all()
    assert caught.value is failure


def test_blocks_do_not_show() -> None:
    x = chord(1000, channels=2)
    for mono in (False, True):
        with open_audio(encoded(x, "WAV", "FLOAT"), mono) as sound:
            assert (sound.sample_rate, sound.channels) == (RATE, 1 if mono else 2)
            blocks = list(sound.blocks(300))
        assert [block.shape[1] for block in blocks] == [300, 300, 300, 100]
        assert np.array_equal(np.concatenate(blocks, axis=1), read_audio(encoded(x, "WAV", "FLOAT"), mono=mono).data)


def test_pipes_are_read() -> None:
    x = chord(1000)
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(encoded(x, "WAV", "PCM_16"))
    with os.fdopen(reading, "rb") as pipe:
        assert read_audio(pipe).data.shape == x.shape


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff", ".w64"])
@pytest.mark.parametrize(("subtype", "bits"), [("PCM_16", 16), ("PCM_24", 24)])
def test_samples_are_stored_in_more_bits_and_rounded_to_the_nearest(suffix: str, subtype: str, bits: int) -> None:
    steps = np.array([-(2 ** (bits - 1)), -3, -0.6, 0.4, 0.6, 2 ** (bits - 1)])
    file = BytesIO()
    with audio_writer(file, "x", suffix, 16_000, 1, subtype=subtype) as write:
        write((steps / 2 ** (bits - 1)).astype(np.float32)[None])
    file.seek(0)
    assert soundfile.info(file).subtype == subtype
    file.seek(0)
    stored = soundfile.read(file, dtype="int32")[0] >> (32 - bits)
    assert stored.tolist() == [-(2 ** (bits - 1)), -3, -1, 0, 1, 2 ** (bits - 1) - 1]


def test_float_samples_keep_what_is_beyond_full_scale() -> None:
    file = BytesIO()
    with audio_writer(file, "x", ".wav", 16_000, 1, subtype="FLOAT") as write:
        write(np.array([[1.5, -2.0, 1e-8]], np.float32))
    file.seek(0)
    np.testing.assert_array_equal(read_audio(file).data, np.array([[1.5, -2.0, 1e-8]], np.float32))
    assert b"PEAK" not in file.getvalue()  # It would contain the time.


@pytest.mark.parametrize(("suffix", "subtype"), [(".mp3", "PCM_24"), (".flac", "FLOAT"), (".wav", "PCM_7")])
def test_formats_refuse_kinds_of_samples_that_they_cannot_store(suffix: str, subtype: str) -> None:
    with (
        pytest.raises(UsageError, match=f"cannot store samples as {subtype} in {suffix}"),
        audio_writer(BytesIO(), "x", suffix, 16_000, 1, subtype=subtype),
    ):
        pass
