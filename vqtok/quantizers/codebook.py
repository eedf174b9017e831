"""Nearest-neighbour search and k-means over a codebook."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

ROWS, BLOCK, GROUP = 256, 1024, 128
"""Vectors and codes that one product scores (1 MiB of float32), and codes in a group."""
PRODUCTS = 4
"""Products whose maxima are found together: few enough for a cache, many enough to outweigh the calls."""


@torch.no_grad()
def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Find for each vector the row of the codebook with the smallest squared L2 distance; of equals the first.

    Exact: the argmax of the float32 scores `x @ c - c @ c / 2`, of which only `PRODUCTS` blocks exist at a time. A
    vector's code depends on the vector and the codebook alone, not on the vectors beside it.

    Shapes:
        vectors: `(n, dim)` float32; codebook: `(size, dim)` float32; returns `(n,)` int64.
    """
    n, (size, dim) = vectors.shape[0], codebook.shape
    blocks = ceil(size / BLOCK)
    groups = ceil(size / (blocks * GROUP))
    width = ceil(size / (blocks * groups))
    block = groups * width
    # Copies of the last row fill the last block up.
    weights = torch.cat([codebook, codebook[-1:].expand(blocks * block - size, dim)]).view(blocks, block, dim)
    biases = weights.square().sum(2).mul_(-0.5)

    # BLAS may round otherwise for another shape or alignment: every product has the same, even that of the last rows.
    rows = ROWS if vectors.device.type == "cpu" else 8 * ROWS
    step = rows * min(PRODUCTS, max(1, ceil(n / rows)))
    inputs = vectors.new_zeros(step, dim)
    # A spare group where rows would lie whole pages apart, which is where caches have few places.
    scores = vectors.new_empty(step, groups + (block % 1024 == 0), width)
    codes = torch.empty(n, dtype=torch.int64, device=vectors.device)
    for start in range(0, n, step):
        part = vectors[start : start + step]
        inputs[: part.shape[0]] = part
        used = ceil(part.shape[0] / rows) * rows
        outputs = scores.flatten(1)[:used, :block].split(rows)
        for offset, bias, weight in zip(range(0, blocks * block, block), biases, weights, strict=True):
            for x, out in zip(inputs.split(rows), outputs, strict=False):
                torch.addmm(bias, x, weight.T, out=out)
            top, place = _first_max(scores[:used], groups)
            if offset == 0:
                best, found = top, place
            else:
                found = torch.where(top > best, place.add_(offset), found)
                best = torch.maximum(top, best)
        codes[start : start + step] = found[: part.shape[0]]
    return codes.clamp_(max=size - 1)


def _first_max(scores: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Find each row's first maximum in the first groups of scores `(rows, groups, width)`, and its place in them.

    `argmax` over all scores would cost several times the products that made them. `amax` is vectorised, and so is
    the arithmetic that finds the place within the best group.
    """
    rows, stride, width = scores.shape
    top, group = scores[:, :groups].amax(2).max(1)
    index = torch.arange(0, rows * stride, stride, device=scores.device).add_(group)
    own = scores.view(-1, width).index_select(0, index)
    descending = torch.arange(width, 0, -1, dtype=scores.dtype, device=scores.device)
    from_end = own.eq_(top[:, None]).mul_(descending).amax(1)
    return top, group.add_(1).mul_(width).sub_(from_end.long())


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
