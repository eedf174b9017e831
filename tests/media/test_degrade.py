"""Degradations: what each does, within its range, from a seed, and the rules that are not valid."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from conftest import picture, wave

from vqtok.errors import MediaError, UsageError
from vqtok.media.degrade import EFFECTS, UNCHANGED, parse_rules
from vqtok.media.media import Media

RATE = 16_000


def image(channels: int = 3) -> Media:
    return Media("image", (picture(48, 40, channels).transpose(2, 0, 1) / 127.5 - 1).astype(np.float32))


def audio(channels: int = 1) -> Media:
    return Media("audio", wave(RATE, RATE, channels).T.copy(), RATE)


def degraded(media: Media, rule: str, seed: int = 0) -> np.ndarray:
    return parse_rules([rule], media.modality, RATE)(media, np.random.default_rng(seed)).data


def snr(media: Media, data: np.ndarray) -> float:
    return float(10 * np.log10(media.data.var() / (data - media.data).var()))


CASES = [
    *((image(channels), kind) for kind in EFFECTS["image"] for channels in (1, 3)),
    *((audio(channels), kind) for kind in EFFECTS["audio"] for channels in (1, 2)),
]


@pytest.mark.parametrize(
    ("media", "kind"), CASES, ids=lambda value: value if isinstance(value, str) else value.modality
)
def test_every_kind_changes_media_from_a_seed_and_keeps_their_shape(media: Media, kind: str) -> None:
    before = media.data.copy()
    found = degraded(media, kind)
    assert found.dtype == np.float32
    assert found.shape == media.data.shape
    assert np.abs(found).max() <= 1
    assert np.array_equal(media.data, before)
    assert np.array_equal(found, degraded(media, kind))
    assert not np.array_equal(found, media.data)
    assert not np.array_equal(found, degraded(media, kind, seed=1))


def test_strengths() -> None:
    flat = Media("image", np.zeros((3, 64, 64), np.float32))
    assert degraded(flat, "noise:25").std() * 127.5 == pytest.approx(25, rel=0.03)
    error = {
        rule: np.square(degraded(image(), rule) - image().data).mean()
        for rule in ("jpeg:5", "jpeg:90", "blur:0.5", "blur:3", "downscale:1.5", "downscale:4")
    }
    assert error["jpeg:5"] > 2 * error["jpeg:90"]
    assert error["blur:3"] > 2 * error["blur:0.5"]
    assert error["downscale:4"] > error["downscale:1.5"]
    for decibels in (0, 20):
        assert snr(audio(), degraded(audio(), f"noise:{decibels}")) == pytest.approx(decibels, abs=0.5)
    assert np.abs(degraded(audio(), "clip:0.2")).max() == pytest.approx(0.2 * np.abs(audio().data).max(), rel=1e-5)
    power = np.abs(np.fft.rfft(degraded(audio(), "lowpass:1000")[0])) ** 2
    assert power[1200:].sum() < 1e-6 * power.sum()
    silent = degraded(audio(), "gaps:50") == 0
    assert 0.05 < silent.mean() < 0.25


def test_a_range_is_used_in_full() -> None:
    flat = Media("image", np.zeros((1, 32, 32), np.float32))
    found = [degraded(flat, "noise:5-50", seed).std() * 127.5 for seed in range(40)]
    assert min(found) < 15
    assert max(found) > 40


def test_one_of_several_rules_is_drawn() -> None:
    degrader = parse_rules(["noise:30", "blur:2"], "image")
    alone = [degraded(image(), rule) for rule in ("noise:30", "blur:2")]
    found = {
        bool(np.abs(degrader(image(), np.random.default_rng(seed)).data - alone[1]).max() < 1e-6) for seed in range(9)
    }
    assert found == {True, False}
    assert str(degrader) == "noise:30-30, blur:2-2"
    assert UNCHANGED(image(), np.random.default_rng(0)).data is not None


def test_noise_from_a_folder(tmp_path) -> None:
    soundfile.write(tmp_path / "hum.wav", np.sin(np.arange(8000) * 2 * np.pi * 100 / 8000), 8000)
    soundfile.write(tmp_path / "nothing.wav", np.zeros(800), 8000)
    found = degraded(audio(), f"noise:10:{tmp_path}")
    assert snr(audio(), found) == pytest.approx(10, abs=0.5)
    power = np.abs(np.fft.rfft((found - audio().data)[0])) ** 2
    assert power[90:110].sum() > 0.9 * power.sum()  # The recording was resampled to the rate of the audio.


def test_silence_gets_noise_too() -> None:
    silence = Media("audio", np.zeros((1, 4000), np.float32), RATE)
    assert 0 < degraded(silence, "noise:0").std() < 0.01
    for kind in ("clip", "lowpass", "gaps"):
        assert not degraded(silence, kind).any()


@pytest.mark.parametrize(
    ("rule", "modality", "message"),
    [
        ("fog", "image", "there is no 'fog' for image; use noise, jpeg, blur, downscale"),
        ("jpeg", "audio", "there is no 'jpeg' for audio"),
        ("noise:a-b", "image", "must be noise:LOWEST-HIGHEST, for example noise:5-50"),
        ("noise:50-5", "image", "must be from 0 to 255, lowest first"),
        ("jpeg:0-40", "image", "the quality must be from 1 to 95"),
        ("noise:5-50:hum", "image", "only noise of audio takes a folder"),
        ("noise:0-20:missing", "audio", "missing: not a folder of noise"),
    ],
)
def test_rules_that_are_not_valid(rule: str, modality: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_rules([rule], modality, RATE)


def test_a_folder_without_noise(tmp_path) -> None:
    with pytest.raises(MediaError, match="no audio files in this folder"):
        parse_rules([f"noise:0-20:{tmp_path}"], "audio", RATE)
