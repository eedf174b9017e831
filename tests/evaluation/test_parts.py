"""The parts of an evaluation: interpolation, the search for a file of a size, sets, stability, packing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import picture, wave

from vqtok.codec.codec import Codec
from vqtok.evaluation.codecs import CODECS, Files, fitted
from vqtok.evaluation.items import Measured, interpolated
from vqtok.evaluation.packing import pack, unpack
from vqtok.evaluation.stability import count_agreeing
from vqtok.media.image import as_float
from vqtok.media.media import Media
from vqtok.metrics.means import Moments, common_means, frechet_distance
from vqtok.models.registry import open_tokenizer


def point(num_bytes, value):
    return Measured(num_bytes, {"psnr": value}, {})


def test_interpolation_over_the_logarithm_of_bytes():
    points = [point(100, 20.0), point(400, 30.0), point(10, 1.0)]
    assert interpolated(200, points[1], points).figures["psnr"] == pytest.approx(25.0)
    assert interpolated(200, points[1], points).num_bytes == 200
    assert interpolated(400, points[1], points) is points[1]
    assert interpolated(5, points[2], points) is points[2]  # The smallest file has more bytes.
    assert interpolated(900, points[1], points) is points[1]  # The best file has fewer.
    exact = point(400, math.inf)
    assert interpolated(200, exact, [points[0], exact]).figures["psnr"] == math.inf


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_the_smallest_file_with_at_least_so_many_bytes(name):
    media = Media("image", as_float(picture(48, 40).transpose(2, 0, 1)))
    codec = CODECS[name]
    sizes = [len(codec.encode(media, setting)) for setting in codec.settings]
    for target in (1, 500, 900, 1500, 10**6):
        files = Files(codec, media)
        for setting in codec.ladder[::2]:  # As after a curve.
            files.file(setting)
        found = len(files.file(files.at_least(target)))
        if target <= max(sizes):
            # Sizes hardly ever fall as the quality rises.
            assert target <= found <= 1.1 * min(size for size in sizes if size >= target)
        else:
            assert found == sizes[-1]


@pytest.mark.parametrize("name", ["opus", "mp3", "vorbis"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (37_000, 1)])
def test_audio_codecs_are_aligned(name, rate, channels):
    original = Media("audio", wave(rate, rate, channels).T.copy(), rate)
    codec = CODECS[name]
    if codec.why_missing():
        pytest.skip(codec.why_missing())
    decoded = codec.decode(codec.encode(original, codec.ladder[-1]), original)
    assert decoded.data.shape == original.data.shape
    error = np.square(decoded.data - original.data).mean() / np.square(original.data).mean()
    assert error < 0.1


def test_decoded_audio_is_fitted_to_the_original():
    original = Media("audio", np.ones((1, 100), np.float32), 8000)
    assert fitted(Media("audio", np.ones((1, 130), np.float32), 8000), original).data.shape == (1, 100)
    padded = fitted(Media("audio", np.ones((1, 90), np.float32), 8000), original).data
    assert padded[0, 89:91].tolist() == [1, 0]


def test_means_over_items_that_all_candidates_have():
    means, count = common_means({"a": [1.0, math.inf, 3.0], "b": [5.0, 6.0, 7.0], "c": [1.0, 1.0, math.nan]})
    assert (means, count) == ({"a": 1.0, "b": 5.0, "c": 1.0}, 1)
    means, count = common_means({"a": [math.nan], "b": [1.0]})
    assert count == 0
    assert math.isnan(means["b"])


def test_frechet_distance_of_known_distributions():
    rng = np.random.default_rng(0)
    first, second = Moments(), Moments()
    for _ in range(4000):
        first.add(rng.normal(0, 1, 3).astype(np.float32))
        second.add(rng.normal([2, 0, 0], [1, 2, 1]).astype(np.float32))
    # (2 - 0)^2 of the means, (2 - 1)^2 of the standard deviations.
    assert frechet_distance(first, second) == pytest.approx(5, rel=0.1)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert math.isnan(frechet_distance(first, Moments()))


def test_stability_of_codes(image_model, audio_model):
    codec = Codec(open_tokenizer(str(image_model)))
    image = Media("image", as_float(picture(64, 48).transpose(2, 0, 1)))
    found = count_agreeing(codec, image)
    assert list(found) == ["repeat", "shift", "jpeg", "noise"]
    assert found["repeat"] == ([16 * 12] * 4, 16 * 12)
    # The network's context is not the whole image: inside, a shift by a stride changes nothing.
    assert found["shift"][1] == 15 * 11
    assert found["shift"][0][0] > 100
    assert found["noise"][0][0] < 16 * 12
    audio = Codec(open_tokenizer(str(audio_model)))
    found = count_agreeing(audio, Media("audio", wave(8000, 8000).T.copy(), 8000))
    assert found["repeat"] == ([2000] * 3, 2000)
    assert found["shift"][0][0] > 1900


def test_packed_arrays():
    array = np.arange(5, dtype=np.uint32)
    assert unpack(pack(array), "u4").tolist() == [0, 1, 2, 3, 4]
