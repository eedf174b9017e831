"""rANS, an entropy coder in integers alone, so that every machine reads what another has written.

A state takes in one code after another, last code first; the more frequent the code, the less the state
grows. Frequencies sum to 2^14, the state stays in [2^24, 2^32) and hands over its lowest byte when it
would grow beyond. Coding starts from state 0, so that nothing is spent on an arbitrary start, and
decoding must end there, which tells a stream that does not belong to the frequencies.

A long stream is cut into rows as long as the square root of its codes, and each column, or lane, has a
state of its own, so that a processor can work on many at once. The first row takes what fills no whole one.

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
"""Codes from which on a stream has lanes: these lose 1 to 3 bytes each, here some 0.5 % of 10-bit codes."""

_LOW = 1 << 24
_STATE_BYTES = 4
_LIMIT_SHIFT = 32 - FREQUENCY_BITS
_FOREIGN = "codes were not coded with these frequencies: give the model that made them"
_UNBOUNDED_ROWS = 2
"""Rows at the start of coding after which no state of a lane can have outgrown 2^28: they hand no byte over."""

Integers = NDArray[np.integer[Any]]


def encode(codes: NDArray[np.int32], frequencies: Integers) -> bytes:
    """Encode codes, each below `len(frequencies)`.

    Args:
        codes: one dimension.
        frequencies: integers >= 1 that sum to 2^14, one a code.
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
        CorruptFileError: no `count` codes are encoded to this stream with these frequencies.
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
    """Encode codes on top of a stream without lanes: `pop` gives them, and then what was there before.

    One state goes through all of them, so that nothing is spent on where one ends and the next begins.
    """
    frequency, start = _intervals(frequencies)
    return encode_intervals(frequency[codes], start[codes], stream)


def pop(stream: bytes, frequencies: Integers, count: int) -> tuple[NDArray[np.int32], bytes]:
    """Decode the `count` codes on top of a stream.

    Returns:
        The codes, and the stream below them: empty after the first that were encoded.

    Raises:
        CorruptFileError: no codes are encoded to this stream.
    """
    states = np.zeros(1, np.int64)
    codes, position = _pop(_octets(_checked(stream)), states, *_lookup(frequencies), count, count)
    return codes, _minimal(int(states[0])) + stream[position:]


def encode_intervals(frequency: Integers, start: Integers, stream: bytes = b"") -> bytes:
    """Encode symbols, each by the frequency it has where it stands and the sum of those of the symbols below it.

    Args:
        stream: What they are encoded on top of.
    """
    states = np.array([int.from_bytes(stream[:_STATE_BYTES])], np.int64)
    handed_over = _push(frequency.astype(np.int64), start.astype(np.int64), states, len(frequency))
    return _minimal(int(states[0])) + handed_over.tobytes() + stream[_STATE_BYTES:]


class IntervalDecoder:
    """Decode symbols whose frequencies change from one to the next.

    Raises:
        CorruptFileError: where the stream proves not to be one of theirs.
    """

    def __init__(self, stream: bytes) -> None:
        self._data, self._position, self._state = _octets(_checked(stream)), 0, 0

    def take(self, cumulative: NDArray[np.uint16]) -> NDArray[np.int64]:
        """Decode one symbol a row of cumulative frequencies `(n, symbols + 1)`, each from 0 to 2^14."""
        symbols: NDArray[np.int64]
        symbols, self._position, self._state = _take(self._data, self._position, self._state, cumulative)
        return symbols

    def finish(self) -> None:
        """Check that the stream ends here."""
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
    """Return in how many rows of a stream with lanes states hand over bytes."""
    return -(-count // math.isqrt(count)) - _UNBOUNDED_ROWS


def _intervals(frequencies: Integers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    frequency = np.asarray(frequencies).astype(np.int64)
    if frequency.min() < 1 or frequency.sum() != TOTAL:
        raise ValueError(f"frequencies must be at least 1 and sum to {TOTAL}")
    return frequency, np.cumsum(frequency) - frequency


def _lookup(frequencies: Integers) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Return the code that each value of a state's low bits stands for, and the intervals of the codes."""
    frequency, start = _intervals(frequencies)
    return np.repeat(np.arange(frequency.size, dtype=np.int32), frequency), frequency, start


@compiled
def _push(
    frequency: NDArray[np.int64], start: NDArray[np.int64], states: NDArray[np.int64], bounded: int
) -> NDArray[np.uint8]:
    """Let the states, one a lane, take in symbols; give the bytes that they hand over, in the order of reading.

    Args:
        bounded: Rows in which they do. A lane cannot tell its end by that of the bytes, which all lanes share. So once
            the rows after these have filled the states from 0, all are raised by 2^24 and keep their bounds.
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
    """Take `count` codes out of the states, which read from the data.

    Returns:
        The codes, and how many bytes were read; -1 where there were not enough for a lane.
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
                    state = state << 8 | data[position]
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
            state = state << 8 | data[position]
            position += 1
        slot = state & (TOTAL - 1)
        symbol = 0
        for bound in range(1, width - 1):
            symbol += cumulative[row, bound] <= slot
        start, end = int(cumulative[row, symbol]), int(cumulative[row, symbol + 1])
        state = (end - start) * (state >> FREQUENCY_BITS) + slot - start
        symbols[row] = symbol
    return symbols, position, state
