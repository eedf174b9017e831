"""Integer frequencies for the entropy coder."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from vqtok.tokens.coding.rans import TOTAL


def frequencies(counts: NDArray[np.integer]) -> NDArray[np.uint16] | None:
    """Distribute 2^14 over the codes in proportion to their counts, in integer arithmetic.

    Each code gets 1. The rest is given out one by one, each to the code with the greatest
    floor(2^32 weight / (2 frequency + 1)), the lowest such code on a tie; the weight of a code is
    2 count + 1. This is Sainte-Laguë's method, which is close to the optimum in bits, with half a count added
    to each code for what the counts have not seen.

    Args:
        counts: The number of occurrences of each code, `(codebook_size,)`.

    Returns:
        Integers >= 1 that sum to 2^14, or None for more than 2^14 codes, which are bit-packed.

    Raises:
        ValueError: Fewer than two codes, or counts that are negative or not integers.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.size < 2 or not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0:
        raise ValueError("counts must be non-negative integers, one for each of two or more codes")
    if counts.size > TOTAL:
        return None
    weights = [(2 * count + 1) << 32 for count in counts.tolist()]
    table = [1] * len(weights)
    heap = [(-(weight // 3), code) for code, weight in enumerate(weights)]
    heapq.heapify(heap)
    for _ in range(TOTAL - len(weights)):
        code = heap[0][1]
        table[code] += 1
        heapq.heapreplace(heap, (-(weights[code] // (2 * table[code] + 1)), code))
    return np.array(table, dtype=np.uint16)
