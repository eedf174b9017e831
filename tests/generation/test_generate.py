from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import wave
from PIL import Image

import vqtok
from generation.conftest import SAMPLES, SIDE, WORDS
from vqtok.codec.files import Codecs, encode_media
from vqtok.files.atomic import atomic_write
from vqtok.generation.generate import Generation
from vqtok.generation.sampling import SamplingOptions
from vqtok.tokens.vqt.file import dump, load
from vqtok.tokens.vqt.header import parse_header


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.fixture
def go(run, generator, world):
    """Return a function that runs `vqtok generate` with the generator and its tokenizers."""
    named = [argument for model in world.named for argument in ("--tokenizer", model)]
    return lambda *args: run("generate", "-m", generator, *named, *args)


def test_captions_of_images_and_of_audio(go, world):
    sources = [argument for index in range(8) for argument in ("--from", world.media / f"{index}.png")]
    result = go(*sources, "--to", "text", "--json")
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["caption"] for row in rows[:-1]] == [*WORDS] * 4
    assert not any("output" in row for row in rows)
    assert rows[-1]["kind"] == "summary"


@pytest.mark.parametrize("name", ["image", "audio"])
def test_images_and_audio_of_captions_are_as_asked(generator, world, name):
    """The captions of real media are right, as the test before shows, so those of generated media can judge them."""
    session = Generation(generator, world.named)
    for word in WORDS:
        made = session.sample(name, [session.text_condition(word)] * 8, range(8), SamplingOptions(8, 0.3))
        captions = session.sample("text", [{name: codes} for codes in made], range(8))
        assert [session.media("text", codes) for codes in captions].count(word) >= 6


def test_a_caption_can_come_between(go, world, generator, tmp_path):
    sources = [argument for index in range(2) for argument in ("--from", world.media / f"{index}.png")]
    shown = go(*sources, "--to", "audio", "--via", "text", "-o", f"{tmp_path}/")
    assert "(seed 0, caption 'dark')\n" in shown.stderr
    result = go(*sources, "--to", "audio", "--via", "text", "-o", f"{tmp_path}/", "--force", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()][:-1]
    assert [row["caption"] for row in rows] == [*WORDS]
    session = Generation(generator, world.named)
    given = session.condition(world.media / "0.png")
    (chained,) = session.chain("text", [given], [0])
    assert session.media("text", chained["text"]) == WORDS[0]
    (codes,) = session.sample("audio", [given | session.text_condition(WORDS[0])], [0])
    direct = session.media("audio", codes)
    # Without `to`, what comes between is not the output.
    shown = go(*sources, "--via", "audio", "--json")
    assert [json.loads(line)["modality"] for line in shown.stdout.splitlines()[:-1]] == ["text", "text"]
    (made,) = vqtok.generate(generator, to="audio", source=world.media / "0.png", via="text", tokenizers=world.named)
    np.testing.assert_array_equal(made.data, direct.data)


def test_writes_numbered_files_and_a_sheet(go, tmp_path):
    result = go("-n", 5, "-o", f"{tmp_path}/out/", "--text", "light", "--to", "image", "--steps", 2)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"000{i}.png" for i in range(1, 6)),
        "contact-sheet.png",
    ]
    assert size_of(tmp_path / "out/0001.png") == (SIDE, SIDE)
    assert size_of(tmp_path / "out/contact-sheet.png")[0] >= 2 * SIDE


