"""Metrics of the quality of a reconstructed image `x_hat` of `x`, one number per item of a batch.

Every function takes two tensors of the same shape `(batch, channels, height, width)` with a nominal range of [-1, 1],
computes in float64, and returns a `(batch,)` tensor without gradient.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_STABILIZERS = 0.01**2, 0.03**2
MS_SSIM_WEIGHTS = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333


def check_shapes(x: Tensor, x_hat: Tensor, ndim: int) -> None:
    """Raise if two batches do not have the same shape.

    Raises:
        ValueError: They have not.
    """
    if x.shape != x_hat.shape or x.ndim != ndim:
        raise ValueError(f"need {ndim}-D tensors of equal shape, not {tuple(x.shape)} and {tuple(x_hat.shape)}")


def _pixels(x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
    """Convert images to float64 in [0, 1]; clamp `x_hat` like an image file does."""
    check_shapes(x, x_hat, ndim=4)
    return (x.detach().double() + 1) / 2, (x_hat.detach().double().clamp(-1, 1) + 1) / 2


def psnr(x: Tensor, x_hat: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio in dB over pixels and channels; infinite for equal images."""
    x, x_hat = _pixels(x, x_hat)
    return -10 * (x - x_hat).square().mean((1, 2, 3)).log10()


def ssim(x: Tensor, x_hat: Tensor) -> Tensor:
    """Compute the structural similarity, averaged over channels and over all windows inside the image.

    The window is Gaussian, 11 x 11 with sigma 1.5. For images less than 11 pixels wide or high it is cut to
    the smaller side and normalized again.

    Source: Wang et al. 2004, Image quality assessment: from error visibility to structural similarity,
    section III.
    """
    return _similarity(*_pixels(x, x_hat))[0].mean(1)


def ms_ssim(x: Tensor, x_hat: Tensor) -> Tensor:
    """Compute the multi-scale structural similarity, averaged over channels.

    Each of up to five scales has half the size of the one before, by averages of 2 x 2 pixels (an odd last
    row or column is left out). Only scales of at least 11 x 11 pixels are used (all five from 176 x 176 on),
    at least one; their weights are normalized to a sum of 1. A negative mean at any scale counts as 0.

    Source: Wang et al. 2003, Multi-scale structural similarity for image quality assessment, section 3.
    """
    x, x_hat = _pixels(x, x_hat)
    sides = [min(x.shape[-2:]) >> scale for scale in range(len(MS_SSIM_WEIGHTS))]
    weights = MS_SSIM_WEIGHTS[: max(1, sum(side >= SSIM_WINDOW for side in sides))]
    similarity = x.new_ones(x.shape[:2])
    for scale, weight in enumerate(weights, start=1):
        whole, contrast = _similarity(x, x_hat)
        term = whole if scale == len(weights) else contrast
        similarity *= term.clamp(min=0) ** (weight / sum(weights))
        if scale < len(weights):
            x, x_hat = F.avg_pool2d(x, 2), F.avg_pool2d(x_hat, 2)
    return similarity.mean(1)


def _similarity(x: Tensor, x_hat: Tensor) -> Tensor:
    """Return SSIM and its contrast and structure part, averaged over positions: `(2, batch, channels)`."""
    # One image at a time, because its moments then stay in the cache: several times as fast as the whole batch.
    return torch.stack([_image_similarity(*pair) for pair in zip(x, x_hat, strict=True)], 1)


def _image_similarity(x: Tensor, x_hat: Tensor) -> Tensor:
    size = min(SSIM_WINDOW, *x.shape[-2:])
    window = [math.exp(-(((i - (size - 1) / 2) / SSIM_SIGMA) ** 2) / 2) for i in range(size)]
    moments = torch.stack([x, x_hat, x * x + x_hat * x_hat, x * x_hat])
    for dim in (-2, -1):
        # Sums of shifted arrays are several times as fast as a float64 convolution on a CPU.
        valid = moments.shape[dim] - size + 1
        blurred = torch.zeros_like(moments.narrow(dim, 0, valid))
        for start, weight in enumerate(window):
            blurred.add_(moments.narrow(dim, start, valid), alpha=weight / sum(window))
        moments = blurred
    mean, mean_hat, squares, product = moments
    mean_squares, mean_product = mean**2 + mean_hat**2, mean * mean_hat
    c1, c2 = SSIM_STABILIZERS
    luminance = (2 * mean_product + c1) / (mean_squares + c1)
    contrast = (2 * (product - mean_product) + c2) / (squares - mean_squares + c2)
    return torch.stack([luminance * contrast, contrast]).mean((2, 3))
