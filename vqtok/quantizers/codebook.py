"""Nearest-neighbour search and k-means over a codebook."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_FLOATS = 1 << 18
"""Scores held at once: 1 MiB of float32, so that a chunk stays in the second-level cache."""


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Find for each vector the row of the codebook with the smallest squared L2 distance.

    Never holds more than a chunk of the (n, size) scores.

    Shapes:
        vectors: `(n, dim)` float32; codebook: `(size, dim)` float32; returns `(n,)` int64.
    """
    half_norms = codebook.square().sum(1).mul_(-0.5)
    rows = max(1, CHUNK_FLOATS // codebook.shape[0])
    codes = torch.empty(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    for chunk, out in zip(vectors.split(rows), codes.split(rows), strict=True):
        torch.argmax(torch.addmm(half_norms, chunk, codebook.T), dim=1, out=out)
    return codes


def kmeans(vectors: Tensor, size: int, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Cluster vectors `(n, dim)`; an empty cluster restarts from a random vector.

    Returns:
        The centres `(size, dim)` and the number of vectors of each `(size,)`, float32.

    Source: Lloyd 1982, "Least squares quantization in PCM".
    """
    centres = pick(vectors, size)
    counts = vectors.new_ones(size)
    for _ in range(iterations):
        counts, sums = cluster_sums(vectors, nearest(vectors, centres), size)
        empty = counts == 0
        centres = torch.where(empty[:, None], pick(vectors, size), sums / counts.clamp(min=1)[:, None])
    return centres, counts


def cluster_sums(vectors: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Count and sum the vectors of each code: `(size,)` and `(size, dim)`."""
    counts = torch.bincount(codes, minlength=size).to(vectors.dtype)
    sums = vectors.new_zeros(size, vectors.shape[1]).index_add_(0, codes, vectors)
    return counts, sums


def pick(vectors: Tensor, count: int) -> Tensor:
    """Draw `count` of the vectors at random, without repetition as far as they suffice."""
    n = vectors.shape[0]
    order = torch.randperm(n, device=vectors.device)[:count]
    if n < count:
        order = torch.cat([order, torch.randint(n, (count - n,), device=vectors.device)])
    return vectors[order]