def test_the_same_seed_gives_the_same_output(go, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        go("-o", tmp_path / f"{name}.vqt", "--to", "image", "--steps", 2, "--seed", seed)
    a, b, c = ((tmp_path / f"{name}.vqt").read_bytes() for name in "abc")
    assert a == b != c
    header, _ = parse_header(a)
    assert header.metadata["seed"] == 3
    assert len(header.metadata["generator"]) == 16


def test_tokens_decode_to_what_media_would_be(go, run, world, tmp_path):
    go("-o", tmp_path / "a.vqt", "--to", "audio", "--steps", 2)
    go("-o", tmp_path / "a.wav", "--to", "audio", "--steps", 2)
    assert run("decode", tmp_path / "a.vqt", "-m", world.models[1], "-o", tmp_path / "b.wav").exit_code == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert soundfile.info(tmp_path / "a.wav").frames == SAMPLES


def test_a_folder_of_sources_keeps_its_names(go, world, tmp_path):
    result = go("--from", world.media, "--to", "audio", "-o", f"{tmp_path}/out/", "--steps", 1)
    assert result.exit_code == 0, result.stderr
    assert len(list((tmp_path / "out").glob("*.wav"))) == 40
    again = go("--from", world.media, "--to", "audio", "-o", f"{tmp_path}/out/", "--steps", 1, "--skip-existing")
    assert "40 skipped" in again.stderr


def test_larger_and_smaller_media_than_in_training(go, tmp_path):
    go("-o", tmp_path / "a.png", "--to", "image", "--size", "50x10", "--steps", 1)
    go("-o", tmp_path / "a.wav", "--to", "audio", "--seconds", 0.05, "--steps", 1)
    assert size_of(tmp_path / "a.png") == (50, 10)
    assert soundfile.info(tmp_path / "a.wav").frames == 800


def test_pixels_outside_the_mask_stay_to_the_last_bit(go, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8)
    mask = np.zeros((45, 61), np.uint8)
    mask[10:30, 20:33] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    result = go("--from", tmp_path / "photo.png", "--mask", tmp_path / "mask.png", "-o", tmp_path / "out.png")
    assert result.exit_code == 0, result.stderr
    out = np.asarray(Image.open(tmp_path / "out.png"))
    assert (out[mask == 0] == pixels[mask == 0]).all()
    assert (out[mask > 0] != pixels[mask > 0]).mean() > 0.5


@pytest.mark.parametrize("channels", [1, 2])
def test_samples_outside_a_replaced_part_stay(go, tmp_path, channels):
    samples = wave(4000, 16_000, channels)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="PCM_16")
    result = go("--from", tmp_path / "a.wav", "--replace", "0.1-0.15", "-o", tmp_path / "out.wav", "--steps", 2)
    assert result.exit_code == 0, result.stderr
    before, after = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("a.wav", "out.wav"))
    assert after.shape == before.shape
    assert (after[:1600] == before[:1600]).all()
    assert (after[2400:] == before[2400:]).all()
    assert (after[1600:2400] != before[1600:2400]).any()


def test_extended_audio_begins_as_it_was(go, tmp_path):
    soundfile.write(tmp_path / "a.wav", wave(2000, 16_000), 16_000, subtype="PCM_16")
    result = go("--from", tmp_path / "a.wav", "--extend", 0.1, "-o", tmp_path / "out.wav", "--steps", 2)
    assert result.exit_code == 0, result.stderr
    before, after = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("a.wav", "out.wav"))
    assert len(after) == 3600
    assert (after[:2000] == before).all()


def test_what_a_damaged_file_has_lost_is_filled_in(run, generator, world, tmp_path, monkeypatch):
    monkeypatch.setattr("vqtok.tokens.vqt.file.SEGMENT_POSITIONS", {"image": 32, "audio": 1 << 12})
    pixels = np.full((64, 32, 3), 210, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tokens, _ = encode_media(tmp_path / "a.png", Codecs(world.named[0]))
    data = bytearray(dump(tokens, coder="packed"))
    header, start = parse_header(bytes(data))
    assert header.num_segments == 4
    per_segment = (len(data) - start) // 4
    data[start + per_segment + 5] ^= 1  # in the second segment
    atomic_write(tmp_path / "a.vqt", bytes(data))
    options = "-m", world.models[0], "--salvage"
    gray = run("decode", tmp_path / "a.vqt", *options, "-o", tmp_path / "gray.png")
    filled = run("decode", tmp_path / "a.vqt", *options, "--fill", generator, "-o", tmp_path / "filled.png", "--json")
    assert gray.exit_code == filled.exit_code == 1
    facts = json.loads(filled.stdout)
    assert facts["filled"] is True
    assert facts["lost_rows"] == [[16, 32]]
    assert "what a generator made in their place" in facts["error"]
    whole = np.asarray(Image.fromarray(pixels))
    images = [np.asarray(Image.open(tmp_path / name)) for name in ("gray.png", "filled.png")]
    assert whole.shape == images[0].shape == images[1].shape
    assert (images[0][16:32] != images[1][16:32]).any()


def test_fill_needs_salvage(run, generator, tmp_path):
    result = run("decode", tmp_path / "a.vqt", "--fill", generator)
    assert result.exit_code == 2
    assert "--fill needs --salvage" in result.stderr


def error_of(result) -> str:
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    return line


def test_each_wrong_input_is_one_clear_line(go, run, world, generator, make_model, tmp_path):
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "small.png")
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(tmp_path / "black.png")
    other = make_model("image", seed=2)
    tokens, _ = encode_media(world.media / "0.png", Codecs(str(other)))
    atomic_write(tmp_path / "other.vqt", dump(tokens))
    image, audio = world.media / "0.png", world.media / "0.wav"
    out = tmp_path / "out.png"
    cases = [
        (go("--from", tmp_path / "other.vqt", "--to", "text"), 3, "was trained on image tokens of"),
        (go("--from", image, "--mask", tmp_path / "small.png", "-o", out), 2, "is 9x8, but the image is 16x16"),
        (go("--from", image, "--mask", tmp_path / "black.png", "-o", out), 2, "no white pixels"),
        (go("--text", "семь", "-o", out), 2, "no caption of the training has the characters"),
        (go("--text", "dark" * 20, "-o", out), 2, "longer than the 6 bytes"),
        (go("--from", audio, "--replace", "5-6", "-o", tmp_path / "o.wav"), 2, "the audio is 0.016 s long"),
        (go("--from", audio, "--replace", "x", "-o", tmp_path / "o.wav"), 2, "two times in seconds"),
        (go("--from", tmp_path / "none.png", "--to", "text"), 2, "none.png"),
        (go("-o", out, "--to", "image", "--size", "3"), 2, "WIDTHxHEIGHT"),
        (go("-n", 2), 2, "-o FILE"),
        (go("--to", "image", "--via", "text", "-o", out), 2, "--via text"),
        (go("--from", image, "--to", "audio", "--via", "image", "-o", out), 2, "is given already"),
        (go("--mask", image, "-o", out), 2, "--from"),
        (go("--extend", 1, "--replace", "1-2", "--from", audio), 2, "give one of them"),
        (run("encode", image, "-m", generator), 3, "is a generator of tokens, not a tokenizer"),
        (run("generate", "-m", world.models[0], "-o", out), 3, "is a tokenizer, not a generator"),
    ]
    for result, code, message in cases:
        assert message in error_of(result)
        assert result.exit_code == code
    assert not out.exists()


