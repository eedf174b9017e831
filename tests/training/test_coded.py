"""Training of the decoder from codes that are kept in the run folder."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import wave
from numpy.typing import NDArray
from PIL import Image

from training.conftest import TINY, TINY_AUDIO, Killed, kill_at
from vqtok.codec.codec import Codec
from vqtok.codec.options import CodecOptions
from vqtok.config import Config, load_preset
from vqtok.errors import OutputError, UsageError
from vqtok.media.audio import read_audio
from vqtok.media.image import read_image
from vqtok.media.media import Media
from vqtok.models.card import read_card
from vqtok.models.model_file import load_model
from vqtok.training import initialise
from vqtok.training.coded import NOT_DECODED, CodedLoader, CodeStore
from vqtok.training.data import MediaCache, find_items
from vqtok.training.state import CODES_NAME
from vqtok.training.train import train

QUICK = ["train.warmup_steps=0", "train.validations=1", "prior.fit_steps=0"]
FROZEN = ["train.freeze=encoder,codebook", "train.batch_size=6"]
AUDIO = [*TINY_AUDIO, "data.crop_seconds=0.1"]
SETTINGS = {"image": TINY, "audio": [*TINY, *AUDIO]}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write images and stereo audio in which each place is unlike all others, some smaller than a crop."""
    folders = {name: tmp_path_factory.mktemp(name) for name in SETTINGS}
    rng = np.random.default_rng(0)
    for index, size in enumerate([(40, 33), (16, 50), (11, 24), (30, 30), (25, 25)]):
        smooth = Image.fromarray(rng.integers(0, 250, (5, 5, 3), np.uint8)).resize(
            size[::-1], Image.Resampling.BILINEAR
        )
        pixels = np.asarray(smooth) + rng.integers(0, 6, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folders["image"] / f"{index}.png")
        samples = wave(300 * (index + 1) - 150, 2000, 2) + rng.normal(0, 0.01, (300 * (index + 1) - 150, 2))
        soundfile.write(folders["audio"] / f"{index}.wav", samples, 2000)
    return folders


@pytest.fixture(scope="module")
def parents(media: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialise, "KMEANS_VECTORS", 256)
        for name, settings in SETTINGS.items():
            options = {"preset": "digits", "settings": [*settings, *QUICK], "steps": 12, "device": "cpu"}
            train(media[name], folder / f"{name}.safetensors", **options)
    return {name: folder / f"{name}.safetensors" for name in SETTINGS}


def make_loader(media: Path, parent: Path, run: Path, *settings: str, effort: int = 1) -> CodedLoader:
    own = SETTINGS["image" if media.name.startswith("image") else "audio"]
    settings = (*own, *FROZEN, "data.flip=true", f"data.cache_codes={effort}", *settings)
    config = load_preset("digits", settings)
    codec = Codec(load_model(parent), "cpu", CodecOptions(effort=effort))
    items = find_items(media, *config.model.modalities)
    return CodedLoader(CodeStore(codec, run), config, items, MediaCache(config), 0, 0)


def wholes(media: Path, crop: int) -> list[NDArray[np.float32]]:
    """Return all media that crops are cut from: images as they are and mirrored, channels of audio."""
    if media.name.startswith("audio"):
        channels = [channel[None] for path in media.iterdir() for channel in read_audio(path).data]
        channels = [np.rint(channel * 32767) / np.float32(32767) for channel in channels]  # As they are in memory.
        return [np.pad(one, ((0, 0), (0, max(0, crop - one.shape[1])))) for one in channels]
    images = [read_image(path).data for path in media.iterdir()]
    both = [*images, *(image[:, :, ::-1] for image in images)]
    return [np.pad(x, [(0, 0), *((0, max(0, crop - size)) for size in x.shape[1:])], mode="symmetric") for x in both]


