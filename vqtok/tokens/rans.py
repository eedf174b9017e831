"""rANS, an entropy coder in integers alone, so that every machine reads what another has written.

A state takes in one code after another, last code first; the more frequent the code, the less the state
grows. Frequencies sum to 2^14, the state stays in [2^24, 2^32) and hands over its lowest byte when it
would grow beyond. Coding starts from state 0, so that nothing is spent on an arbitrary start, and
decoding must end there, which tells a stream that does not belong to the frequencies.

A long stream is cut into rows as long as the square root of its codes, and each column, or lane, has a
state of its own: numpy moves a whole row of states at once. The first row takes what fills no whole one.

Source: Duda 2013, "Asymmetric numeral systems", section 3; Giesen 2014, "Interleaved entropy coders".
"""

from __future__ import annotations

import bisect
import math
from array import array

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError

FREQUENCY_BITS = 14
TOTAL = 1 << FREQUENCY_BITS
LANES_FROM = 1 << 16
"""Codes from which on a stream has lanes: these lose 1 to 3 bytes each, here some 0.5 % of 10-bit codes."""

_LOW = 1 << 24
_STATE_BYTES = 4
_LIMIT_SHIFT = 32 - FREQUENCY_BITS
_FOREIGN = "codes were not coded with these frequencies: give the model that made them"
_UNBOUNDED_ROWS = 2
"""Rows at the start of coding after which no state can have outgrown 2^28: they need no byte handed over."""


def encode(codes: NDArray[np.int32], frequencies: NDArray[np.integer]) -> bytes:
    """Encode codes, each below `len(frequencies)`.

    Args:
        codes: one dimension.
        frequencies: integers >= 1 that sum to 2^14, one a code.
    """
    if codes.size >= LANES_FROM:
        return _encode_lanes(codes, *_intervals(frequencies))
    return push(b"", codes, frequencies)


def decode(data: bytes, frequencies: NDArray[np.integer], count: int) -> NDArray[np.int32]:
    """Decode the `count` codes of a stream.

    Raises:
        CorruptFileError: no `count` codes are encoded to this stream with these frequencies.
    """
    if count < LANES_FROM:
        codes, left = pop(data, frequencies, count)
        if left:
            raise CorruptFileError(_FOREIGN)
        return codes
    code, frequency, offset = _slots(frequencies)
    slots = _decode_lanes(data, frequency, offset, count)
    if slots is None:
        raise CorruptFileError(_FOREIGN)
    return code[slots]


def push(stream: bytes, codes: NDArray[np.int32], frequencies: NDArray[np.integer]) -> bytes:
    """Encode codes on top of a stream without lanes: `pop` gives them, and then what was there before.

    One state goes through all of them, so that nothing is spent on where one ends and the next begins.
    """
    frequency, start = _intervals(frequencies)
    return encode_intervals(frequency[codes], start[codes], stream)


def pop(stream: bytes, frequencies: NDArray[np.integer], count: int) -> tuple[NDArray[np.int32], bytes]:
    """Decode the `count` codes on top of a stream.

    Returns:
        The codes, and the stream below them: empty after the first that were encoded.

    Raises:
        CorruptFileError: no codes are encoded to this stream.
    """
    if stream.startswith(b"\0"):  # a state is never written with a leading zero
        raise CorruptFileError(_FOREIGN)
    code, frequency, offset = _slots(frequencies)
    frequency_at, offset_at = frequency.data, offset.data  # quicker to index than arrays
    state, position, end = 0, 0, len(stream)
    slots = array("H")
    for _ in range(count):
        while state < _LOW and position < end:
            state = state << 8 | stream[position]
            position += 1
        slot = state & (TOTAL - 1)
        slots.append(slot)
        state = frequency_at[slot] * (state >> FREQUENCY_BITS) + offset_at[slot]
    return code[np.array(slots)], _minimal(state) + stream[position:]