def test_captions_go_to_stdout(go, world):
    assert go("--from", world.media / "1.png", "--to", "text", "-q").stdout == "light\n"
    sources = [argument for index in (0, 1) for argument in ("--from", world.media / f"{index}.wav")]
    several = go(*sources, "--to", "text").stdout.splitlines()
    assert several == [f"{world.media / f'{index}.wav'}\t{word}" for index, word in enumerate(WORDS)]


def test_captions_of_a_folder(go, world):
    captions = go("--from", world.media, "--to", "text").stdout.splitlines()
    assert len(captions) == 80
    assert sum(line.endswith(tuple(WORDS)) for line in captions) > 70


def test_the_first_modality_that_is_not_given_is_generated(go, world, tmp_path):
    assert go("--from", world.tokens / "1.png.vqt", "-o", f"{tmp_path}/out/", "--steps", 1).exit_code == 0
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".wav"]


def test_a_bad_source_fails_alone(go, world, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    result = go("--from", tmp_path / "broken.png", "--from", world.media / "1.png", "--to", "text")
    assert result.exit_code == 1
    assert "broken.png" in error_of(result)
    assert "light" in result.stdout


def test_a_caption_that_was_never_trained_is_a_warning(go, tmp_path):
    result = go("--text", "dar", "-o", tmp_path / "a.png", "--to", "image", "--steps", 1)
    assert result.exit_code == 0
    assert "none of the captions of the training: dark, light" in result.stderr


def test_existing_outputs_are_refused(go, tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    result = go("-o", tmp_path / "a.png", "--to", "image", "--steps", 1)
    assert "output exists" in error_of(result)
    assert (tmp_path / "a.png").read_bytes() == b"mine"
    assert go("-o", tmp_path / "a.png", "--to", "image", "--steps", 1, "--force").exit_code == 0


def test_from_python_the_generator_takes_media_and_tokens(generator, world):
    session = Generation(generator, world.named)
    media = session.codec(session.stream("image")).decode(load((world.tokens / "1.png.vqt").read_bytes()))
    for source in (world.tokens / "1.png.vqt", media, load((world.tokens / "1.png.vqt").read_bytes())):
        (caption,) = vqtok.generate(generator, source=source, to="text", tokenizers=world.named)
        assert caption in WORDS
    codes = list(session.sample("image", [session.text_condition("dark")] * 3, [0, 1, 2], SamplingOptions(steps=1)))
    assert [item.shape for item in codes] == [(4, 4, 4)] * 3


def test_a_loaded_tokenizer_works_on_batches_of_tensors(image_model):
    tokenizer = vqtok.load(str(image_model))
    x = torch.rand(3, 3, 16, 8) * 2 - 1
    codes = tokenizer.encode(x)
    assert codes.shape == (3, 4, 4, 2)
    assert codes.dtype == torch.int64
    assert tokenizer.decode(codes).shape == x.shape
