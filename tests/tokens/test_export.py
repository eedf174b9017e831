"""vqtok.tokens.export.export and what it stands on, vqtok.jobs.export, and `vqtok export`."""

from __future__ import annotations

import builtins
import json
import os
import re
import struct
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from conftest import files_in, json_lines
from hypothesis import given
from hypothesis import strategies as st

import vqtok
from vqtok.errors import (
    CorruptFileError,
    MediaError,
    OutputError,
    UnsupportedVersionError,
    UsageError,
    WrongModelError,
)
from vqtok.tokens.export import formats as targets
from vqtok.tokens.export.export import read_export, write_export
from vqtok.tokens.export.layout import Layout, Vocabulary, to_ids
from vqtok.tokens.export.options import TABLES, ExportFormat, ExportOptions
from vqtok.tokens.export.sidecar import json_file
from vqtok.tokens.export.text import DEFAULT_TEXTS, TokenText
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.file import dump

TARGETS, LAYOUTS = get_args(ExportFormat), get_args(Layout)
MODEL = b"\1\2\3\4\5\6\7\x08"


def image(width=5, height=4, sizes=(7, 9), seed=0, **changes):
    """Make tokens of a picture, with a stride of 1."""
    codes = np.stack([np.random.default_rng(seed).integers(size, size=(height, width)) for size in sizes])
    return replace(
        Tokens(codes, codebook_sizes=sizes, modality="image", size=(width, height), stride=1, model=MODEL), **changes
    )


def sound(time=6, channels=1, sizes=(7, 9)):
    """Make tokens of a sound, with a stride of 2."""
    grid = (time,) if channels == 1 else (channels, time)
    codes = np.stack([np.random.default_rng(time).integers(size, size=grid) for size in sizes])
    return Tokens(codes, codebook_sizes=sizes, modality="audio", size=(2 * time, 8000, channels), stride=2, model=MODEL)


def equal(a, b):
    """Compare tokens in all they hold."""
    return all(np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(Tokens))


ITEMS = {"a": image(), "b/c": image(3, 2, seed=1), "é": image(1, 1, metadata={"scale": [0.5]})}
SOUNDS = {"mono": sound(), "stereo": sound(9, 2)}


def out(folder, to):
    return folder / ("x.bin" if to == "megatron" else "x")


@pytest.fixture
def tokens_dir(tmp_path):
    """Write token files into a folder."""
    for key, tokens in ITEMS.items():
        path = tmp_path / f"in/{key}.vqt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dump(tokens))
    return tmp_path / "in"


# Round trips.


