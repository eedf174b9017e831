"""What `inspect` finds, and how `vqtok.cli.tables` shows it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import soundfile
from conftest import AUDIO_KEYS, IMAGE_KEYS, picture, wave
from PIL import Image

import vqtok
from vqtok.cli.tables import histogram
from vqtok.errors import CorruptFileError, MediaError, ModelError, WrongModelError
from vqtok.inspection import inspect, usage
from vqtok.models.card import read_card
from vqtok.tokens.vqt.file import dump, load

MODEL_KEYS = {
    "file",
    "kind",
    "identity",
    "modalities",
    "num_parameters",
    "num_codebooks",
    "codebook_sizes",
    "stride",
    "sample_rate",
    "file_bytes",
    "config",
    "prior",
    "bit_value",
    "training",
}
# fmt: on


@pytest.fixture
def tokens(run, photo, sound):
    """Encode a picture and a sound beside themselves."""
    assert run("encode", photo, sound).exit_code == 0
    return photo.with_suffix(".vqt"), sound.with_suffix(".vqt")


def test_picture_tokens(tokens, image_model):
    path, _ = tokens
    facts = inspect(path)
    assert set(facts) == IMAGE_KEYS
    size = path.stat().st_size
    assert facts | {"coded_bits": 0} == {
        "file": str(path),
        "kind": "tokens",
        "version": "1.0",
        "modality": "image",
        "model": read_card(image_model).identity[:16],
        "coder": "static",
        "num_segments": 1,
        "num_codebooks": 4,
        "codebook_sizes": [16] * 4,
        "stride": 4,
        "grid": [16, 24],
        "num_tokens": 4 * 16 * 24,
        "raw_bits": 4 * 4 * 16 * 24,
        "coded_bits": 0,
        "file_bytes": size,
        "bpp": 8 * size / (96 * 64),
        "width": 96,
        "height": 64,
    }
    assert 0.8 * facts["raw_bits"] < facts["coded_bits"] < facts["raw_bits"]


def test_sound_tokens(tokens):
    facts = inspect(tokens[1])
    assert set(facts) == AUDIO_KEYS
    assert (facts["duration_seconds"], facts["sample_rate"], facts["channels"]) == (0.25, 16_000, 1)
    assert (facts["grid"], facts["stride"]) == ([500], 8)
    assert facts["kbps"] == pytest.approx(8 * facts["file_bytes"] / 0.25 / 1000)


def test_metadata_is_shown(tokens, run):
    path = tokens[0]
    data = load(path.read_bytes(), vqtok.load_model(vqtok.models.registry.find_model("image")).entropy_model)
    data.metadata["title"] = "\x1b[31mred"
    path.write_bytes(dump(data))
    assert inspect(path)["metadata"] == {"title": "\x1b[31mred"}
    shown = run("inspect", path).stdout
    assert "title" in shown
    assert "\x1b" not in shown


def test_models_by_path_and_name(bundled, audio_model):
    facts = inspect(audio_model)
    assert set(facts) == MODEL_KEYS
    assert facts["kind"] == "model"
    assert (facts["modalities"], facts["sample_rate"], facts["stride"]) == (["audio"], 16_000, 8)
    assert facts["num_parameters"] > 1000
    assert inspect("audio") == facts | {"file": str(bundled / "audio.safetensors")}
    assert inspect("image")["sample_rate"] is None


def test_files_called_like_a_bundled_model(bundled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(5, 4)).save("image", "png")
    assert inspect("image")["kind"] == "model"
    assert inspect("./image")["kind"] == "image"


def test_picture_and_what_it_would_become(bundled, tmp_path):
    path = tmp_path / "p.webp"
    Image.fromarray(picture(33, 20)).save(path)
    facts = inspect(path)
    assert (facts["kind"], facts["width"], facts["height"]) == ("image", 33, 20)
    assert facts["would_become"]["grid"] == [5, 9]
    assert facts["would_become"]["num_tokens"] == 4 * 45
    assert facts["would_become"]["raw_bits"] == 4 * 45 * 4
    with pytest.raises(ModelError, match=r"p\.webp: is image, but model audio encodes audio"):
        inspect(path, "audio")


@pytest.mark.parametrize(("channels", "grid"), [(1, [125]), (2, [2, 125])])
def test_sound_and_what_it_would_become(bundled, run, tmp_path, channels, grid):
    path = tmp_path / "s.wav"
    soundfile.write(path, wave(500, 8000, channels), 8000)
    facts = inspect(path)
    assert (facts["samples"], facts["sample_rate"], facts["channels"]) == (500, 8000, channels)
    run("encode", path)
    assert facts["would_become"]["grid"] == inspect(path.with_suffix(".vqt"))["grid"] == grid
    assert facts["would_become"]["num_tokens"] == inspect(path.with_suffix(".vqt"))["num_tokens"]


def test_media_without_a_model_for_them(photo, tmp_path, monkeypatch):
    monkeypatch.setattr("vqtok.models.registry.BUNDLED", tmp_path)
    assert "would_become" not in inspect(photo)
    with pytest.raises(ModelError, match="none"):
        inspect(photo, "none")


def test_refusals(bundled, tmp_path):
    with pytest.raises(MediaError, match="nothing: cannot be read"):
        inspect(tmp_path / "nothing")
    for name, content, error in [
        ("a.txt", b"text", MediaError),
        ("a.vqt", b"text", CorruptFileError),
        ("a.safetensors", b"text", ModelError),
        ("a.png", b"", MediaError),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(error, match=name):
            inspect(tmp_path / name)


def test_usage_counts_all_files_and_folders(tokens, image_model):
    path = tokens[0]
    model = vqtok.load_model(image_model)
    codes = load(path.read_bytes(), model.entropy_model).codes
    (path.parent / "more").mkdir()
    (path.parent / "more/copy.vqt").write_bytes(path.read_bytes())
    tokens[1].unlink()
    for facts in (usage([path.parent]), usage([path, path.parent / "more"], str(image_model))):
        counts = 2 * np.stack([np.bincount(plane.ravel(), minlength=16) for plane in codes])
        shares = counts / counts.sum(axis=1, keepdims=True)
        entropy = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=1)
        assert (facts["num_files"], facts["num_tokens"]) == (2, 2 * codes.size)
        assert facts["usage"] == [float((row > 0).mean()) for row in counts]
        assert facts["dead_codes"] == [int((row == 0).sum()) for row in counts]
        assert facts["entropy_bits"] == pytest.approx(entropy)
        assert facts["perplexity"] == pytest.approx(2**entropy)
        assert facts["counts"] == [sorted(row.tolist(), reverse=True) for row in counts]
        json.dumps(facts)


def test_usage_needs_the_model_of_statically_coded_files_alone(tokens, image_model, tmp_path, monkeypatch):
    path = tokens[0]
    assert inspect(path)["coder"] == "static"
    with pytest.raises(WrongModelError, match=r"photo\.vqt: made by model .*, not by"):
        usage([path], "audio")
    monkeypatch.setattr("vqtok.models.registry.BUNDLED", tmp_path)
    with pytest.raises(ModelError, match=r"photo\.vqt: made by model .* which is not a bundled model; set `model`"):
        usage([path])
    packed = tmp_path / "packed.vqt"
    packed.write_bytes(dump(load(path.read_bytes(), vqtok.load_model(image_model).entropy_model)))
    assert usage([packed])["usage"] == usage([path], str(image_model))["usage"]


def test_usage_refusals(tokens, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.vqt").write_bytes(tokens[0].read_bytes()[:-1])
    for paths, error, message in [
        ([tmp_path / "empty"], MediaError, "empty: no .vqt or .vqts files in this folder"),
        ([tmp_path / "none.vqt"], MediaError, "none.vqt: cannot be read"),
        ([tokens[0], tmp_path / "cut.vqt"], CorruptFileError, "cut.vqt: damaged"),
        (list(tokens), WrongModelError, "sound.vqt: cannot combine tokens of models"),
    ]:
        with pytest.raises(error, match=message):
            usage(paths)


def test_tables_fit_80_columns_and_name_everything(tokens, run):
    shown = run("inspect", *tokens, "image", tokens[0].with_suffix(".png")).stdout
    names = {str(path) for path in tokens}
    assert names < set(shown.splitlines())
    assert all(len(line.rstrip()) <= 80 for line in shown.splitlines() if "/" not in line)
    for text in ("16 x 24 at stride 4, 1536 tokens", "4 x 16", "96x64", "0.25 s 16000 Hz mono", "would become"):
        assert text in shown
    shown = run("inspect", "--usage", tokens[0]).stdout
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "█" in shown


def test_evaluation_in_a_model_card(run, image_model, tmp_path):
    from conftest import contents, write

    tensors, values = contents(image_model)
    evaluation = {
        "protocol": "whole pictures",
        "prefixes": [1, 4],
        "files": 3,
        "psnr": [20.0, 25.126],
        "ssim": [0.5, 0.75],
        "usage": [1.0, 0.5, 0.25, 0.125],
        "perplexity": [15.0, 7.5, 3.5, 2.5],
        "entropy_bits": [3.9, 2.9, 1.8, 1.3],
        "dead_codes": [0, 8, 12, 14],
        "by_folder": {"[red]cats": {"files": 1, "psnr": [10.0, 12.0]}},
    }
    facts = {"preset": "image", "steps": 7, "items_seen": 14, "hours": 1.5, "device": "cpu", "precision": "float32"}
    values["training"] = facts | {
        "seed": 0,
        "files": 9,
        "held_out_files": 3,
        "evaluation": evaluation,
        "alarms": ["oh"],
    }
    shown = run("inspect", write(tmp_path / "m.safetensors", tensors, values)).stdout
    for text in ("7 steps, 14 crops, 1.50 h", "9 files, 3 held out", "25.13", "0.750", "whole pictures", "12.5%", "oh"):
        assert text in shown
    assert "[red]cats (1)" in shown
    assert shown.count(" - ") + shown.count(" -\n") == 2  # SSIM, which that folder lacks


@pytest.mark.parametrize(
    ("counts", "columns", "expected"),
    [
        ([8, 4, 2, 1, 0], 5, "█▄▂▁ "),
        ([1000, 1], 2, "█▁"),
        ([8, 8, 4, 4], 2, "█▄"),
        ([3, 2], 20, "█▆"),
        ([0, 0], 2, "  "),
    ],
)
def test_histogram(counts, columns, expected):
    assert histogram(counts, columns) == expected


def test_plot(tokens, run, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "usage.png"
    assert run("inspect", "--usage", tokens[0], "--plot", picture, "--json").exit_code == 0
    with Image.open(picture) as image:
        assert image.width > 600
        assert len(image.convert("RGB").getcolors(math.prod(image.size))) > 10
    result = run("inspect", "--usage", tokens[0], "--plot", tmp_path / "none/usage.png")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "cannot be written" in result.stderr
    assert run("inspect", tokens[0], "--plot", picture).exit_code == 2
