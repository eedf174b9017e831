"""vqtok.tokens.shard.format, index, shard and shard_writer, and shards on the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import picture, wave
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vqtok
from tokens.conftest import same
from vqtok.errors import (
    CorruptFileError,
    MediaError,
    ModelError,
    OutputError,
    UnsupportedVersionError,
    UsageError,
    WrongModelError,
)
from vqtok.tokens.coding.coders import NO_MODEL, EntropyModel
from vqtok.tokens.coding.frequencies import frequencies
from vqtok.tokens.fields import checksum
from vqtok.tokens.shard.format import MAX_KEY_BYTES, ShardHeader, pack_record, parse_record, parse_shard_header
from vqtok.tokens.shard.index import GROUP, key_hash, pack_index
from vqtok.tokens.shard.payload import dump_joint
from vqtok.tokens.shard.reader import Shard
from vqtok.tokens.shard.writer import ShardWriter, merge, write_shard
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.file import dump
from vqtok.tokens.vqt.header import parse_header

MODEL = bytes.fromhex("3f9a000102030405")
SIZES = (10, 3)
TABLES = [frequencies(np.array([9, 3, 1, 0, 0, 30, 0, 0, 0, 5])), frequencies(np.array([5, 1, 1]))]
ENTROPY_MODEL = EntropyModel(TABLES)


def model_of(identity: bytes) -> EntropyModel:
    assert identity == MODEL
    return ENTROPY_MODEL


def item(number: int, **changes) -> Tokens:
    """Make the tokens of a small picture, each number another; odd ones are coded statically."""
    rng = np.random.default_rng(number)
    height, width = 2 + number % 2, 3
    planes = [rng.choice(size, (height, width), p=table / 2**14) for size, table in zip(SIZES, TABLES, strict=True)]
    if number % 2 == 0:
        planes = [rng.integers(0, size, (height, width)) for size in SIZES]
    tokens = Tokens(
        np.stack(planes),
        codebook_sizes=SIZES,
        modality="image",
        size=(48 - number % 3, 16 * height),
        stride=16,
        model=MODEL,
    )
    return dataclasses.replace(tokens, **changes)


def shard_bytes(items: dict[str, Tokens], entropy_model=ENTROPY_MODEL, **options) -> bytes:
    file = io.BytesIO()
    writer = ShardWriter(file, **options)
    for key, tokens in items.items():
        writer.add(key, tokens, entropy_model)
    writer.finish()
    return file.getvalue()


ITEMS = {"a/b.png": item(0), "é\n": item(1, metadata={"n": 1}), "c": item(2), "d.png": item(3), "e" * 30: item(4)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.vqts"
    path.write_bytes(shard_bytes(ITEMS))
    return path


@st.composite
def shards(draw: st.DrawFn) -> dict[str, Tokens]:
    codebook_sizes = draw(st.lists(st.integers(2, 50) | st.integers(2, 2**31), min_size=1, max_size=3))
    modality = draw(st.sampled_from(["image", "audio"]))
    stride, model = draw(st.integers(1, 2048)), draw(st.binary(min_size=8, max_size=8))
    keys = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=5)
    items = {}
    for key in draw(st.lists(keys, min_size=1, max_size=40, unique=True)):
        channels = draw(st.integers(1, 2)) if modality == "audio" else None
        size = tuple(draw(st.lists(st.integers(1, 2**35 - 1) | st.integers(1, 3), min_size=2, max_size=2)))
        grid = draw(st.tuples(*[st.integers(1, 4)] * (1 if channels == 1 else 2)))
        rng = np.random.default_rng(draw(st.integers(0, 9)))
        codes = np.stack(
            [rng.integers(0, min(draw(st.sampled_from([2, size])), size), grid) for size in codebook_sizes]
        )
        items[key] = Tokens(
            codes=codes,
            codebook_sizes=tuple(codebook_sizes),
            modality=modality,
            size=size if channels is None else (*size, channels),
            stride=stride,
            model=model,
            metadata=draw(st.sampled_from([{}, {"scale": [0.25]}])),
        )
    return items


@settings(deadline=None, max_examples=25)
@given(shards(), st.booleans(), st.sampled_from([0, 24_000]))
def test_round_trip(tmp_path_factory, items, coded, model_rate):
    first = next(iter(items.values()))
    tables = [frequencies(np.array([9] + [0] * (size - 1))) if size <= 50 else None for size in first.codebook_sizes]
    entropy_model = EntropyModel(tables) if coded else NO_MODEL
    path = tmp_path_factory.getbasetemp() / "round.vqts"
    write_shard(path, items.items(), entropy_model, model_rate=model_rate, overwrite=True)
    with Shard(path, lambda _: entropy_model) as shard:
        assert list(shard) == list(items)
        assert len(shard) == len(items)
        for (key, tokens), index in zip(items.items(), range(len(items)), strict=True):
            assert same(shard[key], tokens)
            assert same(shard[index], tokens)
            for num_codebooks in range(1, tokens.num_codebooks):
                assert same(shard.load(shard.find(key), num_codebooks), tokens.prefix(num_codebooks))
    again = path.with_name("again.vqts")
    merge([path], again, overwrite=True)
    assert again.read_bytes() == path.read_bytes()
    assert not merge([path], again, salvage=True, overwrite=True).losses
    assert again.read_bytes() == path.read_bytes()


def test_golden_bytes(tmp_path):
    first = Tokens(
        np.array([[[3, 8, 5], [0, 7, 7]], [[2, 0, 0], [2, 0, 1]]]),
        codebook_sizes=SIZES,
        modality="image",
        size=(48, 32),
        stride=16,
        model=MODEL,
    )
    codes = np.array([[[0, 1, 5], [5, 0, 5], [5, 0, 5]], [[0, 0, 0], [0, 0, 1], [2, 0, 1]]])
    second = Tokens(
        codes, codebook_sizes=SIZES, modality="image", size=(9, 9), stride=16, model=MODEL, metadata={"n": 1}
    )
    header = "895653 0a 10 00 3f9a000102030405 02 0a03 10 20 00 e36c3690"
    packed = "80 01 61 30 00 830577 8204 360a2838"
    static = "b9 01 62 0909 0303 07 7b226e223a317d 03 2f09474ff5 3ea13543"
    index = "43beb7 f9efbe 1800000000000000 0200000000000000 3f00000000000000 f8194abf 8956450a"
    golden = bytes.fromhex(header + packed + static + header + index)
    assert shard_bytes({"a": first, "b": second}) == golden
    (tmp_path / "x.vqts").write_bytes(golden)
    shard = Shard(tmp_path / "x.vqts", model_of)
    assert same(shard["a"], first)
    assert same(shard["b"], second)


def test_mapping(path):
    shard = Shard(path, model_of)
    keys = list(ITEMS)
    assert dict(shard).keys() == ITEMS.keys()
    assert [key for key, tokens in shard.items() if same(tokens, ITEMS[key])] == keys
    assert same(shard[-1], ITEMS[keys[-1]])
    assert same(shard[np.int64(2)], ITEMS[keys[2]])
    assert [tokens.size for tokens in shard[1:4:2]] == [ITEMS[keys[1]].size, ITEMS[keys[3]].size]
    assert "c" in shard
    assert "b" not in shard
    assert 0 not in shard
    assert shard.get("b") is None
    for wrong, error in (("b", KeyError), (5, IndexError), (-6, IndexError), (1.5, TypeError)):
        with pytest.raises(error):
            shard[wrong]
    copy = pickle.loads(pickle.dumps(shard))
    assert same(copy["c"], ITEMS["c"])
    shard.close()


def test_static_items_need_their_model(path):
    shard = Shard(path)
    assert {record.coder for record in map(shard.find, shard)} == {"packed", "static"}
    for key in shard:
        if shard.find(key).coder == "static":
            with pytest.raises(ModelError, match="3f9a000102030405"):
                shard[key]
        else:
            assert same(shard[key], ITEMS[key])


def test_an_entropy_model_of_another_model_is_refused(path):
    shard = Shard(path, lambda _: EntropyModel([frequencies(np.arange(10)), TABLES[1]]))
    with pytest.raises(CorruptFileError, match=r"x\.vqts: d\.png: the codes were not coded"):
        shard["d.png"]


# Overhead.


def overhead(items: dict[str, Tokens], entropy_model, **options) -> float:
    """Bytes an item that are neither key nor payload."""
    payload = sum(len(dump_joint(tokens, entropy_model)[1]) for tokens in items.values())
    keys = sum(len(key.encode()) for key in items)
    once = 2 * len(parse_shard_header(shard_bytes(items, entropy_model, **options))[0].pack()) + 24
    return (len(shard_bytes(items, entropy_model, **options)) - once - payload - keys) / len(items)


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize(("num_codebooks", "stride"), [(1, 16), (8, 8)])
def test_overhead_of_pictures(num_codebooks, stride, coded):
    table = frequencies(np.arange(1, 1025))
    rng = np.random.default_rng(0)
    items = {}
    for number in range(48):
        width, height = (int(length) for length in rng.integers(150, 500, 2))
        codes = rng.choice(1024, (num_codebooks, -(-height // stride), -(-width // stride)), p=table / 2**14)
        items[f"n0{number}/{number}.jpg"] = Tokens(
            codes,
            codebook_sizes=(1024,) * num_codebooks,
            modality="image",
            size=(width, height),
            stride=stride,
            model=MODEL,
        )
    entropy_model = EntropyModel([table] * num_codebooks) if coded else NO_MODEL
    assert overhead(items, entropy_model) <= 16
    # The one stream of all codebooks is no longer than the streams in token files.
    for tokens in items.values():
        assert 8 * len(dump_joint(tokens, entropy_model)[1]) <= parse_header(dump(tokens, entropy_model))[0].coded_bits


def test_overhead_of_sounds():
    table = frequencies(np.arange(1, 1025))
    rng = np.random.default_rng(0)
    items = {}
    for number in range(48):
        samples = int(rng.integers(44_100, 441_000))
        time = math.ceil(math.ceil(samples * 24_000 / 44_100) / 320)
        codes = rng.choice(1024, (8, time), p=table / 2**14)
        items[f"{number}.flac"] = Tokens(
            codes, codebook_sizes=(1024,) * 8, modality="audio", size=(samples, 44_100, 1), stride=320, model=MODEL
        )
    assert overhead(items, EntropyModel([table] * 8), model_rate=24_000) <= 16


# Damage.


def test_every_truncation(tmp_path):
    data = shard_bytes(ITEMS)
    (tmp_path / "whole.vqts").write_bytes(data)
    header_end = parse_shard_header(data)[1]
    ends = [Shard(tmp_path / "whole.vqts").find(key).end for key in ITEMS]
    path, out = tmp_path / "cut.vqts", tmp_path / "out.vqts"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptFileError, match=r"cut\.vqts: "):
            Shard(path)
        kept = sum(end <= length for end in ends)
        if not kept:
            with pytest.raises((CorruptFileError, UsageError)):
                merge([path], out, salvage=True, overwrite=True)
            continue
        merged = merge([path], out, salvage=True, overwrite=True)
        assert merged.num_items == kept
        assert [loss.cut_off for loss in merged.losses] == ([] if length >= ends[-1] + header_end else [True])
        for key, tokens in Shard(out, model_of).items():
            assert same(tokens, ITEMS[key])


def test_every_flipped_byte(tmp_path):
    data = shard_bytes(ITEMS)
    path, out = tmp_path / "flipped.vqts", tmp_path / "out.vqts"
    path.write_bytes(data)
    with Shard(path) as whole:
        spans = [range(record.start, record.end) for record in map(whole.find, whole)]
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 + place % 255)]) + data[place + 1 :])
        hit = [key for key, span in zip(ITEMS, spans, strict=True) if place in span]
        if not hit:
            with pytest.raises((CorruptFileError, UnsupportedVersionError), match=r"flipped\.vqts: "):
                Shard(path)
        else:
            shard = Shard(path, model_of)
            with pytest.raises(CorruptFileError) as caught:
                shard[hit[0]]
            assert str(caught.value) == f"{path}: {hit[0]}: damaged; vqtok merge --salvage keeps the intact items"
            for number, (key, tokens) in enumerate(ITEMS.items()):
                for way in (key, number):
                    with contextlib.suppress(CorruptFileError):
                        assert same(shard[way], tokens)
        merged = merge([path], out, salvage=True, overwrite=True)
        assert len(merged.losses) <= 1
        with Shard(out, model_of) as saved:
            assert list(saved) == [key for key in ITEMS if key not in hit]
            for key, tokens in saved.items():
                assert same(tokens, ITEMS[key])


def test_damage_in_the_middle_is_told(path, tmp_path):
    data = bytearray(path.read_bytes())
    record = Shard(path).find("c")
    data[record.start : record.end] = os.urandom(record.end - record.start)
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptFileError, match="item 2 is damaged"):
        merge([path], tmp_path / "out.vqts")
    assert not (tmp_path / "out.vqts").exists()
    merged = merge([path], tmp_path / "out.vqts", salvage=True)
    (loss,) = merged.losses
    assert (loss.start, loss.end, loss.after, loss.cut_off) == (record.start, record.end, "é\n", False)
    assert f"bytes {record.start} to {record.end}" in str(loss)
    assert list(Shard(tmp_path / "out.vqts")) == [key for key in ITEMS if key != "c"]


def test_records_between_garbage_are_found(path, tmp_path):
    """Whatever stands between, also bytes that look like the beginning of records and headers."""
    data = path.read_bytes()
    records = [data[record.start : record.end] for record in map(Shard(path).find, ITEMS)]
    header, start = parse_shard_header(data)
    noise = [b"\x80\x01", os.urandom(5000), records[0][:-1], data[: start - 1], b"\x89VS\n" * 3, b"\x80\x7f" * 99]
    mixed = b"".join(part for pair in zip(noise, records, strict=False) for part in pair)
    (tmp_path / "mixed").write_bytes(header.pack() + mixed)
    merged = merge([tmp_path / "mixed"], tmp_path / "out.vqts", salvage=True)
    assert list(Shard(tmp_path / "out.vqts")) == list(ITEMS)
    assert len(merged.losses) == 6  # Five gaps, and the end.


def sealed_record(header: ShardHeader, fields: bytes) -> bytes:
    return fields + checksum(fields)


HUGE = b"\xff\xff\xff\xff\x7f"  # 2^35 - 1


@pytest.mark.parametrize(
    "fields",
    [
        b"\x00\x01a\x30\x00",  # not a record's first byte
        b"\x87\x01a\x30\x00",  # an unknown coder
        b"\x80\x00\x30\x00",  # no key
        b"\x80\x01\x00\x30\x00",
        b"\x80\x01\xff\x30\x00",  # a key that is not text
        b"\x80" + HUGE + b"a\x30\x00",
        b"\x80\x81\x20" + b"a" * 4097 + b"\x30\x00",
        b"\x80\x01a\x00\x00",  # no width
        b"\x80\x01a" + HUGE + b"\x00",
        b"\xa0\x01a" + HUGE + HUGE + b"\x00",
        b"\x90\x01a\x30\x00\x01\x00",  # an empty grid
        b"\x90\x01a\x30" + HUGE + HUGE + b"\x00",
        b"\x88\x01a\x30" + HUGE + b"\x00",  # metadata
        b"\x80\x01a\x30\x7f",  # shorter than nothing
        b"\x80\x01a\x30\x00",  # without its payload
    ],
)
def test_limits_of_records_are_checked_before_anything_is_allocated(fields):
    header = ShardHeader(modality="image", model=MODEL, codebook_sizes=SIZES, stride=16, usual_size=(32,))
    good = pack_record(header, "a", "packed", (48, 32), (2, 3), {}, bytes(5))
    assert good == sealed_record(header, b"\x80\x01a\x30\x00" + bytes(5))
    assert parse_record(header, good, 0, len(good)).grid == (2, 3)
    data = sealed_record(header, fields)
    tracemalloc.start()
    with pytest.raises(CorruptFileError):
        parse_record(header, data, 0, len(data))
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize("claim", [0, 2**62, 6])
def test_index_that_claims_too_much(path, claim):
    data = path.read_bytes()
    index_at = data.rfind(b"\x89VS\n") + parse_shard_header(data)[1]
    body = data[index_at:-24] + claim.to_bytes(8, "little") + data[-16:-8]
    path.write_bytes(data[:index_at] + body + checksum(body) + data[-4:])
    with pytest.raises(CorruptFileError, match="index is damaged"):
        Shard(path)


def test_not_shards(tmp_path):
    path = tmp_path / "x.vqts"
    for content in (b"", b"text", dump(item(0))):
        path.write_bytes(content)
        with pytest.raises(CorruptFileError, match=r"x\.vqts: not a shard"):
            Shard(path)
        with pytest.raises(CorruptFileError, match=r"x\.vqts: contains no intact header"):
            merge([path], tmp_path / "out.vqts", salvage=True)
    with pytest.raises(MediaError, match="none: cannot be read: No such file"):
        Shard(tmp_path / "none")
    assert not (tmp_path / "out.vqts").exists()


def test_versions_and_flags(path):
    data = path.read_bytes()
    header, end = parse_shard_header(data)

    def changed(place: int, value: int) -> bytes:
        body = data[:place] + bytes([value]) + data[place + 1 : end - 4]
        return body + checksum(body)

    assert parse_shard_header(changed(4, 0x1F))[0].version == "1.15"
    assert parse_shard_header(changed(5, 0x80))[0] == header
    for place, value in ((4, 0x20), (5, 1), (5, 0x10), (5, 0x40)):
        with pytest.raises(UnsupportedVersionError, match="upgrade"):
            parse_shard_header(changed(place, value))


# Writing and joining.


def test_writer_refuses_what_does_not_belong_together(tmp_path):
    writer = ShardWriter(io.BytesIO())
    with pytest.raises(UsageError, match="at least one item"):
        writer.finish()
    for key in ("", "x" * (MAX_KEY_BYTES + 1), "a\0b"):
        with pytest.raises(ValueError, match="key"):
            writer.add(key, item(0))
    assert writer.header is None
    writer.add("a", item(0))
    for key, tokens, error, message in [
        ("a", item(1), UsageError, "two items with the key a"),
        ("b", item(1, model=bytes(8)), WrongModelError, "made by model 0000000000000000, items before it by 3f9a"),
        ("b", item(1).prefix(1), UsageError, "other codebooks"),
        ("b", item(1, stride=8), UsageError, "other codebooks"),
        ("b", item(1, metadata={"n": float("nan")}), ValueError, "JSON"),
    ]:
        with pytest.raises(error, match=message):
            writer.add(key, tokens)
    assert writer.keys == {"a"}
    with pytest.raises(UsageError):
        write_shard(tmp_path / "x.vqts", [("a", item(0)), ("a", item(1))])
    assert list(tmp_path.iterdir()) == []


def test_existing_outputs_are_kept(path):
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"x\.vqts: output exists; `overwrite`"):
        write_shard(path, {"a": item(0)}.items())
    with pytest.raises(OutputError, match=r"x\.vqts: output exists; `overwrite`"):
        merge([path], path)
    assert path.read_bytes() == before
    merge([path], path, overwrite=True)
    assert path.read_bytes() == before


def test_merge(path, tmp_path):
    other, out = tmp_path / "other.vqts", tmp_path / "out.vqts"
    more = {f"{number}": item(number, size=(number + 40, 99)) for number in range(5, 40)}
    write_shard(other, more.items(), ENTROPY_MODEL)
    assert merge([other, path], out).num_items == 40
    with Shard(out, model_of) as shard:
        assert list(shard) == [*more, *ITEMS]
        for key, tokens in (more | ITEMS).items():
            assert same(shard[key], tokens)
    write_shard(other, {"c": item(7)}.items(), overwrite=True)
    with pytest.raises(UsageError, match=r"other\.vqts: there are two items with the key c"):
        merge([path, other], out, overwrite=True)
    assert len(Shard(out)) == 40
    assert merge([other, path], out, salvage=True, overwrite=True).num_items == 5
    assert same(Shard(out, model_of)["c"], item(7))
    write_shard(other, {"x": item(7, model=bytes(8))}.items(), overwrite=True)
    with pytest.raises(WrongModelError, match=r"other\.vqts: made by model 0000"):
        merge([path, other], out, overwrite=True)


@pytest.mark.parametrize("tail", [b"", b"\x80\x05abc", b"\0" * 50])
def test_resume_goes_on_behind_the_last_whole_item(tmp_path, tail):
    data = shard_bytes(ITEMS)
    (tmp_path / "x.vqts").write_bytes(data)
    third = Shard(tmp_path / "x.vqts").find(2)
    (tmp_path / "part").write_bytes(data[: third.end] + tail)
    with (tmp_path / "part").open("r+b") as file:
        writer = ShardWriter.resume(file)
        assert writer.keys == set(list(ITEMS)[:3])
        for key in list(ITEMS)[3:]:
            writer.add(key, ITEMS[key], ENTROPY_MODEL)
        writer.finish()
    assert (tmp_path / "part").read_bytes() == data


# Many items.


def test_many_items(tmp_path):
    """Opening builds nothing for each item."""
    count = 100_000
    header = ShardHeader(modality="image", model=MODEL, codebook_sizes=(16,), stride=16, usual_size=(16,))
    records = [pack_record(header, f"{n * n}", "packed", (16, 16), (1, 1), {}, bytes([n % 16])) for n in range(count)]
    starts = list(itertools.accumulate(map(len, records), initial=len(header.pack())))
    hashed = [key_hash(f"{n * n}") for n in range(count)]
    twins = {value for value, times in Counter(hashed).items() if times > 1}
    hashes = b"".join(value.to_bytes(3, "little") for value in hashed)
    offsets = b"".join(start.to_bytes(8, "little") for start in starts[:count:GROUP])
    path = tmp_path / "many.vqts"
    path.write_bytes(header.pack() + b"".join(records) + pack_index(header, hashes, offsets, starts[-1]))
    tracemalloc.start()
    shard = Shard(path)
    assert tracemalloc.get_traced_memory()[0] < 5 * count
    tracemalloc.stop()
    for number in (0, 1, GROUP, count // 3, count - 1):
        assert shard[number].codes.item() == number % 16
        assert shard[f"{number * number}"].codes.item() == number % 16
    assert "2" not in shard
    same_hash = [number for number in range(count) if hashed[number] in twins]
    assert len(same_hash) > 100  # These are told apart by their keys.
    for number in same_hash[:50]:
        assert shard[f"{number * number}"].codes.item() == number % 16


# The command line.


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Make a folder of small pictures, one of them bad."""
    folder = tmp_path / "album"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(["a.png", "deep/b.PNG", "deep/c.v1.webp", "z.png"]):
        Image.fromarray(picture(9 + number, 7)).save(folder / name)
    (folder / "bad.png").write_bytes(b"nothing")
    return folder


