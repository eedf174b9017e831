"""vqtok.tokens.vqt.header"""

import dataclasses
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqtok.errors import CorruptFileError, UnsupportedVersionError
from vqtok.tokens.fields import checksum
from vqtok.tokens.vqt.header import Header, pack_header, parse_header, read_header

IMAGE = Header(
    coder="packed",
    modality="image",
    model=bytes(range(8)),
    codebook_sizes=(1024, 300),
    grid=(3, 4),
    stride=16,
    size=(60, 41),
    payload_lengths=(15, 14),
)
STEREO = dataclasses.replace(
    IMAGE, modality="audio", grid=(2, 75), stride=320, size=(24_000, 24_000, 2), metadata={"gain": [0.5, 1]}
)


def whole(header: Header) -> bytes:
    body = pack_header(header) + bytes(sum(header.payload_lengths))
    return body + checksum(body)


def sealed(head: bytes, payload: bytes = b"") -> bytes:
    return head + payload + checksum(head + payload)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    modality = draw(st.sampled_from(["image", "audio"]))
    size = draw(st.tuples(*[st.integers(1, 2**35 - 1)] * 2))
    grid = draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
    if modality == "audio":
        size += (draw(st.integers(1, 3)),)
        grid = grid[1:] if size[2] == 1 else grid
    codebook_sizes = draw(st.lists(st.integers(2, 2**31), min_size=1, max_size=9))
    lengths = st.lists(st.integers(0, 300), min_size=len(codebook_sizes), max_size=len(codebook_sizes))
    text = st.text(st.characters(exclude_categories=["Cs"]))
    return Header(
        coder=draw(st.sampled_from(["packed", "static", "prior"])),
        modality=modality,
        model=draw(st.binary(min_size=8, max_size=8)),
        codebook_sizes=tuple(codebook_sizes),
        grid=grid,
        stride=draw(st.integers(1, 2**35 - 1)),
        size=size,
        payload_lengths=tuple(draw(lengths)),
        metadata=draw(st.dictionaries(text, st.none() | st.integers() | text | st.lists(st.booleans()), max_size=3)),
    )


@given(headers())
def test_round_trip(header):
    data = whole(header)
    parsed, offset = parse_header(data)
    assert parsed == dataclasses.replace(header, file_bytes=len(data))
    assert offset == len(data) - 4 - sum(header.payload_lengths)


def test_properties():
    image, audio = parse_header(whole(IMAGE))[0], parse_header(whole(STEREO))[0]
    assert (image.version, image.num_codebooks, image.num_tokens, image.coded_bits) == ("1.0", 2, 24, 232)
    assert image.raw_bits == pytest.approx(12 * (10 + 8.228818690495881))
    assert image.bpp == 8 * image.file_bytes / (60 * 41)
    assert image.kbps is None
    assert image.duration_seconds is None
    assert (audio.num_tokens, audio.duration_seconds, audio.bpp) == (300, 1.0, None)
    assert audio.kbps == pytest.approx(8 * audio.file_bytes / 1000)


@pytest.mark.parametrize("header", [IMAGE, STEREO])
def test_every_truncation_and_every_flipped_bit_is_refused(header):
    data = whole(header)
    for length in range(len(data)):
        with pytest.raises(CorruptFileError):
            parse_header(data[:length])
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        in_major_version = 36 <= bit < 40
        with pytest.raises(UnsupportedVersionError if in_major_version else CorruptFileError):
            parse_header(bytes(flipped))


def test_faults_are_named():
    with pytest.raises(CorruptFileError, match="not a token file"):
        parse_header(b"RIFF....WAVE")
    with pytest.raises(CorruptFileError, match="cut off after 2 of 2 codebooks; vqtok decode --salvage"):
        parse_header(whole(IMAGE)[:-1])
    with pytest.raises(CorruptFileError, match="truncated"):
        parse_header(whole(IMAGE) + b"\0")


def test_versions():
    head = bytearray(pack_header(IMAGE))
    head[4] = 0x1F
    assert parse_header(sealed(bytes(head), bytes(29)))[0].version == "1.15"
    head[4] = 0x20
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        parse_header(sealed(bytes(head), bytes(29)))


@pytest.mark.parametrize("flag", [0b11, 0b111, 1 << 6])
def test_unknown_flags_are_refused(flag):
    head = bytearray(pack_header(IMAGE))
    head[5] |= flag
    with pytest.raises(UnsupportedVersionError, match="upgrade"):
        parse_header(sealed(bytes(head), bytes(29)))


