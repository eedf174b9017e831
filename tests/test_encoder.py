"""vqtok.codec.batch_encoder"""

from __future__ import annotations

import os

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
    with pytest.raises(ModelError, match="no model"):
        vqtok.Encoder("none", device="cpu")({"path": [str(photo)]})
    with pytest.raises(ModelError, match=r"sound.wav: this model encodes image"):
        vqtok.Encoder(str(image_model), device="cpu")({"path": [str(sound)]})
