"""Audio files with misleading headers, tags and boundaries: exactly their audio is decoded."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from media.conftest import RATE, chord, encoded, mp3, with_av
from vqtok.errors import MediaError
from vqtok.media import quiet
from vqtok.media.audio import audio_info, read_audio
from vqtok.media.containers import mpeg
from vqtok.media.containers.spliced import Span, Spliced, Window
from vqtok.media.kinds import sniff

CONSTANT = {"bitrate_mode": "CONSTANT", "compression_level": 0.5}
"""Options that write MP3 files with a constant bit rate; by default it is variable."""


def id3(size: int) -> bytes:
    """Return a tag with a cover image that is full of bytes that look like frames."""
    length = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + length + (b"\xff\xfb\x90\x64" * (size // 4 + 1))[:size]


APE = b"APETAGEX" + struct.pack("<IIII8x", 2000, 2000, 1, 1 << 29)
TAIL = b"TAG" + b"\0" * 125


def info_and_read(data: bytes) -> NDArray[np.float32]:
    """Read a file and assert that it has the length that `audio_info` returns."""
    media = read_audio(data)
    assert audio_info(data) == (media.data.shape[1], media.sample_rate, len(media.data))
    return media.data


def closeness(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Return the highest correlation of audio with other audio that is delayed by a few samples."""
    length = len(x) - 4000
    late = [float(np.corrcoef(x[:length], y[delay : delay + length])[0, 1]) for delay in range(2500)]
    return max(late)


# ---- MPEG


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_mpeg_frames_are_counted_without_a_xing_frame(
    rate: int, channels: int, caplog: pytest.LogCaptureFixture
) -> None:
    x = chord(2, channels, rate)
    for how in ({}, CONSTANT):
        whole = info_and_read(mp3(x, rate, **how))
        assert whole.shape == x.shape
        for data in (b"", id3(100)):
            bare = info_and_read(data + mp3(x, rate, xing=False, **how))
            frame = 1152 if rate >= 32000 else 576
            assert bare.shape[1] % frame == 0
            assert 0 < bare.shape[1] - whole.shape[1] < 4 * frame  # The samples that the encoder adds before and after.
            assert np.abs(bare).mean() == pytest.approx(np.abs(whole).mean(), rel=0.1)
    assert not caplog.records


def test_a_bare_mp3_is_the_same_sound() -> None:
    x = chord(1)
    assert closeness(x[0], info_and_read(mp3(x, xing=False))[0]) > 0.98


