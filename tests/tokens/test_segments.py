"""Token files in segments, in vqtok.tokens.vqt.header and vqt, and what is left of them when they are damaged."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import soundfile
from conftest import picture, wave
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vqtok
from tokens.conftest import model_of, same
from vqtok.errors import CorruptFileError, UnsupportedVersionError
from vqtok.tokens.fields import checksum
from vqtok.tokens.shape import cut
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt import file as vqt
from vqtok.tokens.vqt.file import dump, load, load_parts
from vqtok.tokens.vqt.header import MAX_STREAMS, Header, parse_header, parse_parts, parse_whole

BLANK = [5, 2]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setitem(vqt.SEGMENT_POSITIONS, "image", 20)
    monkeypatch.setitem(vqt.SEGMENT_POSITIONS, "audio", 20)


def long_tokens(modality="image", grid=(17, 5), seed=0, **changes) -> Tokens:
    codes = np.random.default_rng(seed).integers(0, (30, 7), (*grid, 2))
    size = (5 * 16, 17 * 16) if modality == "image" else (1000, 16_000, grid[0] if len(grid) == 2 else 1)
    return Tokens(
        np.moveaxis(codes, -1, 0),
        codebook_sizes=(30, 7),
        modality=modality,
        size=size,
        stride=16,
        model=b"segments",
        **changes,
    )


FORMS = [("image", (17, 5)), ("image", (3, 50)), ("audio", (90,)), ("audio", (3, 40))]


@pytest.mark.parametrize(("modality", "grid"), FORMS)
@pytest.mark.parametrize("coder", ["packed", "static"])
def test_round_trip(modality, grid, coder):
    tokens = long_tokens(modality, grid, metadata={"name": "é"})
    model = model_of(tokens)
    data = dump(tokens, model, coder)
    header, _ = parse_header(data)
    assert header.num_segments > 1
    assert all(np.zeros(grid)[place].size <= max(20, grid[-1]) for place in cut(modality, grid, header.segment_steps))
    assert same(load(data, model), tokens)
    assert same(load(data, model, 1), tokens.prefix(1))


def test_what_fits_one_segment_is_not_cut():
    tokens = long_tokens(grid=(4, 5))
    assert parse_header(dump(tokens))[0].segment_steps == 0
    assert len(dump(tokens)) == 14 + 3 + 1 + 3 + 2 + 2 + 13 + 8 + 4


def damaged_by(data: bytes, start: int, end: int, instead: bytes) -> bytes:
    return data[:start] + instead + data[end:]


@given(st.data())
def test_salvage_gives_every_whole_segment_and_no_wrong_one(data):
    modality, grid = data.draw(st.sampled_from(FORMS))
    tokens = long_tokens(modality, grid)
    whole = dump(tokens)
    starts = parse_whole(whole).starts
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 30)))
    damaged = damaged_by(whole, start, end, data.draw(st.binary(max_size=40)))
    if damaged == whole:
        return
    with pytest.raises((CorruptFileError, UnsupportedVersionError)):
        load(damaged)
    parts = parse_parts(damaged)
    ends = [*(begin - 4 for begin in starts[1:]), starts[-1] + sum(parts.header.payload_lengths[-2:])]
    for number, (found, begin, stop) in enumerate(zip(parts.starts, starts, ends, strict=True)):
        if stop + 4 <= start or begin >= end:
            assert found is not None, number
    salvaged = load_parts(damaged, parts, blank=BLANK)
    for place, found in zip(cut(modality, grid, parts.header.segment_steps), parts.starts, strict=True):
        codes = salvaged.codes[:, *place]
        expected = tokens.codes[:, *place]
        if found is None:
            expected = np.broadcast_to(np.reshape(BLANK, (2, *[1] * len(grid))), expected.shape)
        assert np.array_equal(codes, expected)


def test_every_flipped_bit_is_refused_and_costs_one_segment():
    tokens = long_tokens()
    whole = dump(tokens)
    starts = parse_whole(whole).starts
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptFileError, UnsupportedVersionError)):
            load(bytes(damaged))
        parts = parse_parts(bytes(damaged))
        assert parts.damage
        assert parts.starts.count(None) == (
            starts[0] <= bit // 8 < starts[-1] + sum(parts.header.payload_lengths[-2:]) + 4
        )


def test_segments_of_other_places_or_files_are_not_taken():
    # Bit-packed segments are all as long, so that only their checksums tell them apart.
    whole, other = dump(long_tokens(grid=(16, 5))), dump(long_tokens(grid=(16, 5), metadata={"a": 1}))
    starts = parse_whole(whole).starts
    length = starts[1] - starts[0]
    swapped = whole[: starts[0]] + whole[starts[1] :][:length] + whole[starts[0] :][:length] + whole[starts[2] :]
    assert parse_parts(swapped).starts == [None, None, *starts[2:]]
    cut_out = whole[: starts[1]] + whole[starts[2] :]
    assert parse_parts(cut_out).starts == [starts[0], None, starts[2] - length, starts[3] - length]
    foreign = parse_whole(other).starts[1]
    spliced = whole[: starts[1]] + other[foreign : foreign + length] + whole[starts[2] :]
    assert parse_parts(spliced).starts == [starts[0], None, *starts[2:]]


def test_nothing_left_to_salvage():
    whole = dump(long_tokens())
    starts = parse_whole(whole).starts
    for damaged in (b"", whole[:4], whole[: starts[0]], bytes(len(whole)), whole[:20] + bytes(len(whole) - 20)):
        with pytest.raises(CorruptFileError):
            parse_parts(damaged)
    short = dump(long_tokens(grid=(2, 2)))
    with pytest.raises(CorruptFileError, match="truncated or altered"):
        parse_parts(short[:-1] + b"x")


def test_the_message_names_what_is_damaged():
    whole = dump(long_tokens(grid=(60, 5)))
    starts = parse_whole(whole).starts
    for lost, message in (
        ([2], "segment 3 of 15;"),
        ([0, 14], "segments 1, 15 of 15;"),
        (range(9), "1, 2, 3, 4, 5, ... of"),
    ):
        damaged = bytearray(whole)
        for number in lost:
            damaged[starts[number]] ^= 1
        with pytest.raises(CorruptFileError, match=message):
            load(bytes(damaged))
    with pytest.raises(CorruptFileError, match="the header or the end; vqtok decode --salvage"):
        load(whole[:-1])


@pytest.mark.parametrize("steps", [17, 18, 1 << 34])
def test_steps_that_cut_nothing_are_refused(steps):
    header, _ = parse_header(dump(long_tokens()))
    with pytest.raises(ValueError, match="cut every"):
        Header(**{**vars(header), "segment_steps": steps, "payload_lengths": (1, 1)})


def test_claims_of_many_segments_allocate_nothing():
    assert MAX_STREAMS < 2**27
    numbers = b"\x01\x02\x10\x08\x08\x80\x80\x80\x40\x01\x01" + bytes(100)
    head = b"\x89VQ\n\x10\x20modelhex" + numbers
    tracemalloc.start()
    with pytest.raises(CorruptFileError):
        parse_parts(head)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_unknown_features_of_a_file_in_segments():
    whole = dump(long_tokens())
    head = bytearray(whole[: parse_whole(whole).starts[0] - 4])
    head[5] |= 1 << 6
    with pytest.raises(UnsupportedVersionError, match="upgrade"):
        load(bytes(head) + checksum(bytes(head)) + whole[len(head) + 4 :])


@pytest.mark.parametrize("channels", [1, 2])
def test_memory_of_coding_is_that_of_a_segment(monkeypatch, channels):
    """But for the codes and the file themselves."""
    monkeypatch.setitem(vqt.SEGMENT_POSITIONS, "audio", 4096)
    peaks = []
    for time in (50_000, 400_000):
        codes = np.full((2, time) if channels == 1 else (2, channels, time // channels), 3)
        tokens = Tokens(
            codes,
            codebook_sizes=(1024, 1024),
            modality="audio",
            size=(10**7, 16_000, channels),
            stride=16,
            model=b"segments",
        )
        tracemalloc.start()
        data = dump(tokens)
        held = len(data)
        load(data)
        peaks.append(tracemalloc.get_traced_memory()[1] - tokens.codes.nbytes - 3 * held)
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 300_000


@pytest.fixture
def damaged(run, tmp_path):
    """A picture and a sound whose token files have lost the second segment."""
    Image.fromarray(picture(40, 100)).save(tmp_path / "p.png")
    soundfile.write(tmp_path / "s.wav", wave(4000, 16_000), 16_000)
    run("encode", tmp_path / "p.png", tmp_path / "s.wav")
    for name in ("p.vqt", "s.vqt"):
        data = bytearray((tmp_path / name).read_bytes())
        data[parse_whole(bytes(data)).starts[1]] ^= 1
        (tmp_path / name).write_bytes(data)
    (tmp_path / "s.wav").unlink()
    return tmp_path


def test_decode_salvages(run, damaged):
    result = run("decode", damaged / "s.vqt", damaged / "p.vqt", "-o", damaged / "refused")
    assert result.exit_code == 1
    assert "segment 2 of 25; vqtok decode --salvage decodes the rest" in result.stderr
    assert run("inspect", damaged / "s.vqt").exit_code == 4
    result = run("decode", "--salvage", damaged / "s.vqt")
    assert result.exit_code == 1
    assert "s.vqt: damaged, lost 0.0 to 0.0 s of 0.2 s (4.0%); silence in their place" in result.stderr
    assert soundfile.info(damaged / "s.wav").frames == 4000
    result = run("decode", "--salvage", "--json", damaged / "p.vqt", "-o", damaged / "d.png")
    facts = json.loads(result.stdout)
    assert (result.exit_code, facts["exit_code"], facts["lost_rows"], facts["lost_fraction"]) == (1, 1, [[8, 16]], 0.08)
    with Image.open(damaged / "d.png") as image:
        assert image.size == (40, 100)


def test_what_is_lost_is_told(run, damaged):
    data = (damaged / "s.vqt").read_bytes()
    run("encode", damaged / "p.png", "-o", damaged / "w.vqt")
    (damaged / "w.vqt").write_bytes((damaged / "w.vqt").read_bytes()[20:])
    result = run("decode", "--salvage", damaged / "w.vqt", "-o", damaged / "w.png")
    assert (result.exit_code, "w.vqt: damaged (the header or the end), but nothing is lost in" in result.stderr) == (
        1,
        True,
    )
    (damaged / "half.vqt").write_bytes(data[: len(data) // 2])
    result = run("decode", "--salvage", damaged / "half.vqt", "-o", "-")
    assert result.exit_code == 1
    assert "half.vqt: damaged, lost 0.0 to 0.0 s, 0.1 to 0.2 s of 0.2 s" in result.stderr
    assert "silence in their place in stdout" in result.stderr
    assert len(result.stdout_bytes) == 44 + 2 * 4000


def test_library_salvages(bundled, damaged, caplog):
    with pytest.raises(CorruptFileError):
        vqtok.decode(damaged / "p.vqt")
    media = vqtok.decode(damaged / "p.vqt", salvage=True)
    assert media.data.shape == (3, 100, 40)
    assert "lost rows 8 to 15 of 100 (8.0%)" in caplog.text


def test_salvage_of_a_whole_file_is_a_plain_decode(run, damaged):
    assert run("encode", damaged / "p.png", "-o", damaged / "w.vqt").exit_code == 0
    for name, options in (("a.png", ()), ("b.png", ("--salvage",))):
        assert run("decode", damaged / "w.vqt", "-o", damaged / name, *options).exit_code == 0
    assert (damaged / "a.png").read_bytes() == (damaged / "b.png").read_bytes()
