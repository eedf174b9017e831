"""Qwen3-TTS at 12.5 Hz: codes equal those of its package.

`tests/golden/qwen3-tts` has a small random model that qwen-tts 0.1.1 saved with transformers 4.57.3, and the codes that
this package computed of noise of several lengths. The longest is 50 times as long as the window of attention in the
config, which transformers 4.57 does not apply.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rounding import assert_same_codes
from safetensors.torch import load_file, save_file

import vqtok
from vqtok.errors import ModelError
from vqtok.media.media import Media
from vqtok.models.registry import open_tokenizer

pytest.importorskip("transformers")
GOLDEN = Path(__file__).parents[1] / "golden/qwen3-tts"


def noise(samples: int) -> Media:
    return Media("audio", np.random.default_rng(samples).normal(0, 0.2, (1, samples)).astype(np.float32), 24_000)


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 4000])
def test_codes(samples: int) -> None:
    with np.load(GOLDEN / "codes.npz") as golden:
        expected = golden[str(samples)]
    tokens = vqtok.encode(noise(samples), str(GOLDEN))
    assert (tokens.num_codebooks, tokens.stride) == (4, 16)
    assert tokens.codes.shape == expected.shape
    assert_same_codes(tokens.codes, expected)


def test_it_says_how_to_decode() -> None:
    tokens = vqtok.encode(noise(100), str(GOLDEN), num_codebooks=2)
    with pytest.raises(ModelError, match="only encodes: its decoder needs the package qwen-tts, which only works with"):
        vqtok.decode(tokens, str(GOLDEN))


def test_the_number_of_codebooks_is_part_of_the_identity(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "a")
    config = json.loads((GOLDEN / "config.json").read_text()) | {"encoder_valid_num_quantizers": 3}
    (tmp_path / "a/config.json").write_text(json.dumps(config))
    other = open_tokenizer(str(tmp_path / "a"))
    assert len(other.codebook_sizes) == 3
    assert other.identity != open_tokenizer(str(GOLDEN)).identity


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "a")
    state = load_file(GOLDEN / "model.safetensors")
    state.pop("encoder.encoder.layers.0.conv.bias")
    save_file(state, tmp_path / "a/model.safetensors")
    with pytest.raises(ModelError, match="the weights do not match the config: encoder.*bias"):
        open_tokenizer(str(tmp_path / "a"))