def test_highest_flag_is_ignored():
    head = bytearray(pack_header(IMAGE))
    head[5] |= 1 << 7
    assert parse_header(sealed(bytes(head), bytes(29)))[0].size == (60, 41)


FIXED = b"\x89VQ\n\x10\x00modelhex"
HUGE = b"\xff\xff\xff\xff\x7f"  # 2^35 - 1


@pytest.mark.parametrize(
    "numbers",
    [
        b"",
        HUGE,  # num_codebooks
        b"\x00\x10\x08\x08\x01\x01",
        b"\x81\x02" + 257 * b"\x02" + b"\x10\x08\x08\x01\x01" + 257 * b"\x00",
        b"\x01" + HUGE + b"\x10\x08\x08\x01\x01\x00",  # codebook size
        b"\x01\x01\x10\x08\x08\x01\x01\x00",
        b"\x01\x02\x00\x08\x08\x01\x01\x00",  # stride
        b"\x01\x02\x10\x00\x08\x01\x01\x00",  # width
        b"\x01\x02\x10\x08\x08" + HUGE + HUGE + b"\x00",  # grid
        b"\x01\x02\x10\x08\x08\x80\x80\x01\x81\x80\x01\x00",
        b"\x01\x02\x10\x08\x08\x00\x01\x00",
        b"\x01\x02\x10\x08\x08\x01\x01" + HUGE,  # payload length
        b"\x01\x02\x10\x08\x08\x01\x01\x01",
        b"\x01\x02\x90\x00\x08\x08\x01\x01\x00",  # not the shortest form
        b"\x01\x02\x90\x80\x80\x80\x80\x01\x08\x08\x01\x01\x00",  # more than 35 bits
    ],
)
def test_limits_are_checked_before_anything_is_allocated(numbers):
    assert parse_header(sealed(FIXED + b"\x01\x02\x10\x08\x08\x01\x01\x00"))[1] == 22
    tracemalloc.start()
    with pytest.raises(CorruptFileError, match="damaged token file: "):
        parse_header(sealed(FIXED + numbers))
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "metadata", [HUGE, b"\x02[]", b"\x01{", b'\x09{"a":NaN}', b'\x02"\xff', b"\x80\x80\x04" + b"[" * 65536]
)
def test_damaged_metadata_is_refused(metadata):
    head = FIXED[:5] + b"\x10" + FIXED[6:] + b"\x01\x02\x10\x08\x08\x01\x01\x00"
    assert parse_header(sealed(head + b'\x07{"a":1}'))[0].metadata == {"a": 1}
    with pytest.raises(CorruptFileError, match="metadata"):
        parse_header(sealed(head + metadata))


def test_metadata_limits():
    longest = dataclasses.replace(IMAGE, metadata={"k": "x" * (65536 - 8)})
    assert parse_header(whole(longest))[0].metadata == longest.metadata
    with pytest.raises(ValueError, match="metadata"):
        pack_header(dataclasses.replace(IMAGE, metadata={"k": "x" * (65536 - 7)}))
    with pytest.raises(ValueError):
        pack_header(dataclasses.replace(IMAGE, metadata={"k": float("nan")}))


@pytest.mark.parametrize(
    "changes",
    [
        {"modality": "video"},
        {"size": (60, 41, 1)},
        {"size": (60, 2**35)},
        {"grid": (12,)},
        {"grid": (2**14, 2**14)},
        {"stride": 0},
        {"codebook_sizes": (1024, 1)},
        {"codebook_sizes": (1024,) * 257},
        {"model": b"short"},
        {"payload_lengths": (29, 1, 1)},
    ],
)
def test_header_refuses_what_no_file_may_have(changes):
    with pytest.raises(ValueError):
        dataclasses.replace(IMAGE, **changes)


def test_read_header_names_the_file(tmp_path):
    path = tmp_path / "a.vqt"
    path.write_bytes(whole(STEREO))
    assert read_header(path).metadata == {"gain": [0.5, 1]}
    path.write_bytes(whole(STEREO)[:20])
    with pytest.raises(CorruptFileError, match=r"a\.vqt: damaged"):
        read_header(path)


def test_imports_no_numpy():
    code = "import sys, vqtok.tokens.vqt.header; sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
