"""Further audio tokenizers of transformers: codes and audio equal those of the library, for small random models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from rounding import assert_same_codes
from torch import nn

import vqtok
from vqtok.errors import ModelError
from vqtok.media.media import Media
from vqtok.models.adapters.xcodec2 import speech_features
from vqtok.models.registry import open_tokenizer

transformers = pytest.importorskip("transformers")
try:
    import torchaudio  # Its wheels may be for another build of torch.
except (ImportError, OSError):
    torchaudio = None
needs_torchaudio = pytest.mark.skipif(torchaudio is None, reason="needs torchaudio")


def make_wavtokenizer():
    config = transformers.WavTokenizerConfig(
        sampling_rate=8000,
        num_filters=4,
        upsampling_ratios=[5, 4, 2],
        hidden_size=32,
        codebook_dim=32,
        codebook_size=64,
        decoder_hidden_size=128,
        decoder_intermediate_size=16,
        decoder_num_layers=1,
    )
    model = transformers.WavTokenizerModel(config).eval()
    encoder = model.encoder_model
    latents = encoder.encoder(torch.randn(1, 1, 8000) * 0.3)[0].T
    encoder.quantizer.codebook.embed.copy_(latents[torch.randperm(len(latents))[:64]])
    nn.init.normal_(model.head.linear.weight, std=0.3)
    return model


def make_wavtokenizer_encoder():
    return make_wavtokenizer().encoder_model


SEMANTIC = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_depthwise_kernel_size": 5,
    "layerdrop": 0.0,
}


def make_xcodec2(kind="Xcodec2"):
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=64,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        encoder_hidden_size=2,
        quantization_dim=80,
        quantization_levels=[4, 4, 4],
        semantic_model_config={"model_type": "wav2vec2-bert", **SEMANTIC},
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.startswith("acoustic_decoder"):  # Else all codes would be equal.
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    nn.init.normal_(model.acoustic_decoder.head.linear.weight, std=0.3)
    return model


def make_higgs():
    config = transformers.HiggsAudioV2TokenizerConfig(
        target_bandwidths=[0.125, 0.5],
        codebook_size=32,
        codebook_dim=8,
        acoustic_model_config={
            "model_type": "dac",
            "encoder_hidden_size": 4,
            "decoder_hidden_size": 32,
            "hidden_size": 16,
            "downsampling_ratios": [8, 5, 4, 2, 3],
            "upsampling_ratios": [8, 5, 4, 2, 3],
        },
        semantic_model_config={
            "model_type": "hubert",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "conv_dim": [8] * 7,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
        },
    )
    model = transformers.HiggsAudioV2TokenizerModel(config).eval()
    for name, parameter in model.acoustic_decoder.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.7 * parameter[0].numel() ** -0.5)
    for layer in model.quantizer.quantizers:
        layer.codebook.embed.normal_()
    return model


MAKE = {
    "wavtokenizer": make_wavtokenizer,
    "wavtokenizer encoder": make_wavtokenizer_encoder,
    "xcodec2": make_xcodec2,
    "neucodec": lambda: make_xcodec2("NeuCodec"),
    "higgs": make_higgs,
}


@pytest.fixture(scope="module")
def saved(saving):
    return saving(MAKE)


def sound(samples, rate=16_000):
    return Media("audio", np.random.default_rng(samples).normal(0, 0.2, (1, samples)).astype(np.float32), rate)


def tensor(media):
    return torch.from_numpy(media.data)[None]


def close(decoded, expected):
    """Assert that decoded media equal those of the library, up to their length."""
    length = min(decoded.data.shape[-1], expected.shape[-1])
    assert expected.abs().max() > 0.01
    scale = float(expected.abs().max())
    np.testing.assert_allclose(decoded.data[..., :length], expected.numpy()[..., :length], atol=1e-4 * max(1, scale))


@pytest.mark.parametrize("samples", [1, 40, 41, 3999])
def test_wavtokenizer(saved, samples):
    model, folder = saved("wavtokenizer")
    media = sound(samples, 8000)
    expected = model.encode(tensor(media)).audio_codes
    tokens = vqtok.encode(media, folder)
    assert_same_codes(tokens.codes, expected[0].numpy())
    assert tokens.codes.shape == (1, -(-samples // 40))
    decoded = vqtok.decode(tokens, folder)
    assert decoded.data.shape == media.data.shape
    if samples > 40:  # The group norms of so small a model magnify rounding in a single step.
        close(decoded, model.decode(torch.from_numpy(tokens.codes)[None].long()).audio_values[0])


def test_an_encoder_alone_says_that_it_cannot_decode(saved):
    model, folder = saved("wavtokenizer encoder")
    media = sound(500, 8000)
    tokens = vqtok.encode(media, folder)
    assert_same_codes(tokens.codes, model.encode(tensor(media)).audio_codes[0].numpy())
    with pytest.raises(ModelError, match="this model only encodes: the folder has the encoder alone"):
        vqtok.decode(tokens, folder)


def reference_features(waveform):
    """Return the features that the original X-codec 2 feeds to its speech model, by transformers."""
    extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80)
    found = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
    return found["input_features"].float(), found["attention_mask"]


def library_inputs(kind, x):
    """Return what the library's feature extractor makes of audio, without torchaudio."""
    padded = F.pad(x, (0, 320 - x.shape[2] % 320))
    features, mask = reference_features(F.pad(padded, (160, 160) if kind == "xcodec2" else (0, 0))[0, 0])
    return {"input_values": padded, "input_features": features, "input_features_mask": mask}


