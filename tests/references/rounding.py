"""Bounds for comparisons of floats and codes that hold on every processor.

Processors sum up in different orders, and some round on the way: a bound must follow from the arithmetic, not from what
one of them gives. Where a test finds a leak or a seam, that is larger by orders of magnitude.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import nn

BFLOAT16 = 2.0**-8
"""Largest relative error of rounding to bfloat16."""
FLIPPED = 0.005
"""Share of grid positions that may have other codes, as two codebook vectors are nearly as near; a seam has more."""


def bfloat16_bound(layers: nn.Module) -> float:
    """Return a bound of the relative error of a chain of layers in bfloat16.

    Each rounds its input, its weights and its output. A processor may also round a sum of n products as it grows: that
    is sqrt(n) roundings more, as their signs differ. Measured: 0.006 of the band discriminator on processors without
    AMX, 0.089 on one with it.
    """
    counts = [layer.weight[0].numel() for layer in layers.modules() if isinstance(layer, nn.Conv1d | nn.Conv2d)]
    return BFLOAT16 * sum(3 + math.sqrt(count) for count in counts)


def assert_same_codes(found: NDArray[np.integer], expected: NDArray[np.integer]) -> None:
    """Check that codes `(num_codebooks, *grid)` are equal, but where rounding decides between two codebook vectors."""
    assert found.shape == expected.shape
    differ = (found != expected).any(axis=0)
    assert differ.sum() <= max(1, FLIPPED * differ.size), f"{differ.sum()} of {differ.size} positions differ"
