"""Nearest-neighbour search and k-means over a codebook."""

from __future__ import annotations

from math import ceil
from typing import Literal

import torch
from torch import Tensor

ROWS, BLOCK, GROUP = 512, 1024, 128
"""Vectors and codes scored at once (2 MiB of float32, for the caches' sake), and codes in a group."""


@torch.no_grad()
def nearest(vectors: Tensor, codebook: Tensor, metric: Literal["l2", "dot"] = "l2") -> Tensor:
    """Find for each vector the row of the codebook at the smallest L2 distance, or with the largest product.

    Exact: the argmax of the float32 scores `x @ c - c @ c / 2`, or `x @ c`, of which only one block exists at a time;
    of equals the first. A vector's code depends on the vector and the codebook alone, not on the vectors beside it.

    Shapes:
        vectors: `(n, dim)` float32; codebook: `(size, dim)` float32; returns `(n,)` int64.
    """
    size, dim = codebook.shape
    blocks = ceil(size / BLOCK)
    groups = ceil(size / (blocks * GROUP))
    # Copies of the last row fill the last block up; of equals the first wins.
    surplus = codebook[-1:].expand(blocks * groups * GROUP - size, dim)
    weights = torch.cat([codebook, surplus]).view(blocks, groups, GROUP, dim).transpose(2, 3)
    biases = torch.stack([weight.square().sum(1, keepdim=True) for weight in weights])
    biases.mul_(-0.5 if metric == "l2" else 0.0)

    # BLAS rounds otherwise for other shapes, and on narrow ones even by the row: all products are alike and wide.
    rows = ROWS if vectors.device.type == "cpu" else 16 * ROWS
    chunk = vectors.new_zeros(rows, dim)
    scores = vectors.new_empty(groups, rows, GROUP)
    row = torch.arange(rows, device=vectors.device)
    countdown = torch.arange(GROUP, 0, -1, dtype=scores.dtype, device=vectors.device)
    codes = torch.empty(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    for part, out in zip(vectors.split(rows), codes.split(rows), strict=True):
        chunk[: part.shape[0]] = part
        for block in range(blocks):
            torch.baddbmm(biases[block], chunk.expand(groups, rows, dim), weights[block], out=scores)
            # argmax over all scores would cost several times the product that made them. amax is vectorised, and so
            # is the arithmetic that finds the first maximum of the best group.
            top, group = scores.amax(2).max(0)
            own = scores.view(-1, GROUP).index_select(0, torch.add(row, group, alpha=rows))
            to_end = own.eq_(top[:, None]).mul_(countdown).amax(1).long()
            place = group.add_(block * groups + 1).mul_(GROUP).sub_(to_end)
            if block == 0:
                best, found = top, place
            else:
                found = torch.where(top > best, place, found)
                best = torch.maximum(top, best)
        out.copy_(found[: part.shape[0]])
    return codes.clamp_(max=size - 1)


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
