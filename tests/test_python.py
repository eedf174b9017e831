"""What `import vqtok` gives: media of other libraries, token files, ids, rows of pipelines."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
import torch
from conftest import picture
from PIL import Image

import vqtok
from vqtok.errors import CorruptFileError, OutputError, UsageError


def test_everything_is_listed():
    assert {"encode", "read", "write", "tokens_from_ids", "publish", "Media"} <= set(dir(vqtok))
    assert not {"Any", "import_module", "tokens"} & set(dir(vqtok))
    assert all(getattr(vqtok, name) is not None for name in vqtok.__all__)


def test_images_in_memory(bundled, photo):
    expected = vqtok.encode(photo).codes
    pixels = picture(96, 64)
    with Image.open(photo) as image:
        image.load()
    sources = [
        photo.read_bytes(),
        memoryview(photo.read_bytes()),
        image,
        pixels,
        pixels.transpose(2, 0, 1),
        torch.from_numpy(pixels),
        (pixels / np.float32(127.5) - 1).astype(np.float32).transpose(2, 0, 1),
    ]
    for source in sources:
        assert np.array_equal(vqtok.encode(source).codes, expected)
    gray = vqtok.encode(pixels[..., 0])
    assert np.array_equal(gray.codes, vqtok.encode(Image.fromarray(pixels[..., 0])).codes)


def test_pil_images_are_read_like_files(bundled, tmp_path):
    image = Image.fromarray(picture(20, 12))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    transparent = image.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(image.size))
    transparent.save(tmp_path / "transparent.png")
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("CMYK").save(tmp_path / "cmyk.tiff")
    for path in sorted(tmp_path.glob("*.*")):
        with Image.open(path) as opened:
            found = vqtok.encode(opened)
        assert np.array_equal(found.codes, vqtok.encode(path).codes), path.name


def test_audio_in_memory(bundled, sound):
    samples, rate = soundfile.read(sound, dtype="float32")
    expected = vqtok.encode(sound).codes
    integers = soundfile.read(sound, dtype="int16")[0]
    for source in (samples, samples[None], torch.from_numpy(samples), integers):
        assert np.array_equal(vqtok.encode(source, sample_rate=rate).codes, expected)
    assert np.array_equal(vqtok.encode(sound.read_bytes()).codes, expected)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (object(), {}, "`source` is a object"),
        (None, {}, "give a path, bytes"),
        ([1, 2], {}, "`source` is a list"),
        (np.zeros((2, 3, 4, 5)), {}, "has the shape"),
        (np.zeros(5), {}, "or audio with its `sample_rate`"),
        (np.full((4, 4), 200.0), {}, "beyond"),
        (np.zeros((4, 4), np.int64), {}, "image of int64"),
        (np.zeros((0, 4)), {}, "`source` is a ndarray"),
        (np.zeros((16_000, 2)), {"sample_rate": 16_000}, "has the shape"),
        (np.full(100, np.nan), {"sample_rate": 16_000}, "NaN"),
        (np.zeros(100, np.uint8), {"sample_rate": 16_000}, "audio of uint8"),
    ],
)
def test_what_cannot_be_encoded(bundled, source, options, message):
    with pytest.raises(UsageError, match=message):
        vqtok.encode(source, **options)


def test_token_files_and_media(bundled, photo, sound, tmp_path):
    for path, name in ((photo, "copy.png"), (sound, "copy.wav")):
        tokens = vqtok.encode(path)
        vqtok.write(tokens, tmp_path / "new/x.vqt")
        assert np.array_equal(vqtok.read(tmp_path / "new/x.vqt").codes, tokens.codes)
        assert vqtok.read(tmp_path / "new/x.vqt", num_codebooks=1).num_codebooks == 1
        with pytest.raises(OutputError):
            vqtok.write(tokens, tmp_path / "new/x.vqt")
        (tmp_path / "new/x.vqt").unlink()
        vqtok.decode(tokens).save(tmp_path / name)
        assert vqtok.inspect(tmp_path / name)["kind"] == tokens.modality
    with pytest.raises(CorruptFileError):
        vqtok.read(photo)


def test_tokens_to_ids_are_those_of_an_export(bundled, photo, tmp_path):
    tokens = vqtok.encode(photo)
    vqtok.write(tokens, tmp_path / "photo.vqt")
    options = {"layout": "coarse-first", "offset": 50, "end_token": "auto"}
    vqtok.export([tmp_path / "photo.vqt"], tmp_path / "x.npy", "npy", **options)
    assert np.array_equal(tokens.to_ids(**options), np.load(tmp_path / "x.npy"))
    (mended,) = vqtok.tokens_from_ids(tokens.to_ids(**options), tmp_path / "x.npy")
    assert np.array_equal(mended.tokens.codes, tokens.codes)


def test_any_value_of_a_row_is_an_error_of_that_row(bundled, photo):
    odd = [photo.read_bytes(), 7, "text", [1], {"a": 1}, object(), b"", np.zeros((2, 2)), 1.5, io.BytesIO(), None]
    found = vqtok.Encoder(device="cpu")({"bytes": odd, "n": range(len(odd))})
    assert [bool(error) for error in found["error"]] == [False] + [True] * (len(odd) - 1)
    assert [len(tokens) > 0 for tokens in found["tokens"]] == [True] + [False] * (len(odd) - 1)
    found = vqtok.Encoder(device="cpu")({"path": [str(photo), 3, "\0", "", "s3:///x", "/nowhere.png", b"\xff"]})
    assert [bool(error) for error in found["error"]] == [False] + [True] * 6