@pytest.mark.parametrize("items", [ITEMS, SOUNDS], ids=["images", "sounds"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("to", TARGETS)
def test_read_back(tmp_path, to, layout, items, monkeypatch):
    monkeypatch.setattr(targets, "ROW_GROUP_IDS", 40)  # So that Parquet files have several.
    recipe = ExportOptions(to, layout, offset=100, begin_token="auto", end_token="auto", row_token="auto")
    facts = write_export(items.items(), out(tmp_path, to), recipe)
    read = vqtok.read_export(facts["files"][0])
    assert list(read) == list(items)
    assert all(equal(read[key], tokens) for key, tokens in items.items())
    assert facts["num_items"] == len(items)
    assert facts["num_ids"] == sum(to_ids(t.codes, layout, read.form.vocabulary).size for t in items.values())
    assert sorted(files_in(tmp_path)) == sorted(Path(file).name for file in facts["files"])


@given(
    sizes=st.lists(st.integers(2, 3000), min_size=1, max_size=4).map(tuple),
    grids=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    to=st.sampled_from(TARGETS),
    layout=st.sampled_from(LAYOUTS),
    offset=st.integers(0, 2**31 - 20_000) | st.integers(60_000, 66_000),
    shared=st.booleans(),
    row=st.sampled_from(["none", "auto"]),
    ends=st.sampled_from([None, "none", "auto"]),
)
def test_round_trip(tmp_path_factory, sizes, grids, to, layout, offset, shared, row, ends):
    items = {str(index): image(*grid, sizes, index) for index, grid in enumerate(grids)}
    folder = tmp_path_factory.mktemp("export")
    recipe = ExportOptions(to, layout, offset, shared, row_token=row, begin_token=ends, end_token=ends)
    facts = write_export(items.items(), out(folder, to), recipe)
    read = read_export(facts["files"][0])
    assert list(read) == list(items)
    assert all(equal(read[key], tokens) for key, tokens in items.items())


# What the files hold.


def ids_of(layout, **vocabulary):
    words = Vocabulary((7, 9), **vocabulary)
    return [to_ids(tokens.codes, layout, words) for tokens in ITEMS.values()]


def facts_of(path):
    return json.loads(json_file(path).read_text())


@pytest.mark.parametrize("layout", ["flat", "parallel"])
def test_npy(tmp_path, layout):
    write_export(ITEMS.items(), tmp_path / "x.npy", ExportOptions("npy", layout))
    found = np.load(tmp_path / "x.npy")
    assert found.dtype == "<u2"
    assert np.array_equal(found, np.concatenate(ids_of(layout)))


@pytest.mark.parametrize(("offset", "dtype"), [(0, "<u2"), (65_499 - 16, "<u2"), (65_500 - 16, "<i4")])
def test_bin_and_where_its_documents_begin(tmp_path, offset, dtype):
    write_export(ITEMS.items(), tmp_path / "x.bin", ExportOptions("bin", offset=offset))
    found = np.fromfile(tmp_path / "x.bin", dtype)
    ids = ids_of("flat", offset=offset)
    assert np.array_equal(found, np.concatenate(ids))
    facts = facts_of(tmp_path / "x.bin")
    assert facts["dtype"] == {"<u2": "uint16", "<i4": "int32"}[dtype]
    places = [(item["key"], item["start"], item["start"] + item["length"]) for item in facts["items"]]
    assert places == [("a", 0, 40), ("b/c", 40, 52), ("é", 52, 54)]


def read_megatron(prefix):
    """Read documents the way that megatron.core.datasets.indexed_dataset does."""
    index = Path(f"{prefix}.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\0\0"
    version, code, num_sequences, num_documents = struct.unpack_from("<QBQQ", index, 9)
    assert version == 1
    dtype = {4: np.int32, 8: np.uint16}[code]
    lengths = np.frombuffer(index, np.int32, num_sequences, 34)
    pointers = np.frombuffer(index, np.int64, num_sequences, 34 + lengths.nbytes)
    documents = np.frombuffer(index, np.int64, num_documents, 34 + lengths.nbytes + pointers.nbytes)
    assert len(index) == 34 + lengths.nbytes + pointers.nbytes + documents.nbytes
    data = Path(f"{prefix}.bin").read_bytes()
    found = [np.frombuffer(data, dtype, n, at) for n, at in zip(lengths, pointers, strict=True)]
    assert documents.tolist() == list(range(num_sequences + 1))
    assert sum(sequence.nbytes for sequence in found) == len(data)
    return found


@pytest.mark.parametrize(("name", "offset"), [("train", 0), ("train.v1", 70_000), ("train.bin", 0)])
def test_megatron(tmp_path, name, offset):
    write_export(ITEMS.items(), tmp_path / name, ExportOptions("megatron", offset=offset))
    prefix = name.removesuffix(".bin")
    assert files_in(tmp_path) == [f"{prefix}.bin", f"{prefix}.bin.json", f"{prefix}.idx"]
    found = read_megatron(tmp_path / prefix)
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in ids_of("flat", offset=offset)]
    assert found[0].dtype == (np.int32 if offset else np.uint16)


@pytest.mark.parametrize("layout", ["flat", "parallel"])
def test_jsonl_and_parquet(tmp_path, layout):
    parquet = pytest.importorskip("pyarrow.parquet")
    expected = [
        {"key": key, "size": list(tokens.size), "grid": list(tokens.grid), "input_ids": ids.tolist()}
        for (key, tokens), ids in zip(ITEMS.items(), ids_of(layout), strict=True)
    ]
    expected[2]["metadata"] = {"scale": [0.5]}
    write_export(ITEMS.items(), tmp_path / "x.jsonl", ExportOptions("jsonl", layout))
    assert [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()] == expected
    write_export(ITEMS.items(), tmp_path / "x.parquet", ExportOptions("parquet", layout))
    rows = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    for row in rows:
        metadata = row.pop("metadata")
        row |= {} if metadata is None else {"metadata": json.loads(metadata)}
    assert rows == expected


def test_the_json_file(tmp_path):
    write_export(SOUNDS.items(), tmp_path / "x", ExportOptions("jsonl", "delay", 50, row_token="3", begin_token="auto"))
    assert facts_of(tmp_path / "x") == {
        "format": "vqtok export",
        "version": 1,
        "to": "jsonl",
        "layout": "delay",
        "modality": "audio",
        "model": MODEL.hex(),
        "stride": 2,
        "codebook_sizes": [7, 9],
        "offset": 50,
        "shared_vocabulary": False,
        "codebook_starts": [50, 57],
        "special_tokens": {"begin": 66, "row": 3, "pad": 67},
        "vocabulary_size": 68,
        "num_items": 2,
        "num_ids": 2 * (1 + 6 + 1 + 1) + 2 * (1 + 2 * (9 + 1) + 1),
    }


def test_tables_may_be_edited(tmp_path):
    """Rows of JSONL and Parquet files may be left out, sorted and written anew by others."""
    pq = pytest.importorskip("pyarrow.parquet")
    write_export(ITEMS.items(), tmp_path / "x.jsonl", ExportOptions("jsonl"))
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    (tmp_path / "x.jsonl").write_text(f"{lines[2]}\r\n\n{lines[0]}")
    read = read_export(tmp_path / "x.jsonl")
    assert list(read) == ["é", "a"]
    assert all(equal(tokens, ITEMS[key]) for key, tokens in read.items())

    write_export(ITEMS.items(), tmp_path / "x.parquet", ExportOptions("parquet", "delay"))
    table = pq.read_table(tmp_path / "x.parquet")
    pq.write_table(table.take([1, 2]).drop_columns("metadata"), tmp_path / "x.parquet", row_group_size=1)
    read = read_export(tmp_path / "x.parquet")
    assert list(read) == ["b/c", "é"]
    assert np.array_equal(read["é"].codes, ITEMS["é"].codes)


# Text.


WORDS = Vocabulary((7, 9), 10, specials={"begin": 26, "end": 27})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (DEFAULT_TEXTS["code"], "<|image|><|image_10|><|image_25|><|/image|>"),
        ("<{code}@{codebook}>", "<|image|><0@0><8@1><|/image|>"),
        ("<|visual token {id:06}|>", "<|image|><|visual token 000010|><|visual token 000025|><|/image|>"),
        ("{id} ", "<|image|>10 25 <|/image|>"),
        ("{{{id}}}", "<|image|>{10}{25}<|/image|>"),
    ],
)
def test_templates(template, expected):
    text = TokenText(DEFAULT_TEXTS | {"code": template}, WORDS, "image")
    assert text.render(np.array([26, 10, 25, 27])) == expected
    assert text.parse(expected).tolist() == [26, 10, 25, 27]
    for wrong in (expected[1:], expected[:-1], expected + "?", expected.replace("5", "999").replace("@1", "@2")):
        with pytest.raises(ValueError, match="is not a token"):
            text.parse(wrong)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{id}", "cannot be separated"),
        ("<{code}>", "cannot be separated"),
        ("<{id:x}>", "cannot be separated"),
        ("<|image|>{id}", "cannot be separated"),
        ("word", "it needs {id} or {code}"),
        ("{id.real}>", "it needs {id} or {code}"),
        ("{}>", "it needs {id} or {code}"),
        ("{id", "template '{id': expected"),
        ("{id}{id}>", "redefinition"),
        ("{id}\n", "line ends"),
        ("", "empty"),
    ],
)
def test_templates_that_cannot_be(template, message):
    with pytest.raises(UsageError, match=message.replace("{", r"\{")):
        TokenText(DEFAULT_TEXTS | {"code": template}, WORDS, "image").render(np.array([26, 20, 11, 25, 27]))
    with pytest.raises(UsageError, match="does not distinguish codebooks"):
        TokenText(DEFAULT_TEXTS | {"code": "<{codebook}:{code}>"}, replace(WORDS, shared=True), "image")


