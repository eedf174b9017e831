"""Nearest-neighbor search and k-means over a codebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, BLOCK, GROUP = 768, 1024, 128
"""Vectors and codes that are scored at once (3 MiB of float32, which fits into caches), and codes per group."""


@torch.no_grad()
def nearest(vectors: Tensor, codebook: Tensor, metric: Literal["l2", "dot"] = "l2") -> Tensor:
    """Return for each vector the row of the codebook with the smallest L2 distance, or with the largest product.

    The result is the exact argmax of the float32 scores `x @ c - c @ c / 2`, or `x @ c`; the first row wins a tie. The
    scores are computed block by block. The code of a vector does not depend on the other vectors.

    Shapes:
        vectors: `(n, dim)` float32; codebook: `(size, dim)` float32; returns `(n,)` int64.
    """
    weights, biases = _blocks(codebook, metric)
    codes = torch.empty(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    for chunk, out in zip(_chunks(vectors), codes.split(_rows(vectors.device)), strict=True):
        best, found = _largest(_scores(chunk, weights[0], biases[0]))
        for block in range(1, len(weights)):
            top, place = _largest(_scores(chunk, weights[block], biases[block]))
            found = torch.where(top > best, place.add_(block * weights.shape[1]), found)
            best = torch.maximum(top, best)
        out.copy_(found[: len(out)])
    return codes.clamp_(max=len(codebook) - 1)


@torch.no_grad()
def nearest_several(
    vectors: Tensor, codebook: Tensor, count: int, prices: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the `count` nearest rows of a codebook for each vector, and their squared distances.

    As for `nearest`, what is found for a vector does not depend on the other vectors.

    Args:
        prices: What is added to the squared distance to each row.

    Shapes:
        vectors: `(n, dim)`; codebook: `(size, dim)`; prices: `(size,)`; returns `(n, count)` twice, the nearest first.
    """
    weights, biases = _blocks(codebook, "l2")
    if prices is not None:
        biases.view(-1)[: len(codebook)] -= prices / 2
    # The copies that fill the last block must not be found.
    biases.view(-1)[len(codebook) :] = -torch.inf
    codes, scores = [], []
    for chunk, part in zip(_chunks(vectors), vectors.split(_rows(vectors.device)), strict=True):
        found = [_scores(chunk, *block)[: len(part)] for block in zip(weights, biases, strict=True)]
        top = torch.cat(found, dim=1).topk(count)
        codes.append(top.indices)
        scores.append(top.values)
    distances = vectors.square().sum(1, keepdim=True) - 2 * torch.cat(scores)
    return torch.cat(codes), distances


def _blocks(codebook: Tensor, metric: Literal["l2", "dot"]) -> tuple[Tensor, Tensor]:
    """Return the rows `(blocks, width, dim)` of a codebook and what is added to their products, `(blocks, width)`."""
    size, dim = codebook.shape
    blocks = ceil(size / BLOCK)
    width = ceil(size / (blocks * GROUP)) * GROUP
    # The last block is filled up with copies of the last row. They never win, because the first row wins a tie.
    surplus = codebook[-1:].expand(blocks * width - size, dim)
    weights = torch.cat([codebook, surplus]).view(blocks, width, dim)
    biases = torch.stack([weight.square().sum(1) for weight in weights]).mul_(-0.5 if metric == "l2" else 0.0)
    return weights, biases


def _rows(device: torch.device) -> int:
    return ROWS if device.type == "cpu" else 16 * ROWS


def _chunks(vectors: Tensor) -> Iterator[Tensor]:
    """Yield vectors in chunks of one size; the last one has further rows of no meaning."""
    # Libraries round differently for other shapes, and for narrow matrices even from row to row. All products
    # therefore have the same, wide shape.
    rows = _rows(vectors.device)
    chunk = vectors.new_zeros(rows, vectors.shape[1])
    for part in vectors.split(rows):
        chunk[: part.shape[0]] = part
        yield chunk


def _scores(vectors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute `vectors @ weight.T + bias`."""
    if vectors.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return torch.addmm(bias, vectors, weight.T)
    # For matrix products torch uses MKL, which runs at half speed on processors from AMD. For convolutions it uses
    # oneDNN, which does not. In a single thread, torch chooses oneDNN for kernels of size 1 only if they are dilated
    # (which has no effect) and the batch has more than one image.
    images = vectors.view(2, -1, 1, vectors.shape[1]).movedim(-1, 1)
    maps = F.conv2d(images, weight[:, :, None, None], bias, dilation=2)
    return maps.movedim(1, -1).reshape(len(vectors), -1)


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest score of each row and its first index."""
    # argmax over all scores would take longer than the product that computed them. amax is vectorized, and so is the
    # arithmetic that finds the first maximum within the best group: each match is marked by its distance to the end of
    # the group, so that the first match has the largest mark.
    groups = scores.view(-1, GROUP)
    top, group = groups.amax(1).view(len(scores), -1).max(1)
    first = torch.arange(0, len(groups), len(groups) // len(scores), device=scores.device)
    countdown = torch.arange(GROUP, 0, -1, dtype=scores.dtype, device=scores.device)
    to_end = groups.index_select(0, first + group).eq_(top[:, None]).mul_(countdown).amax(1).long()
    return top, group.add_(1).mul_(GROUP).sub_(to_end)


def kmeans(vectors: Tensor, size: int, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Cluster vectors `(n, dim)`; an empty cluster restarts from a random vector.

    Returns:
        The centers `(size, dim)` and the number of vectors of each, `(size,)`; both float32.

    Source: Lloyd 1982, "Least squares quantization in PCM".
    """
    centers = pick(vectors, size)
    counts = vectors.new_ones(size)
    for _ in range(iterations):
        counts, sums = cluster_sums(vectors, nearest(vectors, centers), size)
        empty = counts == 0
        centers = torch.where(empty[:, None], pick(vectors, size), sums / counts.clamp(min=1)[:, None])
    return centers, counts


def cluster_sums(vectors: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the number `(size,)` and the sum `(size, dim)` of the vectors of each code."""
    counts = torch.bincount(codes, minlength=size).to(vectors.dtype)
    sums = vectors.new_zeros(size, vectors.shape[1]).index_add_(0, codes, vectors)
    return counts, sums


def pick(vectors: Tensor, count: int) -> Tensor:
    """Draw `count` of the vectors at random; repeat them only if there are too few."""
    n = vectors.shape[0]
    order = torch.randperm(n, device=vectors.device)[:count]
    if n < count:
        order = torch.cat([order, torch.randint(n, (count - n,), device=vectors.device)])
    return vectors[order]


def repeated(sets: Sequence[Tensor]) -> list[Tensor]:
    """Repeat the positions of the smaller ones of tensors `(items, positions, ...)` until all have as many."""
    most = max(part.shape[1] for part in sets)
    return [part[:, torch.arange(most, device=part.device) % part.shape[1]] for part in sets]
