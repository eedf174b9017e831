"""The library's `vqtok.encode` and `vqtok.decode`; the rest of vqtok.transcode is tested through the command line."""

from __future__ import annotations

import numpy as np
import pytest

import vqtok
from vqtok.errors import CorruptFileError, MediaError, UsageError, WrongModelError
from vqtok.media.image import read_image
from vqtok.tokens.vqt import dump


@pytest.mark.parametrize("name", ["photo", "sound"])
def test_paths_and_objects_are_alike(bundled, photo, sound, tmp_path, name):
    source = {"photo": photo, "sound": sound}[name]
    tokens = vqtok.encode(source)
    assert isinstance(tokens, vqtok.Tokens)
    (tmp_path / "x.vqt").write_bytes(dump(tokens))
    media = vqtok.decode(tokens)
    assert isinstance(media, vqtok.Media)
    assert np.array_equal(vqtok.decode(str(tmp_path / "x.vqt")).data, media.data)
    assert np.array_equal(vqtok.decode(tmp_path / "x.vqt", num_codebooks=2).data, vqtok.decode(tokens.prefix(2)).data)


def test_media_in_memory(bundled, photo, image_model):
    media = read_image(photo)
    for model in (None, "image", str(image_model)):
        assert np.array_equal(vqtok.encode(media, model).codes, vqtok.encode(photo, model).codes)
    assert vqtok.encode(media, num_codebooks=1).num_codebooks == 1


def test_mono(bundled, tmp_path):
    import soundfile
    from conftest import wave

    path = tmp_path / "s.wav"
    soundfile.write(path, wave(400, 8000, 2), 8000)
    assert vqtok.encode(path).size == (400, 8000, 2)
    assert vqtok.encode(path, mono=True).size == (400, 8000, 1)


def test_errors_name_the_file(bundled, photo, tmp_path, make_model):
    tokens = tmp_path / "x.vqt"
    tokens.write_bytes(dump(vqtok.encode(photo)))
    with pytest.raises(WrongModelError, match=r"x\.vqt: made by model"):
        vqtok.decode(tokens, str(make_model("image", seed=1)))
    with pytest.raises(UsageError, match=r"x\.vqt: cannot decode 5 codebooks"):
        vqtok.decode(tokens, num_codebooks=5)
    with pytest.raises(MediaError, match=r"x\.vqt: neither a picture nor a sound"):
        vqtok.encode(tokens)
    tokens.write_bytes(tokens.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match=r"x\.vqt: damaged token file"):
        vqtok.decode(tokens)


def test_names_of_the_package(bundled):
    for name in vqtok.__all__:
        assert getattr(vqtok, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        vqtok.nonsense  # noqa: B018
