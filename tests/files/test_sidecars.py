"""Captions beside media: they travel with the tokens, and are not counted as files of other kinds."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import soundfile
from conftest import files_in, picture, wave
from PIL import Image

import vqtok
from vqtok.files.sidecars import MAX_BYTES, is_sidecar
from vqtok.media.kinds import modality_of, stem


@pytest.fixture
def pairs(tmp_path):
    """Return a folder with an image and audio of one stem, their caption, and an image with dots in its name."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    Image.fromarray(picture(9, 7)).save(folder / "3.png")
    soundfile.write(folder / "3.ogg", wave(16_000, 16_000), 16_000)
    (folder / "3.txt").write_text("  drei \n", encoding="utf-8-sig")
    Image.fromarray(picture(8, 8)).save(folder / "3.b.webp")
    (folder / "3.b.txt").write_text("Ünïcode,\ntwo lines")
    return folder


def test_pairs_keep_their_suffix_and_decode_to_their_names(run, pairs, tmp_path):
    result = run("encode", pairs, "-o", tmp_path / "tokens", "--json")
    assert files_in(tmp_path / "tokens") == ["3.b.vqt", "3.ogg.vqt", "3.png.vqt"]
    assert json.loads(result.stdout.splitlines()[-1])["ignored"] == {}
    assert {stem(name.removesuffix(".vqt")) for name in ("3.ogg.vqt", "3.png.vqt")} == {"3"}
    assert run("decode", tmp_path / "tokens", "-o", tmp_path / "back").exit_code == 0
    assert files_in(tmp_path / "back") == ["3.b.png", "3.png", "3.wav"]
    # Named one by one, too.
    (tmp_path / "one").mkdir()
    assert run("encode", pairs / "3.png", pairs / "3.ogg", "-o", tmp_path / "one").exit_code == 0
    assert run("decode", tmp_path / "one/3.png.vqt").exit_code == 0
    assert files_in(tmp_path / "one") == ["3.ogg.vqt", "3.png", "3.png.vqt"]


def test_captions_travel(run, pairs, tmp_path):
    captions = {"3.png": "drei", "3.ogg": "drei", "3.b.webp": "Ünïcode,\ntwo lines"}
    for name, caption in captions.items():
        assert vqtok.encode(pairs / name).metadata == {"caption": caption}
    run("encode", pairs / "3.png", "-o", tmp_path / "3.vqt")
    (facts,) = map(json.loads, run("inspect", tmp_path / "3.vqt", "--json").stdout.splitlines())
    assert facts["metadata"] == {"caption": "drei"}
    (pairs / "3.ogg").unlink()
    assert run("encode", pairs, "--shard", tmp_path / "x.vqts").exit_code == 0
    shard = vqtok.open_shard(tmp_path / "x.vqts")
    assert {key: shard[key].metadata["caption"] for key in shard} == {
        key: caption for key, caption in captions.items() if key in shard
    }
    vqtok.export([tmp_path / "x.vqts"], tmp_path / "x.jsonl", "jsonl")
    assert vqtok.read_export(tmp_path / "x.jsonl")["3.png"].metadata == {"caption": "drei"}
    batch = vqtok.Encoder()({"path": [str(pairs / "3.png")], "bytes": [None]})
    (tmp_path / "row.vqt").write_bytes(batch["tokens"][0])
    assert vqtok.inspect(tmp_path / "row.vqt")["metadata"] == {"caption": "drei"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe\x00d", "is not UTF-8"),
        (b"x" * (MAX_BYTES + 1), f"is longer than {MAX_BYTES} bytes"),
        (b"\n" * 10 + b'x"' * (MAX_BYTES // 2 - 10), "gets no caption: metadata of"),  # Quotes take two bytes in JSON.
    ],
)
def test_a_caption_that_cannot_be_used_is_left_out_with_a_warning(pairs, bundled, caplog, content, reason):
    (pairs / "3.txt").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        tokens = vqtok.encode(pairs / "3.png")
    assert tokens.metadata == {}
    assert np.array_equal(tokens.codes, vqtok.encode(pairs / "3.png").codes)
    assert reason in caplog.messages[0]
    assert str(pairs / "3") in caplog.messages[0]


@pytest.mark.parametrize("content", [b"", b" \n"])
def test_an_empty_caption_is_none(pairs, bundled, caplog, content):
    (pairs / "3.txt").write_bytes(content)
    assert vqtok.encode(pairs / "3.png").metadata == {}
    assert not caplog.messages


def test_only_what_belongs_to_media_is_a_sidecar():
    names = sorted(["a-b.png", "a.b.png", "a.txt", "a.txt.png", "c.md", "c.txt", "d.TXT", "d.webp", "e.png", "f.txt"])
    found = [name for name in names if is_sidecar(name, names, lambda path: modality_of(path) is not None)]
    assert found == ["d.TXT"]
