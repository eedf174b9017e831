"""Change the sample rate of audio."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vqtok.errors import MediaError

# By the design rule of the Kaiser window, 64 zero crossings per side and a beta of 10 result in a transition band from
# 0.9 to 1.0 of the lower Nyquist frequency and a stop band of -100 dB.
_ZERO_CROSSINGS = 64
_BETA = 10.0
_CUTOFF = 0.95

_ROWS = 64  # outputs per block of a matrix product: enough for BLAS, and few enough for a narrow band
_CHUNK_VALUES = 1 << 18  # input values of a matrix product: 1 MB, which fits into the cache
_MAX_RATIO = 256


class Resampler:
    """Changes the sample rate of audio that arrives in pieces, with a zero-phase windowed sinc.

    The sinc is evaluated exactly for each phase of the rational ratio. The result does not depend on the lengths of the
    pieces, not even in the last bit: matrix products round differently for other shapes and positions, so that all have
    the same shape and begin at fixed times.

    Raises:
        MediaError: A rate is not positive, or they differ by a factor of more than 256.

    Source:
        J. O. Smith, "Digital Audio Resampling Home Page" (the sinc and its Kaiser window);
        Crochiere and Rabiner, "Multirate Digital Signal Processing", 1983, section 3.3 (polyphase form).
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int) -> None:
        if min(from_rate, to_rate) < 1 or max(from_rate, to_rate) > _MAX_RATIO * min(from_rate, to_rate):
            raise MediaError(f"cannot resample from {from_rate} Hz to {to_rate} Hz: they are too far apart")
        self._rates = from_rate, to_rate
        up, down = to_rate // math.gcd(from_rate, to_rate), from_rate // math.gcd(from_rate, to_rate)
        periods = -(-_ROWS // up)  # With few phases, a block consists of several periods.
        self._up, self._down = up * periods, down * periods
        self._reach = _reach(up, down)
        self._blocks = max(1, _CHUNK_VALUES // (self._down + 2 * self._reach))  # per matrix product
        self.taken = self._given = 0  # samples
        self._held = np.zeros((channels, self._reach), np.float32)  # the input from where the next output needs it

    def stream(
        self, pieces: Iterable[NDArray[np.float32]], num_samples: int | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the result for all pieces, as `push` and `finish` return it."""
        for piece in pieces:
            yield self.push(piece)
        yield self.finish(num_samples)

    def push(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Add the next piece `(channels, samples)` and return the output that is complete, which may be empty."""
        self.taken += x.shape[1]
        if self._rates[0] == self._rates[1]:
            self._given = self.taken
            return x
        self._held = np.concatenate([self._held, x], axis=1)
        out = [self._held[:, :0]]
        while self._held.shape[1] >= self._needed:
            out.append(self._convert(self._up * self._blocks))
        return np.concatenate(out, axis=1)

    def finish(self, num_samples: int | None = None) -> NDArray[np.float32]:
        """Return the remaining output, with silence after the end of the input.

        Args:
            num_samples: Length of the whole result; by default `samples * to_rate / from_rate`, rounded up.
        """
        from_rate, to_rate = self._rates
        if num_samples is None:
            num_samples = -(-self.taken * to_rate // from_rate)
        channels = len(self._held)
        if from_rate == to_rate:
            return np.zeros((channels, max(0, num_samples - self._given)), np.float32)
        out = [self._held[:, :0]]
        while (missing := num_samples - self._given) > 0:
            silence = np.zeros((channels, max(0, self._needed - self._held.shape[1])), np.float32)
            self._held = np.concatenate([self._held, silence], axis=1)
            out.append(self._convert(missing))
        return np.concatenate(out, axis=1)

    @property
    def _needed(self) -> int:
        """The number of input samples that one matrix product needs."""
        return self._blocks * self._down + 2 * self._reach + 1

    def _convert(self, wanted: int) -> NDArray[np.float32]:
        """Return the next outputs, at most those of one matrix product, and drop the input that is no longer needed."""
        out = np.zeros((len(self._held), self._blocks, self._up), np.float32)
        for first in range(0, min(self._up, wanted), _ROWS):
            last = min(first + _ROWS, self._up)
            weights = _weights(self._up, self._down, first, last)
            begin = first * self._down // self._up + 1
            frames = sliding_window_view(self._held[:, begin : self._needed], len(weights), axis=1)[:, :: self._down]
            for plane, channel in zip(out, frames, strict=True):
                plane[:, first:last] = np.ascontiguousarray(channel[: self._blocks]) @ weights
        self._held = self._held[:, self._blocks * self._down :]
        converted = out.reshape(len(out), -1)[:, :wanted]
        self._given += converted.shape[1]
        return converted


def resample(
    x: NDArray[np.float32], from_rate: int, to_rate: int, num_samples: int | None = None
) -> NDArray[np.float32]:
    """Resample audio in memory with a `Resampler`.

    Args:
        x: The audio; silence is assumed on both sides of it.
        num_samples: Length of the result; by default `samples * to_rate / from_rate`, rounded up.

    Raises:
        MediaError: A rate is not positive, or they differ by a factor of more than 256.

    Shapes:
        x: `(channels, samples)`; returns `(channels, num_samples)`.
    """
    resampler = Resampler(from_rate, to_rate, len(x))
    y = np.concatenate(list(resampler.stream([x.astype(np.float32, copy=False)], num_samples)), axis=1)
    return np.ascontiguousarray(y[:, :num_samples])


def _reach(up: int, down: int) -> int:
    """Return the number of input samples on each side that an output depends on."""
    return -(-_ZERO_CROSSINGS * max(up, down) // up)


@lru_cache(maxsize=1024)
def _weights(up: int, down: int, first: int, last: int) -> NDArray[np.float32]:
    """Return the banded matrix that maps a frame of input to the outputs `first` up to `last` of a block.

    Row 0 belongs to input sample `first * down // up + 1 - reach` of the block.
    """
    reach = _reach(up, down)
    begin = first * down // up + 1 - reach
    end = (last - 1) * down // up + reach
    position = (
        np.arange(first, last) * down - np.arange(begin, end + 1)[:, None] * up
    )  # in units of 1 / up samples, exact
    time = position / max(up, down)  # in sample periods of the lower rate
    inside = np.abs(time) < _ZERO_CROSSINGS
    window = np.zeros(time.shape)
    window[inside] = np.i0(_BETA * np.sqrt(1 - (time[inside] / _ZERO_CROSSINGS) ** 2))
    weights: NDArray[np.float64] = np.sinc(_CUTOFF * time) * window
    weights /= weights.sum(axis=0)  # Each phase leaves a constant unchanged.
    return weights.astype(np.float32)