@pytest.mark.parametrize("before", [b"", id3(10), id3(1000) + id3(3_000_000), bytes(5000), id3(100) + bytes(200)])
@pytest.mark.parametrize(
    "after", [b"", TAIL, APE + bytes(1968) + APE[:20] + bytes(12), b"LYRICSBEGIN some words 000027LYRICS200" + TAIL]
)
@pytest.mark.parametrize("xing", [False, True])
def test_tags_about_mpeg_frames_are_passed_over(
    before: bytes, after: bytes, xing: bool, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    x = chord(1)
    data = mp3(x, xing=xing)
    assert np.array_equal(info_and_read(before + data + after), info_and_read(data))
    assert not caplog.records
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("xing", [(True, True), (False, False), (True, False), (False, True)])
@pytest.mark.parametrize("between", [b"", id3(1000), TAIL])
def test_joined_mp3_files_are_read_to_the_end(
    xing: tuple[bool, bool], between: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = chord(2), chord(3)
    joined = info_and_read(mp3(first, xing=xing[0]) + between + mp3(second, xing=xing[1]))
    assert 5 * RATE <= joined.shape[1] < 5.3 * RATE
    if all(xing):
        assert joined.shape[1] == 5 * RATE
        assert np.array_equal(joined, np.concatenate([read_audio(mp3(x)).data for x in (first, second)], axis=1))
    assert capfd.readouterr().err == ""


def test_joined_files_of_different_form_are_refused() -> None:
    for other in (mp3(chord(1, 2)), mp3(chord(1, 1, 16000), 16000), mp3(chord(1, 2), xing=False)):
        with pytest.raises(MediaError, match=r"input: contains 2 streams of different formats \(.*\); split it"):
            read_audio(mp3(chord(1)) + other)


def test_truncated_is_only_what_lacks_promised_frames(caplog: pytest.LogCaptureFixture) -> None:
    data = mp3(chord(2))
    with pytest.raises(MediaError, match=r"input: is truncated or damaged: has \d+ of 8\d MPEG frames"):
        audio_info(data[: len(data) // 2])
    bare = mp3(chord(2), xing=False, **CONSTANT)
    assert info_and_read(bare[: len(bare) // 2]).shape[1] == pytest.approx(RATE, abs=1200)
    assert not caplog.records


@pytest.mark.parametrize("stated", [0, 10])
def test_a_xing_frame_that_promises_less_cuts_nothing_off(stated: int) -> None:
    data = bytearray(mp3(chord(2)))
    place = data.index(b"Xing") if b"Xing" in data[:200] else data.index(b"Info")
    data[place + 8 : place + 12] = struct.pack(">I", stated)
    data[place + 12 : place + 16] = struct.pack(">I", 12345)
    assert info_and_read(bytes(data)).shape[1] > 2 * RATE


def test_junk_among_frames_is_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    data, size = mp3(chord(2), xing=False, **CONSTANT), len(mp3(chord(2), xing=False, **CONSTANT))
    junk = np.random.default_rng(1).bytes(3000)
    damaged = info_and_read(data[: size // 2] + junk + data[size // 2 :])
    assert info_and_read(data).shape[1] - damaged.shape[1] in (0, 576)
    assert re.fullmatch(r"input: 3\d\d\d bytes between the MPEG frames .* skipped", caplog.messages[0])
    assert capfd.readouterr().err == ""


def made_of_frames(header: bytes, size: int, count: int) -> bytes:
    """Return frames of silence in a layer or format for which there is no encoder here."""
    return header.ljust(size, b"\0") * count


@pytest.mark.parametrize(
    ("header", "size", "samples"),
    [
        (b"\xff\xfd\x84\xc0", 384, 1152),  # layer II at 48 kHz and 128 kbps, mono
        (b"\xff\xf5\x84\xc0", 384, 1152),  # at 24 kHz and 64 kbps
        (b"\xff\xff\x84\xc0", 256, 384),  # layer I
        (b"\xff\xfb\x04\xc0", 700, 1152),  # free format
    ],
)
def test_other_layers_and_free_format_are_counted_too(header: bytes, size: int, samples: int) -> None:
    for count in (3, 50, 1000):
        assert info_and_read(made_of_frames(header, size, count)).shape == (1, count * samples)


def test_headers_are_read_as_the_standard_says() -> None:
    assert mpeg.parse_header(b"\xff\xfb\x90\x64") == (417, 1152, 44100, 2, 3, 32, False, 0)
    assert mpeg.parse_header(b"\xff\xfb\x92\x64") == (418, 1152, 44100, 2, 3, 32, False, 1)
    assert mpeg.parse_header(b"\xff\xe2\x18\xc4") == (72, 576, 8000, 1, 3, 9, True, 0)  # MPEG-2.5, 8 kbps
    for none in (b"\xff\xfb\x9c\x64", b"\xff\xfb\xf0\x64", b"\xff\xeb\x90\x64", b"\xff\xf9\x90\x64", b"ID3\4", b"\xff"):
        assert mpeg.parse_header(none) is None


def test_libmpg123_prints_nothing_about_damaged_frames(tmp_path: Path) -> None:
    data = bytearray(mp3(chord(2), **CONSTANT))
    place = 0
    while header := mpeg.parse_header(bytes(data[place : place + 4])):
        data[place + 4 : place + 13] = b"\xff" * 9 if place > 5000 else data[place + 4 : place + 13]
        place += header.size
    path = tmp_path / "damaged.mp3"
    path.write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from vqtok.media import audio, quiet\n"
        "quiet.separate_stderr() if sys.argv[2:] else None\n"
        "audio.read_audio(Path(sys.argv[1])); print('done', file=sys.stderr)"
    )
    loud, silent = (
        subprocess.run([sys.executable, "-c", code, path, *how], capture_output=True, text=True, check=True).stderr
        for how in ([], ["separate"])
    )
    assert "mpg123" in loud  # Otherwise this test would show nothing.
    assert silent == "done\n"


def test_native_stderr_comes_back_after_many_threads(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        for _ in range(200):
            with quiet.native_stderr_closed():
                os.write(2, b"native")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


# ---- Ogg and FLAC


def pages(data: bytes) -> list[bytes]:
    return [b"OggS\0" + page for page in data.split(b"OggS\0")[1:]]


def ogg_flac(data: bytes) -> bytes:
    """Put a FLAC file into Ogg pages, one frame in each, with wrong checksums, which are not checked."""
    blocks = data.index(b"\xff\xf8")
    frames = [blocks + match.start() for match in re.finditer(rb"\xff\xf8[\x00-\xff]{2}(?=[\x00-\x7f])", data[blocks:])]
    first = b"\x7fFLAC\1\0\0\1" + data[:4] + data[4:42]
    packets = [first, data[42:blocks], data[frames[0] :]]
    out = b""
    for number, packet in enumerate(packets):
        for start in range(0, max(1, len(packet)), 255 * 254):
            part = packet[start : start + 255 * 254]
            lacing = b"\xff" * (len(part) // 255) + bytes([len(part) % 255])
            flags = 2 if number == 0 else 4 if start + len(part) == len(packet) and number == 2 else 0
            out += b"OggS\0" + bytes([flags]) + bytes(8) + b"abcd" + bytes(8) + bytes([len(lacing)]) + lacing + part
    return out


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_is_read_to_the_end(subtype: str) -> None:
    parts = [encoded(chord(seconds), "OGG", subtype=subtype) for seconds in (2, 0.1, 3)]
    joined = info_and_read(b"".join(parts))
    assert joined.shape == (1, round(5.1 * RATE))
    assert np.array_equal(joined, np.concatenate([read_audio(part).data for part in parts], axis=1))
    assert np.array_equal(info_and_read(parts[0] * 3), np.tile(read_audio(parts[0]).data, 3))  # with one serial number


def test_ogg_flac_is_read_chained_too() -> None:
    x = chord(1)
    data = encoded(x, "FLAC")
    assert np.array_equal(info_and_read(ogg_flac(data)), read_audio(data).data)
    assert np.array_equal(info_and_read(ogg_flac(data) * 2), np.tile(read_audio(data).data, 2))


def test_chains_of_different_form_are_refused() -> None:
    parts = [encoded(chord(1, channels), "OGG") for channels in (1, 2)]
    with pytest.raises(MediaError, match=r"contains 2 streams of different formats \(24000 Hz x 1, 24000 Hz x 2\)"):
        audio_info(b"".join(parts))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_without_an_end_mark_is_read_with_a_warning(subtype: str, caplog: pytest.LogCaptureFixture) -> None:
    data = encoded(chord(5), "OGG", subtype=subtype)
    whole = read_audio(data).data
    part = info_and_read(b"".join(pages(data)[:-1]))
    assert RATE < part.shape[1] < whole.shape[1]
    assert np.array_equal(part, whole[:, : part.shape[1]])
    assert caplog.messages == ["input: the Ogg stream has no end mark; its end may be missing"]


def test_joined_flac_files_are_refused_by_their_number() -> None:
    data = encoded(chord(1), "FLAC")
    for count in (2, 3):
        with pytest.raises(MediaError, match=f"input: contains {count} concatenated FLAC files; split it"):
            read_audio(data * count)


# ---- headers of uncompressed audio


def header_field(format: str, data: bytes) -> tuple[int, str, int]:
    """Return the position and the format of the number of bytes in a header, and what it adds to that number."""
    if format == "RF64":
        return data.index(b"ds64") + 16, "<Q", 0
    place, form, extra = {
        "WAV": (data.find(b"data") + 4, "<I", 0),
        "AIFF": (data.find(b"SSND") + 4, ">I", 8),
        "AU": (8, "<I" if data.startswith(b"dns.") else ">I", 0),
        "CAF": (data.find(b"data") + 4, ">Q", 4),
        "W64": (data.find(b"data\xf3\xac") + 16, "<Q", 24),
    }[format]
    return place, form, extra


def with_size(format: str, size: int) -> tuple[bytes, NDArray[np.float32]]:
    x = np.float32([np.arange(1000)]) / 32768
    data = bytearray(encoded(x, format, subtype="PCM_16"))
    place, form, extra = header_field(format, bytes(data))
    mask = 0xFFFFFFFF if form[1] == "I" else (1 << 64) - 1
    data[place : place + struct.calcsize(form)] = struct.pack(form, (size + extra if size >= 0 else size) & mask)
    return bytes(data), x


FORMATS = ["WAV", "AIFF", "AU", "CAF", "W64", "RF64"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [0, 1000, 2024])
def test_sizes_that_are_off_are_put_right_with_a_warning(
    format: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    data, x = with_size(format, size)
    assert np.array_equal(info_and_read(data), x)
    assert [message.partition(":")[0] for message in caplog.messages] == ["input"] * (len(caplog.messages) > 0)
    assert caplog.messages or (format, size) == ("W64", 0)


@pytest.mark.parametrize("format", FORMATS)
def test_sizes_of_streams_are_no_news(format: str, caplog: pytest.LogCaptureFixture) -> None:
    data, x = with_size(format, -1)
    assert np.array_equal(info_and_read(data), x)
    assert not caplog.records


@pytest.mark.parametrize("format", FORMATS)
def test_sizes_above_what_is_there_mean_truncation(format: str) -> None:
    with pytest.raises(MediaError, match=r"is truncated: has 2\d\d\d of 9\d\d\d bytes of samples"):
        audio_info(with_size(format, 9000)[0])


@pytest.mark.parametrize(
    "tail", [b"LIST" + struct.pack("<I", 4) + b"INFO", TAIL, id3(50), bytes(64), b"id3 \4\0\0\0abcd"]
)
def test_what_follows_the_samples_is_no_sound(tail: bytes, caplog: pytest.LogCaptureFixture) -> None:
    x = np.float32([np.arange(1000)]) / 32768
    assert np.array_equal(info_and_read(encoded(x, "WAV") + tail), x)
    assert not caplog.records


def test_a_wav_file_with_chunks_alone_has_no_samples() -> None:
    data = encoded(chord(0), "WAV") + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(MediaError, match="has no samples"):
        read_audio(data)


@pytest.mark.parametrize("format", ["WAV", "AIFF", "CAF", "RF64"])
def test_joined_files_of_samples_are_read_to_the_end(format: str) -> None:
    x = np.float32([np.arange(1000)]) / 32768
    data = encoded(x, format, subtype="PCM_16")
    assert np.array_equal(info_and_read(data * 3), np.tile(x, 3))


def test_a_streamed_wav_file_may_exceed_its_32_bits(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    data, _ = with_size("WAV", -1)
    path.write_bytes(data)
    os.truncate(path, 5 << 30)  # sparse
    assert audio_info(path) == (((5 << 30) - 44) // 2, RATE, 1)


# ---- formats of PyAV


CONTAINERS = [("mp4", "aac"), ("ipod", "aac"), ("mov", "aac"), ("adts", "aac"), ("asf", "wmav2"), ("matroska", "flac")]


@pytest.mark.parametrize(("format", "codec"), CONTAINERS)
@pytest.mark.parametrize("channels", [1, 2])
def test_pyav_reads_what_libsndfile_cannot(
    format: str, codec: str, channels: int, caplog: pytest.LogCaptureFixture
) -> None:
    x = chord(1, channels)
    data = with_av(x, format, codec)
    assert sniff(data[:64]) == "audio"
    for tag in (b"", id3(100)) if format == "adts" else (b"",):
        y = info_and_read(tag + data)
        assert y.shape[0] == channels
        assert y.shape[1] == x.shape[1] if format in ("mp4", "ipod", "mov", "matroska") else y.shape[1] >= 0.9 * RATE
        assert closeness(x[0], np.pad(y[0], (0, 4000))) > 0.9
    assert not caplog.records


def test_of_a_film_only_the_audio_is_read(caplog: pytest.LogCaptureFixture) -> None:
    assert info_and_read(with_av(chord(1), "mp4", "aac", video=True)).shape == (1, RATE)
    assert caplog.messages == ["input: only its audio is read, not the video"]


def test_without_pyav_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtok.media.containers.libav.is_installed", lambda module: False)
    for format, codec in CONTAINERS:
        with pytest.raises(MediaError, match=r"input: requires PyAV: pip install 'vqtok\[av\]'"):
            read_audio(with_av(chord(0.1), format, codec))


def test_damaged_containers_are_media_errors(capfd: pytest.CaptureFixture[str]) -> None:
    data = with_av(chord(2), "ipod", "aac")
    with pytest.raises(MediaError, match="input: is damaged: Invalid data"):
        read_audio(data[: len(data) // 2])
    random = np.random.default_rng(0)
    for _ in range(50):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 20):
            damaged[place] = random.integers(0, 256)
        with suppress(MediaError):
            assert np.isfinite(read_audio(bytes(damaged)).data).all()
    assert capfd.readouterr().err == ""


# ---- files in pieces


def test_spliced_reads_like_a_file() -> None:
    file = BytesIO(bytes(range(100)))
    pieces = (Span(10, 20), b"abc", Span(50, 50), Span(90, 100), b"", b"xyz")
    whole = b"".join(piece if isinstance(piece, bytes) else file.getvalue()[slice(*piece)] for piece in pieces)
    spliced = Spliced(file, pieces)
    assert spliced.read() == whole
    for start in range(len(whole) + 3):
        for size in (0, 1, 4, 15, 100, -1):
            assert spliced.seek(start) == start
            assert spliced.read(size) == (whole[start:] if size < 0 else whole[start : start + size])
    assert spliced.seek(-4, 2) == len(whole) - 4
    assert spliced.seek(2, 1) == len(whole) - 2
    assert spliced.seek(-1000) == len(whole) - 2  # An impossible position has no effect.
    assert Spliced(file, ()).read() == b""


def test_a_window_finds_what_lies_across_its_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtok.media.containers.spliced._WINDOW_BYTES", 16)
    for place in range(100):
        window = Window(BytesIO(b"." * place + b"LYRICSBEGIN" + b"." * 30))
        assert list(window.search(re.compile(b"LYRICSBEGIN"), 0, window.size)) == [place]
        assert window.read(place, 5) == b"LYRIC"
