"""vqtok.models.registry: families of models from outside of vqtok."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import vqtok
from vqtok.cli.console import out
from vqtok.errors import CorruptFileError, MediaError, ModelError, UsageError
from vqtok.media.media import Media
from vqtok.models import registry as opening
from vqtok.models import registry as zoo
from vqtok.models.tokenizer import Tokenizer
from vqtok.tokens.tokens import Tokens, pack_side_data
from vqtok.tokens.vqt.file import dump, load

PACKAGE = """
import hashlib
import torch
import vqtok

class Blocks(vqtok.Tokenizer):
    modality, channels, stride = "image", 3, 4
    encoder_context = decoder_context = 0

    def __init__(self, source):
        self.codebook_sizes = (int(source),)
        self.identity = hashlib.sha256(f"blocks {source}".encode()).digest()

    def encode(self, x):
        gray = torch.nn.functional.avg_pool2d(x.mean(dim=1, keepdim=True), self.stride)
        return ((gray + 1) / 2 * (self.codebook_sizes[0] - 1)).round().long()

    def decode(self, codes):
        gray = codes / (self.codebook_sizes[0] - 1) * 2 - 1
        return gray.expand(-1, 3, -1, -1).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
"""


class Pairs(Tokenizer):
    """An unusual model: two channels encoded together, scaled by their peak, with one grid step more than usual."""

    modality = "audio"
    channels = 2
    sample_rate = 8000
    stride = 8
    codebook_sizes = (256, 256)
    padding = "constant"
    one_by_one = True
    identity = b"pairs" + bytes(27)

    def __init__(self, source=""):
        self.seen = []

    def num_steps(self, samples):
        return 1 + super().num_steps(samples)

    def side_data(self, x):
        return x.abs().amax(dim=(1, 2))[:, None]

    def encode(self, x):
        self.seen.append(x.shape)
        steps = (x / self.side_data(x)[..., None]).unflatten(2, (-1, 8)).mean(dim=3)
        return torch.nn.functional.pad(((steps + 1) * 127.5).round().long(), (1, 0))

    def decode(self, codes):
        return (codes[:, :, 1:] / 127.5 - 1).repeat_interleave(8, dim=2)

    def decode_with(self, codes, side_data):
        if side_data.shape[1] != 1:
            raise CorruptFileError("these tokens lack their scale")
        return self.decode(codes) * side_data[..., None]


@pytest.fixture
def families(monkeypatch):
    monkeypatch.setattr(zoo, "_registered", {})
    zoo.register("pairs", Pairs)


def steady(channels, samples=80_003):
    """Return audio that is constant for 8 samples at a time, with a peak of 0.5."""
    levels = np.random.default_rng(0).uniform(-0.5, 0.5, (channels, -(-samples // 8)))
    levels[:, 0] = 0.5
    return Media("audio", np.repeat(levels, 8, axis=1)[:, :samples].astype(np.float32), 8000)


def test_a_package_adds_a_family(tmp_path, photo):
    """The command line finds the family of an installed package by its name."""
    source, target = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "blocks_vq.py").write_text(PACKAGE)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "blocks-vq"\nversion = "1"\n[tool.setuptools]\npy-modules = ["blocks_vq"]\n'
        '[project.entry-points."vqtok.tokenizers"]\nblocks = "blocks_vq:Blocks"\n'
    )
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True)
    code = (
        f"import sys; sys.path[:0] = [{str(target)!r}]\n"
        "from vqtok.cli.app import app\n"
        f"photo, model = {str(photo)!r}, ['--model', 'blocks:64']\n"
        "app(['encode', photo, *model], standalone_mode=False)\n"
        "assert 'blocks_vq' in sys.modules\n"
        "app(['decode', photo[:-3] + 'vqt', '-o', photo[:-3] + 'webp', *model], standalone_mode=False)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    tokens = vqtok.inspect(photo.with_suffix(".vqt"))
    assert (tokens["codebook_sizes"], tokens["grid"], tokens["coder"]) == ([64], [16, 24], "packed")
    assert photo.with_suffix(".webp").stat().st_size > 100


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_together_with_side_data(families, channels, tmp_path):
    media = steady(channels)
    tokens = vqtok.encode(media, "pairs:")
    groups = max(1, channels // 2)
    assert tokens.codes.shape == ((2, 10_002) if channels == 1 else (2, groups, 10_002))
    assert tokens.side_data.tolist() == [0.5] * groups
    vqtok.write_shard(tmp_path / "a.vqts", [("a", tokens)])
    vqtok.export([tmp_path / "a.vqts"], tmp_path / "a.jsonl", "jsonl")
    for found in (vqtok.open_shard(tmp_path / "a.vqts")["a"], vqtok.read_export(tmp_path / "a.jsonl")["a"]):
        assert found.side_data.tolist() == tokens.side_data.tolist()
        decoded = vqtok.decode(found, "pairs:")
        assert decoded.data.shape == media.data.shape
        np.testing.assert_allclose(decoded.data[:, :80_000], media.data[:, :80_000], atol=0.003)


def test_audio_is_encoded_whole_and_padded_with_zeros(families, monkeypatch):
    tokenizer = Pairs()
    tokens = vqtok.Codec(tokenizer, options=vqtok.CodecOptions(chunk_seconds=1)).encode_audio(
        np.split(steady(2).data, 7, axis=1), 8000, 2
    )
    assert tokenizer.seen == [(1, 2, 80_008)]
    ending = steady(2).data[:, -3:].sum(axis=1) / 8 / 0.5
    assert tokens.codes[:, 0, -1].tolist() == np.round((ending + 1) * 127.5).tolist()


def test_the_card_of_a_family(families, run):
    card = vqtok.inspect("pairs:")
    assert {
        "identity": Pairs.identity.hex(),
        "channels": 2,
        "num_parameters": None,
        "config": {},
    }.items() <= card.items()
    result = run("inspect", "pairs:")
    assert result.exit_code == 0
    assert "2 x 256" in result.stdout
    listed = [json.loads(line) for line in run("models", "--json").stdout.splitlines()]
    assert {"name": "pairs:...", "where": "package", "family": "pairs"} in listed


@pytest.mark.parametrize("columns", [80, 130])
def test_the_table_of_models(bundled, run, monkeypatch, columns):
    monkeypatch.setattr(out, "_width", columns)
    lines = run("models").stdout.splitlines()
    assert max(map(len, lines)) <= columns
    listed = [json.loads(line) for line in run("models", "--json").stdout.splitlines()]
    for facts in listed:
        place = next(index for index, line in enumerate(lines) if line.split()[0] == facts["name"])
        shown = " ".join(lines[place : place + 1 + (columns == 80)]).split()
        assert f"{facts['num_codebooks']} x {facts['codebook_sizes'][0]}" in " ".join(shown)
        assert facts["licence"].split()[0].rstrip(",") in [word.rstrip(",") for word in shown]
        assert ("only" in shown) == facts.get("encode_only", False)
    found = {facts["name"]: facts for facts in listed}
    assert {"fnlp/SpeechTokenizer", "Alethia/BigCodec", "FoundationVision/var", "hf:kyutai/mimi"} <= found.keys()
    assert found["FoundationVision/var"]["tokens_per_256px"] == 680
    assert "16 kHz  1 x 8192    80/s" in " ".join(lines)
    assert lines.index("checkpoints of the Hub for vqtok import") > lines.index("bundled")


def test_more_side_data_than_a_token_file_holds():
    values = np.full(12_000, 0.1, np.float32)
    tokens = Tokens(
        np.zeros((1, 4), np.int32),
        codebook_sizes=(2,),
        modality="audio",
        size=(4, 8000, 1),
        stride=1,
        model=bytes(8),
        metadata=pack_side_data(values),
    )
    assert load(dump(tokens)).side_data.tolist() == values.tolist()
    with pytest.raises(MediaError, match="needs 12001 numbers of side data, but a token file holds 12000; split it"):
        pack_side_data(np.zeros(12_001, np.float32))


def test_what_does_not_fit_a_family(families):
    with pytest.raises(ModelError, match="encodes 2 channels together, this audio has 3; use `mono`"):
        vqtok.encode(steady(3), "pairs:")
    tokens = vqtok.encode(steady(2), "pairs:")
    tokens.metadata["side_data"] = ""
    with pytest.raises(CorruptFileError, match="lack their scale"):
        vqtok.decode(tokens, "pairs:")
    tokens.metadata["side_data"] = "no base64"
    with pytest.raises(CorruptFileError, match="damaged side data in the metadata"):
        vqtok.decode(tokens, "pairs:")


def test_names(families, tmp_path, image_model, monkeypatch):
    folder = tmp_path / "saved"
    folder.mkdir()
    with pytest.raises(ModelError, match="saved: is a folder without the config.json of a model"):
        opening.open_tokenizer(str(folder))
    for key, known in (("model_type", "pairs"), ("_class_name", "pairs"), ("model_type", "sounds")):
        (folder / "config.json").write_text(json.dumps({key: known}))
        if known == "pairs":
            assert isinstance(opening.open_tokenizer(str(folder)), Pairs)
    with pytest.raises(ModelError, match="saved: is a model of the unknown kind 'sounds'"):
        opening.open_tokenizer(str(folder))
    (folder / "config.json").write_text('{"model_type": "vibevoice_acoustic_tokenizer"}')
    with pytest.raises(ModelError, match="vibevoice_acoustic_tokenizer has continuous latents instead of codes"):
        opening.open_tokenizer(str(folder))
    with pytest.raises(ModelError, match="sounds:x: no family of models is called 'sounds'"):
        opening.open_tokenizer("sounds:x")
    with pytest.raises(ModelError, match="neither a model file nor a bundled model"):
        opening.open_tokenizer("snac")
    odd = tmp_path / "pairs:1.safetensors"
    odd.symlink_to(image_model)
    monkeypatch.chdir(tmp_path)
    assert opening.open_tokenizer(odd.name).modality == "image"


@pytest.mark.parametrize("name", ["", "a b", "a:b", "hf", "image"])
def test_names_that_no_family_may_have(families, name):
    with pytest.raises(UsageError, match="family"):
        zoo.register(name, Pairs)


def test_a_family_whose_package_does_not_import(monkeypatch):
    monkeypatch.setitem(zoo.ADAPTERS, "broken", "no_such_module:Model")
    with pytest.raises(ModelError, match="family 'broken' cannot be loaded: No module named 'no_such_module'"):
        opening.open_tokenizer("broken:x")