def _minimal(state: int) -> bytes:
    return state.to_bytes((state.bit_length() + 7) // 8)


def _intervals(frequencies: NDArray[np.integer]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    frequency = np.asarray(frequencies).astype(np.uint32)
    if frequency.min() < 1 or frequency.sum(dtype=np.uint64) != TOTAL:
        raise ValueError(f"frequencies must be at least 1 and sum to {TOTAL}")
    return frequency, np.cumsum(frequency, dtype=np.uint32) - frequency


def _slots(
    frequencies: NDArray[np.integer],
) -> tuple[NDArray[np.int32], NDArray[np.uint32], NDArray[np.uint32]]:
    """Return what a step looks up by the low bits of the state: code, its frequency, offset in its interval."""
    frequency, start = _intervals(frequencies)
    code = np.repeat(np.arange(frequency.size, dtype=np.int32), frequency)
    return code, frequency[code], np.arange(TOTAL, dtype=np.uint32) - start[code]


def encode_intervals(frequency: NDArray[np.integer], start: NDArray[np.integer], stream: bytes = b"") -> bytes:
    """Encode symbols, each by the frequency it has where it stands and the sum of those of the symbols below it.

    Args:
        stream: What they are encoded on top of.
    """
    state = int.from_bytes(stream[:_STATE_BYTES])
    backwards = bytearray()
    for f, s in zip(frequency[::-1].tolist(), start[::-1].tolist(), strict=True):
        limit = f << _LIMIT_SHIFT
        while state >= limit:
            backwards.append(state & 0xFF)
            state >>= 8
        state += state // f * (TOTAL - f) + s
    return _minimal(state) + bytes(reversed(backwards)) + stream[_STATE_BYTES:]


class IntervalDecoder:
    """Decode symbols whose frequencies change from one to the next.

    Raises:
        CorruptFileError: where the stream proves not to be one of theirs.
    """

    def __init__(self, data: bytes) -> None:
        if data.startswith(b"\0"):  # a state is never written with a leading zero
            raise CorruptFileError(_FOREIGN)
        self._data, self._state, self._position = data, 0, 0

    def take(self, cumulative: NDArray[np.uint16]) -> NDArray[np.int64]:
        """Decode one symbol a row of cumulative frequencies `(n, symbols + 1)`, each from 0 to 2^14."""
        count, width = cumulative.shape
        bounds = cumulative.ravel().data  # quicker to index than an array
        data, state, position, end = self._data, self._state, self._position, len(self._data)
        found = []
        for row in range(0, count * width, width):
            while state < _LOW and position < end:
                state = state << 8 | data[position]
                position += 1
            slot = state & (TOTAL - 1)
            above = bisect.bisect_right(bounds, slot, row, row + width)
            start = bounds[above - 1]
            found.append(above)
            state = (bounds[above] - start) * (state >> FREQUENCY_BITS) + slot - start
        self._state, self._position = state, position
        symbols: NDArray[np.int64] = np.array(found, np.int64) - (np.arange(count) * width + 1)
        return symbols

    def finish(self) -> None:
        """Check that the stream ends here."""
        if self._state or self._position < len(self._data):
            raise CorruptFileError(_FOREIGN)


def _rows(count: int) -> tuple[int, list[slice]]:
    """Return the number of lanes and where the codes of each row lie."""
    lanes = math.isqrt(count)
    first = (count - 1) % lanes + 1
    return lanes, [slice(0, first), *(slice(begin, begin + lanes) for begin in range(first, count, lanes))]


def _encode_lanes(codes: NDArray[np.int32], frequency: NDArray[np.uint32], start: NDArray[np.uint32]) -> bytes:
    """Encode to the states, 4 bytes each, and the bytes the lanes read, row by row and lane by lane.

    Lanes share one sequence of bytes, so none can tell its own end by the end of the bytes: once the first
    rows have filled the states from 0, every state is raised by 2^24 and keeps its bounds from there on.
    """
    lanes, rows = _rows(codes.size)
    states = np.zeros(lanes, np.uint32)
    backwards = []
    for index in reversed(range(len(rows))):
        row = codes[rows[index]]
        state, f = states[: row.size], frequency[row]
        if index < len(rows) - _UNBOUNDED_ROWS:
            limit = f << _LIMIT_SHIFT
            hands_two, hands_one = state >> 8 >= limit, state >= limit
            low_bytes = state.astype(">u2").view(np.uint8).reshape(-1, 2)
            backwards.append(low_bytes[np.stack([hands_two, hands_one], axis=1)])
            state >>= (hands_one.astype(np.uint32) + hands_two) << 3
        state += state // f * (TOTAL - f) + start[row]
        if index == len(rows) - _UNBOUNDED_ROWS:
            state += _LOW
    return states.astype("<u4").tobytes() + np.concatenate(backwards[::-1]).tobytes()


def _decode_lanes(
    data: bytes, frequency: NDArray[np.uint32], offset: NDArray[np.uint32], count: int
) -> NDArray[np.uint16] | None:
    lanes, rows = _rows(count)
    if len(data) < 4 * lanes:
        return None
    states = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
    if states.min() < _LOW:
        return None
    padded = np.frombuffer(data[4 * lanes :] + bytes(2), np.uint8).astype(np.uint16)
    pairs = padded[:-1] << 8 | padded[1:]
    slots = np.empty(count, np.uint16)
    position, end = 0, len(data) - 4 * lanes
    for index, row in enumerate(rows):
        if index == len(rows) - _UNBOUNDED_ROWS:
            states -= _LOW
        state = states[: row.stop - row.start]
        slot = slots[row] = state & (TOTAL - 1)
        state >>= FREQUENCY_BITS
        state *= frequency[slot]
        state += offset[slot]
        if index < len(rows) - _UNBOUNDED_ROWS:
            num_bytes = (state < _LOW).astype(np.uint32) + (state < _LOW >> 8)
            after = position + np.cumsum(num_bytes, dtype=np.intp)
            if after[-1] > end:
                return None
            state <<= num_bytes << 3
            state |= pairs[after - num_bytes] >> (16 - (num_bytes << 3))
            position = after[-1]
    return None if states.any() or position < end else slots
