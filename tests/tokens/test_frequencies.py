"""vqtok.tokens.coding.frequencies"""

import heapq
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqtok.errors import CorruptFileError
from vqtok.tokens.coding.frequencies import frequencies
from vqtok.tokens.coding.packing import pack, unpack
from vqtok.tokens.coding.rans import TOTAL

codebook_sizes = st.one_of(st.integers(2, 40), st.integers(2, 2**31), st.sampled_from([2**14, 2**31 - 1, 2**31]))


@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=400))
def test_frequencies_sum_to_the_total_and_keep_the_order(counts):
    table = frequencies(np.array(counts))
    assert table.dtype == np.uint16
    assert table.min() >= 1
    assert table.sum() == TOTAL
    by_count = np.argsort(counts, kind="stable")
    assert (np.diff(table[by_count].astype(int))[np.diff(np.array(counts)[by_count]) > 0] >= 0).all()


@pytest.mark.parametrize(
    ("counts", "table"),
    [
        ([0, 0], [8192, 8192]),
        ([0, 0, 0], [5462, 5461, 5461]),  # the lowest code on a tie
        ([3, 1], [11469, 4915]),  # 7 : 3
        ([10**6, 0, 0], [16382, 1, 1]),
    ],
)
def test_known_frequencies(counts, table):
    assert frequencies(np.array(counts)).tolist() == table


@pytest.mark.parametrize("codebook_size", [2, 100, 2000, 8192])
def test_frequencies_cost_next_to_the_fewest_bits(codebook_size):
    counts = np.random.default_rng(0).integers(0, 200, codebook_size) ** 3
    weights = 2 * counts + 1
    fewest = np.ones(codebook_size, np.int64)
    gains = [(-weight * math.log(2), code) for code, weight in enumerate(weights)]
    heapq.heapify(gains)
    for _ in range(TOTAL - codebook_size):
        code = gains[0][1]
        fewest[code] += 1
        heapq.heapreplace(gains, (-weights[code] * math.log1p(1 / fewest[code]), code))
    cost = -(weights @ np.log2(frequencies(counts) / TOTAL))
    assert cost <= 1.0001 * -(weights @ np.log2(fewest / TOTAL))


def test_largest_table_and_beyond():
    assert frequencies(np.arange(TOTAL)).tolist() == [1] * TOTAL
    assert frequencies(np.zeros(TOTAL + 1, np.int64)) is None


@pytest.mark.parametrize("counts", [[5], [1, -1], [0.5, 0.5], [[1, 2], [3, 4]]])
def test_counts_that_make_no_sense(counts):
    with pytest.raises(ValueError, match="counts"):
        frequencies(np.array(counts))


@given(st.data(), codebook_sizes)
def test_pack_round_trip(data, codebook_size):
    codes = np.array(data.draw(st.lists(st.integers(0, codebook_size - 1), max_size=40)), np.int32)
    packed = pack(codes, codebook_size)
    assert len(packed) == math.ceil(codes.size * math.ceil(math.log2(codebook_size)) / 8)
    unpacked = unpack(packed, codebook_size, codes.size)
    assert unpacked.dtype == np.int32
    assert np.array_equal(unpacked, codes)


def test_pack_is_little_endian():
    codes = [5, 1000, 0, 1023, 1]
    packed = pack(np.array(codes, np.int32), 1024)
    assert int.from_bytes(packed, "little") == sum(code << 10 * index for index, code in enumerate(codes))


@pytest.mark.parametrize(
    ("data", "codebook_size", "count"),
    [
        (b"\x00", 10, 3),  # too short
        (b"\x00\x00", 10, 2),  # too long
        (b"\x0a", 10, 2),  # code 10
        (b"\x10", 10, 1),  # a bit behind the last code
        (b"\xff\xff\xff\xff", 2**31, 1),
    ],
)
def test_unpack_refuses_damage(data, codebook_size, count):
    with pytest.raises(CorruptFileError, match="damaged codes"):
        unpack(data, codebook_size, count)