@pytest.mark.parametrize("samples", [1, 319, 320, 4000])
def test_xcodec2(saved, samples):
    model, folder = saved("xcodec2")
    media = sound(samples)
    expected = model.encode(**library_inputs("xcodec2", tensor(media))).audio_codes
    tokens = vqtok.encode(media, folder)
    assert_same_codes(tokens.codes, expected[0].numpy())
    assert tokens.codes.shape == (1, samples // 320 + 1)
    assert samples < 4000 or len(np.unique(tokens.codes)) > 3
    decoded = vqtok.decode(tokens, folder)
    assert decoded.data.shape == media.data.shape
    if samples >= 320:
        close(decoded, model.decode(torch.from_numpy(tokens.codes)[None].long()).audio_values[0])


@pytest.mark.parametrize("samples", [320, 640, 4800])
def test_neucodec(saved, samples):
    model, folder = saved("neucodec")
    media = sound(samples)
    expected = model.encode(**library_inputs("neucodec", tensor(media))).audio_codes
    tokens = vqtok.encode(media, folder)
    assert_same_codes(tokens.codes, expected[0].numpy())
    assert tokens.codes.shape == (1, samples // 320)
    assert samples < 4000 or len(np.unique(tokens.codes)) > 3


@pytest.mark.parametrize(("samples", "rate"), [(1, 16_000), (4801, 16_000), (7000, 24_000), (9999, 44_100)])
def test_audio_is_decoded_at_another_rate_than_it_is_encoded(saved, samples, rate):
    """NeuCodec encodes 16 kHz and decodes 24 kHz: length and rate of the input are restored."""
    model, folder = saved("neucodec")
    media = sound(samples, rate)
    tokens = vqtok.encode(media, folder)
    assert tokens.size == (samples, rate, 1)
    decoded = vqtok.decode(tokens, folder)
    assert (decoded.data.shape, decoded.sample_rate) == (media.data.shape, rate)
    if rate == 24_000:  # Nothing is resampled.
        close(decoded, model.decode(torch.from_numpy(tokens.codes)[None].long()).audio_values[0])


def test_stereo_and_chunks_at_another_rate(saved, run, tmp_path):
    _, folder = saved("neucodec")
    data = np.random.default_rng(0).normal(0, 0.2, (20_000, 2))
    soundfile.write(tmp_path / "a.wav", data, 16_000)
    assert run("encode", tmp_path / "a.wav", "-m", folder).exit_code == 0
    assert run("decode", tmp_path / "a.vqt", "-m", folder, "-o", tmp_path / "b.wav").exit_code == 0
    info = soundfile.info(tmp_path / "b.wav")
    assert (info.frames, info.samplerate, info.channels) == (20_000, 16_000, 2)
    facts = json.loads(run("inspect", folder, "--json").stdout)
    assert (facts["sample_rate"], facts["output_rate"], facts["tokens_per_second"]) == (16_000, 24_000, 50)
    assert "24000 Hz" in run("inspect", folder).stdout


@pytest.mark.parametrize("samples", [640, 1600, 16_000])
def test_features_of_speech(samples):
    waveform = tensor(sound(samples))[0, 0]
    expected, _ = reference_features(waveform)
    found = speech_features(waveform)
    torch.testing.assert_close(found, expected[0, : len(found)], rtol=1e-2, atol=1e-2)


@needs_torchaudio
@pytest.mark.parametrize("kind", ["xcodec2", "neucodec"])
def test_codes_equal_those_with_the_feature_extractor(saved, kind):
    model, folder = saved(kind)
    extractor = {"xcodec2": "Xcodec2FeatureExtractor", "neucodec": "NeuCodecFeatureExtractor"}[kind]
    media = sound(9600)
    inputs = getattr(transformers, extractor)()(media.data[0], sampling_rate=16_000, return_tensors="pt")
    assert vqtok.encode(media, folder).codes.tolist() == model.encode(**inputs).audio_codes[0].tolist()


@needs_torchaudio
@pytest.mark.parametrize("samples", [1, 960, 961, 5000])
def test_higgs_audio(saved, samples):
    model, folder = saved("higgs")
    media = sound(samples, 24_000)
    filled = F.pad(tensor(media), (0, -samples % 960))
    expected = model.encode(filled).audio_codes
    tokens = vqtok.encode(media, folder)
    assert tokens.codes.tolist() == expected[0].tolist()
    assert tokens.codes.shape == (4, -(-samples // 960))
    close(vqtok.decode(tokens, folder), model.decode(expected).audio_values[0])
    assert vqtok.encode(media, folder, num_codebooks=1).codes.tolist() == tokens.codes[:1].tolist()


@pytest.mark.skipif(torchaudio is not None, reason="torchaudio is there")
def test_higgs_audio_without_torchaudio(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "higgs_audio_v2_tokenizer"}')
    with pytest.raises(ModelError, match="needs torchaudio for it: pip install torchaudio"):
        open_tokenizer(str(tmp_path))
