"""Statistics of codebook usage over many files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import UsageError, WrongModelError
from vqtok.tokens.tokens import Tokens

MAX_COUNTED_SIZE = 2**24


class CodeStatistics:
    """Histograms of the codes of many files of one model. Every list has one entry per codebook."""

    def __init__(self) -> None:
        self.counts: list[NDArray[np.int64]] = []
        """The number of occurrences of each code of each codebook."""
        self.num_files = 0
        self.num_tokens = 0
        self._model = b""

    def add(self, tokens: Tokens) -> None:
        """Count the codes of another file.

        Raises:
            WrongModelError: Another model made these tokens than those before.
            UsageError: The codebooks differ from those before, or are too large to count.
        """
        sizes = list(tokens.codebook_sizes)
        if not self.num_files:
            if max(sizes) > MAX_COUNTED_SIZE:
                raise UsageError(f"cannot count codes of a codebook of {max(sizes)}: at most {MAX_COUNTED_SIZE}")
            self._model = tokens.model
            self.counts = [np.zeros(size, np.int64) for size in sizes]
        if tokens.model != self._model:
            models = f"{self._model.hex()} and {tokens.model.hex()}"
            raise WrongModelError(f"cannot combine tokens of models {models}; give tokens of one model")
        known = [count.size for count in self.counts]
        if sizes != known:
            raise UsageError(f"cannot combine codebooks of sizes {known} and {sizes}; give tokens with equal codebooks")
        for count, plane in zip(self.counts, tokens.codes, strict=True):
            count += np.bincount(plane.ravel(), minlength=count.size)
        self.num_files += 1
        self.num_tokens += tokens.num_tokens

    @property
    def usage(self) -> list[float]:
        """Fraction of the codes that occur."""
        return [usage(count) for count in self.counts]

    @property
    def dead_codes(self) -> list[int]:
        """Number of codes that do not occur."""
        return [count.size - int(np.count_nonzero(count)) for count in self.counts]

    @property
    def entropy_bits(self) -> list[float]:
        """Entropy of the histogram in bits per token."""
        return [entropy_bits(count) for count in self.counts]

    @property
    def perplexity(self) -> list[float]:
        """The number of equally frequent codes that would be as hard to predict."""
        return [perplexity(count) for count in self.counts]


def usage(count: NDArray[np.int64]) -> float:
    """Return the fraction of codes that occur, from the number of occurrences of each code."""
    return float(np.count_nonzero(count) / count.size)


def perplexity(count: NDArray[np.int64]) -> float:
    """Return exp of the entropy in nats, from the number of occurrences of each code."""
    return float(2.0 ** entropy_bits(count))


def shared_fraction(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Return the fraction of the codes that occur in either histogram that occur in both."""
    used, shared = (first > 0) | (second > 0), (first > 0) & (second > 0)
    return float(shared.sum()) / float(used.sum())


def jensen_shannon_bits(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Return the Jensen-Shannon divergence of two histograms in bits: 0 if they are equal, 1 if no code is in both.

    Source: Lin 1991, "Divergence Measures Based on the Shannon Entropy".
    """
    mean: NDArray[np.float64] = first / first.sum() + second / second.sum()
    return max(0.0, entropy_bits(mean) - (entropy_bits(first) + entropy_bits(second)) / 2)


def entropy_bits(count: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """Return the entropy in bits per token, from the number of occurrences of each code."""
    found: NDArray[np.float64] = count[count > 0].astype(np.float64)
    probability = found / found.sum()
    return float(probability @ -np.log2(probability))
