"""SSIMULACRA2 as a loss, against values computed by hand and by a package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.config import LossConfig
from vqtok.errors import UsageError
from vqtok.losses.reconstruction import ReconstructionLoss
from vqtok.losses.ssimulacra2 import SSIMULACRA2Loss
from vqtok.media.image import read_image

PHOTO = Path(__file__).parents[1] / "samples" / "photo.jpg"


def photo() -> Tensor:
    return torch.from_numpy(read_image(PHOTO, 3).data)[None]


def score(error: float) -> float:
    """Return the score of an error, by the polynomial of the standard."""
    mapped = 2.326765642916932 * error - 0.020884521182843837 * error**2 + 6.248496625763138e-05 * error**3
    return 100 - 10 * mapped**0.6276336467831387


def pixelated(x: Tensor, size: int) -> Tensor:
    return F.interpolate(F.avg_pool2d(x, size, ceil_mode=True), scale_factor=size)[..., : x.shape[2], : x.shape[3]]


@pytest.mark.parametrize(("size", "expected"), [(2, 77.78), (4, 52.96)])
def test_scores_are_those_of_a_package(size: int, expected: float) -> None:
    # By the package ssimulacra2 0.3.0, of images that are rounded to 8 bits.
    x_hat = (127.5 * (pixelated(photo(), size) + 1)).round() / 127.5 - 1
    assert score(SSIMULACRA2Loss()(photo(), x_hat).item()) == pytest.approx(expected, abs=0.5)


def test_two_grays_by_hand() -> None:
    # Without edges and variances, the error is the squared difference of Y everywhere; X and B - Y are equal.
    x, x_hat = torch.full((2, 1, 128, 128), -1.0), torch.full((2, 1, 128, 128), 0.0)
    bias = 0.0037930732554
    y = (((0.5 + 0.055) / 1.055) ** 2.4 + bias) ** (1 / 3) - bias ** (1 / 3)
    means, fourth_powers = 225.205153 + 176.393176, 7.466890 + 6.683678 + 19.213238 + 24.433010 + 34.779063
    expected = 0.9562382616834844 * (means + fourth_powers) * y**2
    assert SSIMULACRA2Loss()(x, x_hat).item() == pytest.approx(expected, rel=1e-3)


def test_added_edges_and_missing_ones_by_hand() -> None:
    # At the finest scale only missing edges count, here those of a white point on black: the point without its blur.
    loss = SSIMULACRA2Loss()
    loss.weights[1:] = 0
    loss.weights[0, :, 0] = 0
    x = torch.full((1, 3, 16, 16), -1.0)
    x[..., 8, 8] = 1.0
    bias = 0.0037930732554
    y = (1 + bias) ** (1 / 3) - bias ** (1 / 3)
    kernel = torch.exp(-(torch.arange(-5.0, 6.0) ** 2) / 4.5)
    kernel /= kernel.sum()
    blurred = torch.zeros(16, 16)
    blurred[3:14, 3:14] = y * kernel[:, None] * kernel
    edge = -blurred
    edge[8, 8] += y
    lost = 1 - 1 / (1 + edge.abs())
    expected = 0.9562382616834844 * 17.445834 * (lost**4).mean() ** 0.25
    flat = torch.full_like(x, -1.0)
    torch.testing.assert_close(loss(x, flat), expected, rtol=1e-3, atol=0)
    assert loss(flat, x).item() == pytest.approx(0, abs=1e-3)


def test_equal_images_have_no_error() -> None:
    assert SSIMULACRA2Loss()(photo(), photo()).item() == pytest.approx(0, abs=0.02)


def test_small_crops_have_fewer_scales() -> None:
    loss, x = SSIMULACRA2Loss(), photo()[..., :64, :64]
    # 64, 32, 16 and 8 pixels.
    expected = loss(x, pixelated(x, 4))
    loss.weights[4] = 0
    torch.testing.assert_close(loss(x, pixelated(x, 4)), expected)
    loss.weights[3] = 0
    assert loss(x, pixelated(x, 4)) < expected


@pytest.mark.parametrize("shape", [(2, 3, 40, 24), (1, 1, 128, 128), (1, 3, 5, 9)])
@pytest.mark.parametrize("error", [0.0, 1e-4, 0.1, 3.0])
def test_gradients_are_finite(shape: tuple[int, ...], error: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator) * 2 - 1
    x_hat = (x + error * torch.randn(shape, generator=generator)).requires_grad_()
    SSIMULACRA2Loss()(x, x_hat).backward()
    assert x_hat.grad is not None
    assert x_hat.grad.isfinite().all()


def test_it_pulls_towards_the_target() -> None:
    x, loss = photo()[..., :128, :128], SSIMULACRA2Loss()
    x_hat = pixelated(x, 4).requires_grad_()
    before = loss(x, x_hat)
    before.backward()
    assert x_hat.grad is not None
    with torch.no_grad():
        x_hat -= 0.02 * x_hat.grad / x_hat.grad.abs().max()
    assert loss(x, x_hat) < before


def test_it_is_a_term_for_images() -> None:
    x = photo()
    found = ReconstructionLoss(LossConfig(ssimulacra2=1.0), 0)(x, pixelated(x, 2))
    torch.testing.assert_close(found["ssimulacra2"], SSIMULACRA2Loss()(x, pixelated(x, 2)))
    with pytest.raises(UsageError, match=r"loss\.ssimulacra2 is for images"):
        ReconstructionLoss(LossConfig(ssimulacra2=1.0), 24_000)
