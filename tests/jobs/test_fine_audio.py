"""Audio with more than 16 bits stays so from the file to the file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile


def recording(folder, suffix, subtype):
    path = folder / f"recording{suffix}"
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 1600)
    soundfile.write(path, samples, 16_000, subtype=subtype)
    return path


def coded(run, source, model, target, *options):
    """Encode and decode, and return the kind of the samples of the result."""
    tokens = source.with_suffix(".vqt")
    assert run("encode", source, "-m", model, "-o", tokens, "--force").exit_code == 0
    result = run("decode", tokens, "-m", model, "-o", target, "--force", *options)
    assert result.exit_code == 0, result.stderr
    return soundfile.info(target).subtype


@pytest.mark.parametrize(
    ("source", "subtype", "target", "expected"),
    [
        (".wav", "PCM_24", ".wav", "PCM_24"),
        (".flac", "PCM_24", ".flac", "PCM_24"),
        (".wav", "FLOAT", ".wav", "FLOAT"),
        (".wav", "FLOAT", ".flac", "PCM_16"),
        (".wav", "PCM_24", ".ogg", "VORBIS"),
        (".wav", "PCM_16", ".wav", "PCM_16"),
    ],
)
def test_the_kind_of_the_samples_is_that_of_the_original(run, audio_model, tmp_path, source, subtype, target, expected):
    path = recording(tmp_path, source, subtype)
    assert coded(run, path, audio_model, tmp_path / f"decoded{target}") == expected
    stored = json.loads(run("inspect", path.with_suffix(".vqt"), "--json").stdout).get("metadata", {})
    assert stored == ({} if subtype == "PCM_16" else {"subtype": subtype})


def test_subtype_chooses_it_and_refuses_what_a_format_cannot_store(run, audio_model, tmp_path):
    path = recording(tmp_path, ".wav", "PCM_24")
    assert coded(run, path, audio_model, tmp_path / "x.wav", "--subtype", "pcm_16") == "PCM_16"
    assert coded(run, path, audio_model, tmp_path / "x.wav", "--subtype", "pcm_32") == "PCM_32"
    result = run("decode", path.with_suffix(".vqt"), "-m", audio_model, "-o", tmp_path / "x.mp3", "--subtype", "float")
    assert result.exit_code != 0
    assert "cannot store samples as FLOAT in .mp3" in result.stderr
    assert not (tmp_path / "x.mp3").exists()


def test_effort_is_recorded(run, audio_model, tmp_path):
    path = recording(tmp_path, ".wav", "PCM_16")
    tokens = tmp_path / "x.vqt"
    assert run("encode", path, "-m", audio_model, "-o", tokens, "--effort", 3).exit_code == 0
    assert json.loads(run("inspect", tokens, "--json").stdout)["metadata"] == {"effort": 3}
