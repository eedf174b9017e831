"""Nearest-neighbour search and k-means over a codebook."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

ROWS, BLOCK, GROUP = 256, 1024, 128
"""Vectors and codes scored by one product (1 MiB of float32), and codes of which the maximum is found at once."""
PRODUCTS = 4
"""Products between two searches for the best codes; their scores stay in a cache."""


@torch.no_grad()
def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Find for each vector the row of the codebook with the smallest squared L2 distance; of equals the first.

    Exact: the argmax of the float32 scores `x @ c - c @ c / 2`, of which only a few blocks exist at a time. A
    vector's code depends on the vector and the codebook alone, not on its batch.

    Shapes:
        vectors: `(n, dim)` float32; codebook: `(size, dim)` float32; returns `(n,)` int64.
    """
    n, (size, dim) = vectors.shape[0], codebook.shape
    blocks = ceil(size / BLOCK)
    groups = ceil(size / (blocks * GROUP))
    width = ceil(size / (blocks * groups))
    # Copies of the last row fill the last block up.
    surplus = codebook[-1:].expand(blocks * groups * width - size, dim)
    weights = torch.cat([codebook, surplus]).view(blocks, groups, width, dim).transpose(2, 3)
    biases = weights.square().sum(2, keepdim=True).mul_(-0.5)

    # BLAS may round otherwise for another shape or alignment: every product has the same, also for the last vectors.
    rows = ROWS if vectors.device.type == "cpu" else 8 * ROWS
    step = rows * min(PRODUCTS, ceil(n / rows))
    inputs = vectors.new_zeros(step, dim)
    scores = vectors.new_empty(step // rows, groups, rows, width)
    codes = torch.empty(n, dtype=torch.int64, device=vectors.device)
    for start in range(0, n, step):
        part = vectors[start : start + step]
        inputs[: part.shape[0]] = part
        products = ceil(part.shape[0] / rows)
        best = None
        for block, (bias, weight) in enumerate(zip(biases, weights, strict=True)):
            for x, out in zip(inputs.split(rows)[:products], scores, strict=False):
                torch.baddbmm(bias, x.expand(groups, rows, dim), weight, out=out)
            top, place = _first_max(scores[:products])
            place = place + block * groups * width
            if best is None:
                best, found = top, place
            else:
                found = torch.where(top > best, place, found)
                best = torch.maximum(best, top)
        codes[start : start + step] = found[: part.shape[0]]
    return codes.clamp_(max=size - 1)


def _first_max(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first maximum of each row of scores `(products, groups, rows, width)`, and its place in its block.

    `argmax` over all scores would cost several times the product that made them; `amax` is vectorised, and so is
    the arithmetic that finds the place in the best group.
    """
    products, groups, rows, width = scores.shape
    tops = scores.new_empty(products, rows, groups)
    torch.amax(scores, 3, out=tops.transpose(1, 2))
    top, group = tops.view(-1, groups).max(1)
    first = torch.arange(products*groups*rows, device=scores.device).view(products, groups,rows)[:,0].flatten()
    own = scores.view(-1, width).index_select(0, first.add_(group,alpha=rows))
    ascending = torch.arange(-width, 0, device=scores.device, dtype=scores.dtype)
    first = own.eq_(top[:, None]).mul_(ascending).amin(1)
    return top, torch.add(first, group, alpha=width).long()+width


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
