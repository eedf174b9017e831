"""Presets, settings, and their errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vqtok.config import (
    Config,
    ModelConfig,
    NetworkConfig,
    QuantizerConfig,
    from_dict,
    load_preset,
    preset_names,
    read_preset,
)
from vqtok.errors import UsageError


def settings(*changes: str) -> Config:
    return load_preset("image", changes)


def at(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("name", [name for name in preset_names() if "kind" not in read_preset(name)])
def test_presets_load_and_survive_json(name: str) -> None:
    config = load_preset(name)
    assert from_dict(Config, json.loads(json.dumps(config.to_dict()))) == config


def test_the_presets_of_the_readme_are_there() -> None:
    assert {"image", "audio", "digits"} <= set(preset_names())
    assert load_preset("audio").model.sample_rate == 24_000
    assert load_preset("digits").model.channels == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train.batch_size=8", 8),
        ("train.batch_size = 8 ", 8),
        ("train.batch_size=1_000", 1000),
        ("train.learning_rate=1e-4", 1e-4),
        ("train.learning_rate=1", 1.0),
        ("data.flip=false", False),
        ("model.quantizer.kind=lfq", "lfq"),
        ('model.quantizer.kind="lfq"', "lfq"),
        ("model.network.dilations=1,3,9", (1, 3, 9)),
        ("model.network.dilations=[1, 3]", (1, 3)),
        ("model.network.dilations=3", (3,)),
        ("train.betas=0.8,0.99", (0.8, 0.99)),
        ("train.betas=[0, 0.99]", (0.0, 0.99)),
        ("data.note=photographs, CC BY = free", "photographs, CC BY = free"),
        ('data.note="24"', "24"),
        ("data.note=", ""),
    ],
)
def test_set_reads_every_type(setting: str, value: object) -> None:
    found = at(settings(setting), setting.partition("=")[0].strip())
    assert found == value
    assert type(found) is type(value)


def test_set_leaves_the_rest_alone_and_the_last_one_holds() -> None:
    config = settings("model.quantizer.depth=2", "model.quantizer.depth=3", "loss.l1=0.5")
    quantizer = dataclasses.replace(load_preset("image").model.quantizer, depth=3)
    assert config.model.quantizer == quantizer
    assert config.loss == dataclasses.replace(load_preset("image").loss, l1=0.5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.batch", "must be path=value"),
        ("=3", "must be path=value"),
        ("nothing=3", "unknown setting nothing; known are model, data, loss, train"),
        ("train.nothing=3", "unknown setting train.nothing"),
        ("model.network.nothing=3", "unknown setting model.network.nothing"),
        ("train.batch_size.more=3", "batch_size is a value, not a section"),
        ("model.network=3", "model.network is a section, not a value"),
        ("train.batch_size=many", "train.batch_size must be int, not 'many'"),
        ("train.batch_size=8.0", "train.batch_size must be int, not 8.0"),
        ("train.batch_size=true", "train.batch_size must be int, not True"),
        ("train.batch_size=0", "train.batch_size must be at least 1, not 0"),
        ("train.batch_size=", "train.batch_size must be int, not ''"),
        ("train.learning_rate=fast", "train.learning_rate must be float, not 'fast'"),
        ("train.learning_rate=-1e-3", "train.learning_rate must be at least 0"),
        ("train.learning_rate=nan", "train.learning_rate must be at least 0"),
        ("adversarial.start=1", "adversarial.start must be below 1"),
        ("adversarial.kind=wasserstein", "adversarial.kind must be 'hinge' or 'non_saturating' or 'least_squares'"),
        ("base=image", "unknown setting base"),
        ("train.betas=0.9", "train.betas needs 2 values, not 1"),
        ("train.betas=0.9,1", "train.betas must be below 1"),
        ("data.flip=1", "data.flip must be bool, not 1"),
        ("data.note=3", "data.note must be str, not 3"),
        ("model.modality=sound", "model.modality must be 'image' or 'audio' or 'fusion', not 'sound'"),
        ("model.channels=2", r"model.channels must be 1 \(gray\) or 3 \(RGB\), not 2"),
        ("model.sample_rate=8000", "model.sample_rate must be set for audio, and only for audio"),
        ("model.modality=audio", "model.sample_rate must be set for audio"),
        ("model.network.strides=4,2,2", "model.network: .* must have equal lengths"),
        ("model.network.strides=4,two", "model.network.strides must be int, not '4,two'"),
        ("model.network.strides=[4,", "model.network.strides must be int"),
        ("model.network.strides=4,0", "model.network.strides must be at least 1, not 0"),
        ("model.network.kernel=4", "model.network.kernel must be odd"),
        ("model.network.dilations=[]", "model.network.dilations needs at least one"),
        ("model.quantizer.kind=fsq", "model.quantizer.levels must be set"),
        ("model.quantizer.groups=5", "model.quantizer.dim must be a multiple of groups"),
        ("model.quantizer.depth=0", "model.quantizer.depth must be at least 1"),
        ("model.quantizer.codebook_size=1", "model.quantizer.codebook_size must be at least 2"),
    ],
)
def test_bad_settings_name_the_path(setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        settings(setting)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(
        UsageError,
        match="`preset` 'imagge' does not exist; use audio, audio-gan, digits, digits-gan, fusion, ",
    ):
        load_preset("imagge")


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[model]\nmodality = "audio"\nsample_rate = 8000\n[train]\nbatch_size = 4\n')
    config = load_preset(str(path), ["train.batch_size=2"])
    assert (config.model.sample_rate, config.train.batch_size) == (8000, 2)


def test_a_preset_differs_from_its_base_in_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "image"\n[model.quantizer]\ndepth = 2\n[adversarial]\nweight = 0.5\n')
    image, mine = load_preset("image"), load_preset(str(path), ["adversarial.lecam=0"])
    quantizer = dataclasses.replace(image.model.quantizer, depth=2)
    adversarial = dataclasses.replace(image.adversarial, weight=0.5, lecam=0.0)
    model = dataclasses.replace(image.model, quantizer=quantizer)
    assert mine == dataclasses.replace(image, model=model, adversarial=adversarial)
    for content in ('base = "mine"', "base = 3"):
        path.write_text(content)
        with pytest.raises(UsageError, match=r"mine\.toml: base must be one of audio, audio-gan, digits"):
            load_preset(str(path))


@pytest.mark.parametrize("name", ["image", "audio"])
def test_adversarial_presets_have_the_model_of_their_base(name: str) -> None:
    plain, adversarial = load_preset(name), load_preset(f"{name}-gan")
    assert (adversarial.model, adversarial.train, adversarial.data) == (plain.model, plain.train, plain.data)
    assert plain.adversarial.weight == 0 < adversarial.adversarial.weight


def test_crops_too_small_for_the_discriminator() -> None:
    assert load_preset("digits", ["data.crop_pixels=16"]).adversarial.weight == 0
    with pytest.raises(UsageError, match=r"data\.crop_pixels times adversarial\.crop must be at least 24"):
        load_preset("digits", ["data.crop_pixels=16", "adversarial.weight=1"])
    assert load_preset("digits", ["data.crop_pixels=16", "adversarial.weight=1", "adversarial.depth=3"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("adversarial.crop=1.5", r"adversarial\.crop must be above 0 and at most 1"),
        ("adversarial.every=0", r"adversarial\.every must be at least 1"),
        ("adversarial.windows=32", r"adversarial\.windows must be at least 64"),
        ("adversarial.windows=[]", "there would be no discriminator"),
    ],
)
def test_discriminators_that_cannot_be_are_refused(setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_preset("audio", ["adversarial.weight=1", "adversarial.periods=[]", setting])


def test_weights_that_cannot_be_found_are_refused() -> None:
    balanced = ["adversarial.weight=1", "adversarial.weighting=balanced"]
    with pytest.raises(UsageError, match=r"weighting must be fixed if train\.accumulate is above 1"):
        load_preset("image", [*balanced, "train.accumulate=2"])
    with pytest.raises(UsageError, match=r"leave decoder out of train\.freeze"):
        load_preset("image", ["adversarial.weight=1", "adversarial.weighting=adaptive", "train.freeze=decoder"])
    assert load_preset("image", [*balanced, "adversarial.weighting=fixed", "train.accumulate=2"])


@pytest.mark.parametrize("content", [b"model = [", b"\xff\xfe", b"[model]\nmodality = 'image'\n[model]\n"])
def test_a_preset_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.toml: not valid TOML"):
        load_preset(str(path))


def test_a_folder_is_no_preset(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UsageError, match=r"folder\.toml: cannot be read"):
        load_preset(str(tmp_path / "folder.toml"))


def test_json_round_trip_of_every_field() -> None:
    config = Config(
        ModelConfig(
            modality="audio",
            sample_rate=16_000,
            network=NetworkConfig((2, 4, 5), (8, 16, 24), (1, 0, 2), (2, 1, 0), kernel=5, dilations=(1, 3)),
            quantizer=QuantizerConfig(kind="fsq", levels=(8, 5, 5), dim=12, groups=2, depth=3),
        )
    )
    assert from_dict(Config, json.loads(json.dumps(config.to_dict()))) == config
