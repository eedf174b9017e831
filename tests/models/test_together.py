"""Sounds of one length are encoded together by the networks whose codes do not depend on the batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event

import numpy as np
import pytest
import soundfile
import torch

import vqtok
from models.test_adapters import MAKE, RATE, make_encodec, sound
from models.test_audio_families import MAKE as MAKE_AUDIO
from models.test_folders import MAKE as MAKE_FOLDERS
from models.test_folders import save
from models.test_snac import MAKE as MAKE_SNAC
from vqtok.models.importers import import_checkpoint
from vqtok.models.registry import open_tokenizer

AUDIO = {name: make for name, make in MAKE.items() if name not in ("vqmodel", "movq", "lookup", "dac44")}
IMPORTED = ["speechtokenizer", "bigcodec"]
TOGETHER = ["encodec", "dac", "mimi", "xcodec", "xcodec2", "neucodec", "snac", "attention", "wavtokenizer", *IMPORTED]
ALONE = ["encodec48"]


@pytest.fixture(scope="module")
def saved(saving):
    others = {name: partial(imported, name) for name in IMPORTED} | {"normalized": lambda: make_encodec(normalize=True)}
    return saving(AUDIO | MAKE_AUDIO | MAKE_SNAC | others)


def imported(name):
    model = MAKE_FOLDERS[name]().eval()
    model.save_pretrained = lambda folder: import_checkpoint(save(model, folder / "a.ckpt", name), folder, force=True)
    return model


@pytest.mark.parametrize("name", TOGETHER)
def test_codes_do_not_depend_on_the_batch(saved, name):
    """Not one code, though the sums of a batch may be rounded differently.

    In these models no code is near enough to a tie: random changes of all weights by 3e-7, several times as large as
    such rounding, change none either (measured with ten seeds).
    """
    tokenizer = open_tokenizer(saved(name)[1])
    sounds = torch.randn(5, 1, -(-3000 // tokenizer.stride) * tokenizer.stride, generator=torch.manual_seed(0)) * 0.3
    sounds[1] = 0
    sounds[2] *= 10
    with torch.inference_mode():
        alone = torch.cat([tokenizer.encode(sound[None]) for sound in sounds])
        for size in (5, 3):
            together = torch.cat([tokenizer.encode(part) for part in sounds.split(size)])
            assert (together != alone).sum() == 0


@pytest.mark.parametrize("name", [*TOGETHER, *ALONE, "normalized"])
def test_which_sounds_share_a_batch(saved, name, monkeypatch):
    """The worker is held up until all sounds wait; two of them have another length."""
    tokenizer, go, seen = open_tokenizer(saved(name)[1]), Event(), []
    codec = vqtok.Codec(tokenizer, options=vqtok.CodecOptions(jobs=1))
    tokenizer.encodes_together *= 1 << 17  # DAC and SNAC have small batches on CPUs, or none.
    encode = tokenizer.encode_first
    monkeypatch.setattr(tokenizer, "encode_first", lambda x, count: seen.append(len(x)) or encode(x, count))
    sounds = [sound(5000 - 2000 * (i % 3 == 2), tokenizer.sample_rate, tokenizer.channels) for i in range(6)]
    with ThreadPoolExecutor(6) as threads:
        codec._inference.on_core(lambda: go.wait(60))
        futures = [threads.submit(codec.encode, media) for media in sounds]
        waiting = codec._inference._batches._pool._work_queue
        while waiting.qsize() < 6:
            go.wait(0.01)
        go.set()
        found = [future.result(60) for future in futures]
    assert sorted(seen) == ([2, 4] if name in TOGETHER else [1] * 6)
    for media, tokens in zip(sounds, found, strict=True):
        np.testing.assert_array_equal(tokens.codes, codec.encode(media).codes)


def test_a_folder(saved, run, tmp_path):
    _, folder = saved("mimi")
    for index in range(8):
        data = np.random.default_rng(index).normal(0, 0.2, 2000 + index % 2)
        soundfile.write(tmp_path / f"{index}.wav", data, RATE, subtype="FLOAT")
    assert run("encode", tmp_path, "-o", tmp_path / "all", "-m", folder, "--codebooks", 3).exit_code == 0
    for index in range(8):
        tokens = vqtok.tokens.vqt.file.load((tmp_path / f"all/{index}.vqt").read_bytes())
        alone = vqtok.encode(tmp_path / f"{index}.wav", folder, num_codebooks=3)
        np.testing.assert_array_equal(tokens.codes, alone.codes)