KEYS = ["a.png", "deep/b.PNG", "deep/c.v1.webp", "z.png"]


def lines(result) -> list[dict]:
    lines = map(json.loads, result.stdout.splitlines())
    return [line for line in lines if line.get("kind") != "summary"]


def test_encode_reports_a_bad_item_and_does_the_rest(run, album, tmp_path):
    out = tmp_path / "new/all.vqts"
    result = run("encode", album, "--shard", out)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "bad.png: is not an image" in result.stderr
    assert f"{album}/a.png 9x7 -> {out} " in result.stderr
    assert result.stderr.endswith("4 done, 0 skipped, 1 failed\n")
    assert sorted(path.name for path in out.parent.iterdir()) == ["all.failures.jsonl", "all.vqts"]
    with vqtok.open_shard(out) as shard:
        assert list(shard) == KEYS
        for key, tokens in shard.items():
            assert same(tokens, vqtok.encode(album / key))


@pytest.mark.parametrize("coder", ["packed", "static"])
def test_coder(run, album, tmp_path, coder):
    (album / "bad.png").unlink()
    run("encode", album, "--shard", tmp_path / "auto.vqts")
    assert run("encode", album, "--shard", tmp_path / "x.vqts", "--coder", coder).exit_code == 0
    (auto,), (chosen,) = (lines(run("inspect", tmp_path / f"{name}.vqts", "--json")) for name in ("auto", "x"))
    # What would take more bytes than packed codes is packed.
    assert chosen["coders"] == (auto["coders"] if coder == "static" else {"packed": 4})
    result = run("encode", album, "--shard", tmp_path / "y.vqts", "--coder", "prior")
    assert (result.exit_code, result.stderr.count("tokens coded with a prior need")) == (1, 4)
    assert not (tmp_path / "y.vqts").exists()


