"""Change the sample rate of a sound."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vqtok.errors import MediaError

# The Kaiser window's design rule: 64 zero crossings a side and beta 10 take a transition band from 0.9 to 1.0
# of the lower Nyquist frequency, and leave 100 dB in the stop band.
_ZERO_CROSSINGS = 64
_BETA = 10.0
_CUTOFF = 0.95

_ROWS = 64  # outputs a matrix product yields per block: enough to fill BLAS, few enough to keep the band narrow
_CHUNK_VALUES = 1 << 18  # input values gathered at a time: 1 MB, which stays in cache
_MAX_RATIO = 256


def resample(
    x: NDArray[np.float32], from_rate: int, to_rate: int, num_samples: int | None = None
) -> NDArray[np.float32]:
    """Resample by a zero-phase windowed sinc, evaluated exactly for each phase of the rational ratio.

    Args:
        x: silence is assumed on both sides of it.
        num_samples: length of the result; by default `samples * to_rate / from_rate`, rounded up.

    Raises:
        MediaError: rates that are not positive or more than 256 times apart.

    Shapes:
        x: `(channels, samples)`; returns `(channels, num_samples)`.

    Source:
        J. O. Smith, "Digital Audio Resampling Home Page" (the sinc and its Kaiser window);
        Crochiere and Rabiner, "Multirate Digital Signal Processing", 1983, section 3.3 (polyphase form).
    """
    if min(from_rate, to_rate) < 1 or max(from_rate, to_rate) > _MAX_RATIO * min(from_rate, to_rate):
        raise MediaError(f"cannot resample from {from_rate} Hz to {to_rate} Hz: too far apart")
    channels, samples = x.shape
    if num_samples is None:
        num_samples = -(-samples * to_rate // from_rate)
    if from_rate == to_rate:
        kept = x[:, :num_samples].astype(np.float32)
        return np.pad(kept, ((0, 0), (0, num_samples - kept.shape[1])))

    up, down = to_rate // math.gcd(from_rate, to_rate), from_rate // math.gcd(from_rate, to_rate)
    periods = -(-_ROWS // up)  # where there are few phases, several periods of them make one block
    up, down = up * periods, down * periods
    blocks = -(-num_samples // up)
    phases = min(up, num_samples)
    reach = _reach(up, down)
    padded = np.zeros((channels, blocks * down + 2 * reach + 1), np.float32)
    used = min(samples, padded.shape[1] - reach)
    padded[:, reach : reach + used] = x[:, :used]

    out = np.empty((channels, blocks, phases), np.float32)
    for first in range(0, phases, _ROWS):
        last = min(first + _ROWS, phases)
        weights = _weights(up, down, first, last)
        begin = first * down // up + 1
        frames = sliding_window_view(padded[:, begin:], len(weights), axis=1)[:, ::down]
        step = max(1, _CHUNK_VALUES // (channels * len(weights)))
        for block in range(0, blocks, step):
            chunk = np.ascontiguousarray(frames[:, block : min(block + step, blocks)])
            out[:, block : block + step, first:last] = chunk @ weights
    return np.ascontiguousarray(out.reshape(channels, -1)[:, :num_samples])


def _reach(up: int, down: int) -> int:
    """Return how many input samples on each side an output looks at."""
    return -(-_ZERO_CROSSINGS * max(up, down) // up)


@lru_cache(maxsize=64)
def _weights(up: int, down: int, first: int, last: int) -> NDArray[np.float32]:
    """Compute the banded matrix that takes a frame of input to the outputs `first` to `last` of a block.

    Row 0 stands for input sample `first * down // up + 1 - reach` of the block.
    """
    reach = _reach(up, down)
    begin = first * down // up + 1 - reach
    end = (last - 1) * down // up + reach
    position = np.arange(first, last) * down - np.arange(begin, end + 1)[:, None] * up  # in 1 / up samples: exact
    time = position / max(up, down)  # in sample periods of the lower rate
    inside = np.abs(time) < _ZERO_CROSSINGS
    window = np.zeros(time.shape)
    window[inside] = np.i0(_BETA * np.sqrt(1 - (time[inside] / _ZERO_CROSSINGS) ** 2))
    weights: NDArray[np.float64] = np.sinc(_CUTOFF * time) * window
    weights /= weights.sum(axis=0)  # each phase passes a constant unchanged
    return weights.astype(np.float32)
