"""SSIMULACRA2 as a loss for images: a measure of visible differences that has a gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 8
"""Pixels per side below which a scale is left out."""

_ABSORBANCE = (
    (0.30, 0.622, 0.078),
    (0.23, 0.692, 0.078),
    (0.24342268924547819, 0.20476744424496821, 0.55180986650955360),
)
_BIAS = 0.0037930732552754493
_STABILITY = 0.0009
_SCALE = 0.9562382616834844
# Weights of the channels X, Y and B (rows) at the scales 1, 2, 4, 8 and 16 (columns). The standard has weights below
# 0.01 elsewhere, and at the scale 32.
_MEANS = {
    "structure": ((0, 0, 0, 0, 0), (0, 0, 225.205153, 176.393176, 0), (0, 0, 0, 0, 95.108050)),
    "artifact": ((0, 0, 0, 0, 0.967794), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0.986398)),
    "detail": ((0, 0, 0, 0, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0.983438)),
}
_FOURTH_POWERS = {
    "structure": (
        (0, 1.104173, 1.842246, 1.878759, 0),
        (7.466890, 6.683678, 19.213238, 24.433010, 34.779063),
        (0, 0, 0, 8.826983, 0),
    ),
    "artifact": (
        (0, 0, 11.441173, 10.949070, 0.998177),
        (0, 0, 0, 0.285208, 44.835625),
        (0, 0, 0, 23.192433, 171.266726),
    ),
    "detail": ((0, 0, 0, 0, 0), (17.445834, 1.027890, 0, 0, 0), (0, 0, 0, 0, 0.980786)),
}


class SSIMULACRA2Loss(nn.Module):
    """The error of SSIMULACRA2 before its mapping to a score: 0 for equal images, about 10 for a score of 30.

    It compares structure, edges that have been added (artifacts) and edges that are missing (lost detail), in a color
    space of human vision, at five scales. Norms of the fourth power make the worst places count most.

    Shapes:
        x, x_hat: `(batch, 1 or 3, height, width)` in [-1, 1].

    Source: Sneyers 2023, "SSIMULACRA2 - Structural SIMilarity Unveiling Local And Compression Related Artifacts".
    Unlike: Blurs have normalized weights at the borders. Of crops below 128 pixels per side, the coarsest scales are
        left out.
    """

    absorbance: Tensor
    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("absorbance", torch.tensor(_ABSORBANCE), persistent=False)
        # (scales, norms, maps, channels)
        tables = [[table[name] for name in table] for table in (_MEANS, _FOURTH_POWERS)]
        self.register_buffer("weights", torch.tensor(tables).movedim(-1, 0), persistent=False)

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        shape = (len(x), 3, *x.shape[2:])
        linear, linear_hat = (_to_linear(image.float().expand(shape)) for image in (x, x_hat))
        total = linear_hat.new_zeros(len(x))
        for weights in self.weights:
            if min(linear.shape[2:]) < SMALLEST:
                break
            maps = _maps(self._to_xyb(linear), self._to_xyb(linear_hat))
            # A root has no gradient at 0.
            norms = torch.stack((maps.mean((-2, -1)), ((maps**4).mean((-2, -1)) + 1e-20) ** 0.25))
            total = total + torch.einsum("nmc,nmbc->b", weights, norms)
            linear, linear_hat = (F.avg_pool2d(image, 2, ceil_mode=True) for image in (linear, linear_hat))
        # Images without any scale have a gradient as well: zero.
        return _SCALE * total.mean() + 0 * x_hat.float().sum()

    def _to_xyb(self, linear: Tensor) -> Tensor:
        """Convert linear RGB to XYB, shifted and scaled so that the values are positive."""
        mixed = torch.einsum("ij,bjhw->bihw", self.absorbance, linear) + _BIAS
        long, medium, short = (mixed ** (1 / 3) - _BIAS ** (1 / 3)).unbind(1)
        x, y = (long - medium) / 2, (long + medium) / 2
        return torch.stack((14 * x + 0.42, y + 0.01, short - y + 0.55), dim=1)


def _to_linear(image: Tensor) -> Tensor:
    """Convert sRGB in [-1, 1] to linear RGB in [0, 1]."""
    image = ((image + 1) / 2).clamp(0, 1)
    return torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def _maps(x: Tensor, x_hat: Tensor) -> Tensor:
    """Return the error of structure, the added and the missing edges, `(3, batch, channels, height, width)`."""
    across, down = (_blur_matrix(size, x) for size in (x.shape[3], x.shape[2]))
    moments = torch.stack((x, x_hat, x * x, x_hat * x_hat, x * x_hat))
    mean, mean_hat, power, power_hat, product = down @ moments @ across.T
    covariance = 2 * (product - mean * mean_hat) + _STABILITY
    variances = power - mean * mean + power_hat - mean_hat * mean_hat + _STABILITY
    structure = 1 - (1 - (mean - mean_hat) ** 2) * covariance / variances
    edges = (1 + (x_hat - mean_hat).abs()) / (1 + (x - mean).abs()) - 1
    return torch.stack((structure, edges, -edges)).clamp(min=0)


def _blur_matrix(size: int, like: Tensor) -> Tensor:
    """Return the matrix of a Gaussian blur with a deviation of 1.5 over at most 5 pixels to each side."""
    distance = torch.arange(size, device=like.device)
    distance = (distance - distance[:, None]).to(like.dtype)
    blur = torch.exp(-(distance**2) / (2 * 1.5**2)) * (distance.abs() <= 5)
    return blur / blur.sum(1, keepdim=True)