def test_text(tmp_path):
    recipe = ExportOptions("text", template="{code},", begin_token="<boi>", end_token="none", row_token=";")
    items = {"x": image(2, 2, (5,)), "y": image(1, 1, (5,))}
    write_export(items.items(), tmp_path / "x", recipe)
    a, b, c, d = items["x"].codes.ravel()
    first, second = (tmp_path / "x").read_text().splitlines()
    assert first == f"<boi>{a},{b},;{c},{d},;"
    assert second == f"<boi>{items['y'].codes.item()},;"
    assert facts_of(tmp_path / "x")["texts"] == {"code": "{code},", "begin": "<boi>", "row": ";"}
    assert equal(read_export(tmp_path / "x")["x"], items["x"])


# What cannot be.


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"to": "npy", "template": "<{id}>"}, "`template` is only for `to` text"),
        ({"to": "npy", "pad_token": "auto"}, "`pad_token` is only for `layout` delay"),
        ({"to": "npy", "begin_token": "<s>"}, "`begin_token` <s>: must be an id, auto or none"),
        ({"to": "npy", "row_token": 3}, "row token 3: is the id of a code"),
        ({"to": "npy", "row_token": "-3"}, "ids must lie in"),
        ({"to": "npy", "offset": 2**31}, "ids must lie in"),
        ({"to": "npy", "layout": "delay", "pad_token": "none"}, "`pad_token` none: `layout` delay needs a pad token"),
        ({"to": "text", "template": "{id}"}, "cannot be separated"),
    ],
)
def test_choices_that_do_not_go_together(tmp_path, choices, message):
    with pytest.raises(UsageError, match=message):
        write_export(ITEMS.items(), tmp_path / "x", ExportOptions(**choices))
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": bytes(8)}, WrongModelError, f"second: made by model {'00' * 8}, those before by {MODEL.hex()}"),
        ({"codebook_sizes": (9, 9)}, UsageError, "second: another codebook size or stride"),
        ({"stride": 2}, UsageError, "second: another codebook size or stride"),
    ],
)
@pytest.mark.parametrize("to", TARGETS)
def test_tokens_that_do_not_go_together(tmp_path, to, changes, error, message):
    items = [("first", image()), ("second", image(**changes))]
    with pytest.raises(error, match=message):
        write_export(items, out(tmp_path, to), ExportOptions(to))
    assert files_in(tmp_path) == []
    with pytest.raises(MediaError, match="nothing to export"):
        write_export([], out(tmp_path, to), ExportOptions(to))
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("to", TARGETS)
def test_existing_outputs(tmp_path, to):
    facts = write_export([("x", image())], out(tmp_path, to), ExportOptions(to))
    for file in map(Path, facts["files"]):
        before = file.read_bytes()
        others = [Path(other) for other in facts["files"] if Path(other) != file]
        for other in others:
            other.unlink()
        with pytest.raises(OutputError, match=f"{file.name}: output exists; `overwrite`"):
            write_export([("y", image())], out(tmp_path, to), ExportOptions(to))
        assert file.read_bytes() == before
        assert files_in(tmp_path) == [file.name]
        write_export([("y", image())], out(tmp_path, to), ExportOptions(to), overwrite=True)
        assert list(read_export(facts["files"][0])) == ["y"]


