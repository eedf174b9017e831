from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from generation.conftest import SAMPLES, SIDE, WORDS
from vqtok.errors import TrainingError, UsageError, WrongModelError
from vqtok.files.atomic import atomic_write
from vqtok.generation.batches import BatchMaker, draw_count, layouts
from vqtok.generation.config import DataConfig
from vqtok.generation.items import find_streams, read_items, split
from vqtok.generation.streams import HIDDEN, TEXT_END
from vqtok.generation.tokenizers import Tokenizers
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.file import dump


def image_tokens(model: bytes, side: int = 4, **metadata) -> bytes:
    codes = np.zeros((4, side, side), np.int32)
    size = (side * 4, side * 4)
    return dump(
        Tokens(
            codes=codes, codebook_sizes=(16,) * 4, modality="image", size=size, stride=4, model=model, metadata=metadata
        )
    )


@pytest.fixture
def tokenizers(world) -> Tokenizers:
    return Tokenizers(world.named)


@pytest.fixture
def identity(world) -> bytes:
    from vqtok.models.card import read_card

    return bytes.fromhex(read_card(world.models[0]).identity)[:8]


def test_files_with_the_same_stem_are_one_item(world, tokenizers):
    items = read_items([world.tokens], tokenizers)
    assert len(items) == 40
    assert all(set(item.tokens) == {"image", "audio"} for item in items)
    assert [item.caption for item in sorted(items, key=lambda item: int(item.name))] == [*WORDS] * 20


def test_modalities_may_lie_in_folders_of_their_own(world, tokenizers, tmp_path):
    for suffix in ("png", "wav"):
        (tmp_path / suffix / "deep").mkdir(parents=True)
        shutil.copy(world.tokens / f"3.{suffix}.vqt", tmp_path / suffix / "deep/3.vqt")
    (item,) = read_items([tmp_path / "png", tmp_path / "wav"], tokenizers)
    assert item.name == "deep/3"
    assert set(item.tokens) == {"image", "audio"}


def test_items_of_shards_are_joined_with_files(world, tokenizers, tmp_path, run):
    run("encode", world.media, "-m", world.models[0], "--shard", tmp_path / "images.vqts", "-q")
    items = read_items([tmp_path / "images.vqts", world.tokens / "7.wav.vqt"], tokenizers)
    assert len(items) == 40
    assert [item.name for item in items if len(item.tokens) == 2] == ["7"]
    assert all(item.caption in WORDS for item in items)


def test_a_text_file_beside_a_token_file_is_its_caption(identity, tokenizers, tmp_path):
    (tmp_path / "a.png.vqt").write_bytes(image_tokens(identity))
    (tmp_path / "a.txt").write_text("größe\n", encoding="utf-8")
    (item,) = read_items([tmp_path], tokenizers)
    assert item.caption == "größe"


def test_damaged_files_are_left_out_with_a_warning(identity, tokenizers, tmp_path, caplog):
    data = image_tokens(identity)
    (tmp_path / "a.vqt").write_bytes(data)
    (tmp_path / "b.vqt").write_bytes(data[:-1])
    assert [item.name for item in read_items([tmp_path], tokenizers)] == ["a"]
    assert "b.vqt" in caplog.text
    (tmp_path / "a.vqt").unlink()
    with pytest.raises(TrainingError, match="no tokens"):
        read_items([tmp_path], tokenizers)


def test_two_items_of_one_modality_with_one_stem_are_refused(identity, tokenizers, tmp_path):
    for name in ("a.png.vqt", "a.jpg.vqt"):
        (tmp_path / name).write_bytes(image_tokens(identity))
    with pytest.raises(UsageError, match="two image items a"):
        read_items([tmp_path], tokenizers)


def test_two_tokenizers_of_one_modality_are_refused(identity, world, make_model, tmp_path):
    from vqtok.models.card import read_card

    other = make_model("image", seed=1)
    for name, model in (("a", identity), ("b", bytes.fromhex(read_card(other).identity)[:8])):
        (tmp_path / f"{name}.vqt").write_bytes(image_tokens(model))
    with pytest.raises(UsageError, match="one tokenizer a modality"):
        read_items([tmp_path], Tokenizers([*world.named, str(other)]))


def test_tokens_of_an_unknown_model_are_refused(tmp_path):
    (tmp_path / "a.vqt").write_bytes(image_tokens(b"unknown!"))
    with pytest.raises(WrongModelError, match=b"unknown!".hex()):
        read_items([tmp_path], Tokenizers())


