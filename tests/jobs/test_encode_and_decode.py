"""The library's `vqtok.encode` and `vqtok.decode`, and many files at once; the rest is tested in test_cli."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import soundfile
import torch
from conftest import picture, wave
from PIL import Image

import vqtok
from vqtok.codec.files import Codecs
from vqtok.codec.options import CodecOptions
from vqtok.errors import CorruptFileError, MediaError, UsageError, WrongModelError
from vqtok.jobs.decode import decode_files
from vqtok.jobs.encode import encode_files
from vqtok.jobs.job import Job
from vqtok.jobs.runner import Existing
from vqtok.jobs.shards import encode_shard
from vqtok.media.image import read_image, read_windowed
from vqtok.models.vqmodel import VQModel
from vqtok.tokens.vqt.file import dump, load


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
    with pytest.raises(MediaError, match=r"x\.vqt: neither an image nor audio"):
        vqtok.encode(tokens)
    tokens.write_bytes(tokens.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match=r"x\.vqt: damaged token file"):
        vqtok.decode(tokens)


def test_names_of_the_package(bundled):
    for name in vqtok.__all__:
        assert getattr(vqtok, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        vqtok.nonsense  # noqa: B018


@pytest.fixture
def folder(tmp_path):
    """Pictures of several sizes, sounds, and a file that is neither."""
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(12):
        Image.fromarray(picture(10 + 4 * (index % 3), 40)).save(folder / f"{index}.png")
    for index in range(3):
        soundfile.write(folder / f"s{index}.wav", wave(3000 + index, 16_000, 2), 16_000)
    (folder / "bad.png").write_bytes(b"nonsense")
    return folder


def planned(folder, out):
    return [Job(path, out / f"{path.stem}.vqt") for path in sorted(folder.iterdir())]


def test_jobs_do_not_show(bundled, folder, tmp_path):
    """The same files and outcomes in the same order, encoding, decoding and in shards."""
    found = []
    for cores in (1, 3):
        out = tmp_path / str(cores)
        codecs = Codecs(options=CodecOptions(jobs=cores))
        encoded = list(encode_files(planned(folder, out), codecs))
        jobs = [Job(path, path.with_suffix(".out")) for path in sorted(out.glob("*.vqt"))]
        jobs = [Job(job.source, job.source.with_suffix(".wav" if "s" in job.source.stem else ".png")) for job in jobs]
        decoded = list(decode_files(jobs, codecs))
        items = [(path.name, path) for path in sorted(folder.glob("*.png"))]
        sharded = list(encode_shard(items, out / "x.vqts", codecs))
        assert [outcome.job.source.name for outcome in encoded] == [path.name for path in sorted(folder.iterdir())]
        assert [outcome.facts.get("key") for outcome in sharded if not outcome.error] == [
            key for key, _ in items if key != "bad.png"
        ]
        errors = [str(outcome.error) for outcome in (*encoded, *decoded, *sharded) if outcome.error]
        assert errors == [f"{folder / 'bad.png'}: is not an image of a known format"] * 2
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1]
    assert len(found[0]) == 31


def test_leaving_off_stops_the_rest(bundled, folder, tmp_path):
    out = tmp_path / "out"
    outcomes = encode_files(planned(folder, out), Codecs(options=CodecOptions(jobs=2)))
    assert next(outcomes).facts["num_codebooks"] == 4
    outcomes.close()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("vqtok-item")]
    assert threads == []
    for path in out.iterdir():
        assert path.suffix == ".vqt"
        modality = "audio" if "s" in path.stem else "image"
        assert load(path.read_bytes(), Codecs().get(modality).tokenizer.entropy_model)


def test_memory_for_media_is_shared_out(bundled, folder, tmp_path, monkeypatch):
    """With room for a single item nothing is read beside it."""
    monkeypatch.setattr("vqtok.jobs.runner.MEDIA_BYTES", 1)
    reading = []

    def read(source, channels):
        reading.append(source)
        assert len(reading) == 1
        time.sleep(0.01)
        reading.remove(source)
        return read_windowed(source, channels)

    monkeypatch.setattr("vqtok.codec.files.read_windowed", read)
    jobs = planned(folder, tmp_path / "out")
    assert (
        sum(not outcome.error for outcome in encode_files(jobs, Codecs(options=CodecOptions(jobs=2)))) == len(jobs) - 1
    )


def test_out_of_memory_halves_the_batch(bundled, folder, tmp_path, monkeypatch, caplog):
    """As on a GPU: the codes are the same, and what does not fit in any case fails alone."""
    jobs = planned(folder, tmp_path / "out")
    encode = VQModel.encode

    def scarce(model, x):
        if len(x) > 3 or x.shape[2:] == (40, 12):
            raise torch.OutOfMemoryError("no")
        return encode(model, x)

    expected = [outcome.facts for outcome in encode_files(jobs, Codecs()) if not outcome.error]
    with monkeypatch.context() as patch:
        patch.setattr(VQModel, "encode", scarce)
        outcomes = list(encode_files(jobs, Codecs(), existing=Existing(overwrite=True)))
    assert "not enough memory for batches of" in caplog.text
    failed = [outcome for outcome in outcomes if outcome.error]
    assert {str(outcome.error).partition(": ")[2] for outcome in failed} == {
        "is not an image of a known format",
        "too large for the memory of this machine; scale it down or split it",
    }
    assert all(outcome.facts in expected for outcome in outcomes if not outcome.error)
