"""The integer arithmetic of the context prior, and its loops as array operations for machines without numba.

The functions return exactly what the compiled loops of the same names in `vqtok.tokens.coding.prior` return, which
document them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vqtok.tokens.coding.rans import TOTAL

MAX_ACTIVATION = 127
WEIGHT_BITS = 7
HALF = 1 << WEIGHT_BITS - 1
"""Added before the division by 2^WEIGHT_BITS, in order to round."""

Float = NDArray[np.float32]


def _exponentials() -> NDArray[np.int64]:
    """Return 2^18 exp(-d / 16) for d from 0 to 255, computed in integer arithmetic."""
    values, value = [], 1 << 50
    for _ in range(256):
        values.append(value >> 32)
        value = value * 4034748382 >> 32  # exp(-1 / 16) in units of 2^-32.
    return np.array(values, np.int64)


EXPONENTIALS = _exponentials()


def surroundings(below: Float, positions: NDArray[np.int64], high: int, wide: int) -> Float:
    _, width, dim = below.shape
    limited = np.clip(below, -MAX_ACTIVATION, MAX_ACTIVATION)
    padded = np.pad(limited, ((high // 2, high // 2), (wide // 2, wide // 2), (0, 0)))
    row, column = positions // width, positions % width
    rows = row[:, None, None] + np.arange(high)[:, None]
    columns = column[:, None, None] + np.arange(wide)
    around: Float = padded[rows, columns].reshape(len(positions), high * wide, dim)
    return around


def add_known(
    x: Float,
    context_of_codes: Float,
    codes: NDArray[np.int32],
    stages: NDArray[np.int64],
    stage: int,
    positions: NDArray[np.int64],
    high: int,
    wide: int,
) -> None:
    height, width = codes.shape
    for place, contributions in enumerate(context_of_codes):
        row = positions // width + place // wide - high // 2
        column = positions % width + place % wide - wide // 2
        inside = np.flatnonzero((row >= 0) & (row < height) & (column >= 0) & (column < width))
        row, column = row[inside], column[inside]
        known = stages[row, column] < stage
        x[inside[known]] += contributions[codes[row[known], column[known]]]


def requantize(x: Float, bias: Float) -> None:
    x[:] = np.clip(((x + bias).astype(np.int64) + HALF) >> WEIGHT_BITS, 0, MAX_ACTIVATION)


def of_group(x: Float, weight: Float, bias: Float, group: NDArray[np.int64]) -> Float:
    logits = np.empty((len(x), weight.shape[1]), np.float32)
    for number in np.unique(group):
        rows = group == number
        logits[rows] = x[rows] @ weight[number].T + bias[number]
    return logits


def cumulative(logits: Float) -> NDArray[np.uint16]:
    count, symbols = logits.shape
    steps = (logits.astype(np.int64) + HALF) >> WEIGHT_BITS
    below = steps.max(axis=1, keepdims=True) - steps
    totals = np.cumsum(EXPONENTIALS[np.minimum(below, 255)], axis=1)
    shares = np.floor((totals * (TOTAL - symbols)).astype(np.float64) / totals[:, -1:].astype(np.float64))
    found = np.zeros((count, symbols + 1), np.uint16)
    found[:, 1:] = shares.astype(np.int64) + np.arange(1, symbols + 1)
    return found
