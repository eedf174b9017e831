"""How well the codes of many files use their codebooks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import UsageError, WrongModelError
from vqtok.tokens.tokens import Tokens

MAX_COUNTED_SIZE = 2**24


class CodeStatistics:
    """Histograms of the codes of many files of one model; every list has one entry a codebook."""

    def __init__(self) -> None:
        self.counts: list[NDArray[np.int64]] = []
        """How often each code of each codebook was seen."""
        self.num_files = 0
        self.num_tokens = 0
        self._model = b""

    def add(self, tokens: Tokens) -> None:
        """Count the codes of one more file.

        Raises:
            WrongModelError: the tokens were made by another model than those before.
            UsageError: other codebooks than those before, or codebooks too large to count.
        """
        sizes = list(tokens.codebook_sizes)
        if not self.num_files:
            if max(sizes) > MAX_COUNTED_SIZE:
                raise UsageError(f"cannot count codes of a codebook of {max(sizes)}: at most {MAX_COUNTED_SIZE}")
            self._model = tokens.model
            self.counts = [np.zeros(size, np.int64) for size in sizes]
        if tokens.model != self._model:
            models = f"{self._model.hex()} and {tokens.model.hex()}"
            raise WrongModelError(f"cannot add up tokens of models {models}: give tokens of one model")
        known = [count.size for count in self.counts]
        if sizes != known:
            raise UsageError(f"cannot add up codebooks of sizes {known} and {sizes}: give tokens alike")
        for count, plane in zip(self.counts, tokens.codes, strict=True):
            count += np.bincount(plane.ravel(), minlength=count.size)
        self.num_files += 1
        self.num_tokens += tokens.num_tokens

    @property
    def usage(self) -> list[float]:
        """Fraction of the entries used at all."""
        return [np.count_nonzero(count) / count.size for count in self.counts]

    @property
    def dead_codes(self) -> list[int]:
        """Number of entries never used."""
        return [count.size - int(np.count_nonzero(count)) for count in self.counts]

    @property
    def entropy_bits(self) -> list[float]:
        """Entropy of the histogram, bits a token."""
        return [_entropy_bits(count) for count in self.counts]

    @property
    def perplexity(self) -> list[float]:
        """exp of the entropy in nats: as many equally frequent codes would be as hard to foretell."""
        return [2.0**bits for bits in self.entropy_bits]


def _entropy_bits(count: NDArray[np.int64]) -> float:
    probability = count[count > 0] / count.sum()
    return float(probability @ -np.log2(probability))