@pytest.mark.parametrize("to", TARGETS)
def test_interrupted(tmp_path, to, monkeypatch):
    """Nothing is left under the final names, nor under others."""

    def items():
        yield from ITEMS.items()
        raise KeyboardInterrupt

    monkeypatch.setattr(targets, "ROW_GROUP_IDS", 40)
    with pytest.raises(KeyboardInterrupt):
        write_export(items(), out(tmp_path, to), ExportOptions(to))
    assert files_in(tmp_path) == []


def test_without_pyarrow(tmp_path, monkeypatch):
    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError
        return importing(name, *rest)

    importing = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'vqtok\[parquet\]'"):
        write_export(ITEMS.items(), tmp_path / "x", ExportOptions("parquet"))
    assert files_in(tmp_path) == []


# Reading what is damaged.


@pytest.mark.parametrize("to", TARGETS)
def test_damaged_data(tmp_path, to):
    """Whatever is cut off or changed, an error of one line names the file."""
    facts = write_export(ITEMS.items(), out(tmp_path, to), ExportOptions(to, row_token="auto"))
    path = Path(facts["files"][0])
    data = path.read_bytes()
    cuts = [data[: len(data) * part // 7] for part in range(to in TABLES, 7)]
    changes = [data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :] for at in range(0, len(data), len(data) // 8)]
    for content in cuts + changes:
        path.write_bytes(content)
        error = None
        try:
            dict(read_export(path))
        except CorruptFileError as raised:
            error = str(raised)
        # A changed digit may name another code: JSON and arrays have no checksum.
        assert error or content in changes
        assert not error or re.fullmatch(f"{re.escape(str(path))}: .*; export again", error)
    path.unlink()
    with pytest.raises(MediaError, match="x.*: cannot be read: No such file"):
        read_export(path)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"format": "another"}, CorruptFileError),
        ({"version": 3}, UnsupportedVersionError),
        ({"to": "nonsense"}, CorruptFileError),
        ({"layout": "delay"}, CorruptFileError),
        ({"codebook_sizes": [7]}, CorruptFileError),
        ({"codebook_sizes": "many"}, CorruptFileError),
        ({"special_tokens": None}, CorruptFileError),
        ({"special_tokens": {"row": 3}}, CorruptFileError),
        ({"model": "xyz"}, CorruptFileError),
        ({"offset": 1}, CorruptFileError),
        ({"items": None}, CorruptFileError),
        ({"items": [{"key": 1}]}, CorruptFileError),
        ({"items": [{"key": "a"}]}, CorruptFileError),
        ({"items": [{"key": "a", "size": [5, 4], "grid": [4, 5], "start": 30, "length": 40}]}, CorruptFileError),
        ({"items": [{"key": "a", "size": [5, 4], "grid": [4, 5], "start": -40, "length": 40}]}, CorruptFileError),
        ({"items": [{"key": "a", "size": [5, 4], "grid": [2**30] * 2, "start": 0, "length": 40}]}, CorruptFileError),
        ({"items": [{"key": "a", "size": [5], "grid": [4, 5], "start": 0, "length": 40}]}, CorruptFileError),
        ({"items": [{"key": "a"}, {"key": "a"}]}, CorruptFileError),
    ],
)
@pytest.mark.parametrize("to", ["npy", "bin"])
def test_damaged_json(tmp_path, to, changes, error):
    write_export([("a", image())], tmp_path / "x", ExportOptions(to))
    (tmp_path / "x.json").write_text(json.dumps(facts_of(tmp_path / "x") | changes))
    with pytest.raises(error, match="x") as raised:
        dict(read_export(tmp_path / "x"))
    assert "\n" not in str(raised.value)
    (tmp_path / "x.json").write_text("no JSON")
    with pytest.raises(CorruptFileError, match=r"x\.json: is not the JSON file of an export"):
        read_export(tmp_path / "x")