def test_nothing_to_write(run, album, tmp_path):
    result = run("encode", album / "bad.png", "--shard", tmp_path / "x.vqts")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["album"]


def test_sounds(run, tmp_path):
    for number, channels in enumerate((1, 2)):
        soundfile.write(tmp_path / f"{number}.wav", wave(700 + number, 8000, channels), 8000)
    out = tmp_path / "x.vqts"
    assert run("encode", tmp_path / "0.wav", tmp_path / "1.wav", "--shard", out, "--codebooks", 2).exit_code == 0
    shard = vqtok.open_shard(out)
    assert shard.header.model_rate == 16_000
    assert same(shard[0], vqtok.encode(tmp_path / "0.wav", num_codebooks=2))
    assert run("decode", out, "-o", tmp_path / "back").exit_code == 0
    info = soundfile.info(tmp_path / "back/1.wav")
    assert (info.frames, info.samplerate, info.channels) == (701, 8000, 2)
    (facts,) = lines(run("inspect", out, "--json"))
    assert facts["duration_seconds"] == pytest.approx((700 + 701) / 8000)
    assert facts["kbps"] == pytest.approx(8 * out.stat().st_size / facts["duration_seconds"] / 1000)
    assert "0.18 s" in run("inspect", out).stdout


@pytest.fixture
def shard(run, album, tmp_path) -> Path:
    (album / "bad.png").unlink()
    assert run("encode", album, "--shard", tmp_path / "x.vqts", "-q").exit_code == 0
    return tmp_path / "x.vqts"


