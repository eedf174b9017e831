"""vqtok.codec.codec"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from rounding import assert_same_codes

from vqtok.codec.codec import Codec
from vqtok.codec.options import CodecOptions
from vqtok.codec.threads import in_order
from vqtok.compute.device import choose_device
from vqtok.errors import CorruptFileError, MediaError, ModelError, UsageError, WrongModelError
from vqtok.media.image import as_bytes, as_float
from vqtok.media.media import Media
from vqtok.media.resample import resample
from vqtok.media.tiling import padded
from vqtok.metrics.image import psnr
from vqtok.models.model_file import load_model

HOP = 8  # of the tiny audio model, at 16 kHz


def codec_with_context(path):
    """Open a model whose blocks depend on context; those of a new model are identities, which would hide seams."""
    model = load_model(path)
    generator = torch.Generator().manual_seed(0)
    for network in (model.encoder, model.decoder):
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5 / 2)
    return Codec(model)


@pytest.fixture(scope="module")
def image_codec(image_model):
    return codec_with_context(image_model)


@pytest.fixture(scope="module")
def audio_codec(audio_model):
    return codec_with_context(audio_model)


def picture(width, height, channels=3):
    return Media("image", np.random.default_rng(0).uniform(-1, 1, (channels, height, width)).astype(np.float32))


def sound(samples, sample_rate=16_000, channels=1):
    data = np.random.default_rng(0).uniform(-1, 1, (channels, samples)).astype(np.float32)
    return Media("audio", data, sample_rate)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 19), (23, 1), (31, 37), (4, 4), (3, 101), (64, 32)])
def test_picture_sizes_are_restored(image_codec, width, height):
    tokens = image_codec.encode(picture(width, height))
    assert tokens.size == (width, height)
    assert tokens.codes.shape == (4, -(-height // 4), -(-width // 4))
    assert tokens.model == image_codec.tokenizer.identity[:8]
    media = image_codec.decode(tokens)
    assert (media.modality, media.sample_rate, media.data.dtype) == ("image", None, np.float32)
    assert media.data.shape == (3, height, width)


@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 22_050, 44_100, 96_000])
@pytest.mark.parametrize("samples", [1, HOP - 1, HOP, HOP + 1, 1001])
def test_sound_lengths_and_rates_are_restored(audio_codec, samples, sample_rate):
    tokens = audio_codec.encode(sound(samples, sample_rate))
    assert tokens.size == (samples, sample_rate, 1)
    assert tokens.codes.shape == (3, int(np.ceil(samples * 16_000 / sample_rate / HOP)))
    media = audio_codec.decode(tokens)
    assert (media.modality, media.sample_rate) == ("audio", sample_rate)
    assert media.data.shape == (1, samples)
    assert np.isfinite(media.data).all()


@pytest.mark.parametrize("channels", [2, 3])
def test_channels_are_coded_each_for_itself(audio_codec, channels):
    media = sound(1000, 44_100, channels)
    tokens = audio_codec.encode(media)
    assert tokens.codes.shape[:2] == (3, channels)
    decoded = audio_codec.decode(tokens)
    for channel in range(channels):
        alone = audio_codec.encode(Media("audio", media.data[channel : channel + 1], 44_100))
        assert np.array_equal(alone.codes, tokens.codes[:, channel])
        assert np.array_equal(audio_codec.decode(alone).data[0], decoded.data[channel])


@pytest.mark.parametrize("level", [0.0, 50.0])
def test_silence_and_over_full_scale(audio_codec, level):
    media = Media("audio", level * sound(100).data, 16_000)
    assert np.isfinite(audio_codec.decode(audio_codec.encode(media)).data).all()


def test_edges_are_mirrored(image_codec):
    """What lies beyond the picture continues it: padding by hand gives the same codes."""
    media = picture(30, 29)
    padded = np.pad(media.data, [(0, 0), (0, 3), (0, 2)], mode="symmetric")
    assert np.array_equal(image_codec.encode(media).codes, image_codec.encode(Media("image", padded)).codes)


def whole(codec, items):
    """Run the network over whole items `(channels, *size)`, without a codec, for codes and for media."""
    x = [torch.from_numpy(padded(item, codec.tokenizer.stride))[None] for item in items]
    codes = [codec.tokenizer.encode(item) for item in x]
    return [item[0].numpy() for item in codes], [codec.tokenizer.decode(item)[0].numpy() for item in codes]


@pytest.mark.parametrize("seed", range(4))
def test_tiles_do_not_show(image_codec, seed):
    """Code for code, and in the pixels to float precision."""
    rng = np.random.default_rng(seed)
    media = picture(*rng.integers(1, 70, 2))
    tiles = [
        Codec(image_codec.tokenizer, options=CodecOptions(tile=int(tile))) for tile in (1, *rng.integers(4, 60, 2))
    ]
    (codes,), (decoded,) = whole(image_codec, [media.data])
    for codec in (image_codec, *tiles):
        tokens = codec.encode(media)
        assert_same_codes(tokens.codes, codes)
        tokens = dataclasses.replace(tokens, codes=codes)
        height, width = media.data.shape[1:]
        np.testing.assert_allclose(codec.decode(tokens).data, decoded[:, :height, :width], atol=1e-4)


@pytest.mark.parametrize("sample_rate", [16_000, 44_100])
@pytest.mark.parametrize("seed", range(2))
def test_chunks_do_not_show(audio_codec, seed, sample_rate, monkeypatch):
    rng = np.random.default_rng(seed)
    media = sound(int(rng.integers(1, 3000)), sample_rate, channels=2)
    resampled = resample(media.data, sample_rate, 16_000)
    codes, decoded = whole(audio_codec, resampled[:, None])
    decoded = np.concatenate(decoded)[:, : resampled.shape[1]]
    decoded = resample(decoded, 16_000, sample_rate, media.data.shape[1])
    for seconds in (10, *rng.uniform(0.004, 0.1, 2)):
        monkeypatch.setattr("vqtok.codec.codec.CHUNK_SECONDS", seconds)
        codec = Codec(audio_codec.tokenizer, options=CodecOptions(chunk_seconds=seconds))
        tokens = codec.encode(media)
        assert_same_codes(tokens.codes, np.stack(codes, axis=1))
        same = dataclasses.replace(tokens, codes=np.stack(codes, axis=1))
        np.testing.assert_allclose(codec.decode(same).data, decoded, atol=1e-4)
        pieces = np.split(media.data, np.sort(rng.integers(0, media.data.shape[1], 5)), axis=1)
        assert np.array_equal(codec.encode_audio(pieces, sample_rate, 2).codes, tokens.codes)


def test_chunk_seconds_do_not_move_what_the_encoder_sees(audio_codec):
    """So that even rounding cannot show: whatever the length of the pieces, the windows are the same."""
    seen = []
    encode = audio_codec.tokenizer.encode
    for seconds in (1.0, 30.0):
        codec = Codec(audio_codec.tokenizer, options=CodecOptions(chunk_seconds=seconds))
        media = sound(400_000)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(codec.tokenizer, "encode", lambda x: seen.append(x) or encode(x))
            codec.encode_audio(np.split(media.data, 40 // int(seconds), axis=1), 16_000, 1)
    assert len(seen) == 6
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))


def test_a_model_that_sees_all_at_once_is_not_cut(image_codec, audio_codec):
    for codec, media in ((image_codec, picture(100, 30)), (audio_codec, sound(3000))):
        tokenizer = copy.copy(codec.tokenizer)
        tokenizer.encoder_context = tokenizer.decoder_context = None
        uncut = Codec(tokenizer, options=CodecOptions(tile=16, chunk_seconds=0.01))
        tokens = codec.encode(media)
        assert_same_codes(uncut.encode(media).codes, tokens.codes)
        np.testing.assert_allclose(uncut.decode(tokens).data, codec.decode(tokens).data, atol=1e-4)


def test_pixels_are_the_rounded_picture(image_codec):
    media = picture(70, 33)
    pixels = as_bytes(media.data)
    tokens = image_codec.encode_image(pixels)
    assert np.array_equal(tokens.codes, image_codec.encode(Media("image", as_float(pixels))).codes)
    codec = Codec(image_codec.tokenizer, options=CodecOptions(tile=20))
    assert np.array_equal(codec.decode_pixels(tokens), as_bytes(codec.decode(tokens).data))


def test_prefixes(image_codec):
    media = picture(32, 32)
    tokens = image_codec.encode(media)
    for count in (1, 3, 4):
        prefix = image_codec.encode(media, count)
        assert np.array_equal(prefix.codes, tokens.codes[:count])
        assert np.array_equal(image_codec.decode(prefix).data, image_codec.decode(tokens, count).data)
    for count in (0, 5):
        with pytest.raises(UsageError, match=f"`num_codebooks` {count}: there are 4"):
            image_codec.encode(media, count)
        with pytest.raises(UsageError, match=f"`num_codebooks` {count}: there are 4"):
            image_codec.decode(tokens, count)


def test_more_codebooks_are_closer(image_model):
    """The residual levels of the k-means start bring the latents, and so the output, nearer to the unquantized one."""
    image_codec = Codec(load_model(image_model))
    model = image_codec.tokenizer
    x = torch.from_numpy(picture(64, 64).data[None])
    codes, (whole, _) = model.encode(x), model(x, quantize=False)
    quality = [float(psnr(model.decode(codes[:, :count]), whole)) for count in (1, 2, 3, 4)]
    assert quality == sorted(quality)
    assert quality[3] > quality[0] + 1


def test_grey_model(make_model):
    codec = Codec(load_model(make_model("image", channels=1)))
    media = codec.decode(codec.encode(picture(9, 5, 1)))
    assert media.data.shape == (1, 5, 9)


def test_media_that_the_model_is_not_for(image_codec, audio_codec):
    with pytest.raises(ModelError, match="encodes image, not audio; choose another `model`"):
        image_codec.encode(sound(10))
    with pytest.raises(ModelError, match="codes audio, not image"):
        audio_codec.encode(picture(4, 4))
    with pytest.raises(ModelError, match="images of 3 channels, this one has 1"):
        image_codec.encode(picture(4, 4, 1))
    with pytest.raises(MediaError, match="too far apart"):
        audio_codec.encode(sound(10, 40))


def test_tokens_of_another_model(image_codec, make_model):
    other = Codec(load_model(make_model("image", seed=1)))
    names = [codec.tokenizer.identity[:8].hex() for codec in (image_codec, other)]
    with pytest.raises(WrongModelError, match=f"made by model {names[0]}, not by {names[1]}; choose"):
        other.decode(image_codec.encode(picture(8, 8)))


@pytest.mark.parametrize(
    "change",
    [
        {"size": (9, 8)},
        {"size": (8, 800)},
        {"codebook_sizes": (16, 16, 16, 17)},
        {"codebook_sizes": (16,) * 5, "codes": np.zeros((5, 2, 2), np.int32)},
        {"modality": "audio", "size": (8, 16_000, 2)},
    ],
)
def test_tokens_that_no_encoder_made(image_codec, change):
    tokens = image_codec.encode(picture(8, 8))
    with pytest.raises(CorruptFileError, match="do not fit the model that they name"):
        image_codec.decode(dataclasses.replace(tokens, **change))


def test_nothing_shows_in_codes(image_codec, audio_codec, monkeypatch):
    """Whatever the tile, the chunk, the number of threads, and what else is computed at the same time."""
    rng = np.random.default_rng(0)
    items = [picture(*map(int, rng.integers(1, 90, 2))) for _ in range(12)] + [picture(20, 20)] * 3
    items += [sound(int(rng.integers(1, 4000)), 22_050, channels) for channels in (1, 1, 2)]
    codecs = {"image": image_codec, "audio": audio_codec}
    alone = [codecs[item.modality].encode(item) for item in items]
    decoded = [codecs[tokens.modality].decode(tokens).data for tokens in alone]
    for jobs, positions, tile in ((1, 1, 1024), (1, 1 << 14, 12), (3, 1 << 14, 1024), (2, 4096, 40)):
        how = CodecOptions(jobs=jobs, tile=tile, chunk_seconds=tile / 1000)
        monkeypatch.setattr("vqtok.codec.inference.BATCH_POSITIONS", {"cpu": positions})
        others = {name: Codec(codec.tokenizer, options=how) for name, codec in codecs.items()}
        together = in_order(lambda item, others=others: others[item.modality].encode(item), items, 8)
        for tokens, expected in zip(together, alone, strict=True):
            assert_same_codes(tokens.codes, expected.codes)
        together = in_order(lambda tokens, others=others: others[tokens.modality].decode(tokens).data, alone, 8)
        for data, expected in zip(together, decoded, strict=True):
            np.testing.assert_allclose(data, expected, atol=1e-4)


def test_threads_of_torch_do_not_show(image_codec):
    """By construction: each batch is computed by one thread, and batches of one shape have one size."""
    media, seen = picture(40, 24), []
    tokenizer = copy.copy(image_codec.tokenizer)
    tokenizer.encode = lambda x: seen.append((x, torch.get_num_threads())) or image_codec.tokenizer.encode(x)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        codec = Codec(tokenizer)
        list(in_order(codec.encode, [media] * threads, 4))
        codec.encode(media)
    torch.set_num_threads(before)
    assert {number for _, number in seen} == {1}
    assert {x.shape for x, _ in seen} == {(17, 3, 24, 40)}  # 16,384 / (24 x 40)


def test_bfloat16_is_told(image_codec):
    tokens = Codec(image_codec.tokenizer, options=CodecOptions(precision="bfloat16")).encode(picture(64, 64))
    exact = image_codec.encode(picture(64, 64))
    assert (tokens.metadata, exact.metadata) == ({"precision": "bfloat16"}, {})
    same = (tokens.codes == exact.codes).mean(axis=(1, 2))
    assert 0.5 < same[0] < 1


def test_processes_of_torchrun_take_a_gpu_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cuda") == torch.device("cuda", 3)
    assert choose_device("cpu") == torch.device("cpu")


def test_more_effort_loses_less_and_is_recorded(image_codec):
    media = picture(64, 48)
    careful = Codec(image_codec.tokenizer, options=CodecOptions(effort=4))
    tokens = careful.encode(media)
    assert tokens.metadata["effort"] == 4
    quantizer, x = image_codec.tokenizer.quantizer, torch.from_numpy(media.data)[None]
    with torch.no_grad():
        z = image_codec.tokenizer.encoder(x)
    errors = [
        (quantizer.decode(torch.from_numpy(found.codes).long()[None]) - z).square().mean()
        for found in (tokens, image_codec.encode(media))
    ]
    assert errors[0] < errors[1]
    # Neither the number of threads nor the other items matter.
    alone = Codec(image_codec.tokenizer, options=CodecOptions(effort=4, jobs=1))
    assert [np.array_equal(found.codes, tokens.codes) for found in map(alone.encode, [media] * 2)] == [True, True]
    assert len(careful.encode(media, 1).codes) == 1
    with pytest.raises(UsageError, match="`effort` must be at least 1"):
        Codec(image_codec.tokenizer, options=CodecOptions(effort=0))