def test_arrays_with_pickles_are_not_opened(tmp_path):
    write_export([("a", image())], tmp_path / "x", ExportOptions("npy"))
    with (tmp_path / "x").open("wb") as file:
        np.save(file, np.array([{}], object), allow_pickle=True)
    with pytest.raises(CorruptFileError, match="x: "):
        read_export(tmp_path / "x")


@pytest.mark.parametrize("to", ["npy", "bin", "megatron", "jsonl", "parquet", "text"])
def test_threads_share_a_reader(tmp_path, to, monkeypatch):
    """Concurrent reads of one `ParquetFile` crashed the process."""
    monkeypatch.setattr("vqtok.tokens.export.formats.ROW_GROUP_IDS", 200)
    items = {f"{index}": image(seed=index) for index in range(100)}
    vqtok.tokens.export.export.write_export(items.items(), tmp_path / "x", ExportOptions(to))
    export = vqtok.read_export(tmp_path / ("x.bin" if to == "megatron" else "x"))
    with ThreadPoolExecutor(16) as pool:
        for _ in range(5):
            read = pool.map(lambda key: (key, export[key]), list(items))
            assert all(equal(tokens, items[key]) for key, tokens in read)


def test_unknown_key(tmp_path):
    write_export([("a", image())], tmp_path / "x", ExportOptions("npy"))
    read = read_export(tmp_path / "x")
    assert (len(read), "a" in read, "b" in read, read.get("b")) == (1, True, False, None)


# The library.


def test_library(tokens_dir, tmp_path):
    facts = vqtok.export([tokens_dir], tmp_path / "x", "jsonl", layout="delay", num_codebooks=1)
    assert facts["codebook_sizes"] == [7]
    read = vqtok.read_export(tmp_path / "x")
    assert sorted(read) == ["a", "b/c", "é"]
    assert np.array_equal(read["b/c"].codes, ITEMS["b/c"].codes[:1])
    (tokens_dir / "bad.vqt").write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"bad\.vqt: not a token file"):
        vqtok.export([tokens_dir], tmp_path / "y", "jsonl")
    assert not (tmp_path / "y").exists()


def test_a_damaged_item_among_good_ones(tmp_path):
    write_export(ITEMS.items(), tmp_path / "x", ExportOptions("jsonl"))
    lines = (tmp_path / "x").read_text().splitlines()
    lines[1] = re.sub(r'"input_ids": \[\d+', '"input_ids": [16', lines[1])
    (tmp_path / "x").write_text("\n".join(lines))
    read = read_export(tmp_path / "x")
    assert equal(read["a"], ITEMS["a"])
    with pytest.raises(CorruptFileError, match=r"x: b/c: token id 16 is not possible at place 0; export again$"):
        read["b/c"]


