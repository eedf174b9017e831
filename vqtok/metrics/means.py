"""Means over items, and distances between sets of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def common_means(figures: Mapping[str, Sequence[float]]) -> tuple[dict[str, float], int]:
    """Return the mean of each candidate over the items that have a finite number for all candidates.

    Infinite PSNR and metrics that are not defined for an item are so left out of the means of all candidates.

    Args:
        figures: By candidate, one number per item, NaN where there is none.

    Returns:
        The means (NaN if no item is left), and the number of items.
    """
    values = np.array(list(figures.values()), np.float64)
    usable = np.isfinite(values).all(axis=0) if values.size else np.zeros(0, bool)
    count = int(usable.sum())
    means = values[:, usable].mean(axis=1) if count else np.full(len(values), math.nan)
    return dict(zip(figures, means.tolist(), strict=True)), count


class Moments:
    """The mean and covariance of feature vectors that arrive in parts."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: NDArray[np.float64] = np.zeros(0)
        self._products: NDArray[np.float64] = np.zeros((0, 0))

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Add a vector, or several in rows."""
        values = np.atleast_2d(vectors).astype(np.float64)
        if not self.count:
            dim = values.shape[1]
            self._sum, self._products = np.zeros(dim), np.zeros((dim, dim))
        self.count += len(values)
        self._sum += values.sum(0)
        self._products += values.T @ values

    def mapped(self, matrix: NDArray[np.float64]) -> Moments:
        """Return the moments of the vectors times a matrix."""
        found = Moments()
        found.count, found._sum = self.count, self._sum @ matrix
        found._products = matrix.T @ self._products @ matrix
        return found

    @property
    def mean(self) -> NDArray[np.float64]:
        return self._sum / self.count

    @property
    def covariance(self) -> NDArray[np.float64]:
        return (self._products - np.outer(self._sum, self.mean)) / max(1, self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Compute the Frechet distance of the normal distributions with these moments; NaN for less than two items.

    Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", section 3.
    """
    if min(first.count, second.count) < 2:
        return math.nan
    covariance, other = first.covariance, second.covariance
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    # The trace of the root of the product, by a symmetric matrix with the same eigenvalues.
    cross = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(min=0)).sum()
    difference = first.mean - second.mean
    return max(0.0, float(difference @ difference + np.trace(covariance) + np.trace(other) - 2 * cross))
