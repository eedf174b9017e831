"""A data set of two kinds of items, and a generator that has learned them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from vqtok.codec.files import Codecs, encode_media
from vqtok.files.atomic import atomic_write
from vqtok.generation.sampling import SamplingOptions
from vqtok.generation.train import train_generator
from vqtok.tokens.vqt.file import dump

WORDS = "dark", "light"
SIDE, SAMPLES = 16, 256
STEPS = 200
SETTINGS = (
    "network.width=32",
    "network.layers=2",
    "network.heads=2",
    "network.dropout=0",
    "train.batch_size=16",
    "train.warmup_steps=10",
    "train.average_decay=0.9",
    "train.learning_rate=5e-3",
    "train.validations=2",
    "train.precision=float32",
    "data.validation_fraction=0.2",
)


@dataclass(frozen=True)
class World:
    """The media of the data set, its tokens, and the models that made them."""

    media: Path
    tokens: Path
    models: tuple[Path, Path]

    @property
    def named(self) -> list[str]:
        return [str(model) for model in self.models]


@pytest.fixture(scope="session")
def world(image_model, audio_model, tmp_path_factory) -> World:
    """Return 40 items: dark images are slow waves, light ones are fast; the word says which."""
    media, tokens = tmp_path_factory.mktemp("media"), tmp_path_factory.mktemp("tokens")
    codecs = {"png": Codecs(str(image_model)), "wav": Codecs(str(audio_model))}
    for index in range(40):
        kind, rng = index % 2, np.random.default_rng(index)
        pixels = np.full((SIDE, SIDE, 3), 40 + 170 * kind) + rng.normal(0, 8, (SIDE, SIDE, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(media / f"{index}.png")
        sound = 0.5 * np.sin(np.arange(SAMPLES) * (0.05 + 0.6 * kind) + rng.random())
        soundfile.write(media / f"{index}.wav", sound, 16_000)
        (media / f"{index}.txt").write_text(WORDS[kind])
        for suffix, codec in codecs.items():
            found, _ = encode_media(media / f"{index}.{suffix}", codec)
            atomic_write(tokens / f"{index}.{suffix}.vqt", dump(found))
    return World(media, tokens, (image_model, audio_model))


@pytest.fixture(scope="session", autouse=True)
def quick_samples():
    """Let validations sample in few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqtok.generation.validation.DEFAULT_SAMPLING", SamplingOptions(steps=2))
        yield


@pytest.fixture(scope="session")
def generator(world, quick_samples, tmp_path_factory) -> Path:
    """Return a generator that was trained on the data set."""
    path = tmp_path_factory.mktemp("generator") / "generator.safetensors"
    train_generator([world.tokens], path, settings=SETTINGS, tokenizers=world.named, steps=STEPS)
    return path
