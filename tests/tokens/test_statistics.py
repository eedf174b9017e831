"""vqtok.tokens.statistics"""

import dataclasses
import math

import numpy as np
import pytest

from vqtok.errors import UsageError, WrongModelError
from vqtok.tokens.statistics import MAX_COUNTED_SIZE, CodeStatistics
from vqtok.tokens.tokens import Tokens

TOKENS = Tokens(
    np.array([[0, 1, 2, 3], [1, 1, 1, 1]]),
    codebook_sizes=(8, 4),
    modality="audio",
    size=(1280, 16_000, 1),
    stride=320,
    model=b"modelabc",
)


def test_adds_up_files():
    statistics = CodeStatistics()
    statistics.add(TOKENS)
    assert statistics.usage == [0.5, 0.25]
    assert statistics.entropy_bits == [2.0, 0.0]
    assert statistics.perplexity == [4.0, 1.0]
    assert statistics.dead_codes == [4, 3]
    statistics.add(dataclasses.replace(TOKENS, codes=np.array([[0, 0], [2, 1]])))
    assert [count.tolist() for count in statistics.counts] == [[3, 1, 1, 1, 0, 0, 0, 0], [0, 5, 1, 0]]
    assert (statistics.num_files, statistics.num_tokens) == (2, 12)
    assert statistics.entropy_bits[0] == pytest.approx(0.5 + 0.5 * math.log2(6))
    assert statistics.perplexity[0] == pytest.approx(math.exp(statistics.entropy_bits[0] * math.log(2)))
    assert statistics.dead_codes == [4, 2]


def test_nothing_added():
    statistics = CodeStatistics()
    assert (statistics.usage, statistics.perplexity, statistics.num_files) == ([], [], 0)


def test_unlike_tokens_are_refused():
    statistics = CodeStatistics()
    statistics.add(TOKENS)
    with pytest.raises(WrongModelError, match=b"otherabc".hex()):
        statistics.add(dataclasses.replace(TOKENS, model=b"otherabc"))
    with pytest.raises(UsageError, match="codebooks of sizes"):
        statistics.add(TOKENS.prefix(1))
    with pytest.raises(UsageError, match="codebooks of sizes"):
        statistics.add(dataclasses.replace(TOKENS, codebook_sizes=(8, 5)))
    assert statistics.num_files == 1


def test_codebooks_too_large_to_count():
    with pytest.raises(UsageError, match="at most"):
        CodeStatistics().add(dataclasses.replace(TOKENS, codebook_sizes=(8, MAX_COUNTED_SIZE + 1)))