def test_decode_looks_into_shards_in_a_folder(run, album, shard, tmp_path):
    folder = tmp_path / "mixed"
    (folder / "sub").mkdir(parents=True)
    shard.rename(folder / "sub" / "all.vqts")
    run("encode", album, "-o", folder / "single")
    (folder / "damaged.vqts").write_bytes(b"damaged")
    result = run("decode", folder, "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("damaged.vqts: not a shard")) == (1, 1)
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    names = {path.removeprefix("single/") for path in found if path.startswith("single/")}
    assert len(names) > 1
    assert found == {f"{place}/{name}" for place in ("single", "sub/all") for name in names}


def test_decode_all_or_some(run, album, shard, tmp_path):
    assert run("decode", shard, "-o", tmp_path / "all").exit_code == 0
    decoded = sorted(path.relative_to(tmp_path / "all").as_posix() for path in (tmp_path / "all").rglob("*.*"))
    assert decoded == ["a.png", "deep/b.png", "deep/c.v1.png", "z.png"]
    result = run("decode", shard, "--key", "deep/b.PNG")
    assert result.stderr == f"{shard}: deep/b.PNG -> {tmp_path}/b.png 10x7 (4 of 4 codebooks)\n"
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "all/deep/b.png").read_bytes()
    arguments = "decode", shard, "--key", "z.png", "--key", "none", "--key", "a.png", "-o", tmp_path / "some", "--json"
    result = run(*arguments)
    assert result.exit_code == 1
    assert f"error: {shard}: none: contains no item with this key" in result.stderr
    assert [(facts["key"], facts.get("exit_code", 0)) for facts in lines(result)] == [
        ("z.png", 0),
        ("none", 1),
        ("a.png", 0),
    ]
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["a.png", "failures.jsonl", "z.png"]
    assert run("decode", shard, "--key", "a.png", "-o", "-").stdout_bytes == (tmp_path / "all/a.png").read_bytes()
    arguments = "decode", shard, "--key", "a.png", "-o", tmp_path / "few.png", "--codebooks", 1
    assert "(1 of 4 codebooks)" in run(*arguments).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decode", "SHARD"], "contains several items; give -o DIR"),
        (["decode", "SHARD", "SHARD", "--key", "a.png"], "give one shard"),
        (["decode", "ALBUM/a.png", "--key", "a.png"], "give one shard"),
        (["encode", "ALBUM", "--shard", "OUT", "-o", "OUT"], "--shard replaces -o"),
        (["encode", "ALBUM", "-o", "OUT"], "to write a shard give --shard"),
        (["encode", "-", "--shard", "OUT"], "-: has no name that could be its key"),
        (["encode", "ALBUM/none.png", "--shard", "OUT"], "none.png: no such file"),
        (["encode", "ALBUM", "ALBUM/a.png", "--shard", "OUT"], "would both have the key a.png; rename one"),
        (["encode", "ALBUM", "ALBUM/../s.wav", "--shard", "OUT"], "a shard cannot hold both images and audio"),
    ],
)
def test_usage_errors(run, album, shard, tmp_path, arguments, message):
    soundfile.write(tmp_path / "s.wav", wave(300, 8000), 8000)
    before = sorted(tmp_path.rglob("*"))
    places = {"SHARD": str(shard), "ALBUM": str(album), "OUT": str(tmp_path / "out.vqts")}
    for word, place in places.items():
        arguments = [argument.replace(word, place) for argument in arguments]
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("key", ["../up.png", "/up.png", "a/../../up.png"])
def test_keys_do_not_lead_out_of_the_folder(run, shard, tmp_path, key):
    tokens = vqtok.open_shard(shard)[0]
    write_shard(tmp_path / "in/odd.vqts", [(key, tokens), ("b.png", tokens)])
    result = run("decode", tmp_path / "in/odd.vqts", "-o", tmp_path / "in/out")
    assert result.exit_code == 2
    assert "leads out of the folder" in result.stderr
    assert not (tmp_path / "in/out").exists()
    assert run("decode", tmp_path / "in/odd.vqts", "--key", key, "-o", tmp_path / "in/x.png").exit_code == 0


