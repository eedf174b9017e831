"""Nearest-neighbour search and k-means over a codebook."""

from __future__ import annotations

from math import ceil
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, BLOCK, GROUP = 768, 1024, 128
"""Vectors and codes scored at once (3 MiB of float32, for the caches' sake), and codes in a group."""


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
    width = ceil(size / (blocks * GROUP)) * GROUP
    # Copies of the last row fill the last block up; of equals the first wins.
    surplus = codebook[-1:].expand(blocks * width - size, dim)
    weights = torch.cat([codebook, surplus]).view(blocks, width, dim)
    biases = torch.stack([weight.square().sum(1) for weight in weights]).mul_(-0.5 if metric == "l2" else 0.0)

    # Libraries round otherwise for other shapes, and on narrow ones even by the row: all products are alike and wide.
    rows = ROWS if vectors.device.type == "cpu" else 16 * ROWS
    chunk = vectors.new_zeros(rows, dim)
    codes = torch.empty(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    for part, out in zip(vectors.split(rows), codes.split(rows), strict=True):
        chunk[: part.shape[0]] = part
        best, found = _largest(_scores(chunk, weights[0], biases[0]))
        for block in range(1, blocks):
            top, place = _largest(_scores(chunk, weights[block], biases[block]))
            found = torch.where(top > best, place.add_(block * width), found)
            best = torch.maximum(top, best)
        out.copy_(found[: part.shape[0]])
    return codes.clamp_(max=size - 1)


def _scores(vectors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute `vectors @ weight.T + bias`."""
    if vectors.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return torch.addmm(bias, vectors, weight.T)
    # For matrices torch takes MKL, which leaves processors of AMD half of their width, for convolutions oneDNN, which
    # does not: in a single thread for kernels of 1 only if dilated (without effect), and for more than one picture.
    pictures = vectors.view(2, -1, 1, vectors.shape[1]).movedim(-1, 1)
    maps = F.conv2d(pictures, weight[:, :, None, None], bias, dilation=2)
    return maps.movedim(1, -1).reshape(len(vectors), -1)


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Find in each row the largest score and its place, of equals the first."""
    # argmax over all scores would cost more than the product that made them. amax is vectorised, and so is the
    # arithmetic that finds the first maximum of the best group.
    groups = scores.view(-1, GROUP)
    top, group = groups.amax(1).view(len(scores), -1).max(1)
    first = torch.arange(0, len(groups), len(groups) // len(scores), device=scores.device)
    countdown = torch.arange(GROUP, 0, -1, dtype=scores.dtype, device=scores.device)
    to_end = groups.index_select(0, first + group).eq_(top[:, None]).mul_(countdown).amax(1).long()
    return top, group.add_(1).mul_(GROUP).sub_(to_end)


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
