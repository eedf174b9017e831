"""rANS, an entropy coder in integer arithmetic, so that every machine can read what another has written.

A state absorbs one code after another, last code first; the more frequent the code, the less the state
grows. Frequencies sum to 2^14. The state stays in [2^24, 2^32) and emits its lowest byte before it would
grow beyond. Encoding starts at state 0, which spends nothing on an arbitrary start, and decoding must end
there, which detects a stream that was made with other frequencies.

A long stream is cut into rows whose length is the square root of the number of codes. Each column, called
a lane, has its own state, so that a processor can work on many at once. The first row may be shorter.

Source: Duda 2013, "Asymmetric numeral systems", section 3; Giesen 2014, "Interleaved entropy coders".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError
from vqtok.tokens.coding.compiled import compiled

FREQUENCY_BITS = 14
TOTAL = 1 << FREQUENCY_BITS
LANES_FROM = 1 << 16
"""Streams of at least this many codes have lanes, which cost 1 to 3 bytes each: 0.5 % of 10-bit codes here."""

_LOW = 1 << 24
_STATE_BYTES = 4
_LIMIT_SHIFT = 32 - FREQUENCY_BITS
_FOREIGN = "codes were not coded with these frequencies: give the model that made them"
_UNBOUNDED_ROWS = 2
"""Rows at the start of encoding in which no lane emits a byte: no state can outgrow 2^28 yet."""

Integers = NDArray[np.integer[Any]]


def encode(codes: NDArray[np.int32], frequencies: Integers) -> bytes:
    """Encode codes, each below `len(frequencies)`.

    Args:
        codes: One dimension.
        frequencies: Integers >= 1 that sum to 2^14, one per code.
    """
    if codes.size < LANES_FROM:
        return push(b"", codes, frequencies)
    frequency, start = _intervals(frequencies)
    states = np.zeros(math.isqrt(codes.size), np.int64)
    handed_over = _push(frequency[codes], start[codes], states, _bounded_rows(codes.size))
    return states.astype("<u4").tobytes() + handed_over.tobytes()


def decode(data: bytes, frequencies: Integers, count: int) -> NDArray[np.int32]:
    """Decode the `count` codes of a stream.

    Raises:
        CorruptFileError: The stream is not that of `count` codes with these frequencies.
    """
    if count < LANES_FROM:
        codes, left = pop(data, frequencies, count)
        if left:
            raise CorruptFileError(_FOREIGN)
        return codes
    head = _STATE_BYTES * math.isqrt(count)
    if len(data) < head:
        raise CorruptFileError(_FOREIGN)
    states = np.frombuffer(data[:head], "<u4").astype(np.int64)
    if states.min() < _LOW:
        raise CorruptFileError(_FOREIGN)
    codes, position = _pop(_octets(data[head:]), states, *_lookup(frequencies), count, _bounded_rows(count))
    if states.any() or position != len(data) - head:
        raise CorruptFileError(_FOREIGN)
    return codes


def push(stream: bytes, codes: NDArray[np.int32], frequencies: Integers) -> bytes:
    """Encode codes on top of a stream without lanes; `pop` returns them and the stream before.

    A single state runs through all of them, so that the boundaries between them cost nothing.
    """
    frequency, start = _intervals(frequencies)
    return encode_intervals(frequency[codes], start[codes], stream)


def pop(stream: bytes, frequencies: Integers, count: int) -> tuple[NDArray[np.int32], bytes]:
    """Decode the `count` codes on top of a stream.

    Returns:
        The codes, and the stream below them, which is empty after the codes that were encoded first.

    Raises:
        CorruptFileError: The stream was not made with these frequencies.
    """
    states = np.zeros(1, np.int64)
    codes, position = _pop(_octets(_checked(stream)), states, *_lookup(frequencies), count, count)
    return codes, _minimal(int(states[0])) + stream[position:]


def encode_intervals(frequency: Integers, start: Integers, stream: bytes = b"") -> bytes:
    """Encode symbols, each by its own frequency and the sum of the frequencies of the symbols below it.

    Args:
        stream: The stream to encode them on top of.
    """
    states = np.array([int.from_bytes(stream[:_STATE_BYTES])], np.int64)
    handed_over = _push(frequency.astype(np.int64), start.astype(np.int64), states, len(frequency))
    return _minimal(int(states[0])) + handed_over.tobytes() + stream[_STATE_BYTES:]


class IntervalDecoder:
    """Decode symbols whose frequencies change from one to the next.

    Raises:
        CorruptFileError: The stream was not made with these frequencies.
    """

    def __init__(self, stream: bytes) -> None:
        self._data, self._position, self._state = _octets(_checked(stream)), 0, 0

    def take(self, cumulative: NDArray[np.uint16]) -> NDArray[np.int64]:
        """Decode one symbol per row of cumulative frequencies `(n, symbols + 1)`, each from 0 to 2^14."""
        symbols: NDArray[np.int64]
        symbols, self._position, self._state = _take(self._data, self._position, self._state, cumulative)
        return symbols

    def finish(self) -> None:
        """Raise if the stream does not end here."""
        if self._state or self._position < len(self._data):
            raise CorruptFileError(_FOREIGN)


def _checked(stream: bytes) -> bytes:
    if stream.startswith(b"\0"):  # a state is never written with a leading zero
        raise CorruptFileError(_FOREIGN)
    return stream


def _octets(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def _minimal(state: int) -> bytes:
    return state.to_bytes((state.bit_length() + 7) // 8)


def _bounded_rows(count: int) -> int:
    """Return the number of rows of a stream with lanes in which states may emit bytes."""
    return -(-count // math.isqrt(count)) - _UNBOUNDED_ROWS


def _intervals(frequencies: Integers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    frequency = np.asarray(frequencies).astype(np.int64)
    if frequency.min() < 1 or frequency.sum() != TOTAL:
        raise ValueError(f"frequencies must be at least 1 and sum to {TOTAL}")
    return frequency, np.cumsum(frequency) - frequency


def _lookup(frequencies: Integers) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Return the code of each value of a state's low bits, and the intervals of the codes."""
    frequency, start = _intervals(frequencies)
    return np.repeat(np.arange(frequency.size, dtype=np.int32), frequency), frequency, start


