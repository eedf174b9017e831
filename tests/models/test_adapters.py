"""vqtok.models.adapters: codes and media equal those of the libraries, for small models with random weights.

Each model is created and saved by the real library, and run by the library and by vqtok on the same media.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import sys
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from rounding import assert_same_codes
from safetensors.torch import load_file, save_file
from torch import nn

import vqtok
from vqtok.errors import CorruptFileError, ModelError, UsageError, WrongModelError
from vqtok.media.media import Media
from vqtok.models.adapters.digest import weights_digest
from vqtok.models.registry import open_tokenizer

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

RATE = 11_025  # Makes all frame rates fractional.


def fill_codebooks(model, latents, layers, buffer="embed"):
    """Set codebook vectors to random values as large as the latents; in a new model they are zero."""
    for layer in layers:
        book = getattr(layer.codebook, buffer)
        book.copy_(torch.randn_like(book) * latents.std() + latents.mean())


def random_biases(model):
    """Replace parameters that are zero, as many are in a new model, by random values."""
    for parameter in model.parameters():
        if parameter.ndim == 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)


def make_encodec(**changes):
    per_codebook = 6 * -(-RATE // 8) / 1000  # kbps
    config = transformers.EncodecConfig(
        **{
            "sampling_rate": RATE,
            "num_filters": 4,
            "hidden_size": 8,
            "upsampling_ratios": [4, 2],
            "codebook_size": 64,
            "target_bandwidths": [per_codebook, 4 * per_codebook],
        }
        | changes
    )
    model = transformers.EncodecModel(config).eval()
    x = torch.randn(1, config.audio_channels, 4000) * (1 if config.normalize else 0.3)
    fill_codebooks(model, model.encoder(x), model.quantizer.layers)
    return model


def make_encodec48():
    return make_encodec(
        audio_channels=2,
        normalize=True,
        chunk_length_s=0.1,
        overlap=0.01,
        norm_type="time_group_norm",
        use_causal_conv=False,
    )


def make_dac(ratios=(2, 4, 5, 8)):
    config = transformers.DacConfig(
        sampling_rate=RATE,
        encoder_hidden_size=4,
        decoder_hidden_size=32,
        downsampling_ratios=list(ratios),
        n_codebooks=3,
        codebook_size=32,
        codebook_dim=4,
    )
    model = transformers.DacModel(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:  # The initial values would produce silence.
            nn.init.normal_(parameter, std=0.7 * parameter[0].numel() ** -0.5)
    return model


def make_mimi():
    config = transformers.MimiConfig(
        sampling_rate=RATE,
        num_filters=4,
        hidden_size=16,
        upsampling_ratios=[4, 2],
        num_hidden_layers=2,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        layer_scale_initial_scale=1.0,
        sliding_window=10,
        codebook_size=32,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=4,
        upsample_groups=16,
    )
    model = transformers.MimiModel(config).eval()
    latents = model.encoder(torch.randn(1, 1, 4000) * 0.3).latents
    for quantizer in (
        model.quantizer.semantic_residual_vector_quantizer,
        model.quantizer.acoustic_residual_vector_quantizer,
    ):
        fill_codebooks(model, quantizer.input_proj(latents), quantizer.layers, "embed_sum")
    return model


def make_xcodec():
    config = transformers.XcodecConfig(
        sample_rate=16_000,
        target_bandwidths=[0.25, 1.0],
        codebook_size=32,
        acoustic_model_config={"encoder_hidden_size": 4, "decoder_hidden_size": 32, "hidden_size": 16},
        semantic_model_config=transformers.HubertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=[8] * 7,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
        ).to_dict(),
    )
    model = transformers.XcodecModel(config).eval()
    for name, parameter in model.acoustic_decoder.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.7 * parameter[0].numel() ** -0.5)
    fill_codebooks(model, torch.randn(1, 32), model.quantizer.quantizers)
    return model


def make_vqmodel(**changes):
    model = diffusers.VQModel(
        **{
            "block_out_channels": (8, 16),
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "latent_channels": 4,
            "num_vq_embeddings": 32,
            "norm_num_groups": 4,
        }
        | changes
    ).eval()
    random_biases(model)
    latents = model.encode(torch.randn(1, 3, 32, 32)).latents
    model.quantize.embedding.weight.copy_(torch.randn_like(model.quantize.embedding.weight) * latents.std())
    return model


def make_movq():
    kinds = ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]
    return make_vqmodel(
        norm_type="spatial",
        block_out_channels=(32, 32),
        down_block_types=kinds[0],
        up_block_types=kinds[1],
        norm_num_groups=32,
    )


MAKE = {
    "encodec": make_encodec,
    "encodec48": make_encodec48,
    "dac": make_dac,
    "dac44": lambda: make_dac((2, 4, 8, 8)),
    "mimi": make_mimi,
    "xcodec": make_xcodec,
    "vqmodel": make_vqmodel,
    "movq": make_movq,
    "lookup": lambda: make_vqmodel(lookup_from_codebook=True),
}


@pytest.fixture(scope="module")
def saved(saving):
    return saving(MAKE)


def sound(samples, rate=RATE, channels=1):
    return Media("audio", np.random.default_rng(samples).normal(0, 0.2, (channels, samples)).astype(np.float32), rate)


def picture(width, height):
    return Media("image", np.random.default_rng(0).uniform(-1, 1, (3, height, width)).astype(np.float32))


def tensor(media):
    return torch.from_numpy(media.data)[None]


def close(decoded, expected):
    """Assert that decoded media equal those of the library, up to their length."""
    length = min(decoded.data.shape[-1], expected.shape[-1])
    assert expected.abs().max() > 0.01
    np.testing.assert_allclose(decoded.data[..., :length], expected.numpy()[..., :length], atol=1e-4)


SAMPLES = [1, 319, 320, 321, 640, 5000]


@pytest.mark.parametrize("samples", SAMPLES)
def test_encodec(saved, samples):
    model, folder = saved("encodec")
    media = sound(samples)
    expected = model.encode(tensor(media), bandwidth=model.config.target_bandwidths[-1])
    tokens = vqtok.encode(media, folder)
    assert tokens.codes.tolist() == expected.audio_codes[0, 0].tolist()
    assert tokens.codes.shape == (4, -(-samples // 8))
    decoded = vqtok.decode(tokens, folder)
    assert decoded.data.shape == media.data.shape
    close(decoded, model.decode(expected.audio_codes, [None]).audio_values[0])


def test_encodec_has_all_its_codebooks_not_those_of_the_lowest_bandwidth(saved):
    model, folder = saved("encodec")
    assert model.encode(tensor(sound(100))).audio_codes.shape[2] == 1  # the library's default
    for count in (1, 4):
        bandwidth = model.config.target_bandwidths[count > 1]
        codes = vqtok.encode(sound(100), folder, num_codebooks=count).codes
        assert codes.tolist() == model.encode(tensor(sound(100)), bandwidth=bandwidth).audio_codes[0, 0].tolist()


@pytest.mark.parametrize("name", ["encodec", "encodec48", "dac", "mimi", "xcodec"])
def test_fewer_codebooks_are_the_first_and_cost_less(saved, name):
    _, folder = saved(name)
    tokenizer = open_tokenizer(folder)
    codec, media = vqtok.Codec(tokenizer), sound(3000, tokenizer.sample_rate, tokenizer.channels)
    tokens = codec.encode(media)
    for count in range(1, tokens.num_codebooks + 1):
        assert codec.encode(media, count).codes.tolist() == tokens.codes[:count].tolist()
        assert codec.decode(tokens, count).data.shape == media.data.shape
    x = tensor(sound(6400, channels=tokenizer.channels))
    assert tokenizer.encode_first(x, 1).shape[1] == 1
    for wrong in (0, tokens.num_codebooks + 1):
        with pytest.raises(UsageError, match=f"`num_codebooks` {wrong}: there are {tokens.num_codebooks}"):
            codec.encode(media, wrong)


@pytest.mark.parametrize("samples", [1, 1089, 1090, 1091, 1096, 1099, 1102, 1103, 3000, 10_000])
def test_encodec_48khz(saved, samples):
    """Segments of 1102 samples begin every 1090."""
    model, folder = saved("encodec48")
    media = sound(samples, channels=2)
    expected = model.encode(tensor(media), bandwidth=model.config.target_bandwidths[-1])
    codes = expected.audio_codes[:, 0].permute(1, 0, 2).flatten(1)
    tokens = vqtok.encode(media, folder)
    assert tokens.codes[:, 0].tolist() == codes[:, : codes.shape[1] - expected.last_frame_pad_length].tolist()
    assert tokens.side_data.tolist() == torch.cat(expected.audio_scales)[:, 0].tolist()
    decoded = vqtok.decode(tokens, folder)
    assert decoded.data.shape == media.data.shape
    scales, missing = expected.audio_scales, expected.last_frame_pad_length
    close(decoded, model.decode(expected.audio_codes, scales, last_frame_pad_length=missing).audio_values[0])


@pytest.mark.parametrize(("samples", "filled"), [(1097, 1099), (1098, 1099), (2181, 2189), (2188, 2189), (5452, 5459)])
def test_encodec_48khz_whose_last_segment_is_too_short_for_the_library(saved, samples, filled):
    model, folder = saved("encodec48")
    media = sound(samples, channels=2)
    how = {"bandwidth": model.config.target_bandwidths[-1]}
    with pytest.raises(RuntimeError, match="stack|must match the size"):
        model.decode(*model.encode(tensor(media), **how).to_tuple()[:2], last_frame_pad_length=137)
    tokens = vqtok.encode(media, folder)
    expected = model.encode(torch.nn.functional.pad(tensor(media), (0, filled - samples)), **how)
    assert tokens.codes.shape == (4, 1, 138 * (samples // 1090) + 2)
    codes = expected.audio_codes[:, 0].permute(1, 0, 2).flatten(1)[:, : tokens.codes.shape[2]]
    assert tokens.codes[:, 0].tolist() == codes.tolist()
    decoded = vqtok.decode(tokens, folder)
    assert decoded.data.shape == media.data.shape
    close(decoded, model.decode(*expected.to_tuple()[:2], last_frame_pad_length=136).audio_values[0])


def test_mono_audio_for_a_stereo_model(saved):
    _, folder = saved("encodec48")
    media = sound(3000)
    stereo = Media("audio", np.repeat(media.data, 2, axis=0), RATE)
    tokens, both = vqtok.encode(media, folder), vqtok.encode(stereo, folder)
    assert tokens.codes.tolist() == both.codes[:, 0].tolist()
    np.testing.assert_allclose(vqtok.decode(tokens, folder).data[0], vqtok.decode(both, folder).data.mean(axis=0))
    with pytest.raises(ModelError, match="encodes 2 channels together, this audio has 3"):
        vqtok.encode(sound(100, channels=3), folder)


@pytest.mark.parametrize("name", ["dac", "dac44"])
@pytest.mark.parametrize("samples", SAMPLES)
def test_dac(saved, name, samples):
    """The end, which the library drops, is encoded, and all samples are decoded; the library returns 8 fewer."""
    model, folder = saved(name)
    media, hop = sound(samples), model.config.hop_length
    filled = torch.nn.functional.pad(tensor(media), (0, -samples % hop))
    expected = model.encode(filled).audio_codes
    tokens = vqtok.encode(media, folder)
    assert tokens.codes.tolist() == expected[0].tolist()
    assert tokens.codes.shape == (3, -(-samples // hop))
    decoded = vqtok.decode(tokens, folder)
    assert decoded.data.shape == media.data.shape
    original = model.decode(audio_codes=expected).audio_values
    assert original.shape[1] == filled.shape[2] - (8 if name == "dac" else 0)
    close(decoded, original)


@pytest.mark.parametrize("samples", SAMPLES)
def test_mimi(saved, samples):
    model, folder = saved("mimi")
    media = sound(samples)
    expected = model.encode(tensor(media)).audio_codes
    tokens = vqtok.encode(media, folder)
    assert tokens.codes.tolist() == expected[0].tolist()
    assert tokens.codes.shape == (4, -(-samples // 16))
    close(vqtok.decode(tokens, folder), model.decode(expected).audio_values[0])


def test_mimi_audio_does_not_depend_on_others(saved, tmp_path, run):
    """Files of different lengths that are encoded together give the same tokens as each alone."""
    model, folder = saved("mimi")
    for samples in (700, 3000, 1500):
        soundfile.write(tmp_path / f"{samples}.wav", sound(samples).data.T, RATE, subtype="FLOAT")
    assert run("encode", tmp_path, "-o", tmp_path, "--model", folder).exit_code == 0
    for samples in (700, 3000, 1500):
        expected = model.encode(tensor(sound(samples))).audio_codes[0]
        tokens = vqtok.tokens.vqt.file.load((tmp_path / f"{samples}.vqt").read_bytes())
        assert tokens.codes.tolist() == expected.tolist()


@pytest.mark.parametrize("samples", [1, 320, 4001, 16_000])
def test_xcodec(saved, samples):
    model, folder = saved("xcodec")
    media = sound(samples, 16_000)
    filled = torch.nn.functional.pad(tensor(media), (0, -samples % 320))
    expected = model.encode(filled).audio_codes
    tokens = vqtok.encode(media, folder)
    assert tokens.codes.tolist() == expected[0].tolist()
    assert tokens.codes.shape == (4, -(-samples // 320))
    close(vqtok.decode(tokens, folder), model.decode(expected).audio_values[0])


@pytest.mark.parametrize("name", ["vqmodel", "movq", "lookup"])
@pytest.mark.parametrize("size", [(32, 24), (31, 33)])
def test_diffusers(saved, name, size):
    model, folder = saved(name)
    media = picture(*size)
    width, height = size
    filled = np.pad(media.data, [(0, 0), (0, height % 2), (0, width % 2)], mode="symmetric")
    latents = model.encode(torch.from_numpy(filled)[None]).latents
    expected = model.quantize(latents)[2][2]
    tokens = vqtok.encode(media, folder)
    assert tokens.codes.shape == (1, -(-height // 2), -(-width // 2))
    assert tokens.codes.flatten().tolist() == expected.tolist()
    assert len(set(expected.tolist())) > 3
    decoded = vqtok.decode(tokens, folder)
    original = model.decode(model.quantize(latents)[0], force_not_quantize=name != "lookup").sample[0]
    np.testing.assert_allclose(decoded.data, original.numpy()[:, :height, :width], atol=1e-4)


LONG = ["encodec", "mimi", "dac", "xcodec"]


@pytest.mark.parametrize("name", LONG)
def test_windows_over_long_audio_change_nothing(saved, name, monkeypatch):
    """Windows give the same codes as the library's computation of the whole, and the same media up to rounding."""
    _, folder = saved(name)
    tokenizer = open_tokenizer(folder)
    if name in ("encodec", "mimi"):
        tokenizer.core = 24
    monkeypatch.setattr("vqtok.codec.codec.CHUNK_SECONDS", 0.3)
    codec, whole = (
        vqtok.Codec(tokenizer, options=vqtok.CodecOptions(chunk_seconds=0.3)),
        vqtok.Codec(open_tokenizer(folder), options=vqtok.CodecOptions(chunk_seconds=99)),
    )
    media = sound(20_011, tokenizer.sample_rate)
    tokens = codec.encode(media)
    monkeypatch.setattr("vqtok.codec.codec.CHUNK_SECONDS", 99)
    assert_same_codes(tokens.codes, whole.encode(media).codes)
    np.testing.assert_allclose(codec.decode(tokens).data, whole.decode(tokens).data, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_mimi_passes_its_cache_by_the_name_that_transformers_has(saved, name, monkeypatch):
    tokenizer = open_tokenizer(saved("mimi")[1])
    tokenizer.core = 5
    seen = []

    def renamed(part, cache=None, use_cache=None):
        seen.append(cache)
        return SimpleNamespace(last_hidden_state=part + 1, **{name: len(seen)})

    def old(part, past_key_values=None, use_cache=None):
        return renamed(part, past_key_values)

    transformer = nn.Identity()
    monkeypatch.setattr(transformer, "forward", renamed if name == "cache" else old)
    x = torch.randn(1, 2, 12)
    assert torch.equal(tokenizer._attend(transformer, x), x + 1)
    assert seen == [None, 1, 2]


@pytest.mark.parametrize(
    ("name", "part"), [("encodec", "front"), ("mimi", "network.encoder.encoder_seanet"), ("dac", "")]
)
def test_how_far_encoders_look(saved, name, part):
    """According to gradients, a step depends on samples up to the context and on none beyond."""
    _, folder = saved(name)
    tokenizer = open_tokenizer(folder)
    network = attrgetter(part)(tokenizer) if part else tokenizer.network.encoder
    context = {"encodec": "front_context", "mimi": "encoder_reach", "dac": "encoder_context"}[name]
    hop = {"encodec": 8, "mimi": 8, "dac": 320}[name]
    x = torch.randn(1, 1, 60 * hop, requires_grad=True)
    network(x)[0, :, 30].sum().backward()
    seen = x.grad[0, 0].nonzero()[:, 0]
    reach = max(30 - int(seen.min()) // hop, int(seen.max()) // hop - 30)
    assert reach == getattr(tokenizer, context)


@pytest.mark.parametrize(
    ("name", "part"), [("encodec", "tail"), ("mimi", "network.decoder.decoder_seanet"), ("dac", "")]
)
def test_how_far_decoders_look(saved, name, part):
    _, folder = saved(name)
    tokenizer = open_tokenizer(folder)
    network = attrgetter(part)(tokenizer) if part else tokenizer.network.decoder
    context = {"encodec": "tail_context", "mimi": "decoder_reach", "dac": "decoder_context"}[name]
    hop, dim = {"encodec": (8, 16), "mimi": (8, 16), "dac": (320, 64)}[name]
    z = torch.randn(1, dim, 60, requires_grad=True)
    network(z)[0, 0, 30 * hop : 31 * hop].sum().backward()
    seen = z.grad[0].abs().sum(dim=0).nonzero()[:, 0]
    assert max(30 - int(seen.min()), int(seen.max()) - 30) == getattr(tokenizer, context)


def test_identity_follows_weights_and_settings(saved, tmp_path):
    """It depends on weights and relevant settings, not on the folder, the kind of file or the names of tensors."""
    model, folder = saved("encodec")
    identity = open_tokenizer(folder).identity
    tokens = vqtok.encode(sound(100), folder)

    def variant(name, change=lambda state: None, **settings):
        target = tmp_path / name
        shutil.copytree(folder, target)
        config = json.loads((target / "config.json").read_text()) | settings
        (target / "config.json").write_text(json.dumps(config))
        state = load_file(target / "model.safetensors")
        change(state)
        save_file(state, target / "model.safetensors")
        return str(target)

    model.save_pretrained(tmp_path / "again")
    assert open_tokenizer(str(tmp_path / "again")).identity == identity
    assert open_tokenizer(variant("other version", transformers_version="4.31.0")).identity == identity
    pickled = Path(variant("pickled"))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert open_tokenizer(str(pickled)).identity == identity
    assert vqtok.decode(tokens, str(pickled)).data.shape == (1, 100)
    nudged = variant("nudged", lambda state: state["decoder.layers.0.conv.bias"].add_(1e-3))
    causal = variant("settings", pad_mode="constant")
    for other in (nudged, causal):
        assert open_tokenizer(other).identity != identity
        with pytest.raises(WrongModelError, match=f"made by model {identity.hex()[:16]}, not by"):
            vqtok.decode(tokens, other)


@pytest.mark.parametrize("name", ["movq", "dac"])
@pytest.mark.parametrize("kind", ["one file", "shards", "pickle"])
def test_a_folder_with_half_precision_alone(saved, name, kind, tmp_path):
    """As `save_pretrained(variant="fp16")` leaves it; a full one beside it goes first."""
    model, folder = saved(name)
    half, expected = copy.deepcopy(model).half(), copy.deepcopy(model).half().float()
    options = {"one file": {}, "shards": {"max_shard_size": "20KB"}, "pickle": {"safe_serialization": False}}[kind]
    if kind == "pickle" and name == "dac":
        torch.save(half.state_dict(), tmp_path / "pytorch_model.fp16.bin")  # transformers writes none any more
        half.config.save_pretrained(tmp_path)
    else:
        half.save_pretrained(tmp_path, variant="fp16", **options)
    assert all("fp16" in path.name for path in tmp_path.iterdir() if path.name != "config.json")
    tokenizer = open_tokenizer(str(tmp_path))
    for (key, wanted), found in zip(
        expected.state_dict().items(), tokenizer.network.state_dict().values(), strict=True
    ):
        assert found.dtype == torch.float32 or not wanted.is_floating_point(), key
        assert torch.equal(found, wanted), key
    model.save_pretrained(tmp_path)
    assert open_tokenizer(str(tmp_path)).identity == open_tokenizer(folder).identity != tokenizer.identity


def test_hashes_of_weights_are_remembered_by_file(saved, tmp_path, monkeypatch):
    _, folder = saved("encodec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = [tmp_path / "model.safetensors"]
    shutil.copy(Path(folder) / "model.safetensors", tmp_path)
    digest = weights_digest(files)
    assert digest in (tmp_path / "vqtok" / "weights.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr("vqtok.models.adapters.digest.safe_open", None)
        assert weights_digest(files) == digest
        os.utime(files[0], ns=(0, 0))
        with pytest.raises(TypeError):
            weights_digest(files)
    for broken in ("{", "[]"):
        (tmp_path / "vqtok" / "weights.json").write_text(broken)
        assert weights_digest(files) == digest
    monkeypatch.setenv("XDG_CACHE_HOME", str(files[0]))  # A file instead of a folder.
    assert weights_digest(files) == digest


class Harmful:
    def __reduce__(self):
        return pytest.fail, ("ran code of a pickle",)


def test_folders_that_cannot_be_used(saved, tmp_path, monkeypatch):
    _, folder = saved("dac")

    def broken(name):
        shutil.copytree(folder, tmp_path / name)
        return tmp_path / name

    empty = broken("empty")
    (empty / "model.safetensors").unlink()
    with pytest.raises(
        ModelError, match="empty: contains no weights; one of these files is required: model.safetensors,"
    ):
        open_tokenizer(str(empty))
    with pytest.raises(ModelError, match="nowhere: no such folder"):
        open_tokenizer(f"dac:{tmp_path / 'nowhere'}")
    torch.save({"weight": Harmful()}, empty / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match="pytorch_model.bin: is a pickle that may contain code, which vqtok never runs"
    ):
        open_tokenizer(str(empty))
    cut = broken("cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match="cut/model.safetensors: is damaged"):
        open_tokenizer(str(cut))
    state = load_file(Path(folder) / "model.safetensors")
    for what, changed in {
        "unexpected keys extra": state | {"extra": torch.zeros(1)},
        "missing keys encoder.conv1.bias": {name: state[name] for name in state if name != "encoder.conv1.bias"},
        "mismatched": state | {"encoder.conv1.bias": torch.zeros(5)},
    }.items():
        odd = broken(what)
        save_file(changed, odd / "model.safetensors")
        with pytest.raises(ModelError, match=f"{what}: .*{what}"):
            open_tokenizer(str(odd))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ModelError, match=r"requires transformers: pip install 'vqtok\[transformers\]'"):
            open_tokenizer(folder)


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    """Create a Hugging Face cache with some models, without network access."""
    from huggingface_hub import constants

    models = (("dac", "", "main"), ("dac", "", "v2"), ("movq", "movq", "main"), ("half", "", "main"))
    for name, below, revision in models:
        repo = tmp_path / "hub" / f"models--me--{name}"
        commit = hashlib.sha1(revision.encode()).hexdigest()
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / revision).write_text(commit)
        shutil.copytree(saved("dac" if name == "half" else name)[1], repo / "snapshots" / commit / below)
    (folder,) = (tmp_path / "hub" / "models--me--half" / "snapshots").iterdir()
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_models_of_the_hub_come_from_its_cache(saved, hub, run, tmp_path):
    media = sound(500)
    tokens = vqtok.encode(media, "hf:me/dac")
    for name in ("hf:me/dac@v2", "hf:me/half", saved("dac")[1]):
        assert vqtok.encode(media, name).model == tokens.model
    assert vqtok.encode(picture(8, 8), "hf:me/movq/movq").codebook_sizes == (32,)
    with pytest.raises(ModelError, match="hf:me/else: is not in the Hugging Face cache, and the Hub cannot be reached"):
        vqtok.encode(media, "hf:me/else")
    with pytest.raises(ModelError, match="hf:me/dac@v3: is not in the Hugging Face cache"):
        vqtok.encode(media, "hf:me/dac@v3")
    for name in ("hf:dac", "hf:", "hf:a/b/c@"):
        with pytest.raises(ModelError, match=f"{name}: is not of the form hf:ORG/NAME"):
            vqtok.encode(media, name)
    result = run("models", "--json")
    listed = {model["name"]: model for model in map(json.loads, result.stdout.splitlines())}
    assert listed["hf:me/dac"]["where"] == listed["hf:me/dac@v2"]["where"] == "cache"
    assert listed["hf:me/movq/movq"]["family"] == "VQModel"
    assert listed["audio"]["where"] == "bundled"
    assert listed["hf:kyutai/mimi"] | {"where": "hub", "sample_rate": 24_000} == listed["hf:kyutai/mimi"]


def test_revisions_on_the_command_line(hub, run, tmp_path, sound):
    assert run("encode", sound, "--model", "hf:me/dac", "--revision", "v2").exit_code == 0
    result = run(
        "decode", sound.with_suffix(".vqt"), "--model", "hf:me/dac", "--revision", "v3", "-o", tmp_path / "a.wav"
    )
    assert result.exit_code == 3
    assert "hf:me/dac@v3: is not in the Hugging Face cache" in result.stderr
    for model in ([], ["--model", "image"], ["--model", "hf:me/dac@v2"]):
        result = run("encode", sound, *model, "--revision", "v2", "--force")
        assert result.exit_code == 2
        assert "--revision v2: only applies to a --model of the form hf:ORG/NAME" in result.stderr


def test_every_command_takes_a_saved_folder(saved, run, tmp_path):
    _, folder = saved("encodec48")
    wav, shard = tmp_path / "a.wav", tmp_path / "all.vqts"
    soundfile.write(wav, sound(3000, channels=2).data.T, RATE, subtype="FLOAT")
    for command in (
        ["encode", wav, "-m", folder],
        ["encode", wav, "-m", folder, "--shard", shard],
        ["decode", tmp_path / "a.vqt", "-m", folder, "-o", tmp_path / "b.wav"],
        ["decode", shard, "--key", "a.wav", "-m", folder, "-o", tmp_path / "c.wav"],
        ["export", tmp_path / "a.vqt", "--to", "npy", "-o", tmp_path / "a.npy"],
        ["decode", tmp_path / "a.npy", "-m", folder, "-o", tmp_path / "d.wav"],
    ):
        result = run(*command)
        assert result.exit_code == 0, result.output
    first = (tmp_path / "b.wav").read_bytes()
    assert first == (tmp_path / "c.wav").read_bytes() == (tmp_path / "d.wav").read_bytes()
    card = json.loads(run("inspect", folder, "--json").stdout)
    tokens = json.loads(run("inspect", tmp_path / "a.vqt", "--json").stdout)
    future = json.loads(run("inspect", wav, "-m", folder, "--json").stdout)["would_become"]
    assert future["grid"] == tokens["grid"] == [1, 379]
    assert card["identity"].startswith(tokens["model"])
    assert {
        "family": "EncodecModel",
        "channels": 2,
        "sample_rate": RATE,
        "codebook_sizes": [64] * 4,
    }.items() <= card.items()
    shown = run("inspect", folder).stdout
    assert "it cuts audio into overlapping segments by itself" in " ".join(shown.split())
