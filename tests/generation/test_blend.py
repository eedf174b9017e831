from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqtok.generation.blend import blend_audio, blend_image, smooth_fill


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 999))
def test_what_is_known_stays_and_the_rest_is_between(height, width, seed):
    rng = np.random.default_rng(seed)
    values = rng.random((3, height, width), np.float32)
    known = rng.random((height, width)) < 0.3
    filled = smooth_fill(values, known)
    assert (filled[:, known] == values[:, known]).all()
    if known.any():
        low, high = values[:, known].min(), values[:, known].max()
        assert low - 1e-5 <= filled.min()
        assert filled.max() <= high + 1e-5


def test_a_constant_fills_a_hole_with_itself():
    known = np.ones((33, 47), bool)
    known[5:25, 7:40] = False
    filled = smooth_fill(np.full((1, 33, 47), 0.25, np.float32), known)
    np.testing.assert_allclose(filled, 0.25, atol=1e-6)


def test_a_ramp_goes_on_through_a_hole():
    ramp = np.tile(np.linspace(-1, 1, 64, dtype=np.float32), (64, 1))[None]
    known = np.ones((64, 64), bool)
    known[24:40, 24:40] = False
    assert np.abs(smooth_fill(ramp, known) - ramp).max() < 0.15


def test_nothing_known_is_nothing():
    assert (smooth_fill(np.ones((1, 4, 4), np.float32), np.zeros((4, 4), bool)) == 0).all()


def test_pixels_outside_the_mask_stay_and_the_seam_has_no_edge():
    original = np.full((3, 48, 48), 0.5, np.float32)
    generated = np.zeros((3, 48, 48), np.float32)
    mask = np.zeros((48, 48), bool)
    mask[16:32, 16:32] = True
    blended = blend_image(original, generated, mask)
    assert (blended[:, ~mask] == original[:, ~mask]).all()
    np.testing.assert_allclose(blended, 0.5, atol=0.05)  # The constant difference is gone.


@pytest.mark.parametrize(("begin", "end"), [(0, 300), (200, 500), (700, 1000)])
def test_samples_outside_the_part_stay_and_nothing_clicks(begin, end):
    original = np.full((2, 1000), 0.4, np.float32)
    generated = np.zeros((2, 1000), np.float32)
    blended = blend_audio(original, generated, begin, end, 8000)
    assert blended.shape == original.shape
    assert (blended[:, :begin] == original[:, :begin]).all()
    assert (blended[:, end:] == original[:, end:]).all()
    assert np.abs(np.diff(blended)).max() < 0.05
    assert np.abs(blended[:, (begin + end) // 2]).max() < 0.1