@compiled
def _push(
    frequency: NDArray[np.int64], start: NDArray[np.int64], states: NDArray[np.int64], bounded: int
) -> NDArray[np.uint8]:
    """Absorb symbols into the states, one per lane; return the bytes that these emit, in the order of reading.

    Args:
        bounded: Rows in which states emit bytes. Lanes share the bytes, so that a lane cannot detect its own end by
            theirs. Therefore the first rows only fill the states from 0, then all states are raised by 2^24 and
            stay within their bounds.
    """
    count, lanes = len(frequency), len(states)
    rows = -(-count // lanes)
    handed_over = np.empty(2 * count, np.uint8)
    place = 2 * count
    for row in range(rows - 1, -1, -1):
        end = count - (rows - 1 - row) * lanes
        begin = max(0, end - lanes)
        for index in range(end - 1, begin - 1, -1):
            f, state = frequency[index], states[index - begin]
            if row < bounded:
                while state >= f << _LIMIT_SHIFT:
                    place -= 1
                    handed_over[place] = state & 0xFF
                    state >>= 8
            states[index - begin] = state + state // f * (TOTAL - f) + start[index]
        if row == bounded:
            states += _LOW
    return handed_over[place:]


@compiled
def _pop(
    data: NDArray[np.uint8],
    states: NDArray[np.int64],
    code_at: NDArray[np.int32],
    frequency: NDArray[np.int64],
    start: NDArray[np.int64],
    count: int,
    bounded: int,
) -> tuple[NDArray[np.int32], int]:
    """Extract `count` codes from the states, which read from the data.

    Returns:
        The codes, and the number of bytes that were read; -1 if there were not enough for a lane.
    """
    lanes = len(states)
    rows = -(-count // lanes)
    codes = np.empty(count, np.int32)
    position = 0
    for row in range(rows):
        end = count - (rows - 1 - row) * lanes
        begin = max(0, end - lanes)
        for index in range(begin, end):
            state = states[index - begin]
            if row <= bounded:
                while state < _LOW and position < len(data):
                    state = state << 8 | int(data[position])
                    position += 1
            if row == bounded:
                if state < _LOW:
                    return codes, -1
                state -= _LOW
            slot = state & (TOTAL - 1)
            code = code_at[slot]
            codes[index] = code
            states[index - begin] = frequency[code] * (state >> FREQUENCY_BITS) + slot - start[code]
    return codes, position


@compiled
def _take(
    data: NDArray[np.uint8], position: int, state: int, cumulative: NDArray[np.uint16]
) -> tuple[NDArray[np.int64], int, int]:
    count, width = cumulative.shape
    symbols = np.empty(count, np.int64)
    for row in range(count):
        while state < _LOW and position < len(data):
            state = state << 8 | int(data[position])
            position += 1
        slot = state & (TOTAL - 1)
        symbol = 0
        for bound in range(1, width - 1):
            symbol += cumulative[row, bound] <= slot
        start, end = int(cumulative[row, symbol]), int(cumulative[row, symbol + 1])
        state = (end - start) * (state >> FREQUENCY_BITS) + slot - start
        symbols[row] = symbol
    return symbols, position, state