def test_streams_have_the_grids_of_the_items(world, tokenizers):
    streams = find_streams(read_items([world.tokens], tokenizers), DataConfig(), tokenizers)
    assert [(stream.name, stream.window) for stream in streams] == [
        ("image", (SIDE // 4, SIDE // 4)),
        ("audio", (SAMPLES // 8,)),
        ("text", (max(map(len, WORDS)) + 1,)),
    ]
    assert streams[0].size == (SIDE, SIDE)
    assert streams[1].size == (SAMPLES, 16_000)


def test_a_few_small_items_are_left_out_instead_of_shrinking_the_window(identity, tokenizers, tmp_path, caplog):
    for index in range(20):
        atomic_write(tmp_path / f"{index}.vqt", image_tokens(identity, side=2 if index == 0 else 6))
    items = read_items([tmp_path], tokenizers)
    (stream,) = find_streams(items, DataConfig(image_window=5), tokenizers)
    assert stream.window == (5, 5)
    assert stream.size == ()
    assert sum(item.has(stream) for item in items) == 19
    assert "1 image items are smaller" in caplog.text


def test_the_split_stays_when_items_are_added(world, tokenizers):
    items = read_items([world.tokens], tokenizers)
    _, held_out = split(items[:30], 0.2)
    _, of_all = split(items, 0.2)
    kept = {item.name for item in of_all} & {item.name for item in items[:30]}
    assert len(held_out) == 6
    assert kept <= {item.name for item in held_out}


def test_layouts_are_all_sets_but_a_caption_alone():
    assert set(layouts(["image", "text"])) == {("image",), ("image", "text")}
    assert len(layouts(["image", "audio", "text"])) == 6


@pytest.fixture
def batches(world, tokenizers):
    items = read_items([world.tokens], tokenizers)
    streams = find_streams(items, DataConfig(), tokenizers)
    return lambda size, first=0, seed=0: BatchMaker(items, streams, size, seed, first)


def test_a_batch_depends_on_its_step_and_seed_only(batches):
    for step in range(6):
        one, again, other = batches(8).batch(step), batches(8).batch(step), batches(8, seed=1).batch(step)
        assert list(one) == list(again)
        assert all((one[name].shown == again[name].shown).all() for name in one)
        assert list(one) != list(other) or any((one[name].shown != other[name].shown).any() for name in one)


def test_two_processes_have_the_batch_of_one(batches):
    for step in range(6):
        whole, parts = batches(8).batch(step), [batches(4, first).batch(step) for first in (0, 4)]
        for name, masked in whole.items():
            assert (masked.shown[:4] == parts[0][name].shown).all()
            assert (masked.shown[4:] == parts[1][name].shown).all()


def test_coarser_codebooks_are_known_and_finer_ones_hidden(batches):
    seen = set()
    for step in range(20):
        batch = batches(16).batch(step)
        if "image" not in batch:
            continue
        masked = batch["image"]
        for codes, shown, codebook in zip(masked.codes, masked.shown, masked.codebooks.tolist(), strict=True):
            assert (shown[:codebook] == codes[:codebook]).all()
            known = shown[codebook] != HIDDEN
            assert (shown[codebook][known] == codes[codebook][known]).all()
            if not known.all():
                assert (shown[codebook + 1 :] == HIDDEN).all()
                seen.add(codebook)
            else:
                assert (shown == codes).all()
        assert (
            masked.predicted(2) == ((masked.shown[:, 2].flatten(1) == HIDDEN) & (masked.codebooks == 2)[:, None])
        ).all()
    assert seen == {0, 1, 2, 3}


def test_every_step_has_something_to_predict_and_often_a_condition(batches):
    conditions = 0
    for step in range(30):
        batch = batches(16).batch(step)
        hidden = {name: (masked.shown == HIDDEN).flatten(1).any(1) for name, masked in batch.items()}
        assert all(any(hidden[name][row] for name in batch) for row in range(16))
        conditions += sum(int((~found).sum()) for found in hidden.values())
    assert conditions > 60


def test_captions_end_with_the_end_symbol(batches):
    for step in range(20):
        batch = batches(4).batch(step)
        if "text" in batch:
            assert (batch["text"].codes[:, 0, -1] == TEXT_END).all()
            return
    pytest.fail("no batch with captions")


def test_a_stream_returns_from_json(world, tokenizers):
    from vqtok.generation.streams import stream_of

    for stream in find_streams(read_items([world.tokens], tokenizers), DataConfig(), tokenizers):
        assert stream_of(json.loads(json.dumps(stream.to_dict()))) == stream


def test_often_all_positions_are_hidden_as_sampling_begins():
    rng = np.random.default_rng(0)
    counts = [draw_count(49, rng) for _ in range(2000)]
    assert min(counts) >= 1
    assert 0.08 < counts.count(49) / 2000 < 0.2
