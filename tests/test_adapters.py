"""vqtok.models.adapters: codes and media are those of the libraries, on small models with random weights.

Each model is made by the real library, saved as its users do, and run by both sides on the same media.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import vqtok
from vqtok.errors import ModelError
from vqtok.media.base import Media
from vqtok.models.zoo import open_tokenizer

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

RATE = 11_025  # so that no frame rate is a whole number


def fill_codebooks(model, latents, layers, buffer="embed"):
    """Draw codebook vectors as large as the latents: a new model has zeros."""
    for layer in layers:
        book = getattr(layer.codebook, buffer)
        book.copy_(torch.randn_like(book) * latents.std() + latents.mean())


def random_biases(model):
    """Make zeros, which many new parameters are, anything else."""
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
        if name.endswith("weight") and parameter.ndim > 1:  # as drawn they give silence
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


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Keep the hashes of weights out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Give a function that makes the model of a name once: the library's, and the folder it is saved in."""
    made = {}

    def get(name):
        if name not in made:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)
                folder = tmp_path_factory.mktemp(name)
                model = MAKE[name]()
                model.save_pretrained(folder)
            made[name] = model.requires_grad_(False), str(folder)
        return made[name]

    return get


def sound(samples, rate=RATE, channels=1):
    return Media("audio", np.random.default_rng(samples).normal(0, 0.2, (channels, samples)).astype(np.float32), rate)


def picture(width, height):
    return Media("image", np.random.default_rng(0).uniform(-1, 1, (3, height, width)).astype(np.float32))


def tensor(media):
    return torch.from_numpy(media.data)[None]


def close(decoded, expected):
    """Check that decoded media are the library's, as far as these go."""
    length = min(decoded.data.shape[-1], expected.shape[-1])
    assert expected.abs().max() > 0.01
    np.testing.assert_allclose(decoded.data[..., :length], expected.numpy()[..., :length], atol=1e-5)


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


def test_a_mono_sound_for_a_stereo_model(saved):
    _, folder = saved("encodec48")
    media = sound(3000)
    stereo = Media("audio", np.repeat(media.data, 2, axis=0), RATE)
    tokens, both = vqtok.encode(media, folder), vqtok.encode(stereo, folder)
    assert tokens.codes.tolist() == both.codes[:, 0].tolist()
    np.testing.assert_allclose(vqtok.decode(tokens, folder).data[0], vqtok.decode(both, folder).data.mean(axis=0))
    with pytest.raises(ModelError, match="codes 2 channels together, this sound has 3"):
        vqtok.encode(sound(100, channels=3), folder)


@pytest.mark.parametrize("name", ["dac", "dac44"])
@pytest.mark.parametrize("samples", SAMPLES)
def test_dac(saved, name, samples):
    """With the tail that the library loses, and all samples back although it gives 8 fewer."""
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


def test_mimi_sounds_do_not_depend_on_others(saved, tmp_path, run):
    """Encoded in one go from files of any length, each is as by itself."""
    import soundfile

    model, folder = saved("mimi")
    for samples in (700, 3000, 1500):
        soundfile.write(tmp_path / f"{samples}.wav", sound(samples).data.T, RATE, subtype="FLOAT")
    assert run("encode", tmp_path, "-o", tmp_path, "--model", folder).exit_code == 0
    for samples in (700, 3000, 1500):
        expected = model.encode(tensor(sound(samples))).audio_codes[0]
        tokens = vqtok.tokens.vqt.load((tmp_path / f"{samples}.vqt").read_bytes())
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
    np.testing.assert_allclose(decoded.data, original.numpy()[:, :height, :width], atol=1e-5)


LONG = ["encodec", "mimi", "dac", "xcodec"]


@pytest.mark.parametrize("name", LONG)
def test_windows_over_long_sounds_do_not_show(saved, name, monkeypatch):
    """What the library computes whole comes out of many windows: codes equal, media to rounding."""
    _, folder = saved(name)
    tokenizer = open_tokenizer(folder)
    if name in ("encodec", "mimi"):
        tokenizer.core = 24
    monkeypatch.setattr("vqtok.codec.CHUNK_SECONDS", 0.3)
    codec, whole = vqtok.Codec(tokenizer, chunk_seconds=0.3), vqtok.Codec(open_tokenizer(folder), chunk_seconds=99)
    media = sound(20_011, tokenizer.sample_rate)
    tokens = codec.encode(media)
    monkeypatch.setattr("vqtok.codec.CHUNK_SECONDS", 99)
    assert tokens.codes.tolist() == whole.encode(media).codes.tolist()
    np.testing.assert_allclose(codec.decode(tokens).data, whole.decode(tokens).data, rtol=1e-5, atol=1e-5)
