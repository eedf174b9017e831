"""SNAC: codebooks of different rates, in tokens and in exports; codes and audio equal those of the package."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from rounding import assert_same_codes
from torch import nn

import vqtok
from vqtok.errors import CorruptFileError, ModelError, UsageError
from vqtok.media.media import Media
from vqtok.models.registry import open_tokenizer
from vqtok.tokens.export.layout import interleaved
from vqtok.tokens.tokens import Tokens

snac = pytest.importorskip("snac")
RATE = 8000


def make_snac(**changes):
    config = {
        "sampling_rate": RATE,
        "encoder_dim": 4,
        "encoder_rates": [2, 4],
        "decoder_dim": 16,
        "decoder_rates": [4, 2],
        "attn_window_size": None,
        "codebook_size": 32,
        "codebook_dim": 4,
        "vq_strides": [4, 2, 1],
        "noise": True,
        "depthwise": True,
    } | changes
    model = snac.SNAC(**config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("original1") and parameter.ndim > 1:  # The initial weights make silence.
            nn.init.normal_(parameter)
        if name.endswith("original0"):
            nn.init.constant_(parameter, 1.0)

    def save_pretrained(folder):
        (folder / "config.json").write_text(json.dumps(config))
        torch.save(model.state_dict(), folder / "pytorch_model.bin")

    model.save_pretrained = save_pretrained
    return model


ATTENTION = {"encoder_dim": 16, "encoder_rates": [2, 2], "decoder_dim": 64, "decoder_rates": [2, 2]}
MAKE = {
    "snac": make_snac,
    "attention": lambda: make_snac(attn_window_size=16, vq_strides=[8, 4, 2, 1], **ATTENTION),
}


@pytest.fixture(scope="module")
def saved(saving):
    return saving(MAKE)


def sound(samples, rate=RATE, channels=1):
    return Media("audio", np.random.default_rng(samples).normal(0, 0.2, (channels, samples)).astype(np.float32), rate)


@pytest.fixture
def fixed_noise(monkeypatch):
    """Let the noise blocks of the package draw what vqtok draws: their n-th block has the seed n."""
    calls = []

    def randn(shape, **options):
        calls.append(shape)
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(calls) - 1))

    class Torch:
        def __getattr__(self, name):
            return randn if name == "randn" else getattr(torch, name)

    monkeypatch.setattr("snac.layers.torch", Torch())
    return calls


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("samples", [1, 31, 32, 33, 3000])
def test_snac(saved, fixed_noise, name, samples):
    model, folder = saved(name)
    media = sound(samples)
    expected = model.encode(torch.from_numpy(media.data)[None])
    tokens = vqtok.encode(media, folder)
    assert tokens.levels == ((1, 2, 4) if name == "snac" else (1, 2, 4, 8))
    assert tokens.num_codebooks == sum(tokens.levels)
    start = 0
    for plane, level in zip(expected, tokens.levels, strict=True):
        assert_same_codes(tokens.codes[start : start + level].T.reshape(1, -1), plane.numpy())
        start += level
    decoded = vqtok.decode(tokens, folder)
    assert decoded.data.shape == media.data.shape
    media = model.decode(expected)[0, :, :samples]
    assert len(fixed_noise) == 2
    assert media.abs().max() > 0.01
    np.testing.assert_allclose(decoded.data, media.numpy(), atol=1e-3)
    assert np.array_equal(vqtok.decode(tokens, folder).data, decoded.data)


def test_windows_change_no_codes(saved, monkeypatch):
    _, folder = saved("snac")
    media, codec = sound(9000, channels=2), vqtok.Codec(open_tokenizer(folder))
    assert codec.tokenizer.encoder_context > 0
    whole = codec.encode(media)
    monkeypatch.setattr("vqtok.codec.codec.CHUNK_SECONDS", 0.1)
    assert_same_codes(codec.encode(media).codes, whole.codes)


def test_numbers_of_codebooks_are_those_of_whole_levels(saved, run, tmp_path):
    _, folder = saved("snac")
    tokens = vqtok.encode(sound(3000), folder)
    for count in (1, 3, 7):
        assert vqtok.encode(sound(3000), folder, num_codebooks=count).codes.tolist() == tokens.codes[:count].tolist()
        assert vqtok.decode(tokens, folder, num_codebooks=count).data.shape == (1, 3000)
        assert tokens.prefix(count).levels == (1, 2, 4)[: (count + 1) // 2 if count < 7 else 3]
    for function in (vqtok.encode, vqtok.decode):
        with pytest.raises(UsageError, match="`num_codebooks` 2: this model has 1, 3, 7"):
            function(sound(3000) if function is vqtok.encode else tokens, folder, num_codebooks=2)
    with pytest.raises(UsageError, match="`num_codebooks` 8: there are 7"):
        vqtok.encode(sound(3000), folder, num_codebooks=8)
    with pytest.raises(UsageError, match="this model has 1, 3, 7"):
        vqtok.decode(tokens.prefix(4), folder)
    with pytest.raises(CorruptFileError, match="levels"):
        _ = tokens.prefix(4).levels
    shown = run("inspect", folder).stdout
    assert "3 codebooks with 1, 2, 4 codes a step" in " ".join(shown.split())
    facts = json.loads(run("inspect", folder, "--json").stdout)
    assert (facts["levels"], facts["stride"], facts["tokens_per_second"]) == ([1, 2, 4], 32, 7 * RATE / 32)


def test_exports_as_orpheus_reads_them(saved, run, tmp_path, sound_file):
    """Frames of 7: a coarse code, then each middle code with its two fine ones, each place with ids of its own."""
    _, folder = saved("snac")
    assert run("encode", sound_file, "-m", folder).exit_code == 0
    file = sound_file.with_suffix(".vqt")
    result = run("export", file, "--to", "npy", "-o", tmp_path / "a.npy", "--layout", "interleave", "--offset", 128_266)
    assert result.exit_code == 0, result.output
    tokens = vqtok.tokens.vqt.file.load(file.read_bytes())
    assert np.load(tmp_path / "a.npy").tolist() == tokens.to_ids("interleave", offset=128_266).tolist()
    # As redistribute_codes of Orpheus takes them apart.
    frames = np.load(tmp_path / "a.npy").astype(np.int64).reshape(-1, 7) - 128_266 - 32 * np.arange(7)
    layers = [frames[:, [0]], frames[:, [1, 4]], frames[:, [2, 3, 5, 6]]]
    expected = [tokens.codes[:1].T, tokens.codes[1:3].T, tokens.codes[3:].T]
    assert [layer.tolist() for layer in layers] == [layer.tolist() for layer in expected]
    back = vqtok.read_export(tmp_path / "a.npy")["a"]
    assert back.codes.tolist() == tokens.codes.tolist()
    assert back.levels == (1, 2, 4)
    assert run("decode", tmp_path / "a.npy", "-m", folder, "-o", tmp_path / "b.wav").exit_code == 0
    assert run("decode", file, "-m", folder, "-o", tmp_path / "c.wav").exit_code == 0
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "c.wav").read_bytes()


@pytest.fixture
def sound_file(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", sound(3000).data.T, RATE, subtype="FLOAT")
    return tmp_path / "a.wav"


def test_the_order_of_interleaving():
    assert interleaved((1, 2, 4)) == [0, 1, 3, 4, 2, 5, 6]
    assert interleaved((2, 2)) == [0, 2, 1, 3]
    assert interleaved((1, 1, 2)) == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="`layout` interleave: is not possible for codebooks with 2, 3 codes"):
        interleaved((2, 3))


@pytest.mark.parametrize("levels", ["x", [1, "2"], [0, 7], [1, 5], {"a": 1}])
def test_damaged_levels(levels):
    tokens = Tokens(
        codes=np.zeros((7, 3), np.int32),
        codebook_sizes=(4,) * 7,
        modality="audio",
        size=(96, RATE, 1),
        stride=32,
        model=bytes(8),
        metadata={"levels": levels},
    )
    with pytest.raises(CorruptFileError, match="damaged levels"):
        _ = tokens.levels


def test_a_config_that_is_none(tmp_path, saved):
    (tmp_path / "config.json").write_text('{"vq_strides": "x"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises((ModelError, CorruptFileError)):
        open_tokenizer(str(tmp_path))
