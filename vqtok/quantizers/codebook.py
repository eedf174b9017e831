"""Nearest-neighbour search and k-means over a codebook."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

ROWS, BLOCK, GROUP = 256, 1024, 128
"""Vectors and codes scored by one product, whose codes fall in groups: 1 MiB of float32."""
PRODUCTS = 4
"""Products whose maxima are found at once, in a third-level cache."""


@torch.no_grad()
def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Find for each vector the row of the codebook with the smallest squared L2 distance; of equals the first.

    Exact: the argmax of the float32 scores `x @ c - c @ c / 2`, of which only a few blocks exist at a time. A
    vector's code depends on the vector and the codebook alone, not on its batch.

    Shapes:
        vectors: `(n, dim)` float32; codebook: `(size, dim)` float32; returns `(n,)` int64.
    """
    size, dim = codebook.shape
    blocks = ceil(size / BLOCK)
    groups = ceil(size / (blocks * GROUP))
    width = ceil(size / (blocks * groups))
    # Copies of the last row fill the last block up.
    surplus = codebook[-1:].expand(blocks * groups * width - size, dim)
    weights = torch.cat([codebook, surplus]).view(blocks, groups, width, dim).transpose(2, 3)
    biases = weights.square().sum(2, keepdim=True).mul_(-0.5)
    offsets = torch.arange(blocks, device=codebook.device)[:, None] * (groups * width)

    # BLAS may round otherwise for another shape or alignment: every product has the same, also for the last vectors.
    rows = ROWS if vectors.device.type == "cpu" else 8 * ROWS
    products = min(PRODUCTS, ceil(vectors.shape[0] / rows))
    inputs = vectors.new_zeros(products, rows, dim)
    scores = vectors.new_empty(products, groups, rows, width)
    codes = torch.empty(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    for start in range(0, vectors.shape[0], products * rows):
        part = vectors[start : start + products * rows]
        used = ceil(part.shape[0] / rows)
        inputs.view(-1, dim)[: part.shape[0]] = part
        found = []
        for bias, weight in zip(biases, weights, strict=True):
            for x, out in zip(inputs[:used], scores, strict=False):
                torch.baddbmm(bias, x.expand(groups, rows, dim), weight, out=out)
            found.append(_first_max(scores[:used]))
        tops, places = (torch.stack(column) for column in zip(*found, strict=True))
        best = tops.argmax(0, keepdim=True)
        codes[start : start + products * rows] = places.add_(offsets).gather(0, best)[0, : part.shape[0]]
    return codes.clamp_(max=size - 1)


def _first_max(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first maximum of each row of scores `(products, groups, rows, width)`, and its place in its block.

    `argmax` over all scores would cost several times the product that made them; `amax` is vectorised, and so is
    the arithmetic that finds the place in the best group.
    """
    products, groups, rows, width = scores.shape
    top, group = scores.amax(3).max(1)
    row = torch.arange(rows, device=scores.device)
    product = torch.arange(products, device=scores.device)[:, None]
    own = scores.view(-1, width).index_select(0, ((product * groups + group) * rows + row).view(-1))
    top, group = top.view(-1), group.view(-1)
    descending = torch.arange(width, 0, -1, device=scores.device, dtype=scores.dtype)
    first = width - own.eq_(top[:, None]).mul_(descending).amax(1).long()
    return top, first.add_(group, alpha=width)


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
