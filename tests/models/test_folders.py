"""Checkpoints that become folders: codes and media are those of the original network, for small random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import codecs_restated as codecs
import numpy as np
import originals
import pytest
import torch
import torch.nn.functional as F
from rounding import assert_same_codes
from safetensors.torch import load_file
from torch import nn

import vqtok
from vqtok.errors import ModelError, OutputError, UsageError
from vqtok.media.media import Media
from vqtok.models.importers import import_checkpoint
from vqtok.models.importers.checkpoint import read_checkpoint
from vqtok.models.importers.neucodec import convert_neucodec

transformers = pytest.importorskip("transformers")
from models.test_audio_families import SEMANTIC, reference_features  # noqa: E402 (needs transformers)


def make_dac() -> codecs.DAC:
    model = codecs.DAC(4, [2, 4, 5], 32, count=3, size=32, dim=4)
    for name, parameter in model.named_parameters():
        if name.endswith("weight_v"):
            nn.init.normal_(parameter)
        if name.endswith("weight_g"):
            nn.init.constant_(parameter, 0.7)
        if name.endswith("alpha"):
            nn.init.uniform_(parameter, 0.5, 2)
    return model


def make_wavtokenizer() -> codecs.WavTokenizer:
    model = codecs.WavTokenizer(4, [5, 4, 2], latent=32, size=64, dim=128, intermediate=16, layers=1)
    codebook = model.feature_extractor.encodec.quantizer.vq.layers[0]._codebook
    latents = model.feature_extractor.encodec.encoder.model(torch.randn(1, 1, 8000) * 0.3)[0].T
    codebook.embed.copy_(latents[torch.randperm(len(latents))[:64]])
    nn.init.normal_(model.head.out.weight, std=0.3)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.scale.weight", "norm.shift.weight")):
            nn.init.normal_(parameter, 1)
    return model


def make_speechtokenizer() -> codecs.SpeechTokenizer:
    model = codecs.SpeechTokenizer(4, [5, 4, 2], dim=16, count=3, size=64)
    residual = model.encoder.model(torch.randn(1, 1, 8000) * 0.3)[0].T
    for codebook in model.codebooks:
        codebook.copy_(residual[torch.randperm(len(residual))[:64]])
        residual = residual * 0.5
    return model


def make_bigcodec() -> codecs.BigCodec:
    model = codecs.BigCodec(4, [2, 4, 5], latent=16, top=32, count=2, size=64, dim=4)
    for name, parameter in model.named_parameters():
        if name.endswith("weight_g"):
            parameter.mul_(1.5)
        if name.endswith(("alpha", "beta")):
            nn.init.normal_(parameter, 0, 0.3)
    return model


def save(model: nn.Module, path: Path, family: str) -> Path:
    """Write a checkpoint as the project does."""
    if family == "speechtokenizer":
        torch.save(model.state_dict(), path)
    elif family == "bigcodec":
        names = {"CodecEnc": model.CodecEnc, "generator": model.generator}
        torch.save({name: part.state_dict() for name, part in names.items()} | {"discriminator": {}}, path)
    elif family == "dac":
        kwargs = {"sample_rate": 8000, "encoder_rates": [2, 4, 5]}
        torch.save({"state_dict": model.state_dict(), "metadata": {"kwargs": kwargs}}, path)
    else:
        others = {"multiperioddisc.discriminators.0.bias": torch.ones(2), "melspec_loss.fb": torch.ones(2)}
        torch.save({"epoch": 3, "state_dict": model.state_dict() | others, "callbacks": {}}, path)
    return path


SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


class Var(nn.Module):
    """The tokenizer of VAR: FoundationVision/VAR (MIT), models/vqvae.py and models/quant.py, restated."""

    def __init__(self, ch: int = 32, mult: tuple[int, ...] = (1, 2), z: int = 8, size: int = 40) -> None:
        super().__init__()
        shape = ch, mult, 1, {len(mult) - 1}, True, z
        self.encoder, self.decoder = originals.TamingEncoder(*shape), originals.TamingDecoder(*shape)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, z, 3, padding=1), nn.Conv2d(z, z, 3, padding=1)
        self.quantize = nn.Module()
        self.quantize.embedding, self.quantize.quant_resi = nn.Embedding(size, z), nn.Module()
        self.quantize.quant_resi.qresi_ls = nn.ModuleList(nn.Conv2d(z, z, 3, padding=1) for _ in range(4))
        self.quantize.register_buffer("ema_vocab_hit_SV", torch.zeros(len(SCALES), size))

    def phi(self, at_from_0_to_1: float, h: torch.Tensor) -> torch.Tensor:
        ticks = np.linspace(1 / 3 / 4, 1 - 1 / 3 / 4, 4)
        layer = self.quantize.quant_resi.qresi_ls[np.argmin(np.abs(ticks - at_from_0_to_1)).item()]
        return h.mul(1 - 0.5) + layer(h).mul_(0.5)

    def enlarged(self, si: int, idx: torch.Tensor) -> torch.Tensor:
        h = self.quantize.embedding(idx).permute(0, 3, 1, 2)
        h = F.interpolate(h, size=(16, 16), mode="bicubic").contiguous() if si != 9 else h.contiguous()
        return self.phi(si / 9, h)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        f_rest, found = self.quant_conv(self.encoder(x)).clone(), []
        weight = self.quantize.embedding.weight
        for si, pn in enumerate(SCALES):
            z = F.interpolate(f_rest, size=(pn, pn), mode="area") if si != 9 else f_rest
            z = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
            d = torch.sum(z.square(), dim=1, keepdim=True) + torch.sum(weight.square(), dim=1, keepdim=False)
            d.addmm_(z, weight.T, alpha=-2, beta=1)
            idx = torch.argmin(d, dim=1).view(len(x), pn, pn)
            f_rest.sub_(self.enlarged(si, idx))
            found.append(idx.flatten(1))
        return torch.cat(found, dim=1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        f_hat = torch.zeros(len(codes), self.quant_conv.out_channels, 16, 16)
        for si, part in enumerate(codes.split([pn * pn for pn in SCALES], dim=1)):
            f_hat.add_(self.enlarged(si, part.view(-1, SCALES[si], SCALES[si])))
        return self.decoder(self.post_quant_conv(f_hat)).clamp_(-1, 1)

    def saved(self) -> dict[str, torch.Tensor]:
        """Return the weights with one convolution for queries, keys and values, as the project has them."""
        state = self.state_dict()
        for name in [name for name in state if ".q." in name]:
            state[name.replace(".q.", ".qkv.")] = torch.cat([state.pop(name.replace(".q.", f".{x}.")) for x in "qkv"])
        return state


def make_var() -> Var:
    model = Var()
    for name, parameter in model.named_parameters():
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.normal_(float(is_norm), 0.8 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
    model.quantize.embedding.weight.normal_(0, 0.5)
    model.decoder.conv_out.weight.mul_(0.3)
    return model


@pytest.fixture(scope="module")
def var(tmp_path_factory: pytest.TempPathFactory) -> tuple[Var, str]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = make_var().eval().requires_grad_(False)
    folder = tmp_path_factory.mktemp("var")
    torch.save(model.saved(), folder / "vae_ch160v4096z32.pth")
    return model, str(import_checkpoint(folder / "vae_ch160v4096z32.pth", folder / "var").model)


def image(width: int, height: int) -> Media:
    return Media("image", np.random.default_rng(0).uniform(-1, 1, (3, height, width)).astype(np.float32))


def test_an_image_becomes_680_codes_in_ten_scales(var: Any) -> None:
    model, folder = var
    media = image(32, 32)  # Two levels, and 16 steps to a side.
    tokens = vqtok.encode(media, folder)
    assert (tokens.codes.shape, tokens.stride, tokens.codebook_sizes) == ((1, 1, 680), 32, (40,))
    expected = model.encode(torch.from_numpy(media.data)[None])
    assert len(expected.unique()) > 10
    assert_same_codes(tokens.codes, expected.numpy()[None])
    decoded = model.decode(torch.from_numpy(tokens.codes[0]).long())[0].numpy()
    assert decoded.std() > 0.1
    np.testing.assert_allclose(vqtok.decode(tokens, folder).data, decoded, atol=1e-4)
    assert tokens.to_ids().tolist() == tokens.codes.ravel().tolist()


def test_squares_of_a_larger_image(var: Any, run: Any, tmp_path: Path) -> None:
    _, folder = var
    media = image(75, 40)
    tokens = vqtok.encode(media, folder)
    assert tokens.grid == (2, 3 * 680)
    alone = vqtok.encode(Media("image", media.data[:, :32, 32:64]), folder)
    assert_same_codes(tokens.codes[:, :1, 680:1360], alone.codes)
    decoded = vqtok.decode(tokens, folder).data
    assert decoded.shape == media.data.shape
    square = vqtok.decode(alone, folder).data
    np.testing.assert_allclose(decoded[:, :32, 32:64], square, atol=1e-4)
    read = vqtok.tokens.vqt.file.load(vqtok.tokens.vqt.file.dump(tokens))
    assert np.array_equal(vqtok.decode(read, folder).data, decoded)


def test_commands_for_sequences(var: Any, photo: Path, run: Any, tmp_path: Path) -> None:
    _, folder = var
    facts = json.loads(run("inspect", photo, "-m", folder, "--json").stdout)["would_become"]
    shown = run("encode", photo, "-m", folder, "--shard", tmp_path / "a.vqts")
    assert shown.exit_code == 0, shown.output
    assert run("encode", photo, "-m", folder).exit_code == 0
    file = photo.with_suffix(".vqt")
    described = json.loads(run("inspect", file, "--json").stdout)
    assert (described["grid"], described["sequence_length"]) == (facts["grid"], 680)
    assert "680 codes of each square of 32 x 32 pixels" in run("inspect", file).stdout
    assert "680 codes of each square of 32 x 32 pixels" in run("inspect", folder).stdout
    for tokens in (file, tmp_path / "a.vqts"):
        refused = run("train", tokens, "-o", tmp_path / "generator.safetensors", "--steps", 1)
        assert refused.exit_code == 2
        assert f"{tokens}: its images are sequences of 680 codes, such as VAR's, on which" in refused.stderr
        assert not (tmp_path / "generator.safetensors").exists()
    for name, source in {"b.png": file, "c.png": tmp_path / "a.vqts"}.items():
        assert run("decode", source, "-m", folder, "-o", tmp_path / name).exit_code == 0
    assert run("export", file, "--to", "npy", "-o", tmp_path / "a.npy").exit_code == 0
    assert run("decode", tmp_path / "a.npy", "-m", folder, "-o", tmp_path / "d.png").exit_code == 0
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "d.png").read_bytes()
    card = json.loads(run("inspect", folder, "--json").stdout)
    assert (card["sequence_length"], card["tokens_per_256px"]) == (680, 64 * 680)
    options = "-o", tmp_path / "report", "--against", "none", "--no-curves", "--stability"
    shown = run("evaluate", photo, "-m", folder, *options)
    assert shown.exit_code == 0, shown.output


MAKE = {
    "dac": make_dac,
    "wavtokenizer": make_wavtokenizer,
    "speechtokenizer": make_speechtokenizer,
    "bigcodec": make_bigcodec,
}
RATES = {"dac": 8000, "wavtokenizer": 24_000, "speechtokenizer": 16_000, "bigcodec": 16_000}
NUM_CODEBOOKS = {"dac": 3, "wavtokenizer": 1, "speechtokenizer": 3, "bigcodec": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path, Path]]:
    """Return the original network, its checkpoint and the imported folder of each family."""
    folder, found = tmp_path_factory.mktemp("made"), {}
    for family, make in MAKE.items():
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            model = make().eval().requires_grad_(False)
        checkpoint = save(model, folder / f"{family}.ckpt", family)
        found[family] = model, checkpoint, import_checkpoint(checkpoint, folder / family).model
    return found


def sound(samples: int, rate: int) -> Media:
    data = np.random.default_rng(samples).normal(0, 0.2, (1, samples)).astype(np.float32)
    return Media("audio", data, rate)


@pytest.mark.parametrize("family", MAKE)
def test_codes_and_media_are_the_original_ones(made: Any, family: str) -> None:
    model, _, folder = made[family]
    media = sound(4000, RATES[family])
    expected = model.encode(torch.from_numpy(media.data)[None])
    tokens = vqtok.encode(media, str(folder))
    assert tokens.codes.shape == (NUM_CODEBOOKS[family], 100)
    assert len(np.unique(tokens.codes)) > 10
    assert_same_codes(tokens.codes, expected[0].numpy())
    audio = model.decode(torch.from_numpy(tokens.codes).long()[None])[0].numpy()
    decoded = vqtok.decode(tokens, str(folder)).data
    assert np.abs(audio).max() > 0.01
    length = min(audio.shape[1], 4000)
    assert length >= 3980
    np.testing.assert_allclose(decoded[:, :length], audio[:, :length], atol=2e-4 * max(1, np.abs(audio).max()))


@pytest.mark.parametrize("family", MAKE)
def test_facts(made: Any, family: str, run: Any, tmp_path: Path) -> None:
    _, checkpoint, folder = made[family]
    facts = json.loads((folder / "import.json").read_text())
    assert (facts["family"], facts["file"]) == (family, checkpoint.name)
    if family == "wavtokenizer":
        dropped = {"decoder that is not used": 2, "discriminators and losses": 2, "window, which is computed": 1}
        assert dropped.items() <= facts["dropped"].items()
    shown = run("import", checkpoint, "-o", tmp_path / "again")
    assert shown.exit_code == 0, shown.output
    again = json.loads(run("inspect", tmp_path / "again", "--json").stdout)
    assert again["identity"] == json.loads(run("inspect", folder, "--json").stdout)["identity"]


def test_checkpoints_of_training(made: Any, tmp_path: Path) -> None:
    """BigCodec's of Lightning has other names; SpeechTokenizer's comes with a config in JSON."""
    model, _, folder = made["bigcodec"]
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {"model.discriminator.a.bias": torch.ones(2), "criteria.mel.fb": torch.ones(2)}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "last.ckpt")
    import_checkpoint(tmp_path / "last.ckpt", tmp_path / "out")
    assert (tmp_path / "out/config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert (tmp_path / "out/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    model, checkpoint, folder = made["speechtokenizer"]
    (tmp_path / "config.json").write_text(json.dumps({"sample_rate": 22_050, "dilation_base": 2}))
    import_checkpoint(checkpoint, tmp_path / "speech", config=tmp_path / "config.json")
    tokens = vqtok.encode(sound(4000, 22_050), str(tmp_path / "speech"), num_codebooks=2)
    assert_same_codes(tokens.codes, model.encode(torch.from_numpy(sound(4000, 22_050).data)[None])[0, :2].numpy())
    one_way = {name: tensor for name, tensor in model.state_dict().items() if "_reverse" not in name}
    torch.save(one_way, tmp_path / "encodec.th")
    with pytest.raises(ModelError, match="its LSTM has one direction, as in EnCodec"):
        import_checkpoint(tmp_path / "encodec.th", tmp_path / "encodec")


def test_neucodec_and_its_speech_model(run: Any, tmp_path: Path) -> None:
    """The checkpoint does not have the speech model, of which the first 16 of 18 layers are used."""
    speech_config = transformers.Wav2Vec2BertConfig(**SEMANTIC | {"num_hidden_layers": 18})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        speech = transformers.Wav2Vec2BertModel(speech_config).eval()
        model = codecs.NeuCodec(2, [2, 2, 4, 4, 5], dim=128, semantic=16, layers=2, speech=speech).eval()
        for name, parameter in model.named_parameters():
            if name.endswith(("weight_v", "weight")) and parameter.ndim > 1 and "backbone" not in name:
                nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
            if name.endswith(("alpha", "beta")):
                nn.init.normal_(parameter, 0, 0.3)
    model.requires_grad_(False)
    speech.save_pretrained(tmp_path / "speech")
    checkpoint = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), checkpoint)
    refused = run("import", checkpoint, "-o", tmp_path / "out")
    assert refused.exit_code == 2
    assert "give --base, the speech model that it reads" in refused.stderr
    shown = run("import", checkpoint, "-o", tmp_path / "out", "--base", tmp_path / "speech")
    assert shown.exit_code == 0, shown.output
    facts = json.loads((tmp_path / "out/import.json").read_text())
    assert facts["dropped"]["heads of training"] == 2
    assert facts["dropped"]["layers of the speech model that are not used"] > 2
    media = sound(320 * 30, 16_000)
    x = F.pad(torch.from_numpy(media.data)[None], (0, 320))
    expected = model.encode(x, reference_features(x[0, 0])[0])
    tokens = vqtok.encode(media, str(tmp_path / "out"))
    assert len(np.unique(tokens.codes)) > 10
    assert_same_codes(tokens.codes, expected[0].numpy())
    audio = model.decode(torch.from_numpy(tokens.codes).long()[None])[0].numpy()
    decoded = vqtok.load(str(tmp_path / "out")).decode(torch.from_numpy(tokens.codes).long()[None])[0].numpy()
    assert np.abs(audio).max() > 0.1
    np.testing.assert_allclose(decoded, audio, atol=2e-4 * max(1, np.abs(audio).max()))
    # All in one file, as the package's `save_pretrained` writes it, with parts of a normalization of plain weights.
    state = model.state_dict() | {f"semantic_model.{name}": tensor for name, tensor in speech.state_dict().items()}
    torch.save(state | {f"generator.backbone.embed.weight_{part}": torch.ones(2) for part in "gv"}, checkpoint)
    whole = read_checkpoint(checkpoint)
    converted = convert_neucodec(whole, None)[1]
    assert whole.dropped["normalization of weights that are there as such"] == 2
    same = load_file(tmp_path / "out/model.safetensors")
    assert converted.keys() == same.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in same.items())
    torch.save(model.state_dict(), checkpoint)
    with pytest.raises(UsageError, match="`base` is only for checkpoints of neucodec"):
        import_checkpoint(tmp_path / "speech/model.safetensors", tmp_path / "x", family="dac", base=tmp_path / "speech")
    with pytest.raises(ModelError, match="has no config.json of transformers"):
        import_checkpoint(checkpoint, tmp_path / "x", base=tmp_path)


def test_what_is_refused(made: Any, tmp_path: Path) -> None:
    _, checkpoint, folder = made["dac"]
    content = torch.load(checkpoint)

    def attempt(output: str = "out", **changes: Any) -> None:
        torch.save(content | changes, tmp_path / "a.pth")
        import_checkpoint(tmp_path / "a.pth", tmp_path / output)

    with pytest.raises(OutputError, match="exists"):
        import_checkpoint(checkpoint, folder)
    with pytest.raises(UsageError, match="this family becomes a folder"):
        attempt("m.safetensors")
    with pytest.raises(ModelError, match="has no sample rate"):
        attempt(metadata={})
    with pytest.raises(ModelError, match="has an unknown weight extra.bias"):
        attempt(state_dict=content["state_dict"] | {"extra.bias": torch.ones(1)})
    state = content["state_dict"] | {"encoder.block.1.block.0.block.1.bias": torch.ones(7)}
    with pytest.raises(ModelError, match="transformers cannot load it"):
        attempt(state_dict=state)
    lacking = {name: tensor for name, tensor in content["state_dict"].items() if name != "encoder.block.0.bias"}
    with pytest.raises(ModelError, match="missing keys encoder.conv1.bias"):
        attempt(state_dict=lacking)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    import_checkpoint(checkpoint, tmp_path / "out")
    import_checkpoint(checkpoint, tmp_path / "out", force=True)
