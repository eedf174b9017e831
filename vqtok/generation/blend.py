"""Join generated parts with the original: smooth filling of holes, and seams without an edge."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

FADE_SECONDS = 0.005
"""How long a step at the edge of generated audio takes to fade."""


def smooth_fill(values: Floats, known: NDArray[np.bool_]) -> Floats:
    """Fill in what is not known by smooth interpolation of what is.

    Averages of known pixels at half the resolution, filled in the same way, replace the unknown ones.

    Shapes:
        values: `(channels, height, width)`.
        known: `(height, width)`.

    Source: Gortler et al. 1996, "The Lumigraph", section 3.4.4 (push and pull).
    """
    if known.all() or not known.any():
        return np.where(known, values, np.float32(0))
    weights = known.astype(np.float32)
    sums, counts = _halved(values * weights), _halved(weights[None])[0]
    coarse = smooth_fill(sums / np.maximum(counts, 1e-6), counts > 0)
    height, width = known.shape
    return np.where(known, values, _blurred(coarse.repeat(2, 1).repeat(2, 2))[:, :height, :width])


def _halved(values: Floats) -> Floats:
    """Add up squares of 2 x 2 pixels; an odd last row or column stands alone."""
    _, height, width = values.shape
    padded = np.pad(values, ((0, 0), (0, height % 2), (0, width % 2)))
    sums: Floats = padded[:, ::2, ::2] + padded[:, 1::2, ::2] + padded[:, ::2, 1::2] + padded[:, 1::2, 1::2]
    return sums


def _blurred(values: Floats) -> Floats:
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows: Floats = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    sums: Floats = rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]
    return sums / np.float32(16)


def blend_image(original: Floats, generated: Floats, mask: NDArray[np.bool_]) -> Floats:
    """Return the original with the masked pixels replaced by generated ones.

    The difference between both around the mask is interpolated across it and added, so that no edge is visible.

    Source: Pérez et al. 2003, "Poisson Image Editing", section 2 (the membrane that interpolates the difference).
    """
    return np.where(mask, generated + smooth_fill(original - generated, ~mask), original)


def blend_audio(original: Floats, generated: Floats, begin: int, end: int, sample_rate: int) -> Floats:
    """Return generated audio from `begin` to `end`, and the original before and after.

    The step at either end is added to the generated part and fades, so that it does not click.

    Shapes:
        original: `(channels, samples)`; it may end where the generated part does.
        generated: `(channels, samples)`, at least up to `end`.
    """
    part = generated[:, begin:end].copy()
    fade = np.exp(-np.arange(end - begin) / max(1.0, FADE_SECONDS * sample_rate)).astype(np.float32)
    if begin > 0:
        part += (original[:, begin - 1] - generated[:, begin - 1])[:, None] * fade
    if end < min(original.shape[1], generated.shape[1]):
        part += (original[:, end] - generated[:, end])[:, None] * fade[::-1]
    return np.concatenate([original[:, :begin], part, original[:, end:]], axis=1)