def test_shards_among_token_files(run, tokens_dir, tmp_path):
    more = {"d/e.jpg": image(seed=5), "f.v1": image(seed=6), "g.png": image(seed=7)}
    shard = tokens_dir / "z.vqts"
    vqtok.write_shard(shard, more.items())
    vqtok.export([tokens_dir], tmp_path / "x", "jsonl")
    read = vqtok.read_export(tmp_path / "x")
    expected = ITEMS | more
    assert sorted(read) == sorted(expected)
    assert all(equal(read[key], tokens) for key, tokens in expected.items())
    vqtok.export([shard], tmp_path / "first", "jsonl", num_codebooks=1)
    assert equal(vqtok.read_export(tmp_path / "first")["g.png"], more["g.png"].prefix(1))
    with vqtok.open_shard(shard) as opened:
        place = opened.find("f.v1").payload
    data = bytearray(shard.read_bytes())
    data[place] ^= 1
    shard.write_bytes(data)
    result = run("export", shard, "--to", "jsonl", "-o", tmp_path / "some", "--json")
    error, facts = json_lines(result)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"error: {shard}: f.v1: damaged; vqtok merge --salvage" in result.stderr
    assert (error["file"], error["key"], error["exit_code"]) == (str(shard), "f.v1", 4)
    assert (facts["num_items"], facts["failed"]) == (2, 1)
    vqtok.write_shard(shard, {"a.png": image(), "a.jpg": image()}.items(), overwrite=True)
    vqtok.export([shard], tmp_path / "y", "jsonl")
    assert list(vqtok.read_export(tmp_path / "y")) == ["a.png", "a.jpg"]
    assert run("decode", tmp_path / "y", "-o", tmp_path / "back").exit_code == 1


@pytest.mark.parametrize("to", TARGETS)
def test_items_are_held_one_at_a_time(tmp_path, to):
    made = []

    def items():
        for index in range(20):
            tokens = image(seed=index)
            made.append(weakref.ref(tokens))
            yield str(index), tokens
            del tokens
            assert sum(ref() is not None for ref in made) <= 2  # The first decides the form.

    write_export(items(), out(tmp_path, to), ExportOptions(to))


# The command line.


