"""Rate control in `encode`: the number of codebooks that each item gets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from conftest import json_lines, picture, wave
from PIL import Image

from vqtok.codec.codec import Codec
from vqtok.codec.prefixes import Prefixes
from vqtok.codec.rate_control import Target, encode_to_target, fewest_codebooks, most_codebooks, parse_bytes
from vqtok.errors import UsageError
from vqtok.media.image import as_float
from vqtok.media.media import Media
from vqtok.metrics.measure import measure, measures
from vqtok.metrics.view import View
from vqtok.models.registry import open_tokenizer
from vqtok.tokens.vqt.header import parse_header


@pytest.fixture
def image():
    return Media("image", as_float(picture(96, 64).transpose(2, 0, 1)))


@pytest.fixture
def prefixes(image_model, image):
    codec = Codec(open_tokenizer(str(image_model)))
    return Prefixes(codec, codec.encode(image))


def figures(prefixes, original, metric="psnr"):
    functions = measures([metric])
    return [measure(functions, View(original), View(prefixes.decode(n)))[metric] for n in (1, 2, 3, 4)]


def test_the_fewest_codebooks_that_reach_a_quality(prefixes, image):
    """The model has random weights, so that not every codebook improves the PSNR."""
    values = figures(prefixes, image)
    for wanted in [*values, *(value - 0.001 for value in values), *(value + 0.001 for value in values)]:
        reaching = [index for index, value in enumerate(values, 1) if value >= wanted]
        expected = reaching[0] if reaching else 4
        assert fewest_codebooks(prefixes, image, "psnr", wanted, 4) == (expected, values[expected - 1])


def test_each_prefix_is_decoded_once(prefixes, image, monkeypatch):
    decoded = []
    real = Prefixes.decode
    monkeypatch.setattr(Prefixes, "decode", lambda self, count: decoded.append(count) or real(self, count))
    fewest_codebooks(prefixes, image, "psnr", 99, 4)
    assert decoded == [1, 2, 3, 4]


def test_the_most_codebooks_within_a_limit(prefixes):
    sizes = [len(prefixes.file(count)) for count in (1, 2, 3, 4)]
    assert sizes == sorted(sizes)
    for limit in (*sizes, *(size - 1 for size in sizes), *(size + 1 for size in sizes), 10**6):
        fitting = [count for count, size in enumerate(sizes, 1) if size <= limit]
        assert most_codebooks(prefixes, limit) == (fitting[-1] if fitting else 1)
    assert most_codebooks(prefixes, None) == 4


def test_a_quality_within_a_limit(prefixes, image_model, photo):
    codec = Codec(open_tokenizer(str(image_model)))
    sizes = [len(prefixes.file(count)) for count in (1, 2, 3, 4)]
    reached = encode_to_target(photo, "image", codec, Target({"psnr": 99}, sizes[1]))
    assert parse_header(reached.file)[0].num_codebooks == 2
    assert reached.facts["target_reached"] is False
    assert "of 99 (PSNR dB) with 2 codebooks" in reached.shortfall
    reached = encode_to_target(photo, "image", codec, Target({"psnr": -99}, sizes[1]))
    assert (parse_header(reached.file)[0].num_codebooks, reached.shortfall) == (1, "")
    too_small = encode_to_target(photo, "image", codec, Target(max_bytes=10))
    assert too_small.shortfall == f"1 codebook takes {sizes[0]} bytes, more than 10"


@pytest.mark.parametrize("option", ["--max-bytes", "--target-bpp"])
def test_files_of_a_folder_have_their_own_number(run, tmp_path, option):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, side in (("small", 24), ("large", 96)):
        Image.fromarray(picture(side, side)).save(folder / f"{name}.png")
    whole = {line["file"]: line for line in json_lines(run("encode", folder, "-o", tmp_path / "whole", "--json"))}
    small, large = (whole[str(folder / f"{name}.png")] for name in ("small", "large"))
    value = small["file_bytes"] if option == "--max-bytes" else large["bpp"]
    result = run("encode", folder, "-o", tmp_path / "out", option, value, "--json")
    found = {line["file"].rpartition("/")[2]: line for line in json_lines(result)}
    counts = [found[f"{name}.png"]["num_codebooks"] for name in ("small", "large")]
    # The small file fits whole into its own bytes; its header makes its rate the higher one.
    assert counts[0] == 4 if option == "--max-bytes" else counts[1] == 4
    assert min(counts) < 4
    text = run("encode", folder, "-o", tmp_path / "out", option, value, "--force")
    assert f"{min(counts)} codebook" in text.stderr
    exported = run("export", tmp_path / "out", "--to", "npy", "-o", tmp_path / "x.npy")
    assert exported.exit_code == 2
    assert "set --codebooks to" in exported.stderr.replace("\n", " ")


def test_targets_for_audio(run, tmp_path, audio_model):
    path = tmp_path / "a.wav"
    soundfile.write(path, wave(16_000, 16_000) * np.random.default_rng(0).normal(0.5, 0.2, (16_000, 1)), 16_000)
    codec = Codec(open_tokenizer(str(audio_model)))
    original = Media("audio", soundfile.read(path, dtype="float32")[0][None], 16_000)
    prefixes = Prefixes(codec, codec.encode(original))
    functions = measures(["stoi"])
    values = [measure(functions, View(original), View(prefixes.decode(n)))["stoi"] for n in (1, 2, 3)]
    wanted = max(values) - 1e-6
    line = json.loads(run("encode", path, "--target-stoi", wanted, "--json").stdout)
    assert line["num_codebooks"] == 1 + next(index for index, value in enumerate(values) if value >= wanted)
    assert line["target_reached"]
    assert line["stoi"] == pytest.approx(max(values), abs=1e-4)
    assert run("encode", path, "--target-kbps", 0.9 * line["kbps"], "--force").exit_code == 0


def test_what_is_not_reached_is_said(run, photo, tmp_path):
    result = run("encode", photo, "--target-psnr", 90)
    assert result.exit_code == 0
    assert "the target is not reached" in result.stderr.replace("\n", " ")
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(8000), 16_000)
    result = run("encode", silence, "--target-stoi", 0.5, "--json")
    assert "STOI cannot be measured, so that all 3 codebooks are kept" in result.stderr.replace("\n", " ")
    line = json.loads(result.stdout)
    assert (line["stoi"], line["target_reached"]) == (None, False)


def test_a_target_for_the_other_modality(run, photo):
    result = run("encode", photo, "--target-stoi", 0.5)
    assert result.exit_code == 1
    assert "is an image, but only --target-stoi was given, which is for audio" in result.stderr.replace("\n", " ")
    assert not photo.with_suffix(".vqt").exists()
    assert run("encode", photo, "--target-stoi", 0.5, "--target-psnr", 1).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-bytes", "much"], "--max-bytes much: give a number of bytes"),
        (["--max-bytes", "0"], "give a number of bytes"),
        (["--target-bpp", "0"], "--target-bpp 0.0: is not possible"),
        (["--target-psnr", "nan"], "--target-psnr nan: is not possible"),
        (["--target-psnr", "30", "--target-ssimulacra2", "50"], "give one target for each modality"),
        (["--max-bytes", "4k", "--shard", "x.vqts"], "a shard has one number of codebooks"),
    ],
)
def test_targets_that_cannot_be(run, photo, options, message, monkeypatch):
    monkeypatch.setattr("vqtok.codec.rate_control.why_missing", lambda metric: "")
    result = run("encode", photo, *options)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
    assert not photo.with_suffix(".vqt").exists()


def test_a_metric_that_is_not_installed(run, photo, monkeypatch):
    monkeypatch.setattr("vqtok.metrics.catalogue._is_found", lambda module: False)
    result = run("encode", photo, "--target-ssimulacra2", 50)
    assert result.exit_code == 2
    assert "--target-ssimulacra2 needs ssimulacra2: pip install 'vqtok[evaluate]'" in result.stderr.replace("\n", " ")


def test_numbers_of_bytes():
    given = {"4096": 4096, "4k": 4000, "4kB": 4000, "1.5M": 1_500_000, "4Ki": 4096, "2MiB": 2 << 20}
    assert {text: parse_bytes(text) for text in given} == given
    for text in ("", "k", "4g", "-1", "4 000", "0.1"):
        with pytest.raises(UsageError):
            parse_bytes(text)