def test_names_that_are_no_text(run, shard, tmp_path):
    name = os.fsdecode(b"\xff\n.png")
    Image.fromarray(picture(5, 5)).save(tmp_path / "album" / name)
    assert run("encode", tmp_path / "album", "--shard", shard, "--skip-existing").exit_code == 0
    assert list(vqtok.open_shard(shard)) == [*KEYS, name]
    assert run("decode", shard, "--key", name, "-o", tmp_path / "out.png").exit_code == 0
    assert "\\udcff\\n.png 5x5" in run("inspect", shard).stdout


def test_inspect(run, shard, tmp_path, image_model):
    facts = vqtok.inspect(shard)
    parts = [vqtok.open_shard(shard).find(key) for key in KEYS]
    assert facts == {
        "file": str(shard),
        "kind": "shard",
        "version": "1.0",
        "modality": "image",
        "model": vqtok.inspect(image_model)["identity"][:16],
        "coders": facts["coders"],
        "num_codebooks": 4,
        "codebook_sizes": [16] * 4,
        "stride": 4,
        "num_items": 4,
        "num_tokens": 4 * 3 * 2 * 4,
        "raw_bits": 4 * 4 * 3 * 2 * 4,
        "coded_bits": sum(8 * part.payload_bytes for part in parts),
        "file_bytes": shard.stat().st_size,
        "bpp": pytest.approx(8 * shard.stat().st_size / (7 * (9 + 10 + 11 + 12))),
    }
    assert sum(facts["coders"].values()) == 4
    assert lines(run("inspect", shard, "--json")) == [facts]
    listed = lines(run("inspect", shard, "--json", "--items"))
    assert listed[0] == facts
    assert [(entry["kind"], entry["key"], entry["width"]) for entry in listed[1:]] == [
        ("tokens", key, 9 + number) for number, key in enumerate(KEYS)
    ]