def test_export_and_decode(run, photo, tmp_path):
    """Every target, both ways: the media are those decoded from the token files."""
    assert run("encode", photo, "-o", tmp_path / "in/b/p.vqt").exit_code == 0
    assert run("encode", photo, "-o", tmp_path / "in/q.vqt", "--codebooks", 4).exit_code == 0
    assert run("decode", tmp_path / "in", "-o", tmp_path / "expected").exit_code == 0
    for to in TARGETS:
        data = out(tmp_path, to)
        result = run("export", tmp_path / "in", "--to", to, "-o", data, "--force", "--layout", "parallel")
        vocabulary = 66 if to == "text" else 64
        ids = 3072 + (16 if to == "text" else 0)
        line = rf"2 items -> {data} [\d.]+ \w+ \({ids} token ids, parallel, vocabulary of {vocabulary}\)\n"
        assert result.exit_code == 0
        assert re.fullmatch(line, result.stderr)
        result = run("decode", data, "-o", tmp_path / "back" / to, "--json")
        assert result.exit_code == 0
        assert result.stderr.endswith(": 2 done, 0 skipped, 0 failed\n")
        assert [facts["key"] for facts in json_lines(result)] == ["b/p", "q"]
        for name in ("b/p.png", "q.png"):
            assert (tmp_path / "back" / to / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_decode_one_item(run, sound, tmp_path):
    """One item goes beside its file, or where -o says; options of decode hold."""
    tokens, data = sound.with_suffix(".vqt"), tmp_path / "x.npy"
    run("encode", sound)
    run("export", tokens, "--to", "npy", "-o", data)
    result = run("decode", data)
    assert (result.exit_code, result.stderr) == (
        0,
        f"{data}: sound -> {tmp_path}/x.wav 0.25 s 16000 Hz mono (3 of 3 codebooks)\n",
    )
    run("decode", tokens, "--force")
    assert (tmp_path / "x.wav").read_bytes() == sound.read_bytes()
    assert run("decode", data, "-o", f"{tmp_path / 'new'}/", "--codebooks", 2).exit_code == 0
    run("decode", tokens, "--force", "--codebooks", 2)
    assert (tmp_path / "new/sound.wav").read_bytes() == sound.read_bytes()
    result = run("decode", data, "-o", "-")
    assert result.stdout_bytes == (tmp_path / "x.wav").read_bytes()
    result = run("decode", data)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "x.npy: sound: " in result.stderr
    assert "x.wav: output exists; --force" in result.stderr


def test_decode_needs_a_folder_for_several(run, tokens_dir, tmp_path):
    run("export", tokens_dir, "--to", "jsonl", "-o", tmp_path / "x")
    result = run("decode", tmp_path / "x")
    assert result.exit_code == 2
    assert f"{tmp_path}/x: contains several items; give -o DIR" in result.stderr
    lines = (tmp_path / "x").read_text()
    for key in ("../a", "/a", "b/../../a"):
        (tmp_path / "x").write_text(lines.replace('"a"', f'"{key}"'))
        result = run("decode", tmp_path / "x", "-o", tmp_path / "out")
        assert result.exit_code == 2
        assert "leads out of the folder" in result.stderr
    (tmp_path / "x").write_text("")
    result = run("decode", tmp_path / "x", "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (1, f"error: {tmp_path}/x: contains no items\n")
    (tmp_path / "x").write_text("{}")
    result = run("decode", tmp_path / "x", "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (4, f"error: {tmp_path}/x: lacks 'key'; export again\n")
    assert not (tmp_path / "out").exists()


def test_decode_with_the_wrong_model(run, tokens_dir, tmp_path):
    """The items' model is no model at all; each is refused."""
    run("export", tokens_dir, "--to", "npy", "-o", tmp_path / "x")
    result = run("decode", tmp_path / "x", "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 4)
    assert f"error: {tmp_path}/x: b/c: made by model {MODEL.hex()}, not by " in result.stderr


def test_text_on_stdout(run, photo, tmp_path):
    run("encode", photo)
    tokens = photo.with_suffix(".vqt")
    result = run("export", tokens, "--to", "text", "--codebooks", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.fullmatch(r"<\|image\|>(<\|image_\d+\|>){384}<\|/image\|>\n", result.stdout)
    piped = run("export", "-", "--to", "text", "--codebooks", 1, stdin=tokens.read_bytes())
    assert piped.stdout == result.stdout
    lines = run("export", "-", "--to", "jsonl", "-o", "-", stdin=tokens.read_bytes())
    assert json.loads(lines.stdout)["key"] == "stdin"
    assert files_in(tmp_path) == ["photo.png", "photo.vqt"]


def test_bad_files_are_left_out(run, tokens_dir, tmp_path):
    (tokens_dir / "bad.vqt").write_bytes(b"bad")
    (tokens_dir / "worse.vqt").write_bytes((tokens_dir / "a.vqt").read_bytes()[:-1])
    result = run("export", tokens_dir, "--to", "npy", "-o", tmp_path / "x", "--json")
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == 2
    bad, worse, facts = json_lines(result)
    assert (Path(bad["file"]).name, bad["exit_code"], Path(worse["file"]).name) == ("bad.vqt", 4, "worse.vqt")
    assert (facts["num_items"], facts["failed"], facts["files"][0]) == (3, 2, str(tmp_path / "x"))
    assert sorted(read_export(tmp_path / "x")) == ["a", "b/c", "é"]
    result = run("export", tokens_dir / "bad.vqt", "--to", "npy", "-o", tmp_path / "y")
    assert (result.exit_code, result.stderr.count("\n")) == (4, 1)
    result = run("export", tokens_dir / "bad.vqt", tokens_dir / "worse.vqt", "--to", "npy", "-o", tmp_path / "y")
    assert result.exit_code == 1
    assert result.stderr.endswith(f"error: {tmp_path}/y: not written, because there is nothing to export\n")
    assert not (tmp_path / "y").exists()


def test_two_models_become_one_vocabulary(run, tokens_dir, tmp_path):
    (tokens_dir / "other.vqt").write_bytes(dump(image(model=b"anothers")))
    result = run("export", tokens_dir, "--to", "bin", "-o", tmp_path / "x", "--json")
    assert result.exit_code == 0
    (facts,) = json_lines(result)
    assert [model["model"] for model in facts["models"]] == [MODEL.hex(), b"anothers".hex()]
    (tokens_dir / "other.vqt").unlink()
    assert run("export", tokens_dir, "--to", "text").exit_code == 0


def test_exports_of_earlier_versions_have_a_visible_json_file(tmp_path):
    for to in ("jsonl", "parquet", "text"):
        path = tmp_path / f"x.{to}"
        write_export(ITEMS.items(), path, ExportOptions(to))
        os.rename(tmp_path / f".x.{to}.json", tmp_path / f"x.{to}.json")
        assert list(read_export(path)) == list(ITEMS)
        write_export([("new", image())], path, ExportOptions(to), overwrite=True)
        assert not (tmp_path / f"x.{to}.json").exists()
        assert list(read_export(path)) == ["new"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["IN"], "Missing option '--to'"),
        (["IN", "--to", "npy"], "--to npy: give -o FILE"),
        (["IN", "--to", "npy", "-o", "-"], "npy cannot be written to standard output"),
        (["IN", "--to", "text", "--json"], "cannot take both"),
        (["IN", "--to", "npy", "-o", "IN"], "is a folder"),
        (["IN", "--to", "npy", "-o", "new/"], "is a folder"),
        (["IN", "--to", "npy", "-o", "IN/a.vqt", "--force"], "is a token file"),
        (["IN/none", "--to", "npy", "-o", "x"], "none: no such file or folder"),
        (["IN/a.vqt", "IN", "--to", "npy", "-o", "x"], "would both have the key a"),
        (["IN", "--to", "npy", "-o", "x", "--codebooks", "3"], "the token file has 2"),
        (["IN", "--to", "npy", "-o", "x", "--row-token", "3"], "is the id of a code"),
        (["IN", "--to", "npy", "-o", "x", "--layout", "nonsense"], "--layout"),
        (["IN", "--to", "nonsense", "-o", "x"], "--to"),
    ],
)
def test_usage_errors(run, tokens_dir, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tokens_dir / "b/c.vqt").unlink()
    (tokens_dir / "é.vqt").unlink()
    before = files_in(tmp_path)
    result = run("export", *(argument.replace("IN", "in") for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert files_in(tmp_path) == before


def test_choices_shown_are_those_there_are(run):
    shown = re.sub(r"\s", "", run("export", "--help").stdout)
    assert "|".join(get_args(ExportFormat)) in shown
    assert "|".join(get_args(Layout)) in shown


def test_names_that_are_no_text(run, tokens_dir, tmp_path):
    (tokens_dir / "a.vqt").rename(tokens_dir / os.fsdecode(b"\xff.vqt"))
    result = run("export", tokens_dir, "--to", "parquet", "-o", tmp_path / "x")
    assert result.exit_code == 1
    assert r"in/\udcff.vqt: its name is not UTF-8" in result.stderr
    assert sorted(read_export(tmp_path / "x")) == ["b/c", "é"]


def test_starts_without_torch(tokens_dir, tmp_path):
    code = (
        "import sys, vqtok.__main__\n"
        f"sys.argv = ['vqtok', 'export', {str(tokens_dir)!r}, '--to', 'npy', '-o', {str(tmp_path / 'x')!r}]\n"
        "try: vqtok.__main__.main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "0 False\n"


@pytest.mark.parametrize("to", TARGETS)
def test_inspect(run, tmp_path, to):
    ends = {} if to == "text" else {"begin_token": "auto", "end_token": "auto"}
    write_export(ITEMS.items(), out(tmp_path, to), ExportOptions(to, layout="delay", **ends))
    result = run("inspect", "--json", out(tmp_path, to))
    (facts,) = json_lines(result)
    assert (facts["kind"], facts["to"], facts["layout"], facts["num_items"]) == ("export", to, "delay", 3)
    assert (facts["vocabulary_size"], facts["special_tokens"]) == (19, {"begin": 16, "end": 17, "pad": 18})
    assert facts["num_ids"] == 2 * sum(tokens.codes[0].size + 3 for tokens in ITEMS.values())
    assert run("inspect", "--json", json_file(out(tmp_path, to))).stdout == result.stdout
    shown = run("inspect", out(tmp_path, to)).stdout
    assert "begin 16, end 17, pad 18" in shown
    assert f"3, {facts['num_ids']} token ids" in shown


def test_inspect_of_damaged_exports(run, tmp_path):
    write_export(ITEMS.items(), tmp_path / "x.npy", ExportOptions("npy"))
    sidecar = tmp_path / "x.npy.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"codebook_sizes": None}))
    result = run("inspect", tmp_path / "x.npy")
    assert (result.exit_code, "has no valid codebook_sizes" in result.stderr) == (4, True)
    write_export(ITEMS.items(), tmp_path / "y.npy", ExportOptions("npy"))
    (tmp_path / "y.npy").unlink()
    assert run("inspect", tmp_path / "y.npy.json").exit_code == 1
