"""vqtok.tokens.coding.rans"""

import contextlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtok.errors import CorruptFileError
from vqtok.tokens.coding import rans
from vqtok.tokens.coding.frequencies import frequencies
from vqtok.tokens.coding.rans import LANES_FROM, TOTAL, decode, encode, pop, push


def table_and_codes(codebook_size: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A skewed table, and codes drawn from it."""
    rng = np.random.default_rng(seed)
    table = frequencies((1e6 * rng.dirichlet(np.full(codebook_size, 0.7))).astype(np.int64))
    codes = rng.choice(codebook_size, count, p=table / TOTAL).astype(np.int32)
    return table, codes


def ideal_bytes(codes: np.ndarray, table: np.ndarray) -> float:
    return float(-np.log2(table[codes] / TOTAL).sum() / 8)


def plain_encode(codes: list[int], table: list[int]) -> bytes:
    """The coder in plain Python, with lanes and without, one code at a time."""
    starts = [0, *itertools.accumulate(table)]
    lanes = math.isqrt(len(codes)) if len(codes) >= LANES_FROM else 1
    num_rows = -(-len(codes) // lanes)
    lane_offset = lanes * num_rows - len(codes)  # codes missing from the first row
    states, backwards = [0] * lanes, bytearray()
    for row in reversed(range(num_rows)):
        columns = range(lanes) if row else range(lanes - lane_offset)
        for lane in reversed(columns):
            code = codes[row * lanes + lane - (lane_offset if row else 0)]
            if lanes == 1 or row < num_rows - 2:
                while states[lane] >= table[code] << 18:
                    backwards.append(states[lane] & 255)
                    states[lane] >>= 8
            quotient, remainder = divmod(states[lane], table[code])
            states[lane] = (quotient << 14) + starts[code] + remainder
        if lanes > 1 and row == num_rows - 2:
            states = [state + 2**24 for state in states]
    if lanes == 1:
        return states[0].to_bytes(4).lstrip(b"\0") + bytes(reversed(backwards))
    return b"".join(state.to_bytes(4, "little") for state in states) + bytes(reversed(backwards))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(2, 300), st.integers(0, 40)), max_size=5))
def test_streams_are_stacks(layers):
    drawn = [table_and_codes(size, count, seed) for seed, (size, count) in enumerate(layers)]
    streams = [b""]
    for table, codes in drawn:
        streams.append(push(streams[-1], codes, table))
    # Codes at the bottom, where the state is 0, may take up to 14 bits less than above others.
    assert len(streams[-1]) <= sum(len(encode(codes, table)) + 2 for table, codes in drawn)
    stream = streams.pop()
    for table, codes in reversed(drawn):
        found, stream = pop(stream, table, codes.size)
        assert np.array_equal(found, codes)
        assert stream == streams.pop()


@given(st.data(), st.integers(2, 300))
def test_round_trip_of_any_codes_and_table(data, codebook_size):
    counts = data.draw(st.lists(st.integers(0, 10**6), min_size=codebook_size, max_size=codebook_size))
    codes = np.array(data.draw(st.lists(st.integers(0, codebook_size - 1), max_size=200)), np.int32)
    table = frequencies(np.array(counts))
    assert np.array_equal(decode(encode(codes, table), table, codes.size), codes)


@pytest.mark.parametrize("count", [1, 2, 3, 1000, LANES_FROM - 1, LANES_FROM, LANES_FROM + 1, 70_000, 257**2])
@pytest.mark.parametrize("codebook_size", [2, 1000, TOTAL])
def test_equals_plain_reference_and_decodes(codebook_size, count):
    table, codes = table_and_codes(codebook_size, count)
    data = encode(codes, table)
    assert data == plain_encode(codes.tolist(), table.tolist())
    decoded = decode(data, table, count)
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, codes)


@pytest.mark.parametrize("count", [3000, LANES_FROM + 5])
def test_most_unlike_frequencies(count):
    table = np.array([TOTAL - 1, 1])
    for codes in (np.zeros(count, np.int32), np.ones(count, np.int32), np.arange(count, dtype=np.int32) % 2):
        assert np.array_equal(decode(encode(codes, table), table, count), codes)


@pytest.mark.parametrize(("count", "slack"), [(256, 3), (10_000, 4), (LANES_FROM - 1, 4)])
@pytest.mark.parametrize("codebook_size", [16, 1024, 8192])
def test_length_is_close_to_the_ideal(codebook_size, count, slack):
    table, codes = table_and_codes(codebook_size, count)
    assert len(encode(codes, table)) <= 1.0005 * ideal_bytes(codes, table) + slack


@pytest.mark.parametrize("codebook_size", [1024, 8192])
@pytest.mark.parametrize("count", [LANES_FROM, 300_000])
def test_lanes_lose_little(codebook_size, count):
    table, codes = table_and_codes(codebook_size, count)
    assert len(encode(codes, table)) <= 1.005 * ideal_bytes(codes, table)


@pytest.mark.parametrize("count", [1, 50, 5000])
def test_no_longer_than_constriction(count):
    table, codes = table_and_codes(1024, count)
    constriction = pytest.importorskip("constriction")  # There are no wheels for Linux on Arm.
    model = constriction.stream.model.Categorical(table / TOTAL, perfect=False)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(codes, model)
    assert len(encode(codes, table)) <= 4 * len(coder.get_compressed())
    assert len(encode(codes, table)) >= 4 * len(coder.get_compressed()) - 8


@pytest.mark.parametrize("count", [200, LANES_FROM])
def test_streams_that_end_elsewhere_are_refused(count):
    table, codes = table_and_codes(64, count)
    data = encode(codes, table)
    other_table, _ = table_and_codes(64, 1, seed=1)
    for damaged, used_table, used_count in [
        (data[:-1], table, count),
        (data[1:], table, count),
        (data + b"\0", table, count),
        (b"\0" + data, table, count),
        (data, table, count - 2),
        (data, other_table, count),
        (bytes(len(data)), table, count),
    ]:
        with pytest.raises(CorruptFileError, match="these frequencies"):
            decode(damaged, used_table, used_count)


def test_only_what_encode_writes_is_accepted():
    table = np.array([9000, 7000, 384])
    accepted = {}
    for data in (b"", b"\0", b"\0\0", *(number.to_bytes(2) for number in range(30_000))):
        with contextlib.suppress(CorruptFileError):
            accepted[data] = decode(data, table, 2)
    assert [int.from_bytes(data) for data in accepted] == [0, 9000, 16_000, TOTAL, 23_384, 27_384]
    assert [codes.tolist() for codes in accepted.values()] == [[0, 0], [1, 0], [2, 0], [0, 1], [0, 2], [1, 1]]
    for data, codes in accepted.items():
        assert encode(codes, table) == data


@pytest.mark.parametrize("table", [[TOTAL, 0], [1, 1], [TOTAL, 1], [-1, TOTAL + 1]])
def test_frequencies_must_sum_to_the_total(table):
    with pytest.raises(ValueError, match="frequencies"):
        rans.encode(np.zeros(1, np.int32), np.array(table))
