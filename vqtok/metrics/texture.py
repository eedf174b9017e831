"""The Frechet distance of textures: whether reconstructions have the details of originals, be they the same or not."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vqtok.losses.reconstruction import magnitudes, mel_filters
from vqtok.metrics.means import Moments, frechet_distance

WIDTHS = (24, 32, 32)
"""Channels of the layers; the outputs of all are features."""
NUM_MELS, WINDOW = 64, 512
"""Of the spectrogram in which the texture of audio is seen."""
FLOOR = 1e-3
"""Magnitudes below this count as silence."""
SHRINKAGE = 0.01
"""Fraction of the mean variance that is added to all of them before features are whitened."""


class TextureDistance:
    """Compares the features of all patches of originals with those of reconstructions.

    The features are those of convolutions with random weights, always the same ones, which need no download, and do not
    react to brightness. They are whitened by the covariance of the originals, so that faint details count as much as
    strong contours. 0 for equal distributions; blur and missing texture raise it, as do noise and artifacts.

    Args:
        sample_rate: In Hz; 0 for images.

    Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", section 3 (the distance); Naeem et al.
        2020, "Reliable Fidelity and Diversity Metrics for Generative Models", section 4 (random features).
    """

    def __init__(self, sample_rate: int = 0) -> None:
        self.sample_rate = sample_rate
        self._moments = [(Moments(), Moments()) for _ in WIDTHS]

    @torch.no_grad()
    def add(self, x: NDArray[np.float32], x_hat: NDArray[np.float32]) -> None:
        """Add an item.

        Shapes:
            x, x_hat: `(channels, *size)` in [-1, 1].
        """
        pairs = zip(self._features(x), self._features(x_hat), strict=True)
        for moments, features in zip(self._moments, pairs, strict=True):
            for own, vectors in zip(moments, features, strict=True):
                own.add(vectors.numpy())

    def distance(self) -> float:
        """Return the mean of the distances at all layers, divided by the number of features; NaN without patches."""
        return float(np.mean([_whitened_distance(*moments) for moments in self._moments]))

    def _features(self, media: NDArray[np.float32]) -> list[Tensor]:
        """Return the features `(patches, width)` of each layer."""
        x = torch.from_numpy(media)[None]
        if self.sample_rate:
            mel = mel_filters(self.sample_rate, WINDOW, NUM_MELS) @ magnitudes(x.flatten(0, 1), WINDOW)
            x = mel.clamp(min=FLOOR).log10()[:, None].mean(0, keepdim=True)
        features = []
        for layer, weight in enumerate(_weights(x.shape[1])):
            x = F.conv2d(x, weight, stride=1 if layer == 0 else 2)
            features.append(x.flatten(2)[0].T)
            x = F.relu(x)
            if min(x.shape[2:]) < 3:
                break
        return features + [torch.zeros(0, width) for width in WIDTHS[len(features) :]]


@functools.lru_cache
def _weights(channels: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = []
    for inputs, outputs in zip((channels, *WIDTHS), WIDTHS, strict=False):
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator) / (9 * inputs / 2) ** 0.5
        weights.append(weight - weight.mean((2, 3), keepdim=True))
    return weights


def _whitened_distance(originals: Moments, reconstructions: Moments) -> float:
    if min(originals.count, reconstructions.count) < 2:
        return float("nan")
    values, vectors = np.linalg.eigh(originals.covariance)
    scale = (values.clip(min=0) + SHRINKAGE * values.mean() + 1e-12) ** -0.5
    whiten = vectors * scale
    return frechet_distance(originals.mapped(whiten), reconstructions.mapped(whiten)) / len(values)
