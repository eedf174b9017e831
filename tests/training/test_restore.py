"""Restoration: an encoder learns to encode degraded media like the clean ones; all else is that of its parent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import contents, picture
from PIL import Image

import vqtok
from training.conftest import TINY, TINY_AUDIO, Killed, equal_state, kill_at, make_trainer, watched
from training.conftest import quick as quick
from vqtok.config import load_preset, read_preset, take_init
from vqtok.errors import UsageError
from vqtok.models.card import read_card
from vqtok.models.model_file import load_model
from vqtok.training.data import BatchLoader, MediaCache, find_items
from vqtok.training.optim import Budget
from vqtok.training.train import train

NOISY = 'data.degrade=["noise:30-60"]'


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(20):
        left, top = rng.integers(0, 24, 2)
        Image.fromarray(picture(64, 64)[top : top + 32, left : left + 32]).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def parent(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of clean images, with tables and a prior."""
    output = tmp_path_factory.mktemp("parent") / "clean.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqtok.training.initialise.KMEANS_VECTORS", 256)
        train(photos, output, preset="digits", settings=[*TINY, "prior.fit_steps=4"], steps=60, device="cpu")
    return output


def restore(photos: Path, parent: Path, output: Path, *settings: str, **options: Any) -> Any:
    frozen = ["train.freeze=decoder,codebook", "train.learning_rate=3e-3", NOISY]
    return train(photos, output, init=str(parent), settings=[*frozen, *settings], device="cpu", **options)


def test_only_inputs_are_degraded_and_crops_are_those_without(photos: Path) -> None:
    plain, noisy = (load_preset("digits", [*TINY, *more]) for more in ([], [NOISY]))
    items = find_items(photos, "image")
    clean, pairs = (BatchLoader(config, items, MediaCache(config), 0).batch(3) for config in (plain, noisy))
    assert np.array_equal(clean.media["image"], pairs.media["image"])
    assert np.array_equal(clean.inputs["image"], clean.media["image"])
    deviation = (pairs.inputs["image"] - pairs.media["image"]).std(axis=(1, 2, 3)) * 127.5
    assert 20 < deviation.min() < deviation.max() < 65
    # Two processes see the noise of one with the double batch.
    half = load_preset("digits", [*TINY, NOISY, "train.batch_size=4"])
    second = BatchLoader(half, items, MediaCache(half), 0, first=4).batch(3)
    assert np.array_equal(second.inputs["image"], pairs.inputs["image"][4:])


def test_a_restoring_model_has_the_identity_of_its_parent(photos: Path, parent: Path, tmp_path: Path, run: Any) -> None:
    result = restore(photos, parent, tmp_path / "restored.safetensors", steps=80)
    clean, restored = load_model(parent), load_model(tmp_path / "restored.safetensors")
    assert result.identity == clean.identity.hex() == restored.identity.hex()
    assert contents(parent)[1]["config"]["model"] == contents(tmp_path / "restored.safetensors")[1]["config"]["model"]
    assert equal_state(clean.decoder, restored.decoder)
    assert equal_state(clean.quantizer, restored.quantizer)
    assert not equal_state(clean.encoder, restored.encoder)
    assert result.training["parent"] == clean.identity.hex()
    assert "inputs degraded: noise:30-60" in result.training["evaluation"]["protocol"]
    # Noisy images become ordinary token files that the parent decodes, and are nearer to the clean ones.
    rng = np.random.default_rng(1)
    errors = dict.fromkeys(("clean", "restored"), 0.0)
    for index in range(10):
        pixels = np.asarray(Image.open(photos / f"{index}.png")).astype(float)
        noisy = tmp_path / f"{index}.png"
        Image.fromarray((pixels + rng.normal(0, 45, pixels.shape)).clip(0, 255).astype(np.uint8)).save(noisy)
        for name, model in (("clean", parent), ("restored", tmp_path / "restored.safetensors")):
            tokens = tmp_path / f"{name}-{index}.vqt"
            assert run("encode", noisy, "-o", tokens, "--model", model).exit_code == 0
            decoded = vqtok.decode(tokens, str(parent)).data.transpose(1, 2, 0)
            errors[name] += float(np.square((decoded + 1) * 127.5 - pixels).mean())
    assert errors["restored"] < 0.8 * errors["clean"]


def test_a_killed_run_goes_on_exactly(photos: Path, tmp_path: Path) -> None:
    whole = make_trainer(photos, tmp_path / "whole", Budget(steps=30), NOISY)
    expected = watched(whole)
    best = whole.run()
    stopped = make_trainer(photos, tmp_path / "stopped", Budget(steps=30), NOISY, on_progress=kill_at(20))
    with pytest.raises(Killed):
        stopped.run()
    resumed = make_trainer(photos, tmp_path / "stopped", Budget(steps=30), NOISY)
    resumed.resume()
    found = watched(resumed)
    again = resumed.run()
    assert found == expected[-len(found) :]
    assert equal_state(best, again)


def test_samples_show_what_was_given(photos: Path, tmp_path: Path) -> None:
    make_trainer(photos, tmp_path, Budget(steps=12), NOISY).run()
    with Image.open(sorted(tmp_path.glob("step-*.png"))[-1]) as sheet:
        assert sheet.height == 4 * 32  # The original, the degraded one, and two prefixes.


def test_audio_is_restored_by_the_same_rules(sounds: Path, tmp_path: Path) -> None:
    settings = [*TINY_AUDIO, 'data.degrade=["clip:0.1-0.3","gaps:5"]']
    trainer = make_trainer(sounds, tmp_path, Budget(steps=9), *settings)
    batch = trainer.loader.batch(0)
    assert np.abs(batch.inputs["audio"]).max() <= np.abs(batch.media["audio"]).max()
    assert not np.array_equal(batch.inputs["audio"], batch.media["audio"])
    trainer.run()
    assert list(tmp_path.glob("*-degraded.wav"))


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_presets_start_from_the_bundled_models(modality: str) -> None:
    values = read_preset(f"restore-{modality}")
    assert take_init(values) == modality
    assert values["train"]["freeze"] == ["codebook", "decoder"]
    assert values["data"]["degrade"]


def test_the_preset_knows_its_parent(photos: Path, bundled: Path, image_model: Path, tmp_path: Path) -> None:
    settings = ["data.crop_pixels=16", "train.batch_size=4", "train.precision=float32"]
    output = tmp_path / "restored.safetensors"
    result = train(photos, output, preset="restore-image", settings=settings, steps=4, device="cpu")
    assert result.identity == read_card(image_model).identity
    assert read_card(output).training["preset"] == "restore-image"
    mine = tmp_path / "mine.toml"
    mine.write_text('init = "missing"\n')
    with pytest.raises(vqtok.errors.ModelError, match="missing: is neither a model file"):
        train(photos, tmp_path / "x.safetensors", preset=str(mine), steps=1)
    mine.write_text("init = 3\n")
    with pytest.raises(UsageError, match="init must be the name or path of a model, not 3"):
        train(photos, tmp_path / "x.safetensors", preset=str(mine), steps=1)


def test_a_rule_of_the_other_modality_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no 'clip' for image"):
        make_trainer(photos, tmp_path, Budget(steps=1), 'data.degrade=["clip"]')
    assert load_preset("digits", ["data.degrade=noise:5,blur:1"]).data.degrade == ("noise:5", "blur:1")
