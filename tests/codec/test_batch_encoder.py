"""vqtok.codec.batch_encoder"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import vqtok
from vqtok.errors import ModelError, UsageError
from vqtok.tokens.vqt.file import dump


@pytest.fixture
def encoder(bundled):
    return vqtok.Encoder(device="cpu")


def test_paths_and_bytes(encoder, photo, sound, tmp_path, run):
    run("encode", photo, sound)
    files = [photo, sound, tmp_path / "gone.png"]
    expected = [photo.with_suffix(".vqt").read_bytes(), sound.with_suffix(".vqt").read_bytes(), b""]
    found = encoder({"path": np.array(list(map(str, files))), "label": np.arange(3)})
    assert set(found) == {"path", "label", "tokens", "error"}
    assert found["tokens"].tolist() == expected
    assert found["error"].tolist() == ["", "", f"{tmp_path}/gone.png: cannot be read: No such file or directory"]
    read = {"bytes": [photo.read_bytes(), sound.read_bytes(), b"none"], "path": ["1.png", "2.wav", "3.png"]}
    found = encoder(read)
    assert set(found) == {"path", "tokens", "error"}
    assert found["tokens"].tolist() == expected
    assert found["error"].tolist() == ["", "", "3.png: neither an image nor audio"]
    assert encoder({"bytes": [b"none"]})["error"].tolist() == ["input: neither an image nor audio"]


def test_options(bundled, photo, sound, image_model):
    encoder = vqtok.Encoder(str(image_model), num_codebooks=2, coder="packed", codes=True, device="cpu")
    found = encoder({"path": [str(photo), str(sound / "none")]})
    tokens = vqtok.encode(photo, num_codebooks=2)
    assert found["tokens"][0] == dump(tokens)
    assert np.array_equal(found["codes"][0], tokens.codes)
    assert found["codes"][0].dtype == np.int32
    assert found["codes"][1].size == 0
    mono = vqtok.Encoder(mono=True, codes=True, device="cpu")({"path": [os.fspath(sound)]})
    assert np.array_equal(mono["codes"][0], vqtok.encode(sound, mono=True).codes)


def test_what_is_no_fault_of_a_medium_is_raised(encoder, photo, sound, image_model):
    with pytest.raises(UsageError, match="needs a column"):
        encoder({"name": ["x"]})
    with pytest.raises(ModelError, match="neither a model file nor a bundled model"):
        vqtok.Encoder("none", device="cpu")({"path": [str(photo)]})
    with pytest.raises(ModelError, match=r"sound.wav: this model encodes image"):
        vqtok.Encoder(str(image_model), device="cpu")({"path": [str(sound)]})


def test_values_of_many_types(encoder, photo, sound, tmp_path):
    pa = pytest.importorskip("pyarrow")
    data, expected = photo.read_bytes(), encoder({"path": [str(photo)]})["tokens"][0]
    assert expected
    contents = [
        data,
        bytearray(data),
        memoryview(data),
        np.bytes_(data),
        np.frombuffer(data, np.uint8),
        pa.scalar(data),
        pa.scalar(data, pa.large_binary()),
    ]
    found = encoder({"bytes": contents})
    assert found["error"].tolist() == [""] * len(contents)
    assert found["tokens"].tolist() == [expected] * len(contents)
    names = [str(photo), photo, os.fsencode(photo), np.str_(photo), pa.scalar(str(photo)), f"file://{photo}"]
    found = encoder({"path": names})
    assert found["error"].tolist() == [""] * len(names)
    assert found["tokens"].tolist() == [expected] * len(names)
    table = pa.table({"bytes": [data, None], "path": ["a.png", str(sound)]})
    found = encoder({name: table[name] for name in table.column_names})
    assert found["error"].tolist() == ["", ""]
    assert found["tokens"].tolist() == [expected, encoder({"path": [sound]})["tokens"][0]]


def test_what_is_no_medium_is_an_error_of_its_row(encoder, photo):
    pa = pytest.importorskip("pyarrow")
    data = photo.read_bytes()
    wrong = [
        None,
        pa.scalar(None, pa.binary()),
        float("nan"),
        "text",
        5,
        [1, 2],
        {"bytes": data},
        object(),
        b"",
        Path("."),
    ]
    found = encoder({"bytes": [data, *wrong, data]})
    assert [bool(tokens) for tokens in found["tokens"]] == [True, *[False] * len(wrong), True]
    assert found["error"][1:4].tolist() == ["input: has neither bytes nor a path"] * 3
    assert found["error"][4] == "input: bytes must be the contents of a file, not str"
    assert all(found["error"][1:-1])
    names = [None, 7, "", "a\0b.png", ".", "s3:///x.png", "nosuch://bucket/x.png", str(photo / "x"), "x" * 5000]
    found = encoder({"path": [*names, photo]})
    assert [bool(tokens) for tokens in found["tokens"]] == [*[False] * len(names), True]
    assert all(found["error"][:-1])
    assert all("\n" not in error for error in found["error"])
    with pytest.raises(UsageError, match="codebooks"):
        vqtok.Encoder(num_codebooks=99, device="cpu")({"path": [photo]})
