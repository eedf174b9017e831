from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from generation.conftest import SETTINGS, STEPS, WORDS
from vqtok.errors import ModelError, OutputError, TrainingError, UsageError
from vqtok.generation.config import GeneratorConfig, NetworkConfig, load_generator_preset
from vqtok.generation.items import Item, read_items
from vqtok.generation.loop import PATIENCE
from vqtok.generation.model_file import load_generator
from vqtok.generation.network import Generator
from vqtok.generation.objective import bits_per_token
from vqtok.generation.streams import Stream
from vqtok.generation.tokenizers import Tokenizers
from vqtok.generation.train import train_generator
from vqtok.generation.validation import Validation
from vqtok.inspection import inspect
from vqtok.models.card import read_card


def test_learns_what_belongs_together(generator):
    evaluation = inspect(generator)["training"]["evaluation"]
    assert evaluation["bits_given_rest"]["text"] < 0.3  # A caption alone would take 1 bit for 6 symbols.
    assert evaluation["bits_given_rest"]["audio"] < evaluation["bits"]["audio"]


def test_writes_metrics_samples_and_a_card(generator):
    folder = generator.with_suffix(".run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == STEPS
    assert set(rows[-1]["validation"]["bits"]) == {"image", "audio"}
    assert set(rows[-1]["validation"]["bits_given_rest"]) == {"image", "audio", "text"}
    names = {path.name.partition("-")[2].partition("-")[2] for path in folder.glob("step-0000200*")}
    assert {"0-original.wav", "0-from-image.wav", "0-from-nothing.wav", "text.txt"} <= names
    assert (folder / "step-0000200.png").exists()
    facts = inspect(generator)
    assert facts["kind"] == "generator"
    assert facts["modalities"] == ["image", "audio", "text"]
    assert facts["training"]["items"], facts["training"]["held_out_items"] == (32, 8)
    assert facts["training"]["captions"] == sorted(WORDS)


def train(world, path, **options):
    return train_generator([world.tokens], path, settings=SETTINGS, tokenizers=world.named, **options)


def test_a_resumed_run_is_the_same_as_an_uninterrupted_one(world, tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train(world, whole, steps=12)

    def stop(progress) -> None:
        if progress.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(world, parts, steps=12, on_progress=stop)
    # A validation at half of the run wrote a checkpoint before; this one is of the state after the sixth step.
    with pytest.raises(OutputError, match="resume"):
        train(world, parts, steps=12)
    train(world, parts, steps=12, resume=True)
    expected, found = load_file(whole), load_file(parts)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_resuming_other_tokens_or_settings_is_refused(world, tmp_path):
    path = tmp_path / "g.safetensors"
    train(world, path, steps=2)
    with pytest.raises(UsageError, match="other settings or tokens"):
        train_generator(
            [world.tokens], path, settings=[*SETTINGS, "network.dropout=0.5"], tokenizers=world.named, resume=True
        )
    with pytest.raises(UsageError, match="other settings or tokens"):
        train_generator(
            [world.tokens / "0.png.vqt", world.tokens / "1.png.vqt"],
            path,
            settings=SETTINGS,
            tokenizers=world.named,
            resume=True,
        )


def test_keeps_within_its_minutes(world, tmp_path):
    result = train(world, tmp_path / "g.safetensors", minutes=0.06)
    assert result.training["steps"] > 3
    assert result.training["hours"] <= 0.06 / 60 + 0.001


def test_too_few_minutes_are_refused_before_training(world, tmp_path):
    with pytest.raises(TrainingError, match="no time to train"):
        train(world, tmp_path / "g.safetensors", minutes=0.001)


def test_images_alone_need_neither_audio_nor_captions(world, tmp_path):
    path = tmp_path / "g.safetensors"
    files = [world.tokens / f"{index}.png.vqt" for index in range(8)]
    (tmp_path / "tokens").mkdir()
    for file in files:
        (tmp_path / "tokens" / file.name).write_bytes(file.read_bytes())
    result = train_generator(
        [tmp_path / "tokens"],
        path,
        settings=[*SETTINGS, "data.text_length=3"],
        tokenizers=world.named,
        steps=2,
    )
    assert result.training["items_by_modality"]["image"] == 6


def test_a_generator_returns_from_its_file(generator, world):
    loaded = load_generator(generator)
    items = read_items([world.tokens], Tokenizers(world.named))
    bits = bits_per_token(loaded, items, "image", ["text"])
    assert bits < 4
    again = load_generator(generator)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), again.parameters(), strict=True))


def test_a_generator_is_no_tokenizer(generator, world):
    with pytest.raises(ModelError, match="is a generator of tokens, not a tokenizer"):
        read_card(generator)
    with pytest.raises(ModelError, match="is a tokenizer, not a generator"):
        load_generator(world.models[0])


def test_an_untrained_generator_takes_the_bits_of_the_codebook():
    """With a uniform output each code takes log2 of the size, however many are hidden."""
    stream = Stream("audio", (32,), (6,))
    generator = Generator(NetworkConfig(16, 1, 2, 0.0), [stream], {}).eval()
    for name, parameter in generator.named_parameters():
        if "heads" in name:
            torch.nn.init.zeros_(parameter)

    class Fixed(Item):
        def codes(self, stream):
            return np.arange(6)[None]

    assert bits_per_token(generator, [Fixed("a")] * 5, "audio", ()) == pytest.approx(5)


def test_falling_behind_is_an_alarm(world, tmp_path, monkeypatch, caplog):
    scores = iter([1.0, *range(2, 30)])
    monkeypatch.setattr(
        "vqtok.generation.validation.Validator.validate",
        lambda self, generator, folder, step: Validation(float(next(scores)), {}, {}, 1),
    )
    settings = [*SETTINGS, "train.validations=8"]
    result = train_generator(
        [world.tokens], tmp_path / "g.safetensors", settings=settings, tokenizers=world.named, steps=8
    )
    (alarm,) = result.training["alarms"]
    assert f"{PATIENCE} validations in a row" in alarm
    assert "1.000 bits" in alarm


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("network.width=30", "multiple of 4 network.heads"),
        ("network.layers=0", "at least 1"),
        ("network.dropout=1", "below 1"),
        ("network.depth=3", "unknown setting network.depth"),
        ("kind=image", "kind must be"),
    ],
)
def test_bad_settings_are_refused_by_name(setting, message):
    with pytest.raises(UsageError, match=message):
        load_generator_preset("generator", [setting])


def test_the_preset_is_the_default_configuration_in_full():
    assert load_generator_preset("generator") == GeneratorConfig()


@pytest.mark.parametrize("preset", ["image", "digits"])
def test_the_preset_of_a_tokenizer_is_refused(preset):
    with pytest.raises(UsageError, match="is for tokenizers"):
        load_generator_preset(preset)


def test_media_are_not_tokens(world, tmp_path):
    with pytest.raises(Exception, match=r"no \.vqt or \.vqts files"):
        train_generator([world.media], tmp_path / "g.safetensors")