def test_inspect_lists_the_first_items(run, tmp_path):
    path = tmp_path / "x.vqts"
    path.write_bytes(shard_bytes({f"n{number}": item(number) for number in range(13)}))
    result = run("inspect", path)
    assert result.stdout.count("48x") + result.stdout.count("47x") + result.stdout.count("46x") == 10
    assert "3 more" in result.stderr
    assert run("inspect", path, "--items").stdout.count(" tokens, ") == 13


def test_usage_of_shards_equals_that_of_files(run, album, shard, tmp_path):
    assert run("encode", album, "-o", tmp_path / "tokens").exit_code == 0
    (tmp_path / "shards").mkdir()
    shard.rename(tmp_path / "shards/x.vqts")
    (files,) = lines(run("inspect", "--usage", tmp_path / "tokens", "--json"))
    (items,) = lines(run("inspect", "--usage", tmp_path / "shards", "--json"))
    assert files == items
    assert files["num_files"] == 4


def test_damaged_shards(run, shard, tmp_path):
    data = shard.read_bytes()
    record = vqtok.open_shard(shard).find("deep/b.PNG")
    shard.write_bytes(data[: record.end - 5] + b"\xaa" + data[record.end - 4 :])
    result = run("decode", shard, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert f"error: {shard}: deep/b.PNG: damaged; vqtok merge --salvage keeps the intact items\n" in result.stderr
    assert result.stderr.endswith("3 done, 0 skipped, 1 failed\n")
    for command in (["inspect", shard], ["inspect", "--usage", shard], ["merge", shard, "-o", tmp_path / "y.vqts"]):
        result = run(*command)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (4, "", 1)
        assert f"error: {shard}: " in result.stderr
    result = run("merge", "--salvage", shard, "-o", tmp_path / "y.vqts", "--json")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"damaged after item a.png: bytes {record.start} to {record.end} are not an item" in result.stderr
    (facts,) = lines(result)
    assert (facts["num_items"], facts["losses"][0]["after"]) == (3, "a.png")
    assert list(vqtok.open_shard(tmp_path / "y.vqts")) == ["a.png", "deep/c.v1.webp", "z.png"]
    shard.write_bytes(data[: record.start] + b"\0" + data[record.start + 1 :])
    result = run("decode", shard, tmp_path / "y.vqts", "-o", tmp_path / "more")
    assert (result.exit_code, result.stderr.count("error: ")) == (1, 1)
    assert f"error: {shard}: item 1 is damaged: no record begins here; vqtok merge" in result.stderr
    assert result.stderr.endswith("3 done, 0 skipped, 1 failed\n")
    shard.write_bytes(data[: record.end + 9])
    for command in (["inspect", shard], ["decode", shard]):
        result = run(*command)
        assert (result.exit_code, result.stderr.count("\n")) == (4, 1)
        assert f"{shard}: cut off, or writing it was interrupted" in result.stderr
    result = run("merge", "--salvage", shard, "-o", tmp_path / "y.vqts", "--force")
    assert "cut off after item deep/b.PNG: the last 9 bytes are not an item" in result.stderr
    assert result.stderr.endswith("y.vqts: 2 items, " + f"{(tmp_path / 'y.vqts').stat().st_size} bytes\n")


def test_wrong_model(run, shard, make_model, tmp_path):
    other = make_model("image", seed=1)
    result = run("decode", shard, "-o", tmp_path / "out", "--model", other)
    assert (result.exit_code, result.stderr.count("made by model")) == (1, 4)
    result = run("decode", shard, "--key", "a.png", "--model", other)
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    result = run("encode", tmp_path / "album", "--shard", shard, "--skip-existing", "--model", other)
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert f"{shard}: made by model" in result.stderr
    result = run("encode", tmp_path / "album", "--shard", shard, "--skip-existing", "--codebooks", 2)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert len(vqtok.open_shard(shard)) == 4
    assert not shard.with_name("x.vqts.part").exists()


def interrupted_encode(run, album, path, monkeypatch, after: int, *options):
    """Encode a folder to a shard with Ctrl-C after some items, which are told apart by their width."""
    from vqtok.codec.codec import Codec

    encode = Codec.encode_image

    def interrupt(self, pixels, *arguments):
        if pixels.shape[-1] >= 9 + after:
            raise KeyboardInterrupt
        return encode(self, pixels, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Codec, "encode_image", interrupt)
        return run("encode", album, "--shard", path, *options)


def test_ctrl_c_and_going_on(run, album, shard, tmp_path, monkeypatch):
    path = tmp_path / "y.vqts"
    partial_shard = tmp_path / "y.vqts.part"
    result = interrupted_encode(run, album, path, monkeypatch, 2)
    assert result.exit_code == 130
    assert f"warning: {partial_shard} keeps the 2 finished items; --skip-existing continues it\n" in result.stderr
    assert not path.exists()
    assert partial_shard.exists()
    result = run("encode", album, "--shard", path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"{partial_shard}: left by an interrupted run; --skip-existing continues" in result.stderr
    os.truncate(partial_shard, partial_shard.stat().st_size - 3)
    assert interrupted_encode(run, album, path, monkeypatch, 0, "--skip-existing").exit_code == 130
    result = run("encode", album, "--shard", path, "--skip-existing", "--json")
    assert result.exit_code == 0
    assert result.stderr.endswith("3 done, 1 skipped, 0 failed\n")
    assert [entry.get("skipped", False) for entry in lines(result)] == [True, False, False, False]
    assert path.read_bytes() == shard.read_bytes()
    assert not partial_shard.exists()


def test_ctrl_c_before_anything_is_done_leaves_nothing(run, album, tmp_path, monkeypatch):
    (album / "bad.png").unlink()
    assert interrupted_encode(run, album, tmp_path / "y.vqts", monkeypatch, 0).exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["album"]


def test_existing_shards(run, album, shard, monkeypatch, tmp_path):
    before = shard.read_bytes()
    result = run("encode", album, "--shard", shard)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"{shard}: output exists; --force" in result.stderr
    Image.fromarray(picture(20, 20)).save(album / "new.png")
    (album / "a.png").unlink()
    assert interrupted_encode(run, album, shard, monkeypatch, 0, "--skip-existing").exit_code == 130
    assert shard.read_bytes() == before
    result = run("encode", album, "--shard", shard, "--skip-existing")
    assert result.stderr.endswith("1 done, 3 skipped, 0 failed\n")
    assert list(vqtok.open_shard(shard)) == [*KEYS, "new.png"]
    assert run("encode", album, "--shard", shard, "--force").exit_code == 0
    assert list(vqtok.open_shard(shard)) == [*KEYS[1:3], "new.png", "z.png"]
    shard.write_bytes(before[:-1])
    assert run("encode", album, "--shard", shard, "--skip-existing").exit_code == 4
    assert shard.read_bytes() == before[:-1]
    assert {path.name for path in tmp_path.iterdir()} == {"album", "x.vqts"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(run, album, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    result = run("encode", album, "--shard", tmp_path / "closed/x.vqts")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "cannot be written: Permission denied" in result.stderr


def test_full_disk(run, album, tmp_path):
    (tmp_path / "x.vqts.part").symlink_to("/dev/full")
    result = run("encode", album / "a.png", "--shard", tmp_path / "x.vqts", "--skip-existing")
    assert (result.exit_code, result.stderr.count("error: ")) == (1, 1)
    assert "x.vqts.part: cannot be written: No space left on device" in result.stderr