@pytest.mark.parametrize("effort", [1, 3])
@pytest.mark.parametrize("name", ["image", "audio"])
def test_codes_of_crops_are_those_of_the_media_there(
    name: str, effort: int, media: dict[str, Path], parents: dict[str, Path], tmp_path: Path
) -> None:
    loader = make_loader(media[name], parents[name], tmp_path, effort=effort)
    codec, stride = loader.store.codec, loader.store.codec.tokenizer.stride
    size = 16 if name == "image" else 200
    counts, origins = set(), set()
    originals = wholes(media[name], size)
    for batch in (loader.batch(step) for step in range(8)):
        for crop, codes in zip(batch.media[name], batch.codes[name], strict=True):
            count = int((codes.reshape(2, -1)[:, 0] != NOT_DECODED).sum())
            found = []
            for index, whole in enumerate(originals):
                ranges = [range((length - size) // stride + 1) for length in whole.shape[1:]]
                for place in itertools.product(*ranges):
                    window = whole[:, *(slice(stride * start, stride * start + size) for start in place)]
                    if np.abs(window - crop).max() < 1e-4:
                        found.append((index, place))
            ((index, place),) = found
            tokens = codec.encode(Media(name, originals[index], 2000 if name == "audio" else None), count)
            expected = tokens.codes[:, *(slice(start, start + size // stride) for start in place)]
            np.testing.assert_array_equal(codes[:count], expected)
            assert (codes[count:] == NOT_DECODED).all()
            counts.add(count)
            origins.add(index)
    assert counts == {1, 2}
    assert len(origins) > 5


def test_media_are_encoded_once(media: dict[str, Path], parents: dict[str, Path], tmp_path: Path) -> None:
    loader = make_loader(media["image"], parents["image"], tmp_path, "model.quantizer.prefix_dropout=0")
    before = [loader.batch(step) for step in range(6)]
    again = make_loader(media["image"], parents["image"], tmp_path, "model.quantizer.prefix_dropout=0")

    def fail(*arguments: object) -> None:
        raise AssertionError("encoded again")

    again.store.codec.encode = fail  # type: ignore[assignment, method-assign]
    for step, batch in enumerate(before):
        found = again.batch(step)
        np.testing.assert_array_equal(found.codes["image"], batch.codes["image"])
        np.testing.assert_array_equal(found.media["image"], batch.media["image"])


def test_a_damaged_file_of_codes_is_one_line(media: dict[str, Path], parents: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / CODES_NAME).write_bytes(bytes(range(256)) * 40)
    with pytest.raises(OutputError, match=rf"{CODES_NAME}: file is not a database"):
        make_loader(media["image"], parents["image"], tmp_path).batch(0)


def test_names_that_are_not_unicode(parents: dict[str, Path], tmp_path: Path) -> None:
    store = CodeStore(Codec(load_model(parents["image"])), tmp_path)
    image = Media("image", np.zeros((3, 16, 16), np.float32))
    first = store.codes("\udcff.png", lambda: image, 2)
    store.codec.encode = None  # type: ignore[assignment, method-assign]
    np.testing.assert_array_equal(store.codes("\udcff.png", lambda: image, 2), first)


def test_each_item_is_decoded_from_its_own_codebooks(parents: dict[str, Path]) -> None:
    model = load_model(parents["image"])
    codes = torch.randint(16, (4, 2, 5, 5), generator=torch.Generator().manual_seed(0))
    codes[1:3, 1] = NOT_DECODED
    found = model.reconstruct_codes(codes)
    for index, count in enumerate((2, 1, 1, 2)):
        expected = model.decode(codes[index : index + 1, :count])
        torch.testing.assert_close(found[index : index + 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["image", "audio"])
def test_a_killed_run_goes_on_as_if_undisturbed(
    name: str, media: dict[str, Path], parents: dict[str, Path], tmp_path: Path
) -> None:
    parent_identity = read_card(parents[name]).identity
    options = {"init": str(parents[name]), "steps": 40, "device": "cpu"}
    settings = [*QUICK, *FROZEN, "data.cache_codes=2", "train.validations=4"]
    whole = train(media[name], tmp_path / "whole.safetensors", settings=settings, **options)
    with pytest.raises(Killed):
        train(media[name], tmp_path / "half.safetensors", settings=settings, on_progress=kill_at(20), **options)
    assert (tmp_path / "half.run" / CODES_NAME).exists()
    half = train(media[name], tmp_path / "half.safetensors", settings=settings, resume=True, **options)
    assert half.identity == whole.identity != parent_identity


def test_another_run_does_not_use_the_codes(media: dict[str, Path], parents: dict[str, Path], tmp_path: Path) -> None:
    settings = [*QUICK, *FROZEN, "data.cache_codes=1"]
    options = {"settings": settings, "steps": 2, "device": "cpu", "init": str(parents["image"])}
    output = tmp_path / "model.safetensors"
    train(media["image"], output, **options)
    (tmp_path / "model.run" / CODES_NAME).write_bytes(b"of another model")
    assert train(media["image"], output, force=True, **options).identity


@pytest.mark.parametrize(
    "settings", [["train.freeze=encoder"], [*FROZEN, "data.degrade=noise:5-50"], [*FROZEN, "model.modality=fusion"]]
)
def test_codes_are_cached_only_where_they_stay_the_same(settings: list[str]) -> None:
    with pytest.raises(UsageError, match=r"data\.cache_codes is for training of the decoder alone"):
        load_preset("fusion" if "fusion" in settings[-1] else "image", [*settings, "data.cache_codes=1"])


def test_it_is_not_passed_on() -> None:
    config = load_preset("digits", [*TINY, *FROZEN, "data.cache_codes=4"])
    assert initialise.tuning_config(config.to_dict(), None, []).data.cache_codes == 0
    assert replace(config.data, cache_codes=0) == load_preset("digits", [*TINY, *FROZEN]).data
    assert isinstance(config, Config)
