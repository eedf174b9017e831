"""The texture distance: details that are missing or added count, where they are does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vqtok.metrics.means import Moments, frechet_distance
from vqtok.metrics.texture import TextureDistance


def textures(seed: int) -> list[NDArray[np.float32]]:
    """Return gray images of smoothed noise."""
    noise = torch.randn(6, 1, 48, 48, generator=torch.Generator().manual_seed(seed))
    return list(F.avg_pool2d(noise, 3, 1).numpy().clip(-1, 1))


def distance(originals: list[NDArray[np.float32]], others: list[NDArray[np.float32]], sample_rate: int = 0) -> float:
    texture = TextureDistance(sample_rate)
    for x, x_hat in zip(originals, others, strict=True):
        texture.add(x, x_hat)
    return texture.distance()


def blurred(images: list[NDArray[np.float32]], size: int) -> list[NDArray[np.float32]]:
    return [F.avg_pool2d(torch.from_numpy(x), size, 1, size // 2).numpy() for x in images]


def test_more_blur_and_more_noise_are_further_away() -> None:
    originals = textures(0)
    noisy = [x + 0.3 * np.random.default_rng(1).standard_normal(x.shape).astype(np.float32) for x in originals]
    assert distance(originals, originals) < 1e-6
    assert 0.02 < distance(originals, blurred(originals, 3)) < distance(originals, blurred(originals, 5))
    assert distance(originals, noisy) > 0.1


def test_other_images_of_the_same_texture_and_other_brightness_are_close() -> None:
    originals = textures(0)
    far = distance(originals, blurred(originals, 3))
    assert distance(originals, textures(1)) < 0.2 * far
    assert distance(originals, [x + 0.2 for x in originals]) < 0.01 * far


def test_muffled_audio_is_further_away_than_other_noise() -> None:
    rng = np.random.default_rng(0)
    clips, others = ([0.1 * rng.standard_normal((1, 8000)).astype(np.float32) for _ in range(8)] for _ in range(2))
    muffled = [F.avg_pool1d(torch.from_numpy(x), 9, 1, 4).numpy() for x in clips]
    assert distance(clips, others, 16_000) < 0.5 * distance(clips, muffled, 16_000)


def test_media_without_room_for_patches_have_no_distance() -> None:
    assert np.isnan(distance([np.zeros((1, 4, 4), np.float32)] * 2, [np.zeros((1, 4, 4), np.float32)] * 2))


def test_moments_of_rows_are_those_of_single_vectors_and_can_be_mapped() -> None:
    vectors = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    matrix = np.random.default_rng(1).standard_normal((4, 3))
    rows, single, mapped = Moments(), Moments(), Moments()
    rows.add(vectors)
    mapped.add((vectors @ matrix).astype(np.float32))
    for vector in vectors:
        single.add(vector)
    assert frechet_distance(rows, single) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(rows.mapped(matrix).covariance, mapped.covariance, rtol=1e-4, atol=1e-5)
