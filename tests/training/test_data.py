"""Training data: which files, which crops, in which order, and how unreadable files are handled."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import picture, wave
from numpy.typing import NDArray
from PIL import Image

from training.conftest import media_of
from vqtok.config import Config, load_preset
from vqtok.errors import TrainingError, UsageError
from vqtok.media.containers.mpeg import parse_header
from vqtok.media.image import read_image
from vqtok.media.tiling import padded
from vqtok.training.data import (
    BatchLoader,
    MediaCache,
    TrainingItem,
    crop_samples,
    find_items,
    pair_stem,
    split_items,
    validation_crops,
)

RATE = 8000


def image_config(*settings: str) -> Config:
    small = ["data.crop_pixels=16", "train.batch_size=4", "model.network.strides=2,2", "data.workers=1"]
    return load_preset("image", [*small, *settings])


def audio_config(*settings: str) -> Config:
    small = [f"model.sample_rate={RATE}", "model.network.strides=4,5", "data.crop_seconds=0.1", "train.batch_size=4"]
    return load_preset("audio", [*small, *settings])


def write_picture(path: Path, width: int = 40, height: int = 30, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(width, height) // 2 + level).save(path)


def loader(config: Config, items: list[TrainingItem], seed: int = 0) -> BatchLoader:
    return BatchLoader(config, items, MediaCache(config), seed)


def test_all_images_below_a_folder_in_a_stable_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b.png", "a/z.JPG", "a/y.webp", "a/deep/er/x.bmp"):
        write_picture(tmp_path / name)
    soundfile.write(tmp_path / "a.wav", wave(100, RATE), RATE)
    (tmp_path / "notes.txt").write_text("no picture")
    items = find_items(tmp_path, "image")
    assert [item.name for item in items] == ["a/deep/er/x.bmp", "a/y.webp", "a/z.JPG", "b.png"]
    assert [item.path for item in items] == [tmp_path / item.name for item in items]
    assert caplog.messages == [f"{tmp_path}: passed over 2 files of other kinds: 1 .txt, 1 .wav"]
    assert [item.name for item in find_items(tmp_path, "audio")] == ["a.wav"]


def test_what_training_wrote_is_not_trained_on(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    write_picture(tmp_path / "model.run" / "step-0000001.png")
    assert [item.name for item in find_items(tmp_path, "image")] == ["a.png"]
    assert [item.name for item in find_items(tmp_path / "model.run", "image")] == ["step-0000001.png"]


def test_weights_follow_what_is_there_not_what_a_decoder_estimates(tmp_path: Path) -> None:
    """Decoders estimate four times the duration for an MP3 file that begins with silence and has no Xing frame."""
    sound = np.concatenate([np.zeros((1, RATE)), wave(2 * RATE, RATE)], axis=None)
    soundfile.write(tmp_path / "x.mp3", sound, RATE)
    data = (tmp_path / "x.mp3").read_bytes()
    header = parse_header(data[:4])
    assert header
    (tmp_path / "x.mp3").write_bytes(data[header.size :])
    (item,) = find_items(tmp_path, "audio")
    assert item.weight == pytest.approx(3, abs=0.3)


def test_a_sound_that_cannot_be_opened_is_reported_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "good.wav", wave(3 * RATE, RATE), RATE)
    (tmp_path / "bad.wav").write_bytes(b"RIFF nothing")
    (tmp_path / "empty.flac").write_bytes(b"")
    items = find_items(tmp_path, "audio")
    assert [(item.name, item.weight) for item in items] == [("good.wav", 3.0)]
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == ["skipped", "skipped"]
    assert "bad.wav" in caplog.text
    assert "empty.flac" in caplog.text


def test_a_picture_that_proves_broken_while_training_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abc":
        write_picture(tmp_path / f"{name}.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    items = find_items(tmp_path, "image")
    assert len(items) == 3
    config = image_config("data.workers=4")
    source = loader(config, items)
    batches = list(itertools.islice(source.batches(0), 8))
    assert all(media_of(batch).shape == (4, 3, 16, 16) for batch in batches)
    assert source.cache.unreadable == {"b.png"}
    assert source.cache.read(items[1]) is None
    assert len(caplog.records) == 1
    # A batch is the same whether or not the file is already known to be unreadable.
    assert np.array_equal(media_of(batches[0]), media_of(source.batch(0)))


def test_nothing_readable_at_all(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match="none of the training files can be read"):
        loader(image_config(), find_items(tmp_path, "image")).batch(0)


def some_items(count: int) -> list[TrainingItem]:
    return [TrainingItem(Path(f"{i}.png"), f"folder/{i}.png") for i in range(count)]


def test_split_is_by_name_and_disjoint() -> None:
    items = some_items(200)
    training, held_out = split_items(items, 0.05)
    assert (len(training), len(held_out)) == (190, 10)
    assert sorted([*training, *held_out], key=items.index) == items
    # Neither the order of the files nor the location of the folder matters.
    moved = [dataclasses.replace(item, path=Path("elsewhere") / item.path) for item in reversed(items)]
    assert {item.name for item in split_items(moved, 0.05)[1]} == {item.name for item in held_out}


@pytest.mark.parametrize("count", [201, 230, 1000])
def test_split_survives_added_files_but_for_the_edge(count: int) -> None:
    before = {item.name for item in split_items(some_items(200), 0.05)[1]}
    after = {item.name for item in split_items(some_items(count), 0.05)[1]}
    old = after & {item.name for item in some_items(200)}
    assert old <= before or before <= old
    assert len(old ^ before) <= 6


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (3, 1), (1, 0), (30, 2)])
def test_a_few_files_leave_one_for_each_side(count: int, held_out: int) -> None:
    assert len(split_items(some_items(count), 0.05)[1]) == held_out
    assert len(split_items(some_items(count), 0.99)[0]) == min(1, count)


def test_each_modality_has_held_out_files() -> None:
    images = [*some_items(300), *(TrainingItem(Path(f"p{i}.png"), f"p{i}.png") for i in range(20))]
    audio = [TrainingItem(Path(f"{name}.ogg"), f"{name}.ogg") for name in ["a", "b", *(f"p{i}" for i in range(20))]]
    training, held_out = split_items([*images, *audio], 0.05, pair_stem)
    stems = [pair_stem(item) for item in held_out]
    assert len([stem for stem in set(stems) if stem.startswith("folder/")]) == 15
    assert len([stem for stem in set(stems) if stem.startswith("p")]) == 1
    assert len([item for item in held_out if item.modality == "audio"]) == 2  # One of the pairs, and one alone.
    assert len(training) + len(held_out) == len(images) + len(audio)


def test_array_files_hold_stacks_of_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack = np.arange(3 * 8 * 12, dtype=np.uint8).reshape(3, 8, 12)
    np.savez(tmp_path / "some.npz", images=stack, labels=np.arange(3, dtype=np.uint8))
    np.save(tmp_path / "rgb.npy", np.stack([stack, stack + 1, stack + 2], axis=-1))
    np.save(tmp_path / "floats.npy", np.zeros((3, 8, 8), np.float32))
    whole = (tmp_path / "some.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npy").write_bytes(b"")
    items = find_items(tmp_path, "image")
    assert [item.name for item in items] == [
        *(f"rgb.npy//{i}" for i in range(3)),
        *(f"some.npz/images/{i}" for i in range(3)),
    ]
    cache = MediaCache(image_config())
    media = cache.read(items[1])
    assert media is not None
    expected = np.stack([stack[1], stack[1] + 1, stack[1] + 2]).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(media.data, expected, atol=1e-6)
    assert sorted(record.getMessage().split(":")[1].rpartition("/")[2] for record in caplog.records) == [
        "empty.npy",
        "floats.npy",
        "short.npz",
    ]


def test_stacks_are_made_grey_and_rgb_as_files_are(tmp_path: Path) -> None:
    rgb = picture(24, 20)
    Image.fromarray(rgb).save(tmp_path / "one.png")
    np.save(tmp_path / "stack.npy", rgb[None])
    np.save(tmp_path / "grey.npy", rgb[None, :, :, 0])
    one, grey, stack = sorted(find_items(tmp_path, "image"), key=lambda item: item.name != "one.png")
    cache = MediaCache(image_config("model.channels=1"))
    from_file, from_stack = cache.get(one), cache.get(stack)
    assert from_file is not None
    assert from_stack is not None
    assert from_file.shape == from_stack.shape == (1, 20, 24)
    assert np.abs(from_file.astype(int) - from_stack).max() <= 1
    repeated = MediaCache(image_config()).get(grey)
    assert repeated is not None
    assert np.array_equal(repeated, np.stack([rgb[:, :, 0]] * 3))


def test_the_stored_form_is_that_of_the_file(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    (item,) = find_items(tmp_path, "image")
    stored = MediaCache(image_config()).get(item)
    assert stored is not None
    assert stored.dtype == np.uint8
    np.testing.assert_allclose(stored / np.float32(127.5) - 1, read_image(item.path).data, atol=1e-6)


def crops_of(config: Config, items: list[TrainingItem], steps: int = 3) -> NDArray[np.float32]:
    source = loader(config, items)
    return np.concatenate([media_of(source.batch(step)) for step in range(steps)])


def is_part_of(crop: NDArray[np.float32], whole: NDArray[np.float32]) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(whole, crop.shape)
    return bool((windows == crop).all(axis=tuple(range(-crop.ndim, 0))).any())


@pytest.mark.parametrize("flip", [False, True])
def test_crops_are_parts_of_the_picture(tmp_path: Path, flip: bool) -> None:
    write_picture(tmp_path / "a.png")
    items = find_items(tmp_path, "image")
    crops = crops_of(image_config(f"data.flip={str(flip).lower()}"), items, steps=4)
    whole = (np.asarray(Image.open(tmp_path / "a.png")).transpose(2, 0, 1).astype(np.float32) - 127.5) / 127.5
    straight = [is_part_of(crop, whole) for crop in crops]
    mirrored = [is_part_of(crop[:, :, ::-1], whole) for crop in crops]
    assert all(a or b for a, b in zip(straight, mirrored, strict=True))
    assert any(mirrored) == flip
    assert any(straight)
    assert len({crop.tobytes() for crop in crops}) > 8


@pytest.mark.parametrize(("width", "height"), [(5, 3), (1, 1), (40, 7), (16, 16)])
def test_small_pictures_are_continued_by_their_mirror_image(tmp_path: Path, width: int, height: int) -> None:
    write_picture(tmp_path / "a.png", width, height)
    pixels = np.asarray(Image.open(tmp_path / "a.png")).transpose(2, 0, 1)
    missing = [(0, 0), (0, max(0, 16 - height)), (0, max(0, 16 - width))]
    whole = (np.pad(pixels, missing, mode="symmetric").astype(np.float32) - 127.5) / 127.5
    for crop in crops_of(image_config("data.flip=false"), find_items(tmp_path, "image")):
        assert is_part_of(crop, whole)


def test_short_sounds_end_in_silence(tmp_path: Path) -> None:
    sound = wave(500, RATE)[:, 0]
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype="PCM_16")
    crops = crops_of(audio_config(), find_items(tmp_path, "audio"))
    assert crops.shape == (12, 1, 800)
    np.testing.assert_allclose(crops[:, 0, :500], np.tile(sound, (12, 1)), atol=1e-4)
    assert not crops[:, :, 500:].any()


def test_sound_crops_come_from_every_channel_and_place(tmp_path: Path) -> None:
    ramp = np.linspace(0, 0.9, 4000, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([ramp, -ramp], axis=1), RATE, subtype="PCM_16")
    crops = crops_of(audio_config(), find_items(tmp_path, "audio"), steps=10)
    assert {bool(crop.mean() > 0) for crop in crops} == {True, False}
    starts = np.abs(crops[:, 0, 0])
    assert starts.min() < 0.1
    assert starts.max() > 0.6


def test_sounds_are_drawn_by_duration(tmp_path: Path) -> None:
    for name, seconds, level in (("long", 9, 0.5), ("short", 1, -0.5)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(seconds * RATE, level, np.float32), RATE)
    crops = crops_of(audio_config("train.batch_size=100"), find_items(tmp_path, "audio"), steps=5)
    assert 0.85 < (crops.mean(axis=(1, 2)) > 0).mean() < 0.95


def test_crops_of_speech_are_told_by_the_names_of_their_files(tmp_path: Path) -> None:
    for name, level in (("speech/a.wav", 0.5), ("speech/deep/b.wav", 0.5), ("music/c.wav", -0.5)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, np.full(RATE, level), RATE)
    items = find_items(tmp_path, "audio")
    batches = [loader(audio_config("data.speech=speech/*"), items).batch(step) for step in range(10)]
    speech = np.concatenate([batch.speech for batch in batches])
    levels = np.concatenate([batch.media["audio"][:, 0, 0] for batch in batches])
    assert (speech == (levels > 0)).all()
    assert {True, False} == set(speech.tolist())
    assert loader(audio_config(), items).batch(0).speech.all()
    with pytest.raises(UsageError, match=r"data\.speech=spech/\*: no file to train on has such a name"):
        loader(audio_config("data.speech=spech/*"), items)


def test_crops_are_whole_grid_steps() -> None:
    assert crop_samples(audio_config("data.crop_seconds=0.1")) == 800
    assert crop_samples(audio_config("data.crop_seconds=0.1001")) == 800
    assert crop_samples(audio_config("data.crop_seconds=0.1013")) == 820
    assert crop_samples(audio_config("data.crop_seconds=0")) == 20
    with pytest.raises(UsageError, match=r"data.crop_pixels must be a multiple of 4"):
        loader(image_config("data.crop_pixels=18"), some_items(2))


def test_batches_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    for index in range(5):
        write_picture(tmp_path / f"{index}.png", 40 + index, 30, level=20 * index)
    items = find_items(tmp_path, "image")
    config = image_config()
    expected = [media_of(loader(config, items).batch(step)) for step in range(8)]
    for workers, first in ((1, 0), (4, 0), (3, 5)):
        source = loader(image_config(f"data.workers={workers}"), items)
        found = map(media_of, itertools.islice(source.batches(first), 8 - first))
        assert all(np.array_equal(*pair) for pair in zip(found, expected[first:], strict=True))
    assert expected[0].dtype == np.float32
    assert not np.array_equal(expected[0], expected[1])
    assert not np.array_equal(expected[0], media_of(loader(config, items, seed=1).batch(0)))


def test_threads_end_with_the_iteration(tmp_path: Path) -> None:
    import threading

    write_picture(tmp_path / "a.png")
    batches = loader(image_config("data.workers=2"), find_items(tmp_path, "image")).batches(0)
    next(batches)
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("vqtok-data")]
    assert workers
    batches.close()
    for thread in workers:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_memory_stays_within_the_budget(tmp_path: Path) -> None:
    for index in range(6):
        write_picture(tmp_path / f"{index}.png", level=20 * index)
    items = find_items(tmp_path, "image")
    one = 40 * 30 * 3
    config = image_config(f"data.cache_gb={2.5 * one / 1e9}", "data.workers=4")
    tight, wide = loader(config, items), loader(image_config(), items)
    for batch, expected in zip(itertools.islice(tight.batches(0), 12), wide.batches(0), strict=False):
        assert np.array_equal(media_of(batch), media_of(expected))
    kept = [item for item in items if tight.cache.get(item) is tight.cache.get(item)]
    assert len(kept) == 2
    assert all(wide.cache.get(item) is wide.cache.get(item) for item in items)


def test_validation_crops_are_the_middle_in_whole_grid_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_picture(tmp_path / "a.png", 40, 150)
    (tmp_path / "c.png").write_bytes(b"nothing")
    config = image_config()
    cache = MediaCache(config)
    ((item, crop),) = validation_crops(config, find_items(tmp_path, "image"), cache.read)
    assert item.name == "a.png"
    whole = read_image(tmp_path / "a.png").data
    assert np.array_equal(crop, whole[:, 11 : 11 + 128, :40])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_validation_extends_small_images_by_reflection(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 30, 3)
    config = image_config()
    ((_, crop),) = validation_crops(config, find_items(tmp_path, "image"), MediaCache(config).read)
    assert np.array_equal(crop, padded(read_image(tmp_path / "a.png").data, 4))


def test_validation_takes_two_seconds_of_the_first_channel(tmp_path: Path) -> None:
    sound = wave(5 * RATE, RATE, channels=2)
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype="FLOAT")
    config = audio_config()
    ((_, crop),) = validation_crops(config, find_items(tmp_path, "audio"), MediaCache(config).read)
    np.testing.assert_allclose(crop, sound[12_000 : 12_000 + 2 * RATE, :1].T, atol=1e-6)
